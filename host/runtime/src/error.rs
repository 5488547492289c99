//! The crate's error: what a device could not do, with which tensor, and what would help.

/// Result of a runtime operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a plan could not be compiled or run, or a tensor could not be stored.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The graph refused to evaluate a size or to lay the plan out.
    #[error(transparent)]
    Graph(#[from] swift_graph::Error),
    /// A run needs an input that was not given.
    #[error("input `{name}` was not given; the plan takes: {known}")]
    MissingInput {
        /// The input.
        name: String,
        /// All inputs of the plan.
        known: String,
    },
    /// An input does not have the shape or element type that the bindings say.
    #[error("input `{name}` is {got}, expected {want}")]
    BadInput {
        /// The input.
        name: String,
        /// As given.
        got: String,
        /// As declared, under the bindings of the run.
        want: String,
    },
    /// A name that the store or the results do not have.
    #[error("{kind} `{name}` does not exist")]
    Missing {
        /// "weight", "state", "output", ...
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A stored tensor does not fit what is asked of it.
    #[error("{kind} `{name}` {message}")]
    BadTensor {
        /// "weight" or "state".
        kind: &'static str,
        /// The name.
        name: String,
        /// What does not fit.
        message: String,
    },
    /// An index read at run time lies outside its table.
    #[error("{op}: {what} {value} at position {at} is not in 0..{limit}")]
    Index {
        /// The op.
        op: &'static str,
        /// "token id", "cache slot", ...
        what: &'static str,
        /// The index.
        value: i64,
        /// Where in its list.
        at: usize,
        /// Bound.
        limit: usize,
    },
    /// A kernel does not support these sizes or attributes.
    #[error("{op} at `{scope}`: {message}")]
    Unsupported {
        /// The op.
        op: &'static str,
        /// Scope path of the node.
        scope: String,
        /// What is not supported.
        message: String,
    },
    /// The plan breaks its own rules; a bug in the planner.
    #[error("plan is inconsistent at node {node} ({op}): {message}; please report this")]
    Plan {
        /// The node.
        node: u32,
        /// Its op.
        op: &'static str,
        /// The rule that was broken.
        message: String,
    },
    /// The system has no memory of this size.
    #[error("cannot allocate {bytes} bytes for {what}; use shorter batches or a smaller model")]
    Memory {
        /// What for.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// A device was asked for what this machine does not have.
    #[error("{0}")]
    Device(String),
}

impl Error {
    pub(crate) fn tensor(kind: &'static str, name: &str, message: impl Into<String>) -> Error {
        Error::BadTensor { kind, name: name.to_string(), message: message.into() }
    }

    pub(crate) fn missing(kind: &'static str, name: &str) -> Error {
        Error::Missing { kind, name: name.to_string() }
    }
}
