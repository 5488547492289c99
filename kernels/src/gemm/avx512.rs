//! AVX-512 kernels.
//!
//! The tile is 14 by 32: 28 accumulators, two vectors of `b` and one broadcast of
//! `a` fill 31 of the 32 registers, and 28 fused multiply-adds stand against 16
//! loads. Ragged rows have a kernel each; ragged columns are masked.

use std::arch::x86_64::*;

use super::kernel::{DOTS, Kernels, Tile, Transpose};

pub(crate) static KERNELS: Kernels =
    Kernels { mr: MR, nr: 2 * LANES, kc: 1024, strip: 1 << 18, tile, split: None, transpose, dots };

const MR: usize = 14;
const LANES: usize = 16;

type TileFn = unsafe fn(&Tile);

/// Kernels for packed and for unpacked `a`, for 1 to 14 rows; by columns: at most 16, less than 32, exactly 32.
static TILES: [[[TileFn; 3]; MR]; 2] = {
    macro_rules! rows {
        ($packed:literal, $($rows:literal)*) => {
            [$([
                tile_of::<$packed, $rows, 1, true>,
                tile_of::<$packed, $rows, 2, true>,
                tile_of::<$packed, $rows, 2, false>,
            ]),*]
        };
    }
    [rows!(true, 1 2 3 4 5 6 7 8 9 10 11 12 13 14), rows!(false, 1 2 3 4 5 6 7 8 9 10 11 12 13 14)]
};

/// # Safety
/// See [`Kernels`].
unsafe fn tile(t: &Tile) {
    let width = usize::from(t.cols > LANES) + usize::from(t.cols == 2 * LANES);
    // SAFETY: the table's kernel has the same contract.
    unsafe { TILES[usize::from(t.a_stride > 0)][t.rows - 1][width](t) }
}

/// The lowest `lanes` lanes.
fn mask(lanes: usize) -> __mmask16 {
    if lanes >= LANES { !0 } else { (1 << lanes) - 1 }
}

/// # Safety
/// See [`Kernels`]; `rows == ROWS`, `cols` fits `VECS` vectors, exactly unless `MASKED`, and `a` is `PACKED` or not.
#[target_feature(enable = "avx512f")]
#[expect(clippy::needless_range_loop, reason = "constant trip counts, unrolled into registers")]
unsafe fn tile_of<const PACKED: bool, const ROWS: usize, const VECS: usize, const MASKED: bool>(t: &Tile) {
    let mut masks = [0; VECS];
    for (v, lanes) in masks.iter_mut().enumerate() {
        *lanes = mask(t.cols.saturating_sub(v * LANES));
    }
    let (mut a, mut b) = (t.a, t.b);
    // Rows that are copied come from farther away than those that were.
    let ahead = if t.copy.is_null() { 8 } else { 24 } * t.b_stride;
    let rows: [*const f32; ROWS] = std::array::from_fn(|r| t.a.wrapping_add(r * t.a_stride));
    let mut acc = [[_mm512_setzero_ps(); VECS]; ROWS];
    // SAFETY: `a` holds `k` values for each of `ROWS`, `b` has `k` rows of `cols` values, `c` and `d`
    // have `ROWS` of them; lanes beyond `cols` are masked off. Prefetches may miss.
    unsafe {
        for p in 0..t.k {
            // What the sums are written to is asked for bit by bit: all at once it would fill the buffers for misses.
            if p % 4 == 0 && p < 4 * ROWS {
                for v in 0..VECS {
                    _mm_prefetch::<_MM_HINT_T0>(t.c.wrapping_add(p / 4 * t.ldc + v * LANES).cast());
                }
            }
            let mut row = [_mm512_setzero_ps(); VECS];
            for v in 0..VECS {
                row[v] = if MASKED {
                    _mm512_maskz_loadu_ps(masks[v], b.wrapping_add(v * LANES))
                } else {
                    _mm512_loadu_ps(b.add(v * LANES))
                };
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(ahead + v * LANES).cast());
            }
            if !MASKED && VECS == 2 && !t.copy.is_null() {
                for v in 0..VECS {
                    _mm512_storeu_ps(t.copy.add((p * VECS + v) * LANES), row[v]);
                }
            }
            if PACKED {
                _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(16 * ROWS).cast());
            }
            for r in 0..ROWS {
                let value = _mm512_set1_ps(if PACKED { *a.add(r) } else { *rows[r].add(p) });
                for v in 0..VECS {
                    acc[r][v] = _mm512_fmadd_ps(value, row[v], acc[r][v]);
                }
            }
            if PACKED {
                a = a.add(ROWS);
            }
            b = b.wrapping_add(t.b_stride);
        }
        for v in 0..VECS {
            let scale = Scale::new(t, v, masks[v]);
            for r in 0..ROWS {
                scale.put::<MASKED>(t, r, acc[r][v]);
            }
        }
    }
}

/// What finishes the sums of a vector of columns.
struct Scale {
    alpha: __m512,
    beta: __m512,
    bias: __m512,
    /// First column.
    column: usize,
    lanes: __mmask16,
}

impl Scale {
    /// # Safety
    /// A bias has as many values as `t` has columns.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn new(t: &Tile, vector: usize, lanes: __mmask16) -> Scale {
        let column = vector * LANES;
        let bias = if t.bias.is_null() {
            _mm512_setzero_ps()
        } else {
            // SAFETY: lanes of its values.
            unsafe { _mm512_maskz_loadu_ps(lanes, t.bias.wrapping_add(column)) }
        };
        Scale { alpha: _mm512_set1_ps(t.alpha), beta: _mm512_set1_ps(t.beta), bias, column, lanes }
    }

    /// # Safety
    /// `c` and `d` have row `r`; all lanes count unless `MASKED`.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn put<const MASKED: bool>(&self, t: &Tile, r: usize, sums: __m512) {
        let c = t.c.wrapping_add(r * t.ldc + self.column);
        let mut value = _mm512_fmadd_ps(self.alpha, sums, self.bias);
        // SAFETY: lanes of these rows.
        unsafe {
            if t.beta != 0.0 {
                let d = t.d.wrapping_add(r * t.ldd + self.column);
                value = _mm512_fmadd_ps(self.beta, _mm512_maskz_loadu_ps(self.lanes, d), value);
            }
            if MASKED {
                _mm512_mask_storeu_ps(c, self.lanes, value);
            } else {
                _mm512_storeu_ps(c, value);
            }
        }
    }
}

/// Finishes sums that were computed elsewhere, in rows `stride` apart.
///
/// # Safety
/// AVX-512 F; the tile's outputs are as [`Kernels`] wants them.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn finish(t: &Tile, sums: &[f32], stride: usize) {
    assert!(sums.len() >= t.rows * stride && stride >= t.cols.next_multiple_of(LANES));
    for v in 0..t.cols.div_ceil(LANES) {
        let lanes = mask(t.cols - v * LANES);
        // SAFETY: sums by the check, outputs by the caller's promise.
        unsafe {
            let scale = Scale::new(t, v, lanes);
            for r in 0..t.rows {
                let row = _mm512_loadu_ps(sums.as_ptr().add(r * stride + v * LANES));
                if lanes == !0 { scale.put::<false>(t, r, row) } else { scale.put::<true>(t, r, row) }
            }
        }
    }
}

/// # Safety
/// See [`Kernels`].
#[target_feature(enable = "avx512f")]
unsafe fn transpose(t: Transpose) {
    /// Values that a row is prefetched ahead.
    const AHEAD: usize = 8 * LANES;
    debug_assert!(t.rows <= LANES);
    for start in (0..t.len).step_by(LANES) {
        let lanes = mask(t.len - start);
        let load = |r: usize| {
            let row = t.src.wrapping_add(r * t.src_stride);
            // Past its end a row is followed by that of the next call, if there is one.
            let ahead = start + AHEAD;
            let next = if ahead < t.len { ahead } else { LANES * t.src_stride + ahead - t.len };
            _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(next).cast());
            // SAFETY: row `r` has as many values from `start` on.
            unsafe { _mm512_maskz_loadu_ps(lanes, row.wrapping_add(start)) }
        };
        let mut block = [_mm512_setzero_ps(); LANES];
        if t.rows == LANES {
            // A constant number of them stays in registers.
            for (r, row) in block.iter_mut().enumerate() {
                *row = load(r);
            }
            // SAFETY: the caller's promise.
            unsafe { columns(&t, start, block) };
        } else {
            for (r, row) in block.iter_mut().enumerate().take(t.rows) {
                *row = load(r);
            }
            // SAFETY: as above.
            unsafe { columns(&t, start, block) };
        }
    }
}

/// Writes the columns of a block, of the values from `start` on.
///
/// # Safety
/// See [`Kernels`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn columns(t: &Transpose, start: usize, block: [__m512; LANES]) {
    let end = (t.len.max(1) - 1) * t.dst_stride + t.rows;
    for (i, column) in transposed(block).into_iter().enumerate().take(t.len - start) {
        let at = (start + i) * t.dst_stride;
        // SAFETY: row `start + i` of the destination has `rows` values; whole vectors stay before its end. They spill into the
        // next row, which is yet to be written: masked stores are several times slower.
        unsafe {
            if at + LANES <= end {
                _mm512_storeu_ps(t.dst.add(at), column);
            } else {
                _mm512_mask_storeu_ps(t.dst.add(at), mask(t.rows), column);
            }
        }
    }
}

/// Transposes 16 by 16 values: pairs, then quadruples, then 128-bit lanes.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn transposed(rows: [__m512; LANES]) -> [__m512; LANES] {
    let mut out = rows;
    let mut quads = rows;
    for g in (0..LANES).step_by(4) {
        let lo01 = _mm512_castps_pd(_mm512_unpacklo_ps(rows[g], rows[g + 1]));
        let hi01 = _mm512_castps_pd(_mm512_unpackhi_ps(rows[g], rows[g + 1]));
        let lo23 = _mm512_castps_pd(_mm512_unpacklo_ps(rows[g + 2], rows[g + 3]));
        let hi23 = _mm512_castps_pd(_mm512_unpackhi_ps(rows[g + 2], rows[g + 3]));
        // Lane `l` of `quads[g + c]` is column `4 l + c` of rows `g` to `g + 3`.
        quads[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo01, lo23));
        quads[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo01, lo23));
        quads[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(hi01, hi23));
        quads[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(hi01, hi23));
    }
    for c in 0..4 {
        let even_lo = _mm512_shuffle_f32x4::<0x88>(quads[c], quads[4 + c]);
        let even_hi = _mm512_shuffle_f32x4::<0x88>(quads[8 + c], quads[12 + c]);
        let odd_lo = _mm512_shuffle_f32x4::<0xdd>(quads[c], quads[4 + c]);
        let odd_hi = _mm512_shuffle_f32x4::<0xdd>(quads[8 + c], quads[12 + c]);
        out[c] = _mm512_shuffle_f32x4::<0x88>(even_lo, even_hi);
        out[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd_lo, odd_hi);
        out[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even_lo, even_hi);
        out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd_lo, odd_hi);
    }
    out
}

/// # Safety
/// See [`Kernels`].
#[target_feature(enable = "avx512f")]
unsafe fn dots(k: usize, x: &[*const f32; DOTS], y: &[*const f32; DOTS], out: &mut [f32; DOTS * DOTS]) {
    let mut acc = [_mm512_setzero_ps(); DOTS * DOTS];
    let mut p = 0;
    while p < k {
        let lanes = mask(k - p);
        let mut ys = [_mm512_setzero_ps(); DOTS];
        for (s, value) in ys.iter_mut().enumerate() {
            // SAFETY: every operand has `k` values; lanes beyond are masked off.
            *value = unsafe { _mm512_maskz_loadu_ps(lanes, y[s].add(p)) };
        }
        for r in 0..DOTS {
            // SAFETY: as above.
            let value = unsafe { _mm512_maskz_loadu_ps(lanes, x[r].add(p)) };
            for s in 0..DOTS {
                acc[DOTS * r + s] = _mm512_fmadd_ps(value, ys[s], acc[DOTS * r + s]);
            }
        }
        p += LANES;
    }
    // SAFETY: `out` has 16 values.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums(acc)) };
}

/// Lane `i` of the result is the sum of the lanes of `acc[i]`.
#[target_feature(enable = "avx512f")]
#[inline]
fn sums(acc: [__m512; LANES]) -> __m512 {
    let mut pairs = [_mm512_setzero_ps(); 8];
    for (i, pair) in pairs.iter_mut().enumerate() {
        let (x, y) = (acc[2 * i], acc[2 * i + 1]);
        *pair = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
    }
    let mut quads = [_mm512_setzero_ps(); 4];
    for (i, quad) in quads.iter_mut().enumerate() {
        let (x, y) = (_mm512_castps_pd(pairs[2 * i]), _mm512_castps_pd(pairs[2 * i + 1]));
        let (lo, hi) = (_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
        *quad = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
    }
    let fold = |x, y| {
        let even = _mm512_shuffle_f32x4::<0x88>(x, y);
        _mm512_add_ps(even, _mm512_shuffle_f32x4::<0xdd>(x, y))
    };
    fold(fold(quads[0], quads[1]), fold(quads[2], quads[3]))
}
