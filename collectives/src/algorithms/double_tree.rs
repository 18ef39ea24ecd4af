//! Double binary tree: all-reduce, broadcast, reduce; each of two trees carries half of the message.
//!
//! Source: P. Sanders, J. Speck, J. L. Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan",
//! Parallel Comput. 35 (2009); NCCL made it known. In one pipelined binary tree the leaves, half of all ranks, send
//! nothing on. Here the leaves of one tree are inner nodes of the other, so with both trees at work each rank sends and
//! receives about once what the message holds, in logarithmic time.
//!
//! The first tree is in rank order: a node's height is the number of zeros that its label ends with, and label 0 stands
//! above all. The second is the first with its labels mirrored (even worlds) or moved up by one (odd worlds), which
//! swaps leaves and inner nodes:
//!
//! ```text
//!   6 labels, tree 0:      0               tree 1:       5
//!                          |                             |
//!                          4                             1
//!                        /   \                         /   \
//!                       2     5                       3     0
//!                      / \                           / \
//!                     1   3                         4   2
//! ```
//!
//! All-reduce sends pieces up its tree and down again. Each tree has a lane up and a lane down, so that the next slice
//! climbs while the last one descends. Both share the tree's channel: up they send towards the root, down away from it.
//! The tree's root turns the data round in its up lane, with a fused step to its only child; its down lane is empty.
//!
//! Broadcast and reduce have a lane for each tree, whose labels are the ranks other than the root, counted upwards from
//! it; the root feeds, or drains, both trees' tops.

use super::entry::{Entry, Sides, serves};
use super::{after, before};
use crate::schedule::{Collective, Operands, Place, Rank, Region, Schedule, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "double_tree",
    sides: Sides::Two,
    minds_hosts: false,
    serves: &[serves(Collective::AllReduce), serves(Collective::Broadcast), serves(Collective::Reduce)],
    schedule: |collective, place, _| schedule(collective, place),
};

fn schedule(collective: Collective, place: Place) -> Option<Box<dyn Schedule>> {
    match collective {
        Collective::AllReduce => {
            Some(Box::new(AllReduce { nodes: [0, 1].map(|tree| Node::new(tree, place.rank, place.size)) }))
        }
        Collective::Broadcast => Some(Box::new(Broadcast { nodes: [0, 1].map(|tree| Node::rooted(tree, place)) })),
        Collective::Reduce => Some(Box::new(Reduce { nodes: [0, 1].map(|tree| Node::rooted(tree, place)) })),
        _ => None,
    }
}

/// One rank's neighbours in one tree.
#[derive(Clone, Copy, Debug)]
struct Node {
    parent: Option<Rank>,
    /// The children, and on which side of the own operand theirs belongs. The first `count` are meant.
    children: [(Rank, Operands); 2],
    count: usize,
}

impl Node {
    /// The node labelled `label` of tree 0 or 1 over labels `0..size`.
    fn new(tree: usize, label: usize, size: usize) -> Node {
        let mirrored = size.is_multiple_of(2);
        match tree {
            0 => Node::in_order(label, size),
            _ if mirrored => Node::in_order(size - 1 - label, size).relabelled(|l| size - 1 - l).turned(),
            _ => Node::in_order(before(label, 1, size), size).relabelled(|l| after(l, 1, size)),
        }
    }

    /// The first tree. With b the lowest bit set in a label, the node's children are b/2 to either side of it (nearer
    /// on the right, where the labels end), and its parent is that one of its neighbours at distance b whose own lowest
    /// bit is 2b, or else, past the end of the labels, the one below.
    fn in_order(label: usize, size: usize) -> Node {
        let mut node = Node { parent: None, children: [(0, Operands::LocalFirst); 2], count: 0 };
        let mut right = if label == 0 {
            size.next_power_of_two() / 2
        } else {
            let bit = 1 << label.trailing_zeros();
            let below = label - bit;
            let above = below | (2 * bit);
            node.parent = Some(if above < size { above } else { below });
            if bit > 1 {
                node.children[0] = (label - bit / 2, Operands::PeerFirst);
                node.count = 1;
            }
            bit / 2
        };
        while right > 0 && label + right >= size {
            right /= 2;
        }
        if right > 0 {
            node.children[node.count] = (label + right, Operands::LocalFirst);
            node.count += 1;
        }
        node
    }

    /// The node of `place` where the two trees span the ranks other than the root, and the root is both tops' parent.
    fn rooted(tree: usize, place: Place) -> Node {
        let Place { rank, size, root } = place;
        let others = size - 1;
        let rank_of = |label| after(root, 1 + label, size);
        if rank == root {
            // Label 0 of the first tree is its top; see `new` for where that is in the second.
            let top = if tree == 0 || others == 1 {
                0
            } else if others.is_multiple_of(2) {
                others - 1
            } else {
                1
            };
            return Node { parent: None, children: [(rank_of(top), Operands::PeerFirst); 2], count: 1 };
        }
        let node = Node::new(tree, before(rank, root + 1, size), others).relabelled(rank_of);
        Node { parent: node.parent.or(Some(root)), ..node }
    }

    fn relabelled(self, rank_of: impl Fn(usize) -> Rank) -> Node {
        let children = self.children.map(|(label, order)| (rank_of(label), order));
        Node { parent: self.parent.map(&rank_of), children, count: self.count }
    }

    /// With the operands' sides exchanged.
    fn turned(self) -> Node {
        let turn = |order| match order {
            Operands::LocalFirst => Operands::PeerFirst,
            Operands::PeerFirst => Operands::LocalFirst,
        };
        Node { children: self.children.map(|(rank, order)| (rank, turn(order))), ..self }
    }

    /// Steps that [`climb`](Node::climb) takes.
    fn climbing(self) -> usize {
        self.count.max(1)
    }

    /// Step `i` of a node that has a parent, on the way up: add up what the children send and the own piece, and send
    /// it on.
    fn climb(self, i: usize, parent: Rank, own: Region, sum: Region) -> Step {
        if self.count == 0 {
            return Step::Send { to: parent, src: own };
        }
        let (from, order) = self.children[i];
        let local = if i == 0 { own } else { sum };
        if i + 1 < self.count {
            Step::RecvReduce { from, local, order, dst: sum }
        } else {
            Step::RecvReduceSend { from, local, order, dst: None, to: parent }
        }
    }

    /// Step `i` of a node that has a parent, on the way down, again [`climbing`](Node::climbing) of them: keep what
    /// comes, send it to the children.
    fn descend(self, i: usize, parent: Rank, dst: Region) -> Step {
        if self.count == 0 {
            return Step::Recv { from: parent, dst };
        }
        let to = self.children[i].0;
        if i == 0 { Step::RecvCopySend { from: parent, dst, to } } else { Step::Send { to, src: dst } }
    }
}

/// Lanes 0 and 1: up and down the first tree, 2 and 3 the second.
#[derive(Clone, Copy, Debug)]
struct AllReduce {
    nodes: [Node; 2],
}

impl Schedule for AllReduce {
    fn pieces(&self) -> usize {
        2
    }
    fn lanes(&self) -> usize {
        4
    }
    fn channel(&self, lane: usize) -> usize {
        lane / 2
    }
    fn steps(&self, lane: usize) -> usize {
        let node = self.nodes[lane / 2];
        if node.parent.is_none() && lane % 2 == 1 { 0 } else { node.climbing() }
    }
    fn step(&self, lane: usize, i: usize) -> Step {
        let tree = lane / 2;
        let node = self.nodes[tree];
        // Sums gather in the output; the result comes down into the same place after the sum has gone up.
        let (own, output) = (Region::input(tree, 1), Region::output(tree, 1));
        match node.parent {
            Some(parent) if lane.is_multiple_of(2) => node.climb(i, parent, own, output),
            Some(parent) => node.descend(i, parent, output),
            None => {
                let (child, order) = node.children[0];
                Step::RecvReduceSend { from: child, local: own, order, dst: Some(output), to: child }
            }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

#[derive(Clone, Copy, Debug)]
struct Broadcast {
    nodes: [Node; 2],
}

impl Schedule for Broadcast {
    fn pieces(&self) -> usize {
        2
    }
    fn lanes(&self) -> usize {
        2
    }
    fn channel(&self, lane: usize) -> usize {
        lane
    }
    fn steps(&self, lane: usize) -> usize {
        if self.nodes[lane].parent.is_none() { 2 } else { self.nodes[lane].climbing() }
    }
    fn step(&self, lane: usize, i: usize) -> Step {
        let node = self.nodes[lane];
        let (src, dst) = (Region::input(lane, 1), Region::output(lane, 1));
        match node.parent {
            Some(parent) => node.descend(i, parent, dst),
            None if i == 0 => Step::Send { to: node.children[0].0, src },
            None => Step::Copy { src, dst },
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

#[derive(Clone, Copy, Debug)]
struct Reduce {
    nodes: [Node; 2],
}

impl Schedule for Reduce {
    fn pieces(&self) -> usize {
        2
    }
    fn scratch(&self) -> usize {
        // One sum for each tree, needed where two children's contributions meet. Chunk t holds piece t.
        (0..2).filter(|&tree| self.nodes[tree].count == 2).map(|tree| tree + 1).max().unwrap_or(0)
    }
    fn lanes(&self) -> usize {
        2
    }
    fn channel(&self, lane: usize) -> usize {
        lane
    }
    fn steps(&self, lane: usize) -> usize {
        self.nodes[lane].climbing()
    }
    fn step(&self, lane: usize, i: usize) -> Step {
        let node = self.nodes[lane];
        let own = Region::input(lane, 1);
        match node.parent {
            Some(parent) => node.climb(i, parent, own, Region::scratch(lane, 1)),
            None => {
                let (from, order) = node.children[0];
                Step::RecvReduce { from, local: own, order, dst: Region::output(lane, 1) }
            }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
