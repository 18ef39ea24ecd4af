//! Pairwise all-to-all: n-1 exchanges, each rank sending to the rank k above it while it receives from the rank k
//! below.
//!
//! Source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication operations in MPICH", Int.
//! J. High Perform. Comput. Appl. 19 (2005). Every block crosses one link once, and in each step every rank sends and
//! receives one block, so no rank is flooded. n-1 messages a rank: for large blocks; for small ones see `bruck`.
//!
//! ```text
//!   k=1:  0 -> 1 -> 2 -> 3 -> 0        k=2:  0 <-> 2, 1 <-> 3        k=3:  0 -> 3 -> 2 -> 1 -> 0
//! ```

use super::entry::{Entry, Sides, serves};
use super::{after, before};
use crate::schedule::{Collective, Place, Rank, Region, Schedule, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "pairwise",
    sides: Sides::Two,
    minds_hosts: false,
    serves: &[serves(Collective::AllToAll)],
    schedule: |_, place, _| Some(Box::new(Pairwise::new(place))),
};

#[derive(Clone, Copy, Debug)]
pub(super) struct Pairwise {
    rank: Rank,
    size: usize,
}

impl Pairwise {
    pub(super) const fn new(place: Place) -> Pairwise {
        Pairwise { rank: place.rank, size: place.size }
    }
}

impl Schedule for Pairwise {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        2 * (self.size - 1) + 1
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let Pairwise { rank, size } = *self;
        // The own block is copied last, while the others' receives are still under way.
        if i == 2 * (size - 1) {
            return Step::Copy { src: Region::input(rank, 1), dst: Region::output(rank, 1) };
        }
        let distance = i / 2 + 1;
        let (to, from) = (after(rank, distance, size), before(rank, distance, size));
        if i.is_multiple_of(2) {
            Step::Send { to, src: Region::input(to, 1) }
        } else {
            Step::Recv { from, dst: Region::output(from, 1) }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
