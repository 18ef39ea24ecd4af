//! Messages that are expected from whoever sends first.
//!
//! Such a receive is posted like any other, and takes its place in the order of the calls: what a
//! rank sends goes to the earliest receive with its tag that it fits, be that one from this rank or
//! from anyone ([`Anyone::take`]). While one waits, what comes from every rank is looked at; from
//! when it has a sender it is an ordinary message of that rank's.

use std::collections::VecDeque;

use super::peer::{Failure, Incoming};
use super::tally::Tally;
use crate::fingerprint::Fingerprint;

/// The receives from anyone that no message has begun to come for, earliest first.
#[derive(Default)]
pub(super) struct Anyone {
    expected: VecDeque<Incoming>,
    /// How many were posted so far.
    pub posted: u64,
    /// Where the latest such message came from: the ranks take turns, beginning behind it.
    pub latest: usize,
}

impl Anyone {
    /// Expect a message.
    pub fn expect(&mut self, message: Incoming) {
        self.expected.push_back(message);
    }

    /// Whether none is expected.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.expected.is_empty()
    }

    /// The earliest.
    pub fn first(&self) -> Option<Fingerprint> {
        self.expected.front().map(|message| message.operation)
    }

    /// How many wait for a message with this tag.
    pub fn waiting_for(&self, tag: u32) -> usize {
        self.expected.iter().filter(|message| message.operation.tag() == tag).count()
    }

    /// The receive that a message `theirs` of rank `from` is for, if one that was posted `before`
    /// that place in the order of all calls has its tag. It is that rank's from now on, as number
    /// `number` of those that this rank receives from it.
    ///
    /// # Errors
    /// It expects another count or type.
    pub fn take(
        &mut self,
        (from, number): (usize, &mut u64),
        theirs: &Fingerprint,
        before: Option<u64>,
    ) -> Result<Option<Incoming>, Box<Failure>> {
        let tag = theirs.tag();
        let Some(at) = self.expected.iter().position(|message| message.operation.tag() == tag) else {
            return Ok(None);
        };
        if before.is_some_and(|before| self.expected[at].place > before) {
            return Ok(None);
        }
        let message = &mut self.expected[at];
        message.operation = message.operation.from_rank(from, *number + 1);
        // It stays where it is if it does not fit: all are counted off when the communicator fails.
        message.check(from, theirs)?;
        *number += 1;
        self.latest = from;
        message.tally.came_from(from);
        Ok(self.expected.remove(at))
    }

    /// The one that is counted on `tally`.
    pub fn find(&self, tally: Tally) -> Option<Fingerprint> {
        self.expected.iter().find(|message| message.tally == tally).map(|message| message.operation)
    }

    /// Nothing will come any more: count off all as failed.
    pub fn fail(&mut self) {
        self.expected.drain(..).for_each(|message| message.tally.fail());
    }
}
