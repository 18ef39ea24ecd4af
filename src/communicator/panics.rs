//! What becomes of an operation that panics: it fails its communicator, on every rank.
//!
//! A user's operation may panic, and a callback of another language unwinds to say that it failed. That can happen
//! anywhere between two steps of a schedule: half a message is on its way, the rank's vector lies in an exchange that
//! others still read, its registered buffers are lent. If the next operation began there, a peer would take its first
//! bytes for the rest of the message, and threads would read memory that is being written. So no operation begins after
//! one that unwound. Every collective on host memory, in whichever form it was called, goes through
//! [`Inner::operation`]: there the panic ends, with a verdict that stands before the turn is passed on.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use maypole_collectives::ReduceOp;

use super::raw::CallbackFailed;
use super::{Call, Inner, Work};
use crate::engine::wait;
use crate::error::{Error, Result, Verdict};

impl Inner {
    /// Run operation `call` when ticket `number` comes up: `run` gets what an operation works with.
    ///
    /// # Errors
    /// Those of `run`. [`Error::Failed`] if it panics.
    #[inline]
    pub(super) fn operation(&self, number: u64, call: &Call, run: impl FnOnce(&mut Work) -> Result<()>) -> Result<()> {
        let _ticket = self.turn(number)?;
        // SAFETY: this thread holds the ticket to the end of the function; after a panic this borrow is used no more.
        let work = unsafe { self.work() };
        work.sequence += 1;
        let _called_out = matches!(call.op, ReduceOp::User(_)).then(|| self.turns.call_out());
        // An error is large: boxed, or success would move as many bytes on its way out of the catching.
        match catch_unwind(AssertUnwindSafe(|| run(work).map_err(Box::new))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(*error),
            Err(payload) => Err(self.unwound(call, &*payload)),
        }
    }

    /// Operation `call` unwound. The caller holds its ticket.
    #[cold]
    fn unwound(&self, call: &Call, payload: &(dyn Any + Send)) -> Error {
        let error = self.panicked(payload, || match call.op {
            ReduceOp::User(_) => format!("a user's operation panicked in {}", call.collective.name()),
            _ => format!("{} panicked, which is a defect in Maypole", call.collective.name()),
        });
        // SAFETY: the caller holds the ticket, and the operation's own borrow is used no more.
        let work = unsafe { self.work() };
        // The caller gets its buffers back: nobody may read there any more.
        work.engine.links.loans.take_back(self.rank);
        error
    }

    /// Something unwound on this rank: nobody can go on. `what` says what it was, unless `payload` says more.
    #[cold]
    pub(super) fn panicked(&self, payload: &(dyn Any + Send), what: impl FnOnce() -> String) -> Error {
        let words = payload.downcast_ref::<&str>().copied();
        let words = words.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let why = match (payload.downcast_ref::<CallbackFailed>(), words) {
            (Some(CallbackFailed(why)), _) => why.clone(),
            (None, Some(words)) => format!("{}: {words}", what()),
            (None, None) => what(),
        };
        let verdict = Verdict::Aborted { rank: self.rank, why };
        self.jury.report(self.context, verdict.clone());
        // Not declared here at once: as in `abort`.
        wait::for_verdict(&self.watch, verdict.clone());
        // Whatever the verdict is: it may be a death, after which operations go on, but not this rank's.
        self.give_up();
        Error::Failed { rank: self.rank, verdict: self.watch.verdict().unwrap_or(verdict) }
    }
}
