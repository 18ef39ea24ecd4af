//! A world of any size made a power of two: how recursive doubling and halving begin and end.
//!
//! Source: R. Rabenseifner, "Optimization of collective reduction operations", ICCS 2004. With p the largest power of
//! two in n, the first 2(n-p) ranks form pairs. The odd rank of a pair hands its input to the even one before, and gets
//! the result after; p ranks, here called *players* and numbered from 0 in rank order, play the power-of-two algorithm
//! in between.
//!
//! ```text
//!   n = 6, p = 4:   (0 1) (2 3)  4  5       players: 0->0, 2->1, 4->2, 5->3
//! ```
//!
//! A player thus stands for neighbouring ranks, and lower players for lower ranks: operands can be kept in rank order.

use crate::schedule::{Place, Rank};

/// What a rank is in a world made a power of two.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// Hands its input to rank `keeper` and gets the result from it.
    Folded { keeper: Rank },
    /// Plays.
    Player(Player),
}

/// A rank that plays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Player {
    /// Its number among the players.
    pub(super) number: usize,
    /// Log2 of how many players there are.
    pub(super) phases: usize,
    /// The rank for which it stands besides itself, if any.
    pub(super) folded: Option<Rank>,
    /// How many players stand for a second rank.
    pairs: usize,
}

impl Part {
    pub(super) fn new(place: Place) -> Part {
        let Place { rank, size, .. } = place;
        let phases = size.ilog2() as usize;
        let pairs = size - (1 << phases);
        if rank >= 2 * pairs {
            Part::Player(Player { number: rank - pairs, phases, folded: None, pairs })
        } else if rank.is_multiple_of(2) {
            Part::Player(Player { number: rank / 2, phases, folded: Some(rank + 1), pairs })
        } else {
            Part::Folded { keeper: rank - 1 }
        }
    }
}

impl Player {
    /// The number and the rank of the player at distance 2^`phase`.
    pub(super) fn partner(self, phase: usize) -> (usize, Rank) {
        let number = self.number ^ (1 << phase);
        (number, if number < self.pairs { 2 * number } else { number + self.pairs })
    }
}
