//! Two-shot: share the work out, then share the results. All-reduce and broadcast; ranks share memory.
//!
//! Source: the two-shot all-reduce of MSCCL++ (A. Shah and others, arXiv:2504.09014) and TensorRT-LLM.
//! Two synchronisations, but each rank reads 2(n-1)/n blocks where one-shot reads n-1: for larger messages.
//!
//! ```text
//!   all-reduce, rank r:   publish the input;    out[r] = in[r] + fetch piece r of all others;
//!                         publish out[r];       fetch the other pieces from those that finished them
//!   broadcast:            the root publishes;   each other rank fetches its piece of n-1;
//!                         publishes it;         fetches the other pieces from those that have them
//! ```
//!
//! Broadcast so reads each byte of the root's once, which matters where the root's link is what is scarce (GPU peers);
//! the other ranks' links do the rest.
//!
//! In all-reduce each piece is finished by one rank and copied, so all ranks end with the same bits. In place: out[r]
//! is the only chunk of input read after publishing, and it is read in the step that overwrites it.

use super::entry::{Entry, Sides, serves};
use super::{after, before, outward};
use crate::schedule::{Collective, Place, Rank, Region, Schedule, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "two_shot",
    sides: Sides::One,
    minds_hosts: false,
    serves: &[
        serves(Collective::AllReduce).in_rank_order().lends_in_place(),
        serves(Collective::Broadcast).lends_in_place(),
    ],
    schedule: |collective, place, _| schedule(collective, place),
};

fn schedule(collective: Collective, place: Place) -> Option<Box<dyn Schedule>> {
    let Place { rank, size, .. } = place;
    match collective {
        Collective::AllReduce => Some(Box::new(AllReduce { rank, size })),
        Collective::Broadcast => Some(Box::new(Broadcast(place))),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug)]
struct AllReduce {
    rank: Rank,
    size: usize,
}

impl Schedule for AllReduce {
    fn pieces(&self) -> usize {
        self.size
    }
    fn steps(&self, _lane: usize) -> usize {
        2 * self.size
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let AllReduce { rank, size } = *self;
        let others = size - 1;
        if i == 0 {
            // Of n pieces all, though nobody fetches this rank's own; with 2 ranks only the peer's.
            let src = if size == 2 { Region::input(1 - rank, 1) } else { Region::input(0, size) };
            Step::Publish { src }
        } else if i <= others {
            let (from, order) = outward(rank, i - 1, size);
            let dst = Region::output(rank, 1);
            let local = if i == 1 { Region::input(rank, 1) } else { dst };
            Step::FetchReduce { from, nth: 0, at: if size == 2 { 0 } else { rank }, local, order, dst }
        } else if i == others + 1 {
            Step::Publish { src: Region::output(rank, 1) }
        } else {
            let from = after(rank, i - size, size);
            Step::Fetch { from, nth: 1, at: 0, dst: Region::output(from, 1) }
        }
    }
    fn message_chunks(&self) -> usize {
        if self.size == 2 { 1 } else { self.size }
    }
}

/// The ranks other than the root are counted upwards from it, from 0; number v looks after piece v.
#[derive(Clone, Copy, Debug)]
struct Broadcast(Place);

impl Schedule for Broadcast {
    fn pieces(&self) -> usize {
        self.0.size - 1
    }
    fn steps(&self, _lane: usize) -> usize {
        let Place { rank, size, root } = self.0;
        match (size, rank == root) {
            // The only other rank has everything once it has fetched.
            (2, true) => 2,
            (2, false) => 1,
            (_, true) => 2 + (size - 1),
            (_, false) => 2 + (size - 2),
        }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let Place { rank, size, root } = self.0;
        let others = size - 1;
        let rank_of = |v| -> Rank { after(root, 1 + v, size) };
        if rank == root {
            return match i {
                0 => Step::Publish { src: Region::input(0, others) },
                1 => Step::Copy { src: Region::input(0, others), dst: Region::output(0, others) },
                // The root has it all: it only lets the others' publications go.
                _ => Step::Fetch { from: rank_of(i - 2), nth: 0, at: 0, dst: Region::EMPTY },
            };
        }
        let mine = before(rank, root + 1, size);
        match i {
            0 => Step::Fetch { from: root, nth: 0, at: mine, dst: Region::output(mine, 1) },
            1 => Step::Publish { src: Region::output(mine, 1) },
            _ => {
                let v = after(mine, i - 1, others);
                Step::Fetch { from: rank_of(v), nth: 0, at: 0, dst: Region::output(v, 1) }
            }
        }
    }
    fn message_chunks(&self) -> usize {
        self.0.size - 1
    }
}
