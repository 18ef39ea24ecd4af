//! Hierarchical algorithms for large messages: hosts first, ranks within hosts second.
//!
//! Source: the three-phase all-reduce (reduce-scatter inside, all-reduce across, all-gather inside) is in R. Rabenseifner,
//! G. Hager, G. Jost, "Hybrid MPI/OpenMP parallel programming on clusters of multi-core SMP nodes", PDP 2009, and in
//! many libraries since; hierarchies in general in N. T. Karonis and others, "Exploiting hierarchy in parallel computer
//! networks to optimize collective operation performance", IPDPS 2000.
//!
//! All ranks of a host share its network link, and memory is much faster. A flat algorithm sends the data of one host
//! across the network several times; here each byte crosses each host's link as often as the hosts alone would ask,
//! however many ranks there are on them. The work on the network is shared out by *columns*: there are as many as the
//! narrowest host has ranks, and column c is carried on each host by the rank at place c. More columns would not help:
//! on the narrowest host every rank is at work already.
//!
//! ```text
//!   hosts of 3, 2 and 4 ranks    host 0    host 1    host 2
//!   column 0                     rank 0 -- rank 3 -- rank 5     carriers of a column talk across the network,
//!   column 1                     rank 1 -- rank 4 -- rank 6     all ranks of a host through memory
//!                                rank 2              rank 7
//!                                                    rank 8
//! ```
//!
//! Inside a host data goes in circles, from each place to the next. A circle ends at a carrier and sums up what it
//! passes, or it begins at one and hands out what the carrier has; every rank takes part in the circles of all columns.
//! A rank goes through them in the order in which they reach it, so that the circles turn all at once, as the pieces of
//! the flat ring do; between two neighbours there is never more than one message at a time. That makes the schedules
//! free of deadlock with one message of credit, and shares the arithmetic out evenly, whatever the number of columns.
//!
//! Steps are two-sided only: a schedule does not see whether a link is memory or network.

mod all_gather;
mod all_reduce;
mod all_to_all;
mod broadcast;
mod legs;
mod reduce;
mod reduce_scatter;

use super::entry::{Entry, Sides, serves};
use crate::hosts::Hosts;
use crate::schedule::{Collective, Operands, Place, Rank, Region, Schedule, Step};
use std::sync::Arc;

pub(super) const ENTRY: Entry = Entry {
    name: "hierarchical",
    sides: Sides::Two,
    minds_hosts: true,
    serves: &[
        serves(Collective::AllReduce),
        serves(Collective::Broadcast),
        serves(Collective::Reduce),
        serves(Collective::AllGather),
        serves(Collective::ReduceScatter),
        serves(Collective::AllToAll),
    ],
    schedule,
};

fn schedule(collective: Collective, place: Place, hosts: &Arc<Hosts>) -> Option<Box<dyn Schedule>> {
    let view = View::new(place.rank, hosts);
    match collective {
        Collective::AllReduce => Some(Box::new(all_reduce::AllReduce(view))),
        Collective::Broadcast => Some(Box::new(broadcast::Broadcast::new(view, place))),
        Collective::Reduce => Some(Box::new(reduce::Reduce::new(view, place))),
        Collective::AllGather => Some(Box::new(all_gather::AllGather::new(view, place.rank))),
        Collective::ReduceScatter => Some(Box::new(reduce_scatter::ReduceScatter::new(view))),
        Collective::AllToAll => Some(Box::new(all_to_all::AllToAll::new(view, place.rank))),
        _ => None,
    }
}

/// A rank's place among the hosts.
#[derive(Clone, Debug)]
struct View {
    hosts: Arc<Hosts>,
    /// The own host.
    host: usize,
    /// The own place on it.
    place: usize,
    /// How many ranks the own host has.
    local: usize,
    /// How many columns there are.
    columns: usize,
}

/// Where a rank stands on a circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    First,
    Between,
    Last,
}

impl View {
    fn new(rank: Rank, hosts: &Arc<Hosts>) -> View {
        let host = hosts.host(rank);
        View { host, place: hosts.place(rank), local: hosts.on(host), columns: hosts.narrowest(), hosts: hosts.clone() }
    }

    /// The number of hosts.
    fn count(&self) -> usize {
        self.hosts.count()
    }

    /// The host `distance` after the own one, round all hosts.
    fn after(&self, distance: usize) -> usize {
        (self.host + distance) % self.count()
    }

    /// The host `distance` before the own one; `distance` is at most twice the number of hosts.
    fn before(&self, distance: usize) -> usize {
        (self.host + 2 * self.count() - distance) % self.count()
    }

    /// Whether the own rank carries a column; its number is the rank's place.
    fn carries(&self) -> bool {
        self.place < self.columns
    }

    /// The carriers of the own column on the host before and the host after.
    fn across(&self) -> (Rank, Rank) {
        (self.hosts.rank(self.before(1), self.place), self.hosts.rank(self.after(1), self.place))
    }

    /// The rank at `place` on the own host.
    fn beside(&self, place: usize) -> Rank {
        self.hosts.rank(self.host, place)
    }

    /// The rank at the place before the own one, round the own host.
    fn previous(&self) -> Rank {
        self.beside((self.place + self.local - 1) % self.local)
    }

    /// The rank at the place after the own one, round the own host.
    fn next(&self) -> Rank {
        self.beside((self.place + 1) % self.local)
    }

    /// How many circles of `circles` concern this rank: none if it is alone on its host.
    fn circles(&self, circles: usize) -> usize {
        if self.local > 1 { circles } else { 0 }
    }

    /// Of circles that *end* at the places from `first` on, `circles` of them: the `i`-th to reach this rank, and where it
    /// stands there. The own one, if any, comes last.
    fn gathering(&self, first: usize, circles: usize, i: usize) -> (usize, Stand) {
        let below = self.place.saturating_sub(first).min(circles);
        let circle = (below + 2 * circles - 1 - i) % circles;
        let end = first + circle;
        let stand = if end == self.place {
            Stand::Last
        } else if (end + 1) % self.local == self.place {
            Stand::First
        } else {
            Stand::Between
        };
        (circle, stand)
    }

    /// Of circles that *begin* at the places from `first` on, `circles` of them: the `i`-th to reach this rank, and where
    /// it stands there. The own one, if any, comes first.
    fn spreading(&self, first: usize, circles: usize, i: usize) -> (usize, Stand) {
        let below = (self.place + 1).saturating_sub(first).min(circles);
        let circle = (below + 2 * circles - 1 - i) % circles;
        let begin = first + circle;
        let stand = if begin == self.place {
            Stand::First
        } else if begin == (self.place + 1) % self.local {
            Stand::Last
        } else {
            Stand::Between
        };
        (circle, stand)
    }

    /// The step on a circle that hands out what its first rank has.
    fn hand_on(&self, stand: Stand, dst: Region) -> Step {
        let (from, to) = (self.previous(), self.next());
        match stand {
            Stand::First => Step::Send { to, src: dst },
            Stand::Between => Step::RecvCopySend { from, dst, to },
            Stand::Last => Step::Recv { from, dst },
        }
    }

    /// The step on a circle that sums up, of a rank that is not the last.
    fn add_on(&self, stand: Stand, own: Region) -> Step {
        let (from, to) = (self.previous(), self.next());
        match stand {
            Stand::First => Step::Send { to, src: own },
            _ => Step::RecvReduceSend { from, local: own, order: Operands::PeerFirst, dst: None, to },
        }
    }
}
