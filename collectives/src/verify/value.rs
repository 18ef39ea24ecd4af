//! What a chunk holds, symbolically: whose contributions, of which block, in which round.
//!
//! The piece needs no tracking: the verifier checks that copies and reductions join equal pieces, so a chunk only ever
//! holds contributions of its own piece.

use crate::schedule::Rank;
use std::fmt;

/// A set of ranks of one world. Up to 64 ranks it is one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ranks {
    Few(u64),
    Many(Box<[u64]>),
}

impl Ranks {
    pub(super) fn none(size: usize) -> Ranks {
        if size <= 64 { Ranks::Few(0) } else { Ranks::Many(vec![0; size.div_ceil(64)].into()) }
    }

    pub(super) fn only(rank: Rank, size: usize) -> Ranks {
        let mut ranks = Ranks::none(size);
        ranks.insert(rank);
        ranks
    }

    pub(super) fn all(size: usize) -> Ranks {
        let mut ranks = Ranks::none(size);
        (0..size).for_each(|rank| ranks.insert(rank));
        ranks
    }

    fn words(&self) -> &[u64] {
        match self {
            Ranks::Few(word) => std::slice::from_ref(word),
            Ranks::Many(words) => words,
        }
    }

    fn words_mut(&mut self) -> &mut [u64] {
        match self {
            Ranks::Few(word) => std::slice::from_mut(word),
            Ranks::Many(words) => words,
        }
    }

    pub(super) fn insert(&mut self, rank: Rank) {
        self.words_mut()[rank / 64] |= 1 << (rank % 64);
    }

    pub(super) fn contains(&self, rank: Rank) -> bool {
        self.words()[rank / 64] >> (rank % 64) & 1 == 1
    }

    /// Adds `other`; the first rank that both have is an error, and then nothing changes.
    pub(super) fn join(&mut self, other: &Ranks) -> Result<(), Rank> {
        let common = self.words().iter().zip(other.words()).enumerate().find(|(_, (a, b))| *a & *b != 0);
        if let Some((i, (a, b))) = common {
            return Err(i * 64 + (a & b).trailing_zeros() as usize);
        }
        self.words_mut().iter_mut().zip(other.words()).for_each(|(a, b)| *a |= b);
        Ok(())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Rank> {
        self.words()
            .iter()
            .enumerate()
            .flat_map(|(i, &word)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| i * 64 + bit))
    }
}

/// The content of an initialised chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) round: usize,
    /// Which block of the contributors' inputs.
    pub(super) block: usize,
    pub(super) ranks: Ranks,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} of ", self.block)?;
        let ranks: Vec<String> = self.ranks.iter().map(|r| r.to_string()).collect();
        match ranks.len() {
            1 => write!(f, "rank {}", ranks[0]),
            n if n > 12 => write!(f, "{n} ranks ({}, ..., {})", ranks[..6].join(", "), ranks[n - 1]),
            _ => write!(f, "ranks {}", ranks.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_join_when_disjoint_and_name_the_common_rank_otherwise() {
        for size in [1, 5, 64, 65, 200] {
            let mut set = Ranks::none(size);
            for rank in 0..size {
                assert_eq!(set.join(&Ranks::only(rank, size)), Ok(()));
                assert_eq!(set.join(&Ranks::only(rank, size)), Err(rank));
                assert!(set.contains(rank));
            }
            assert_eq!(set, Ranks::all(size));
            assert!(set.iter().eq(0..size));
        }
    }
}
