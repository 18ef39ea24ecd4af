//! Publications: one member writes, all others read.
//!
//! # The protocol
//!
//! Members publish and fetch in *rounds*, the same for all of them: in a round each member makes as many publications as
//! its program has, none to two, and fetches every publication of every other, also those of which it needs nothing.
//! Rounds are counted in *turns*. A round has as many as the member with most publications makes, and the `i`-th
//! publication of a member in the round has the `i`-th of them. All members know how many turns a round has, so all count
//! alike, whether they publish or not.
//!
//! Each member has two *places*; its publication number `k` (from 0) lies in place `k mod 2`. Shared are
//! `published[p]`, written by p's stream alone: how many of p's publications can be read; and `finished[r]`, written by
//! r's stream alone: `t` says that r has finished with everybody's publications of all turns below `t`. One word for each
//! reader, whoever has published: with a word for each pair a reader would write as many as there are publishers, a
//! microsecond each. On the streams stand
//!
//! * p, to publish number `k`: for every other r *wait* `finished[r] > t`, where `t` is the turn of number `k - 2` (not for
//!   k < 2); a kernel writes header and data into place `k mod 2`; *write* `published[p] = k + 1`.
//! * r, to fetch number `k` of p: *wait* `published[p] >= k + 1`; kernels read the place. When the last publication of a
//!   turn has been read, and those of all turns before: *write* `finished[r]` = the next turn.
//!
//! *What is read is complete.* The kernel that wrote the place ended before p's write of `published`, whose barrier
//! makes its stores visible, or wrote that word itself behind such a barrier; r's kernels come after r's wait.
//!
//! *No place is written while it is read.* Publication `k` takes the place of `k - 2`, which has turn `t`. p's kernel comes
//! after its waits for `finished > t`: every r has written it after the kernels that read all of turn `t`, `k - 2` among it,
//! had ended, or had read and come to their barrier. Here the write's barrier orders loads before it, which a barrier of
//! system scope does as well.
//!
//! *No deadlock of its own.* A member makes two publications in a round at most, so number `k - 2` was made in an earlier
//! round, and what p waits for is that others come to an end of *earlier* rounds. Nothing that a stream has to do for
//! those waits for this round: `published` is written by whoever published there, and `finished` for rounds before them.
//! So the earliest round that is not at its end on all streams comes to its end, as the schedules are verified to with
//! one publication of credit. (With a third publication in one round, p would wait for others to read the first, and they
//! might stand before something of p's that comes later. No schedule has three, which the planner's test sees to.)
//!
//! *Why two places suffice, without a barrier at an operation's end.* A member that has fetched all it needs goes on,
//! to the next operation too, and publishes number `k + 1` while others still read `k`: it lies in the other place.
//! Only `k + 2` must wait, and only for those who have not finished with the turn of `k`. With one place every publication
//! would wait for all readers of the last; a third would help only where ranks drift by more than a whole publication.
//!
//! *What is lost* against a word for each pair is small: p waits until r has read the turn of `k - 2` from *everybody*. A
//! job reads all publications of a turn at once, and r could not publish its own next without them.
//!
//! *Cyclic counters.* `published[p]` differs by 2 at most from what is compared with it: `k - 1` of p's publications have
//! been fetched by r where p is at `k`. `finished` counts everybody's turns, and a member may publish for the last time
//! long before it publishes again. Then `t` is that old. Comparison modulo 2^32 errs where a value is more than 2^31
//! behind, so no older turn than [`FAR`] back is ever waited for; to wait for a later one is as safe, if it comes. It does:
//! a member that has written nothing for [`SILENT`] turns (as it has fetched nothing: the root of broadcasts) writes at a
//! round's end how far it is, so `finished[r]` is never further behind r's own count than that. Ahead of p's count it is
//! by a few turns for each member: of each round somebody is the publisher, who is two publications ahead of p at most.
//! (A verdict sets words 2^30 ahead, which lets every wait pass and leaves them there: the communicator has ended then.)
//!
//! # Loans
//!
//! A publication may say, in its header, where the data lies instead of having it. Nothing changes but this: its owner
//! must not touch what it has lent before all others are done, so at the operation's end its stream *waits* until all
//! `finished[r]` have passed the turn of its last publication ([`Window::wait_unread`]).

use super::{Place, Staging, Words};
use crate::commands::{Commands, Word};
use crate::driver::Result;

/// How far back a turn is waited for at most.
pub const FAR: u32 = 4096;
/// For how many turns a member may leave its word as it is.
pub const SILENT: u32 = 1024;

/// What one member knows of another.
#[derive(Debug)]
struct Neighbour {
    published: Word,
    finished: Word,
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
    /// The first turn of the current round.
    turn: u32,
    /// Publications made in it.
    made: u32,
    /// What `finished` must have come to before a place can be written again: the turn of what lies there, plus 1.
    taken: [u32; 2],
    /// What this member's word `finished` was last set to.
    written: u32,
    members: Vec<Neighbour>,
}

impl Window {
    /// The window of member `me`, at the beginning of everything: all words are 0.
    pub fn new(words: &Words, staging: &Staging, me: usize) -> Window {
        let neighbour = |other| Neighbour {
            published: words.published(other),
            finished: words.finished(other),
            places: [0, 1].map(|parity| staging.place(other, parity)),
            fetched: 0,
            seen: 0,
        };
        let members = (0..words.members()).map(neighbour).collect();
        Window { me, published: 0, turn: 0, made: 0, taken: [0; 2], written: 0, members }
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
        let parity = (self.published & 1) as usize;
        self.wait_finished(commands, self.taken[parity])?;
        Ok(self.members[self.me].places[parity])
    }

    /// What was queued since [`Window::begin_publish`] makes the publication; the others can read it when it has run.
    ///
    /// # Errors
    /// The driver's.
    pub fn end_publish(&mut self, commands: &mut Commands<'_>) -> Result<()> {
        self.taken[(self.published & 1) as usize] = self.turn.wrapping_add(self.made + 1);
        self.made += 1;
        self.published = self.published.wrapping_add(1);
        commands.write(&self.members[self.me].published, self.published)
    }

    /// The place of publication `number` of member `from`, readable when the stream comes to what is queued next. For
    /// others' publications, [`Window::end_fetch`] follows, once, and [`Window::finish`] when a turn has been read. Own
    /// ones need no wait, and stay until the next but one.
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

    /// Publication `number` of member `from` is the latest that was fetched.
    pub fn end_fetch(&mut self, from: usize, number: u32) {
        if from != self.me {
            self.members[from].fetched = number.wrapping_add(1);
        }
    }

    /// Everybody's publications of the first `turns` turns of this round have been read when the stream comes here.
    ///
    /// # Errors
    /// The driver's.
    pub fn finish(&mut self, commands: &mut Commands<'_>, turns: u32) -> Result<()> {
        let finished = self.turn.wrapping_add(turns);
        if finished == self.written {
            return Ok(());
        }
        self.written = finished;
        commands.write(&self.members[self.me].finished, finished)
    }

    /// A round of `turns` turns is at its end: this member has published and fetched all there was for it.
    ///
    /// # Errors
    /// The driver's.
    pub fn end_round(&mut self, commands: &mut Commands<'_>, turns: u32) -> Result<()> {
        debug_assert!(self.made <= turns);
        (self.turn, self.made) = (self.turn.wrapping_add(turns), 0);
        if self.turn.wrapping_sub(self.written) >= SILENT {
            self.finish(commands, 0)?;
        }
        Ok(())
    }

    /// What the others' words `finished` come to when they have finished with everything that this member has published.
    pub fn unread(&self) -> u32 {
        self.due(self.taken[(self.published.wrapping_sub(1) & 1) as usize])
    }

    /// The stream waits until all others have finished with everything that this member has published. An operation
    /// that has lent ends with this.
    ///
    /// # Errors
    /// The driver's.
    pub fn wait_unread(&mut self, commands: &mut Commands<'_>) -> Result<()> {
        self.wait_finished(commands, self.unread())
    }

    /// `taken`, or what takes its place where it is too long ago to be compared with.
    fn due(&self, taken: u32) -> u32 {
        if self.turn.wrapping_sub(taken) as i32 > FAR as i32 { self.turn.wrapping_sub(FAR) } else { taken }
    }

    fn wait_finished(&self, commands: &mut Commands<'_>, taken: u32) -> Result<()> {
        let due = self.due(taken);
        self.others().try_for_each(|(_, other)| commands.wait(&other.finished, due))
    }

    fn others(&self) -> impl Iterator<Item = (usize, &Neighbour)> {
        self.members.iter().enumerate().filter(|(member, _)| *member != self.me)
    }
}
