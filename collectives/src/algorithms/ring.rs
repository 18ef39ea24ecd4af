//! Ring: all-reduce, reduce-scatter, all-gather.
//!
//! Source: P. Patarasuk, X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", J. Parallel
//! Distrib. Comput. 69 (2009); the circle itself is older folklore. Each rank talks to two neighbours only and moves
//! 2(n-1)/n of the message, the least possible; it needs 2(n-1) hops, so it suits large messages.
//!
//! Data goes upwards: rank r sends to r+1. All-reduce over 3 ranks, pieces a, b, c; a capital is a finished piece:
//!
//! ```text
//!   rank 0          rank 1          rank 2
//!   a0 ->           b1 ->           c2 ->           each starts with its own piece
//!   c2+c0 ->        a0+a1 ->        b1+b2 ->        receive, add own, pass on (dst: nowhere, it is not finished)
//!   B = b1+b2+b0 -> C = ... ->      A = ... ->      the n-th rank to add finishes the piece: keep it and pass it on
//!   A, keep ->      B, keep ->      C, keep ->      n-2 times: keep and pass on
//!   C, keep         A, keep         B, keep         the last piece goes no further
//! ```
//!
//! Each rank reads each chunk of its input once, before it writes the same chunk of the output: in place needs nothing
//! more. Each piece is finished on one rank and copied to the others, so all ranks end with the same bits.

use super::entry::{Entry, Sides, serves};
use super::{after, before};
use crate::schedule::{Collective, Operands, Place, Rank, Region, Schedule, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "ring",
    sides: Sides::Two,
    minds_hosts: false,
    serves: &[serves(Collective::AllReduce), serves(Collective::ReduceScatter), serves(Collective::AllGather)],
    schedule: |collective, place, _| schedule(collective, place),
};

pub(super) fn schedule(collective: Collective, place: Place) -> Option<Box<dyn Schedule>> {
    let ring = Ring { rank: place.rank, size: place.size };
    match collective {
        Collective::AllReduce => Some(Box::new(AllReduce(ring))),
        Collective::ReduceScatter => Some(Box::new(ReduceScatter(ring))),
        Collective::AllGather => Some(Box::new(AllGather(ring))),
        _ => None,
    }
}

/// A place on the circle.
#[derive(Clone, Copy, Debug)]
struct Ring {
    rank: Rank,
    size: usize,
}

impl Ring {
    fn next(self) -> Rank {
        after(self.rank, 1, self.size)
    }
    fn previous(self) -> Rank {
        before(self.rank, 1, self.size)
    }
    /// The rank `hops` before this one, whose piece or block has travelled `hops` links when it gets here.
    fn origin(self, hops: usize) -> Rank {
        before(self.rank, hops % self.size, self.size)
    }
}

#[derive(Clone, Copy, Debug)]
struct AllReduce(Ring);

impl Schedule for AllReduce {
    fn pieces(&self) -> usize {
        self.0.size
    }
    fn steps(&self, _lane: usize) -> usize {
        2 * self.0.size - 1
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let Ring { rank, size } = self.0;
        let (from, to) = (self.0.previous(), self.0.next());
        let piece = self.0.origin(i);
        let (input, output) = (Region::input(piece, 1), Region::output(piece, 1));
        if i == 0 {
            Step::Send { to, src: Region::input(rank, 1) }
        } else if i < size {
            let dst = (i == size - 1).then_some(output);
            Step::RecvReduceSend { from, local: input, order: Operands::PeerFirst, dst, to }
        } else if i < 2 * size - 2 {
            Step::RecvCopySend { from, dst: output, to }
        } else {
            Step::Recv { from, dst: output }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// The first half of all-reduce on whole blocks, started one block earlier so that block r ends on rank r.
#[derive(Clone, Copy, Debug)]
struct ReduceScatter(Ring);

impl Schedule for ReduceScatter {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        self.0.size
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let (from, to) = (self.0.previous(), self.0.next());
        let local = Region::input(self.0.origin(i + 1), 1);
        if i == 0 {
            Step::Send { to, src: local }
        } else if i < self.0.size - 1 {
            Step::RecvReduceSend { from, local, order: Operands::PeerFirst, dst: None, to }
        } else {
            Step::RecvReduce { from, local, order: Operands::PeerFirst, dst: Region::output(0, 1) }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// The second half of all-reduce on whole blocks.
#[derive(Clone, Copy, Debug)]
struct AllGather(Ring);

impl Schedule for AllGather {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        self.0.size + 1
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let Ring { rank, size } = self.0;
        let (from, to) = (self.0.previous(), self.0.next());
        match i {
            0 => Step::Send { to, src: Region::input(0, 1) },
            1 => Step::Copy { src: Region::input(0, 1), dst: Region::output(rank, 1) },
            _ => {
                let dst = Region::output(self.0.origin(i - 1), 1);
                if i < size { Step::RecvCopySend { from, dst, to } } else { Step::Recv { from, dst } }
            }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
