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

/// Seconds of the median run of `body`, repeated for at least `budget` after one run that warms up.
pub fn median(budget: Duration, mut body: impl FnMut()) -> f64 {
    body();
    let start = Instant::now();
    let mut runs = Vec::new();
    while runs.len() < 3 || start.elapsed() < budget {
        let run = Instant::now();
        body();
        runs.push(run.elapsed().as_secs_f64());
    }
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}
