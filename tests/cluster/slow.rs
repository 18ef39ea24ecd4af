//! Networks on which an operation takes longer than the deadline, and moves all the time: that is no failure, on no
//! rank, also not on those for which the bytes have yet a long way to go.

use std::time::Instant;

use maypole::Communicator;

use crate::job::{Layout, in_order, start};
use crate::net::Cluster;
use crate::ranks::{role, say};

/// Bytes: 3.4 s on a cable of 10 Mbit/s.
const BYTES: usize = 4 << 20;

fn broadcast() {
    let comm = Communicator::from_env().unwrap();
    let mut buffer = vec![comm.rank() as u8; BYTES];
    // All connections are there: one that begins while the cable is full may lose its first packet, and its kernel sends
    // that again after a second.
    comm.broadcast(&mut [0u8], 0).unwrap();
    let begun = Instant::now();
    match comm.broadcast(&mut buffer, 0) {
        Ok(()) => say(format!("fine {:.1?}", begun.elapsed())),
        Err(error) => say(error),
    }
    assert!(buffer.iter().all(|byte| *byte == 0));
}

fn takes_longer_than_the_deadline(test: &str, layout: &Layout, algorithm: &str) {
    role(|_| broadcast());
    let test = format!("slow::{test}");
    let Some(cluster) = Cluster::alone(&test, 4, "10mbit") else { return };
    // Ranks that are late are not waited for: here nobody is.
    let settings = [("MAYPOLE_TIMEOUT", "1"), ("MAYPOLE_LATE", "0"), ("MAYPOLE_ALGORITHM", algorithm)];
    let mut job = start(&cluster, layout, &test, "rank", &settings);
    let all: Vec<usize> = (0..layout.len()).collect();
    let heard = job.hear(&all);
    println!("{algorithm}: {heard:?}");
    assert!(heard.iter().all(|(_, line)| line.starts_with("fine")), "{heard:#?}");
    job.end(&all);
}

#[test]
fn a_chain_of_slow_cables() {
    takes_longer_than_the_deadline("a_chain_of_slow_cables", &[0, 1, 2, 3], "broadcast=chain");
}

#[test]
fn a_tree_of_slow_cables() {
    takes_longer_than_the_deadline("a_tree_of_slow_cables", &[0, 1, 2, 3], "broadcast=binomial");
}

#[test]
fn several_ranks_behind_slow_cables() {
    takes_longer_than_the_deadline("several_ranks_behind_slow_cables", &in_order(&[2, 2, 2, 2]), "");
}
