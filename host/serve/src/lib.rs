//! Models that run: a checkpoint, its model plugin and at most one adapter method behind one weight store, and generation from it.
//!
//! Training builds on this crate, so that what was trained is what is served: the same traces, the same weights, the same executor.
#![forbid(unsafe_code)]

mod error;
mod generate;
mod model;
mod program;
mod sampling;
mod weights;

pub use error::{Result, ServeError};
pub use generate::{Generated, Generator, Stop, encode, logits};
pub use model::AdaptedModel;
pub use program::{Program, compile};
pub use sampling::Sampling;
pub use weights::WeightTensor;
