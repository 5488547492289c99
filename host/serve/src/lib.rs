//! Models that run: a checkpoint, its model plugin and at most one adapter method behind one weight store, and generation from it.
//!
//! Training builds on this crate, so that what was trained is what is served: the same traces, the same weights, the same executor.
#![forbid(unsafe_code)]

mod decoder;
mod engine;
mod error;
mod generate;
mod model;
mod pages;
mod plugged;
mod program;
mod quantize;
mod sampling;
mod schedule;
mod score;
mod stop;
mod weights;

pub use engine::{Batching, CacheType, Engine, EngineOptions, Request, RequestId, Stop, Token, Update};
pub use error::{Result, ServeError};
pub use generate::{Generated, Generator, encode, logits};
pub use model::AdaptedModel;
pub use plugged::SamplerId;
pub use program::{Program, compile};
pub use quantize::Quantization;
pub use sampling::{History, Sampling};
pub use schedule::Counters;
pub use score::{Embedder, Scorer};
pub use weights::WeightTensor;
