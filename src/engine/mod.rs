//! The engine: runs a rank's schedules over its links.
//!
//! *Collectives decide, transports move, src composes*: this is the composing. [`bound`] turns
//! chunks into bytes, [`lane`] runs one lane as a state machine, [`links`] makes and opens links,
//! [`wait`] waits and gives up, [`aftermath`] says what goes on after a death, [`small`] is the
//! hand-fused path of the smallest messages, [`scratch`] has memory for what is put aside. The
//! engine belongs to one communicator on one rank and does one operation at a time.

pub(crate) mod aftermath;
pub(crate) mod alarm;
pub(crate) mod bound;
pub(crate) mod lane;
pub(crate) mod links;
mod listener;
pub(crate) mod loans;
pub(crate) mod messages;
pub(crate) mod rest;
pub(crate) mod routes;
mod scratch;
pub(crate) mod small;
pub(crate) mod wait;

use maypole_collectives::schedule::Schedule;

use self::bound::Bound;
use self::lane::{Lane, Progress, Trouble};
use self::links::Links;
use self::scratch::Scratch;
use self::wait::{Court, Questions, Wait};
use crate::error::{Error, Result, Verdict};
use crate::fingerprint::Fingerprint;

/// What [`Engine::execute`] runs: a schedule, its buffers, and what it is called.
pub(crate) struct Part<'a> {
    pub schedule: &'a dyn Schedule,
    pub bound: &'a Bound<'a>,
    pub operation: &'a Fingerprint,
}

/// Runs operations for one rank of one communicator.
pub(crate) struct Engine {
    pub links: Links,
    pub court: Court,
    /// Of the wait that is under way, or was last.
    questions: Questions,
    stamp: u64,
    scratch: Scratch,
    /// Room for the lanes of an operation; empty between operations.
    lanes: Vec<Lane<'static>>,
    vectors: Box<[small::Vector; 2]>,
}

impl Engine {
    pub fn new(links: Links, court: Court) -> Engine {
        let questions = Questions::new();
        Engine {
            links,
            court,
            questions,
            stamp: 0,
            scratch: Scratch::new(),
            lanes: Vec::new(),
            vectors: small::Vector::pair(),
        }
    }

    /// Scratch memory of at least `bytes` bytes, uninitialised, aligned to 64; valid until the next
    /// call, or the end of the next [`Engine::execute`].
    ///
    /// # Panics
    /// There is no memory.
    pub fn scratch(&mut self, bytes: usize) -> *mut u8 {
        self.scratch.room(bytes)
    }

    /// Make room for as much scratch memory as an operation will need, so that it allocates none.
    ///
    /// # Panics
    /// There is no memory.
    pub fn provide_scratch(&mut self, bytes: usize) {
        self.scratch.room(bytes);
        self.scratch.rest();
    }

    /// Run all lanes of an operation to their end.
    ///
    /// # Errors
    /// [`Error::Failed`] with the verdict that all ranks get.
    pub fn execute(&mut self, part: &Part<'_>) -> Result<()> {
        if self.court.forbids(part.schedule) {
            return Err(self.failed(self.court.failed()));
        }
        self.stamp += 1;
        let mut lanes = std::mem::take(&mut self.lanes);
        let lane = |lane| Lane::new((part.schedule, lane), part.bound, part.operation, self.stamp);
        lanes.extend((0..part.schedule.lanes()).map(lane));
        let outcome = self.run(&mut lanes, part.operation, part.bound.lends());
        self.lanes = emptied(lanes);
        self.scratch.rest();
        outcome.map_err(|error| self.failed(error))
    }

    /// An operation has failed, perhaps amid a message: nothing else is begun with these links.
    #[cold]
    fn failed(&mut self, error: Error) -> Error {
        self.court.give_up();
        if self.court.watch.verdict().is_some_and(|verdict| verdict.is_of_a_death()) {
            self.links.close();
        }
        error
    }

    fn run(&mut self, lanes: &mut [Lane<'_>], operation: &Fingerprint, lends: bool) -> Result<()> {
        let Engine { links, court, questions, .. } = self;
        let court = &*court;
        let mut wait = Wait::new(court, operation, questions);
        let convict = |trouble| court.convict_for(trouble, operation);
        links.begin(lanes.len());
        links.make_wanted().map_err(convict)?;
        loop {
            let mut moved = false;
            let mut blocked_on = None;
            let mut running = lanes.len();
            for lane in &mut *lanes {
                match lane.advance(links).map_err(convict)? {
                    Progress::Moved => moved = true,
                    Progress::Blocked(whom) => blocked_on = court.first_to_matter(whom, blocked_on),
                    Progress::Done => running -= 1,
                }
            }
            if running == 0 {
                match links.unfinished(lends).map_err(convict)? {
                    None => break,
                    Some(whom) => blocked_on = Some(whom),
                }
            }
            if moved || links.absorb(wait.looks()).map_err(convict)? {
                wait.moved(links);
            } else {
                wait.nothing(links, blocked_on)?;
            }
        }
        wait.moved(links);
        links.settle();
        Ok(())
    }
}

/// The same vector without its elements, for other borrows: collecting an iterator that came from a vector reuses its
/// memory, so that the next operation allocates nothing.
fn emptied(mut lanes: Vec<Lane<'_>>) -> Vec<Lane<'static>> {
    lanes.clear();
    lanes.into_iter().map(|_| unreachable!("it was cleared")).collect()
}

impl Court {
    /// For which of two ranks an operation that waits for both waits in vain, if for one.
    #[inline]
    fn first_to_matter(&self, one: Option<usize>, other: Option<usize>) -> Option<usize> {
        let gone = || other.filter(|rank| self.watch.is_gone(*rank));
        if self.watch.raised() { gone().or(one).or(other) } else { one.or(other) }
    }

    /// The error that all ranks get for a lane's trouble.
    #[cold]
    pub fn convict_for(&self, trouble: Trouble, operation: &Fingerprint) -> Error {
        use maypole_transports::LinkError;
        match trouble {
            Trouble::Error(error) => error,
            Trouble::Mismatch { peer, ours, theirs } => self.disagree(&ours, peer, Some(theirs)),
            Trouble::Link(peer, LinkError::Gone { detail }) => self.convict(Verdict::Died {
                rank: peer,
                host: self.hosts[peer].clone(),
                how: format!("{detail}, noticed by rank {} in {operation}", self.me),
            }),
            Trouble::Link(peer, error) => self.convict(Verdict::Link {
                rank: self.me,
                peer,
                host: self.hosts[peer].clone(),
                what: format!("{error}, in {operation}"),
            }),
        }
    }
}
