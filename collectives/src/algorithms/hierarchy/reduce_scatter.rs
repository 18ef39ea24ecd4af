//! Reduce-scatter: all-gather backwards. Every block is summed up on each host in a circle, and over the hosts on its
//! column.
//!
//! The sum of a block begins on the host after its owner's and goes round to the owner's. In turn t of a layer (see
//! `legs`) each host sums up the blocks of the host t+1 before it at their carriers, adds that to what comes from the
//! host before, and sends it to the host after; in the last turn the blocks are its own ranks', and a carrier that is not
//! the block's owner passes it to it.
//!
//! In place the output is the own block of the input, which its owner reads before the result comes.

use super::legs::{Leg, Legs};
use super::{Stand, View};
use crate::schedule::{Operands, Region, Schedule, Step};

/// Whatever comes is the first operand.
const ORDER: Operands = Operands::PeerFirst;

/// Where a carrier keeps its host's sum.
const SUM: Region = Region::scratch(0, 1);

#[derive(Clone, Debug)]
pub(super) struct ReduceScatter {
    view: View,
    legs: Legs,
}

impl ReduceScatter {
    pub(super) fn new(view: View) -> ReduceScatter {
        let legs = Legs::new(
            &view,
            |turn| view.before(turn + 1),
            |leg, blocks| {
                let across = view.place < blocks && ReduceScatter::moves(&view, leg);
                let passed_on = view.count() > 1 && ReduceScatter::is_owner(&view, leg, blocks) && leg.first > 0;
                view.circles(blocks) + across as usize + passed_on as usize
            },
        );
        ReduceScatter { view, legs }
    }

    /// Whether a carrier has a step across the network besides its circle. In the first turn the end of the circle is
    /// that step, unless there is none.
    fn moves(view: &View, leg: &Leg) -> bool {
        view.count() > 1 && (leg.turn > 0 || view.local == 1)
    }

    /// Whether the leg's blocks are this host's, and one of them is the own.
    fn is_owner(view: &View, leg: &Leg, blocks: usize) -> bool {
        leg.turn as usize + 1 == view.count() && (leg.first as usize..leg.first as usize + blocks).contains(&view.place)
    }

    /// A carrier's step across the network.
    fn across(&self, leg: &Leg) -> Step {
        let view = &self.view;
        let (from, to) = view.across();
        let owner = leg.owner(view, view.place);
        let local = if view.local > 1 { SUM } else { Region::input(owner, 1) };
        if leg.turn == 0 {
            Step::Send { to, src: local }
        } else if leg.turn as usize + 1 < view.count() {
            Step::RecvReduceSend { from, local, order: ORDER, dst: None, to }
        } else if leg.first == 0 {
            Step::RecvReduce { from, local, order: ORDER, dst: Region::output(0, 1) }
        } else {
            Step::RecvReduceSend { from, local, order: ORDER, dst: None, to: owner }
        }
    }

    /// The end of the own column's circle.
    fn sum(&self, leg: &Leg, own: Region) -> Step {
        let from = self.view.previous();
        if self.view.count() == 1 {
            Step::RecvReduce { from, local: own, order: ORDER, dst: Region::output(0, 1) }
        } else if leg.turn == 0 {
            Step::RecvReduceSend { from, local: own, order: ORDER, dst: None, to: self.view.across().1 }
        } else {
            Step::RecvReduce { from, local: own, order: ORDER, dst: SUM }
        }
    }
}

impl Schedule for ReduceScatter {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        (self.view.carries() && self.view.local > 1 && self.view.count() > 1) as usize
    }
    fn steps(&self, _lane: usize) -> usize {
        self.legs.steps()
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let view = &self.view;
        let (leg, i) = self.legs.find(i);
        let blocks = leg.blocks(view);
        if i < view.circles(blocks) {
            let (column, stand) = view.gathering(0, blocks, i);
            let own = Region::input(leg.owner(view, column), 1);
            return if stand == Stand::Last { self.sum(&leg, own) } else { view.add_on(stand, own) };
        }
        if view.place < blocks {
            return self.across(&leg);
        }
        // An owner who is no carrier.
        Step::Recv { from: view.beside(view.place - leg.first as usize), dst: Region::output(0, 1) }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
