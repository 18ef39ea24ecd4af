//! One kind of damage at every place of every algorithm. All of it must be noticed.

use crate::planted::{every_world, peers, regions};
use maypole_collectives::schedule::{Buffer, Step};
use maypole_collectives::verify::Folds;

/// No algorithm has a step that it could do without.
#[test]
fn any_step_dropped() {
    let mut dropped = 0;
    for (name, world) in every_world(1..=7) {
        for (rank, lane, i) in world.places() {
            let damaged = world.with(|w| {
                w.ranks[rank].lanes[lane].remove(i);
            });
            assert!(damaged.verify(false).is_err(), "{name}: rank {rank}, lane {lane} can do without step {i}");
            dropped += 1;
        }
    }
    assert!(dropped > 5000, "only {dropped}");
}

/// No step can be made twice: whatever a schedule moves or counts, it moves or counts once. What only writes the
/// same once more may be.
#[test]
fn any_step_doubled() {
    for (name, world) in every_world(2..=6) {
        for (rank, lane, i) in world.places() {
            let step = world.ranks[rank].lanes[lane][i];
            if repeatable(step, rank) {
                continue;
            }
            let damaged = world.with(|w| w.ranks[rank].lanes[lane].insert(i, step));
            assert!(damaged.verify(false).is_err(), "{name}: rank {rank}, lane {lane} can make step {i} twice");
        }
    }
}

/// Copies, also of one's own publication, and sums that are not their own operand.
fn repeatable(step: Step, rank: usize) -> bool {
    match step {
        Step::Copy { .. } => true,
        Step::Fetch { from, .. } => from == rank,
        Step::Reduce { a, b, dst } => dst != a && dst != b,
        _ => false,
    }
}

/// Every peer replaced by every other rank, and by one that there is not.
#[test]
fn any_wrong_peer() {
    for (name, world) in every_world(2..=6) {
        let size = world.ranks.len();
        for (rank, lane, i) in world.places() {
            let count = peers(&mut world.ranks[rank].lanes[lane][i].clone()).len();
            for (which, wrong) in (0..count).flat_map(|which| (0..=size).map(move |wrong| (which, wrong))) {
                let mut step = world.ranks[rank].lanes[lane][i];
                if *peers(&mut step)[which] == wrong {
                    continue;
                }
                *peers(&mut step)[which] = wrong;
                let damaged = world.with(|w| w.ranks[rank].lanes[lane][i] = step);
                assert!(damaged.verify(false).is_err(), "{name}: rank {rank}, lane {lane}, step {i} became {step:?}");
            }
        }
    }
}

/// Every region moved by a chunk either way.
#[test]
fn any_wrong_chunk() {
    for (name, world) in every_world(2..=6) {
        for (rank, lane, i) in world.places() {
            let count = regions(&mut world.ranks[rank].lanes[lane][i].clone()).len();
            for (which, by) in (0..count).flat_map(|which| [1, usize::MAX].map(move |by| (which, by))) {
                let mut step = world.ranks[rank].lanes[lane][i];
                let region = &mut *regions(&mut step)[which];
                if region.len == 0 || (region.first == 0 && by != 1) {
                    continue;
                }
                region.first = region.first.wrapping_add(by);
                let damaged = world.with(|w| w.ranks[rank].lanes[lane][i] = step);
                assert!(damaged.verify(false).is_err(), "{name}: rank {rank}, lane {lane}, step {i} became {step:?}");
            }
        }
    }
}

/// Every region one chunk short. A rank that publishes its blocks for all could leave out its own where that is the
/// last.
#[test]
fn any_short_region() {
    for (name, world) in every_world(2..=6) {
        for (rank, lane, i) in world.places() {
            let count = regions(&mut world.ranks[rank].lanes[lane][i].clone()).len();
            for which in 0..count {
                let mut step = world.ranks[rank].lanes[lane][i];
                let region = &mut *regions(&mut step)[which];
                if region.len == 0 {
                    continue;
                }
                region.len -= 1;
                if matches!(step, Step::Publish { .. }) && rank == world.ranks.len() - 1 {
                    continue;
                }
                let damaged = world.with(|w| w.ranks[rank].lanes[lane][i] = step);
                assert!(damaged.verify(false).is_err(), "{name}: rank {rank}, lane {lane}, step {i} became {step:?}");
            }
        }
    }
}

/// Neighbouring steps swapped. Many swaps are harmless; what must be noticed is a value used before it has come.
#[test]
fn any_use_before_arrival() {
    let mut swapped = 0;
    for (name, world) in every_world(2..=7) {
        for (rank, lane, i) in world.places() {
            let steps = &world.ranks[rank].lanes[lane];
            let Some(&next) = steps.get(i + 1) else { continue };
            let commute = world.promise != Folds::FromTheLeft && accumulates(steps[i]) && accumulates(next);
            if !feeds(steps[i], next) || commute {
                continue;
            }
            let damaged = world.with(|w| w.ranks[rank].lanes[lane].swap(i, i + 1));
            assert!(
                damaged.verify(false).is_err(),
                "{name}: rank {rank}, lane {lane} can swap steps {i} and {}",
                i + 1
            );
            swapped += 1;
        }
    }
    assert!(swapped > 500, "only {swapped}");
}

/// Whether a step adds to a sum where it lies. Two such steps on one rank may change places, unless the
/// order is promised.
fn accumulates(step: Step) -> bool {
    matches!(step, Step::RecvReduce { local, dst, .. } | Step::FetchReduce { local, dst, .. } if local == dst)
}

/// Whether `second` reads a chunk that `first` writes.
fn feeds(mut first: Step, mut second: Step) -> bool {
    let writes = match first {
        Step::Send { .. } | Step::Publish { .. } | Step::RecvReduceSend { dst: None, .. } => return false,
        _ => *regions(&mut first).pop().expect("a step that writes has a destination, listed last"),
    };
    let writes_only = matches!(second, Step::Recv { .. } | Step::RecvCopySend { .. } | Step::Fetch { .. });
    let mut reads = regions(&mut second);
    if !writes_only && reads.len() > 1 {
        reads.pop();
    }
    writes.buffer != Buffer::Input
        && !writes_only
        && reads.iter().any(|r| r.buffer == writes.buffer && r.chunks().any(|c| writes.chunks().contains(&c)))
}
