//! Every algorithm, every world size from 1 to 64, every root, out of place and in place, hierarchical ones on several
//! layouts of hosts; and random larger worlds on random layouts.

use maypole_collectives::Hosts;
use maypole_collectives::algorithms::Algorithm;
use maypole_collectives::schedule::Collective;
use maypole_collectives::verify;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Largest first, so that the threads end together.
#[test]
fn every_algorithm_size_and_root_up_to_64() {
    let next = AtomicUsize::new(64);
    let worlds = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let size = next.fetch_sub(1, Ordering::Relaxed);
                    if size == 0 || size > 64 {
                        break;
                    }
                    match verify::all(size..=size, None, None, &mut |_| {}) {
                        Ok(run) => worlds.fetch_add(run, Ordering::Relaxed),
                        Err(failure) => panic!("{failure}"),
                    };
                }
            });
        }
    });
    assert_eq!(worlds.into_inner(), (1..=64).map(expected).sum::<usize>());
}

/// How many worlds there are of a size. Rooted ones have one for each root; all but all-to-all and the barrier run
/// twice, also in place; hierarchical algorithms run on several layouts, in larger worlds most roots on one of them.
fn expected(size: usize) -> usize {
    let layouts = verify::layouts(size).len();
    let mut worlds = 0;
    for collective in Collective::ALL {
        let forms = if matches!(collective, Collective::AllToAll | Collective::Barrier) { 1 } else { 2 };
        for algorithm in Algorithm::for_collective(collective) {
            worlds += forms
                * match (algorithm.minds_hosts(), collective.is_rooted()) {
                    (false, false) => 1,
                    (false, true) => size,
                    (true, false) => layouts,
                    (true, true) if size <= 10 => layouts * size,
                    (true, true) => layouts + size - 1,
                };
        }
    }
    worlds
}

/// Up to `most` hosts, the later ones the rarer.
fn random_hosts(size: usize, most: usize, seed: u64) -> Hosts {
    let mut state = seed | 1;
    let mut random = |below: usize| {
        // xorshift64*, Vigna 2016.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    };
    Hosts::new((0..size).map(|_| {
        let at_most = 1 + random(most);
        random(at_most)
    }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn larger_worlds(size in 65usize..300, root in 0usize..300, in_place: bool, most in 1usize..40, seed: u64) {
        let hosts = Arc::new(random_hosts(size, most, seed));
        for collective in Collective::ALL {
            let root = if collective.is_rooted() { root % size } else { 0 };
            for algorithm in Algorithm::for_collective(collective) {
                if let Err(fault) = verify::verify_on(algorithm, collective, &hosts, root, in_place) {
                    prop_assert!(false, "{} by {algorithm}, {hosts}, root {root}: {fault}", collective.name());
                }
            }
        }
    }
}
