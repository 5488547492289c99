//! Every task runs once, whatever threads, pauses, panics and neighbours do.

use super::*;

#[test]
fn every_task_runs_once() {
    for threads in [1, 2, 5] {
        let pool = Pool::new(threads);
        for tasks in [0, 1, 2, 3, 31, 1000] {
            let mut hits = vec![0u8; tasks];
            pool.run_pieces(&mut hits, 1, |_, hit| hit[0] += 1);
            assert!(hits.iter().all(|&hit| hit == 1));
        }
    }
}

#[test]
fn many_short_runs_with_pauses() {
    let pool = Pool::new(3);
    let sum = AtomicUsize::new(0);
    for round in 0..2000 {
        pool.run(7, &|task| {
            sum.fetch_add(task, Ordering::Relaxed);
        });
        if round % 500 == 0 {
            std::thread::sleep(3 * patience::LONGEST);
        }
    }
    assert_eq!(sum.into_inner(), 2000 * 21);
}

#[test]
fn nested_runs_go_inline() {
    let pool = Pool::new(2);
    let count = AtomicUsize::new(0);
    pool.run(4, &|_| {
        pool.run(8, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        })
    });
    assert_eq!(count.into_inner(), 32);
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_survives() {
    let pool = Pool::new(2);
    for _ in 0..10 {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, &|task| assert!(task != 40, "task forty"));
        }));
        assert!(result.is_err());
    }
    let count = AtomicUsize::new(0);
    pool.run(64, &|_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(count.into_inner(), 64);
}

#[test]
fn callers_take_turns() {
    let pool = Pool::new(2);
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..200 {
                    pool.run(5, &|_| {
                        count.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(count.into_inner(), 3000);
}

/// More threads than any machine of ours has cores, all in one process: nobody starves and every task runs.
#[test]
fn pools_side_by_side() {
    let sum = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let pool = Pool::new(4);
                for round in 0..300 {
                    pool.run(9, &|task| {
                        sum.fetch_add(task, Ordering::Relaxed);
                    });
                    if round % 100 == 0 {
                        std::thread::sleep(3 * patience::LONGEST);
                    }
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 4 * 300 * 36);
}
