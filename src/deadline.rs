//! Deadlines: how a length of time, however long, becomes a moment.
//!
//! Adding a [`Duration`] to an [`Instant`] panics where the clock does not reach, and `Duration::MAX` is how a caller
//! says "no deadline". So times that a user gave are added to an `Instant` here and nowhere else; moments of the clock of
//! time in which this process ran ([`running`](crate::running)) take any.

use std::time::{Duration, Instant};

/// A century: longer than anything runs, and short enough that a moment so far away can be added to again.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The moment `after` after `from`, at most a century later.
#[inline]
pub(crate) fn deadline(from: Instant, after: Duration) -> Instant {
    from + after.min(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_too_long() {
        let now = Instant::now();
        assert_eq!(deadline(now, Duration::from_millis(7)) - now, Duration::from_millis(7));
        let far = deadline(now, Duration::MAX);
        assert!(far - now == NEVER && deadline(far, Duration::MAX) > far);
    }
}
