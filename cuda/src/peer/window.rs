//! Publications: one member writes, all others read.
//!
//! # The protocol
//!
//! Each member has two *places*; its publication number `k` (from 0) lies in place `k mod 2`. Shared are
//! `published[p]`, written by p's stream alone: how many of p's publications can be read; and `done[p][r]`, written by
//! r's stream alone: with how many of p's publications r has finished. On the streams stand
//!
//! * p, to publish number `k`: for every other r *wait* `done[p][r] >= k - 1` (not for k < 2); a kernel writes header
//!   and data into place `k mod 2`; *write* `published[p] = k + 1`.
//! * r, to fetch number `k` of p: *wait* `published[p] >= k + 1`; kernels read the place; *write* `done[p][r] = k + 1`.
//!
//! *What is read is complete.* The kernel that wrote the place ended before p's write of `published`, whose barrier
//! makes its stores visible; r's kernels come after r's wait.
//!
//! *No place is written while it is read.* Publication `k` takes the place of `k - 2`. p's kernel comes after its waits
//! for `done >= k - 1`, which is `(k - 2) + 1`: every r has written it after the kernels that read `k - 2` had ended.
//! Here the write's barrier orders loads before it, which a barrier of system scope does as well.
//!
//! *Why two places suffice, without a barrier at an operation's end.* A member that has fetched all it needs goes on,
//! to the next operation too, and publishes number `k + 1` while others still read `k`: it lies in the other place.
//! Only `k + 2` must wait, and only for those who have not finished with `k`. So no member is ever more than two
//! publications ahead of the slowest reader, and a reader finds each publication untouched until it has said that it is
//! done with it. With one place every publication would wait for all readers of the last; a third would help only where
//! ranks drift by more than a whole publication.
//!
//! *Cyclic counters.* All values that are compared at a time differ by 2 at most: `k - 1 <= done <= published <= k + 1`
//! where `k` is the publication that is being written. So comparison modulo 2^32 in half the circle never errs. (A
//! verdict sets words 2^30 ahead, which lets every wait pass and leaves them there: the communicator has ended then.)
//!
//! *No deadlock of its own.* What a wait on one stream waits for is a write on another, queued by an operation with the
//! same number or an earlier one. Ranks queue operations in one order, and within an operation the schedules are
//! verified with one publication of credit.
//!
//! # Loans
//!
//! A publication may say, in its header, where the data lies instead of having it. Nothing changes but this: its owner
//! must not touch what it has lent before all others are done, so at the operation's end its stream *waits* until all
//! `done[p][r]` have come to everything published ([`Window::wait_unread`]).

use super::{Place, Staging, Words};
use crate::commands::{Commands, Word};
use crate::driver::Result;

/// What one member knows of another.
#[derive(Debug)]
struct Neighbour {
    published: Word,
    /// This member's count for that publisher.
    done: Word,
    /// That reader's count for this member's publications.
    reads: Word,
    places: [Place; 2],
    /// How many of its publications this member has fetched.
    fetched: u32,
    /// Up to which of them the streams have waited already.
    seen: u32,
}

/// One member's publications and those of the others. All methods only queue commands. The memory of words and staging
/// must stay until those have run.
#[derive(Debug)]
pub struct Window {
    me: usize,
    published: u32,
    members: Vec<Neighbour>,
}

impl Window {
    /// The window of member `me`, at the beginning of everything: all words are 0.
    pub fn new(words: &Words, staging: &Staging, me: usize) -> Window {
        let neighbour = |other| Neighbour {
            published: words.published(other),
            done: words.done(other, me),
            reads: words.done(me, other),
            places: [0, 1].map(|parity| staging.place(other, parity)),
            fetched: 0,
            seen: 0,
        };
        Window { me, published: 0, members: (0..words.members()).map(neighbour).collect() }
    }

    /// How many publications this member has made, modulo 2^32: the number of the next one.
    pub fn published(&self) -> u32 {
        self.published
    }

    /// How many publications of `from` this member has fetched: the number of the next one.
    pub fn fetched(&self, from: usize) -> u32 {
        self.members[from].fetched
    }

    /// The place for the next publication, free when the stream comes to what is queued next: a kernel that writes
    /// header and data, or the header only. [`Window::end_publish`] follows.
    ///
    /// # Errors
    /// The driver's.
    pub fn begin_publish(&mut self, commands: &mut Commands<'_>) -> Result<Place> {
        let free = self.published.wrapping_sub(1);
        for (_, other) in self.others() {
            // Before the second publication nothing was read, and 0 is at least -1.
            commands.wait(&other.reads, free)?;
        }
        Ok(self.members[self.me].places[(self.published & 1) as usize])
    }

    /// What was queued since [`Window::begin_publish`] makes the publication; the others can read it when it has run.
    ///
    /// # Errors
    /// The driver's.
    pub fn end_publish(&mut self, commands: &mut Commands<'_>) -> Result<()> {
        self.published = self.published.wrapping_add(1);
        commands.write(&self.members[self.me].published, self.published)
    }

    /// The place of publication `number` of member `from`, readable when the stream comes to what is queued next. For
    /// others' publications, [`Window::end_fetch`] follows, once. Own ones need no wait, and stay until the next but
    /// one.
    ///
    /// # Errors
    /// The driver's.
    pub fn begin_fetch(&mut self, commands: &mut Commands<'_>, from: usize, number: u32) -> Result<Place> {
        let me = self.me;
        let member = &mut self.members[from];
        let ready = number.wrapping_add(1);
        if from != me && (ready.wrapping_sub(member.seen) as i32) > 0 {
            commands.wait(&member.published, ready)?;
            member.seen = ready;
        }
        Ok(member.places[(number & 1) as usize])
    }

    /// Everything up to publication `number` of member `from` has been read when the stream comes here.
    ///
    /// # Errors
    /// The driver's.
    pub fn end_fetch(&mut self, commands: &mut Commands<'_>, from: usize, number: u32) -> Result<()> {
        if from == self.me {
            return Ok(());
        }
        let member = &mut self.members[from];
        member.fetched = number.wrapping_add(1);
        commands.write(&member.done, member.fetched)
    }

    /// The stream waits until all others have finished with everything that this member has published. An operation
    /// that has lent ends with this.
    ///
    /// # Errors
    /// The driver's.
    pub fn wait_unread(&mut self, commands: &mut Commands<'_>) -> Result<()> {
        for (_, other) in self.others() {
            commands.wait(&other.reads, self.published)?;
        }
        Ok(())
    }

    fn others(&self) -> impl Iterator<Item = (usize, &Neighbour)> {
        self.members.iter().enumerate().filter(|(member, _)| *member != self.me)
    }
}
