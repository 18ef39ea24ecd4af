//! Every collective on four hosts, each element of every result checked by `maypole perf`.

use std::time::Instant;

use crate::job::{Layout, in_order, maypole};
use crate::net::Cluster;

const COLLECTIVES: &[&str] = &[
    "all_reduce",
    "reduce",
    "broadcast",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "gather",
    "scatter",
    "scan",
    "exclusive_scan",
    "all_gather_v",
    "reduce_scatter_v",
    "all_to_all_v",
    "gather_v",
    "scatter_v",
    "barrier",
    "send_recv",
];

/// Run all of them, at a size of a few elements and at one of several messages; the root, where there is one, is the
/// last rank.
fn check(test: &str, layout: &Layout, settings: &[(&str, &str)]) {
    let Some(cluster) = Cluster::new(test, 4, "1gbit") else { return };
    let root = (layout.len() - 1).to_string();
    for collective in COLLECTIVES {
        let start = Instant::now();
        let args = ["perf", collective, "-b", "128", "-e", "1M", "-f", "8192", "-n", "1", "-w", "0", "-r", &root];
        let ends = maypole(&cluster, layout, &args, settings);
        for (rank, end) in ends.iter().enumerate() {
            let said = String::from_utf8_lossy(&end.stderr);
            assert!(end.status.success(), "{collective}, rank {rank} of {layout:?}: {}: {said}", end.status);
        }
        let table = String::from_utf8_lossy(&ends[0].stdout);
        let checked = if *collective == "barrier" { "0 not checked" } else { "0 OK" };
        assert!(table.contains(&format!("Out of bounds values : {checked}")), "{collective} on {layout:?}:\n{table}");
        println!("{collective} on {layout:?}: {:.1?}", start.elapsed());
    }
}

#[test]
fn one_rank_on_each_host() {
    check("collectives::one_rank_on_each_host", &in_order(&[1, 1, 1, 1]), &[]);
}

#[test]
fn two_ranks_on_each_host() {
    check("collectives::two_ranks_on_each_host", &in_order(&[2, 2, 2, 2]), &[]);
}

#[test]
fn uneven_hosts() {
    check("collectives::uneven_hosts", &in_order(&[3, 1, 2, 1]), &[]);
}

#[test]
fn uneven_hosts_in_any_order() {
    check("collectives::uneven_hosts_in_any_order", &[2, 0, 1, 0, 3, 1, 0], &[]);
}

#[test]
fn encrypted() {
    check("collectives::encrypted", &[2, 0, 1, 0, 3, 1, 0], &[("MAYPOLE_ENCRYPT", "1")]);
}

#[test]
fn encrypted_over_several_connections() {
    let settings = [("MAYPOLE_ENCRYPT", "1"), ("MAYPOLE_CONNECTIONS", "4")];
    check("collectives::encrypted_over_several_connections", &in_order(&[1, 1, 1, 1]), &settings);
}
