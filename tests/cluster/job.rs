//! Ranks on the hosts of a [`Cluster`]: this test's own executable in a role, or the `maypole` command. What a launcher
//! does on each host, in other words, with nothing but RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

use std::process::{Command, Output, Stdio};

use crate::net::{Cluster, address};
use crate::ranks::{Job, Place};

/// Where the ranks of a world are: by rank, the number of its host.
pub type Layout = [usize];

/// The first ranks on host 0, the next on host 1, and so on.
pub fn in_order(ranks_on_host: &[usize]) -> Vec<usize> {
    ranks_on_host.iter().enumerate().flat_map(|(host, count)| std::iter::repeat_n(host, *count)).collect()
}

/// Start the test `test` of this executable as every rank of `layout`, with the variables of a world and `extra` ones.
pub fn start(cluster: &Cluster, layout: &Layout, test: &str, role: &str, extra: &[(&str, &str)]) -> Job {
    let meet = ("MASTER_ADDR", address(layout[0]));
    let places: Vec<Place<'_>> = (0..layout.len()).map(|rank| (rank, layout.len(), vec![meet.clone()])).collect();
    Job::start_by(test, role, &places, extra, |rank, command| cluster.hosts()[layout[rank]].spawn(command))
}

/// Run `maypole ARGS...` as every rank of `layout`, to its end. By rank, what it said and how it ended.
pub fn maypole(cluster: &Cluster, layout: &Layout, args: &[&str], extra: &[(&str, &str)]) -> Vec<Output> {
    let start = |(rank, host): (usize, &usize)| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_maypole"));
        command
            .args(args)
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", layout.len().to_string())
            .env("MASTER_ADDR", address(layout[0]))
            // Each cluster has all ports to itself.
            .env("MASTER_PORT", "29500")
            .env("MAYPOLE_TIMEOUT", "60")
            .env("MAYPOLE_LATE", "0")
            .envs(extra.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        cluster.hosts()[*host].spawn(&mut command)
    };
    let ranks: Vec<_> = layout.iter().enumerate().map(start).collect();
    let ends = ranks.into_iter().map(|rank| std::thread::spawn(move || rank.wait_with_output().expect("its output")));
    ends.collect::<Vec<_>>().into_iter().map(|end| end.join().expect("reading does not panic")).collect()
}
