//! Direct collectives that combine: each operand waits for its turn.
//!
//! *All-reduce, reduce, reduce-scatter* fold the canonical way, ((x0 + x1) + x2) + ... whatever the transport, the size of
//! messages or the layout of ranks on hosts. Piece (or block) p goes to rank p from everybody, and rank p adds what
//! comes, in rank order, however much sooner others may come; its own operand waits for its turn:
//!
//! ```text
//!   rank 2 of 4:   send pieces 3, 0, 1 to their ranks
//!                  s = from 0;   s += from 1;   out = s + own;   out += from 3
//!                  all-reduce: send out to all, receive the others' results      reduce: send out to the root
//! ```
//!
//! All-reduce so moves as little as a ring does, in two hops and n-1 additions one after the other. In place, what has
//! come so far must lie elsewhere until the own operand has been added: in scratch, at the piece's own number, since
//! pieces may differ in length.
//!
//! A scan is the same with whole blocks, where rank r adds what comes from the ranks below it.

use super::super::{after, before};
use crate::schedule::{Operands, Place, Region, Schedule, Step};

/// Sends chunk p of the input to rank p, for all others: step `i` of n-1.
fn hand_out(place: Place, i: usize) -> Step {
    let to = after(place.rank, 1 + i, place.size);
    Step::Send { to, src: Region::input(to, 1) }
}

/// How many steps the fold of one rank has: ranks 0 and 1 join two operands in their first.
fn fold_steps(place: Place) -> usize {
    place.size - 1 + (place.rank > 1) as usize
}

/// Step `i` of x0 + x1 + x2 + ... for this rank's chunk of the input. `partial` holds the sum until the own operand's
/// turn, `result` afterwards.
fn fold(place: Place, i: usize, partial: Region, result: Region) -> Step {
    let rank = place.rank;
    let own = Region::input(rank, 1);
    let add = |from, sum| Step::RecvReduce { from, local: sum, order: Operands::LocalFirst, dst: result };
    match (rank, i) {
        (0, 0) => add(1, own),
        (1, 0) => Step::RecvReduce { from: 0, local: own, order: Operands::PeerFirst, dst: result },
        (0 | 1, _) => add(i + 1, result),
        (_, 0) => Step::Recv { from: 0, dst: partial },
        _ if i < rank => Step::RecvReduce { from: i, local: partial, order: Operands::LocalFirst, dst: partial },
        _ if i == rank => Step::Reduce { a: partial, b: own, dst: result },
        _ => add(i, result),
    }
}

/// All-reduce and reduce, cut in n pieces. One lane: what a rank is sent second, a result, comes on the same link as what
/// it is sent first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pieces {
    pub place: Place,
    /// Whether only the root gets the result.
    pub at_root: bool,
}

impl Pieces {
    fn partial(&self) -> Region {
        Region::scratch(self.place.rank, 1)
    }

    /// Where this rank's piece of the result comes to lie.
    fn result(&self) -> Region {
        let Place { rank, root, .. } = self.place;
        match self.at_root {
            true if rank != root => self.partial(),
            _ => Region::output(rank, 1),
        }
    }

    /// Step `i` after the fold.
    fn spread(&self, i: usize) -> Step {
        let Place { rank, size, root } = self.place;
        let send = |to| Step::Send { to, src: self.result() };
        let recv = |from| Step::Recv { from, dst: Region::output(from, 1) };
        match self.at_root {
            true if rank != root => send(root),
            true => recv(after(rank, 1 + i, size)),
            _ if i < size - 1 => send(after(rank, 1 + i, size)),
            _ => recv(before(rank, i + 2 - size, size)),
        }
    }
}

impl Schedule for Pieces {
    fn pieces(&self) -> usize {
        self.place.size
    }
    fn scratch(&self) -> usize {
        let Place { rank, root, .. } = self.place;
        let needed = rank > 1 || self.at_root && rank != root;
        if needed { rank + 1 } else { 0 }
    }
    fn steps(&self, _lane: usize) -> usize {
        let Place { rank, size, root } = self.place;
        let spread = match self.at_root {
            true if rank != root => 1,
            true => size - 1,
            _ => 2 * (size - 1),
        };
        size - 1 + fold_steps(self.place) + spread
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let (hand_outs, folds) = (self.place.size - 1, fold_steps(self.place));
        if i < hand_outs {
            hand_out(self.place, i)
        } else if i < hand_outs + folds {
            fold(self.place, i - hand_outs, self.partial(), self.result())
        } else {
            self.spread(i - hand_outs - folds)
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// Reduce-scatter, whose blocks are the pieces. Lane 0 hands out and may run ahead, lane 1 folds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks(pub Place);

impl Schedule for Blocks {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        (self.0.rank > 1) as usize
    }
    fn lanes(&self) -> usize {
        2
    }
    fn steps(&self, lane: usize) -> usize {
        if lane == 0 { self.0.size - 1 } else { fold_steps(self.0) }
    }
    fn step(&self, lane: usize, i: usize) -> Step {
        if lane == 0 { hand_out(self.0, i) } else { fold(self.0, i, Region::scratch(0, 1), Region::output(0, 1)) }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// The scans: each rank's operand goes to those above it, where it waits for its turn. One lane, so that a rank whose
/// output takes the place of its input has sent that before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Below {
    pub place: Place,
    /// Whether a rank's own operand is the last in its sum.
    pub with_own: bool,
}

impl Schedule for Below {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        (self.with_own && self.place.rank > 1) as usize
    }
    fn steps(&self, _lane: usize) -> usize {
        let Place { rank, size, .. } = self.place;
        // Rank 1 joins rank 0's operand with its own in one step; rank 0 only copies its own.
        size - 1 + (self.with_own && rank != 1) as usize
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let Place { rank, size, .. } = self.place;
        let (own, output) = (Region::input(0, 1), Region::output(0, 1));
        let above = size - 1 - rank;
        if i < above {
            return Step::Send { to: rank + 1 + i, src: own };
        }
        let from = i - above;
        let sum = if self.with_own { Region::scratch(0, 1) } else { output };
        match from {
            0 if self.with_own && rank == 0 => Step::Copy { src: own, dst: output },
            0 if self.with_own && rank == 1 => {
                Step::RecvReduce { from, local: own, order: Operands::PeerFirst, dst: output }
            }
            0 => Step::Recv { from, dst: sum },
            _ if from < rank => Step::RecvReduce { from, local: sum, order: Operands::LocalFirst, dst: sum },
            _ => Step::Reduce { a: sum, b: own, dst: output },
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
