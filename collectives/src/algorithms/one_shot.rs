//! One-shot: every rank publishes what others need, and everybody reads it where it lies. Any collective; ranks share
//! memory.
//!
//! Source: R. L. Graham, G. Shipman, "MPI support for multi-core architectures: optimized shared memory collectives",
//! EuroPVM/MPI 2008; on GPUs the one-shot all-reduce of MSCCL++ (A. Shah and others, arXiv:2504.09014) and
//! TensorRT-LLM. One synchronisation and no hop, but n-1 reads of whole blocks by every rank: for small messages and
//! few ranks.
//!
//! All-reduce is folded by every rank on its own, so the order must be the same on all: rank 0, 1, ..., n-1. In place
//! the first step of the fold overwrites the input, hence ranks from 2 on take their own operand, when its turn comes,
//! from their own publication:
//!
//! ```text
//!   rank 0:   publish x0;   out = x0 + fetch(1);   out += fetch(2);   out += fetch(3)
//!   rank 2:   publish x2;   out = fetch(0);   out += fetch(1);   out += fetch(2) (its own);   out += fetch(3)
//! ```
//!
//! A scan is the same fold up to the own operand, which comes last and is taken from the input; hence the sum before it
//! is kept in scratch. The last rank's input is nobody else's business.
//!
//! Where only one rank computes an element, it starts with its own operand and folds outwards, see `outward`.
//!
//! Each publication must be fetched from once by every other rank, which is how the publisher learns that it may
//! publish again. Where a rank needs nothing of it (gather and reduce, away from the root) it fetches no chunks.

use super::entry::{Entry, Service, Sides, serves};
use super::{after, before, outward};
use crate::catalogue::{Givers, Meaning};
use crate::schedule::{Collective, Operands, Place, Rank, Region, Schedule, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "one_shot",
    sides: Sides::One,
    minds_hosts: false,
    serves: &SERVES,
    schedule: |collective, place, _| Some(Box::new(OneShot::new(collective, place))),
};

/// Every collective that there is.
const SERVES: [Service; Collective::ALL.len()] = {
    let mut all = [serves(Collective::ALL[0]); Collective::ALL.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = promise(Collective::ALL[i]);
        i += 1;
    }
    all
};

/// In place a fold in rank order overwrites at once the input that others read; elsewhere the blocks that are written
/// are those that nobody fetches. All-to-all has no form in place.
const fn promise(collective: Collective) -> Service {
    let Meaning { input, output, givers, .. } = *collective.meaning();
    let folds_at_once = collective.is_scan() || collective.reduces() && collective.gives_all_the_same();
    match givers {
        _ if folds_at_once => serves(collective).left_to_right(),
        _ if collective.is_barrier() || input.are_for_each() && output.are_for_each() => serves(collective),
        Givers::All => serves(collective).in_rank_order().lends_in_place(),
        _ => serves(collective).lends_in_place(),
    }
}

/// What a rank does with what the others publish.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// It only lets all publications go: there are no blocks, or none for it.
    Nothing,
    /// A block of each rank's, one after the other, its own among them.
    Collect,
    /// The one block of the root's that is for it.
    Take,
    /// The root's part in that: its own.
    Keep,
    /// It alone computes the reduction of all.
    FoldOutward,
    /// All ranks compute the reduction of all, and must do so alike.
    FoldInRankOrder,
    /// The reduction of what comes before it, with its own operand.
    Scan,
    /// The same without.
    ScanBefore,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct OneShot {
    collective: Collective,
    place: Place,
}

const INPUT: Region = Region::input(0, 1);
const OUTPUT: Region = Region::output(0, 1);

impl OneShot {
    pub(super) const fn new(collective: Collective, place: Place) -> OneShot {
        OneShot { collective, place }
    }

    /// Whether `rank` publishes: whether others need its input, or its coming.
    fn publishes(&self, rank: Rank) -> bool {
        let Place { size, root, .. } = self.place;
        let Meaning { output, givers, .. } = *self.collective.meaning();
        match givers {
            Givers::Root => rank == root,
            Givers::UpTo | Givers::Before => rank + 1 < size,
            Givers::All | Givers::Owner => !(output.are_at_root() && rank == root),
        }
    }

    /// Of how many ranks, beside this one, there are publications.
    fn other_publications(&self) -> usize {
        let Place { rank, size, .. } = self.place;
        let all = match self.collective.meaning().givers {
            Givers::Root => 1,
            Givers::UpTo | Givers::Before => size - 1,
            Givers::All | Givers::Owner => size - self.collective.meaning().output.are_at_root() as usize,
        };
        all - self.publishes(rank) as usize
    }

    fn what_for(&self) -> Use {
        let Place { rank, root, .. } = self.place;
        let Meaning { input, output, givers, .. } = *self.collective.meaning();
        match givers {
            _ if self.collective.is_barrier() => Use::Nothing,
            Givers::Root if rank == root => Use::Keep,
            Givers::Root => Use::Take,
            _ if output.are_at_root() && rank != root => Use::Nothing,
            Givers::Owner => Use::Collect,
            Givers::UpTo => Use::Scan,
            Givers::Before => Use::ScanBefore,
            Givers::All if input.are_for_each() || output.are_at_root() => Use::FoldOutward,
            Givers::All => Use::FoldInRankOrder,
        }
    }

    /// Whether inputs have a block for each rank.
    fn for_each(&self) -> bool {
        self.collective.meaning().input.are_for_each()
    }

    /// This rank's own operand, or its block for itself.
    fn own(&self) -> Region {
        if self.for_each() { Region::input(self.place.rank, 1) } else { INPUT }
    }

    /// What this rank publishes: of n blocks all, though it needs its own itself; with 2 ranks only the peer's.
    fn publication(&self) -> Region {
        let Place { rank, size, .. } = self.place;
        match size {
            _ if self.collective.is_barrier() => Region::EMPTY,
            2 if self.for_each() => Region::input(1 - rank, 1),
            _ if self.for_each() => Region::input(0, size),
            _ => INPUT,
        }
    }

    /// Where in a publication this rank's block lies.
    fn mine(&self) -> usize {
        if self.for_each() && self.place.size > 2 { self.place.rank } else { 0 }
    }

    /// The `i`-th step after publishing.
    fn use_step(&self, i: usize) -> Step {
        let Place { rank, size, root } = self.place;
        let at = self.mine();
        match self.what_for() {
            Use::Nothing => credit(self.other_publisher(i)),
            // The own block comes first: it needs nobody, and so covers the wait for the peers.
            Use::Collect if i == 0 => Step::Copy { src: self.own(), dst: Region::output(rank, 1) },
            Use::Collect => {
                // Each rank starts with the next one, so that they do not all read from the same.
                let peer = after(rank, i, size);
                Step::Fetch { from: peer, nth: 0, at, dst: Region::output(peer, 1) }
            }
            Use::Take => Step::Fetch { from: root, nth: 0, at, dst: OUTPUT },
            Use::Keep => Step::Copy { src: self.own(), dst: OUTPUT },
            Use::FoldOutward => {
                let (from, order) = outward(rank, i, size);
                let local = if i == 0 { self.own() } else { OUTPUT };
                Step::FetchReduce { from, nth: 0, at, local, order, dst: OUTPUT }
            }
            Use::FoldInRankOrder => fold_in_rank_order(rank, i),
            Use::Scan => scan(rank, i),
            Use::ScanBefore if i < rank => fold_others(i, OUTPUT),
            Use::ScanBefore => credit(i + 1),
        }
    }

    /// Where a rank lets everything go: the `i`-th publisher, the next rank first.
    fn other_publisher(&self, i: usize) -> Rank {
        let Place { rank, size, root } = self.place;
        let absent = if self.publishes(root) { size } else { before(root, rank, size) };
        after(rank, if i + 1 < absent { i + 1 } else { i + 2 }, size)
    }

    fn use_steps(&self) -> usize {
        let rank = self.place.rank;
        let others = self.other_publications();
        match self.what_for() {
            Use::Nothing | Use::Take | Use::FoldOutward | Use::ScanBefore => others,
            Use::Keep => 1,
            Use::Collect => others + 1,
            // The own operand is a step of its own where two others have been joined before; rank 0 of a scan copies it.
            Use::FoldInRankOrder => others + (rank > 1) as usize,
            Use::Scan => others + (rank > 1) as usize + (rank == 0) as usize,
        }
    }
}

/// Wait for a publication and let its place go.
fn credit(from: Rank) -> Step {
    Step::Fetch { from, nth: 0, at: 0, dst: Region::EMPTY }
}

/// Step `i` of x0 + x1 + x2 + ... with one block from everybody. Ranks 0 and 1 join two operands in their first step.
fn fold_in_rank_order(rank: Rank, i: usize) -> Step {
    let reduce = |from, local, order| Step::FetchReduce { from, nth: 0, at: 0, local, order, dst: OUTPUT };
    match (rank, i) {
        (0, 0) => reduce(1, INPUT, Operands::LocalFirst),
        (1, 0) => reduce(0, INPUT, Operands::PeerFirst),
        (0 | 1, _) => reduce(i + 1, OUTPUT, Operands::LocalFirst),
        (_, 0) => Step::Fetch { from: 0, nth: 0, at: 0, dst: OUTPUT },
        _ => reduce(i, OUTPUT, Operands::LocalFirst),
    }
}

/// Step `i` of x0 + x1 + ... in `sum`, all of them other ranks'.
fn fold_others(i: usize, sum: Region) -> Step {
    match i {
        0 => Step::Fetch { from: 0, nth: 0, at: 0, dst: sum },
        _ => Step::FetchReduce { from: i, nth: 0, at: 0, local: sum, order: Operands::LocalFirst, dst: sum },
    }
}

/// Step `i` of a scan: the ranks before, the own operand, and then the publications that are only let go.
fn scan(rank: Rank, i: usize) -> Step {
    let sum = Region::scratch(0, 1);
    match (rank, i) {
        (0, 0) => Step::Copy { src: INPUT, dst: OUTPUT },
        (1, 0) => fold_in_rank_order(1, 0),
        (1, _) => credit(i + 1),
        _ if i < rank => fold_others(i, sum),
        _ if i == rank => Step::Reduce { a: sum, b: INPUT, dst: OUTPUT },
        _ => credit(i),
    }
}

impl Schedule for OneShot {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        (matches!(self.what_for(), Use::Scan) && self.place.rank > 1) as usize
    }
    fn steps(&self, _lane: usize) -> usize {
        self.publishes(self.place.rank) as usize + self.use_steps()
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        match (self.publishes(self.place.rank), i) {
            (true, 0) => Step::Publish { src: self.publication() },
            (true, _) => self.use_step(i - 1),
            (false, _) => self.use_step(i),
        }
    }
    fn message_chunks(&self) -> usize {
        if self.for_each() && self.place.size > 2 { self.place.size } else { 1 }
    }
}
