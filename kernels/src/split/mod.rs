//! Floats as sums of three `bf16` numbers, for matrix units that multiply those.
//!
//! A float of 24 bits is exactly `x = high + middle + low` with 8 bits each: the nearest `bf16` (ties away from zero), the nearest to the rest,
//! and the rest. Of the nine products of two such sums, six are taken; the others are below `2⁻²⁵` of the whole, less than the last
//! rounding of a product in `f32`. (The idea is that of Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial intelligence
//! datatype for higher-precision computations", 2019.) Parts below `2⁻¹²⁶` count as zero, as the unit takes them.
//!
//! ```text
//! chunk     32 values along k of up to 32 rows (or columns), zeros where there are none
//!           [high, middle, low][first 16 rows, last 16 rows] tiles of 1 KiB
//! tile      left:  16 rows of 16 pairs        right: 16 pairs of 16 columns
//! pair j    values j and j + 16 of the chunk
//! ```
//!
//! What is not finite has no such sum: it is its own `high`, the other parts are zero, and the caller learns of it.

mod product;

pub(crate) use product::{Columns, Tiled, accumulate, chunks, low_product, product, product_of};

use std::arch::x86_64::*;

use crate::amx::TILE_BYTES;
use crate::gemm::transposed;

/// Rows or columns of a chunk.
pub(crate) const WIDTH: usize = 32;

/// Values along `k` of a chunk.
pub(crate) const DEPTH: usize = 32;

/// Parts of a float.
pub(crate) const PARTS: usize = 3;

/// Floats that a chunk takes the room of.
pub(crate) const CHUNK: usize = PARTS * 2 * TILE_BYTES / size_of::<f32>();

/// Floats that `k` values of [`WIDTH`] rows or columns take the room of, split.
pub(crate) const fn room(k: usize) -> usize {
    k.div_ceil(DEPTH) * CHUNK
}

const LANES: usize = 16;

/// The lowest `lanes` lanes.
fn mask(lanes: usize) -> __mmask16 {
    if lanes >= LANES { !0 } else { (1 << lanes) - 1 }
}

/// A part of floats `a` and `b`, lane by lane, as pairs of halves.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn pairs(a: __m512, b: __m512) -> __m512i {
    let a = _mm512_srli_epi32::<16>(_mm512_castps_si512(a));
    _mm512_mask_blend_epi16(0xaaaa_aaaa, a, _mm512_castps_si512(b))
}

/// The nearest `bf16`.
#[target_feature(enable = "avx512f")]
#[inline]
fn nearest(x: __m512) -> __m512 {
    let up = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(!0xffff)))
}

/// The parts of `x`. Without `CAREFUL`, `seen` becomes NaN where `x`, or the nearest `bf16`, is not finite.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn parts<const CAREFUL: bool>(x: __m512, seen: &mut __m512) -> [__m512; PARTS] {
    let mut high = nearest(x);
    let rest = if CAREFUL {
        const NAN: i32 = 0x81;
        const INFINITE: i32 = 0x18;
        // Numbers near the largest are cut instead; a NaN stays one without its last bits.
        let cut = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(!0xffff));
        high = _mm512_mask_blend_ps(_mm512_fpclass_ps_mask::<{ NAN | INFINITE }>(high), high, _mm512_castsi512_ps(cut));
        high = _mm512_mask_blend_ps(_mm512_fpclass_ps_mask::<NAN>(x), high, _mm512_set1_ps(f32::NAN));
        let finite = !_mm512_fpclass_ps_mask::<{ NAN | INFINITE }>(x);
        _mm512_maskz_sub_ps(finite, x, high)
    } else {
        _mm512_sub_ps(x, high)
    };
    if !CAREFUL {
        *seen = _mm512_fmadd_ps(rest, _mm512_setzero_ps(), *seen);
    }
    let middle = nearest(rest);
    [high, middle, _mm512_sub_ps(rest, middle)]
}

/// Splits `rows <= 32` rows of `k` contiguous values, `stride` apart, into chunks of a left operand. Whether all are finite.
///
/// # Safety
/// AVX-512 F, BW and DQ; `src` has the values, `out` has [`room`] for them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
pub(crate) unsafe fn left(src: *const f32, stride: usize, rows: usize, k: usize, out: *mut f32) -> bool {
    // SAFETY: the caller's promise.
    unsafe { left_with::<false>(src, stride, rows, k, out) || !left_with::<true>(src, stride, rows, k, out) }
}

/// # Safety
/// As [`left`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
unsafe fn left_with<const CAREFUL: bool>(src: *const f32, stride: usize, rows: usize, k: usize, out: *mut f32) -> bool {
    /// Values of a row that are fetched ahead.
    const AHEAD: usize = 4 * DEPTH;
    let mut seen = _mm512_setzero_ps();
    for chunk in 0..k.div_ceil(DEPTH) {
        let lanes = [mask(k - chunk * DEPTH), mask((k - chunk * DEPTH).saturating_sub(LANES))];
        let tiles = out.wrapping_add(chunk * CHUNK).cast::<__m512i>();
        for row in 0..rows.next_multiple_of(LANES) {
            let mut split = [_mm512_setzero_si512(); PARTS];
            if row < rows {
                let at = src.wrapping_add(row * stride + chunk * DEPTH);
                // Into the second level: rows at a power of two from each other share a few places in the first.
                _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(AHEAD + LANES).cast());
                // SAFETY: lanes of the row's values.
                let [a, b] =
                    unsafe { [_mm512_maskz_loadu_ps(lanes[0], at), _mm512_maskz_loadu_ps(lanes[1], at.wrapping_add(LANES))] };
                let (a, b) = (parts::<CAREFUL>(a, &mut seen), parts::<CAREFUL>(b, &mut seen));
                split = [pairs(a[0], b[0]), pairs(a[1], b[1]), pairs(a[2], b[2])];
            }
            for (part, &split) in split.iter().enumerate() {
                // SAFETY: a row of a tile, in a vector of 64 bytes.
                unsafe { _mm512_storeu_si512(tiles.add(part * 2 * LANES + row), split) };
            }
        }
    }
    _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(seen, seen) == 0
}

/// Splits `k` rows of `cols <= 32` contiguous values, `stride` apart, into chunks of a right operand. Whether all are finite.
///
/// # Safety
/// As [`left`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
pub(crate) unsafe fn right(src: *const f32, stride: usize, cols: usize, k: usize, out: *mut f32) -> bool {
    // SAFETY: the caller's promise.
    unsafe { right_with::<false>(src, stride, cols, k, out) || !right_with::<true>(src, stride, cols, k, out) }
}

/// # Safety
/// As [`left`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
unsafe fn right_with<const CAREFUL: bool>(src: *const f32, stride: usize, cols: usize, k: usize, out: *mut f32) -> bool {
    /// Rows that are fetched ahead.
    const AHEAD: usize = 2 * DEPTH;
    let mut seen = _mm512_setzero_ps();
    for chunk in 0..k.div_ceil(DEPTH) {
        let tiles = out.wrapping_add(chunk * CHUNK).cast::<__m512i>();
        for pair in 0..LANES {
            for half in 0..cols.div_ceil(LANES) {
                let lanes = mask(cols - half * LANES);
                let load = |row: usize| {
                    let at = src.wrapping_add(row * stride + half * LANES);
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * stride).cast());
                    // SAFETY: lanes of the row's values, or none.
                    if row < k { unsafe { _mm512_maskz_loadu_ps(lanes, at) } } else { _mm512_setzero_ps() }
                };
                let (a, b) = (load(chunk * DEPTH + pair), load(chunk * DEPTH + LANES + pair));
                let (a, b) = (parts::<CAREFUL>(a, &mut seen), parts::<CAREFUL>(b, &mut seen));
                for part in 0..PARTS {
                    // SAFETY: as above.
                    unsafe { _mm512_storeu_si512(tiles.add((part * 2 + half) * LANES + pair), pairs(a[part], b[part])) };
                }
            }
        }
    }
    _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(seen, seen) == 0
}

/// Splits up to 32 channels, `stride` apart, at 16 places, of which `lanes` are read and the others zero: the first `count` places become rows of
/// a tile each, one after the other, of pairs of channels as those of a chunk, and the tiles of another part are `apart` floats behind. Whether all
/// are finite; if they are not, what is written is of no use.
///
/// # Safety
/// As [`left`]; `src` has the channels' values in those lanes, and `out` room for `count` rows of each part.
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
#[expect(clippy::needless_range_loop, reason = "a pair has a place in each part")]
pub(crate) unsafe fn places(
    src: *const f32,
    stride: usize,
    channels: usize,
    (lanes, count): (u16, usize),
    out: *mut f32,
    apart: usize,
) -> bool {
    let mut seen = _mm512_setzero_ps();
    let mut split = [[_mm512_setzero_ps(); LANES]; PARTS];
    for pair in 0..LANES.min(channels) {
        let load = |channel: usize| {
            let lanes = if channel < channels { lanes } else { 0 };
            // SAFETY: lanes of the channel's values.
            unsafe { _mm512_maskz_loadu_ps(lanes, src.wrapping_add(channel * stride)) }
        };
        let (a, b) = (load(pair), load(pair + LANES));
        let (a, b) = (parts::<false>(a, &mut seen), parts::<false>(b, &mut seen));
        for part in 0..PARTS {
            split[part][pair] = _mm512_castsi512_ps(pairs(a[part], b[part]));
        }
    }
    for (part, &pairs) in split.iter().enumerate() {
        for (place, row) in transposed(pairs).iter().enumerate().take(count) {
            // SAFETY: a row of the part.
            unsafe { _mm512_storeu_ps(out.add(part * apart + place * LANES), *row) };
        }
    }
    _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(seen, seen) == 0
}

/// Splits 16 channels, `stride` apart, at `count` places: each place becomes a row of a tile, the pairs of what each channel has there and 16
/// places on, and rows of another part are `apart` floats behind. Whether all are finite; if they are not, what is written is of no use.
///
/// # Safety
/// As [`left`]; `src` has `count` values of each channel, a multiple of 16, and 16 more, and `out` room for `count` rows of each part.
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
pub(crate) unsafe fn along_places(src: *const f32, stride: usize, count: usize, out: *mut f32, apart: usize) -> bool {
    let mut seen = _mm512_setzero_ps();
    let mut last = [[_mm512_setzero_ps(); PARTS]; LANES];
    for at in (0..count + LANES).step_by(LANES) {
        let mut split = [[_mm512_setzero_ps(); LANES]; PARTS];
        for (channel, last) in last.iter_mut().enumerate() {
            // SAFETY: 16 values of the channel.
            let values = unsafe { _mm512_loadu_ps(src.add(channel * stride + at)) };
            let next = parts::<false>(values, &mut seen);
            for part in 0..PARTS {
                split[part][channel] = _mm512_castsi512_ps(pairs(last[part], next[part]));
            }
            *last = next;
        }
        if at == 0 {
            continue;
        }
        for (part, &pairs) in split.iter().enumerate() {
            for (place, row) in transposed(pairs).iter().enumerate() {
                // SAFETY: a row of the part.
                unsafe { _mm512_storeu_ps(out.add(part * apart + (at - LANES + place) * LANES), *row) };
            }
        }
    }
    _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(seen, seen) == 0
}

/// The floats of `k` values of a left operand's row, from its chunks.
pub(crate) fn left_row(chunks: &[f32], row: usize, k: usize, out: &mut [f32]) {
    restore(chunks, k, |pair| row * LANES + pair, |p, value| out[p] = value);
}

/// The floats of `k` values of a right operand's column, from its chunks.
pub(crate) fn right_column(chunks: &[f32], column: usize, k: usize, put: impl FnMut(usize, f32)) {
    restore(chunks, k, |pair| (column / LANES * LANES + pair) * LANES + column % LANES, put);
}

/// Puts together the floats whose pair `j` is word `at(j)` of each part.
fn restore(chunks: &[f32], k: usize, at: impl Fn(usize) -> usize, mut put: impl FnMut(usize, f32)) {
    for p in 0..k {
        let (chunk, inner) = (p / DEPTH, p % DEPTH);
        let parts: [f32; PARTS] = std::array::from_fn(|part| {
            let word = chunks[chunk * CHUNK + part * CHUNK / PARTS + at(inner % LANES)].to_bits();
            f32::from_bits(if inner < LANES { word << 16 } else { word & !0xffff })
        });
        put(p, parts[0] + (parts[1] + parts[2]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    #[test]
    fn parts_add_up() {
        if !Isa::available().any(|isa| isa >= Isa::Avx512) {
            return eprintln!("skipped: needs AVX-512");
        }
        let special = [0.0, -0.0, f32::MAX, f32::MIN, 3.395e38, 1e-30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        for (rows, k) in [(1, 1), (16, 31), (17, 33), (32, 64), (32, 100)] {
            for with_special in [false, true] {
                let value = |i: usize| match i % 41 {
                    j if with_special && j < special.len() => special[j],
                    _ => (i as f32 * 0.37).sin() * 10f32.powi(i as i32 % 9 - 4),
                };
                let values: Vec<f32> = (0..rows * k).map(value).collect();
                let finite = values.iter().all(|x| x.is_finite() && x.abs() < 3.39e38);
                let same = |x: f32, y: f32| x == y || x.is_nan() && y.is_nan();
                let mut chunks = vec![0.0; room(k)];
                // SAFETY: the level is there, and the sizes are the slices'.
                assert_eq!(unsafe { left(values.as_ptr(), k, rows, k, chunks.as_mut_ptr()) }, finite);
                for row in 0..rows {
                    let mut back = vec![0.0; k];
                    left_row(&chunks, row, k, &mut back);
                    assert!(back.iter().zip(&values[row * k..]).all(|(&x, &y)| same(x, y)), "row {row} of {rows} by {k}");
                }
                // The same numbers as columns of `k` rows.
                // SAFETY: as above.
                assert_eq!(unsafe { right(values.as_ptr(), rows, rows, k, chunks.as_mut_ptr()) }, finite);
                for column in 0..rows {
                    right_column(&chunks, column, k, |p, x| assert!(same(x, values[p * rows + column]), "column {column}"));
                }
            }
        }
    }
}
