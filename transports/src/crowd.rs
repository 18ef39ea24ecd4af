//! Whether other programs want the cores on which this process' ranks poll.
//!
//! A rank knows the ranks of its world on its host, and polls long only where each has a core of its own. It cannot know
//! what else runs there: other containers of one machine, a data loader, another job. Who polls on a core that others
//! want uses up its share of it, and the scheduler lets it wait for milliseconds just when its news has come; who sleeps
//! is run as soon as it is woken. So a wait that has become long gives its core away once. Where nobody wants the core,
//! that takes half a microsecond; where it takes longer, somebody else has run in between. For a while after that no
//! wait polls, and the longer the more often this is found.
//!
//! [`Idle`](crate::wait::Idle) asks and tells. To poll and then to sleep is the two-phase blocking of Ousterhout's
//! "Scheduling Techniques for Concurrent Systems" (1982), which has one length of the first phase for all machines.

use std::sync::OnceLock;
// Not those of loom: what is kept here is a guess, on which no protocol relies.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A core that comes back later than this was somebody else's meanwhile.
const TAKEN: Duration = Duration::from_micros(20);
/// How long waits do not poll after that, at first and at most.
const STAY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// What this process has found.
pub(crate) static CORES: Crowd = Crowd::new();

/// See the [module](self). Times are nanoseconds since this process first asked; all threads write them, and what one
/// overwrites of another costs a guess.
#[derive(Debug)]
pub(crate) struct Crowd {
    /// Until when waits do not poll; 0: they do.
    until: AtomicU64,
    /// What `until` was last.
    last: AtomicU64,
    /// How long that was.
    stay: AtomicU64,
}

impl Crowd {
    const fn new() -> Crowd {
        Crowd { until: AtomicU64::new(0), last: AtomicU64::new(0), stay: AtomicU64::new(0) }
    }

    /// Whether others want the cores, as far as is known. One load where they do not.
    #[inline]
    pub fn is_here(&self) -> bool {
        self.until.load(Ordering::Relaxed) != 0 && self.stays(now())
    }

    #[cold]
    fn stays(&self, now: u64) -> bool {
        let stays = now < self.until.load(Ordering::Relaxed);
        if !stays {
            self.until.store(0, Ordering::Relaxed);
        }
        stays
    }

    /// Give the core away once, and see whether somebody took it.
    #[cold]
    pub fn look(&self) -> bool {
        let begun = Instant::now();
        std::thread::yield_now();
        let taken = begun.elapsed() >= TAKEN;
        if taken {
            self.met(now());
        }
        taken
    }

    /// Somebody else has had the core.
    fn met(&self, now: u64) {
        let (last, stay) = (self.last.load(Ordering::Relaxed), self.stay.load(Ordering::Relaxed));
        // Soon after it was last so: it has been so all the time.
        let again = now.saturating_sub(last) < stay;
        let [least, most] = [STAY.0, STAY.1].map(|stay| stay.as_nanos() as u64);
        let stay = if again { (2 * stay).min(most) } else { least };
        self.stay.store(stay, Ordering::Relaxed);
        self.last.store(now + stay, Ordering::Relaxed);
        self.until.store(now + stay, Ordering::Relaxed);
    }
}

fn now() -> u64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    // From 1 on: 0 has a meaning of its own.
    BEGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_crowd_that_comes_back_stays_longer() {
        let crowd = Crowd::new();
        assert!(!crowd.is_here());
        let mut now = 1000 * MS;
        for stay in [10, 20, 40, 80, 160, 320, 640, 1000, 1000] {
            crowd.met(now);
            assert!(crowd.stays(now + stay * MS - 1), "{stay}");
            assert!(!crowd.stays(now + stay * MS), "{stay}");
            now += stay * MS + 1;
        }
        now += 1001 * MS;
        crowd.met(now);
        assert!(!crowd.stays(now + 10 * MS));
        assert!(!crowd.is_here(), "it is over, and no clock is needed to know");
    }
}
