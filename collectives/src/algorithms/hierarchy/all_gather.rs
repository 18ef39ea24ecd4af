//! All-gather: every block goes once round the hosts on its column, and in a circle on each host.
//!
//! In turn 0 of a layer (see `legs`) each rank's block goes round its own host, by which it comes to the carrier of its
//! column, who sends it to the next host. In turn t the blocks of the host t before come to this one; carriers pass them
//! on, and hand them out. Into each host comes what its ranks do not have, once; that is the least possible.
//!
//! Blocks go straight to where they belong, wherever a host's ranks stand in the world.

use super::View;
use super::legs::Legs;
use crate::schedule::{Rank, Region, Schedule, Step};

#[derive(Clone, Debug)]
pub(super) struct AllGather {
    view: View,
    rank: Rank,
    legs: Legs,
}

impl AllGather {
    pub(super) fn new(view: View, rank: Rank) -> AllGather {
        let legs = Legs::new(
            &view,
            |turn| view.before(turn),
            |_, blocks| view.circles(blocks) + (view.count() > 1 && view.place < blocks) as usize,
        );
        AllGather { view, rank, legs }
    }
}

impl Schedule for AllGather {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        1 + self.legs.steps()
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        if i == 0 {
            return Step::Copy { src: Region::input(0, 1), dst: Region::output(self.rank, 1) };
        }
        let view = &self.view;
        let (leg, i) = self.legs.find(i - 1);
        let blocks = leg.blocks(view);
        let block = |column| Region::output(leg.owner(view, column), 1);
        // Blocks of the own host start at their owners, others at the carriers, to whom they come first.
        let (circles, moves) = (view.circles(blocks), (view.place < blocks) as usize);
        if leg.turn == 0 {
            if i == circles {
                return Step::Send { to: view.across().1, src: block(view.place) };
            }
            let (column, stand) = view.spreading(leg.first as usize, blocks, i);
            return view.hand_on(stand, block(column));
        }
        if i < moves {
            let ((from, to), dst) = (view.across(), block(view.place));
            let last = leg.turn as usize + 1 == view.count();
            return if last { Step::Recv { from, dst } } else { Step::RecvCopySend { from, dst, to } };
        }
        let (column, stand) = view.spreading(0, blocks, i - moves);
        view.hand_on(stand, block(column))
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
