//! What each algorithm costs, as its source says: messages, data moved, and the longest chain of steps; and that a
//! schedule costs next to nothing to hold and to ask.

use maypole_collectives::Hosts;
use maypole_collectives::algorithms::{Algorithm, Algorithm::*, schedule};
use maypole_collectives::schedule::{Collective, Place, Schedule, Step};
use maypole_collectives::verify::{Report, verify};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn report(algorithm: Algorithm, collective: Collective, size: usize) -> Report {
    verify(algorithm, collective, size, 0, false).unwrap_or_else(|fault| panic!("{algorithm} {size}: {fault}"))
}

fn log2_up(n: usize) -> usize {
    n.next_power_of_two().ilog2() as usize
}

#[test]
fn messages_and_data() {
    for n in 2..40 {
        let ring = report(Ring, Collective::AllReduce, n);
        assert_eq!((ring.messages, ring.chunks_moved, ring.pieces), (2 * n * (n - 1), 2 * n * (n - 1), n));
        assert_eq!(report(Ring, Collective::ReduceScatter, n).messages, n * (n - 1));
        assert_eq!(report(Ring, Collective::AllGather, n).messages, n * (n - 1));
        for collective in [Collective::Broadcast, Collective::Reduce] {
            assert_eq!(report(Chain, collective, n).chunks_moved, n - 1);
            assert_eq!(report(Binomial, collective, n).chunks_moved, n - 1);
            assert_eq!(report(DoubleTree, collective, n).chunks_moved, 2 * (n - 1), "halves");
        }
        assert_eq!(report(DoubleTree, Collective::AllReduce, n).chunks_moved, 4 * (n - 1), "halves, up and down");
        assert_eq!(report(Bruck, Collective::AllGather, n).messages, n * log2_up(n));
        assert_eq!(report(Bruck, Collective::AllGather, n).chunks_moved, n * (n - 1));
        assert_eq!(report(Bruck, Collective::AllToAll, n).messages, n * log2_up(n));
        assert_eq!(report(Pairwise, Collective::AllToAll, n).messages, n * (n - 1));
        assert_eq!(report(Dissemination, Collective::Barrier, n).messages, n * log2_up(n));
        let two_shot = report(TwoShot, Collective::AllReduce, n);
        assert_eq!((two_shot.publications, two_shot.chunks_moved), (2 * n, 2 * n * (n - 1)));
        assert_eq!(report(OneShot, Collective::AllReduce, n).chunks_moved, n * (n - 1));
        // Direct: everything crosses one link, except that results have to be told.
        let summed = report(Direct, Collective::AllReduce, n);
        assert_eq!((summed.messages, summed.chunks_moved, summed.pieces), (2 * n * (n - 1), 2 * n * (n - 1), n));
        assert_eq!(report(Direct, Collective::Reduce, n).messages, n * (n - 1) + (n - 1));
        for collective in [Collective::ReduceScatter, Collective::AllGather, Collective::AllToAll] {
            assert_eq!(report(Direct, collective, n).chunks_moved, n * (n - 1));
        }
        for collective in [Collective::Gather, Collective::Scatter] {
            assert_eq!(report(Direct, collective, n).chunks_moved, n - 1);
        }
        for scan in [Collective::Scan, Collective::ExclusiveScan] {
            assert_eq!(report(Chain, scan, n).messages, n - 1);
            let phases = (0..).map(|k| 1 << k).take_while(|distance| *distance < n);
            assert_eq!(report(RecursiveDoubling, scan, n).messages, phases.map(|distance| n - distance).sum::<usize>());
            assert_eq!(report(OneShot, scan, n).chunks_moved, n * (n - 1) / 2);
        }
        let (players, folded) = (1 << n.ilog2(), n - (1 << n.ilog2()));
        let phases = n.ilog2() as usize;
        assert_eq!(report(RecursiveDoubling, Collective::AllReduce, n).messages, players * phases + 2 * folded);
        let halving = report(HalvingDoubling, Collective::AllReduce, n);
        assert_eq!(halving.chunks_moved, players * 2 * (players - 1) + 2 * folded * players);
    }
}

#[test]
fn trees_and_doublings_are_logarithmically_deep() {
    for n in 2..=64 {
        let log = log2_up(n);
        assert_eq!(report(Dissemination, Collective::Barrier, n).depth, 2 * log);
        assert!(report(Binomial, Collective::Broadcast, n).depth <= log + 1, "the root's copy comes last");
        for (algorithm, collective) in [
            (DoubleTree, Collective::AllReduce),
            (DoubleTree, Collective::Broadcast),
            (DoubleTree, Collective::Reduce),
            (HalvingDoubling, Collective::AllReduce),
            (RecursiveDoubling, Collective::AllReduce),
            (Bruck, Collective::AllGather),
        ] {
            let depth = report(algorithm, collective, n).depth;
            assert!(depth <= 4 * log + 4, "{algorithm} {} {n}: {depth}", collective.name());
        }
        assert_eq!(report(Ring, Collective::AllReduce, n).depth, 2 * n - 1);
        for scan in [Collective::Scan, Collective::ExclusiveScan] {
            // An addition for each phase, and one more for what an exclusive scan sends on.
            assert!(report(RecursiveDoubling, scan, n).depth <= 3 * log + 1);
            assert!(report(Chain, scan, n).depth <= 3 * n);
        }
        for collective in [Collective::AllGather, Collective::AllToAll, Collective::Gather, Collective::Scatter] {
            assert_eq!(report(Direct, collective, n).depth, 2, "a message sent and received, whatever the others do");
        }
    }
}

/// With 2 ranks sharing memory nothing is published that nobody needs: one piece each, then one result each.
#[test]
fn two_ranks_publish_only_what_the_other_needs() {
    for (algorithm, collective) in
        [(TwoShot, Collective::AllReduce), (OneShot, Collective::AllToAll), (OneShot, Collective::ReduceScatter)]
    {
        assert_eq!(report(algorithm, collective, 2).largest, 1, "{algorithm} {}", collective.name());
    }
}

/// A lane for each peer and direction, and one for the own block; away from the root of a gather or scatter one in all.
#[test]
fn direct_lanes() {
    let lanes = |collective, rank| {
        let size = 9;
        let hosts = Arc::new(Hosts::together(size));
        schedule(Direct, collective, Place { rank, size, root: 4 }, &hosts).expect("supported").lanes()
    };
    for rank in 0..9 {
        assert_eq!(lanes(Collective::AllToAll, rank), 17);
        assert_eq!(lanes(Collective::AllGather, rank), 17);
        assert_eq!(lanes(Collective::Gather, rank), if rank == 4 { 9 } else { 1 });
        assert_eq!(lanes(Collective::Scatter, rank), if rank == 4 { 9 } else { 1 });
        assert_eq!(lanes(Collective::ReduceScatter, rank), 2);
        assert_eq!(lanes(Collective::AllReduce, rank), 1);
    }
}

/// In a double tree hardly a rank has children in both trees: a leaf of one is an inner node of the other.
#[test]
fn double_trees_share_the_work() {
    for size in 2..200 {
        let hosts = Arc::new(Hosts::together(size));
        let inner = |rank| {
            let s =
                schedule(DoubleTree, Collective::AllReduce, Place { rank, size, root: 0 }, &hosts).expect("supported");
            let sends_down = |lane: &usize| (0..s.steps(*lane)).any(|i| !matches!(s.step(*lane, i), Step::Recv { .. }));
            // Lanes 1 and 3 go down; a tree's root turns round in lane 0 or 2, and its lane down is empty.
            [1, 3].iter().filter(|lane| s.steps(**lane) == 0 || sends_down(lane)).count()
        };
        let both = (0..size).filter(|&rank| inner(rank) == 2).count();
        // With an odd number of ranks there is one inner node more than leaves.
        assert!(both <= size % 2, "{size}: {both} ranks have children in both trees");
    }
}

/// 16,384 ranks: a schedule is a few integers, built and asked in logarithmic time.
#[test]
fn large_worlds_cost_what_one_rank_needs() {
    const SIZE: usize = 16_384;
    for collective in Collective::ALL {
        for algorithm in Algorithm::for_collective(collective) {
            for size in [SIZE, SIZE - 1] {
                let hosts = Arc::new(Hosts::new((0..size).map(|rank| rank / 8)));
                let place = Place { rank: size - 3, size, root: 5 };
                let name = format!("{algorithm} {}", collective.name());
                let fastest = (0..20).map(|_| {
                    let begun = Instant::now();
                    let s = schedule(algorithm, collective, place, &hosts).expect("supported");
                    let mut asked = 0;
                    for lane in 0..s.lanes() {
                        // All steps of a program, thinned out where there are thousands.
                        let steps = s.steps(lane);
                        for i in (0..steps).step_by((steps / 512).max(1)) {
                            std::hint::black_box(s.step(lane, i));
                            asked += 1;
                        }
                    }
                    assert!(asked > 0 && size_of_val::<dyn Schedule>(&*s) <= 256, "{name}");
                    begun.elapsed()
                });
                let fastest = fastest.min().expect("20 tries");
                assert!(fastest < Duration::from_millis(2), "{name}: {fastest:?} to build and ask");
            }
        }
    }
}
