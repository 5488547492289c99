//! The crate's error: what was wrong with a graph, where in it, and what would be right.

use crate::Type;

/// Result of a graph operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a node could not be added or a pass could not finish. The scope path is added by [`crate::Graph::push`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes do not fit the op.
    #[error("{op}: {message}; got {}", list(.got))]
    BadShape {
        /// Op name.
        op: &'static str,
        /// The rule that was broken.
        message: String,
        /// Input types as given.
        got: Vec<Type>,
    },
    /// Element types do not fit the op.
    #[error("{op}: {message}; got {}", list(.got))]
    BadDType {
        /// Op name.
        op: &'static str,
        /// The rule that was broken.
        message: String,
        /// Input types as given.
        got: Vec<Type>,
    },
    /// An attribute is out of range.
    #[error("{op}: {message}")]
    BadAttr {
        /// Op name.
        op: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// Dimension arithmetic left the 63-bit range or grew too complicated.
    #[error("dimension {0}")]
    Dim(String),
    /// A configured limit was reached.
    #[error("limit `{name}` = {limit} reached: {message}")]
    Limit {
        /// The limit's configuration key.
        name: &'static str,
        /// Its value.
        limit: u64,
        /// What asked for more.
        message: String,
    },
    /// No gradient rule, and a gradient was asked for.
    #[error("{op} has no backward rule, and a trainable parameter lies upstream of it")]
    NoBackward {
        /// Op name.
        op: &'static str,
    },
    /// A name that the graph does not have.
    #[error("{kind} `{name}` does not exist; there are: {known}")]
    Missing {
        /// "input", "parameter", ...
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// What could have been asked for.
        known: String,
    },
    /// A value handed to the interpreter or the planner does not fit the graph.
    #[error("binding: {0}")]
    Bind(String),
    /// A value met at run time is out of range.
    #[error("{op}: {message}")]
    Value {
        /// Op name.
        op: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// Any of the above, with the scope path where it happened.
    #[error("at `{scope}`: {source}")]
    At {
        /// Slash-separated scope path.
        scope: String,
        /// What happened there.
        source: Box<Error>,
    },
}

impl Error {
    /// The innermost error, without scope path.
    pub fn root(&self) -> &Error {
        match self {
            Error::At { source, .. } => source.root(),
            other => other,
        }
    }

    pub(crate) fn shape(op: &'static str, message: impl Into<String>, got: &[Type]) -> Error {
        Error::BadShape { op, message: message.into(), got: got.to_vec() }
    }

    pub(crate) fn dtype(op: &'static str, message: impl Into<String>, got: &[Type]) -> Error {
        Error::BadDType { op, message: message.into(), got: got.to_vec() }
    }

    pub(crate) fn attr(op: &'static str, message: impl Into<String>) -> Error {
        Error::BadAttr { op, message: message.into() }
    }
}

fn list(types: &[Type]) -> String {
    types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
