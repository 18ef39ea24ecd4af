//! All-to-all: one host after the other.
//!
//! Blocks go straight from sender to receiver; nothing could be saved on a host's link, over which each block has to go
//! once. What counts is that no host is flooded: in turn t the ranks of each host send to the host t after theirs, and
//! receive from the host t before, as ranks do in `pairwise`. The exchange within hosts has a lane of its own, so that it
//! goes on while the network is at work.
//!
//! Each link carries one message. In a turn a rank sends before it receives, so nobody waits for ever.

use super::View;
use crate::schedule::{Rank, Region, Schedule, Step};

#[derive(Clone, Debug)]
pub(super) struct AllToAll {
    view: View,
    rank: Rank,
}

impl AllToAll {
    pub(super) fn new(view: View, rank: Rank) -> AllToAll {
        AllToAll { view, rank }
    }

    /// How many ranks are on the `turns` hosts from the own one on, upwards and downwards.
    fn met(&self, turns: usize) -> usize {
        let View { hosts, host, .. } = &self.view;
        hosts.ranks_from(*host, turns) + hosts.ranks_from(self.view.before(turns - 1), turns)
    }

    /// The turn of the network lane to which step `i` belongs, and its number there.
    fn turn(&self, i: usize) -> (usize, usize) {
        let i = i + self.met(1);
        let (mut low, mut high) = (1, self.view.count());
        // The last turn that begins no later.
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.met(middle) <= i { low = middle } else { high = middle }
        }
        (low, i - self.met(low))
    }

    fn send(&self, to: Rank) -> Step {
        Step::Send { to, src: Region::input(to, 1) }
    }

    fn recv(&self, from: Rank) -> Step {
        Step::Recv { from, dst: Region::output(from, 1) }
    }

    fn inside(&self, i: usize) -> Step {
        let View { place, local, .. } = self.view;
        if i == 2 * (local - 1) {
            return Step::Copy { src: Region::input(self.rank, 1), dst: Region::output(self.rank, 1) };
        }
        let distance = i / 2 + 1;
        if i.is_multiple_of(2) {
            self.send(self.view.beside((place + distance) % local))
        } else {
            self.recv(self.view.beside((place + local - distance) % local))
        }
    }

    fn across(&self, i: usize) -> Step {
        let (turn, i) = self.turn(i);
        let hosts = &self.view.hosts;
        let (above, below) = (self.view.after(turn), self.view.before(turn));
        // Each begins with another place, so that not all send to the same rank.
        let sends = hosts.on(above);
        if i < sends {
            self.send(hosts.rank(above, (self.view.place + i) % sends))
        } else {
            let receives = hosts.on(below);
            self.recv(hosts.rank(below, (self.view.place + i - sends) % receives))
        }
    }
}

impl Schedule for AllToAll {
    fn pieces(&self) -> usize {
        1
    }
    fn lanes(&self) -> usize {
        2
    }
    fn steps(&self, lane: usize) -> usize {
        match lane {
            0 => 2 * (self.view.hosts.size() - self.view.local),
            _ => 2 * (self.view.local - 1) + 1,
        }
    }
    fn step(&self, lane: usize, i: usize) -> Step {
        if lane == 0 { self.across(i) } else { self.inside(i) }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
