//! The worker pool: one parallel loop at a time, no allocation per run.
//!
//! A run publishes a loop body and a task count; the caller and the workers take
//! chunks of task numbers from one atomic counter and meet at one barrier. Workers
//! look for the next run for some microseconds (kernels of one training step follow each
//! other within as many) and then park, so an idle pool costs nothing. The caller
//! never waits for a worker that is still waking up: a run is *closed* once its
//! tasks are handed out, and a late worker finds nothing to join.
//!
//! Pools and processes that share a machine do not know of each other and need not: a thread
//! that notices while it looks that another one ran on its core stops looking and sleeps (see
//! `patience`), and what a worker that lost its core does not take, its caller does. Each gets
//! its share of the cores; nobody burns another's.
//!
//! All coordination goes through one word, `state`:
//!
//! ```text
//! bits 63..32 number of the run | bit 31 open | bits 30..0 workers inside
//! ```

mod disjoint;
mod patience;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::isa::Isa;
pub use disjoint::Disjoint;
use patience::Patience;

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

type Body<'a> = &'a (dyn Fn(usize) + Sync);

thread_local! {
    /// True while this thread executes a task: a nested run then goes inline.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// Threads that execute parallel loops, and the instruction set kernels use on them.
///
/// The number of threads includes the caller, so `Pool::new(1)` starts none.
/// Runs from different callers are serialised.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Whose turn it is, and how long the caller looks for the end of a run.
    caller: Mutex<Patience>,
    isa: Isa,
}

/// A cache line (two, for the adjacent-line prefetcher) to itself.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    state: Line<AtomicU64>,
    next: Line<AtomicUsize>,
    job: UnsafeCell<Job>,
    shutdown: AtomicBool,
    /// Workers parked on `wake`; changed under `lock`.
    sleeping: AtomicUsize,
    /// Set while the caller is parked on `done`.
    caller_parked: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
    done: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct Job {
    body: Body<'static>,
    tasks: usize,
    chunk: usize,
}

// SAFETY: `job` is written only by the caller that holds `Pool::caller`, while the
// run is closed and nobody is inside, and read only by workers that entered an
// open run through `state`, whose acquire/release operations order the two.
unsafe impl Sync for Shared {}

impl Pool {
    /// A pool of `threads` threads (at least one) using the best instruction set of this CPU.
    pub fn new(threads: usize) -> Pool {
        Pool::with_isa(threads, Isa::detect())
    }

    /// A pool whose kernels use `isa`, for tests and measurements.
    ///
    /// # Panics
    /// When this CPU lacks `isa`.
    #[track_caller]
    pub fn with_isa(threads: usize, isa: Isa) -> Pool {
        // Kernels rely on this check for the soundness of their intrinsics.
        assert!(isa <= Isa::detect(), "this CPU does not support {isa}");
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(0)),
            next: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job { body: &|_| {}, tasks: 0, chunk: 1 }),
            shutdown: AtomicBool::new(false),
            sleeping: AtomicUsize::new(0),
            caller_parked: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            done: Condvar::new(),
            panic: Mutex::new(None),
        });
        let workers = (1..threads.max(1))
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("kernel-{index}"))
                    .spawn(move || shared.work())
                    .expect("the operating system can start a worker thread")
            })
            .collect();
        Pool { shared, workers, caller: Mutex::new(Patience::new()), isa }
    }

    /// Threads that take part in a run, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Instruction set that kernels use on this pool; always supported by this CPU.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `body(0)` to `body(tasks - 1)`, each once, in any order and on any thread.
    ///
    /// Returns when all are done. A nested run executes inline. A panic in a task
    /// stops the hand-out of tasks and continues in the caller after the barrier.
    pub fn run(&self, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() || IN_TASK.get() {
            (0..tasks).for_each(body);
            return;
        }
        let mut turn = lock(&self.caller);
        let shared = &*self.shared;
        // SAFETY: the lifetime is erased only until `close` below, after which no
        // worker is inside the run; nothing in between can unwind past it.
        let body: Body<'static> = unsafe { std::mem::transmute::<Body<'_>, Body<'static>>(body) };
        // Large enough that the counter is not contended, small enough to balance.
        let chunk = (tasks / (self.threads() * 16)).max(1);
        let job = Job { body, tasks, chunk };
        // SAFETY: `turn` makes us the only caller, and the last run was closed and left.
        unsafe { *shared.job.get() = job };
        shared.next.0.store(0, Ordering::Relaxed);
        let number = (shared.state.0.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        // SeqCst pairs with the worker that announces its sleep and then looks again.
        shared.state.0.store(number << 32 | OPEN, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            drop(lock(&shared.lock));
            shared.wake.notify_all();
        }
        shared.take_tasks(&job);
        shared.close(&mut turn);
        let panic = lock(&shared.panic).take();
        drop(turn);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Splits `out` into pieces of `piece` elements (the last may be shorter) and calls
    /// `body(index, piece)` for each in parallel.
    pub fn run_pieces<T: Send>(&self, out: &mut [T], piece: usize, body: impl Fn(usize, &mut [T]) + Sync) {
        let pieces = out.len().div_ceil(piece);
        let out = Disjoint::new(out);
        self.run(pieces, &|index| {
            let start = index * piece;
            let len = piece.min(out.len() - start);
            // SAFETY: pieces do not overlap, and each index is visited once.
            body(index, unsafe { out.slice(start, len) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.lock));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks and has none of its own.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).field("isa", &self.isa).finish()
    }
}

impl Shared {
    /// Takes chunks of the job until none is left; panics are kept for the caller.
    fn take_tasks(&self, job: &Job) {
        IN_TASK.set(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let start = self.next.0.fetch_add(job.chunk, Ordering::Relaxed);
                if start >= job.tasks {
                    break;
                }
                (start..job.tasks.min(start + job.chunk)).for_each(job.body);
            }
        }));
        IN_TASK.set(false);
        if let Err(payload) = result {
            self.next.0.store(job.tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }

    /// Ends the run: keeps late workers out and waits for those inside.
    fn close(&self, patience: &mut Patience) {
        if self.state.0.fetch_and(!OPEN, Ordering::AcqRel) & INSIDE == 0 {
            return;
        }
        if patience.look(|| self.state.0.load(Ordering::Acquire) & INSIDE == 0) {
            return;
        }
        let asleep = Instant::now();
        let mut guard = lock(&self.lock);
        self.caller_parked.store(true, Ordering::SeqCst);
        while self.state.0.load(Ordering::SeqCst) & INSIDE != 0 {
            guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_parked.store(false, Ordering::Relaxed);
        patience.woken(asleep.elapsed());
    }

    /// Body of a worker thread.
    fn work(&self) {
        let (mut seen, mut patience) = (0, Patience::new());
        while let Some(number) = self.enter(seen, &mut patience) {
            seen = number;
            // SAFETY: we are inside an open run, so the job is published and stays
            // in place until we leave.
            let job = unsafe { *self.job.get() };
            self.take_tasks(&job);
            let left = self.state.0.fetch_sub(1, Ordering::SeqCst) - 1;
            if left & (OPEN | INSIDE) == 0 && self.caller_parked.load(Ordering::SeqCst) {
                drop(lock(&self.lock));
                self.done.notify_one();
            }
        }
    }

    /// Joins the next open run other than `seen` and returns its number; `None` at shutdown.
    fn enter(&self, seen: u64, patience: &mut Patience) -> Option<u64> {
        loop {
            let mut entered = None;
            let found = patience.look(|| {
                entered = self.try_enter(seen);
                entered.is_some() || self.shutdown.load(Ordering::Relaxed)
            });
            if found {
                return entered;
            }
            let asleep = Instant::now();
            let guard = lock(&self.lock);
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            let idle = |_: &mut ()| {
                let state = self.state.0.load(Ordering::SeqCst);
                let open = state & OPEN != 0 && state >> 32 != seen;
                !open && !self.shutdown.load(Ordering::SeqCst)
            };
            let woken = self.wake.wait_while(guard, idle);
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
            drop(woken.unwrap_or_else(PoisonError::into_inner));
            patience.woken(asleep.elapsed());
        }
    }

    fn try_enter(&self, seen: u64) -> Option<u64> {
        let mut state = self.state.0.load(Ordering::Relaxed);
        while state & OPEN != 0 && state >> 32 != seen {
            let entered = self.state.0.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
            match entered {
                Ok(_) => return Some(state >> 32),
                Err(now) => state = now,
            }
        }
        None
    }
}

/// The data behind our locks is valid whatever panicked, so poisoning is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
