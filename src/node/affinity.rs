//! Which cores a rank may use, as [`Peer::affinity`](super::Peer::affinity) has it; in the table of ranks as runs, since a
//! rank mostly has one core, or some in a row, or all.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The highest core number that is taken from another process, so that a few bytes cannot ask for much memory. Linux
/// has at most 8192.
const LARGEST: usize = 1 << 16;

/// This thread's.
pub(crate) fn affinity() -> Vec<u64> {
    use nix::sched::{CpuSet, sched_getaffinity};
    let Ok(set) = sched_getaffinity(nix::unistd::Pid::from_raw(0)) else { return Vec::new() };
    let mut words = vec![0u64; CpuSet::count().div_ceil(64)];
    for cpu in (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)) {
        words[cpu / 64] |= 1 << (cpu % 64);
    }
    words.truncate(words.iter().rposition(|w| *w != 0).map_or(0, |last| last + 1));
    words
}

/// How many cores are missing after the run before, and how many are there.
type Runs = Vec<(usize, usize)>;

fn runs(words: &[u64]) -> Runs {
    let mut runs = Runs::new();
    let mut end = 0;
    for core in (0..64 * words.len()).filter(|core| words[core / 64] >> (core % 64) & 1 == 1) {
        match runs.last_mut() {
            Some((_, length)) if end == core => *length += 1,
            _ => runs.push((core - end, 1)),
        }
        end = core + 1;
    }
    runs
}

/// `None` if the numbers make no sense.
fn words(runs: &Runs) -> Option<Vec<u64>> {
    let mut words = Vec::new();
    let mut end = 0usize;
    for &(gap, length) in runs {
        // A run of none is nothing that a rank says, and would leave words that say nothing at the end.
        let start = end.checked_add(gap).filter(|_| length > 0)?;
        end = start.checked_add(length).filter(|end| *end <= LARGEST)?;
        words.resize(end.div_ceil(64), 0);
        (start..end).for_each(|core| words[core / 64] |= 1 << (core % 64));
    }
    Some(words)
}

pub(super) fn serialize<S: Serializer>(affinity: &[u64], to: S) -> Result<S::Ok, S::Error> {
    runs(affinity).serialize(to)
}

pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<u64>, D::Error> {
    words(&Runs::deserialize(from)?).ok_or_else(|| D::Error::custom("a set of cores that makes no sense"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinity_names_at_least_this_core() {
        let cores: u32 = affinity().iter().map(|w| w.count_ones()).sum();
        assert!(cores as usize >= std::thread::available_parallelism().unwrap().get());
    }

    #[test]
    fn sets_survive_as_runs_and_stay_short() {
        for set in [vec![], vec![1], vec![0, 1 << 63], vec![0b1011, u64::MAX, 1], vec![u64::MAX; 4]] {
            assert_eq!(words(&runs(&set)), Some(set));
        }
        assert_eq!(runs(&[u64::MAX; 16]), [(0, 1024)]);
    }

    #[test]
    fn sets_from_outside_are_checked() {
        assert_eq!(words(&vec![(usize::MAX, 1)]), None);
        assert_eq!(words(&vec![(1, usize::MAX)]), None);
        assert_eq!(words(&vec![(0, LARGEST + 1)]), None);
        assert_eq!(words(&vec![(100, 0)]), None, "a run of no cores, which would be read differently each time");
    }
}
