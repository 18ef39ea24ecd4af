//! A connection for a communicator that its receiver never makes is kept as long as its maker may use it, and no longer.

use std::time::{Duration, Instant};

use maypole::node::{Meeting, Node};
use maypole::{Config, UniqueId};

/// More than a node has of its own.
const STRAYS: usize = 100;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn connections_that_nobody_will_ask_for_are_closed() {
    let config = Config::default();
    let id = UniqueId::create(&config).unwrap();
    let join = |rank| Node::join(Meeting::Id(id), rank, 2, &config).unwrap();
    let [one, other] =
        std::thread::scope(|s| [0, 1].map(|rank| s.spawn(move || join(rank))).map(|n| n.join().unwrap()));
    let before = descriptors();
    let kept: Vec<_> = (0..STRAYS as u64).flat_map(|n| one.connect(1, 77 + n, 0, 1).unwrap()).collect();
    // Both ends are in this process. They stay while the one is open, through several rounds of looks.
    std::thread::sleep(Duration::from_secs(3));
    assert!(descriptors() >= before + 2 * STRAYS, "{} of {before} + {}", descriptors(), 2 * STRAYS);
    drop(kept);
    let begun = Instant::now();
    while descriptors() >= before + STRAYS / 2 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{} of {before} are still open", descriptors());
        std::thread::sleep(Duration::from_millis(20));
    }
    drop((one, other));
}
