//! Inverted dropout (Srivastava et al. 2014): `out = x / (1 - rate)`, or 0 where dropped.
//!
//! Element `i` is dropped where word `i` of the stream is below `rate 2^32`, so its mask is a
//! function of `(key, stream, i)` alone and the gradient draws it again instead of keeping it.
//! All levels compute the same bits. Every dropped element is `+0`, even where `x` is not finite.
//! The output is overwritten and may be the input itself.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;
#[cfg(test)]
mod tests;

#[cfg(any(test, target_arch = "x86_64"))]
use crate::isa::Isa;
use crate::pool::Pool;

/// Elements of one task; a multiple of four, so that tasks begin with a block of words.
const GRAIN: usize = 16 * 1024;

/// Drops elements of `x` with probability `rate`, in `0..1`, and scales the others.
#[track_caller]
pub fn dropout(pool: &Pool, key: [u32; 2], stream: u32, rate: f64, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "lengths of the operands of dropout");
    // SAFETY: lengths are checked and the borrows exclude overlap.
    unsafe { dropout_raw(pool, key, stream, rate, x.len(), x.as_ptr(), out.as_mut_ptr()) }
}

/// [`dropout()`] on pointers, in place where they are equal.
///
/// # Safety
/// `x` is readable and `out` writable for `len` floats; they are equal or do not overlap.
#[track_caller]
pub unsafe fn dropout_raw(pool: &Pool, key: [u32; 2], stream: u32, rate: f64, len: usize, x: *const f32, out: *mut f32) {
    assert!((0.0..1.0).contains(&rate), "rate of dropout must be in 0..1");
    let mask = Mask {
        key,
        stream,
        // Truncated, and at most `2^32 - 1` because the rate is below one by at least `2^-53`.
        threshold: (rate * (1u64 << 32) as f64) as u32,
        scale: (1.0 / (1.0 - rate)) as f32,
    };
    let apply: Apply = match pool.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => avx512::apply,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::apply,
        _ => scalar::apply,
    };
    let data = Buffers { x, out };
    pool.run(len.div_ceil(GRAIN), &|task| {
        let data = &data;
        let start = task * GRAIN;
        // SAFETY: the part lies inside both buffers and no other task touches it; the pool has
        // checked its level against the CPU.
        unsafe { apply(&mask, start as u64 / 4, GRAIN.min(len - start), data.x.add(start), data.out.add(start)) };
    });
}

/// What decides on the elements.
struct Mask {
    key: [u32; 2],
    stream: u32,
    /// Words below it drop their element.
    threshold: u32,
    /// What the others are multiplied by.
    scale: f32,
}

/// Applies the words from `block` on to `len` elements.
///
/// # Safety
/// `x` is readable and `out` writable for `len` floats; they are equal or do not overlap. The
/// instruction set that the function was selected for must be supported.
type Apply = unsafe fn(mask: &Mask, block: u64, len: usize, x: *const f32, out: *mut f32);

/// Shared by tasks that touch disjoint parts.
struct Buffers {
    x: *const f32,
    out: *mut f32,
}

// SAFETY: tasks access disjoint parts.
unsafe impl Sync for Buffers {}
