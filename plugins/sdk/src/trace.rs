//! The trace in progress: the current builder, and the first error.

use std::cell::{Cell, RefCell};

use scoped_tls::scoped_thread_local;

use crate::bindings::swift::plugin::env::{self, Level};
use crate::bindings::swift::tensor::graph::Builder;
use crate::{Error, ErrorCode, Result};

scoped_thread_local!(static BUILDER: Builder);

thread_local! {
    static FIRST_ERROR: RefCell<Option<Error>> = const { RefCell::new(None) };
    static DRY: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with `g` as the builder that operators append to; the first error of anything inside is the result.
pub(crate) fn run<T>(g: &Builder, f: impl FnOnce() -> T) -> Result<T> {
    FIRST_ERROR.take();
    let out = BUILDER.set(g, f);
    FIRST_ERROR.take().map_or(Ok(out), Err)
}

/// Runs `f` outside any trace: operations record nothing and give empty values, of which only the handles exist. A forward pass that
/// names its parameters on the way can so be run for the names alone.
///
/// # Errors
/// With the first [`fail`] inside.
pub fn dry_run<T>(f: impl FnOnce() -> T) -> Result<T> {
    FIRST_ERROR.take();
    let outer = DRY.replace(true);
    let out = f();
    DRY.set(outer);
    FIRST_ERROR.take().map_or(Ok(out), Err)
}

/// One fallible call to the host; none after an error, of this call or an earlier one.
pub(crate) fn record<T>(f: impl FnOnce(&Builder) -> Result<T>) -> Option<T> {
    if DRY.get() || FIRST_ERROR.with_borrow(Option::is_some) {
        return None;
    }
    if !BUILDER.is_set() {
        fail(Error::new(ErrorCode::Internal, "values can be used only inside the function that the host called to trace"));
        return None;
    }
    BUILDER.with(f).map_err(fail).ok()
}

/// Ends the trace with an error. What follows records nothing; the host reports the first error only.
///
/// ```ignore
/// let Some(width) = x.last_dim().fixed() else {
///     fail(Error::config("the last axis must have a known size"));
///     return x.clone();
/// };
/// ```
pub fn fail(error: Error) {
    FIRST_ERROR.with_borrow_mut(|first| {
        first.get_or_insert(error);
    });
}

/// Names what `f` records, for messages and dumps. The graph stays the same.
pub fn scope<T>(name: impl AsRef<str>, f: impl FnOnce() -> T) -> T {
    record(|g| {
        g.push_scope(name.as_ref());
        Ok(())
    });
    let out = f();
    // After an error the scope stays open in the host, which has already taken the path into the message.
    record(|g| {
        g.pop_scope();
        Ok(())
    });
    out
}

/// Wishes that what follows in this scope is computed again by the backward pass (`true`) or kept for it (`false`), instead of what
/// the host would choose. It ends with the scope.
pub fn remat(on: bool) {
    record(|g| {
        g.remat(on);
        Ok(())
    });
}

/// Logs a detail.
pub fn debug(message: &str) {
    env::log(Level::Debug, message);
}

/// Logs what the user may want to know.
pub fn info(message: &str) {
    env::log(Level::Info, message);
}

/// Logs what the user should know.
pub fn warn(message: &str) {
    env::log(Level::Warn, message);
}
