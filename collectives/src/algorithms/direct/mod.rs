//! Direct: every rank to every rank without detours, all pairs at once.
//!
//! Source: folklore, as "linear" or "spread" in most libraries; for all-to-all see R. Thakur, R. Rabenseifner, W. Gropp,
//! "Optimization of collective communication operations in MPICH", Int. J. High Perform. Comput. Appl. 19 (2005).
//!
//! Every collective; which way it goes follows from its [meaning](crate::catalogue), so a new one runs.
//!
//! *All-to-all, all-gather, gather, scatter, broadcast*: each rank has one lane for each peer it sends to and one for each it
//! receives from, and one that copies its own block. So no pair of ranks waits for another pair, which matters where
//! blocks differ in length: a rank with little to move is done when that little is there. Each byte crosses one link,
//! once. The links of n-1 peers are in use at the same time, and a rank may be flooded: for uneven blocks, and for few
//! ranks.
//!
//! *All-reduce, reduce, reduce-scatter, the scans*: the canonical way, see `fold`. *Barrier*: everybody tells everybody.

mod fold;

use super::entry::{Entry, Service, Sides, serves};
use super::{after, before};
use crate::catalogue::{Givers, Meaning};
use crate::schedule::{Collective, Place, Region, Schedule, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "direct",
    sides: Sides::Two,
    minds_hosts: false,
    serves: &SERVES,
    schedule: |collective, place, _| Some(schedule(collective, place)),
};

/// Every collective that there is.
const SERVES: [Service; Collective::ALL.len()] = {
    let mut all = [serves(Collective::ALL[0]); Collective::ALL.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = serves(Collective::ALL[i]).left_to_right();
        i += 1;
    }
    all
};

/// What a collective means says which of these it is.
fn schedule(collective: Collective, place: Place) -> Box<dyn Schedule> {
    let Meaning { input, output, givers, .. } = *collective.meaning();
    match givers {
        _ if collective.is_barrier() => Box::new(Signals(place)),
        Givers::Owner if !output.are_at_root() => Box::new(Exchange { place, has_each: input.are_for_each() }),
        Givers::Owner => Box::new(Star { place, gathers: true, has_each: true }),
        Givers::Root => Box::new(Star { place, gathers: false, has_each: input.are_for_each() }),
        Givers::All if input.are_for_each() => Box::new(fold::Blocks(place)),
        Givers::All => Box::new(fold::Pieces { place, at_root: output.are_at_root() }),
        Givers::UpTo => Box::new(fold::Below { place, with_own: true }),
        Givers::Before => Box::new(fold::Below { place, with_own: false }),
    }
}

/// Everybody sends to everybody. Lanes: n-1 that send, to the next rank first; n-1 that receive, from the rank before
/// first; the copy.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    place: Place,
    /// Whether inputs have a block for each rank, or one for all.
    has_each: bool,
}

impl Schedule for Exchange {
    fn pieces(&self) -> usize {
        1
    }
    fn lanes(&self) -> usize {
        2 * (self.place.size - 1) + 1
    }
    fn steps(&self, _lane: usize) -> usize {
        1
    }
    fn step(&self, lane: usize, _i: usize) -> Step {
        let Place { rank, size, .. } = self.place;
        let others = size - 1;
        let input_for = |peer| if self.has_each { peer } else { 0 };
        if lane < others {
            let to = after(rank, lane + 1, size);
            Step::Send { to, src: Region::input(input_for(to), 1) }
        } else if lane < 2 * others {
            let from = before(rank, lane - others + 1, size);
            Step::Recv { from, dst: Region::output(from, 1) }
        } else {
            Step::Copy { src: Region::input(input_for(rank), 1), dst: Region::output(rank, 1) }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// The root and each other rank. Lanes: at the root n-1 that send or receive, and the copy; elsewhere the one to or from
/// the root.
#[derive(Clone, Copy, Debug)]
struct Star {
    place: Place,
    /// Whether the root receives, or sends.
    gathers: bool,
    /// Whether it has a block for each rank, or one for all.
    has_each: bool,
}

impl Schedule for Star {
    fn pieces(&self) -> usize {
        1
    }
    fn lanes(&self) -> usize {
        if self.place.rank == self.place.root { self.place.size } else { 1 }
    }
    fn steps(&self, _lane: usize) -> usize {
        1
    }
    fn step(&self, lane: usize, _i: usize) -> Step {
        let Place { rank, size, root } = self.place;
        let Star { gathers, has_each, .. } = *self;
        let input_for = |peer| Region::input(if has_each { peer } else { 0 }, 1);
        let (input, output) = (Region::input(0, 1), Region::output(0, 1));
        if rank != root {
            return if gathers { Step::Send { to: root, src: input } } else { Step::Recv { from: root, dst: output } };
        }
        // The last lane, n-1, comes round to the root itself: its own block.
        let peer = after(root, lane + 1, size);
        match (gathers, peer == root) {
            (true, true) => Step::Copy { src: input, dst: Region::output(root, 1) },
            (true, false) => Step::Recv { from: peer, dst: Region::output(peer, 1) },
            (false, true) => Step::Copy { src: input_for(root), dst: output },
            (false, false) => Step::Send { to: peer, src: input_for(peer) },
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// Everybody tells everybody that it has come, by messages of no chunks.
#[derive(Clone, Copy, Debug)]
struct Signals(Place);

impl Schedule for Signals {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        2 * (self.0.size - 1)
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let Place { rank, size, .. } = self.0;
        match i.checked_sub(size - 1) {
            None => Step::Send { to: after(rank, 1 + i, size), src: Region::EMPTY },
            Some(i) => Step::Recv { from: before(rank, 1 + i, size), dst: Region::EMPTY },
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
