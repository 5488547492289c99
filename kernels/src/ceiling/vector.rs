//! The loops that reach the ceilings: independent chains enough to fill every pipeline, no memory but what is streamed.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    _mm256_add_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_setzero_si256, _mm512_dpbusd_epi32, _mm512_set1_epi8,
    _mm512_setzero_si512,
};
use std::hint::black_box;

use crate::simd::{prefetch, simd_fn};

/// Rounds of a task in registers: some hundred microseconds.
pub(super) const STEPS: usize = 20_000;

/// Independent chains: latency times throughput of a multiply-add is at most ten on the CPUs of these levels.
const CHAINS: usize = 12;

simd_fn! {
    pub(super) fn float_work<S>(s) -> f64 {
        let (a, b) = (s.splat(black_box(0.999_999)), s.splat(black_box(1e-6)));
        let mut sums = [s.splat(1.0); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = s.fma(*sum, a, b);
            }
        }
        black_box(sums.iter().map(|&sum| s.sum(sum)).sum::<f32>());
        (2 * STEPS * CHAINS * S::LANES) as f64
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn int8_work_avx512() -> f64 {
    let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    black_box(sums);
    (2 * STEPS * CHAINS * 64) as f64
}

/// Without a dot product instruction, pairs of products are summed in 16 bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(super) fn int8_work_avx2() -> f64 {
    let (a, b) = (black_box(_mm256_set1_epi8(1)), black_box(_mm256_set1_epi8(2)));
    let mut sums = [_mm256_setzero_si256(); CHAINS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            // Each product takes the last one's sum, or it would be taken out of the loop.
            *sum = _mm256_add_epi16(b, _mm256_maddubs_epi16(a, *sum));
        }
    }
    black_box(sums);
    (2 * STEPS * CHAINS * 32) as f64
}

simd_fn! {
    /// Fetches what comes so many floats later, unless that is zero.
    pub(super) fn sum<S>(s, x: &[f32], ahead: usize) -> f32 {
        const STREAMS: usize = 8;
        let mut sums = [s.zero(); STREAMS];
        let step = STREAMS * S::LANES;
        let whole = x.len() / step * step;
        for i in (0..whole).step_by(step) {
            for (j, sum) in sums.iter_mut().enumerate() {
                if ahead > 0 {
                    prefetch(x.as_ptr().wrapping_add(i + j * S::LANES + ahead));
                }
                // SAFETY: the block lies below `whole`.
                *sum = s.add(*sum, unsafe { s.load(x.as_ptr().add(i + j * S::LANES)) });
            }
        }
        sums.iter().map(|&sum| s.sum(sum)).sum::<f32>() + x[whole..].iter().sum::<f32>()
    }
}

simd_fn! {
    pub(super) fn scale<S>(s, x: &[f32], out: &mut [f32], stream: bool) {
        let len = x.len().min(out.len());
        let by = s.splat(1.5);
        let (x, out) = (x.as_ptr(), out.as_mut_ptr());
        let past = stream && out.align_offset(S::LANES * size_of::<f32>()) == 0;
        // SAFETY: both slices have `len` elements and do not overlap; stores past the caches are aligned.
        unsafe { crate::simd::map_to(s, past, x, out, len, |x| s.mul(x, by)) };
        crate::simd::fence();
    }
}
