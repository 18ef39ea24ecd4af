//! Whose turn it is: operations of one communicator run one at a time, in the order in which they were called.
//!
//! A ticket lock. Calling takes a ticket; running waits for its number. A blocking call whose ticket is next runs at
//! once on the caller's thread; an asynchronous one is carried to a stream's thread, which waits for the number there.
//!
//! Two waits would never end. A user's operation that calls the communicator that runs it waits for itself: it gets no
//! ticket. And the operation before may be stuck, in code of the user's, after its communicator has failed: whoever
//! waits then gives its number up, and those that pass the turn on skip it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use maypole_transports::lock::{Condvar, Mutex, MutexGuard};

use super::{Inner, Work};
use crate::error::{Error, Result, Verdict};
use crate::watch::Watch;

/// The longest sleep without a look around.
const NAP: Duration = Duration::from_millis(100);

thread_local! {
    /// The communicators whose operations this thread is in, in code of the user's. The destructor of a C++ static may
    /// communicate when the thread has lost this; then nobody looks whether an operation waits for itself.
    static INSIDE: RefCell<Vec<*const Turns>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
pub(super) struct Turns {
    next: AtomicU64,
    serving: AtomicU64,
    waiting: AtomicU64,
    /// Some thread is in code of the user's with the present ticket.
    called_out: AtomicBool,
    /// The numbers that were given up and are not served yet. Each counts as waiting.
    given_up: Mutex<BTreeSet<u64>>,
    changed: Condvar,
}

/// The right to run when the number comes up. Every ticket must be used, or those after it wait for ever; dropping it
/// passes the turn on.
pub(super) struct Ticket<'a> {
    turns: &'a Turns,
    number: u64,
}

/// This thread is in code of the user's, with the present ticket.
pub(super) struct CalledOut<'a>(&'a Turns);

impl Turns {
    /// The next number. `None` for a user's operation that would wait for itself.
    #[inline]
    fn take(&self) -> Option<u64> {
        self.take_several(1).map(|numbers| numbers.start)
    }

    /// Whether a number was taken that is not done.
    pub fn are_taken(&self) -> bool {
        self.next.load(Ordering::Relaxed) != self.serving.load(Ordering::Acquire)
    }

    /// The next `count` numbers; as [`Turns::take`].
    #[inline]
    fn take_several(&self, count: usize) -> Option<Range<u64>> {
        // What this thread itself has stored it sees; what another has, is none of its business.
        if self.called_out.load(Ordering::Relaxed) && self.is_inside() {
            return None;
        }
        let first = self.next.fetch_add(count as u64, Ordering::Relaxed);
        Some(first..first + count as u64)
    }

    #[cold]
    fn is_inside(&self) -> bool {
        let here = INSIDE.try_with(|inside| inside.borrow().iter().any(|turns| std::ptr::eq(*turns, self)));
        here.unwrap_or(false)
    }

    /// The holder of the present ticket is about to run code of the user's, until the value that this returns goes.
    pub fn call_out(&self) -> CalledOut<'_> {
        let _ = INSIDE.try_with(|inside| inside.borrow_mut().push(self));
        self.called_out.store(true, Ordering::Relaxed);
        CalledOut(self)
    }

    /// Wait until `number` is served. `None`: a verdict stands on `watch`, and the number was given up.
    #[inline]
    pub fn enter(&self, number: u64, watch: &Watch) -> Option<Ticket<'_>> {
        if self.serving.load(Ordering::Acquire) != number && !self.wait(number, watch) {
            return None;
        }
        Some(Ticket { turns: self, number })
    }

    #[cold]
    fn wait(&self, number: u64, watch: &Watch) -> bool {
        // The count is raised under the lock and before the last look, and looked at after serving has moved on; both
        // are sequentially consistent, so either this look sees the new number or the leaver sees the count and takes
        // the lock to wake, and to skip what was given up after this look.
        let mut given_up = self.given_up.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut patient = true;
        while self.serving.load(Ordering::SeqCst) != number {
            if !patient {
                given_up.insert(number);
                return false;
            }
            if self.changed.wait_for(&mut given_up, NAP) {
                MutexGuard::unlocked(&mut given_up, crate::interrupt::look);
                patient = !watch.is_over();
            }
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        true
    }

    /// Wake those that wait, and skip those that no longer do.
    #[cold]
    fn wake(&self) {
        let mut given_up = self.given_up.lock();
        let mut number = self.serving.load(Ordering::SeqCst);
        // Nobody else moves on from a number that was given up: whoever could has to come by here.
        while given_up.remove(&number) {
            number += 1;
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            self.serving.store(number, Ordering::SeqCst);
        }
        self.changed.notify_all();
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
            self.turns.wake();
        }
    }
}

impl Drop for CalledOut<'_> {
    fn drop(&mut self) {
        self.0.called_out.store(false, Ordering::Relaxed);
        let _ = INSIDE.try_with(|inside| inside.borrow_mut().pop());
    }
}

impl Inner {
    /// A ticket's number for the next operation.
    ///
    /// # Errors
    /// [`Error::Argument`] in a user's operation of this communicator, which would wait for itself.
    #[inline]
    pub(super) fn number(&self) -> Result<u64> {
        self.turns.take().ok_or_else(|| self.waits_for_itself())
    }

    /// [`Inner::number`] for `count` operations in a row.
    pub(super) fn numbers(&self, count: usize) -> Result<Range<u64>> {
        self.turns.take_several(count).ok_or_else(|| self.waits_for_itself())
    }

    #[cold]
    fn waits_for_itself(&self) -> Error {
        let what = "a user's operation called the communicator that runs it, and would wait for itself; it may use \
                    other communicators, a duplicate for one"
            .to_string();
        Error::Argument { rank: self.rank, what }
    }

    /// Wait for the turn of `number`.
    ///
    /// # Errors
    /// [`Error::Failed`] when the communicator has failed and the operation before does not end; [`Error::Argument`] in a
    /// child of the process that is this rank.
    #[inline]
    pub(super) fn turn(&self, number: u64) -> Result<Ticket<'_>> {
        self.owner.check()?;
        self.turns.enter(number, &self.watch).ok_or_else(|| self.failed())
    }

    /// Do something between two operations.
    ///
    /// # Errors
    /// Those of [`Inner::number`] and [`Inner::turn`]: it was not done.
    pub(super) fn between<T>(&self, change: impl FnOnce(&mut Work) -> T) -> Result<T> {
        let _ticket = self.turn(self.number()?)?;
        // SAFETY: this thread holds the ticket to the end of the function.
        Ok(change(unsafe { self.work() }))
    }

    /// [`Inner::between`] for what matters to later operations only: where the communicator has failed there are none, nor
    /// in a child of the process that is this rank.
    ///
    /// # Panics
    /// In a user's operation of this communicator.
    pub(super) fn set(&self, change: impl FnOnce(&mut Work)) {
        if self.owner.is_here()
            && let Err(error @ Error::Argument { .. }) = self.between(change)
        {
            panic!("{error}");
        }
    }

    /// The error of a communicator that has failed.
    #[cold]
    fn failed(&self) -> Error {
        let unknown = || Verdict::Aborted { rank: self.rank, why: "no reason given".into() };
        Error::Failed { rank: self.rank, verdict: self.watch.verdict().unwrap_or_else(unknown) }
    }
}
