//! Errors of a plugin. One type for both directions: what the host reports and what the plugin reports.

use std::fmt;

use crate::{Error, ErrorCode};

/// Result with the plugin [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with a message that says what happened and what to do.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Error {
        Error { code, message: message.into(), where_at: None, hint: None }
    }

    /// The configuration is wrong.
    pub fn config(message: impl Into<String>) -> Error {
        Error::new(ErrorCode::BadConfig, message)
    }

    /// Something that should be there is not: a field of a row, a name.
    pub fn missing(message: impl Into<String>) -> Error {
        Error::new(ErrorCode::Missing, message)
    }

    /// Adds what would be right.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the place.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Error {
        self.where_at = Some(place.to_string());
        self
    }
}
