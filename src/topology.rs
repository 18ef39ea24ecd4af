//! Which ranks share a host, which cores they have there, and near which memory.

use maypole_collectives::Hosts;

use crate::node::{self, Peer};

/// Where the ranks of a communicator are.
#[derive(Clone, Debug)]
pub struct Topology {
    ranks: Vec<Spot>,
}

/// Where one rank is.
#[derive(Clone, Debug)]
struct Spot {
    host: String,
    /// Equal for ranks that may share memory.
    host_id: u64,
    /// How many cores it can use, its container's share considered.
    cores: usize,
    /// Which cores its affinity allows, 64 a word; empty if unknown.
    affinity: Vec<u64>,
}

impl Topology {
    pub(crate) fn new<'a>(peers: impl Iterator<Item = &'a Peer>) -> Topology {
        let spot =
            |p: &Peer| Spot { host: p.host.clone(), host_id: p.host_id, cores: p.cores, affinity: p.affinity.clone() };
        Topology { ranks: peers.map(spot).collect() }
    }

    /// `size` ranks in this process.
    pub(crate) fn one_host(host: String, size: usize) -> Topology {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let spot = Spot { host, host_id: 0, cores, affinity: node::affinity() };
        Topology { ranks: vec![spot; size] }
    }

    /// The name of each rank's host.
    pub fn hosts(&self) -> Vec<String> {
        self.ranks.iter().map(|r| r.host.clone()).collect()
    }

    /// Number of hosts, counting as one those whose ranks may share memory.
    pub fn host_count(&self) -> usize {
        let mut ids: Vec<u64> = self.ranks.iter().map(|r| r.host_id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    /// Which rank is on which host, hosts being counted as in [`Topology::host_count`].
    pub fn placement(&self) -> Hosts {
        Hosts::new(self.ranks.iter().map(|r| r.host_id))
    }

    fn beside(&self, rank: usize) -> impl Iterator<Item = &Spot> {
        let host = self.ranks[rank].host_id;
        self.ranks.iter().filter(move |r| r.host_id == host)
    }

    /// How many ranks share `rank`'s host, itself included.
    pub fn ranks_beside(&self, rank: usize) -> usize {
        self.beside(rank).count()
    }

    /// How many cores those ranks have between them: all that any of them may use, but no more than their containers
    /// grant.
    pub fn cores_beside(&self, rank: usize) -> usize {
        let granted: usize = self.beside(rank).map(|r| r.cores).sum();
        let widest = self.beside(rank).map(|r| r.affinity.len()).max().unwrap_or(0);
        let word = |i: usize| self.beside(rank).fold(0, |all, r| all | r.affinity.get(i).copied().unwrap_or(0));
        let allowed: u32 = (0..widest).map(|i| word(i).count_ones()).sum();
        let allowed = if allowed == 0 { granted } else { allowed as usize };
        allowed.min(granted).max(1)
    }

    /// The NUMA node that has all the cores `rank` may use, for ranks of this machine; `None` where they span several.
    pub fn numa_node(&self, rank: usize) -> Option<usize> {
        numa_nodes().into_iter().find_map(|(number, cores)| {
            let affinity = &self.ranks[rank].affinity;
            let covers = |(i, word): (usize, &u64)| word & !cores.get(i).copied().unwrap_or(0) == 0;
            (!affinity.is_empty() && affinity.iter().enumerate().all(covers)).then_some(number)
        })
    }
}

/// This machine's NUMA nodes and their cores, 64 a word; empty if the system does not say.
pub fn numa_nodes() -> Vec<(usize, Vec<u64>)> {
    let Ok(entries) = std::fs::read_dir("/sys/devices/system/node") else { return Vec::new() };
    let mut nodes: Vec<(usize, Vec<u64>)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let list = std::fs::read_to_string(entry.path().join("cpulist")).ok()?;
            Some((number, parse_list(list.trim())?))
        })
        .collect();
    nodes.sort_unstable();
    nodes
}

/// The highest core number that is believed; Linux has at most 8192.
const LARGEST: usize = (1 << 16) - 1;

/// A kernel list of numbers such as `0-3,8,10-11`, as a bit set.
pub(crate) fn parse_list(text: &str) -> Option<Vec<u64>> {
    let mut words = Vec::new();
    for range in text.split(',').filter(|r| !r.is_empty()) {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let (low, high) = (low.parse::<usize>().ok()?, high.parse::<usize>().ok()?);
        if high > LARGEST {
            return None;
        }
        for core in low..=high {
            if words.len() <= core / 64 {
                words.resize(core / 64 + 1, 0);
            }
            words[core / 64] |= 1 << (core % 64);
        }
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(host_id: u64, cores: usize, affinity: u64) -> Spot {
        Spot { host: format!("h{host_id}"), host_id, cores, affinity: vec![affinity] }
    }

    #[test]
    fn lists_of_cores() {
        assert_eq!(parse_list("0-3,8,64"), Some(vec![0b1_0000_1111, 1]));
        assert_eq!(parse_list(""), Some(vec![]));
        assert_eq!(parse_list("a-b"), None);
        assert_eq!(parse_list("0-18446744073709551615"), None, "more than any machine has");
    }

    #[test]
    fn cores_are_counted_once() {
        let bound = Topology { ranks: vec![spot(1, 1, 0b01), spot(1, 1, 0b10), spot(2, 4, 0b1111)] };
        assert_eq!((bound.ranks_beside(0), bound.cores_beside(0)), (2, 2));
        assert_eq!((bound.ranks_beside(2), bound.cores_beside(2)), (1, 4));
        assert_eq!(bound.host_count(), 2);
        let shared = Topology { ranks: vec![spot(1, 2, 0b11); 4] };
        assert_eq!(shared.cores_beside(0), 2);
        let limited = Topology { ranks: vec![spot(1, 1, 0b1111)] };
        assert_eq!(limited.cores_beside(0), 1);
    }
}
