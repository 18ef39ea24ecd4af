//! Ranks as threads of one process: what they share besides the segment.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use maypole_transports::lock::Mutex;
use maypole_transports::shm::{Allocation, Segment, Shape};

use crate::error::{Error, Result, Verdict};
use crate::fingerprint::Fingerprint;
use crate::watch::{Jury, Late, Record, Stall, Watch, answering};

/// What the members of one communicator find in each other.
#[derive(Clone)]
struct Family {
    segment: Arc<Segment>,
    watches: Arc<Vec<Arc<Watch>>>,
    /// Their ranks in the world.
    members: Vec<usize>,
    /// Members that have not come for it yet.
    missing: usize,
}

/// All communicators of a group of threads. The jury of thread ranks: it looks into the others' watches directly.
pub(super) struct Threads {
    size: usize,
    forming: Mutex<HashMap<u64, Family>>,
    /// Registered memory, by context and number, that some members have not come for yet.
    sharing: Mutex<HashMap<(u64, u64), Sharing>>,
    living: Mutex<HashMap<u64, Living>>,
}

/// Registered memory that some members of its communicator have not come for yet.
struct Sharing {
    memory: Arc<Allocation>,
    missing: usize,
}

/// A communicator that some members have not left.
struct Living {
    watches: Arc<Vec<Arc<Watch>>>,
    /// Members that have left.
    left: Vec<usize>,
    /// Members that have failed in it.
    given_up: Vec<usize>,
    /// The latest warning that was given: in which operation, and after how long.
    warned: Option<(Fingerprint, Duration)>,
}

impl Threads {
    /// For a world of `size` threads.
    pub fn new(size: usize) -> Threads {
        Threads { size, forming: Mutex::default(), sharing: Mutex::default(), living: Mutex::default() }
    }

    /// How many threads there are in all.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Member `me` of the communicator `context` comes for its segment and watch. The first to come makes them.
    /// `members`: the ranks of all in the world.
    ///
    /// # Errors
    /// [`Error::System`] when there is no memory; [`Error::Failed`], for this member and the others, if its list of
    /// members is not that of those who came before.
    pub fn join(&self, context: u64, me: usize, members: &[usize], shape: Shape) -> Result<(Arc<Segment>, Arc<Watch>)> {
        let mut forming = self.forming.lock();
        let family = match forming.entry(context) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let segment =
                    Segment::anonymous(shape).map_err(|e| Error::system("making a communicator's shared memory", e))?;
                let watches: Arc<Vec<Arc<Watch>>> =
                    Arc::new(std::iter::repeat_with(Arc::default).take(shape.members).collect());
                let living = Living { watches: watches.clone(), left: Vec::new(), given_up: Vec::new(), warned: None };
                self.living.lock().insert(context, living);
                entry.insert(Family { segment, watches, members: members.to_vec(), missing: shape.members })
            }
        };
        if family.members != members {
            let why = format!("it lists its members as {members:?}, but others as {:?}", family.members);
            let verdict = Verdict::Aborted { rank: me, why };
            drop(forming);
            self.report(context, verdict.clone());
            return Err(Error::Failed { rank: me, verdict });
        }
        family.missing -= 1;
        let (segment, watch) = (family.segment.clone(), family.watches[me].clone());
        if family.missing == 0 {
            forming.remove(&context);
        }
        Ok((segment, watch))
    }

    /// A member of the communicator `context` comes for its registered memory `number`. The first to come makes it.
    ///
    /// # Errors
    /// When the system refuses it; then each member tries, and gets its own error.
    pub fn allocation(
        &self,
        context: u64,
        number: u64,
        lengths: &[usize],
    ) -> maypole_transports::Result<Arc<Allocation>> {
        let mut sharing = self.sharing.lock();
        let shared = match sharing.entry((context, number)) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let (memory, fd) = Allocation::create(lengths, true)?;
                (0..lengths.len()).try_for_each(|member| memory.commit(member, fd.as_fd()))?;
                entry.insert(Sharing { memory, missing: lengths.len() })
            }
        };
        shared.missing -= 1;
        let (memory, missing) = (shared.memory.clone(), shared.missing);
        if missing == 0 {
            sharing.remove(&(context, number));
        }
        Ok(memory)
    }

    /// Registered memory `number` could not be had by all: nobody else comes for it.
    pub fn forget_allocation(&self, context: u64, number: u64) {
        self.sharing.lock().remove(&(context, number));
    }

    fn watches(&self, context: u64) -> Arc<Vec<Arc<Watch>>> {
        self.living.lock().get(&context).map(|l| l.watches.clone()).unwrap_or_default()
    }

    /// Whether no other rank has given this warning.
    fn first_to_warn(&self, context: u64, stall: &Stall) -> bool {
        let mut all = self.living.lock();
        let Some(living) = all.get_mut(&context) else { return false };
        let warning = (stall.operation, stall.after);
        let first =
            living.warned.is_none_or(|(operation, after)| !operation.same_call(&warning.0) || after != warning.1);
        living.warned = Some(warning);
        first
    }

    fn has_left(&self, context: u64, rank: usize) -> bool {
        self.living.lock().get(&context).is_some_and(|l| l.left.contains(&rank))
    }

    /// Whether it does nothing there any more.
    fn is_idle(&self, context: u64, rank: usize) -> bool {
        self.living.lock().get(&context).is_some_and(|l| l.left.contains(&rank) || l.given_up.contains(&rank))
    }
}

impl Jury for Threads {
    fn report(&self, context: u64, verdict: Verdict) {
        // Under the lock, so that two reports do not reach two ranks in different order.
        let all = self.living.lock();
        for watch in all.get(&context).into_iter().flat_map(|l| l.watches.iter()) {
            watch.declare(verdict.clone());
        }
    }

    fn inquire(&self, context: u64, asker: usize, operation: Fingerprint, peer: usize) {
        let watches = self.watches(context);
        let Some(watch) = watches.get(peer) else { return };
        // Before its record: one that left has made no call after that.
        let left = self.has_left(context, peer);
        let after_verdict = watches[asker].raised();
        if operation.is_point_to_point() || after_verdict {
            let idle = if after_verdict { self.is_idle(context, peer) } else { left };
            if idle && !watches[asker].has_departed(peer) {
                watches[asker].depart(peer);
            }
            return;
        }
        match watch.record(operation.sequence) {
            Record::NotYet(_) if left => {
                let how = format!("it left the communicator, while rank {asker} waits for it in {operation}");
                self.report(context, Verdict::Died { rank: peer, host: super::build::host_name(), how });
            }
            Record::Called(theirs) if !theirs.same_call(&operation) => {
                self.report(context, Verdict::Mismatch { one: (asker, operation), other: (peer, theirs) });
            }
            Record::Refused(why) => {
                self.report(context, Verdict::Refused { rank: peer, sequence: operation.sequence, why });
            }
            _ => {}
        }
    }

    fn stalled(&self, context: u64, reporter: usize, stall: Stall) {
        let (watches, operation) = (self.watches(context), stall.operation);
        for peer in 0..watches.len() {
            self.inquire(context, reporter, operation, peer);
        }
        // Messages have numbers of their own: of their other side it is only known what it called last.
        let other_side = operation.other_side(reporter);
        let message = operation.is_point_to_point();
        let number = if message { u64::MAX } else { operation.sequence };
        let concerned = |rank: &usize| *rank != reporter && other_side.is_none_or(|other| other == *rank);
        let (mut culprits, mut moved) = (Vec::new(), None);
        for (rank, watch) in watches.iter().enumerate().filter(|(rank, _)| concerned(rank)) {
            let record = watch.record(number);
            moved = moved.into_iter().chain(watch.moved_ago(message, &record)).min();
            if let Record::NotYet(latest) = record {
                culprits.push((rank, super::build::host_name(), answering(latest)));
            }
        }
        let has_left = |(rank, ..): &(usize, String, String)| self.has_left(context, *rank);
        // What any rank may send is in vain once all have left.
        let left = match message && other_side.is_none() {
            true => culprits.iter().all(has_left),
            false => culprits.iter().any(has_left),
        };
        if let Some(ago) = moved.filter(|ago| *ago < stall.deadline && !left) {
            watches[reporter].note_moved_elsewhere(message, ago);
        } else if left || !stall.is_patient() {
            self.report(context, Verdict::Stalled { operation, reporter, after: stall.after, culprits });
        } else if stall.is_time_to_warn() && !watches[reporter].raised() && self.first_to_warn(context, &stall) {
            crate::log::warn(format_args!("{}", Late { reporter, stall: &stall, culprits: &culprits }));
        }
    }

    fn give_up(&self, context: u64, rank: usize) {
        if let Some(living) = self.living.lock().get_mut(&context) {
            living.given_up.push(rank);
        }
    }

    fn leave(&self, context: u64, rank: usize) {
        let mut all = self.living.lock();
        let Some(living) = all.get_mut(&context) else { return };
        living.left.push(rank);
        if living.left.len() == living.watches.len() {
            all.remove(&context);
        }
    }
}
