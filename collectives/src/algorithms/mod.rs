//! The algorithms, one file each, its source cited on top.
//!
//! [`schedule`] is the only way in: it gives one rank's [`Schedule`] for an [`Algorithm`], a [`Collective`] and a
//! [`Place`]. A schedule is built in logarithmic time from the place alone and holds a few integers (hierarchical ones
//! share the placement and may hold a number for each host); nobody ever sees the other ranks' schedules, except the
//! [verifier](crate::verify), which builds them all.
//!
//! A new algorithm is one new file, with its `Entry`, and its name in the list of this one.
//!
//! Ranks are counted *round the world*: where an algorithm has a root, rank `r` is often named by its *relative rank*,
//! its distance `(r - root) mod size` upwards from the root.

mod alone;
mod binomial;
mod bruck;
mod chain;
mod direct;
mod dissemination;
mod double_tree;
mod entry;
mod halving_doubling;
mod hierarchy;
mod leaders;
mod one_shot;
mod pairs;
mod pairwise;
mod recursive_doubling;
mod ring;
mod two_shot;

pub use entry::Folds;

use crate::hosts::Hosts;
use crate::schedule::{Collective, Operands, Place, Rank, Schedule};
use entry::{Entry, Service, Sides};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

macro_rules! algorithms {
    ($($(#[doc = $text:literal])+ $variant:ident: $file:ident,)*) => {
        /// Every algorithm there is, in the order in which they are listed to users. What each is good for stands on
        /// top of its file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Algorithm {
            $($(#[doc = $text])+ $variant,)*
        }

        impl Algorithm {
            /// Every algorithm, in that order.
            pub const ALL: [Algorithm; [$(stringify!($variant)),*].len()] = [$(Algorithm::$variant),*];

            const fn entry(self) -> &'static Entry {
                match self {
                    $(Algorithm::$variant => &$file::ENTRY,)*
                }
            }
        }
    };
}

algorithms! {
    /// Neighbours in a circle; each block is cut in n. Full bandwidth, time linear in n.
    Ring: ring,
    /// Neighbours in a line, pipelined by rounds. Full bandwidth for one root, time linear in n.
    Chain: chain,
    /// Two binary trees, each carrying half. Full bandwidth and logarithmic time.
    DoubleTree: double_tree,
    /// One binomial tree. Logarithmic time, every hop carries everything.
    Binomial: binomial,
    /// Rabenseifner: halve the vector while doubling the distance, then back. Logarithmic time, full bandwidth.
    HalvingDoubling: halving_doubling,
    /// Exchange everything with partners at doubling distance. The fewest hops for small messages.
    RecursiveDoubling: recursive_doubling,
    /// Bruck: logarithmically many larger messages in place of n small ones.
    Bruck: bruck,
    /// One partner after the other.
    Pairwise: pairwise,
    /// Every rank to every rank, all pairs at once; where elements are combined, strictly in rank order.
    Direct: direct,
    /// Shared memory: publish everything, everybody reads what it needs.
    OneShot: one_shot,
    /// Shared memory: each rank reduces one piece, then everybody reads all of them.
    TwoShot: two_shot,
    /// The barrier: signals to ranks at doubling distance.
    Dissemination: dissemination,
    /// Hosts first, for large messages: all ranks of a host share the work, its network link carries the least possible.
    Hierarchical: hierarchy,
    /// Hosts first, for small messages: one rank of each host speaks for it. Logarithmic time across hosts.
    Leaders: leaders,
}

impl Algorithm {
    /// The name used everywhere, on the command line too: `double_tree`.
    pub const fn name(self) -> &'static str {
        self.entry().name
    }

    /// Whether its schedules publish and fetch, which needs ranks that share memory.
    pub const fn one_sided(self) -> bool {
        matches!(self.entry().sides, Sides::One)
    }

    /// Whether its schedules depend on which ranks share a host.
    pub const fn minds_hosts(self) -> bool {
        self.entry().minds_hosts
    }

    /// Whether a rank may lend what it publishes, in place too: have the others read it where it lies, in place of a
    /// copy, because no step overwrites what another rank may still fetch. Out of place that holds for every one-sided
    /// schedule. The verifier checks both.
    pub const fn lends_in_place(self, collective: Collective) -> bool {
        matches!(self.entry().service(collective), Some(Service { lends_in_place: true, .. }))
    }

    /// Whether it has schedules for `collective`.
    pub const fn supports(self, collective: Collective) -> bool {
        self.entry().service(collective).is_some()
    }

    /// What it promises about the order in which it combines elements; `None` where it has no schedules. The
    /// [verifier](crate::verify) holds each algorithm to it.
    pub const fn folds(self, collective: Collective) -> Option<Folds> {
        match self.entry().service(collective) {
            Some(Service { folds, .. }) => Some(folds),
            None => None,
        }
    }

    /// Whether the result is bit for bit the left fold in rank order, ((x0 ⊕ x1) ⊕ x2) ⊕ ..., in worlds of every size
    /// (see [`Order::Canonical`](crate::Order)). True of whatever has schedules for a collective that combines nothing.
    pub const fn is_canonical(self, collective: Collective) -> bool {
        matches!(self.folds(collective), Some(Folds::FromTheLeft))
    }

    /// Whether the ranks' elements are combined in the order of the ranks, 0, 1, 2, ..., in worlds
    /// of every size, to every root and wherever the ranks are, however bracketed: then an
    /// operation that does not commute is as good as any. True of whatever is
    /// [canonical](Algorithm::is_canonical).
    pub const fn keeps_rank_order(self, collective: Collective) -> bool {
        matches!(self.folds(collective), Some(Folds::InRankOrder | Folds::FromTheLeft))
    }

    /// The algorithms that have schedules for `collective`; at least one for each collective.
    pub fn for_collective(collective: Collective) -> impl Iterator<Item = Algorithm> {
        Algorithm::ALL.into_iter().filter(move |a| a.supports(collective))
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no algorithm has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no algorithm is called `{name}`; there are: {}", Algorithm::ALL.map(Algorithm::name).join(", "))]
pub struct UnknownAlgorithm {
    /// What was asked for.
    pub name: String,
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Algorithm, UnknownAlgorithm> {
        let found = Algorithm::ALL.into_iter().find(|a| a.name() == name);
        found.ok_or_else(|| UnknownAlgorithm { name: name.to_owned() })
    }
}

/// The schedule of rank `place.rank`, or `None` if the algorithm has none for this collective (see
/// [`Algorithm::supports`]). All ranks of a world must run schedules of the same algorithm, collective, size, root and
/// hosts. Only hierarchical algorithms look at `hosts`.
///
/// # Panics
/// If `place.rank` or `place.root` is not below `place.size`, or `hosts` holds another number of ranks: the caller has
/// checked all that long before.
pub fn schedule(
    algorithm: Algorithm,
    collective: Collective,
    place: Place,
    hosts: &Arc<Hosts>,
) -> Option<Box<dyn Schedule>> {
    let Place { rank, size, root } = place;
    assert!(rank < size && root < size, "rank {rank} and root {root} must be below the world size {size}");
    assert_eq!(hosts.size(), size, "hosts must hold the ranks of the world");
    if !algorithm.supports(collective) {
        return None;
    }
    if size == 1 {
        return Some(Box::new(alone::Alone::new(collective)));
    }
    (algorithm.entry().schedule)(collective, place, hosts)
}

/// `rank + distance`, round the world.
const fn after(rank: Rank, distance: usize, size: usize) -> Rank {
    (rank + distance) % size
}

/// `rank - distance`, round the world; `distance` is at most `size`.
const fn before(rank: Rank, distance: usize, size: usize) -> Rank {
    (rank + size - distance) % size
}

/// The `k`-th other rank (from 0) whose contribution rank `rank` folds into its own, where it alone computes the
/// result: first those above it upwards, then those below it downwards. Each new operand then lies at one end of those
/// already combined, so that the operands stand in rank order, and ranks that fold at the same time read from different
/// peers.
const fn outward(rank: Rank, k: usize, size: usize) -> (Rank, Operands) {
    if rank + 1 + k < size { (rank + 1 + k, Operands::LocalFirst) } else { (size - 2 - k, Operands::PeerFirst) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_unknown_ones_list_the_known() {
        for a in Algorithm::ALL {
            assert_eq!(a.name().parse::<Algorithm>(), Ok(a));
        }
        let message = "rnig".parse::<Algorithm>().unwrap_err().to_string();
        assert!(message.contains("`rnig`") && message.contains("ring, chain, double_tree"), "{message}");
    }

    #[test]
    fn supports_tells_exactly_what_schedule_builds() {
        for a in Algorithm::ALL {
            for c in Collective::ALL {
                for size in 1..5 {
                    let hosts = Arc::new(Hosts::together(size));
                    let built = schedule(a, c, Place { rank: size - 1, size, root: 0 }, &hosts);
                    assert_eq!(built.is_some(), a.supports(c), "{a} {} size {size}", c.name());
                }
            }
        }
        for c in Collective::ALL {
            assert!(Algorithm::for_collective(c).any(|a| !a.one_sided()), "{} needs a two-sided algorithm", c.name());
        }
    }

    #[test]
    fn outward_meets_every_other_rank_once() {
        for size in 1..10 {
            for rank in 0..size {
                let mut met: Vec<Rank> = (0..size - 1).map(|k| outward(rank, k, size).0).collect();
                assert!((0..size - 1).all(|k| {
                    let (peer, order) = outward(rank, k, size);
                    (peer < rank) == (order == Operands::PeerFirst)
                }));
                met.sort_unstable();
                assert!(met.into_iter().eq((0..size).filter(|&r| r != rank)));
            }
        }
    }
}
