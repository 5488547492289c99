//! How long a thread looks for what it waits for before it sleeps.
//!
//! Looking costs nothing while cores are free, and saves the microseconds that sleeping and waking take; where another thread wants
//! the core it is a loss twice over. So the time is learned: it doubles after a sleep that was short, halves after one that was
//! long, and falls to the least at once when a look took so long that another thread must have run in between.

use std::time::{Duration, Instant};

/// The longest time that a thread looks.
pub(super) const LONGEST: Duration = Duration::from_micros(50);

/// The shortest.
const SHORTEST: Duration = Duration::from_micros(2);

/// Two readings of the clock that lie further apart had another thread between them: time slices are longer, all else is shorter.
const SLICE: Duration = Duration::from_micros(200);

/// Looks between two readings of the clock: about a microsecond.
const LOOKS: usize = 16;

/// What a thread has learned about its waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Time to look.
    time: Duration,
}

impl Patience {
    pub(super) const fn new() -> Patience {
        Patience { time: LONGEST }
    }

    /// Looks until `ready`; false when it is time to sleep.
    pub(super) fn look(&mut self, mut ready: impl FnMut() -> bool) -> bool {
        let mut few = || {
            (0..LOOKS).any(|_| {
                let ready = ready();
                if !ready {
                    std::hint::spin_loop();
                }
                ready
            })
        };
        // Most waits end here and read no clock.
        if few() {
            return true;
        }
        let start = Instant::now();
        let mut last = start;
        loop {
            if few() {
                return true;
            }
            let now = Instant::now();
            if now - last > SLICE {
                self.time = SHORTEST;
                return false;
            }
            if now - start > self.time {
                return false;
            }
            last = now;
        }
    }

    /// Learns from the end of a sleep.
    pub(super) fn woken(&mut self, slept: Duration) {
        self.time = if slept < 2 * LONGEST { (2 * self.time).min(LONGEST) } else { (self.time / 2).max(SHORTEST) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_learned() {
        let mut patience = Patience::new();
        assert!(patience.look(|| true) && patience.time == LONGEST);
        // In vain, and rightly so: less each time.
        for _ in 0..8 {
            assert!(!patience.look(|| false));
            patience.woken(Duration::from_secs(1));
        }
        assert_eq!(patience.time, SHORTEST);
        // Sleeps that were short after all.
        for _ in 0..8 {
            patience.woken(LONGEST);
        }
        assert_eq!(patience.time, LONGEST);
        // The core was somebody else's for a while.
        let mut looks = 0;
        let found = patience.look(|| {
            looks += 1;
            if looks == LOOKS + 3 {
                std::thread::sleep(2 * SLICE);
            }
            false
        });
        assert!(!found && patience.time == SHORTEST);
    }
}
