//! Chain: broadcast and reduce along a line of neighbours.
//!
//! Source: folklore; compared with the trees in J. Pješivac-Grbović and others, "Performance analysis of MPI collective
//! operations", Cluster Computing 10 (2007). The pipeline comes from the
//! executor's rounds: while slice 0 reaches the far end, the root already sends slice n-2. A large message costs one
//! transfer of itself and n-2 slices more.
//!
//! ```text
//!   broadcast from 2 of 4:   2 -> 3 -> 0 -> 1
//!   reduce to 2 of 4:        3 -> 0 -> 1 -> 2      each adds its own to what comes
//! ```

use super::{after, before};
use crate::schedule::{Collective, Operands, Place, Region, Schedule, Step};

pub(super) fn schedule(collective: Collective, place: Place) -> Option<Box<dyn Schedule>> {
    match collective {
        Collective::Broadcast => Some(Box::new(Broadcast(place))),
        Collective::Reduce => Some(Box::new(Reduce(place))),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug)]
struct Broadcast(Place);

impl Schedule for Broadcast {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        if self.0.rank == self.0.root { 2 } else { 1 }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let Place { rank, size, root } = self.0;
        let (from, to) = (before(rank, 1, size), after(rank, 1, size));
        let dst = Region::output(0, 1);
        if rank == root {
            let src = Region::input(0, 1);
            if i == 0 { Step::Send { to, src } } else { Step::Copy { src, dst } }
        } else if to == root {
            Step::Recv { from, dst }
        } else {
            Step::RecvCopySend { from, dst, to }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

#[derive(Clone, Copy, Debug)]
struct Reduce(Place);

impl Schedule for Reduce {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        1
    }
    fn step(&self, _lane: usize, _i: usize) -> Step {
        let Place { rank, size, root } = self.0;
        let (from, to) = (before(rank, 1, size), after(rank, 1, size));
        let local = Region::input(0, 1);
        if rank == root {
            Step::RecvReduce { from, local, order: Operands::PeerFirst, dst: Region::output(0, 1) }
        } else if from == root {
            Step::Send { to, src: local }
        } else {
            Step::RecvReduceSend { from, local, order: Operands::PeerFirst, dst: None, to }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
