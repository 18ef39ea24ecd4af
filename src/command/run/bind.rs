//! Which cores a rank runs on: `--bind`.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::topology::numa_nodes;

/// What ranks are bound to.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(super) enum Bind {
    /// A core each, with its hardware threads
    Core,
    /// The cores of a NUMA node, the ranks spread over the nodes in their order
    Numa,
    /// Nothing: the system moves them as it likes
    None,
}

/// The sets of cores from which each rank gets one.
pub(super) struct Places(Vec<CpuSet>);

impl Places {
    /// Those that this process may use. None for [`Bind::None`].
    ///
    /// # Errors
    /// [`Error::System`] if the system does not say which these are.
    pub(super) fn find(bind: Bind) -> Result<Places> {
        if bind == Bind::None {
            return Ok(Places(Vec::new()));
        }
        let system = |error| Error::system("asking which cores there are (--bind)", error);
        let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(system)?;
        let usable = |core: usize| allowed.is_set(core).unwrap_or(false);
        let groups: Vec<Vec<usize>> = match bind {
            Bind::Core => (0..CpuSet::count()).filter(|core| usable(*core)).map(threads_of).collect(),
            _ => numa_nodes().into_iter().map(|(_, words)| bits(&words)).collect(),
        };
        let mut groups: Vec<Vec<usize>> =
            groups.into_iter().map(|group| group.into_iter().filter(|core| usable(*core)).collect()).collect();
        groups.retain(|group| !group.is_empty());
        groups.dedup();
        groups.sort();
        groups.dedup();
        if groups.is_empty() {
            // A system that knows nothing of nodes has one.
            groups.push((0..CpuSet::count()).filter(|core| usable(*core)).collect());
        }
        let set = |group: Vec<usize>| {
            let mut set = CpuSet::new();
            group.into_iter().try_for_each(|core| set.set(core)).map(|()| set)
        };
        groups.into_iter().map(set).collect::<nix::Result<_>>().map(Places).map_err(system)
    }

    /// The place of `rank` of `size`: neighbours lie together, and places are shared only when all are taken.
    pub(super) fn of(&self, rank: usize, size: usize) -> Option<CpuSet> {
        match self.0.len() {
            0 => None,
            places if size >= places => Some(self.0[rank * places / size]),
            _ => Some(self.0[rank]),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The hardware threads of a core's, itself among them.
fn threads_of(core: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    let list = std::fs::read_to_string(path).ok().and_then(|text| crate::topology::parse_list(text.trim()));
    list.map(|words| bits(&words)).filter(|threads| threads.contains(&core)).unwrap_or_else(|| vec![core])
}

fn bits(words: &[u64]) -> Vec<usize> {
    (0..words.len() * 64).filter(|core| words[core / 64] >> (core % 64) & 1 == 1).collect()
}
