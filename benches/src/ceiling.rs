//! What this machine can do at best, measured: benches give their results as a share of it.

use std::hint::black_box;
use std::time::Duration;

use swift_kernels::isa::Isa;
use swift_kernels::pool::Pool;

use crate::fastest;

const BUDGET: Duration = Duration::from_millis(300);

/// Bytes a second that all threads of the pool together read from memory, past the caches.
pub fn reading(pool: &Pool) -> f64 {
    const WORDS: usize = 32 << 20;
    const TASKS: usize = 64;
    let data = vec![1u64; WORDS];
    let seconds = fastest(BUDGET, || {
        pool.run(TASKS, &|task| {
            let part = &data[task * (WORDS / TASKS)..][..WORDS / TASKS];
            // Several sums, so that additions do not wait for each other.
            let mut sums = [0u64; 32];
            for chunk in part.as_chunks::<32>().0 {
                for (sum, word) in sums.iter_mut().zip(chunk) {
                    *sum = sum.wrapping_add(*word);
                }
            }
            black_box(sums);
        });
    });
    (8 * WORDS) as f64 / seconds
}

/// Billions of operations a second (a product and a sum are two) of byte products in registers, on all threads of the pool: pairs
/// summed in 16 bits on AVX2, quadruples in 32 on AVX-512 VNNI. Zero without either.
pub fn byte_products(pool: &Pool) -> f64 {
    const ROUNDS: usize = 1 << 16;
    let (kernel, operations): (unsafe fn(usize), usize) = match pool.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (x86::maddubs, x86::SUMS * 32 * 2),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (x86::dpbusd, x86::SUMS * 64 * 2),
        _ => return 0.0,
    };
    let tasks = 4 * pool.threads();
    // SAFETY: a pool's level is supported by this CPU.
    let seconds = fastest(BUDGET, || pool.run(tasks, &|_| unsafe { kernel(ROUNDS) }));
    (tasks * ROUNDS * operations) as f64 / seconds * 1e-9
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Independent sums: enough to hide any latency.
    pub(super) const SUMS: usize = 10;

    #[target_feature(enable = "avx2")]
    pub(super) fn maddubs(rounds: usize) {
        // Each product takes the last one's sum: nothing is known twice, nothing can be left out.
        let mut sums = black_box([_mm256_setzero_si256(); SUMS]);
        let (a, b) = (_mm256_set1_epi8(black_box(1)), _mm256_set1_epi8(black_box(2)));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_add_epi16(b, _mm256_maddubs_epi16(a, *sum));
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn dpbusd(rounds: usize) {
        let mut sums = black_box([_mm512_setzero_si512(); SUMS]);
        let (a, b) = (_mm512_set1_epi8(black_box(1)), _mm512_set1_epi8(black_box(2)));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }
}
