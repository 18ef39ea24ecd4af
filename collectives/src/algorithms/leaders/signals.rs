//! A barrier's two ways between a host's ranks and their leader: signals up a binomial tree, and down again.
//!
//! A signal is a message without content. It is never passed on in a fused step: an executor may begin a fused step's
//! message before all of the one that comes has arrived, and a signal has nothing that could be missing.

use super::Team;
use crate::algorithms::binomial::Node;
use crate::schedule::{Rank, Region, Schedule, Step};

impl Team {
    fn rank_at(&self, place: usize) -> Rank {
        self.hosts.rank(self.host, place)
    }

    fn signal(&self, place: usize) -> Step {
        Step::Send { to: self.rank_at(place), src: Region::EMPTY }
    }

    fn await_signal(&self, place: usize) -> Step {
        Step::Recv { from: self.rank_at(place), dst: Region::EMPTY }
    }

    fn signals(&self) -> usize {
        let node = Node::new(self.at_home());
        node.children() + !node.is_root() as usize
    }
}

/// From all children, then to the parent.
pub(super) struct Up(pub(super) Team);

impl Schedule for Up {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        self.0.signals()
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let node = Node::new(self.0.at_home());
        if i < node.children() { self.0.await_signal(node.child(i)) } else { self.0.signal(node.parent()) }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// From the parent, then to all children.
pub(super) struct Down(pub(super) Team);

impl Schedule for Down {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        self.0.signals()
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let node = Node::new(self.0.at_home());
        if i == 0 && !node.is_root() {
            return self.0.await_signal(node.parent());
        }
        // The largest subtree has the longest way to go: it comes first.
        let after = i - !node.is_root() as usize;
        self.0.signal(node.child(node.children() - 1 - after))
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
