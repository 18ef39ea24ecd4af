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

use super::{after, outward};
use crate::schedule::{Collective, Operands, Place, Rank, Region, Schedule, Step};

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

    /// Whether `rank` publishes. In rooted collectives data flows one way.
    fn publishes(&self, rank: Rank) -> bool {
        match self.collective {
            Collective::Broadcast | Collective::Scatter => rank == self.place.root,
            Collective::Reduce | Collective::Gather => rank != self.place.root,
            Collective::Scan | Collective::ExclusiveScan => rank + 1 < self.place.size,
            _ => true,
        }
    }

    /// What this rank publishes: of n blocks all, though it needs its own itself; with 2 ranks only the peer's.
    fn publication(&self) -> Region {
        let Place { rank, size, .. } = self.place;
        match self.collective {
            Collective::Barrier => Region::EMPTY,
            Collective::ReduceScatter | Collective::AllToAll | Collective::Scatter if size == 2 => {
                Region::input(1 - rank, 1)
            }
            Collective::ReduceScatter | Collective::AllToAll | Collective::Scatter => Region::input(0, size),
            _ => INPUT,
        }
    }

    /// Where in a publication of n blocks this rank's lies.
    fn mine(&self) -> usize {
        match self.collective {
            Collective::ReduceScatter | Collective::AllToAll | Collective::Scatter if self.place.size > 2 => {
                self.place.rank
            }
            _ => 0,
        }
    }

    /// Whether this rank collects everybody's blocks, its own among them.
    fn copies_own(&self) -> bool {
        match self.collective {
            Collective::AllGather | Collective::AllToAll => true,
            Collective::Gather => self.place.rank == self.place.root,
            _ => false,
        }
    }

    /// The `i`-th step after publishing.
    fn use_step(&self, i: usize) -> Step {
        let Place { rank, size, root } = self.place;
        let at = self.mine();
        // Where the own block is copied, that comes first: it needs nobody, and so covers the wait for the peers.
        let copies_own = self.copies_own();
        let copy_own = copies_own && i == 0;
        // Where order does not matter each rank starts with the next one, so that they do not all read from the same.
        let peer = after(rank, i + !copies_own as usize, size);
        match self.collective {
            Collective::AllReduce => fold_in_rank_order(rank, i),
            Collective::Reduce if rank != root => credit(self.other_publisher(i)),
            Collective::Reduce | Collective::ReduceScatter => {
                let (from, order) = outward(rank, i, size);
                let own = if self.collective == Collective::Reduce { INPUT } else { Region::input(rank, 1) };
                let local = if i == 0 { own } else { OUTPUT };
                Step::FetchReduce { from, nth: 0, at, local, order, dst: OUTPUT }
            }
            Collective::Broadcast if rank == root => Step::Copy { src: INPUT, dst: OUTPUT },
            Collective::Scatter if rank == root => Step::Copy { src: Region::input(rank, 1), dst: OUTPUT },
            Collective::Broadcast | Collective::Scatter => Step::Fetch { from: root, nth: 0, at, dst: OUTPUT },
            Collective::Gather if rank != root => credit(self.other_publisher(i)),
            Collective::AllGather | Collective::Gather if copy_own => {
                Step::Copy { src: INPUT, dst: Region::output(rank, 1) }
            }
            Collective::AllToAll if copy_own => {
                Step::Copy { src: Region::input(rank, 1), dst: Region::output(rank, 1) }
            }
            Collective::AllGather | Collective::Gather | Collective::AllToAll => {
                Step::Fetch { from: peer, nth: 0, at, dst: Region::output(peer, 1) }
            }
            Collective::Scan => scan(rank, i),
            Collective::ExclusiveScan if i < rank => fold_others(i, OUTPUT),
            Collective::ExclusiveScan => credit(i + 1),
            Collective::Barrier => credit(peer),
        }
    }

    /// Reduce and gather, away from the root: the `i`-th rank that is neither this one nor the root.
    fn other_publisher(&self, i: usize) -> Rank {
        let Place { rank, size, root } = self.place;
        let root_distance = (root + size - rank) % size;
        after(rank, if i + 1 < root_distance { i + 1 } else { i + 2 }, size)
    }

    fn use_steps(&self) -> usize {
        let Place { rank, size, root } = self.place;
        match self.collective {
            Collective::AllReduce if rank < 2 => size - 1,
            Collective::AllReduce => size,
            Collective::ReduceScatter | Collective::Barrier => size - 1,
            Collective::AllGather | Collective::AllToAll => size,
            Collective::Broadcast | Collective::Scatter => 1,
            Collective::Reduce | Collective::Gather if rank != root => size - 2,
            Collective::Reduce => size - 1,
            Collective::Gather => size,
            // The own operand, and the publications of all but the last rank.
            Collective::Scan if rank == 0 => size - 1,
            Collective::Scan => (size - 1 - (rank + 1 < size) as usize) + (rank > 1) as usize,
            Collective::ExclusiveScan => size - 1 - (rank + 1 < size) as usize,
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
        (self.collective == Collective::Scan && self.place.rank > 1) as usize
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
        match self.collective {
            Collective::ReduceScatter | Collective::AllToAll | Collective::Scatter if self.place.size > 2 => {
                self.place.size
            }
            _ => 1,
        }
    }
}
