//! The crate's error.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// Why a run could not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The model or its adapter.
    #[error(transparent)]
    Model(#[from] swift_serve::ServeError),
    /// A plugin refused, trapped or ran into a limit.
    #[error(transparent)]
    Plugin(#[from] swift_plugin::Error),
    /// The graph is not sound.
    #[error(transparent)]
    Graph(#[from] swift_graph::Error),
    /// The device failed.
    #[error(transparent)]
    Runtime(#[from] swift_runtime::Error),
    /// A file is broken or cannot be written.
    #[error(transparent)]
    Format(#[from] swift_formats::FormatError),
    /// A dataset, tokenizer or template is broken.
    #[error(transparent)]
    Data(#[from] swift_data::DataError),
    /// The configuration makes no run.
    #[error("{0}")]
    Config(String),
    /// The data make no run.
    #[error("{0}")]
    Dataset(String),
    /// A checkpoint cannot be resumed.
    #[error("cannot resume from `{}`: {reason}", path.display())]
    Resume {
        /// The checkpoint folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The loss is no longer a number.
    #[error("the loss is {loss} at step {step}; lower `--learning_rate`, or run with `--max_grad_norm 1`")]
    NotFinite {
        /// Update at which it happened.
        step: u64,
        /// Its value.
        loss: f32,
    },
    /// The curve could not be drawn.
    #[error("cannot draw the loss curve: {0}")]
    Plot(String),
    /// A folder could not be made or read.
    #[error("cannot use `{}`: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

impl TrainError {
    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> TrainError {
        TrainError::Io { path: path.into(), source }
    }
}
