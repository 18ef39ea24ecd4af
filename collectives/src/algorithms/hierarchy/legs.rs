//! The order in which blocks cross the network, for collectives with a block for each rank.
//!
//! Hosts with more ranks than there are columns have more blocks than can travel at once. They go in *layers* of as many
//! blocks as there are columns: layer k of a host is the blocks of its places from `k * columns` on, and the block at
//! place `k * columns + c` travels on column c. A layer's blocks of all hosts go round before those of the next; hosts
//! that have none in a layer are left out. One layer of one host, as seen from some host, is a *leg*.

use super::View;

/// A host's blocks in one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leg {
    /// The first of the rank's steps.
    start: u32,
    /// The host to which the blocks belong.
    pub(super) host: u32,
    /// How many hosts the own one is from the one where the blocks start.
    pub(super) turn: u32,
    /// The place of the first of the blocks.
    pub(super) first: u32,
}

/// All legs, in the order in which this rank goes through them; at most one for each rank of the world.
#[derive(Clone, Debug)]
pub(super) struct Legs {
    legs: Box<[Leg]>,
    steps: usize,
}

impl Legs {
    /// In turn t it is the blocks of host `host(t)`. `steps`: how many steps a rank has in a turn, given the number of
    /// blocks.
    pub(super) fn new(view: &View, host: impl Fn(usize) -> usize, steps: impl Fn(&Leg, usize) -> usize) -> Legs {
        let mut turns: Vec<usize> = (0..view.count()).collect();
        let mut legs = Vec::new();
        let (mut first, mut start) = (0, 0);
        while !turns.is_empty() {
            for &turn in &turns {
                let host = host(turn);
                let leg = Leg { start: start as u32, host: host as u32, turn: turn as u32, first: first as u32 };
                start += steps(&leg, leg.blocks(view));
                legs.push(leg);
            }
            first += view.columns;
            turns.retain(|&turn| view.hosts.on(host(turn)) > first);
        }
        Legs { legs: legs.into(), steps: start }
    }

    /// How many steps there are in all legs.
    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// The leg to which a step belongs, and its number there.
    pub(super) fn find(&self, i: usize) -> (Leg, usize) {
        let leg = self.legs[self.legs.partition_point(|leg| leg.start as usize <= i) - 1];
        (leg, i - leg.start as usize)
    }
}

impl Leg {
    /// How many blocks there are.
    pub(super) fn blocks(&self, view: &View) -> usize {
        (view.hosts.on(self.host as usize) - self.first as usize).min(view.columns)
    }

    /// The rank to which the block on a column belongs.
    pub(super) fn owner(&self, view: &View, column: usize) -> usize {
        view.hosts.rank(self.host as usize, self.first as usize + column)
    }
}
