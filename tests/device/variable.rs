//! Collectives on blocks with counts of their own, packed and scattered, out of place and in place, every root.

use maypole::{Blocks, ReduceOp};

use crate::arena::Arena;
use crate::chaos::Draws;
use crate::runner::{On, Test, checked};
use crate::world::{Rank, SMALL, config, world};

pub const TESTS: &[Test] = &[
    Test { name: "variable: every element right", on: On::Either, run: every_element },
    Test { name: "variable: every algorithm, staging on the host", on: On::Either, run: other_ways },
];

/// Element `i` of what rank `from` has for rank `to`.
fn value(from: usize, to: usize, i: usize) -> i64 {
    (from * 1_000_003 + to * 10_007 + i) as i64
}

/// What lies between the blocks, and must stay.
const GAP: i64 = -7;

/// Counts of `ranks` blocks: all empty, one long and the rest empty, about even, or anything.
fn counts(draws: &mut Draws, ranks: usize) -> Vec<usize> {
    match draws.below(4) {
        0 => vec![0; ranks],
        1 => {
            let long = draws.below(ranks);
            (0..ranks).map(|r| if r == long { 1 + draws.below(6000) } else { 0 }).collect()
        }
        2 => (0..ranks).map(|_| 100 + draws.below(50)).collect(),
        _ => (0..ranks).map(|_| (1 << draws.below(12)) - 1).collect(),
    }
}

/// Where blocks of `counts` begin, and the length of the buffer: packed, or in another order with gaps between them.
fn places(draws: &mut Draws, counts: &[usize], scatter: bool) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    let mut next = 0;
    if scatter {
        (1..order.len()).rev().for_each(|i| order.swap(i, draws.below(i + 1)));
        next = draws.below(5);
    }
    let mut starts = vec![0; counts.len()];
    for block in order {
        starts[block] = next;
        next += counts[block] + if scatter { draws.below(4) } else { 0 };
    }
    (starts, next)
}

fn laid_out(counts: &[usize], at: &[usize], length: usize, fill: impl Fn(usize, usize) -> i64) -> Vec<i64> {
    let mut buffer = vec![GAP; length];
    for (block, (count, start)) in counts.iter().zip(at).enumerate() {
        (0..*count).for_each(|i| buffer[start + i] = fill(block, i));
    }
    buffer
}

/// Every collective once, on counts drawn from `seed`.
pub fn every_collective(rank: &Rank, arena: &Arena, seed: u64, scatter: bool) {
    let (me, size) = (rank.comm.rank(), rank.comm.size());
    let mut draws = Draws(seed);
    let mine = counts(&mut draws, size);
    let (at, length) = places(&mut draws, &mine, scatter);
    let blocks = Blocks::at(&mine, &at);
    let context = |name: &str| format!("{name} on rank {me} of {size}, counts {mine:?} at {at:?}");
    let own: Vec<i64> = (0..mine[me]).map(|i| value(me, 0, i)).collect();

    let all = laid_out(&mine, &at, length, |from, i| value(from, 0, i));
    let mut output = vec![GAP; length];
    arena.run(rank, &own, &mut output, |on, i, o| on.all_gather_v(i, o, blocks)).unwrap();
    assert!(output == all, "{}", context("all_gather_v"));
    let mut buffer = laid_out(&mine, &at, length, |from, i| if from == me { value(me, 0, i) } else { 5 });
    arena.run_in_place(rank, &mut buffer, |on, b| on.all_gather_v_in_place(b, blocks)).unwrap();
    assert!(buffer == all, "{} in place", context("all_gather_v"));

    let input = laid_out(&mine, &at, length, |to, i| value(me, to, i));
    let sum: Vec<i64> = (0..mine[me]).map(|i| (0..size).map(|from| value(from, me, i)).sum()).collect();
    let mut output = vec![GAP; mine[me]];
    arena.run(rank, &input, &mut output, |on, i, o| on.reduce_scatter_v(i, blocks, o, ReduceOp::Sum)).unwrap();
    assert!(output == sum, "{}", context("reduce_scatter_v"));
    let mut buffer = input;
    arena.run_in_place(rank, &mut buffer, |on, b| on.reduce_scatter_v_in_place(b, blocks, ReduceOp::Sum)).unwrap();
    assert!(buffer[at[me]..][..mine[me]] == sum, "{} in place", context("reduce_scatter_v"));
    checked(4);

    for root in 0..size {
        let (is_root, none) = (me == root, Vec::new());
        let mut output = vec![GAP; if is_root { length } else { 0 }];
        arena.run(rank, &own, &mut output, |on, i, o| on.gather_v(i, o, blocks, root)).unwrap();
        assert!(output == if is_root { &all[..] } else { &none }, "{} root {root}", context("gather_v"));
        let mut buffer = if is_root { all.clone() } else { own.clone() };
        arena.run_in_place(rank, &mut buffer, |on, b| on.gather_v_in_place(b, blocks, root)).unwrap();
        assert!(buffer == if is_root { &all[..] } else { &own }, "{} root {root} in place", context("gather_v"));

        let input = laid_out(&mine, &at, length, |to, i| value(root, to, i));
        let want: Vec<i64> = (0..mine[me]).map(|i| value(root, me, i)).collect();
        let mut output = vec![GAP; mine[me]];
        let given = if is_root { &input[..] } else { &none };
        arena.run(rank, given, &mut output, |on, i, o| on.scatter_v(i, blocks, o, root)).unwrap();
        assert!(output == want, "{} root {root}", context("scatter_v"));
        let mut buffer = if is_root { input.clone() } else { vec![GAP; mine[me]] };
        arena.run_in_place(rank, &mut buffer, |on, b| on.scatter_v_in_place(b, blocks, root)).unwrap();
        assert!(buffer == if is_root { input } else { want }, "{} root {root} in place", context("scatter_v"));
        checked(4);
    }

    // What rank s has for rank r: row s of a matrix that every rank draws.
    let matrix: Vec<Vec<usize>> = (0..size).map(|_| counts(&mut draws, size)).collect();
    let (sent, received) = (&matrix[me], matrix.iter().map(|row| row[me]).collect::<Vec<_>>());
    let (send_at, send_length) = places(&mut draws, sent, scatter);
    let (recv_at, recv_length) = places(&mut draws, &received, scatter);
    let input = laid_out(sent, &send_at, send_length, |to, i| value(me, to, i));
    let want = laid_out(&received, &recv_at, recv_length, |from, i| value(from, me, i));
    let mut output = vec![GAP; recv_length];
    let (there, back) = (Blocks::at(sent, &send_at), Blocks::at(&received, &recv_at));
    arena.run(rank, &input, &mut output, |on, i, o| on.all_to_all_v(i, there, o, back)).unwrap();
    assert!(output == want, "all_to_all_v on rank {me} of {size}, sent {sent:?}, received {received:?}");
    // In place both directions of a pair are equally long.
    let symmetric: Vec<usize> = (0..size).map(|other| matrix[me.min(other)][me.max(other)]).collect();
    let (at, length) = places(&mut draws, &symmetric, scatter);
    let mut buffer = laid_out(&symmetric, &at, length, |to, i| value(me, to, i));
    let want = laid_out(&symmetric, &at, length, |from, i| value(from, me, i));
    let blocks = Blocks::at(&symmetric, &at);
    arena.run_in_place(rank, &mut buffer, |on, b| on.all_to_all_v_in_place(b, blocks)).unwrap();
    assert!(buffer == want, "all_to_all_v in place on rank {me} of {size}, {symmetric:?}");
    checked(2);
}

fn run(size: usize, knobs: &[(&str, &str)], seeds: u64) {
    let mut config = config(&SMALL);
    knobs.iter().for_each(|(name, value)| config.set(name, value).unwrap());
    world(size, &config, |rank| {
        let arena = Arena::new(rank, 1 << 20);
        rank.settle();
        for seed in 0..seeds {
            every_collective(rank, &arena, seed, seed % 2 == 1);
        }
        rank.settle();
    });
}

fn every_element() {
    [1, 2, 3, 5, 8].into_iter().for_each(|size| run(size, &[], 8));
}

fn other_ways() {
    for algorithm in ["ring", "direct"] {
        run(4, &[("MAYPOLE_ALGORITHM", algorithm)], 4);
        run(3, &[("MAYPOLE_ALGORITHM", algorithm), ("MAYPOLE_DEVICE_STAGING", "host")], 2);
    }
}
