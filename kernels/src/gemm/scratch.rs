//! Reusable, cache-line aligned buffers for packed panels, kept per thread.

use std::cell::Cell;

#[derive(Clone, Copy)]
#[repr(align(64))]
#[expect(dead_code, reason = "read as plain floats")]
struct CacheLine([f32; LINE]);

const LINE: usize = 16;

thread_local! {
    /// Buffers not in use; a nested product takes another, so at most two or three exist.
    static FREE: Cell<Vec<Vec<CacheLine>>> = const { Cell::new(Vec::new()) };
}

/// Calls `body` with a buffer of `len` values whose contents are arbitrary but initialised.
pub(crate) fn with_scratch<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut free = FREE.take();
    let mut buffer = free.pop().unwrap_or_default();
    FREE.set(free);
    let lines = len.div_ceil(LINE);
    if buffer.len() < lines {
        buffer.resize(lines, CacheLine([0.0; LINE]));
    }
    // SAFETY: a `CacheLine` is exactly `LINE` floats without padding.
    let values = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<f32>(), len) };
    let result = body(values);
    let mut free = FREE.take();
    free.push(buffer);
    FREE.set(free);
    result
}
