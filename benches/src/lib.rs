//! Timing for the benches of this package: the best of several runs, no statistics.

use std::time::{Duration, Instant};

/// Seconds of the fastest run of `body`, repeated for at least `budget`.
///
/// The minimum is the least disturbed run on a shared machine.
pub fn fastest(budget: Duration, mut body: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 3 || start.elapsed() < budget {
        let run = Instant::now();
        body();
        best = best.min(run.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}
