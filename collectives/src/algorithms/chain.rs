//! Chain: broadcast, reduce and the scans along a line of neighbours.
//!
//! Source: folklore; compared with the trees in J. Pješivac-Grbović and others, "Performance analysis of MPI collective
//! operations", Cluster Computing 10 (2007). The pipeline comes from the executor's rounds: while slice 0 reaches the far
//! end, the root already sends slice n-2. A large message costs one transfer of itself and n-2 slices more.
//!
//! ```text
//!   broadcast from 2 of 4:   2 -> 3 -> 0 -> 1
//!   reduce to 2 of 4:        3 -> 0 -> 1 -> 2      each adds its own to what comes
//!   scan:                    0 -> 1 -> 2 -> 3      and keeps the sum
//!   exclusive scan:          0 -> 1 -> 2 -> 3      and keeps what came
//! ```
//!
//! What comes is the first operand, so the scans are left folds in rank order.

use super::entry::{Entry, Sides, serves};
use super::{after, before};
use crate::schedule::{Collective, Operands, Place, Region, Schedule, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "chain",
    sides: Sides::Two,
    minds_hosts: false,
    serves: &[
        serves(Collective::Broadcast),
        serves(Collective::Reduce),
        serves(Collective::Scan).left_to_right(),
        serves(Collective::ExclusiveScan).left_to_right(),
    ],
    schedule: |collective, place, _| schedule(collective, place),
};

pub(super) fn schedule(collective: Collective, place: Place) -> Option<Box<dyn Schedule>> {
    match collective {
        Collective::Broadcast => Some(Box::new(Broadcast(place))),
        Collective::Reduce => Some(Box::new(Reduce(place))),
        Collective::Scan => Some(Box::new(Scan(place))),
        Collective::ExclusiveScan => Some(Box::new(ExclusiveScan(place))),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug)]
struct Broadcast(Place);

impl Schedule for Broadcast {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        if self.0.rank == self.0.root { 2 } else { 1 }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let Place { rank, size, root } = self.0;
        let (from, to) = (before(rank, 1, size), after(rank, 1, size));
        let dst = Region::output(0, 1);
        if rank == root {
            let src = Region::input(0, 1);
            if i == 0 { Step::Send { to, src } } else { Step::Copy { src, dst } }
        } else if to == root {
            Step::Recv { from, dst }
        } else {
            Step::RecvCopySend { from, dst, to }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

#[derive(Clone, Copy, Debug)]
struct Reduce(Place);

impl Schedule for Reduce {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        1
    }
    fn step(&self, _lane: usize, _i: usize) -> Step {
        let Place { rank, size, root } = self.0;
        let (from, to) = (before(rank, 1, size), after(rank, 1, size));
        let local = Region::input(0, 1);
        if rank == root {
            Step::RecvReduce { from, local, order: Operands::PeerFirst, dst: Region::output(0, 1) }
        } else if from == root {
            Step::Send { to, src: local }
        } else {
            Step::RecvReduceSend { from, local, order: Operands::PeerFirst, dst: None, to }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

#[derive(Clone, Copy, Debug)]
struct Scan(Place);

impl Schedule for Scan {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        if self.0.rank == 0 { 2 } else { 1 }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let Place { rank, size, .. } = self.0;
        let (local, dst) = (Region::input(0, 1), Region::output(0, 1));
        match rank {
            0 if i == 0 => Step::Send { to: 1, src: local },
            0 => Step::Copy { src: local, dst },
            _ if rank + 1 == size => Step::RecvReduce { from: rank - 1, local, order: Operands::PeerFirst, dst },
            _ => {
                let (from, to) = (rank - 1, rank + 1);
                Step::RecvReduceSend { from, local, order: Operands::PeerFirst, dst: Some(dst), to }
            }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// What came and what goes on differ, so a rank in the middle needs both, and its own operand. In place the output takes
/// the operand's memory: hence a copy, made while the ranks before are still at work.
#[derive(Clone, Copy, Debug)]
struct ExclusiveScan(Place);

impl ExclusiveScan {
    fn in_the_middle(&self) -> bool {
        self.0.rank > 0 && self.0.rank + 1 < self.0.size
    }
}

impl Schedule for ExclusiveScan {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        self.in_the_middle() as usize
    }
    fn steps(&self, _lane: usize) -> usize {
        if self.in_the_middle() { 4 } else { 1 }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let rank = self.0.rank;
        let (input, output, scratch) = (Region::input(0, 1), Region::output(0, 1), Region::scratch(0, 1));
        if rank == 0 {
            return Step::Send { to: 1, src: input };
        }
        let keep = Step::Recv { from: rank - 1, dst: output };
        if !self.in_the_middle() {
            return keep;
        }
        match i {
            0 => Step::Copy { src: input, dst: scratch },
            1 => keep,
            2 => Step::Reduce { a: output, b: scratch, dst: scratch },
            _ => Step::Send { to: rank + 1, src: scratch },
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
