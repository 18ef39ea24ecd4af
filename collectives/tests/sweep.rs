//! Every algorithm, every world size from 1 to 64, every root, out of place and in place; and random larger worlds.

use maypole_collectives::algorithms::Algorithm;
use maypole_collectives::schedule::Collective;
use maypole_collectives::verify;
use proptest::prelude::*;
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
    // Every root, and all but all-to-all and the barrier twice, also in place.
    let expected = Collective::ALL.into_iter().map(|c| {
        let roots = if c.is_rooted() { 64 * 65 / 2 } else { 64 };
        let forms = if matches!(c, Collective::AllToAll | Collective::Barrier) { 1 } else { 2 };
        Algorithm::for_collective(c).count() * roots * forms
    });
    assert_eq!(worlds.into_inner(), expected.sum::<usize>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn larger_worlds(size in 65usize..300, root in 0usize..300, in_place: bool) {
        for collective in Collective::ALL {
            let root = if collective.is_rooted() { root % size } else { 0 };
            for algorithm in Algorithm::for_collective(collective) {
                if let Err(fault) = verify::verify(algorithm, collective, size, root, in_place) {
                    prop_assert!(false, "{} by {algorithm}, {size} ranks, root {root}: {fault}", collective.name());
                }
            }
        }
    }
}
