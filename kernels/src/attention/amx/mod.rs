//! Attention in the matrix unit: products of floats in three parts (see [`crate::split`]), in blocks of 32 by 32, and all that stands between
//! them as at the level below.
//!
//! What is not finite is split into itself and zeros, so that whatever it is multiplied by is not finite either, but NaN where a product of
//! floats may be infinite. Forward, an infinite score may still weigh nothing: heads of which keys or values are not all finite
//! are left to the level below. A query reaches none but its own outputs, and gradients are lost either way.

pub(super) mod backward;
pub(super) mod forward;

use super::Spec;
use super::tile::{self, padded};
use crate::isa::Isa;
use crate::pool::Disjoint;
use crate::split::{self, CHUNK, DEPTH, WIDTH};

/// Whether queries of runs of `len` tokens see so many keys that splitting all operands pays, by measurement, and heads are wide and fill their
/// chunks. Tests take what they can.
pub(super) fn pays(isa: Isa, spec: &Spec, len: usize) -> bool {
    const SEEN: usize = 384;
    let seen = if spec.causal { len / 2 } else { len };
    let seen = seen.min(spec.window.unwrap_or(len)).min(spec.chunk.unwrap_or(len));
    let fills = |dim: usize| dim >= 2 * DEPTH && 8 * dim.next_multiple_of(DEPTH) <= 9 * dim;
    isa == Isa::Amx && (cfg!(test) || seen >= SEEN && fills(spec.head_dim) && fills(spec.value_dim))
}

/// Splits at most 32 rows of `dim` floats as a left operand with terms along `dim`. Whether all are finite.
fn rows(from: &[f32], count: usize, stride: usize, dim: usize, out: &mut [f32]) -> bool {
    assert!(count <= WIDTH && from.len() >= (count - 1) * stride + dim && out.len() >= split::room(dim));
    // SAFETY: so many rows, and room; this level has AVX-512.
    unsafe { split::left(from.as_ptr(), stride, count, dim, out.as_mut_ptr()) }
}

/// Splits the transpose of at most 32 rows of `dim` floats as right operands with terms along `dim`. Whether all are finite.
fn columns(isa: Isa, from: &[f32], count: usize, stride: usize, dim: usize, scratch: &mut [f32], out: &mut [f32]) -> bool {
    assert!(count <= WIDTH && out.len() >= split::room(dim));
    tile::transpose(isa, from, count, stride, dim, scratch);
    // SAFETY: as many rows as were just written, and room; this level has AVX-512.
    unsafe { split::right(scratch.as_ptr(), padded(count), count, dim, out.as_mut_ptr()) }
}

/// Splits the transpose of at most 32 rows of `dim` floats as left operands with terms along the rows: a chunk for each 32 of `dim`, `step`
/// floats apart. Whether all are finite.
///
/// # Safety
/// Nobody else uses the places of these chunks.
unsafe fn transposed_rows(
    isa: Isa,
    from: &[f32],
    count: usize,
    stride: usize,
    dim: usize,
    scratch: &mut [f32],
    out: &Disjoint<'_, f32>,
    step: usize,
) -> bool {
    tile::transpose(isa, from, count, stride, dim, scratch);
    let pitch = padded(count);
    (0..dim).step_by(WIDTH).fold(true, |finite, first| {
        // SAFETY: the caller's promise.
        let out = unsafe { out.slice(first / WIDTH * step, CHUNK) };
        finite & rows(&scratch[first * pitch..], WIDTH.min(dim - first), pitch, count, out)
    })
}

/// Splits `terms` rows of at most 32 floats as a right operand with terms along the rows.
fn terms(from: &[f32], stride: usize, columns: usize, terms: usize, out: &mut [f32]) -> bool {
    assert!(columns <= WIDTH && from.len() >= (terms - 1) * stride + columns && out.len() >= split::room(terms));
    // SAFETY: so many rows, and room; this level has AVX-512.
    unsafe { split::right(from.as_ptr(), stride, columns, terms, out.as_mut_ptr()) }
}
