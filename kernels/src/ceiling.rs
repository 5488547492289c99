//! What the machine can do at most, measured: the denominators of every "percent of".
//!
//! Each figure is the fastest of several short runs on all threads of the pool, with the instruction set of the pool. A kernel
//! can come near a ceiling and not pass it; a reading above 100% means that the ceiling was disturbed while it was taken.

mod streams;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::isa::Isa;
use crate::pool::Pool;
pub use streams::{Stream, Streams};

/// Rates that no kernel on these threads can exceed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// `f32` multiply-adds, counted as two operations each, per second. With a matrix unit for `bf16`, a sixth of what it does (see
    /// [`crate::gemm`]), if that is more.
    pub flops: f64,
    /// Products of 8-bit integers and their sums (quadruples in 32 bits with VNNI and in a matrix unit, else pairs in 16), two
    /// operations each, per second.
    pub int8_ops: f64,
    /// Bytes per second read from memory, past the caches.
    pub read: f64,
    /// Bytes per second read and written, past the caches, at one read for each write; what a cache reads before it writes is not
    /// counted.
    pub copy: f64,
    /// As `copy`, on arrays of 64 MB, which stay in the last cache of some servers.
    pub copy_near: f64,
    /// Times per second that a word goes to another thread and back, what a launch must wait for at least.
    pub handoffs: f64,
}

/// Runs that each figure is the best of.
const RUNS: usize = 5;

impl Ceilings {
    /// Measures this machine: about two seconds and half a gigabyte.
    pub fn measure(pool: &Pool) -> Ceilings {
        let mut streams = Streams::new(pool);
        Ceilings {
            flops: flops(pool),
            int8_ops: work(pool, int8_work),
            read: streams.fastest(pool, Stream::Read),
            copy: streams.fastest(pool, Stream::Copy),
            copy_near: streams.fastest(pool, Stream::CopyNear),
            handoffs: handoffs(),
        }
    }
}

/// Seconds of the fastest of some runs, after one that warms up.
fn best(mut body: impl FnMut()) -> f64 {
    body();
    let timed = |body: &mut dyn FnMut()| {
        let start = Instant::now();
        body();
        start.elapsed().as_secs_f64()
    };
    (0..RUNS).map(|_| timed(&mut body)).fold(f64::INFINITY, f64::min)
}

/// Round trips per second of one word between this thread and another.
fn handoffs() -> f64 {
    const TRIPS: usize = 20_000;
    let word = AtomicUsize::new(0);
    let wait_for = |value: usize| {
        let mut looks = 0u32;
        while word.load(Ordering::Acquire) != value {
            looks += 1;
            // On a single core the other thread needs it.
            if looks.is_multiple_of(1 << 14) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    };
    // Odd values are questions, even ones answers. The first trips wait for the thread to start.
    let seconds = std::thread::scope(|scope| {
        scope.spawn(|| {
            for trip in 0..2 * TRIPS {
                wait_for(2 * trip + 1);
                word.store(2 * trip + 2, Ordering::Release);
            }
        });
        let ask = |trip: usize| {
            word.store(2 * trip + 1, Ordering::Release);
            wait_for(2 * trip + 2);
        };
        (0..TRIPS).for_each(ask);
        let start = Instant::now();
        (TRIPS..2 * TRIPS).for_each(ask);
        start.elapsed().as_secs_f64()
    });
    TRIPS as f64 / seconds
}

/// Operations per second over all threads of a loop that reports how many it did.
fn work(pool: &Pool, unit: fn(Isa) -> f64) -> f64 {
    // Many tasks, so that a thread that is late takes fewer.
    let tasks = 32 * pool.threads();
    let operations = unit(pool.isa()) * tasks as f64;
    let seconds = best(|| {
        pool.run(tasks, &|_| {
            black_box(unit(pool.isa()));
        });
    });
    operations / seconds
}

/// Multiply-adds per second, by the faster way.
fn flops(pool: &Pool) -> f64 {
    let vectors = work(pool, float_work);
    #[cfg(target_arch = "x86_64")]
    if pool.isa() == Isa::Amx {
        // SAFETY: the level was just checked.
        return vectors.max(work(pool, |_| unsafe { tiles::half_work() }) / 6.0);
    }
    vectors
}

/// One task of multiply-adds in registers; returns how many operations it took.
fn float_work(isa: Isa) -> f64 {
    match isa {
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        _ if isa.is_wide() => vector::float_work(isa),
        _ => {
            const STEPS: usize = 20_000;
            let mut sums = [1.0f32; 16];
            let (a, b) = (black_box(0.999_999f32), black_box(1e-6f32));
            for _ in 0..STEPS {
                sums.iter_mut().for_each(|sum| *sum = *sum * a + b);
            }
            black_box(sums);
            (2 * STEPS * sums.len()) as f64
        }
    }
}

/// One task of 8-bit products in registers; returns how many operations it took.
fn int8_work(isa: Isa) -> f64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level comes from a pool, which has checked it against the CPU.
        Isa::Amx => unsafe { tiles::int8_work() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { vector::int8_work_avx512() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { vector::int8_work_avx2() },
        _ => {
            const STEPS: usize = 20_000;
            let mut sums = [0i32; 16];
            let (a, b) = (black_box([3i8; 16]), black_box([5i8; 16]));
            for _ in 0..STEPS {
                for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(&b)) {
                    *sum = sum.wrapping_add(i32::from(*a) * i32::from(*b));
                }
            }
            black_box(sums);
            (2 * STEPS * sums.len()) as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_does_its_work() {
        for isa in Isa::available() {
            assert!(float_work(isa) > 0.0 && int8_work(isa) > 0.0);
        }
    }
}
