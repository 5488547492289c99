//! The error of this crate.

use std::io;
use std::path::{Path, PathBuf};

use swift_formats::FormatError;

/// What can go wrong between a file and a batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A model file could not be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A tokenizer could not be made or used.
    #[error("tokenizer{}: {reason}", at(source_file))]
    Tokenizer {
        /// The file it comes from, if any.
        source_file: Option<PathBuf>,
        /// What is wrong.
        reason: String,
    },
    /// A chat template could not be parsed or rendered.
    #[error("chat template: {0}")]
    Template(String),
    /// A row of a dataset is broken.
    #[error("`{}`, line {line}: {reason}", path.display())]
    Row {
        /// The dataset file.
        path: PathBuf,
        /// Line at which the row begins, counted from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A sample cannot be turned into tokens and labels.
    #[error("sample: {0}")]
    Sample(String),
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
}

fn at(file: &Option<PathBuf>) -> String {
    file.as_ref().map(|file| format!(" of `{}`", file.display())).unwrap_or_default()
}

impl DataError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn tokenizer(file: Option<&Path>, reason: impl ToString) -> Self {
        Self::Tokenizer { source_file: file.map(Path::to_owned), reason: reason.to_string() }
    }
}
