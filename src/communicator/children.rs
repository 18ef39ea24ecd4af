//! Communicators made from a communicator: parts of it, and more of the same.
//!
//! A child has everything of its own: order of operations, links, verdict. What it shares with its
//! parent is the node, one process's membership in the job, and the file in which segments lie, so
//! making one brings nobody together anew. Its context, the number under which the job knows it, is
//! a digest that its members compute alike from what they have in common: the parent's context and
//! which child it is. Parents and children may be dropped in any order.

use std::collections::HashMap;
use std::time::Duration;

use maypole_transports::lock::Mutex;

use super::Communicator;
use super::build::{Making, World};
use super::sharing::{Room, shape, warn_of_tcp};
use crate::capacity::Capacity;
use crate::config::{Config, TransportChoice};
use crate::error::{Error, Result};

/// Counts a communicator's children, so that each gets a number that all its members know. Two
/// locks: ranks that make a child together hold one until all have come, and a subset must not wait
/// for that.
#[derive(Default)]
pub(super) struct Children {
    /// Those that all ranks made together.
    together: Mutex<u64>,
    /// Those that a subset made or tried to, by its ranks in rising order: the number of the next.
    subsets: Mutex<HashMap<Vec<usize>, u64>>,
}

/// What a rank calls, as the ranks compare it before they make children together.
const SPLIT: i64 = 0;
const DUPLICATE: i64 = 1;
/// What a rank says that reserves no place for a segment, or could not: no place begins there.
const NO_ROOM: u64 = 0;
/// Kinds of children, in their contexts.
const TOGETHER: u64 = 0;
const SUBSET: u64 = 1;

impl Communicator {
    /// Divide the communicator: ranks that give the same `color` form a new one, ranked by `key`
    /// and, where keys are equal, by their rank here. `None` takes part and gets none. Every rank
    /// must call it; it blocks until all have.
    ///
    /// # Errors
    /// [`Error::Argument`], on every rank, if others call [`Communicator::duplicate`].
    /// [`Error::Failed`] as everywhere; [`Error::Bootstrap`] and [`Error::System`] when the new one
    /// cannot be made, on one of its ranks and so on all of them, which leaves this one whole.
    pub fn split(&self, color: Option<u32>, key: i64) -> Result<Option<Communicator>> {
        let (number, all) = self.agree(SPLIT, color.map_or(-1, i64::from), key)?;
        let same = |r: &usize| color.is_some_and(|color| all[*r].0 == i64::from(color));
        let mut ranks: Vec<usize> = (0..self.size()).filter(same).collect();
        ranks.sort_by_key(|r| (all[*r].1, *r));
        let room = self.room(&ranks)?;
        let made = color.map(|color| self.part(&[TOGETHER, number, u64::from(color)], &ranks, room));
        self.together(made, &ranks)
    }

    /// Another communicator of the same ranks, with an order of operations of its own: for a part
    /// of a program, such as a library, whose calls must not mix with the rest, or for operations
    /// that run at the same time. Every rank must call it; it blocks until all have.
    ///
    /// # Errors
    /// As [`Communicator::split`].
    pub fn duplicate(&self) -> Result<Communicator> {
        let (number, _) = self.agree(DUPLICATE, 0, 0)?;
        let ranks: Vec<usize> = (0..self.size()).collect();
        let room = self.room(&ranks)?;
        let made = self.part(&[TOGETHER, number, 0], &ranks, room);
        self.together(Some(made), &ranks).map(|made| made.expect("this rank is a member"))
    }

    /// A communicator of some ranks of this one, which alone call it, all with the same list;
    /// ranked in the order of the list. It blocks until all of them have called it: all get it, or
    /// none. The other ranks know nothing of it, and this communicator carries no messages for it:
    /// it may even have failed, and the ranks that are left go on without the one that is lost.
    /// (MPI has it as `MPI_Comm_create_group`.)
    ///
    /// # Errors
    /// [`Error::Argument`] if the list has a rank twice, one that does not exist, or not this one:
    /// nothing was started. [`Error::Failed`] if the same ranks pass them in different orders or
    /// another cannot make its part, [`Error::Bootstrap`] if some do not call it in
    /// `MAYPOLE_CONNECT_TIMEOUT`, [`Error::System`] if this one cannot. After that it may be called
    /// again, also by those who had not called it at all.
    pub fn subset(&self, ranks: &[usize]) -> Result<Communicator> {
        self.subset_with(ranks, self.config().clone())
    }

    /// [`Communicator::subset`] with a time of its own: until the others have come, and from then
    /// on for each operation.
    ///
    /// # Errors
    /// Those of [`Communicator::subset`].
    pub fn subset_within(&self, ranks: &[usize], timeout: Duration) -> Result<Communicator> {
        self.subset_with(ranks, Config { timeout, connect_timeout: timeout, ..self.config().clone() })
    }

    fn subset_with(&self, ranks: &[usize], config: Config) -> Result<Communicator> {
        self.inner.owner.check()?;
        let mut sorted = ranks.to_vec();
        sorted.sort_unstable();
        let size = self.size();
        let wrong = if let Some(rank) = sorted.last().filter(|rank| **rank >= size) {
            Some(format!("there is no rank {rank}, the ranks are 0 to {}", size - 1))
        } else if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(format!("rank {} is listed twice", pair[0]))
        } else if !sorted.contains(&self.rank()) {
            Some("this rank is not listed; only those that are listed call it".to_string())
        } else {
            None
        };
        if let Some(wrong) = wrong {
            return Err(Error::Argument { rank: self.rank(), what: format!("subset {ranks:?}: {wrong}") });
        }
        let mut name = vec![SUBSET];
        name.extend(sorted.iter().map(|rank| *rank as u64));
        name.push(0);
        if let World::Processes(node) = &self.inner.world {
            // Before the caller could know of a failed attempt, the hub did.
            node.catch_up();
        }
        let mut subsets = self.inner.children.subsets.lock();
        let next = subsets.entry(sorted).or_default();
        // Others may have tried without this rank meanwhile, and failed. Each of their attempts
        // ended in a verdict, of which all members are told, those who had not come too: so this
        // rank comes to the one that is open.
        loop {
            *name.last_mut().expect("pushed above") = *next;
            *next += 1;
            if !self.has_ended(&name) {
                break;
            }
        }
        drop(subsets);
        self.child(&name, ranks, Making::Apart, config)
    }

    /// Whether the child called `name` has had a verdict before this rank came to it.
    fn has_ended(&self, name: &[u64]) -> bool {
        match &self.inner.world {
            World::Processes(node) => node.has_ended(child_context(self.inner.context, name)),
            // Nothing is waited for there, so nobody fails alone.
            World::Alone | World::Threads(_) => false,
        }
    }

    /// Compare with all ranks what each calls; the number of the child, or of the children, and
    /// what each rank gave.
    fn agree(&self, call: i64, color: i64, key: i64) -> Result<(u64, Vec<(i64, i64)>)> {
        self.inner.owner.check()?;
        // Locked until all have answered, so that children made by several threads have the same
        // numbers on every rank, if the ranks make them in the same order.
        let mut together = self.inner.children.together.lock();
        let mut all = vec![0i64; 3 * self.size()];
        self.all_gather(&[call, color, key], &mut all)?;
        *together += 1;
        let name = |call| if call == SPLIT { "split" } else { "duplicate" };
        if let Some(rank) = (0..self.size()).find(|rank| all[3 * rank] != call) {
            let what = format!(
                "{} on this rank, but {} on rank {rank}; every rank must call the same",
                name(call),
                name(all[3 * rank])
            );
            return Err(Error::Argument { rank: self.rank(), what });
        }
        Ok((*together, all.chunks_exact(3).map(|each| (each[1], each[2])).collect()))
    }

    /// Tell all ranks whether this rank has `made` the child that it gets, if it gets one, of
    /// `ranks`: it is no use to anybody unless all of those have.
    fn together(&self, made: Option<Result<Communicator>>, ranks: &[usize]) -> Result<Option<Communicator>> {
        let fine = made.as_ref().is_none_or(Result::is_ok);
        let mut all = vec![0u8; self.size()];
        self.all_gather(&[u8::from(fine)], &mut all)?;
        let Some(child) = made.transpose()? else { return Ok(None) };
        let Some(rank) = ranks.iter().find(|rank| all[**rank] == 0) else { return Ok(Some(child)) };
        if let World::Processes(node) = &child.inner.world {
            // That rank's own words are the verdict on the child. They were on their way before it
            // came here. A thread that makes no part reports nothing.
            node.see_verdict(child.inner.context);
        }
        let (host, verdict) = (&self.topology().hosts()[*rank], child.verdict());
        let why = verdict.map_or(String::new(), |verdict| format!(": {verdict}"));
        let what = "could not make its part of the communicator";
        Err(Error::bootstrap(format!("rank {rank} on host {host} {what}{why}")))
    }

    /// Agree on where a child's ranks of this host have their segment: in the file in which this
    /// communicator's lies, so that none need be handed round. Every rank calls it, with the ranks
    /// of the child that it gets; with none if it gets none. `None` where they share no memory, or
    /// there is no room and TCP will do. An error inside concerns the child only, and is that of
    /// the rank that was to make room.
    fn room(&self, ranks: &[usize]) -> Result<Result<Option<Room>>> {
        let inner = &*self.inner;
        let hosts = inner.topology.placement();
        let processes = matches!(inner.world, World::Processes(_)) && inner.config.transport != TransportChoice::Tcp;
        if !processes || hosts.count() == inner.size {
            return Ok(Ok(None));
        }
        let here = |rank: &&usize| hosts.host(**rank) == hosts.host(inner.rank);
        let beside = ranks.iter().filter(here).count();
        let first = ranks.iter().find(here).copied();
        let reserved = match &inner.arena {
            Some(arena) if beside > 1 && first == Some(inner.rank) => {
                let capacity = Capacity::of(ranks.len(), &inner.config);
                shape(beside, &capacity).and_then(|shape| match arena.reserve(shape.bytes()) {
                    Err(refusal) if inner.config.transport == TransportChoice::Auto => {
                        warn_of_tcp(inner.rank, &refusal);
                        Ok(NO_ROOM)
                    }
                    at => at.map_err(|e| Error::system(format!("rank {}: sharing memory", inner.rank), e)),
                })
            }
            _ => Ok(NO_ROOM),
        };
        let mut all = vec![NO_ROOM; inner.size];
        self.all_gather(&[*reserved.as_ref().unwrap_or(&NO_ROOM)], &mut all)?;
        if let Err(error) = reserved {
            return Ok(Err(error));
        }
        let place = first.filter(|_| beside > 1).map_or(NO_ROOM, |first| all[first]);
        let arena = inner.arena.as_ref().filter(|_| place != NO_ROOM);
        Ok(Ok(arena.map(|arena| Room { arena: arena.clone(), at: place })))
    }

    /// The child called `name`, with this communicator's settings.
    fn part(&self, name: &[u64], ranks: &[usize], room: Result<Option<Room>>) -> Result<Communicator> {
        self.child(name, ranks, Making::Together(room), self.config().clone())
    }

    /// The child called `name` among this communicator's, of `ranks` of it.
    fn child(&self, name: &[u64], ranks: &[usize], making: Making, config: Config) -> Result<Communicator> {
        let context = child_context(self.inner.context, name);
        let me = ranks.iter().position(|rank| *rank == self.rank()).expect("a rank makes only its own communicators");
        let members = ranks.iter().map(|rank| self.inner.members[*rank]).collect();
        match &self.inner.world {
            World::Alone => Communicator::alone(config),
            World::Threads(threads) => Communicator::of_threads(threads, context, me, members, config),
            World::Processes(node) => Communicator::of_members(node.clone(), context, members, making, config),
        }
    }
}

/// A number for a child that all its members, and no other communicator's, compute.
fn child_context(parent: u64, name: &[u64]) -> u64 {
    let mut hash = blake3::Hasher::new();
    for part in [parent].iter().chain(name) {
        hash.update(&part.to_le_bytes());
    }
    u64::from_le_bytes(hash.finalize().as_bytes()[..8].try_into().expect("8 bytes"))
}
