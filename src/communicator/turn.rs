//! Whose turn it is: operations of one communicator run one at a time, in the order in which they were called.
//!
//! A ticket lock. Calling takes a ticket; running waits for its number. A blocking call whose ticket is next runs at
//! once on the caller's thread; an asynchronous one is carried to a stream's thread, which waits for the number there.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// The longest sleep without a look around.
const NAP: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Turns {
    next: AtomicU64,
    serving: AtomicU64,
    waiting: AtomicU64,
    lock: Mutex<()>,
    changed: Condvar,
}

/// The right to run when the number comes up. Every ticket must be used, or those after it wait for ever; dropping it
/// passes the turn on.
pub(super) struct Ticket<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Turns {
    /// The next number.
    #[inline]
    pub fn take(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The next `count` numbers.
    pub fn take_several(&self, count: usize) -> Range<u64> {
        let first = self.next.fetch_add(count as u64, Ordering::Relaxed);
        first..first + count as u64
    }

    /// Whether a number was taken that is not done.
    pub fn are_taken(&self) -> bool {
        self.next.load(Ordering::Relaxed) != self.serving.load(Ordering::Acquire)
    }

    /// Wait until `number` is served.
    #[inline]
    pub fn enter(&self, number: u64) -> Ticket<'_> {
        if self.serving.load(Ordering::Acquire) != number {
            self.wait(number);
        }
        Ticket { turns: self, number }
    }

    #[cold]
    fn wait(&self, number: u64) {
        // The count is raised under the lock and before the last look, and looked at after serving has moved on; both
        // are sequentially consistent, so either this look sees the new number or the leaver sees the count and takes
        // the lock to wake.
        let mut guard = self.lock.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while self.serving.load(Ordering::SeqCst) != number {
            if self.changed.wait_for(&mut guard, NAP).timed_out() {
                MutexGuard::unlocked(&mut guard, crate::interrupt::look);
            }
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Ticket<'_> {
    /// Leave the number being served: whoever entered with it enters once more.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Ticket<'_> {
    #[inline]
    fn drop(&mut self) {
        self.turns.serving.store(self.number + 1, Ordering::SeqCst);
        if self.turns.waiting.load(Ordering::SeqCst) != 0 {
            let _guard = self.turns.lock.lock();
            self.turns.changed.notify_all();
        }
    }
}
