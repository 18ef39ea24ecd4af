//! Which ranks share a host, and how many cores they have there.

use crate::node::Peer;

/// Where the ranks of a communicator are.
#[derive(Clone, Debug)]
pub struct Topology {
    hosts: Vec<String>,
    host_ids: Vec<u64>,
    cores: Vec<usize>,
}

impl Topology {
    pub(crate) fn new<'a>(peers: impl Iterator<Item = &'a Peer> + Clone) -> Topology {
        Topology {
            hosts: peers.clone().map(|p| p.host.clone()).collect(),
            host_ids: peers.clone().map(|p| p.host_id).collect(),
            cores: peers.map(|p| p.cores).collect(),
        }
    }

    /// `size` ranks in this process.
    pub(crate) fn one_host(host: String, size: usize) -> Topology {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Topology { hosts: vec![host; size], host_ids: vec![0; size], cores: vec![cores; size] }
    }

    /// The name of each rank's host.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Number of hosts.
    pub fn host_count(&self) -> usize {
        let mut ids = self.host_ids.clone();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    fn here(&self, rank: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.hosts.len()).filter(move |r| self.host_ids[*r] == self.host_ids[rank])
    }

    /// How many ranks share `rank`'s host.
    pub fn ranks_here(&self, rank: usize) -> usize {
        self.here(rank).count()
    }

    /// How many cores those ranks have between them. Each rank knows only its own affinity: where the numbers add up to no more than the host has, every rank was given cores
    /// of its own; otherwise they share what the widest of them may use.
    pub fn cores_here(&self, rank: usize) -> usize {
        let sum: usize = self.here(rank).map(|r| self.cores[r]).sum();
        let widest = self.here(rank).map(|r| self.cores[r]).max().unwrap_or(1);
        // SAFETY: sysconf has no memory effects.
        let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1) as usize;
        if sum <= online { sum } else { widest }
    }
}
