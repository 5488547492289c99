//! Cache-line aligned memory for packed panels, kept per thread for reuse.

use std::cell::Cell;

#[derive(Clone, Copy)]
#[repr(align(64))]
#[expect(dead_code, reason = "read as plain floats")]
struct CacheLine([f32; LINE]);

const LINE: usize = 16;

/// Floats that start at a cache line.
#[derive(Default)]
struct Aligned(Vec<CacheLine>);

impl Aligned {
    /// Makes room for `len` values.
    fn grow(&mut self, len: usize) {
        let lines = len.div_ceil(LINE);
        if self.0.len() < lines {
            self.0.resize(lines, CacheLine([0.0; LINE]));
        }
    }

    fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: a `CacheLine` is exactly `LINE` floats without padding.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast::<f32>(), self.0.len() * LINE) }
    }
}

/// About what the buffers of a thread come to while a model trains: a strip of packed panels, a part of attention's gradients, rows on
/// their way. For plans of memory; nothing is limited by it.
pub const SCRATCH_BYTES: usize = 2 << 20;

thread_local! {
    /// Buffers not in use; a nested product takes another, so at most two or three exist.
    static FREE: Cell<Vec<Aligned>> = const { Cell::new(Vec::new()) };
}

/// Calls `body` with a buffer of `len` values whose contents are arbitrary but initialised.
pub(crate) fn with_scratch<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut free = FREE.take();
    let mut buffer = free.pop().unwrap_or_default();
    FREE.set(free);
    buffer.grow(len);
    let result = body(&mut buffer.values_mut()[..len]);
    let mut free = FREE.take();
    free.push(buffer);
    FREE.set(free);
    result
}
