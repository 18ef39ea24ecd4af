//! The random numbers of a run. All ranks draw from equal generators in the same order, so they make the same plans
//! without a word.

use maypole::perf::operation::NamedOp;
use maypole::{Collective, DataType};

/// SplitMix64 (G. L. Steele, D. Lea, C. H. Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Draws(pub u64);

impl Draws {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// A number of elements from 0 to `most`, small ones as likely as large ones.
    pub fn count(&mut self, most: usize) -> usize {
        match self.below(12) {
            0 => 0,
            1 => most,
            _ => {
                let magnitude = self.below(usize::BITS as usize - most.leading_zeros() as usize);
                self.below(2 << magnitude).min(most)
            }
        }
    }

    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            all.swap(i, self.below(i + 1));
        }
        all
    }

    pub fn collective(&mut self) -> Collective {
        self.one_of(&Collective::ALL)
    }

    /// A type, and an operation on it if the collective reduces.
    pub fn type_and_op(&mut self, collective: Collective) -> (DataType, Option<NamedOp>) {
        let dtype = self.one_of(&DataType::ALL);
        if !collective.reduces() {
            return (dtype, None);
        }
        loop {
            let op = self.one_of(&NamedOp::ALL);
            if op.supports(dtype) && !(collective.is_scan() && op == NamedOp::Avg) {
                return (dtype, Some(op));
            }
        }
    }

    /// Counts of `ranks` blocks of together at most about `most`: all empty, one long, about even, or anything.
    pub fn counts(&mut self, ranks: usize, most: usize) -> Vec<usize> {
        match self.below(8) {
            0 => vec![0; ranks],
            1 | 2 => {
                let long = self.below(ranks);
                (0..ranks).map(|r| if r == long { self.count(most) } else { self.below(3) }).collect()
            }
            3 => {
                let even = self.count(most / ranks);
                (0..ranks).map(|_| even + self.below(2)).collect()
            }
            _ => (0..ranks).map(|_| self.count(most / ranks)).collect(),
        }
    }

    /// Where blocks of these counts start: one after the other, or in any order with gaps. And the buffer's length.
    pub fn displacements(&mut self, counts: &[usize]) -> (Vec<usize>, usize) {
        let (gaps, order) = match self.chance(50) {
            true => (3, self.permutation(counts.len())),
            false => (1, (0..counts.len()).collect()),
        };
        let (mut starts, mut next) = (vec![0; counts.len()], 0);
        for block in order {
            next += self.below(gaps);
            starts[block] = next;
            next += counts[block];
        }
        (starts, next + self.below(gaps))
    }
}
