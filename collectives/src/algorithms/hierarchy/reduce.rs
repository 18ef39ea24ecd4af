//! Reduce: broadcast backwards. Circles on each host sum up at the carriers, a chain of hosts for each column leads to
//! the root's host.
//!
//! The host farthest in the order of `broadcast` begins, the root's comes last. On the root's host the circles of all columns end at the root, which adds to them what the carriers of the neighbouring host
//! send. Each host's link carries the buffer once.

use super::{Stand, View};
use crate::schedule::{Operands, Place, Rank, Region, Schedule, Step};

/// Whatever comes is the first operand.
const ORDER: Operands = Operands::PeerFirst;

#[derive(Clone, Debug)]
pub(super) struct Reduce {
    view: View,
    place: Place,
    /// How many hosts the own one is behind the root's.
    behind: usize,
}

impl Reduce {
    pub(super) fn new(view: View, place: Place) -> Reduce {
        let behind = view.before(view.hosts.host(place.root));
        Reduce { view, place, behind }
    }

    fn is_root(&self) -> bool {
        self.place.rank == self.place.root
    }

    /// Whether nothing comes from another host.
    fn is_far_end(&self) -> bool {
        self.behind + 1 == self.view.count()
    }

    /// Whether a carrier keeps its host's sum until that of the hosts behind has come.
    fn keeps(&self) -> bool {
        self.behind > 0 && !self.is_far_end() && self.view.carries() && self.view.local > 1
    }

    /// Where a carrier sends its column.
    fn towards_root(&self) -> Rank {
        if self.behind == 1 { self.place.root } else { self.view.across().0 }
    }

    fn step_of_root(&self, i: usize) -> Step {
        let (inside, outside) = (self.view.circles(1), (self.view.count() > 1) as usize);
        let (column, i) = (i / (inside + outside), i % (inside + outside));
        let (own, dst) = (Region::input(column, 1), Region::output(column, 1));
        if i < inside {
            return Step::RecvReduce { from: self.view.previous(), local: own, order: ORDER, dst };
        }
        let from = self.view.hosts.rank(self.view.after(1), column);
        Step::RecvReduce { from, local: if inside > 0 { dst } else { own }, order: ORDER, dst }
    }

    /// The step of a carrier whose host's sum is not sent on as it is made.
    fn across(&self) -> Step {
        let (column, to) = (self.view.place, self.towards_root());
        let local = if self.keeps() { Region::scratch(column, 1) } else { Region::input(column, 1) };
        if self.is_far_end() {
            return Step::Send { to, src: local };
        }
        Step::RecvReduceSend { from: self.view.across().1, local, order: ORDER, dst: None, to }
    }
}

impl Schedule for Reduce {
    fn pieces(&self) -> usize {
        self.view.columns
    }
    fn scratch(&self) -> usize {
        if self.keeps() { self.view.place + 1 } else { 0 }
    }
    fn steps(&self, _lane: usize) -> usize {
        let columns = self.view.columns;
        match self.behind {
            0 if self.is_root() => (self.view.circles(1) + (self.view.count() > 1) as usize) * columns,
            0 => columns,
            _ => {
                let alone = self.view.local == 1;
                self.view.circles(columns) + (self.view.carries() && (alone || !self.is_far_end())) as usize
            }
        }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        if self.is_root() {
            return self.step_of_root(i);
        }
        let (column, stand) = if self.behind == 0 {
            (i, self.view.gathering(self.view.hosts.place(self.place.root), 1, 0).1)
        } else if i < self.view.circles(self.view.columns) {
            self.view.gathering(0, self.view.columns, i)
        } else {
            return self.across();
        };
        let (from, own) = (self.view.previous(), Region::input(column, 1));
        match stand {
            Stand::Last if self.keeps() => {
                Step::RecvReduce { from, local: own, order: ORDER, dst: Region::scratch(column, 1) }
            }
            Stand::Last => Step::RecvReduceSend { from, local: own, order: ORDER, dst: None, to: self.towards_root() },
            _ => self.view.add_on(stand, own),
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
