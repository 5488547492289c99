//! Timing for the benches of this package.

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

/// Seconds of the median run of `body`, and the median of what it reaches, where it moves `bytes`, of `ceiling`, which gives bytes a second and
/// is run in turn with it: both then belong to one period, whatever others do to memory.
pub fn beside(budget: Duration, bytes: f64, mut ceiling: impl FnMut() -> f64, mut body: impl FnMut()) -> (f64, f64) {
    body();
    let start = Instant::now();
    let mut rounds = Vec::new();
    while rounds.len() < 5 || start.elapsed() < budget {
        let most = ceiling();
        let run = Instant::now();
        body();
        rounds.push((run.elapsed().as_secs_f64(), most));
    }
    let middle = |value: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    (middle(|&(seconds, _)| seconds), bytes / middle(|&(seconds, most)| seconds * most))
}
