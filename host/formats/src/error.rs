//! The error of this crate.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a model or adapter file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file breaks the rules of its format.
    #[error("`{}` is damaged or not what it claims to be: {reason}, at byte {offset}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The file's content is readable but does not make a model or adapter.
    #[error("`{}`: {reason}", path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The file is sound but holds something that this program does not read.
    #[error("`{}` is not supported: {reason}", path.display())]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// What is not supported and what to use instead.
        reason: String,
    },
    /// The model has no tensor of that name.
    #[error("`{}` has no tensor `{name}`", path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// A caller asked to write something that the format cannot hold.
    #[error("cannot write `{}`: {reason}", path.display())]
    Refused {
        /// The file that was to be written.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl FormatError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn corrupt(path: &Path, offset: usize, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), offset: offset as u64, reason: reason.into() }
    }

    pub(crate) fn invalid(path: &Path, reason: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn unsupported(path: &Path, reason: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn refused(path: &Path, reason: impl Into<String>) -> Self {
        Self::Refused { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn missing(path: &Path, name: &str) -> Self {
        Self::MissingTensor { path: path.to_owned(), name: name.to_owned() }
    }
}
