//! Runs all ranks' programs on symbolic values.
//!
//! Each lane is an actor that runs until it must wait. Links hold one message and windows one publication, the smallest
//! credit there is. Since every link and window has one writer and readers that do not disturb each other, what each
//! actor does is the same whatever the order in which actors run (a Kahn network), so one run speaks for all; chunks,
//! the one thing that lanes share besides, are guarded by vector clocks. A clock holds
//! what is known of every lane of the world; it travels with messages and publications, but not with returned credit: an executor with more credit would
//! not wait there.

use super::clock::Clock;
use super::fault::{At, Blocked, Fault, Wait};
use super::memory::{Accessor, Memory};
use super::value::{Ranks, Value};
use super::world::{Op, World};
use crate::schedule::{Buffer, Collective, Operands, Rank, Region, Step};
use std::ops::Range;

/// Rounds that are run: the second shows what the first leaves behind.
pub(super) const ROUNDS: usize = 2;

pub(super) struct Machine<'a> {
    pub(super) world: &'a World,
    /// Whether values and clocks are followed; without, only who waits for whom.
    follow: bool,
    clocks: bool,
    /// The lane and step before which its rank stops for ever.
    stop: Option<At>,
    stopped: bool,
    pub(super) actors: Vec<Actor>,
    pub(super) memories: Vec<Memory>,
    pub(super) links: Vec<Link>,
    pub(super) windows: Vec<Window>,
    ready: Vec<usize>,
    /// For barriers: by round, what each actor had seen when it left.
    pub(super) exits: [Vec<Clock>; ROUNDS],
    /// The longest chain of steps of round 0 each of which had to wait for the one before.
    pub(super) depth: usize,
}

pub(super) struct Actor {
    rank: Rank,
    lane: usize,
    pub(super) round: usize,
    step: usize,
    /// A fused step's message between its two halves.
    held: Option<Vec<Value>>,
    wait: Option<Wait>,
    tick: u32,
    clock: Clock,
    depth: usize,
}

/// A message or a publication.
pub(super) struct Parcel {
    pub(super) at: At,
    region: Region,
    piece: usize,
    len: usize,
    values: Vec<Value>,
    clock: Clock,
    depth: usize,
}

#[derive(Default)]
pub(super) struct Link {
    pub(super) message: Option<Parcel>,
    /// The actor that waits for the link to change.
    waiting: Option<usize>,
}

pub(super) struct Window {
    pub(super) parcel: Option<Parcel>,
    nth: usize,
    pub(super) fetched: Ranks,
    /// How many ranks are still to fetch.
    pub(super) missing: usize,
    waiting: Vec<usize>,
}

/// What a peer gave to a step, or why it has to wait.
type Came = Result<Vec<Value>, Wait>;

/// What became of an attempt to go on.
enum Progress {
    Done,
    Waits(Wait),
}

impl<'a> Machine<'a> {
    /// A machine that checks everything.
    pub(super) fn new(world: &'a World) -> Machine<'a> {
        Machine::build(world, true, None)
    }

    /// A machine on which a rank stops, and that follows only who waits for whom.
    pub(super) fn stopping(world: &'a World, stop: At) -> Machine<'a> {
        Machine::build(world, false, Some(stop))
    }

    fn build(world: &'a World, follow: bool, stop: Option<At>) -> Machine<'a> {
        let count = world.actors.len();
        let nothing = Clock::default();
        let clocks = follow && (count > world.size || world.collective == Collective::Barrier || world.lends);
        let actor = |&(rank, lane): &(Rank, usize)| Actor {
            rank,
            lane,
            round: 0,
            step: 0,
            held: None,
            wait: None,
            tick: 0,
            clock: nothing.clone(),
            depth: 0,
        };
        let window =
            || Window { parcel: None, nth: 0, fetched: Ranks::none(world.size), missing: 0, waiting: Vec::new() };
        Machine {
            world,
            follow,
            clocks,
            stop,
            stopped: false,
            actors: world.actors.iter().map(actor).collect(),
            memories: if follow {
                (0..world.size).map(|rank| Memory::new(world, rank, ROUNDS)).collect()
            } else {
                Vec::new()
            },
            links: world.links.iter().map(|_| Link::default()).collect(),
            windows: (0..count).map(|_| window()).collect(),
            ready: (0..count).rev().collect(),
            exits: std::array::from_fn(|_| vec![nothing.clone(); count]),
            depth: 0,
        }
    }

    /// Runs until nobody can go on.
    pub(super) fn run(&mut self) -> Result<(), Fault> {
        while let Some(i) = self.ready.pop() {
            while let Some(at) = self.position(i) {
                if self.stop == Some(at) {
                    self.stopped = true;
                }
                if self.stopped && self.stop.is_some_and(|stop| stop.rank == at.rank) {
                    break;
                }
                match self.attempt(i, at)? {
                    Progress::Done => self.finish_step(i),
                    Progress::Waits(wait) => {
                        self.actors[i].wait = Some(wait);
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// The step an actor stands at; `None` when it has finished.
    fn position(&mut self, i: usize) -> Option<At> {
        let world = self.world;
        let actor = &mut self.actors[i];
        while actor.round < ROUNDS && actor.step == world.programs[i].len() {
            if self.clocks && world.collective == Collective::Barrier {
                self.exits[actor.round][i] = actor.clock.clone();
            }
            actor.round += 1;
            actor.step = 0;
        }
        (actor.round < ROUNDS).then_some(At {
            rank: actor.rank,
            lane: actor.lane,
            step: actor.step,
            round: actor.round,
        })
    }

    fn finish_step(&mut self, i: usize) {
        let actor = &mut self.actors[i];
        actor.step += 1;
        actor.wait = None;
        if actor.round == 0 {
            self.depth = self.depth.max(actor.depth);
        }
    }

    /// The lanes that wait, when nobody can go on.
    pub(super) fn blocked(&self) -> Vec<Blocked> {
        let dead = |actor: &&Actor| self.stopped && self.stop.is_some_and(|stop| stop.rank == actor.rank);
        let blocked = self.actors.iter().filter(|a| a.round < ROUNDS && !dead(a)).filter_map(|a| {
            let at = At { rank: a.rank, lane: a.lane, step: a.step, round: a.round };
            a.wait.clone().map(|wait| Blocked { at, wait })
        });
        blocked.collect()
    }

    /// Tries to make the step at which actor `i` stands.
    fn attempt(&mut self, i: usize, at: At) -> Result<Progress, Fault> {
        let world = self.world;
        let op = &world.programs[i][at.step];
        if self.actors[i].held.is_none() {
            if let Step::Publish { src } = op.step {
                return self.publish(i, at, op, src);
            }
            let came: Came = match op.step {
                Step::Fetch { from, nth, at: first, dst } => self.fetch(i, at, from, nth, first, dst)?,
                Step::FetchReduce { from, nth, at: first, dst, .. } => self.fetch(i, at, from, nth, first, dst)?,
                _ if op.takes != usize::MAX => self.take(i, at, op)?,
                Step::Send { src, .. } => {
                    // Look for room first: a send that waits must not count as having read.
                    if self.links[op.puts].message.is_some() {
                        return Ok(self.wait_on_link(i, op.puts, Wait::Room(world.links[op.puts].to)));
                    }
                    self.tick(i, 0);
                    Ok(self.read(i, at, src)?)
                }
                _ => {
                    self.tick(i, 0);
                    Ok(Vec::new())
                }
            };
            match came {
                Err(wait) => return Ok(Progress::Waits(wait)),
                Ok(values) => self.actors[i].held = Some(self.apply(i, at, op, values)?),
            }
        }
        if op.puts != usize::MAX {
            if self.links[op.puts].message.is_some() {
                return Ok(self.wait_on_link(i, op.puts, Wait::Room(world.links[op.puts].to)));
            }
            let region = op.sent();
            let values = self.actors[i].held.take().unwrap_or_default();
            let parcel = self.parcel(i, at, region, values);
            let link = &mut self.links[op.puts];
            link.message = Some(parcel);
            self.ready.extend(link.waiting.take());
        }
        self.actors[i].held = None;
        Ok(Progress::Done)
    }

    fn wait_on_link(&mut self, i: usize, link: usize, wait: Wait) -> Progress {
        self.links[link].waiting = Some(i);
        Progress::Waits(wait)
    }

    /// Takes the message of a receiving step out of its link.
    fn take(&mut self, i: usize, at: At, op: &Op) -> Result<Came, Fault> {
        let link = &mut self.links[op.takes];
        let Some(parcel) = link.message.take() else {
            link.waiting = Some(i);
            return Ok(Err(Wait::Message(self.world.links[op.takes].from)));
        };
        self.ready.extend(link.waiting.take());
        let Region { first, len, .. } = op.received();
        let piece = first % self.world.pieces;
        if parcel.at.round != at.round {
            return Err(Fault::WrongRound { at, sender: parcel.at });
        }
        if parcel.len != len || (len > 0 && parcel.piece != piece) {
            let (sent, sent_piece) = (parcel.len, parcel.piece);
            return Err(Fault::Mismatch {
                at,
                sender: parcel.at,
                expected: len,
                expected_piece: piece,
                sent,
                sent_piece,
            });
        }
        self.actors[i].clock.see(&parcel.clock);
        self.tick(i, parcel.depth);
        Ok(Ok(parcel.values))
    }

    fn publish(&mut self, i: usize, at: At, op: &Op, src: Region) -> Result<Progress, Fault> {
        let window = &self.windows[i];
        if window.missing > 0 {
            let missing = self.not_fetched(i);
            return Ok(Progress::Waits(Wait::Fetches(missing)));
        }
        self.tick(i, 0);
        let values = self.read(i, at, src)?;
        let parcel = self.parcel(i, at, src, values);
        let window = &mut self.windows[i];
        *window = Window {
            parcel: Some(parcel),
            nth: op.nth,
            fetched: Ranks::none(self.world.size),
            missing: self.world.size - 1,
            waiting: std::mem::take(&mut window.waiting),
        };
        self.ready.append(&mut window.waiting);
        Ok(Progress::Done)
    }

    fn fetch(&mut self, i: usize, at: At, from: Rank, nth: usize, first: usize, dst: Region) -> Result<Came, Fault> {
        let owner = self.world.actor(from, at.lane);
        let window = &mut self.windows[owner];
        let standing = window.parcel.as_ref().map(|parcel| (parcel.at.round, window.nth));
        let own = from == at.rank;
        match standing {
            Some(standing) if standing == (at.round, nth) => {}
            // It has been replaced, so everybody had fetched from it.
            Some(standing) if standing > (at.round, nth) => return Err(Fault::FetchedTwice { at, from, nth }),
            _ => {
                window.waiting.push(i);
                return Ok(Err(Wait::Publication(from, nth)));
            }
        }
        let parcel = window.parcel.as_ref().expect("a window that stands has a parcel");
        let end = first.saturating_add(dst.len);
        if end > parcel.len && dst.len > 0 {
            return Err(Fault::FetchesBeyond { at, publisher: parcel.at, first, end, have: parcel.len });
        }
        let (piece, sent_piece) = (dst.first % self.world.pieces, (parcel.piece + first) % self.world.pieces);
        if dst.len > 0 && piece != sent_piece {
            let (expected, sent) = (dst.len, dst.len);
            return Err(Fault::Mismatch { at, sender: parcel.at, expected, expected_piece: piece, sent, sent_piece });
        }
        let values = if self.follow { parcel.values[first.min(end)..][..dst.len].to_vec() } else { Vec::new() };
        let (clock, depth) = (parcel.clock.clone(), parcel.depth);
        if !own {
            if window.fetched.contains(at.rank) {
                return Err(Fault::FetchedTwice { at, from, nth });
            }
            window.fetched.insert(at.rank);
            window.missing -= 1;
            if window.missing == 0 && matches!(self.actors[owner].wait, Some(Wait::Fetches(_))) {
                self.ready.push(owner);
            }
        }
        self.actors[i].clock.see(&clock);
        self.tick(i, depth);
        if self.follow && self.world.lends {
            self.borrow(i, at, owner, first..first + dst.len)?;
        }
        Ok(Ok(values))
    }

    /// The chunks that are fetched from what stands in a window are read where they lie in their owner's buffer.
    fn borrow(&mut self, i: usize, at: At, owner: usize, chunks: Range<usize>) -> Result<(), Fault> {
        let parcel = self.windows[owner].parcel.as_ref().expect("it has just been fetched from");
        let Region { buffer, first, .. } = parcel.region;
        if buffer == Buffer::Scratch {
            return Ok(());
        }
        let by = (at, i, self.actors[i].tick);
        let memory = &mut self.memories[parcel.at.rank];
        chunks.into_iter().try_for_each(|k| {
            let found = memory.lend(by, buffer, first + k);
            match found == Some(&parcel.values[k]) {
                true => Ok(()),
                false => Err(Fault::LentChanged {
                    at,
                    publisher: parcel.at,
                    buffer,
                    chunk: first + k,
                    found: found.map_or_else(|| "nothing".to_string(), Value::to_string),
                }),
            }
        })
    }

    /// The part of a step that works on memory, given what came from the peer. Returns what is to be sent on.
    fn apply(&mut self, i: usize, at: At, op: &Op, came: Vec<Value>) -> Result<Vec<Value>, Fault> {
        if !self.follow {
            return Ok(came);
        }
        match op.step {
            Step::Recv { dst, .. } | Step::Fetch { dst, .. } => self.write(i, at, dst, came),
            Step::RecvCopySend { dst, .. } => {
                self.write(i, at, dst, came.clone())?;
                Ok(came)
            }
            Step::RecvReduce { local, order, dst, .. } | Step::FetchReduce { local, order, dst, .. } => {
                let mine = self.read(i, at, local)?;
                let sum = combine(at, dst, mine, order, came)?;
                self.write(i, at, dst, sum)
            }
            Step::RecvReduceSend { local, order, dst, .. } => {
                let mine = self.read(i, at, local)?;
                let sum = combine(at, local, mine, order, came)?;
                if let Some(dst) = dst {
                    self.write(i, at, dst, sum.clone())?;
                }
                Ok(sum)
            }
            Step::Copy { src, dst } => {
                let values = self.read(i, at, src)?;
                if self.world.are_same(at.rank, src, dst) { Ok(Vec::new()) } else { self.write(i, at, dst, values) }
            }
            Step::Reduce { a, b, dst } => {
                let (a, b) = (self.read(i, at, a)?, self.read(i, at, b)?);
                let sum = combine(at, dst, a, Operands::LocalFirst, b)?;
                self.write(i, at, dst, sum)
            }
            Step::Send { .. } | Step::Publish { .. } => Ok(came),
        }
    }

    fn read(&mut self, i: usize, at: At, region: Region) -> Result<Vec<Value>, Fault> {
        if !self.follow {
            return Ok(Vec::new());
        }
        let (by, memory) = accessor(&self.actors[i], &mut self.memories, self.world, at);
        region.chunks().map(|chunk| memory.read(&by, region.buffer, chunk)).collect()
    }

    fn write(&mut self, i: usize, at: At, region: Region, values: Vec<Value>) -> Result<Vec<Value>, Fault> {
        let (by, memory) = accessor(&self.actors[i], &mut self.memories, self.world, at);
        for (chunk, value) in region.chunks().zip(values) {
            memory.write(&by, region.buffer, chunk, value)?;
        }
        Ok(Vec::new())
    }

    fn parcel(&self, i: usize, at: At, region: Region, values: Vec<Value>) -> Parcel {
        let actor = &self.actors[i];
        let (piece, len) = (region.first % self.world.pieces, region.len);
        Parcel { at, region, piece, len, values, clock: actor.clock.clone(), depth: actor.depth }
    }

    /// A step begins: it comes after the lane's step before and after whatever `depth` stands for.
    fn tick(&mut self, i: usize, depth: usize) {
        let actor = &mut self.actors[i];
        actor.wait = None;
        actor.tick += 1;
        actor.depth = actor.depth.max(depth) + 1;
        if self.clocks {
            actor.clock.set(i, actor.tick);
        }
    }

    /// The ranks that have yet to fetch from what stands in a window.
    pub(super) fn not_fetched(&self, owner: usize) -> Vec<Rank> {
        let (rank, _) = self.world.actors[owner];
        (0..self.world.size).filter(|&r| r != rank && !self.windows[owner].fetched.contains(r)).collect()
    }
}

/// Actor, as whoever touches memory, and its rank's memory.
fn accessor<'m>(actor: &'m Actor, memories: &'m mut [Memory], world: &World, at: At) -> (Accessor<'m>, &'m mut Memory) {
    let by = Accessor { at, tick: actor.tick, clock: &actor.clock, first_lane: world.actor(at.rank, 0) };
    (by, &mut memories[at.rank])
}

/// Chunk by chunk: what the rank has, reduced with what came.
fn combine(at: At, region: Region, mine: Vec<Value>, order: Operands, came: Vec<Value>) -> Result<Vec<Value>, Fault> {
    let (first, second) = match order {
        Operands::LocalFirst => (mine, came),
        Operands::PeerFirst => (came, mine),
    };
    let both = region.chunks().zip(first.into_iter().zip(second));
    both.map(|(chunk, (mut a, b))| {
        if (a.block, a.round) != (b.block, b.round) {
            return Err(Fault::Mixed { at, chunk, a: a.to_string(), b: b.to_string() });
        }
        a.reduce(&b).map_err(|contributor| Fault::Duplicate { at, chunk, contributor })?;
        Ok(a)
    })
    .collect()
}
