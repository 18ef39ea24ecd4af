//! Which rank is on which host: what hierarchical schedules are generated from.
//!
//! Ranks of one host reach each other through memory, ranks of different hosts through a network that all ranks of a
//! host share. Placement is free: hosts may have different numbers of ranks, and a host's ranks need not be neighbours.
//!
//! ```text
//!   rank    0  1  2  3  4  5        hosts are numbered by their lowest rank: a = 0, b = 1, c = 2
//!   host    a  b  a  c  b  a        a rank's *place* is its number among the ranks of its host:
//!   place   0  0  1  0  1  2        0, 1, 2 on a; 0, 1 on b; 0 on c
//! ```

use crate::schedule::Rank;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

/// The placement of a world's ranks on hosts; the same on every rank. It takes 16 bytes a rank, answers in constant
/// time, and is shared by all schedules of a communicator.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Hosts {
    /// Host and place of each rank.
    spots: Vec<(u32, u32)>,
    /// The ranks, host by host, upwards within each.
    ranks: Vec<u32>,
    /// Where each host's ranks begin in `ranks`, and behind the last host where they end.
    starts: Vec<u32>,
    widest: usize,
    narrowest: usize,
}

impl Hosts {
    /// From anything that tells hosts apart, one for each rank: a name, a number.
    ///
    /// # Panics
    /// If there are no ranks, or 2^32 of them.
    pub fn new<H: Eq + Hash>(host_of_each_rank: impl IntoIterator<Item = H>) -> Hosts {
        let mut known = HashMap::new();
        let mut members: Vec<Vec<u32>> = Vec::new();
        let mut spots = Vec::new();
        for (rank, host) in (0u32..).zip(host_of_each_rank) {
            let next = members.len();
            let host = *known.entry(host).or_insert(next);
            if host == next {
                members.push(Vec::new());
            }
            spots.push((host as u32, members[host].len() as u32));
            members[host].push(rank);
        }
        assert!(!spots.is_empty(), "a world has at least one rank");
        let mut starts = vec![0];
        let mut ranks = Vec::with_capacity(spots.len());
        let widest = members.iter().map(Vec::len).max().unwrap_or(0);
        let narrowest = members.iter().map(Vec::len).min().unwrap_or(0);
        for mut on_host in members {
            ranks.append(&mut on_host);
            starts.push(ranks.len() as u32);
        }
        Hosts { spots, ranks, starts, widest, narrowest }
    }

    /// `size` ranks on one host.
    pub fn together(size: usize) -> Hosts {
        Hosts::new(std::iter::repeat_n((), size))
    }

    /// `size` ranks, each on a host of its own.
    pub fn apart(size: usize) -> Hosts {
        Hosts::new(0..size)
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.ranks.len()
    }

    /// How many hosts there are.
    pub fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// The most ranks that any host has.
    pub fn widest(&self) -> usize {
        self.widest
    }

    /// The fewest ranks that any host has; at least 1.
    pub fn narrowest(&self) -> usize {
        self.narrowest
    }

    /// The host of a rank.
    pub fn host(&self, rank: Rank) -> usize {
        self.spots[rank].0 as usize
    }

    /// A rank's number among the ranks of its host.
    pub fn place(&self, rank: Rank) -> usize {
        self.spots[rank].1 as usize
    }

    /// How many ranks a host has.
    pub fn on(&self, host: usize) -> usize {
        self.before(host + 1) - self.before(host)
    }

    /// The rank at a place of a host.
    pub fn rank(&self, host: usize, place: usize) -> Rank {
        debug_assert!(place < self.on(host), "host {host} has no place {place}");
        self.ranks[self.before(host) + place] as Rank
    }

    /// How many ranks the `count` hosts from `host` on have together, counted round all hosts.
    pub fn ranks_from(&self, host: usize, count: usize) -> usize {
        match host + count {
            end if end <= self.count() => self.before(end) - self.before(host),
            end => self.size() - self.before(host) + self.before(end - self.count()),
        }
    }

    /// How many ranks the hosts below `host` have together; `host` may be the number of hosts.
    pub fn before(&self, host: usize) -> usize {
        self.starts[host] as usize
    }
}

/// `2 ranks on each of 3 hosts`, or for uneven ones the ranks of each host: `0 2 5 | 1 4 | 3`.
impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_order = self.ranks.iter().copied().eq(0..self.size() as u32);
        match (self.count(), self.size()) {
            (1, size) => return write!(f, "{size} ranks on one host"),
            (count, size) if count == size => return write!(f, "{size} ranks on as many hosts"),
            (count, size) if in_order && self.widest * count == size => {
                return write!(f, "{} ranks on each of {count} hosts", self.widest);
            }
            _ => {}
        }
        for host in 0..self.count() {
            if host > 0 {
                f.write_str(" | ")?;
            }
            let ranks: Vec<String> = (0..self.on(host)).map(|place| self.rank(host, place).to_string()).collect();
            f.write_str(&ranks.join(" "))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hosts({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_rank_order() {
        let hosts = Hosts::new(["a", "b", "a", "c", "b", "a"]);
        assert_eq!((hosts.size(), hosts.count(), hosts.widest(), hosts.narrowest()), (6, 3, 3, 1));
        assert_eq!((0..6).map(|r| hosts.host(r)).collect::<Vec<_>>(), [0, 1, 0, 2, 1, 0]);
        assert_eq!((0..6).map(|r| hosts.place(r)).collect::<Vec<_>>(), [0, 0, 1, 0, 1, 2]);
        assert_eq!((0..3).map(|h| hosts.on(h)).collect::<Vec<_>>(), [3, 2, 1]);
        for rank in 0..6 {
            assert_eq!(hosts.rank(hosts.host(rank), hosts.place(rank)), rank);
        }
        assert_eq!(hosts.to_string(), "0 2 5 | 1 4 | 3");
    }

    #[test]
    fn regular_placements_are_said_in_words() {
        assert_eq!(Hosts::together(3).to_string(), "3 ranks on one host");
        assert_eq!(Hosts::apart(3).to_string(), "3 ranks on as many hosts");
        assert_eq!(Hosts::new([1, 1, 2, 2]).to_string(), "2 ranks on each of 2 hosts");
        assert_eq!(Hosts::new([1, 2, 1, 2]).to_string(), "0 2 | 1 3");
    }
}
