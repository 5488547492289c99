//! Weight formats to `f32` and back.
//!
//! Decoding is exact: every encoded value is representable in `f32`, except that
//! Q4_1 adds its minimum with one rounding; all instruction sets agree bitwise.
//! Encoding rounds as ggml's reference encoders do. Decoded values overwrite `out`.

use std::ops::Range;

use crate::format::{Format, Weight};
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::layout::copy_rows;
use crate::panels::{Decoded, PANEL};
use crate::pool::Pool;
use crate::stream;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod encode;
mod levels;
#[cfg(target_arch = "x86_64")]
pub(crate) mod planes;
mod scalar;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use levels::IQ4_NL;
pub(crate) use scalar::six_bits;

pub use encode::{quantize, round_nf4_scales};

/// Decodes `len` values, a whole number of blocks, from `src` to `dst`.
///
/// # Safety
/// Both must be valid for the extent; neither need be aligned. The instruction set
/// that the function was selected for must be supported.
pub(crate) type Decoder = unsafe fn(src: *const u8, len: usize, dst: *mut f32);

/// The decoder of `format` for `isa`, which must be supported by this CPU.
pub(crate) fn decoder(isa: Isa, format: Format) -> Decoder {
    match isa {
        Isa::Scalar => scalar::decoder(format),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::decoder(format),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => avx512::decoder(format),
        #[cfg(not(target_arch = "x86_64"))]
        _ => scalar::decoder(format),
    }
}

/// Decodes `bytes` into `out` on the calling thread, with the best instruction set.
///
/// # Panics
/// When the lengths do not match.
#[track_caller]
pub fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
    dequantize_with(Isa::detect(), format, bytes, out);
}

#[track_caller]
fn dequantize_with(isa: Isa, format: Format, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), format.row_bytes(out.len()), "bytes do not match the output's length");
    // SAFETY: lengths match, and the level comes from `Isa::detect` or a checked pool.
    unsafe { decoder(isa, format)(bytes.as_ptr(), out.len(), out.as_mut_ptr()) };
}

/// Decodes the given rows of `weight` into `out`, `[rows.len(), cols]`, in parallel.
///
/// # Panics
/// When a row is out of range or `out` has the wrong length.
#[track_caller]
pub fn dequantize_rows(pool: &Pool, weight: &Weight<'_>, rows: Range<usize>, out: &mut [f32]) {
    weight.check();
    assert!(rows.start <= rows.end && rows.end <= weight.rows, "rows out of range");
    assert_eq!(out.len(), rows.len() * weight.cols, "output does not match the rows");
    match Decoded::new(pool.isa(), weight) {
        // Panels are decoded whole.
        Some(weight) if rows.start.is_multiple_of(PANEL) && weight.cols() > 0 => {
            pool.run_pieces(out, PANEL * weight.cols(), |piece, out| weight.panel(rows.start / PANEL + piece, out));
        }
        _ => each_row(pool, weight, out, |row| rows.start + row),
    }
}

/// Decodes rows `ids` of `weight` into `out`, `[ids.len(), cols]`: an embedding lookup.
///
/// # Panics
/// When an id is not a row or `out` has the wrong length.
#[track_caller]
pub fn gather_rows(pool: &Pool, weight: &Weight<'_>, ids: &[i32], out: &mut [f32]) {
    weight.check();
    assert_eq!(out.len(), ids.len() * weight.cols, "output does not match the ids");
    for &id in ids {
        assert!(id >= 0 && (id as usize) < weight.rows, "id {id} is not a row of the weight");
    }
    each_row(pool, weight, out, |row| ids[row] as usize);
}

/// Fills row `r` of `out` with row `source(r)` of `weight`.
fn each_row(pool: &Pool, weight: &Weight<'_>, out: &mut [f32], source: impl Fn(usize) -> usize + Sync) {
    // Tasks of a few tens of microseconds.
    const VALUES: usize = 1 << 16;
    if out.is_empty() {
        return;
    }
    let (isa, rows) = (pool.isa(), (VALUES / weight.cols).max(1));
    if let Some(weight) = Decoded::new(isa, weight) {
        // A panel is decoded for each row.
        return pool.run_pieces(out, weight.cols(), |piece, out| weight.row(source(piece), out));
    }
    if let Some(floats) = weight.floats() {
        return copy_rows(pool, weight.cols, |row| Some(source(row)), floats, out);
    }
    let past = weight.cols.is_multiple_of(16) && stream::is_large(isa, out.len(), out.as_ptr(), &[]);
    pool.run_pieces(out, rows * weight.cols, |piece, out| {
        let row = |r: usize| weight.row(source(piece * rows + r));
        let last = out.len() / weight.cols - 1;
        with_scratch(if past { weight.cols } else { 0 }, |scratch| {
            for (r, out) in out.chunks_exact_mut(weight.cols).enumerate() {
                if past {
                    dequantize_with(isa, weight.format, row(r), scratch);
                    let next = row(last.min(r + 1));
                    // Encoded rows are short enough to be fetched at once.
                    next.chunks(64).for_each(|line| stream::prefetch(line.as_ptr().cast()));
                    // SAFETY: a row each.
                    unsafe { stream::copy(isa, scratch.as_ptr(), out.as_mut_ptr(), weight.cols, scratch.as_ptr()) };
                } else {
                    dequantize_with(isa, weight.format, row(r), out);
                }
            }
        });
        if past {
            stream::fence();
        }
    });
}
