//! Broadcast: a chain of hosts for each column, and circles on each host.
//!
//! The root's host comes first, the others follow in order. The root sends each column's piece to the carrier on the
//! next host; carriers pass it on to the host after, and hand it out on their own. Each host's link carries the buffer
//! once. Pipelined by the executor's rounds, as `chain` is.
//!
//! ```text
//!   root 1 on host 0 of 3:    host 0        host 1            host 2
//!   column 0                  1 ----------> 3 --------------> 6        and 1 -> 2 -> 0,  3 -> 4 -> 5,  6 -> 7
//!   column 1                  1 ----------> 4 --------------> 7            1 -> 2 -> 0,  4 -> 5 -> 3,  7 -> 6
//! ```

use super::View;
use crate::schedule::{Place, Region, Schedule, Step};

#[derive(Clone, Debug)]
pub(super) struct Broadcast {
    view: View,
    place: Place,
    /// How many hosts the own one is behind the root's.
    behind: usize,
}

impl Broadcast {
    pub(super) fn new(view: View, place: Place) -> Broadcast {
        let behind = view.before(view.hosts.host(place.root));
        Broadcast { view, place, behind }
    }

    fn is_root(&self) -> bool {
        self.place.rank == self.place.root
    }

    /// How many messages the root sends for each column: to the next host, to the next rank of its own.
    fn sends(&self) -> usize {
        (self.view.count() > 1) as usize + (self.view.local > 1) as usize
    }

    fn step_of_root(&self, i: usize) -> Step {
        let sends = self.sends();
        if i == sends * self.view.columns {
            let all = self.view.columns;
            return Step::Copy { src: Region::input(0, all), dst: Region::output(0, all) };
        }
        let column = i / sends;
        let over_network = self.view.count() > 1 && i.is_multiple_of(sends);
        let to = if over_network { self.view.hosts.rank(self.view.after(1), column) } else { self.view.next() };
        Step::Send { to, src: Region::input(column, 1) }
    }

    /// A carrier's step across the network.
    fn across(&self) -> Step {
        let (before, to) = self.view.across();
        let from = if self.behind == 1 { self.place.root } else { before };
        let dst = Region::output(self.view.place, 1);
        if self.behind + 1 < self.view.count() {
            Step::RecvCopySend { from, dst, to }
        } else {
            Step::Recv { from, dst }
        }
    }
}

impl Schedule for Broadcast {
    fn pieces(&self) -> usize {
        self.view.columns
    }
    fn steps(&self, _lane: usize) -> usize {
        let columns = self.view.columns;
        match self.behind {
            0 if self.is_root() => self.sends() * columns + 1,
            0 => columns,
            _ => self.view.carries() as usize + self.view.circles(columns),
        }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        if self.is_root() {
            return self.step_of_root(i);
        }
        let (column, stand) = if self.behind == 0 {
            (i, self.view.spreading(self.view.hosts.place(self.place.root), 1, 0).1)
        } else {
            let moves = self.view.carries() as usize;
            if i < moves {
                return self.across();
            }
            self.view.spreading(0, self.view.columns, i - moves)
        };
        self.view.hand_on(stand, Region::output(column, 1))
    }
    fn message_chunks(&self) -> usize {
        // The root's copy is no message.
        1
    }
}
