//! What a chunk holds, symbolically: whose contributions, of which block, in which round.
//!
//! The piece needs no tracking: the verifier checks that copies and reductions join equal pieces, so a chunk only ever
//! holds contributions of its own piece.

use crate::schedule::Rank;
use std::fmt;
use std::ops::Range;

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

    pub(super) fn of(members: Range<Rank>, size: usize) -> Ranks {
        let mut ranks = Ranks::none(size);
        members.for_each(|rank| ranks.insert(rank));
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

    /// The least and the greatest rank; there is one.
    fn ends(&self) -> (Rank, Rank) {
        let words = self.words();
        let first = words.iter().position(|word| *word != 0).expect("a rank has contributed");
        let last = words.iter().rposition(|word| *word != 0).expect("a rank has contributed");
        (first * 64 + words[first].trailing_zeros() as usize, last * 64 + words[last].ilog2() as usize)
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
    /// Fingerprint of the expression.
    pub(super) expression: u64,
    /// Whether the expression, its brackets left out, names the ranks in rising order.
    pub(super) in_rank_order: bool,
}

impl Value {
    /// What `rank` contributes.
    pub(super) fn leaf(rank: Rank, size: usize, block: usize, round: usize) -> Value {
        let expression = mix(mix(rank as u64) ^ block as u64);
        Value { round, block, ranks: Ranks::only(rank, size), expression, in_rank_order: true }
    }

    /// Reduces this, the first operand, with `second`; the first rank that has contributed to both is an error.
    pub(super) fn reduce(&mut self, second: &Value) -> Result<(), Rank> {
        let rising = self.ranks.ends().1 < second.ranks.ends().0;
        self.ranks.join(&second.ranks)?;
        self.in_rank_order &= second.in_rank_order && rising;
        self.expression = mix(mix(self.expression).wrapping_add(second.expression));
        Ok(())
    }

    /// What `ranks`, of which there is at least one, contribute in round 0, added in their order:
    /// ((x0 + x1) + x2) + ...
    pub(super) fn left_fold(ranks: &Ranks, size: usize, block: usize) -> Value {
        let leaves = ranks.iter().map(|rank| Value::leaf(rank, size, block, 0));
        let fold = leaves.reduce(|mut sum, leaf| {
            sum.reduce(&leaf).expect("each rank comes once");
            sum
        });
        fold.expect("there is a rank")
    }

    /// Whether this is these ranks' contributions, however combined.
    pub(super) fn is(&self, round: usize, block: usize, ranks: &Ranks) -> bool {
        (self.round, self.block) == (round, block) && self.ranks == *ranks
    }
}

/// The finaliser of SplitMix64 (G. L. Steele, D. Lea, C. H. Flood, OOPSLA 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// "block 2 of ranks 0, 1, 5", shortened where many.
pub(super) fn describe(block: usize, ranks: &Ranks) -> String {
    let ranks: Vec<String> = ranks.iter().map(|r| r.to_string()).collect();
    match ranks.len() {
        1 => format!("block {block} of rank {}", ranks[0]),
        n if n > 12 => format!("block {block} of {n} ranks ({}, ..., {})", ranks[..6].join(", "), ranks[n - 1]),
        _ => format!("block {block} of ranks {}", ranks.join(", ")),
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&describe(self.block, &self.ranks))
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
            assert_eq!(set, Ranks::of(0..size, size));
            assert!(set.iter().eq(0..size));
        }
    }

    #[test]
    fn expressions_tell_operands_and_brackets_apart() {
        let leaf = |rank| Value::leaf(rank, 3, 0, 0);
        let sum = |mut a: Value, b: Value| {
            a.reduce(&b).unwrap();
            a
        };
        let left = sum(sum(leaf(0), leaf(1)), leaf(2));
        assert_eq!(left, sum(sum(leaf(0), leaf(1)), leaf(2)));
        for other in [sum(leaf(0), sum(leaf(1), leaf(2))), sum(sum(leaf(1), leaf(0)), leaf(2))] {
            assert!(other.is(0, 0, &left.ranks) && other != left);
        }
    }

    #[test]
    fn brackets_do_not_change_the_order_of_ranks() {
        for size in [4, 300] {
            let leaf = |rank| Value::leaf(rank * (size / 4), size, 0, 0);
            let sum = |a: &Value, b: &Value| {
                let mut sum = a.clone();
                sum.reduce(b).unwrap();
                sum
            };
            let [a, b, c, d] = [0, 1, 2, 3].map(leaf);
            let rising =
                [sum(&sum(&sum(&a, &b), &c), &d), sum(&sum(&a, &b), &sum(&c, &d)), sum(&a, &sum(&sum(&b, &c), &d))];
            assert!(rising.iter().all(|value| value.in_rank_order));
            let others = [
                sum(&sum(&sum(&b, &a), &c), &d),
                sum(&sum(&a, &c), &sum(&b, &d)),
                sum(&sum(&b, &c), &sum(&d, &a)),
                sum(&sum(&c, &d), &sum(&a, &b)),
            ];
            assert!(others.iter().all(|value| !value.in_rank_order));
        }
    }
}
