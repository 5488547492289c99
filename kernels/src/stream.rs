//! Results too large for the caches, stored past them.
//!
//! A store through the cache reads its line first; past it, it does not, which is a third of what a copy moves. Who reads the result
//! next finds nothing in the cache, so only results that would not stay there are stored so. Kernels compute a tile in the first-level
//! cache and hand it over here.

use crate::isa::Isa;

/// Floats from which a result is stored past the caches: 32 MB. Tests need no such arrays.
const LARGE: usize = if cfg!(test) { 4096 } else { 8 << 20 };

/// Most elements of a task over arrays as large: a megabyte. What is fetched behind its end is another thread's, and its own first lines
/// nobody fetched.
pub(crate) const GRAIN: usize = 256 * 1024;

/// Tasks that are enough for the threads of any machine.
const TASKS: usize = 64;

/// Floats by which rows from anywhere are fetched ahead, at least: 8 KB. The processor looks no further than the page of a row, and
/// more than a row of 4 KB is on its way.
const LEAD: usize = 2048;

/// Rows of `len` floats between the one that is copied and the one that is fetched.
pub(crate) fn rows_ahead(len: usize) -> usize {
    LEAD.div_ceil(len)
}

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

/// Copies rows of `len` floats to `out`, past the caches, and fetches those that come [`LEAD`] later meanwhile. A null pointer gives
/// zeros. [`fence`] comes after the last one of a task.
///
/// # Safety
/// Rows are readable, `out` is writable for all of them; they do not overlap. `out` and rows of it begin at whole lines.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub(crate) unsafe fn copy_rows(isa: Isa, rows: &[*const f32], out: *mut f32, len: usize) {
    vector::copy_rows(isa, rows, out, len);
}

/// Elements of a task over `len` of them in rows: `grain`, more where the caches do not hold them.
pub(crate) fn grain(grain: usize, len: usize) -> usize {
    if len >= LARGE { (len / TASKS).clamp(grain, GRAIN) } else { grain }
}

/// Hints that the cache line of `p` will be read, one that lies where the processor would not look by itself; never faults. It goes to
/// the second cache.
#[inline(always)]
pub(crate) fn prefetch(p: *const f32) {
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    crate::simd::prefetch_far(p);
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
    use crate::simd::{prefetch_far, simd_fn};

    simd_fn! {
        /// Callers uphold the contract of [`super::copy_rows`].
        pub(super) fn copy_rows<S>(s, rows: &[*const f32], out: *mut f32, len: usize) {
            let (lead, last) = (super::rows_ahead(len), rows.len() - 1);
            for (at, &src) in rows.iter().enumerate() {
                let next = rows[last.min(at + lead)];
                let next = if next.is_null() { src } else { next };
                // SAFETY: `len` is whole vectors.
                unsafe {
                    let out = out.add(at * len);
                    if src.is_null() {
                        for i in (0..len).step_by(S::LANES) {
                            prefetch_far(next.wrapping_add(i));
                            s.store_stream(out.add(i), s.zero());
                        }
                    } else {
                        for i in (0..len).step_by(S::LANES) {
                            prefetch_far(next.wrapping_add(i));
                            s.store_stream(out.add(i), s.load(src.add(i)));
                        }
                    }
                }
            }
        }
    }

    simd_fn! {
        /// Callers uphold the contract of [`super::copy`].
        pub(super) fn copy<S>(s, src: *const f32, out: *mut f32, len: usize, next: *const f32) {
            let first = out.align_offset(S::LANES * size_of::<f32>()).min(len);
            let whole = (len - first) / S::LANES * S::LANES;
            let last = first + whole;
            // SAFETY: below `len`; stores past the caches are aligned.
            unsafe {
                // Rows of graphs are whole vectors at whole lines.
                if first > 0 {
                    std::ptr::copy_nonoverlapping(src, out, first);
                }
                for i in (first..last).step_by(S::LANES) {
                    prefetch_far(next.wrapping_add(i));
                    s.store_stream(out.add(i), s.load(src.add(i)));
                }
                if last < len {
                    std::ptr::copy_nonoverlapping(src.add(last), out.add(last), len - last);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
