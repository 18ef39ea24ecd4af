//! Which of the ranks that have ended badly is named, and gives the job its exit status: the one that failed first.
//!
//! Of several that have ended since the last look, one that a signal ended is more likely the cause than one that
//! returned an error. And a rank that aborts a communicator fails before all that are told of it, although those may be
//! at their ends sooner than it is at its own. It says so at the board before it tells them, so what they end with is
//! kept back here until it has ended, too.

use std::time::Duration;

use super::ranks::Ending;
use crate::running::Moment;

/// How long after an abort the rank that did it is waited for, and blamed for what has ended meanwhile. A program may go
/// on after it, and so may those that are told: what ends later is no consequence.
const AFTER_ABORT: Duration = Duration::from_secs(2);

/// Bad endings, until one of them is blamed.
#[derive(Default)]
pub(super) struct Blame {
    /// The rank that aborts, and until when that counts.
    aborting: Option<(usize, Moment)>,
    kept: Vec<(usize, Ending)>,
}

impl Blame {
    /// `rank` said at `now` that it aborts. The first counts.
    pub(super) fn aborts(&mut self, rank: usize, now: Moment) {
        if self.aborting.is_none_or(|(_, until)| now >= until) {
            self.aborting = Some((rank, now + AFTER_ABORT));
        }
    }

    /// When [`Blame::first`] may have an answer though nothing else has happened.
    pub(super) fn due(&self) -> Option<Moment> {
        self.aborting.map(|(_, until)| until).filter(|_| !self.kept.is_empty())
    }

    /// The rank that failed first, once that can be said. `ended`: those that have ended badly since the last call;
    /// `alive`: whether a rank has not ended.
    pub(super) fn first(
        &mut self,
        ended: Vec<(usize, Ending)>,
        alive: impl FnOnce(usize) -> bool,
        now: Moment,
    ) -> Option<(usize, Ending)> {
        self.kept.extend(ended);
        let aborted = self.aborting.filter(|&(_, until)| now < until).map(|(rank, _)| rank);
        let of_its = aborted.and_then(|rank| self.kept.iter().find(|(other, _)| *other == rank));
        if of_its.is_none() && aborted.is_some_and(alive) {
            return None;
        }
        let by_signal = || self.kept.iter().find(|(_, ending)| matches!(ending, Ending::Signal(..)));
        let first = of_its.or_else(by_signal).or(self.kept.first()).copied();
        self.kept.clear();
        first
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    const BAD: Ending = Ending::Status(7);
    const SIGNAL: Ending = Ending::Signal(Signal::SIGSEGV, false);

    fn rank(first: Option<(usize, Ending)>) -> Option<usize> {
        first.map(|(rank, _)| rank)
    }

    #[test]
    fn a_signal_is_more_likely_the_cause() {
        let (mut blame, now) = (Blame::default(), Moment::default());
        assert_eq!(rank(blame.first(vec![], |_| true, now)), None);
        assert_eq!(rank(blame.first(vec![(0, BAD), (2, SIGNAL)], |_| true, now)), Some(2));
        assert_eq!(rank(blame.first(vec![(1, BAD)], |_| true, now)), Some(1));
    }

    #[test]
    fn who_aborts_is_waited_for_and_blamed() {
        let now = Moment::default();
        let aborted = || {
            let mut blame = Blame::default();
            blame.aborts(3, now);
            assert_eq!(blame.due(), None, "nobody has ended");
            assert_eq!(rank(blame.first(vec![(0, SIGNAL)], |rank| rank == 3, now)), None);
            assert_eq!(blame.due(), Some(now + AFTER_ABORT));
            blame
        };
        let mut blame = aborted();
        blame.aborts(1, now);
        assert_eq!(rank(blame.first(vec![(1, BAD), (3, BAD)], |_| false, now)), Some(3));
        // Unless it ends well, or goes on.
        assert_eq!(rank(aborted().first(vec![], |_| false, now)), Some(0));
        let (mut blame, late) = (aborted(), now + AFTER_ABORT);
        assert_eq!(rank(blame.first(vec![], |_| true, late)), Some(0));
        // The next abort counts again.
        blame.aborts(2, late);
        assert_eq!(rank(blame.first(vec![(0, BAD)], |rank| rank == 2, late)), None);
    }
}
