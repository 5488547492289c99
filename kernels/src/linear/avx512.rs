//! AVX-512 streamed dot products: weights are decoded in registers, 32 at a time, and
//! used by every row of activations at once.
//!
//! Up to four rows of activations, four weight rows share each load of them; beyond,
//! two do, which is what the registers hold.
//!
//! Tried and rejected: extracting nibbles with a broadcasting load and per-lane shifts
//! instead of a widening load, with permuted activations (no gain for one row).

use std::arch::x86_64::*;

use super::{Dots, ROWS, Rows};
use crate::format::Format;
use crate::quant::avx512::{BF16, F16, F32, Nf4, Values};

/// Bytes that weight rows are prefetched ahead: the hardware follows one stream a page, and short rows are several.
const AHEAD: usize = 3072;

/// # Safety
/// See [`super::RowDots`].
pub(super) unsafe fn row_dots(rows: &Rows, out: &mut Dots) {
    // SAFETY: the selected function has the same contract.
    unsafe {
        match rows.format {
            Format::F32 => by_rows::<F32>(rows, out),
            Format::F16 => by_rows::<F16>(rows, out),
            Format::BF16 => by_rows::<BF16>(rows, out),
            Format::Nf4 => by_rows::<Nf4>(rows, out),
            other => unreachable!("{other} is not streamed in rows"),
        }
    }
}

/// # Safety
/// See [`super::RowDots`].
#[inline]
unsafe fn by_rows<V: Values>(rows: &Rows, out: &mut Dots) {
    // SAFETY: the selected function has the same contract.
    unsafe {
        match rows.m {
            1 => dots::<V, 1, 4>(rows, out),
            2 => dots::<V, 2, 4>(rows, out),
            3 => dots::<V, 3, 4>(rows, out),
            4 => dots::<V, 4, 4>(rows, out),
            5 => dots::<V, 5, 2>(rows, out),
            6 => dots::<V, 6, 2>(rows, out),
            7 => dots::<V, 7, 2>(rows, out),
            _ => dots::<V, 8, 2>(rows, out),
        }
    }
}

/// # Safety
/// See [`super::RowDots`]; `rows.m == M`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
#[expect(clippy::needless_range_loop, reason = "constant trip counts, unrolled into registers")]
unsafe fn dots<V: Values, const M: usize, const R: usize>(rows: &Rows, out: &mut Dots) {
    let k = rows.k;
    let whole = k / V::LEN;
    for first in (0..ROWS).step_by(R) {
        let mut acc = [[_mm512_setzero_ps(); R]; M];
        for block in 0..whole {
            // SAFETY: whole blocks of each weight row, and of each of the `M` rows of `x`.
            unsafe {
                let mut bytes = [rows.bytes[first].add(block * V::BYTES); R];
                let mut scales = [V::scales(bytes[0]); R];
                for r in 1..R {
                    bytes[r] = rows.bytes[first + r].add(block * V::BYTES);
                    scales[r] = V::scales(bytes[r]);
                }
                // The rows usually follow each other: all of them together are read from front to back.
                for line in (0..R * V::BYTES).step_by(64) {
                    let ahead = rows.bytes[first].wrapping_add(block * R * V::BYTES + line + AHEAD);
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                }
                for part in 0..V::LEN / 32 {
                    let mut w = [[_mm512_setzero_ps(); 2]; R];
                    for r in 0..R {
                        w[r] = V::load(bytes[r], &scales[r], part);
                    }
                    for i in 0..M {
                        let x = rows.x.add(i * k + block * V::LEN + part * 32);
                        let (lo, hi) = (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16)));
                        for r in 0..R {
                            acc[i][r] = _mm512_fmadd_ps(w[r][0], lo, acc[i][r]);
                            acc[i][r] = _mm512_fmadd_ps(w[r][1], hi, acc[i][r]);
                        }
                    }
                }
            }
        }
        for i in 0..M {
            for r in 0..R {
                let sum = &mut out[i][first + r];
                *sum = _mm512_reduce_add_ps(acc[i][r]);
                for p in whole * V::LEN..k {
                    // SAFETY: `p < k`; only formats without blocks have such an end.
                    unsafe {
                        let w = V::load_one(rows.bytes[first + r].add(p * (V::BYTES / 32)));
                        *sum += w * *rows.x.add(i * k + p);
                    }
                }
            }
        }
    }
}
