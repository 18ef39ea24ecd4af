//! Bruck: all-gather and all-to-all in ceil(log2 n) messages a rank.
//!
//! Source: J. Bruck, C.-T. Ho, S. Kipnis, E. Upfal, D. Weathersby, "Efficient algorithms for all-to-all communications
//! in multiport message-passing systems", IEEE Trans. Parallel Distrib. Syst. 8 (1997). Few messages where others send
//! n-1: for small blocks. Both work in scratch, where index j stands for "distance j from me", so that every rank does
//! the same thing.
//!
//! All-gather: scratch j is to hold the block of the rank j above. In phase k each rank sends all it has, 2^k blocks or
//! what is still missing, to the rank 2^k below, and appends what comes from above:
//!
//! ```text
//!   n = 5, rank 0 has:   0   then 0 1   then 0 1 2 3   then 0 1 2 3 4
//! ```
//!
//! All-to-all: scratch j starts with the block for the rank j above. It has to travel the distance j, which is done in
//! powers of two: in phase k all blocks whose j has bit k go to the rank 2^k above, packed into one message, and take
//! the same j there. At the end scratch j holds the block from the rank j below:
//!
//! ```text
//!   n = 5, phase 0 moves j = 1 3 by 1, phase 1 moves 2 3 by 2, phase 2 moves 4 by 4
//! ```
//!
//! Equal bits come in runs of 2^k, so packing copies runs, and the last phase, one run, needs no packing.

use super::entry::{Entry, Sides, serves};
use super::{after, before};
use crate::schedule::{Collective, Place, Rank, Region, Schedule, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "bruck",
    sides: Sides::Two,
    minds_hosts: false,
    serves: &[serves(Collective::AllGather), serves(Collective::AllToAll)],
    schedule: |collective, place, _| schedule(collective, place),
};

pub(super) fn schedule(collective: Collective, place: Place) -> Option<Box<dyn Schedule>> {
    let Place { rank, size, .. } = place;
    let phases = size.next_power_of_two().ilog2() as usize;
    match collective {
        Collective::AllGather => Some(Box::new(AllGather { rank, size, phases })),
        Collective::AllToAll => Some(Box::new(AllToAll { rank, size, phases })),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug)]
struct AllGather {
    rank: Rank,
    size: usize,
    phases: usize,
}

impl Schedule for AllGather {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        self.size
    }
    fn steps(&self, _lane: usize) -> usize {
        1 + 2 * self.phases + 1 + (self.rank > 0) as usize
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let AllGather { rank, size, phases } = *self;
        if i == 0 {
            return Step::Copy { src: Region::input(0, 1), dst: Region::scratch(0, 1) };
        }
        let i = i - 1;
        if i < 2 * phases {
            let distance = 1 << (i / 2);
            let blocks = distance.min(size - distance);
            if i.is_multiple_of(2) {
                Step::Send { to: before(rank, distance, size), src: Region::scratch(0, blocks) }
            } else {
                Step::Recv { from: after(rank, distance, size), dst: Region::scratch(distance, blocks) }
            }
        } else if i == 2 * phases {
            Step::Copy { src: Region::scratch(0, size - rank), dst: Region::output(rank, size - rank) }
        } else {
            Step::Copy { src: Region::scratch(size - rank, rank), dst: Region::output(0, rank) }
        }
    }
    fn message_chunks(&self) -> usize {
        let last = 1 << (self.phases - 1);
        // The last phase may be short, and then the one before it has the largest message.
        (self.size - last).max(last / 2).max(1)
    }
}

/// Scratch `0..n` is indexed by distance (index 0, the own block, stays unused); behind it lies the packed message.
#[derive(Clone, Copy, Debug)]
struct AllToAll {
    rank: Rank,
    size: usize,
    phases: usize,
}

impl AllToAll {
    /// How many indices below n have bit `k`.
    fn moving(&self, k: usize) -> usize {
        let (period, half) = (2 << k, 1 << k);
        self.size / period * half + (self.size % period).saturating_sub(half)
    }

    /// In how many runs they come.
    fn runs(&self, k: usize) -> usize {
        self.moving(k).div_ceil(1 << k)
    }

    /// The `j`-th run of phase `k`: where it lies by distance, and where in the message.
    fn run(&self, k: usize, j: usize) -> (Region, Region) {
        let first = (2 * j + 1) << k;
        let len = (1 << k).min(self.size - first);
        (Region::scratch(first, len), Region::scratch(self.size + (j << k), len))
    }

    /// Steps of phase `k`: pack, send, receive, unpack.
    fn steps_of(&self, k: usize) -> usize {
        let runs = self.runs(k);
        if runs == 1 { 2 } else { 2 * runs + 2 }
    }

    fn step_of(&self, k: usize, i: usize) -> Step {
        let runs = self.runs(k);
        let (message, i) =
            if runs == 1 { (self.run(k, 0).0, i + 1) } else { (Region::scratch(self.size, self.moving(k)), i) };
        let packs = if runs == 1 { 1 } else { runs };
        if i < packs {
            let (by_distance, packed) = self.run(k, i);
            Step::Copy { src: by_distance, dst: packed }
        } else if i == packs {
            Step::Send { to: after(self.rank, 1 << k, self.size), src: message }
        } else if i == packs + 1 {
            Step::Recv { from: before(self.rank, 1 << k, self.size), dst: message }
        } else {
            let (by_distance, packed) = self.run(k, i - packs - 2);
            Step::Copy { src: packed, dst: by_distance }
        }
    }
}

impl Schedule for AllToAll {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        self.size + self.message_chunks()
    }
    fn steps(&self, _lane: usize) -> usize {
        let rotation = if self.rank + 1 < self.size && self.rank > 0 { 2 } else { 1 };
        rotation + (0..self.phases).map(|k| self.steps_of(k)).sum::<usize>() + self.size
    }
    fn step(&self, _lane: usize, mut i: usize) -> Step {
        let AllToAll { rank, size, phases } = *self;
        // Scratch j = input (rank + j) mod n, for j from 1: the blocks above this rank's own, then those below.
        let above = size - 1 - rank;
        if above > 0 {
            if i == 0 {
                return Step::Copy { src: Region::input(rank + 1, above), dst: Region::scratch(1, above) };
            }
            i -= 1;
        }
        if rank > 0 {
            if i == 0 {
                return Step::Copy { src: Region::input(0, rank), dst: Region::scratch(1 + above, rank) };
            }
            i -= 1;
        }
        for k in 0..phases {
            let steps = self.steps_of(k);
            if i < steps {
                return self.step_of(k, i);
            }
            i -= steps;
        }
        let src = if i == 0 { Region::input(rank, 1) } else { Region::scratch(i, 1) };
        Step::Copy { src, dst: Region::output(before(rank, i, size), 1) }
    }
    fn message_chunks(&self) -> usize {
        (0..self.phases).map(|k| self.moving(k)).max().unwrap_or(1)
    }
}
