//! Binomial tree: broadcast, reduce, gather, scatter in ceil(log2 n) hops.
//!
//! Source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication operations in MPICH", Int.
//! J. High Perform. Comput. Appl. 19 (2005). Nodes are relative ranks. The parent of v is v without its lowest bit set,
//! 2^k; below v hang the relative ranks v to v + 2^k - 1, as far as they exist, its children at v + 1, v + 2, v + 4,
//! ...
//!
//! ```text
//!   6 ranks:        0
//!                 / | \            subtrees are runs of relative ranks: 4 holds 4 and 5,
//!                1  2  4           2 holds 2 and 3; so a subtree's blocks are one message
//!                   |  |
//!                   3  5
//! ```
//!
//! Gather and scatter keep a subtree's blocks together in scratch; only the root has the whole buffer, in which blocks
//! lie by rank. Relative ranks wrap round there: with root 4 of 6 the subtree of relative rank 2 is ranks 0 and 1, but
//! with root 3 it is ranks 5 and 0, the two ends of the buffer. One subtree at most is cut so, and it travels to or
//! from the root as two messages.

use super::entry::{Entry, Sides, serves};
use super::{after, before};
use crate::schedule::{Collective, Operands, Place, Rank, Region, Schedule, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "binomial",
    sides: Sides::Two,
    minds_hosts: false,
    serves: &[
        serves(Collective::Broadcast),
        serves(Collective::Reduce),
        serves(Collective::Gather),
        serves(Collective::Scatter),
    ],
    schedule: |collective, place, _| schedule(collective, place),
};

pub(super) fn schedule(collective: Collective, place: Place) -> Option<Box<dyn Schedule>> {
    let node = Node::new(place);
    match collective {
        Collective::Broadcast => Some(Box::new(Broadcast(node))),
        Collective::Reduce => Some(Box::new(Reduce(node))),
        Collective::Gather => Some(Box::new(Gather(node))),
        Collective::Scatter => Some(Box::new(Scatter(node))),
        _ => None,
    }
}

/// A place in the tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    /// The relative rank.
    v: usize,
    size: usize,
    root: Rank,
    /// How many children; child `k` is `v + 2^k`.
    children: usize,
}

/// Relative ranks `first..first + len` of a subtree, or those of them whose blocks lie together at the root.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: usize,
    len: usize,
}

impl Node {
    pub(super) fn new(place: Place) -> Node {
        let Place { rank, size, root } = place;
        let v = before(rank, root, size);
        let below = Node::run(v, size).len;
        Node { v, size, root, children: below.next_power_of_two().ilog2() as usize }
    }

    /// The subtree of `v`.
    fn run(v: usize, size: usize) -> Run {
        let span = if v == 0 { size } else { 1 << v.trailing_zeros() };
        Run { first: v, len: span.min(size - v) }
    }

    fn rank_of(&self, v: usize) -> Rank {
        after(self.root, v, self.size)
    }
    /// How many children there are.
    pub(super) fn children(&self) -> usize {
        self.children
    }
    pub(super) fn is_root(&self) -> bool {
        self.v == 0
    }
    pub(super) fn parent(&self) -> Rank {
        self.rank_of(self.v & (self.v - 1))
    }
    /// Child `k`; the last has the largest subtree.
    pub(super) fn child(&self, k: usize) -> Rank {
        self.rank_of(self.v + (1 << k))
    }
    /// The subtree of child `k`.
    fn child_run(&self, k: usize) -> Run {
        Node::run(self.v + (1 << k), self.size)
    }
    /// Chunks of scratch: inner nodes, the root apart, hold their subtree.
    fn scratch(&self) -> usize {
        if self.is_root() || self.children == 0 { 0 } else { Node::run(self.v, self.size).len }
    }
    /// The blocks of `run` as they lie in this node's scratch.
    fn in_scratch(&self, run: Run) -> Region {
        Region::scratch(run.first - self.v, run.len)
    }
    /// The blocks of `run` in the root's buffer, which they do not straddle: index of the first, and how many.
    fn at_root(&self, run: Run) -> (usize, usize) {
        (self.rank_of(run.first), run.len)
    }

    /// How many messages carry the subtree of a child of the root, and the `part`-th of them.
    fn parts(&self, run: Run) -> usize {
        1 + (self.rank_of(run.first) + run.len > self.size) as usize
    }
    fn part(&self, run: Run, part: usize) -> Run {
        let before_end = run.len.min(self.size - self.rank_of(run.first));
        match part {
            0 => Run { first: run.first, len: before_end },
            _ => Run { first: run.first + before_end, len: run.len - before_end },
        }
    }
    /// How many messages carry this node's own subtree.
    fn own_parts(&self) -> usize {
        if self.v.is_power_of_two() { self.parts(Node::run(self.v, self.size)) } else { 1 }
    }
    fn own_part(&self, part: usize) -> Run {
        let own = Node::run(self.v, self.size);
        if self.own_parts() == 1 { own } else { self.part(own, part) }
    }
    /// At the root: which child's subtree the end of the buffer cuts, if any.
    fn cut_child(&self) -> Option<usize> {
        (0..self.children).find(|&k| self.parts(self.child_run(k)) == 2)
    }
    /// At the root: child and run of the `i`-th message, children counted upwards.
    fn message(&self, i: usize) -> (usize, Run) {
        let (k, part) = match self.cut_child() {
            Some(cut) if i == cut + 1 => (cut, 1),
            Some(cut) if i > cut => (i - 1, 0),
            _ => (i, 0),
        };
        (k, self.part(self.child_run(k), part))
    }
    /// At the root: how many messages.
    fn messages(&self) -> usize {
        self.children + self.cut_child().is_some() as usize
    }
    /// The largest message of a gather or scatter, if none is cut.
    fn largest(&self) -> usize {
        let below_root = self.size.next_power_of_two().ilog2();
        (0..below_root).map(|k| Node::run(1 << k, self.size).len).max().unwrap_or(1)
    }
}

#[derive(Clone, Copy, Debug)]
struct Broadcast(Node);

impl Schedule for Broadcast {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        if self.0.is_root() { self.0.children + 1 } else { self.0.children.max(1) }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let node = &self.0;
        let dst = Region::output(0, 1);
        // The largest subtree has the longest way to go: it comes first.
        let child = |i| node.child(node.children - 1 - i);
        if node.is_root() {
            let src = Region::input(0, 1);
            if i < node.children { Step::Send { to: child(i), src } } else { Step::Copy { src, dst } }
        } else if node.children == 0 {
            Step::Recv { from: node.parent(), dst }
        } else if i == 0 {
            Step::RecvCopySend { from: node.parent(), dst, to: child(0) }
        } else {
            Step::Send { to: child(i), src: dst }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

#[derive(Clone, Copy, Debug)]
struct Reduce(Node);

impl Schedule for Reduce {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        (!self.0.is_root() && self.0.children > 1) as usize
    }
    fn steps(&self, _lane: usize) -> usize {
        self.0.children.max(1)
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let node = &self.0;
        let own = Region::input(0, 1);
        if node.children == 0 {
            return Step::Send { to: node.parent(), src: own };
        }
        // Smaller subtrees are ready sooner. What is summed so far covers the relative ranks just below the child's.
        let (from, order) = (node.child(i), Operands::LocalFirst);
        let sum = if node.is_root() { Region::output(0, 1) } else { Region::scratch(0, 1) };
        let local = if i == 0 { own } else { sum };
        if node.is_root() || i + 1 < node.children {
            Step::RecvReduce { from, local, order, dst: sum }
        } else {
            Step::RecvReduceSend { from, local, order, dst: None, to: node.parent() }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

#[derive(Clone, Copy, Debug)]
struct Gather(Node);

impl Schedule for Gather {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        self.0.scratch()
    }
    fn steps(&self, _lane: usize) -> usize {
        let node = &self.0;
        if node.is_root() {
            1 + node.messages()
        } else if node.children == 0 {
            1
        } else {
            1 + node.children + node.own_parts()
        }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let node = &self.0;
        let own = Region::input(0, 1);
        if node.is_root() {
            if i == 0 {
                return Step::Copy { src: own, dst: Region::output(node.root, 1) };
            }
            let (k, run) = node.message(i - 1);
            let (first, len) = node.at_root(run);
            Step::Recv { from: node.child(k), dst: Region::output(first, len) }
        } else if node.children == 0 {
            Step::Send { to: node.parent(), src: own }
        } else if i == 0 {
            Step::Copy { src: own, dst: Region::scratch(0, 1) }
        } else if i <= node.children {
            Step::Recv { from: node.child(i - 1), dst: node.in_scratch(node.child_run(i - 1)) }
        } else {
            Step::Send { to: node.parent(), src: node.in_scratch(node.own_part(i - 1 - node.children)) }
        }
    }
    fn message_chunks(&self) -> usize {
        self.0.largest()
    }
}

/// Gather backwards.
#[derive(Clone, Copy, Debug)]
struct Scatter(Node);

impl Schedule for Scatter {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        self.0.scratch()
    }
    fn steps(&self, lane: usize) -> usize {
        Gather(self.0).steps(lane)
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let node = &self.0;
        let dst = Region::output(0, 1);
        if node.is_root() {
            if i == node.messages() {
                return Step::Copy { src: Region::input(node.root, 1), dst };
            }
            // The largest subtree first. A cut one so goes upper part first; its head receives in that order too.
            let (k, run) = node.message(node.messages() - 1 - i);
            let (first, len) = node.at_root(run);
            return Step::Send { to: node.child(k), src: Region::input(first, len) };
        }
        if node.children == 0 {
            return Step::Recv { from: node.parent(), dst };
        }
        let parts = node.own_parts();
        if i < parts {
            Step::Recv { from: node.parent(), dst: node.in_scratch(node.own_part(parts - 1 - i)) }
        } else if i < parts + node.children {
            let k = node.children - 1 - (i - parts);
            Step::Send { to: node.child(k), src: node.in_scratch(node.child_run(k)) }
        } else {
            Step::Copy { src: Region::scratch(0, 1), dst }
        }
    }
    fn message_chunks(&self) -> usize {
        self.0.largest()
    }
}
