//! Owned, zeroed, 64-byte aligned memory: the arena, trainable weights and states.
//!
//! Zeroed pages come from the system lazily, so a KV cache or an arena costs physical memory only where it is touched. Large buffers
//! ask for large pages.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use swift_kernels::pages::prefer_huge;

use crate::{Error, Result};

/// A cache line, and the widest vector register.
const ALIGN: usize = 64;

/// A large page. Buffers of several begin with a whole one.
const PAGE: usize = 2 << 20;

/// Zero-initialised memory of fixed size.
pub(crate) struct Buffer {
    /// First byte of use.
    data: NonNull<u8>,
    bytes: usize,
    /// What was allocated.
    block: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a buffer owns its memory; access follows the borrow of the buffer.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `bytes` zero bytes, rounded up to whole elements of four.
    ///
    /// # Errors
    /// When the system has no memory of this size; `what` goes into the message.
    pub(crate) fn zeroed(bytes: usize, what: &'static str) -> Result<Buffer> {
        let failed = || Error::Memory { what, bytes };
        let bytes = bytes.checked_next_multiple_of(4).ok_or_else(failed)?;
        let align = if bytes >= 4 * PAGE { PAGE } else { ALIGN };
        // Only what is allocated without alignment of its own comes zeroed from the system; more would be written here. So the block
        // has room for the alignment, which costs addresses alone.
        let layout = Layout::from_size_align(bytes.checked_add(align).ok_or_else(failed)?, 1).map_err(|_| failed())?;
        if bytes == 0 {
            let data = NonNull::<Line>::dangling().cast();
            return Ok(Buffer { data, bytes, block: data, layout });
        }
        // SAFETY: the layout's size is not zero.
        let block = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(failed)?;
        // SAFETY: at most `align` bytes further, which the block has.
        let data = unsafe { block.add(block.align_offset(align)) };
        let mut buffer = Buffer { data, bytes, block, layout };
        if align == PAGE {
            prefer_huge(buffer.bytes_mut());
        }
        Ok(buffer)
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As [`Buffer::zeroed`].
    pub(crate) fn of(values: &[f32], what: &'static str) -> Result<Buffer> {
        let mut buffer = Buffer::zeroed(size_of_val(values), what)?;
        buffer.floats_mut().copy_from_slice(values);
        Ok(buffer)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.data.as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.data.as_ptr()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: initialised, owned, and borrowed.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.bytes) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: initialised, owned, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.bytes) }
    }

    pub(crate) fn floats(&self) -> &[f32] {
        // SAFETY: initialised, aligned and owned; every bit pattern is a float.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.bytes / 4) }
    }

    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr().cast(), self.bytes / 4) }
    }
}

/// Gives the dangling pointer of an empty buffer its alignment.
#[repr(align(64))]
struct Line;

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(self.block.as_ptr(), self.layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_zeroed_and_bounded() {
        let mut buffer = Buffer::zeroed(10, "a test").unwrap();
        assert_eq!((buffer.bytes(), buffer.as_ptr() as usize % ALIGN), (12, 0));
        assert_eq!(buffer.floats_mut(), [0.0; 3]);
        let large = Buffer::zeroed(5 * PAGE + 3, "a test").unwrap();
        assert_eq!((large.bytes(), large.as_ptr() as usize % PAGE), (5 * PAGE + 4, 0));
        assert!(large.floats().iter().all(|&x| x == 0.0));
        assert!(Buffer::zeroed(0, "a test").unwrap().floats().is_empty());
        assert!(matches!(Buffer::zeroed(usize::MAX - 8, "a test"), Err(Error::Memory { .. })));
    }
}
