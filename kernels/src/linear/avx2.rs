//! AVX2 streamed dot products: weights are decoded in registers, 32 at a time, and used
//! by every row of activations at once.

use std::arch::x86_64::*;

use super::{Dots, Rows};
use crate::format::Format;
use crate::gemm::avx2::sum;
use crate::quant::avx2::{BF16, F16, F32, Nf4, Values};

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
    // Several sums per dot hide the latency of additions where there are few dots.
    // SAFETY: the selected function has the same contract.
    unsafe {
        match rows.m {
            1 => dots::<V, 1, 4>(rows, out),
            2 => dots::<V, 2, 4>(rows, out),
            3 => dots::<V, 3, 2>(rows, out),
            4 => dots::<V, 4, 2>(rows, out),
            5 => dots::<V, 5, 1>(rows, out),
            6 => dots::<V, 6, 1>(rows, out),
            7 => dots::<V, 7, 1>(rows, out),
            _ => dots::<V, 8, 1>(rows, out),
        }
    }
}

/// # Safety
/// See [`super::RowDots`]; `rows.m == M`.
#[target_feature(enable = "avx2,fma,f16c")]
#[expect(clippy::needless_range_loop, reason = "constant trip counts, unrolled into registers")]
unsafe fn dots<V: Values, const M: usize, const SUMS: usize>(rows: &Rows, out: &mut Dots) {
    let k = rows.k;
    let whole = k / V::LEN;
    for (r, bytes) in rows.bytes.into_iter().enumerate() {
        let mut acc = [[_mm256_setzero_ps(); SUMS]; M];
        for block in 0..whole {
            // SAFETY: whole blocks of the weight row, and of each of the `M` rows of `x`.
            unsafe {
                let bytes = bytes.add(block * V::BYTES);
                let scales = V::scales(bytes);
                for part in 0..V::LEN / 32 {
                    let w = V::load(bytes, &scales, part);
                    for i in 0..M {
                        let x = rows.x.add(i * k + block * V::LEN + part * 32);
                        for v in 0..4 {
                            let x = _mm256_loadu_ps(x.add(8 * v));
                            acc[i][v % SUMS] = _mm256_fmadd_ps(w[v], x, acc[i][v % SUMS]);
                        }
                    }
                }
            }
        }
        for i in 0..M {
            let total = &mut out[i][r];
            *total = sum(acc[i].into_iter().fold(_mm256_setzero_ps(), |x, y| _mm256_add_ps(x, y)));
            for p in whole * V::LEN..k {
                // SAFETY: `p < k`; only formats without blocks have such an end.
                unsafe {
                    *total += V::load_one(bytes.add(p * (V::BYTES / 32))) * *rows.x.add(i * k + p);
                }
            }
        }
    }
}
