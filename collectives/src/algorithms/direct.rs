//! Direct: every rank to every rank without detours, all pairs at once.
//!
//! Source: folklore, as "linear" or "spread" in most libraries; for all-to-all see R. Thakur, R. Rabenseifner, W. Gropp,
//! "Optimization of collective communication operations in MPICH", Int. J. High Perform. Comput. Appl. 19 (2005).
//!
//! *All-to-all, all-gather, gather, scatter*: each rank has one lane for each peer it sends to and one for each it
//! receives from, and one that copies its own block. So no pair of ranks waits for another pair, which matters where
//! blocks differ in length: a rank with little to move is done when that little is there. Each byte crosses one link,
//! once. The links of n-1 peers are in use at the same time, and a rank may be flooded: for uneven blocks, and for few
//! ranks.
//!
//! *All-reduce, reduce, reduce-scatter*: the canonical way, ((x0 + x1) + x2) + ... whatever the transport, the size of
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

use super::{after, before};
use crate::schedule::{Collective, Operands, Place, Region, Schedule, Step};

pub(super) fn schedule(collective: Collective, place: Place) -> Option<Box<dyn Schedule>> {
    match collective {
        Collective::AllToAll | Collective::AllGather => Some(Box::new(Exchange { collective, place })),
        Collective::Gather | Collective::Scatter => Some(Box::new(Star { collective, place })),
        Collective::AllReduce | Collective::Reduce => Some(Box::new(Fold { collective, place })),
        Collective::ReduceScatter => Some(Box::new(FoldBlocks(place))),
        _ => None,
    }
}

/// Everybody sends to everybody. Lanes: n-1 that send, to the next rank first; n-1 that receive, from the rank before
/// first; the copy.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    collective: Collective,
    place: Place,
}

impl Schedule for Exchange {
    fn pieces(&self) -> usize {
        1
    }
    fn lanes(&self) -> usize {
        2 * (self.place.size - 1) + 1
    }
    fn steps(&self, _lane: usize) -> usize {
        1
    }
    fn step(&self, lane: usize, _i: usize) -> Step {
        let Place { rank, size, .. } = self.place;
        let others = size - 1;
        let input_for = |peer| if self.collective == Collective::AllToAll { peer } else { 0 };
        if lane < others {
            let to = after(rank, lane + 1, size);
            Step::Send { to, src: Region::input(input_for(to), 1) }
        } else if lane < 2 * others {
            let from = before(rank, lane - others + 1, size);
            Step::Recv { from, dst: Region::output(from, 1) }
        } else {
            Step::Copy { src: Region::input(input_for(rank), 1), dst: Region::output(rank, 1) }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// The root and each other rank. Lanes: at the root n-1 that send or receive, and the copy; elsewhere the one to or from
/// the root.
#[derive(Clone, Copy, Debug)]
struct Star {
    collective: Collective,
    place: Place,
}

impl Schedule for Star {
    fn pieces(&self) -> usize {
        1
    }
    fn lanes(&self) -> usize {
        if self.place.rank == self.place.root { self.place.size } else { 1 }
    }
    fn steps(&self, _lane: usize) -> usize {
        1
    }
    fn step(&self, lane: usize, _i: usize) -> Step {
        let Place { rank, size, root } = self.place;
        let gathers = self.collective == Collective::Gather;
        let (input, output) = (Region::input(0, 1), Region::output(0, 1));
        if rank != root {
            return if gathers { Step::Send { to: root, src: input } } else { Step::Recv { from: root, dst: output } };
        }
        // The last lane, n-1, comes round to the root itself: its own block.
        let peer = after(root, lane + 1, size);
        match (gathers, peer == root) {
            (true, true) => Step::Copy { src: input, dst: Region::output(root, 1) },
            (true, false) => Step::Recv { from: peer, dst: Region::output(peer, 1) },
            (false, true) => Step::Copy { src: Region::input(root, 1), dst: output },
            (false, false) => Step::Send { to: peer, src: Region::input(peer, 1) },
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

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
struct Fold {
    collective: Collective,
    place: Place,
}

impl Fold {
    fn partial(&self) -> Region {
        Region::scratch(self.place.rank, 1)
    }

    /// Where this rank's piece of the result comes to lie.
    fn result(&self) -> Region {
        let Place { rank, root, .. } = self.place;
        match self.collective {
            Collective::Reduce if rank != root => self.partial(),
            _ => Region::output(rank, 1),
        }
    }

    /// Step `i` after the fold.
    fn spread(&self, i: usize) -> Step {
        let Place { rank, size, root } = self.place;
        let send = |to| Step::Send { to, src: self.result() };
        let recv = |from| Step::Recv { from, dst: Region::output(from, 1) };
        match self.collective {
            Collective::Reduce if rank != root => send(root),
            Collective::Reduce => recv(after(rank, 1 + i, size)),
            _ if i < size - 1 => send(after(rank, 1 + i, size)),
            _ => recv(before(rank, i + 2 - size, size)),
        }
    }
}

impl Schedule for Fold {
    fn pieces(&self) -> usize {
        self.place.size
    }
    fn scratch(&self) -> usize {
        let Place { rank, root, .. } = self.place;
        let needed = rank > 1 || self.collective == Collective::Reduce && rank != root;
        if needed { rank + 1 } else { 0 }
    }
    fn steps(&self, _lane: usize) -> usize {
        let Place { rank, size, root } = self.place;
        let spread = match self.collective {
            Collective::Reduce if rank != root => 1,
            Collective::Reduce => size - 1,
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
struct FoldBlocks(Place);

impl Schedule for FoldBlocks {
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
