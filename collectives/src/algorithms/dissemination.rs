//! Dissemination barrier: in phase k each rank signals the rank 2^k above it and waits for the one 2^k below.
//!
//! Source: D. Hensgen, R. Finkel, U. Manber, "Two algorithms for barrier synchronization", Int. J. Parallel Program. 17
//! (1988). After phase k a rank has heard, directly or through others, from the 2^(k+1) - 1 ranks below it; after
//! ceil(log2 n) phases from all. No rank is special, and any n will do.
//!
//! ```text
//!   n = 5, what rank 4 has heard of:   phase 0: {3}   phase 1: {3, 2, 1}   phase 2: {3, 2, 1, 0}
//! ```

use super::entry::{Entry, Sides, serves};
use super::{after, before};
use crate::schedule::{Collective, Place, Rank, Region, Schedule, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "dissemination",
    sides: Sides::Two,
    minds_hosts: false,
    serves: &[serves(Collective::Barrier)],
    schedule: |_, place, _| Some(Box::new(Dissemination::new(place))),
};

#[derive(Clone, Copy, Debug)]
pub(super) struct Dissemination {
    rank: Rank,
    size: usize,
}

impl Dissemination {
    pub(super) const fn new(place: Place) -> Dissemination {
        Dissemination { rank: place.rank, size: place.size }
    }
}

impl Schedule for Dissemination {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        2 * self.size.next_power_of_two().ilog2() as usize
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let distance = 1 << (i / 2);
        if i.is_multiple_of(2) {
            Step::Send { to: after(self.rank, distance, self.size), src: Region::EMPTY }
        } else {
            Step::Recv { from: before(self.rank, distance, self.size), dst: Region::EMPTY }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
