//! Recursive doubling: all-reduce in log2 n exchanges of the whole vector.
//!
//! Source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication operations in MPICH", Int.
//! J. High Perform. Comput. Appl. 19 (2005). In phase k each rank exchanges all it has summed with the rank at distance
//! 2^k. Few hops, but each carries everything: for small messages. Worlds that are no power of two: see `pairs`.
//!
//! ```text
//!   4 ranks:   0 <-> 1, 2 <-> 3      then      0 <-> 2, 1 <-> 3
//!              x0+x1     x2+x3                 (x0+x1) + (x2+x3) on all four
//! ```
//!
//! Every rank computes the whole sum itself; all use the same tree of additions with the lower ranks' operand first,
//! and so end with the same bits.

use super::pairs::{Part, Player};
use crate::schedule::{Operands, Place, Region, Schedule, Step};

#[derive(Clone, Copy, Debug)]
pub(super) struct RecursiveDoubling {
    part: Part,
}

impl RecursiveDoubling {
    pub(super) fn new(place: Place) -> RecursiveDoubling {
        RecursiveDoubling { part: Part::new(place) }
    }
}

const INPUT: Region = Region::input(0, 1);
const OUTPUT: Region = Region::output(0, 1);

impl Schedule for RecursiveDoubling {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        match self.part {
            Part::Folded { .. } => 2,
            Part::Player(Player { phases, folded, .. }) => 2 * phases + 2 * folded.is_some() as usize,
        }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let player = match self.part {
            Part::Folded { keeper } if i == 0 => return Step::Send { to: keeper, src: INPUT },
            Part::Folded { keeper } => return Step::Recv { from: keeper, dst: OUTPUT },
            Part::Player(player) => player,
        };
        let i = match player.folded {
            Some(from) if i == 0 => {
                return Step::RecvReduce { from, local: INPUT, order: Operands::LocalFirst, dst: OUTPUT };
            }
            Some(to) if i == 2 * player.phases + 1 => return Step::Send { to, src: OUTPUT },
            Some(_) => i - 1,
            None => i,
        };
        let phase = i / 2;
        let (number, peer) = player.partner(phase);
        // Until the first reduction has filled the output, what this rank has is its input.
        let sum = if phase == 0 && player.folded.is_none() { INPUT } else { OUTPUT };
        if i.is_multiple_of(2) {
            Step::Send { to: peer, src: sum }
        } else {
            let order = if number < player.number { Operands::PeerFirst } else { Operands::LocalFirst };
            Step::RecvReduce { from: peer, local: sum, order, dst: OUTPUT }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
