//! The crate's error.

/// Result of this crate.
pub type Result<T, E = ServeError> = std::result::Result<T, E>;

/// Why a model could not be put together or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A plugin refused, trapped or ran into a limit.
    #[error(transparent)]
    Plugin(#[from] swift_plugin::Error),
    /// The graph is not sound.
    #[error(transparent)]
    Graph(#[from] swift_graph::Error),
    /// The device failed.
    #[error(transparent)]
    Runtime(#[from] swift_runtime::Error),
    /// A model or adapter file is broken.
    #[error(transparent)]
    Format(#[from] swift_formats::FormatError),
    /// A tokenizer failed.
    #[error(transparent)]
    Data(#[from] swift_data::DataError),
    /// Plugin and checkpoint do not fit together.
    #[error("parameter `{param}` has shape {want:?} in the model plugin and {got:?} in the checkpoint (tensor `{tensor}`)")]
    WeightShape {
        /// Parameter of the plan.
        param: String,
        /// Checkpoint tensor.
        tensor: String,
        /// What the plugin declares.
        want: Vec<u64>,
        /// What the file holds.
        got: Vec<usize>,
    },
    /// An adapter file does not fit the tuner.
    #[error("adapter: {0}")]
    Adapter(String),
    /// A request that the model cannot serve.
    #[error("{0}")]
    Request(String),
}
