//! Every collective with every type and operation, in and out of place, by ranks that are threads: against plain loops.

use maypole::perf::operation::NamedOp;
use maypole::{DataType, ReduceOp};

use crate::arena::Arena;
use crate::case::{Case, calls};
use crate::runner::{On, Test, checked};
use crate::world::{SMALL, config, world};

pub const TESTS: &[Test] = &[
    Test { name: "matrix: every collective, type and operation", on: On::Either, run: everything },
    Test { name: "matrix: every root, world size and count", on: On::Either, run: counts },
    Test { name: "matrix: buffers at any address", on: On::Either, run: addresses },
    Test { name: "matrix: many operations outstanding", on: On::Either, run: outstanding },
];

/// Each type and operation in each collective: one odd count, and one that takes several rounds of a small window.
fn everything() {
    for size in [1, 2, 3, 5, 8] {
        world(size, &config(&SMALL), |rank| {
            let arena = Arena::new(rank, 256 << 10);
            for dtype in DataType::ALL {
                for (collective, op) in calls(dtype) {
                    for count in [37, if size < 4 { 1500 } else { 700 }] {
                        let case = Case::new(collective, dtype, op, count);
                        case.check(rank, &arena);
                        case.in_place().check(rank, &arena);
                    }
                }
            }
            rank.settle();
        });
    }
}

/// Nothing, one element, around the world size, around a round, and long ones, at every root.
fn counts() {
    for size in 1..=8 {
        world(size, &config(&SMALL), |rank| {
            let arena = Arena::new(rank, 2 << 20);
            for (collective, op) in calls(DataType::F32).filter(|(_, op)| op.is_none_or(|op| op == NamedOp::Sum)) {
                let roots = if collective.is_rooted() { size } else { 1 };
                for root in 0..roots {
                    for count in [0, 1, 2, size, 1023, 1025, 4099, 20_011] {
                        if count > 2000 && (root > 0 || size > 5) {
                            continue;
                        }
                        let case = Case { root, ..Case::new(collective, DataType::F32, op, count) };
                        case.check(rank, &arena);
                        case.in_place().check(rank, &arena);
                    }
                }
            }
            rank.settle();
        });
    }
    // The window and slots that there are by default.
    world(2, &config(&[("MAYPOLE_DEVICE_WINDOW", "16M"), ("MAYPOLE_DEVICE_FIFO", "2M")]), |rank| {
        let arena = Arena::new(rank, 40 << 20);
        for (collective, op) in calls(DataType::F32).filter(|(_, op)| op.is_none_or(|op| op == NamedOp::Sum)) {
            Case::new(collective, DataType::F32, op, 2_000_003).check(rank, &arena);
        }
        rank.settle();
    });
}

/// Kernels move 16 bytes at a time: buffers and blocks that begin and end anywhere.
fn addresses() {
    world(3, &config(&SMALL), |rank| {
        let arena = Arena::new(rank, 64 << 10);
        for dtype in [DataType::U8, DataType::F16, DataType::F32, DataType::F64] {
            for (collective, op) in calls(dtype).filter(|(_, op)| op.is_none_or(|op| op == NamedOp::Sum)) {
                for (shift, other) in [(0, 1), (1, 0), (3, 7), (8, 4), (15, 15), (17, 2)] {
                    // Also off the type's own alignment: a view of bytes, as from a file that was mapped.
                    let case = Case { shifts: [shift, other], ..Case::new(collective, dtype, op, 301 + shift) };
                    case.check(rank, &arena);
                    case.in_place().check(rank, &arena);
                }
            }
        }
        rank.settle();
    });
}

/// More calls than the executor lets be outstanding, none of them waited for; the last result needs all before it.
fn outstanding() {
    const CALLS: usize = 700;
    world(3, &config(&[]), |rank| {
        let arena = Arena::new(rank, 4 << 10);
        arena.put(&rank.stream, 0, &1u64.to_ne_bytes());
        let on = rank.comm.on(&rank.stream);
        for _ in 0..CALLS {
            on.all_reduce_in_place(arena.elements_mut::<u64>(0, 1), ReduceOp::Sum).unwrap();
        }
        let got = arena.read(&rank.stream, 0, 8);
        // 3^700, modulo 2^64.
        assert_eq!(got, 3u64.wrapping_pow(CALLS as u32).to_ne_bytes());
        checked(CALLS as u64);
        rank.settle();
    });
}
