//! From files to token batches: rows, tokenizers, chat templates, labels, shuffles, packing.
//!
//! A dataset plugin turns rows into [`Sample`]s; everything else between a file and the numbers that a training step
//! eats is here. The crate reads files and nothing else: no environment, no network, no clock.
//!
//! **Invariant:** equal inputs and seeds give equal batches, on every machine and at whatever step a run is resumed.
//! Randomness is a function of (seed, purpose, counter), never a generator that carries state.
//!
//! Files are treated as hostile: rows, templates and vocabularies have named limits, and errors say where.
#![forbid(unsafe_code)]

mod encode;
mod error;
mod metric;
mod pack;
mod reader;
mod sample;
mod sampler;
mod split;
mod template;
mod tokenizer;

pub use encode::{Encoded, Encoder, IGNORE, LossScale, Truncation, truncate};
pub use error::DataError;
pub use metric::Scores;
pub use pack::{Batch, collate};
pub use reader::{DatasetSource, ROWS_PER_BATCH, Row, Rows};
pub use sample::{Sample, Turn};
pub use sampler::{Grouping, MicroBatch, Sampler, SamplerOptions, SamplerState};
pub use split::{draw, sample_rows, shuffled, split_held_out};
pub use template::{CHATML, ChatTemplate, RenderOptions};
pub use tokenizer::{PreTokenizer, StreamDecoder, TextEncoding, Tokenizer};

/// Result of this crate.
pub type Result<T, E = DataError> = std::result::Result<T, E>;
