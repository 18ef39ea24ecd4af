//! Leaders: hierarchical algorithms for small messages. One rank of each host speaks for it.
//!
//! Source: N. T. Karonis, B. R. de Supinski, I. Foster, W. Gropp, E. Lusk, J. Bresnahan, "Exploiting hierarchy in
//! parallel computer networks to optimize collective operation performance", IPDPS 2000. Each collective is flat
//! algorithms one after the other, among the ranks of a host and among the leaders:
//!
//! ```text
//!   all_reduce       reduce to the leader, all_reduce among leaders, broadcast from the leader
//!   broadcast        broadcast among leaders, broadcast from the leader; the root leads its host
//!   reduce           reduce to the leader, reduce among leaders; the root leads its host
//!   all_gather       gather to the leader, all_gather of whole hosts among leaders, broadcast from the leader
//!   reduce_scatter   reduce of all blocks to the leader, all_reduce among leaders, each its block from the leader
//!   barrier          signals up to the leader, barrier among leaders, signals down
//! ```
//!
//! A message crosses the network as often as a world of one rank a host would have it, about log2 of the number of
//! hosts; all else goes through memory. Where bandwidth counts, see `hierarchy`.
//!
//! Each part reads what the part before has written on the same rank, so one lane runs them all.

mod all_gather;
mod signals;

use super::entry::{Entry, Sides, serves};
use super::{binomial, dissemination, recursive_doubling};
use crate::hosts::Hosts;
use crate::schedule::{Buffer, Collective, Place, Rank, Region, Schedule, Step};
use std::sync::Arc;

pub(super) const ENTRY: Entry = Entry {
    name: "leaders",
    sides: Sides::Two,
    minds_hosts: true,
    serves: &[
        serves(Collective::AllReduce),
        serves(Collective::Broadcast),
        serves(Collective::Reduce),
        serves(Collective::AllGather),
        serves(Collective::ReduceScatter),
        serves(Collective::Barrier),
    ],
    schedule,
};

fn schedule(collective: Collective, place: Place, hosts: &Arc<Hosts>) -> Option<Box<dyn Schedule>> {
    let team = Team::new(place, collective.is_rooted(), hosts);
    match collective {
        Collective::AllReduce => Some(Box::new(team.all_reduce())),
        Collective::Broadcast => Some(Box::new(team.broadcast())),
        Collective::Reduce => Some(Box::new(team.reduce())),
        Collective::AllGather => Some(Box::new(team.all_gather())),
        Collective::ReduceScatter => Some(Box::new(team.reduce_scatter())),
        Collective::Barrier => Some(Box::new(team.barrier())),
        _ => None,
    }
}

/// A rank, its host, and the leaders.
#[derive(Clone, Debug)]
struct Team {
    hosts: Arc<Hosts>,
    rank: Rank,
    host: usize,
    place: usize,
    /// How many ranks the own host has.
    local: usize,
    /// Who leads its host, if not the rank at place 0.
    root: Option<Rank>,
}

/// Chunks of the whole that stand for a part's buffer: its chunk k is `each` chunks from `first + k * each` on.
#[derive(Clone, Copy, Debug)]
struct Area {
    buffer: Buffer,
    first: usize,
    each: usize,
}

const INPUT: Area = Area { buffer: Buffer::Input, first: 0, each: 1 };
const OUTPUT: Area = Area { buffer: Buffer::Output, first: 0, each: 1 };
const SCRATCH: Area = Area { buffer: Buffer::Scratch, first: 0, each: 1 };

impl Area {
    fn starting(self, first: usize) -> Area {
        Area { first, ..self }
    }

    fn of(self, each: usize) -> Area {
        Area { each, ..self }
    }

    fn region(self, part: Region) -> Region {
        Region { buffer: self.buffer, first: self.first + part.first * self.each, len: part.len * self.each }
    }
}

/// Among whom a part runs.
#[derive(Clone, Copy, Debug)]
enum Among {
    OwnHost,
    Leaders,
}

/// A flat schedule that some of the world's ranks run among themselves.
struct Part {
    flat: Box<dyn Schedule>,
    /// Whether the last step is left out: a broadcast's copy at its root, where the next part has it, or nobody needs it.
    shortened: bool,
    among: Among,
    team: Team,
    input: Area,
    output: Area,
    scratch: Area,
}

impl Part {
    fn new(team: &Team, among: Among, flat: Option<Box<dyn Schedule>>, (input, output): (Area, Area)) -> Part {
        let flat = flat.expect("the flat algorithm has this collective");
        Part { flat, shortened: false, among, team: team.clone(), input, output, scratch: SCRATCH.of(input.each) }
    }

    fn with_scratch(self, scratch: Area) -> Part {
        Part { scratch, ..self }
    }

    fn shortened(self, shortened: bool) -> Part {
        Part { shortened, ..self }
    }

    fn rank(&self, number: usize) -> Rank {
        match self.among {
            Among::OwnHost => self.team.hosts.rank(self.team.host, number),
            Among::Leaders => self.team.leader(number),
        }
    }

    fn region(&self, region: Region) -> Region {
        let area = match region.buffer {
            Buffer::Input => self.input,
            Buffer::Output => self.output,
            Buffer::Scratch => self.scratch,
        };
        if region.len == 0 { region } else { area.region(region) }
    }
}

impl Schedule for Part {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        match self.flat.scratch() {
            0 => 0,
            chunks => self.scratch.first + chunks * self.scratch.each,
        }
    }
    fn steps(&self, lane: usize) -> usize {
        self.flat.steps(lane) - self.shortened as usize
    }
    fn step(&self, lane: usize, i: usize) -> Step {
        match self.flat.step(lane, i) {
            Step::Send { to, src } => Step::Send { to: self.rank(to), src: self.region(src) },
            Step::Recv { from, dst } => Step::Recv { from: self.rank(from), dst: self.region(dst) },
            Step::RecvReduce { from, local, order, dst } => {
                Step::RecvReduce { from: self.rank(from), local: self.region(local), order, dst: self.region(dst) }
            }
            Step::RecvReduceSend { from, local, order, dst, to } => Step::RecvReduceSend {
                from: self.rank(from),
                local: self.region(local),
                order,
                dst: dst.map(|dst| self.region(dst)),
                to: self.rank(to),
            },
            Step::RecvCopySend { from, dst, to } => {
                Step::RecvCopySend { from: self.rank(from), dst: self.region(dst), to: self.rank(to) }
            }
            Step::Copy { src, dst } => Step::Copy { src: self.region(src), dst: self.region(dst) },
            Step::Reduce { a, b, dst } => Step::Reduce { a: self.region(a), b: self.region(b), dst: self.region(dst) },
            one_sided @ (Step::Publish { .. } | Step::Fetch { .. } | Step::FetchReduce { .. }) => {
                unreachable!("parts are two-sided, and this is {one_sided:?}")
            }
        }
    }
    fn message_chunks(&self) -> usize {
        self.flat.message_chunks() * self.input.each
    }
}

/// Schedules of one lane, run one after the other.
struct Sequence {
    parts: Vec<Box<dyn Schedule>>,
    scratch: usize,
    message_chunks: usize,
}

impl Sequence {
    /// `message_chunks`: of the longest message of any rank.
    fn new(message_chunks: usize) -> Sequence {
        Sequence { parts: Vec::new(), scratch: 0, message_chunks }
    }

    /// The same, and then `part`, if this rank is in it.
    fn then<S: Schedule + 'static>(mut self, takes_part: bool, part: impl FnOnce() -> S) -> Sequence {
        if takes_part {
            let part = part();
            self.scratch = self.scratch.max(part.scratch());
            self.parts.push(Box::new(part));
        }
        self
    }

    /// The same, with at least `chunks` chunks of scratch.
    fn with_scratch(self, chunks: usize) -> Sequence {
        Sequence { scratch: self.scratch.max(chunks), ..self }
    }
}

impl Schedule for Sequence {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        self.scratch
    }
    fn steps(&self, lane: usize) -> usize {
        self.parts.iter().map(|part| part.steps(lane)).sum()
    }
    fn step(&self, lane: usize, mut i: usize) -> Step {
        for part in &self.parts {
            let steps = part.steps(lane);
            if i < steps {
                return part.step(lane, i);
            }
            i -= steps;
        }
        panic!("no step {i} after the last part");
    }
    fn message_chunks(&self) -> usize {
        self.message_chunks
    }
}

impl Team {
    fn new(place: Place, rooted: bool, hosts: &Arc<Hosts>) -> Team {
        let Place { rank, root, .. } = place;
        let host = hosts.host(rank);
        let root = rooted.then_some(root);
        Team { rank, host, place: hosts.place(rank), local: hosts.on(host), root, hosts: hosts.clone() }
    }

    /// The leader of a host.
    fn leader(&self, host: usize) -> Rank {
        self.root.filter(|&root| self.hosts.host(root) == host).unwrap_or_else(|| self.hosts.rank(host, 0))
    }

    fn is_leader(&self) -> bool {
        self.leader(self.host) == self.rank
    }

    fn is_root(&self) -> bool {
        self.root == Some(self.rank)
    }

    /// Whether the own host has other ranks.
    fn has_others(&self) -> bool {
        self.local > 1
    }

    /// Whether this rank speaks with the leaders of other hosts.
    fn goes_out(&self) -> bool {
        self.is_leader() && self.hosts.count() > 1
    }

    /// This rank's place in a world of the ranks of its host, whose root is the leader.
    fn at_home(&self) -> Place {
        Place { rank: self.place, size: self.local, root: self.hosts.place(self.leader(self.host)) }
    }

    /// This leader's place in a world of leaders.
    fn outside(&self) -> Place {
        let root = self.root.map_or(0, |root| self.hosts.host(root));
        Place { rank: self.host, size: self.hosts.count(), root }
    }

    /// A part among the ranks of the host, by binomial trees.
    fn home(&self, collective: Collective, buffers: (Area, Area)) -> Part {
        Part::new(self, Among::OwnHost, binomial::schedule(collective, self.at_home()), buffers)
    }

    fn all_reduce(&self) -> Sequence {
        let sum = if self.has_others() { OUTPUT } else { INPUT };
        let all_reduce = || recursive_doubling::schedule(Collective::AllReduce, self.outside());
        Sequence::new(1)
            .then(self.has_others(), || self.home(Collective::Reduce, (INPUT, OUTPUT)))
            .then(self.goes_out(), || Part::new(self, Among::Leaders, all_reduce(), (sum, OUTPUT)))
            .then(self.has_others(), || self.home(Collective::Broadcast, (OUTPUT, OUTPUT)).shortened(self.is_leader()))
    }

    fn broadcast(&self) -> Sequence {
        let broadcast = || binomial::schedule(Collective::Broadcast, self.outside());
        // The root copies its input to its output at the end of the last part.
        let has = if self.is_root() { INPUT } else { OUTPUT };
        let copied = self.is_leader() && !self.is_root();
        Sequence::new(1)
            .then(self.goes_out(), || {
                let part = Part::new(self, Among::Leaders, broadcast(), (INPUT, OUTPUT));
                part.shortened(self.is_root() && self.has_others())
            })
            .then(self.has_others(), || self.home(Collective::Broadcast, (has, OUTPUT)).shortened(copied))
    }

    fn reduce(&self) -> Sequence {
        let reduce = || binomial::schedule(Collective::Reduce, self.outside());
        let kept = if self.is_root() { OUTPUT } else { SCRATCH };
        let sum = if self.has_others() { kept } else { INPUT };
        let sequence = Sequence::new(1)
            .then(self.has_others(), || self.home(Collective::Reduce, (INPUT, kept)))
            .then(self.goes_out(), || {
                Part::new(self, Among::Leaders, reduce(), (sum, OUTPUT)).with_scratch(SCRATCH.starting(1))
            });
        sequence.with_scratch((self.is_leader() && !self.is_root() && self.has_others()) as usize)
    }

    fn reduce_scatter(&self) -> Sequence {
        let all = self.hosts.size();
        let (input, sums) = (INPUT.of(all), SCRATCH.of(all));
        let sum = if self.has_others() { sums } else { input };
        let all_reduce = || recursive_doubling::schedule(Collective::AllReduce, self.outside());
        let sequence = Sequence::new(all)
            .then(self.has_others(), || self.home(Collective::Reduce, (input, sums)))
            .then(self.goes_out(), || Part::new(self, Among::Leaders, all_reduce(), (sum, sums)))
            .then(true, || Deal(self.clone()));
        sequence.with_scratch(if self.is_leader() { all } else { 0 })
    }

    fn barrier(&self) -> Sequence {
        let barrier = || Some(Box::new(dissemination::Dissemination::new(self.outside())) as Box<dyn Schedule>);
        Sequence::new(1)
            .then(self.has_others(), || signals::Up(self.clone()))
            .then(self.goes_out(), || Part::new(self, Among::Leaders, barrier(), (INPUT, OUTPUT)))
            .then(self.has_others(), || signals::Down(self.clone()))
    }
}

/// The end of a reduce-scatter: the leader has all sums in scratch, by rank, and deals out those of its host.
struct Deal(Team);

impl Schedule for Deal {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        if self.0.is_leader() { self.0.local } else { 1 }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let Team { hosts, host, rank, local, .. } = &self.0;
        let dst = Region::output(0, 1);
        if !self.0.is_leader() {
            Step::Recv { from: self.0.leader(*host), dst }
        } else if i + 1 < *local {
            // The leader's place is 0: reduce-scatter has no root.
            let to = hosts.rank(*host, i + 1);
            Step::Send { to, src: Region::scratch(to, 1) }
        } else {
            Step::Copy { src: Region::scratch(*rank, 1), dst }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
