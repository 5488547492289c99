//! What a launch costs beside its work.

use std::time::{Duration, Instant};

use swift_kernels::pool::Pool;

use super::{Bound, Measured};

/// Runs of one reading.
const RUNS: u32 = 2000;

/// Readings that each figure is the median of.
const READINGS: usize = 25;

/// Runs without work: one after the other, and after a pause in which the workers fall asleep.
pub(super) fn measure(pool: &Pool, report: &mut dyn FnMut(&Measured)) {
    let tasks = pool.threads();
    let mut figure = |op: &str, read: &mut dyn FnMut() -> f64| {
        let mut seconds: Vec<f64> = (0..READINGS).map(|_| read()).collect();
        seconds.sort_by(f64::total_cmp);
        let seconds = seconds[READINGS / 2];
        let (op, shape, format) = (op.to_string(), format!("{tasks} tasks"), "-".to_string());
        report(&Measured { op, shape, format, seconds, rate: 1e-6 / seconds, bound: Bound::Handoff, beside: None });
    };
    let run = || {
        pool.run(tasks, &|task| {
            std::hint::black_box(task);
        })
    };
    figure("launch, hot", &mut || {
        let start = Instant::now();
        (0..RUNS).for_each(|_| run());
        start.elapsed().as_secs_f64() / f64::from(RUNS)
    });
    figure("launch, after a pause", &mut || {
        std::thread::sleep(Duration::from_millis(2));
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
}
