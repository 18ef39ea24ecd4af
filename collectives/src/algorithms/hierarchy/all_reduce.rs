//! All-reduce: reduce-scatter on each host, a ring across hosts for each column, all-gather on each host.
//!
//! A block has a piece for each host and column. Carriers sum up their column's pieces over their host, and pass them
//! round the hosts exactly as `ring` does round the ranks. The three phases are interleaved piece by piece, so that
//! memory and network work at the same time. In turn t of the first half, each host:
//!
//! ```text
//!   sums up piece (host - t) of each column in a circle that ends at its carrier,
//!   and adds that to what comes from the host before, which it sends to the host after
//! ```
//!
//! After h turns each piece is finished on one host. In the second half, turns h to 2h-1, the carriers pass finished
//! pieces on, and hand them out to the other ranks of their host. The bytes over a host's link, each way, are 2(h-1)/h
//! of the buffer, the least possible, whatever the number of ranks on it.
//!
//! Two lanes on two channels have half of the pieces each: while one hands out the last pieces of a slice and sums up the
//! first of the next, the network belongs to the other.
//!
//! Each rank's input of a piece is read before the result comes, so in place needs nothing more. Each piece is finished
//! by one rank and copied to the others, so all ranks end with the same bits.

use super::{Stand, View};
use crate::schedule::{Operands, Region, Schedule, Step};

/// How many lanes share the pieces.
const LANES: usize = 2;

#[derive(Clone, Debug)]
pub(super) struct AllReduce(pub(super) View);

impl AllReduce {
    /// How many steps across the network this rank has in a turn. The first turn of the second half finds its pieces
    /// in place.
    fn moves(&self, turn: usize) -> usize {
        let hosts = self.0.count();
        (self.0.carries() && hosts > 1 && turn != hosts) as usize
    }

    /// The turn to which a step belongs, and its number there.
    fn turn(&self, i: usize) -> (usize, usize) {
        let (hosts, inside) = (self.0.count(), self.0.circles(self.0.columns));
        let moving = inside + self.moves(0);
        if i < hosts * moving {
            return (i / moving, i % moving);
        }
        match i - hosts * moving {
            i if i < inside => (hosts, i),
            i => (hosts + 1 + (i - inside) / moving, (i - inside) % moving),
        }
    }

    /// The chunk of a column that a turn is about.
    fn chunk(&self, lane: usize, turn: usize, column: usize) -> usize {
        let hosts = self.0.count();
        let piece = self.0.before(if turn < hosts { turn } else { turn - 1 });
        (lane * hosts + piece) * self.0.columns + column
    }

    /// A carrier's step across the network.
    fn across(&self, lane: usize, turn: usize) -> Step {
        let hosts = self.0.count();
        let (from, to) = self.0.across();
        let chunk = self.chunk(lane, turn, self.0.place);
        let dst = Region::output(chunk, 1);
        // What the host has summed up; a rank alone on its host has only its input.
        let local = if self.0.local > 1 { dst } else { Region::input(chunk, 1) };
        if turn == 0 {
            Step::Send { to, src: local }
        } else if turn < hosts {
            let dst = (turn == hosts - 1).then_some(dst);
            Step::RecvReduceSend { from, local, order: Operands::PeerFirst, dst, to }
        } else if turn < 2 * hosts - 1 {
            Step::RecvCopySend { from, dst, to }
        } else {
            Step::Recv { from, dst }
        }
    }

    /// Step `i` of a turn of the first half: the circles, then the network.
    fn sum_up(&self, lane: usize, turn: usize, i: usize) -> Step {
        if i == self.0.circles(self.0.columns) {
            return self.across(lane, turn);
        }
        let (column, stand) = self.0.gathering(0, self.0.columns, i);
        let chunk = self.chunk(lane, turn, column);
        let own = Region::input(chunk, 1);
        if stand == Stand::Last {
            let (from, dst) = (self.0.previous(), Region::output(chunk, 1));
            return Step::RecvReduce { from, local: own, order: Operands::PeerFirst, dst };
        }
        self.0.add_on(stand, own)
    }

    /// Step `i` of a turn of the second half: the network, then the circles.
    fn hand_out(&self, lane: usize, turn: usize, i: usize) -> Step {
        let moves = self.moves(turn);
        if i < moves {
            return self.across(lane, turn);
        }
        let (column, stand) = self.0.spreading(0, self.0.columns, i - moves);
        self.0.hand_on(stand, Region::output(self.chunk(lane, turn, column), 1))
    }
}

impl Schedule for AllReduce {
    fn pieces(&self) -> usize {
        LANES * self.0.count() * self.0.columns
    }
    fn lanes(&self) -> usize {
        LANES
    }
    fn channel(&self, lane: usize) -> usize {
        lane
    }
    fn steps(&self, _lane: usize) -> usize {
        let hosts = self.0.count();
        2 * hosts * self.0.circles(self.0.columns) + (2 * hosts - 1) * self.moves(0)
    }
    fn step(&self, lane: usize, i: usize) -> Step {
        let (turn, i) = self.turn(i);
        if turn < self.0.count() { self.sum_up(lane, turn, i) } else { self.hand_out(lane, turn, i) }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
