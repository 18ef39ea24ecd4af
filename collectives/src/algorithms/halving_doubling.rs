//! Recursive halving and doubling: all-reduce as a reduce-scatter and an all-gather, each in log2 n exchanges.
//!
//! Source: R. Rabenseifner, "Optimization of collective reduction operations", ICCS 2004. As much data as a ring, in
//! 2 log2 n hops. The largest exchange is with the nearest rank. Worlds that are no power of two: see `pairs`; the fold
//! moves the whole vector twice more, so these pay for it.
//!
//! The vector is cut in as many pieces as there are players. In phase k players at distance 2^k split the window that
//! both hold in two, and each gets one half of it summed over both; afterwards the same phases backwards give the
//! halves back:
//!
//! ```text
//!   4 players, pieces abcd, the window of each after each phase
//!            0      1      2      3
//!            abcd   abcd   abcd   abcd
//!   k=0      ab     cd     ab     cd          sums over {0,1} and {2,3}
//!   k=1      a      c      b      d           sums over all
//!   k=1      ab     cd     ab     cd
//!   k=0      abcd   abcd   abcd   abcd
//! ```
//!
//! In phase k a player stands for 2^k neighbouring players, so that operands stay in rank order. Each piece is finished
//! by one player, so all ranks end with the same bits.

use super::entry::{Entry, Sides, serves};
use super::pairs::{Part, Player};
use crate::schedule::{Buffer, Collective, Operands, Place, Region, Schedule, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "halving_doubling",
    sides: Sides::Two,
    minds_hosts: false,
    serves: &[serves(Collective::AllReduce).in_rank_order()],
    schedule: |_, place, _| Some(Box::new(HalvingDoubling::new(place))),
};

#[derive(Clone, Copy, Debug)]
pub(super) struct HalvingDoubling {
    part: Part,
    pieces: usize,
    pairs: bool,
}

impl HalvingDoubling {
    pub(super) fn new(place: Place) -> HalvingDoubling {
        HalvingDoubling {
            part: Part::new(place),
            pieces: 1 << place.size.ilog2(),
            pairs: !place.size.is_power_of_two(),
        }
    }

    /// The window of player `number` when `phases` phases are over.
    fn window(&self, number: usize, phases: usize) -> (usize, usize) {
        let (mut first, mut len) = (0, self.pieces);
        for bit in 0..phases {
            len /= 2;
            first += (number >> bit & 1) * len;
        }
        (first, len)
    }
}

/// Steps of a player, the fold not counted: a send and a receive for each phase and way, of which one receive and one
/// send are fused.
fn exchanges(player: Player) -> usize {
    4 * player.phases - 1
}

impl Schedule for HalvingDoubling {
    fn pieces(&self) -> usize {
        self.pieces
    }
    fn steps(&self, _lane: usize) -> usize {
        match self.part {
            Part::Folded { .. } => 2,
            Part::Player(player) => exchanges(player) + 2 * player.folded.is_some() as usize,
        }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let whole = |buffer| Region { buffer, first: 0, len: self.pieces };
        let (input, output) = (whole(Buffer::Input), whole(Buffer::Output));
        let player = match self.part {
            Part::Folded { keeper } if i == 0 => return Step::Send { to: keeper, src: input },
            Part::Folded { keeper } => return Step::Recv { from: keeper, dst: output },
            Part::Player(player) => player,
        };
        let i = match player.folded {
            Some(from) if i == 0 => {
                return Step::RecvReduce { from, local: input, order: Operands::LocalFirst, dst: output };
            }
            Some(to) if i == exchanges(player) + 1 => return Step::Send { to, src: output },
            Some(_) => i - 1,
            None => i,
        };
        let halving = 2 * player.phases;
        // Backwards, the first send is part of the last receive forwards: hence the odd index.
        let phase = if i < halving { i / 2 } else { player.phases - 1 - (i + 1 - halving) / 2 };
        let (number, peer) = player.partner(phase);
        let mine = self.window(player.number, phase + 1);
        let theirs = self.window(number, phase + 1);
        let of = |buffer, (first, len)| Region { buffer, first, len };
        if i < halving {
            // Until the first reduction has filled the output, what this rank has is its input.
            let sums = if phase == 0 && player.folded.is_none() { Buffer::Input } else { Buffer::Output };
            if i.is_multiple_of(2) {
                return Step::Send { to: peer, src: of(sums, theirs) };
            }
            let order = if number < player.number { Operands::PeerFirst } else { Operands::LocalFirst };
            let (local, dst) = (of(sums, mine), of(Buffer::Output, mine));
            if phase + 1 < player.phases {
                Step::RecvReduce { from: peer, local, order, dst }
            } else {
                Step::RecvReduceSend { from: peer, local, order, dst: Some(dst), to: peer }
            }
        } else if i.is_multiple_of(2) {
            Step::Recv { from: peer, dst: of(Buffer::Output, theirs) }
        } else {
            Step::Send { to: peer, src: of(Buffer::Output, mine) }
        }
    }
    fn message_chunks(&self) -> usize {
        if self.pairs { self.pieces } else { self.pieces / 2 }
    }
}
