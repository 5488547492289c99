//! Results too large for the caches, stored past them.
//!
//! A store through the cache reads its line first; past it, it does not, which is a third of what a copy moves. Who reads the result
//! next finds nothing in the cache, so only results that would not stay there are stored so. Kernels compute a tile in the first-level
//! cache and hand it over here.

use crate::isa::Isa;

/// Floats from which a result is stored past the caches: 32 MB. Tests need no such arrays.
const LARGE: usize = if cfg!(test) { 4096 } else { 8 << 20 };

/// Whether a result of `len` floats at `out` is stored past the caches. One that lies over an input is not: its lines have been read.
/// One that begins inside a line is not either.
pub(crate) fn is_large(isa: Isa, len: usize, out: *const f32, inputs: &[*const f32]) -> bool {
    isa != Isa::Scalar && len >= LARGE && !inputs.contains(&out) && out.align_offset(64) == 0
}

/// Copies a tile past the caches, and fetches the one at `next` meanwhile. [`fence`] comes after the last one of a task.
///
/// # Safety
/// `src` is readable and `out` writable for `len` floats; they do not overlap.
#[inline]
pub(crate) unsafe fn copy(isa: Isa, src: *const f32, out: *mut f32, len: usize, next: *const f32) {
    match isa {
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        _ if isa.is_wide() => vector::copy(isa, src, out, len, next),
        // SAFETY: promised by the caller.
        _ => unsafe { std::ptr::copy_nonoverlapping(src, out, len) },
    }
}

/// Hints that the cache line of `p` will be read, one that lies where the processor would not look by itself; never faults.
#[inline(always)]
pub(crate) fn prefetch(p: *const f32) {
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    crate::simd::prefetch(p);
    #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
    let _ = p;
}

/// Orders what was stored past the caches before what follows.
#[inline]
pub(crate) fn fence() {
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    crate::simd::fence();
}

#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector {
    use crate::simd::{prefetch, simd_fn};

    simd_fn! {
        /// Callers uphold the contract of [`super::copy`].
        pub(super) fn copy<S>(s, src: *const f32, out: *mut f32, len: usize, next: *const f32) {
            let first = out.align_offset(S::LANES * size_of::<f32>()).min(len);
            let whole = (len - first) / S::LANES * S::LANES;
            let last = first + whole;
            // SAFETY: below `len`; stores past the caches are aligned.
            unsafe {
                std::ptr::copy_nonoverlapping(src, out, first);
                for i in (first..last).step_by(S::LANES) {
                    prefetch(next.wrapping_add(i));
                    s.store_stream(out.add(i), s.load(src.add(i)));
                }
                std::ptr::copy_nonoverlapping(src.add(last), out.add(last), len - last);
            }
        }
    }
}

#[cfg(test)]
mod tests;
