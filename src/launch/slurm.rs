//! Slurm's `srun` when it offers neither PMIx nor PMI: the step's own variables.
//!
//! They say who each task is and which hosts take part, but hold no place to post anything. So rank 0 listens on the
//! first host of the step, on a port computed from the job's and the step's numbers: every task computes the same one.
//! Two steps that share a host can collide there (`MASTER_PORT` overrides it), and nothing in these variables is
//! secret: anybody in the same network can compute the port too. `MAYPOLE_KEY`, exported before `srun`, closes that.

use std::ops::RangeInclusive;

use super::{Launch, LaunchMeeting, Lookup, check_rank, environment, number};
use crate::config::Config;
use crate::error::{Error, Result};

pub(super) const LAUNCHER: &str = "Slurm";

/// Where rank 0 listens.
enum Port {
    Given(u16),
    /// From the job's and the step's numbers.
    Computed(u64, u64),
}

/// One task of a step.
pub(super) struct Step {
    rank: usize,
    size: usize,
    local_rank: Option<usize>,
    local_size: Option<usize>,
    host: String,
    port: Port,
    /// See [`Launch::run`].
    run: String,
}

impl Step {
    /// `None` outside a step: a batch script itself has `SLURM_PROCID` too, but is one process, whatever `SLURM_NTASKS`
    /// says.
    pub(super) fn read(lookup: Lookup) -> Result<Option<Step>> {
        let Some(rank) = number(lookup, "SLURM_PROCID", "this task's rank")? else { return Ok(None) };
        let nodes = lookup("SLURM_STEP_NODELIST");
        let step_tasks = number(lookup, "SLURM_STEP_NUM_TASKS", "the number of tasks")?;
        if nodes.is_none() && step_tasks.is_none() {
            return Ok(None);
        }
        let (size_name, size) = match step_tasks {
            Some(size) => ("SLURM_STEP_NUM_TASKS", size),
            None => match number(lookup, "SLURM_NTASKS", "the number of tasks")? {
                Some(size) => ("SLURM_NTASKS", size),
                None => return Err(missing("SLURM_STEP_NUM_TASKS (or SLURM_NTASKS)")),
            },
        };
        check_rank("SLURM_PROCID", rank, size_name, size)?;
        let (host, port) = match environment::address(lookup)? {
            Some((host, port)) => (host, Port::Given(port)),
            // Tasks may lie in any order then, and the variables do not tell on which host the first is.
            None if lookup("SLURM_DISTRIBUTION").is_some_and(|order| order.starts_with("arbitrary")) => {
                return Err(Error::bootstrap(
                    "the tasks of this step lie in an order of the user's own (SLURM_DISTRIBUTION=arbitrary), so nothing \
                     says on which host rank 0 is: set MASTER_ADDR and MASTER_PORT to an address of it and a free port \
                     there, or use srun --mpi=pmix or --mpi=pmi2",
                ));
            }
            None => {
                let nodes =
                    nodes.or_else(|| lookup("SLURM_JOB_NODELIST")).ok_or_else(|| missing("SLURM_STEP_NODELIST"))?;
                let host = first_host(&nodes).ok_or_else(|| Error::Setting {
                    name: "SLURM_STEP_NODELIST".to_string(),
                    value: nodes.clone(),
                    expected: "expected a list of hosts such as node[01-04,7],login1".to_string(),
                })?;
                let job = number::<u64>(lookup, "SLURM_JOB_ID", "the job's number")?
                    .ok_or_else(|| missing("SLURM_JOB_ID"))?;
                let step = match number::<u64>(lookup, "SLURM_STEP_ID", "the step's number")? {
                    Some(step) => step,
                    None => number(lookup, "SLURM_STEPID", "the step's number")?.unwrap_or(0),
                };
                (host, Port::Computed(job, step))
            }
        };
        // The parts of a heterogeneous job have numbers of their own.
        let run = match (lookup("SLURM_JOB_ID"), lookup("SLURM_STEP_ID").or_else(|| lookup("SLURM_STEPID"))) {
            (Some(job), Some(step)) if lookup("SLURM_HET_SIZE").is_none() => format!("{job}.{step}"),
            _ => String::new(),
        };
        Ok(Some(Step {
            rank,
            size,
            local_rank: number(lookup, "SLURM_LOCALID", "this task's number on its host")?,
            local_size: local_size(lookup),
            host,
            port,
            run,
        }))
    }

    pub(super) fn launch(self, config: &Config) -> Result<Launch> {
        let port = match self.port {
            Port::Given(port) => port,
            Port::Computed(job, step) => port(job, step, config.ports.as_ref()),
        };
        Ok(Launch {
            rank: self.rank,
            size: self.size,
            local_rank: self.local_rank,
            local_size: self.local_size,
            launcher: LAUNCHER,
            run: self.run,
            meeting: LaunchMeeting::Address { host: self.host, port },
        })
    }
}

fn missing(name: &str) -> Error {
    Error::bootstrap(format!(
        "SLURM_PROCID is set but {name} is not: this does not look like a task of srun; start the ranks with srun, or set RANK, \
         WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
    ))
}

/// A port of `MAYPOLE_PORTS`; without, one below the range from which Linux gives out ephemeral ones (32768 and up) and above the well-known ones.
/// Consecutive jobs and steps get different ports.
fn port(job: u64, step: u64, ports: Option<&RangeInclusive<u16>>) -> u16 {
    let range = ports.cloned().unwrap_or(15_000..=31_999);
    let place = job.wrapping_mul(64).wrapping_add(step) % range.len() as u64;
    range.start() + place as u16
}

/// Tasks on this host, from `SLURM_STEP_TASKS_PER_NODE` such as `4(x2),3`, if this host's entry can be told
/// (`SLURM_NODEID`).
fn local_size(lookup: Lookup) -> Option<usize> {
    let text = lookup("SLURM_STEP_TASKS_PER_NODE").or_else(|| lookup("SLURM_TASKS_PER_NODE"))?;
    let mut node: usize = lookup("SLURM_NODEID")?.parse().ok()?;
    for entry in text.split(',') {
        let (tasks, times) = match entry.split_once("(x") {
            Some((tasks, times)) => (tasks, times.strip_suffix(')')?.parse().ok()?),
            None => (entry, 1),
        };
        if node < times {
            return tasks.parse().ok();
        }
        node -= times;
    }
    None
}

/// The first host of Slurm's list notation: `node[03-07,9],login1` is `node03`; `rack[1-2]node[5-6]` is `rack1node5`.
fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    while let Some(stop) = rest.find(['[', ',']) {
        host.push_str(&rest[..stop]);
        if rest.as_bytes()[stop] == b',' {
            rest = "";
            break;
        }
        let (ranges, after) = rest[stop + 1..].split_once(']')?;
        let first = ranges.split([',', '-']).next()?;
        if first.is_empty() || !first.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        host.push_str(first);
        rest = after;
    }
    host.push_str(rest);
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    (!host.is_empty() && host.bytes().all(legal)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_hosts() {
        for (list, first) in [
            ("node1", "node1"),
            ("node1,node2", "node1"),
            ("node[1-4]", "node1"),
            ("nid[001023-001026,001030]", "nid001023"),
            ("gpu-a[07,09-12],gpu-b3", "gpu-a07"),
            ("rack[1-2]node[05-06]", "rack1node05"),
            ("c[1-2].cluster.local", "c1.cluster.local"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
        for broken in ["", "node[", "node[]", "node[a-b]", "node[1-2", "bad name", ",x"] {
            assert_eq!(first_host(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn ports_are_neither_privileged_nor_ephemeral() {
        for (job, step) in [(0, 0), (1, 0), (1, 1), (987_654, 3), (u64::MAX, u64::MAX)] {
            assert!((15_000..32_000).contains(&port(job, step, None)));
            assert!((20_000..=20_100).contains(&port(job, step, Some(&(20_000..=20_100)))));
            assert_eq!(port(job, step, Some(&(1..=u16::MAX))), port(job, step, Some(&(1..=u16::MAX))));
        }
        assert_ne!(port(100, 0, None), port(100, 1, None));
        assert_ne!(port(100, 0, None), port(101, 0, None));
    }
}
