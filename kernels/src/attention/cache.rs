//! What lies in a paged cache.
//!
//! A page holds [`PAGE`] consecutive positions of one sequence; a table says which page of the cache
//! holds which part of which sequence. In the cache lie, one after the other, the key heads of each
//! page, and in each head
//!
//! ```text
//! keys    [head_dim, PAGE]   transposed: scores of a page are one product, keys are lanes
//! values  [PAGE, value_dim]
//! scales  [PAGE] f32         only Int8: a row of a head is its whole numbers times its scale
//! ```

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::{CacheFormat, PAGE, Place, Spec, Step};
use crate::pool::Disjoint;

/// Writes the rows of a key head: its keys transposed, its values as they are.
pub(super) fn write(
    spec: &Spec,
    step: &Step<'_>,
    places: &[Place],
    format: CacheFormat,
    kv_head: usize,
    k_cache: &Disjoint<'_, u32>,
    v_cache: &Disjoint<'_, u32>,
) {
    for (row, place) in places.iter().enumerate() {
        let (page, at) = (step.table[place.slot * step.columns + place.position / PAGE] as usize, place.position % PAGE);
        for (from, dim, cache, transposed) in [(step.k, spec.head_dim, k_cache, true), (step.v, spec.value_dim, v_cache, false)] {
            let from = &from[(row * spec.kv_heads + kv_head) * dim..][..dim];
            let words = format.head_words(dim);
            // SAFETY: one task writes this key head.
            let to = unsafe { cache.slice((page * spec.kv_heads + kv_head) * words, words) };
            let (start, stride) = if transposed { (at, PAGE) } else { (at * dim, 1) };
            write_row(format, from, to, start, stride, at);
        }
    }
}

/// Writes one row of a head: element `i` at `start + i * stride`, its factor at `at`.
fn write_row(format: CacheFormat, from: &[f32], to: &mut [u32], start: usize, stride: usize, at: usize) {
    assert!(to.len() * 4 >= (start + (from.len() - 1) * stride + 1) * format.bytes());
    match format {
        CacheFormat::F32 => {
            for (to, from) in to[start..].iter_mut().step_by(stride).zip(from) {
                *to = from.to_bits();
            }
        }
        CacheFormat::F16 => {
            // SAFETY: words hold two halves each, and the last one written lies inside by the check.
            let to = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u16>(), to.len() * 2) };
            // In runs: one by one, converting takes as long as a token's attention.
            let mut halves = [f16::ZERO; 64];
            for (first, from) in from.chunks(halves.len()).enumerate() {
                let (halves, to) = (&mut halves[..from.len()], &mut to[start + first * 64 * stride..]);
                halves.convert_from_f32_slice(from);
                to.iter_mut().step_by(stride).zip(halves).for_each(|(to, half)| *to = half.to_bits());
            }
        }
        CacheFormat::Int8 => {
            let largest = from.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let scales = to.len() - PAGE;
            to[scales + at] = (largest / 127.0).to_bits();
            // SAFETY: words hold four bytes each.
            let to = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<i8>(), to.len() * 4) };
            for (to, from) in to[start..].iter_mut().step_by(stride).zip(from) {
                // Saturates; what is not a number becomes zero.
                *to = (from * inverse).round_ties_even() as i8;
            }
        }
    }
}

/// Element `i` of a row of a head, as [`write_row`] left it: what the scalar specification reads.
pub(super) fn read(format: CacheFormat, from: &[u32], start: usize, stride: usize, i: usize, at: usize) -> f32 {
    let index = start + i * stride;
    let word = |size: usize| from[index * size / 4] >> (index * size % 4 * 8);
    match format {
        CacheFormat::F32 => f32::from_bits(from[index]),
        CacheFormat::F16 => f16::from_bits(word(2) as u16).to_f32(),
        CacheFormat::Int8 => f32::from(word(1) as u8 as i8) * f32::from_bits(from[from.len() - PAGE + at]),
    }
}
