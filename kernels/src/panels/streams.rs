//! How memory that is read once is shared out: a few rows of activations pass all panels in the time that reading these takes.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::gemm::blocked::run;
use crate::pool::Pool;

/// Bytes between what is multiplied and what is fetched from memory, of each panel that is read as it is stored.
pub(crate) const AHEAD: usize = 2048;

/// Panels that are read together as they are stored, where there are rows of activations few enough and panels in plenty: streams
/// far from each other, each of which goes on where the last task left it. Memory answers four of them faster than one.
pub(crate) const STREAMS: usize = 4;

/// Bytes of panels that a task with few rows reads at least, so that handing tasks out costs little beside them.
pub(crate) const TASK_BYTES: usize = 24 << 10;

/// Panels that are read together, each far from the others, for `m` rows of activations.
pub(crate) fn streams(pool: &Pool, m: usize, panels: usize) -> usize {
    match m {
        0..=2 => STREAMS,
        3..=4 => STREAMS / 2,
        _ => 1,
    }
    .clamp(1, (panels / (8 * pool.threads())).max(1))
}

/// Calls `body` with each of so many groups of panels, of `bytes` in all: a thread takes its share of half of what is left, so that
/// streams are long and all threads are done at nearly the same time.
pub(crate) fn share_out(pool: &Pool, small: bool, groups: usize, bytes: usize, body: &(dyn Fn(usize) + Sync)) {
    let least = (TASK_BYTES * groups / bytes.max(1)).max(1);
    let share = |start: usize| ((groups - start) / (2 * pool.threads())).max(least).min(groups - start);
    let next = AtomicUsize::new(0);
    let take = |start: usize| (start < groups).then(|| start + share(start));
    run(pool, small, pool.threads(), &|_| {
        while let Ok(start) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            (start..start + share(start)).for_each(body);
        }
    });
}
