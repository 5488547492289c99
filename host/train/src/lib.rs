//! Training: a configuration, plugins and data in; an adapter, its log and its checkpoints out.
//!
//! [`Run::prepare`] loads, traces, differentiates, plans and compiles; [`Run::train`] then only feeds batches to executables and
//! writes files. Progress goes to an [`Observer`]; this crate prints nothing.
#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod dataset;
mod error;
mod evaluate;
mod memory;
mod plot;
mod programs;
mod record;
mod run;
mod schedule;
mod trainer;

pub use config::{Strategy, TrainConfig};
pub use dataset::{Plugins, Probe, Text, held_out, read_dataset, text_of, train_tokenizer};
pub use error::{Result, TrainError};
pub use evaluate::{Accuracy, answer};
pub use memory::{MemoryPlan, resident_bytes, resident_peak_bytes};
pub use plot::{Curve, loss_curve};
pub use programs::{Programs, UpdateSpec, assemble, forward, grad_state};
pub use record::{RunFolder, Summary};
pub use run::{Question, Run};
pub use schedule::Schedule;
pub use trainer::{Event, Observer, Outcome};
