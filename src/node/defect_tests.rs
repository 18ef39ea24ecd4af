//! Threads of the library that panic, which only a defect can make them do: nobody is left to wait for what they did.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Meeting, Node, UniqueId};
use crate::config::Config;
use crate::error::Verdict;
use crate::watch::Watch;

/// Registering this communicator makes the hub's thread panic.
pub const HUB: u64 = 0xdefec7;
/// Registering this one makes the thread of rank 1's node panic.
pub const NODE: u64 = 0x2defec7;

/// Panic if `planted` is asked for by `context`.
pub fn plant(planted: u64, context: u64) {
    assert!(planted != context, "planted by a test");
}

/// What three ranks are told on a communicator when one of them registers `planted`.
fn told(planted: u64) -> Vec<Verdict> {
    let config = Config { timeout: Duration::from_secs(60), ..Config::default() };
    let id = UniqueId::create(&config).unwrap();
    let come = |rank| {
        let config = config.clone();
        std::thread::spawn(move || Node::join(Meeting::Id(id), rank, 3, &config).unwrap())
    };
    let nodes: Vec<_> = [0, 1, 2].map(come).into_iter().map(|node| node.join().unwrap()).collect();
    let watches: Vec<Arc<Watch>> = (0..3).map(|_| Arc::default()).collect();
    for (node, watch) in nodes.iter().zip(&watches) {
        node.register(1, vec![0, 1, 2], watch.clone());
    }
    nodes[1].register(planted, vec![1, 2], Arc::default());
    let start = Instant::now();
    while watches.iter().any(|watch| watch.verdict().is_none()) {
        assert!(start.elapsed() < Duration::from_secs(30), "somebody is not told");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(nodes);
    assert!(start.elapsed() < Duration::from_secs(30), "leaving takes {:?}", start.elapsed());
    watches.iter().map(|watch| watch.verdict().unwrap()).collect()
}

#[test]
fn a_hub_whose_thread_panics_says_so_to_all() {
    let verdicts = told(HUB);
    assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{verdicts:?}");
    let text = verdicts[0].to_string();
    assert!(text.contains("rank 0 ") && text.contains("a defect in Maypole: planted by a test"), "{text}");
}

#[test]
fn a_node_whose_thread_panics_is_known_to_all_at_once() {
    let verdicts = told(NODE);
    assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{verdicts:?}");
    let text = verdicts[0].to_string();
    assert!(text.contains("rank 1 ") && text.contains("a defect in Maypole: planted by a test"), "{text}");
}
