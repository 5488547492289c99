//! AVX2 and FMA kernels.
//!
//! The tile is 6 by 16: 12 accumulators, two vectors of `b` and one broadcast of
//! `a` in 16 registers.

use std::arch::x86_64::*;

use super::kernel::{DOTS, Kernels, Tile, Transpose};

pub(crate) static KERNELS: Kernels =
    Kernels { mr: MR, nr: 2 * LANES, kc: 384, strip: 1 << 16, tile, split: None, transpose, dots };

const MR: usize = 6;
const LANES: usize = 8;

type TileFn = unsafe fn(&Tile);

/// Kernels for packed and for unpacked `a`, for 1 to 6 rows; by columns: at most 8, less than 16, exactly 16.
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
    [rows!(true, 1 2 3 4 5 6), rows!(false, 1 2 3 4 5 6)]
};

/// # Safety
/// See [`Kernels`].
unsafe fn tile(t: &Tile) {
    let width = usize::from(t.cols > LANES) + usize::from(t.cols == 2 * LANES);
    // SAFETY: the table's kernel has the same contract.
    unsafe { TILES[usize::from(t.a_stride > 0)][t.rows - 1][width](t) }
}

/// The lowest `lanes` lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn mask(lanes: usize) -> __m256i {
    let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes.min(LANES) as i32), index)
}

/// # Safety
/// See [`Kernels`]; `rows == ROWS`, `cols` fits `VECS` vectors, exactly unless `MASKED`, and `a` is `PACKED` or not.
#[target_feature(enable = "avx2,fma")]
#[expect(clippy::needless_range_loop, reason = "constant trip counts, unrolled into registers")]
unsafe fn tile_of<const PACKED: bool, const ROWS: usize, const VECS: usize, const MASKED: bool>(t: &Tile) {
    let mut masks = [_mm256_setzero_si256(); VECS];
    for (v, lanes) in masks.iter_mut().enumerate() {
        *lanes = mask(t.cols.saturating_sub(v * LANES));
    }
    let (mut a, mut b) = (t.a, t.b);
    let rows: [*const f32; ROWS] = std::array::from_fn(|r| t.a.wrapping_add(r * t.a_stride));
    let mut acc = [[_mm256_setzero_ps(); VECS]; ROWS];
    // SAFETY: `a` holds `k` values for each of `ROWS`, `b` has `k` rows of `cols` values, `c` and `d`
    // have `ROWS` of them; lanes beyond `cols` are masked off. Prefetches may miss.
    unsafe {
        for r in 0..ROWS {
            _mm_prefetch::<_MM_HINT_T0>(t.c.add(r * t.ldc).cast());
        }
        for p in 0..t.k {
            let mut row = [_mm256_setzero_ps(); VECS];
            for v in 0..VECS {
                row[v] = if MASKED {
                    _mm256_maskload_ps(b.wrapping_add(v * LANES), masks[v])
                } else {
                    _mm256_loadu_ps(b.add(v * LANES))
                };
            }
            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(8 * t.b_stride).cast());
            if !MASKED && VECS == 2 && !t.copy.is_null() {
                for v in 0..VECS {
                    _mm256_storeu_ps(t.copy.add((p * VECS + v) * LANES), row[v]);
                }
            }
            for r in 0..ROWS {
                let value = _mm256_broadcast_ss(&*if PACKED { a.add(r) } else { rows[r].add(p) });
                for v in 0..VECS {
                    acc[r][v] = _mm256_fmadd_ps(value, row[v], acc[r][v]);
                }
            }
            if PACKED {
                a = a.add(ROWS);
            }
            b = b.wrapping_add(t.b_stride);
        }
        let alpha = _mm256_set1_ps(t.alpha);
        let beta = _mm256_set1_ps(t.beta);
        for v in 0..VECS {
            let bias =
                if t.bias.is_null() { _mm256_setzero_ps() } else { _mm256_maskload_ps(t.bias.wrapping_add(v * LANES), masks[v]) };
            for r in 0..ROWS {
                let c = t.c.wrapping_add(r * t.ldc + v * LANES);
                let mut value = _mm256_fmadd_ps(alpha, acc[r][v], bias);
                if t.beta != 0.0 {
                    let d = t.d.wrapping_add(r * t.ldd + v * LANES);
                    value = _mm256_fmadd_ps(beta, _mm256_maskload_ps(d, masks[v]), value);
                }
                if MASKED {
                    _mm256_maskstore_ps(c, masks[v], value);
                } else {
                    _mm256_storeu_ps(c, value);
                }
            }
        }
    }
}

/// # Safety
/// See [`Kernels`].
#[target_feature(enable = "avx2,fma")]
#[expect(clippy::needless_range_loop, reason = "constant trip counts, unrolled into registers")]
unsafe fn transpose(t: Transpose) {
    let end = (t.len.max(1) - 1) * t.dst_stride + t.rows;
    for top in (0..t.rows).step_by(LANES) {
        let rows = LANES.min(t.rows - top);
        // Whole vectors may spill into padding or into a row yet to be written: masked stores are many times slower.
        let spills = top + LANES <= t.dst_stride || t.rows <= LANES;
        let src: [*const f32; LANES] = std::array::from_fn(|r| {
            // Past the last row it is read again; what it gives is spilled or masked.
            t.src.wrapping_add((top + r.min(rows - 1)) * t.src_stride)
        });
        let mut start = 0;
        // Blocks in registers, as long as their whole vectors end before the destination does.
        while spills && start + LANES <= t.len && (start + LANES - 1) * t.dst_stride + top + LANES <= end {
            let mut block = [_mm256_setzero_ps(); LANES];
            for r in 0..LANES {
                // SAFETY: each row has `LANES` values from `start`; prefetches may miss.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(src[r].wrapping_add(start + AHEAD).cast());
                    block[r] = _mm256_loadu_ps(src[r].add(start));
                }
            }
            let columns = transposed(block);
            for i in 0..LANES {
                // SAFETY: row `start + i` of the destination has `rows` values from `top`, and whole vectors stay before
                // its end, by the loop's condition.
                unsafe { _mm256_storeu_ps(t.dst.add((start + i) * t.dst_stride + top), columns[i]) };
            }
            start += LANES;
        }
        while start < t.len {
            let len = LANES.min(t.len - start);
            // SAFETY: row `top + r` has `len` values from `start`.
            let block = src.map(|src| unsafe { _mm256_maskload_ps(src.wrapping_add(start), mask(len)) });
            for (i, column) in transposed(block).into_iter().enumerate().take(len) {
                let at = (start + i) * t.dst_stride + top;
                // SAFETY: as above; the mask keeps to the destination's row.
                unsafe { _mm256_maskstore_ps(t.dst.add(at), mask(rows), column) };
            }
            start += LANES;
        }
    }
}

/// Values that a row is prefetched ahead, which the hardware does not do across pages.
const AHEAD: usize = 64;

/// Transposes 8 by 8 values: pairs, then quadruples, then 128-bit lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn transposed(rows: [__m256; LANES]) -> [__m256; LANES] {
    let mut quads = rows;
    for g in [0, 4] {
        let lo01 = _mm256_castps_pd(_mm256_unpacklo_ps(rows[g], rows[g + 1]));
        let hi01 = _mm256_castps_pd(_mm256_unpackhi_ps(rows[g], rows[g + 1]));
        let lo23 = _mm256_castps_pd(_mm256_unpacklo_ps(rows[g + 2], rows[g + 3]));
        let hi23 = _mm256_castps_pd(_mm256_unpackhi_ps(rows[g + 2], rows[g + 3]));
        // Lane `l` of `quads[g + c]` is column `4 l + c` of rows `g` to `g + 3`.
        quads[g] = _mm256_castpd_ps(_mm256_unpacklo_pd(lo01, lo23));
        quads[g + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(lo01, lo23));
        quads[g + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(hi01, hi23));
        quads[g + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(hi01, hi23));
    }
    let mut out = rows;
    for c in 0..4 {
        out[c] = _mm256_permute2f128_ps::<0x20>(quads[c], quads[4 + c]);
        out[4 + c] = _mm256_permute2f128_ps::<0x31>(quads[c], quads[4 + c]);
    }
    out
}

/// # Safety
/// See [`Kernels`].
#[target_feature(enable = "avx2,fma")]
unsafe fn dots(k: usize, x: &[*const f32; DOTS], y: &[*const f32; DOTS], out: &mut [f32; DOTS * DOTS]) {
    // Two columns at a time: eight accumulators and their operands fit 16 registers.
    for pair in (0..DOTS).step_by(2) {
        let mut acc = [[_mm256_setzero_ps(); 2]; DOTS];
        let mut p = 0;
        while p < k {
            let lanes = mask(k - p);
            // SAFETY: every operand has `k` values; lanes beyond are masked off.
            let ys = unsafe {
                let y0 = _mm256_maskload_ps(y[pair].add(p), lanes);
                [y0, _mm256_maskload_ps(y[pair + 1].add(p), lanes)]
            };
            for r in 0..DOTS {
                // SAFETY: as above.
                let value = unsafe { _mm256_maskload_ps(x[r].add(p), lanes) };
                for s in 0..2 {
                    acc[r][s] = _mm256_fmadd_ps(value, ys[s], acc[r][s]);
                }
            }
            p += LANES;
        }
        for r in 0..DOTS {
            for s in 0..2 {
                out[DOTS * r + pair + s] = sum(acc[r][s]);
            }
        }
    }
}

/// Sum of the lanes.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn sum(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}
