//! Running time: the clock of all deadlines, which stands still while this process does not run.
//!
//! A process can be stopped and go on: Ctrl-Z and `fg`, a scheduler that suspends jobs, a frozen container, a paused
//! virtual machine, a debugger. The system's clock goes on meanwhile, and a deadline by that clock has passed when the
//! process wakes, although nobody has waited.
//!
//! No clock of the system says how long a process ran. But whoever has a deadline looks at its [`Clock`] at least every
//! [`LOOK`], so a much longer time between two looks is time in which its thread did not run. Of that, [`COUNTED`]
//! counts. After a stop ([`STOP`] or longer) the clock stands for [`SETTLE`] more: what was stopped with this process,
//! the other ranks, may go on a little later than it does, and must not be convicted by whoever wakes first.

use std::cell::RefCell;
use std::ops::{Add, Sub};
use std::time::{Duration, Instant};

/// Whoever has a deadline sleeps no longer than this without a look at its clock.
pub(crate) const LOOK: Duration = Duration::from_millis(100);
/// What counts at most of the time between two looks: room for a thread that does not get its turn at once.
const COUNTED: Duration = Duration::from_millis(250);
/// From here on it was not the scheduler that kept the thread waiting, but a stop.
const STOP: Duration = Duration::from_secs(1);
/// How long the clock stands after a stop.
const SETTLE: Duration = Duration::from_secs(1);

/// A time on a [`Clock`]; of no use with another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(
    /// Nanoseconds.
    u64,
);

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A time that no clock reaches, where the sum has no number.
impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, time: Duration) -> Moment {
        Moment(self.0.saturating_add(nanos(time)))
    }
}

/// The clock's beginning, where the difference has no number.
impl Sub<Duration> for Moment {
    type Output = Moment;
    fn sub(self, time: Duration) -> Moment {
        Moment(self.0.saturating_sub(nanos(time)))
    }
}

/// How much later it is; nothing if it is earlier.
impl Sub for Moment {
    type Output = Duration;
    fn sub(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The running time of one thread that has deadlines.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    /// When it was looked at last.
    looked: Instant,
    shown: Moment,
    /// How long it will stand yet.
    standing: Duration,
}

impl Clock {
    /// A clock that is looked at now.
    pub fn start() -> Clock {
        Clock::started(Instant::now())
    }

    fn started(at: Instant) -> Clock {
        Clock { looked: at, shown: Moment::default(), standing: Duration::ZERO }
    }

    /// The time now, at most [`LOOK`] and a moment after the last look.
    pub fn look(&mut self) -> Moment {
        self.look_at(Instant::now())
    }

    /// The time now, when there has been no deadline since the last look, and therefore no need to look.
    pub fn look_after_rest(&mut self) -> Moment {
        self.look();
        self.standing = Duration::ZERO;
        self.shown
    }

    /// What the last look showed.
    pub fn shown(&self) -> Moment {
        self.shown
    }

    fn look_at(&mut self, now: Instant) -> Moment {
        let gap = now.saturating_duration_since(self.looked);
        self.looked = now;
        let stood = gap.min(COUNTED).min(self.standing);
        self.standing -= stood;
        self.shown = self.shown + (gap.min(COUNTED) - stood);
        if gap >= STOP {
            self.standing = SETTLE;
        }
        self.shown
    }
}

/// A time limit in running time, for a loop that waits.
#[derive(Debug)]
pub(crate) struct Limit {
    clock: RefCell<Clock>,
    by: Moment,
}

impl Limit {
    /// So long from now.
    pub fn after(time: Duration) -> Limit {
        let clock = Clock::start();
        Limit { by: clock.shown() + time, clock: RefCell::new(clock) }
    }

    /// For what takes times of the system's clock, and looks at this limit meanwhile: when it passes, if this process is
    /// not stopped until then. If it is, that ends too early, and something is left afterwards: try again.
    pub fn if_not_stopped(&self) -> Instant {
        let now = Instant::now();
        // A time that no clock reaches is a year.
        now.checked_add(self.left()).unwrap_or(now + Duration::from_secs(1 << 25))
    }

    /// What is left; nothing once it has passed. To be asked at least every [`LOOK`].
    pub fn left(&self) -> Duration {
        self.by - self.clock.borrow_mut().look()
    }

    /// Whether it has passed. To be asked at least every [`LOOK`].
    pub fn has_passed(&self) -> bool {
        self.left().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn time_counts_while_the_thread_looks_and_not_while_it_is_stopped() {
        let origin = Instant::now();
        let mut clock = Clock::started(origin);
        let mut at = |real: u64| (clock.look_at(origin + ms(real)) - Moment::default()).as_millis();
        for look in 1..=20 {
            assert_eq!(at(100 * look), u128::from(100 * look));
        }
        // A busy machine: looks come late, and part of that counts.
        assert_eq!(at(2240), 2240);
        assert_eq!(at(2740), 2490);
        // Stopped for an hour; then the clock stands for a second, and goes on.
        let woken = 2740 + 3_600_000;
        assert_eq!(at(woken), 2740);
        for look in 1..=10 {
            assert_eq!(at(woken + 100 * look), 2740, "{look}");
        }
        assert_eq!(at(woken + 1100), 2840);
    }

    #[test]
    fn rest_is_no_stop_and_sums_have_no_end() {
        let mut clock = Clock::started(Instant::now().checked_sub(ms(5000)).expect("up for five seconds"));
        let now = clock.look_after_rest();
        assert!(now - Moment::default() <= COUNTED && clock.standing.is_zero());
        assert!(now + Duration::MAX > now && now - Duration::MAX <= now);
        assert!(now + Duration::MAX > now && now - Duration::MAX <= now);
        assert_eq!(now - (now + ms(5)), Duration::ZERO);
        assert!(Limit::after(Duration::ZERO).has_passed() && !Limit::after(Duration::MAX).has_passed());
    }
}
