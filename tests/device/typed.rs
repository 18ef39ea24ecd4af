//! Each method with types of its own, next to the same method on host memory.

use maypole::cuda::{DeviceBuffer, DeviceSlice, DeviceSliceMut, OnStream};
use maypole::{Communicator, ReduceOp, Result};

use crate::arena::Arena;
use crate::runner::{On, Test, checked};
use crate::world::{Rank, config, world};

pub const TESTS: &[Test] = &[
    Test { name: "typed: every method as on the host", on: On::Either, run: methods },
    Test { name: "typed: buffers, their slices and copies", on: On::Either, run: buffers },
];

const SUM: ReduceOp = ReduceOp::Sum;
const ROOT: usize = 1;

type HostApart = fn(&Communicator, &[i64], &mut [i64]) -> Result<()>;
type DeviceApart = fn(OnStream<'_>, DeviceSlice<'_, i64>, DeviceSliceMut<'_, i64>) -> Result<()>;
type HostInPlace = fn(&Communicator, &mut [i64]) -> Result<()>;
type DeviceInPlace = fn(OnStream<'_>, DeviceSliceMut<'_, i64>) -> Result<()>;

/// Elements that differ between ranks.
fn elements(rank: &Rank, len: usize) -> Vec<i64> {
    (0..len as i64).map(|i| (i + 1) * 1_000_003 * (rank.comm.rank() as i64 + 1)).collect()
}

fn methods() {
    for size in [1, 2, 3, 4] {
        world(size, &config(&[]), |rank| {
            let arena = Arena::new(rank, 256 << 10);
            for n in [0, 1, 770] {
                methods_with(rank, &arena, n);
            }
            rank.settle();
        });
    }
}

fn methods_with(rank: &Rank, arena: &Arena, n: usize) {
    let (me, size) = (rank.comm.rank(), rank.comm.size());
    let root = ROOT % size;
    let at_root = |len: usize| if me == root { len } else { 0 };
    // What is in the tables captures nothing.
    macro_rules! root {
        ($comm:expr) => {
            ROOT % $comm.size()
        };
    }
    let apart: [(&str, usize, usize, HostApart, DeviceApart); 10] = [
        ("all_reduce", n, n, |c, i, o| c.all_reduce(i, o, SUM), |c, i, o| c.all_reduce(i, o, SUM)),
        (
            "reduce",
            n,
            at_root(n),
            |c, i, o| c.reduce(i, o, SUM, root!(c)),
            |c, i, o| c.reduce(i, o, SUM, root!(c.communicator())),
        ),
        (
            "broadcast_from",
            at_root(n),
            n,
            |c, i, o| c.broadcast_from(i, o, root!(c)),
            |c, i, o| c.broadcast_from(i, o, root!(c.communicator())),
        ),
        ("all_gather", n, size * n, |c, i, o| c.all_gather(i, o), |c, i, o| c.all_gather(i, o)),
        ("reduce_scatter", size * n, n, |c, i, o| c.reduce_scatter(i, o, SUM), |c, i, o| c.reduce_scatter(i, o, SUM)),
        ("all_to_all", size * n, size * n, |c, i, o| c.all_to_all(i, o), |c, i, o| c.all_to_all(i, o)),
        (
            "gather",
            n,
            at_root(size * n),
            |c, i, o| c.gather(i, o, root!(c)),
            |c, i, o| c.gather(i, o, root!(c.communicator())),
        ),
        (
            "scatter",
            at_root(size * n),
            n,
            |c, i, o| c.scatter(i, o, root!(c)),
            |c, i, o| c.scatter(i, o, root!(c.communicator())),
        ),
        ("scan", n, n, |c, i, o| c.scan(i, o, SUM), |c, i, o| c.scan(i, o, SUM)),
        ("exclusive_scan", n, n, |c, i, o| c.exclusive_scan(i, o, SUM), |c, i, o| c.exclusive_scan(i, o, SUM)),
    ];
    for (name, inputs, outputs, host, device) in apart {
        let input = elements(rank, inputs);
        let (mut want, mut got) = (vec![-1; outputs], vec![-1; outputs]);
        host(&rank.comm, &input, &mut want).unwrap();
        arena.run(rank, &input, &mut got, device).unwrap();
        assert_eq!(got, want, "{name} of {n}, rank {me} of {size}");
        checked(1);
    }
    let whole = if me == root { size * n } else { n };
    let in_place: [(&str, usize, HostInPlace, DeviceInPlace); 10] = [
        ("all_reduce", n, |c, b| c.all_reduce_in_place(b, SUM), |c, b| c.all_reduce_in_place(b, SUM)),
        (
            "reduce",
            n,
            |c, b| c.reduce_in_place(b, SUM, root!(c)),
            |c, b| c.reduce_in_place(b, SUM, root!(c.communicator())),
        ),
        ("broadcast", n, |c, b| c.broadcast(b, root!(c)), |c, b| c.broadcast(b, root!(c.communicator()))),
        ("all_gather", size * n, |c, b| c.all_gather_in_place(b), |c, b| c.all_gather_in_place(b)),
        (
            "reduce_scatter",
            size * n,
            |c, b| c.reduce_scatter_in_place(b, SUM),
            |c, b| c.reduce_scatter_in_place(b, SUM),
        ),
        ("all_to_all", size * n, |c, b| c.all_to_all_in_place(b), |c, b| c.all_to_all_in_place(b)),
        ("gather", whole, |c, b| c.gather_in_place(b, root!(c)), |c, b| c.gather_in_place(b, root!(c.communicator()))),
        (
            "scatter",
            whole,
            |c, b| c.scatter_in_place(b, root!(c)),
            |c, b| c.scatter_in_place(b, root!(c.communicator())),
        ),
        ("scan", n, |c, b| c.scan_in_place(b, SUM), |c, b| c.scan_in_place(b, SUM)),
        ("exclusive_scan", n, |c, b| c.exclusive_scan_in_place(b, SUM), |c, b| c.exclusive_scan_in_place(b, SUM)),
    ];
    for (name, len, host, device) in in_place {
        let mut want = elements(rank, len);
        let mut got = want.clone();
        host(&rank.comm, &mut want).unwrap();
        arena.run_in_place(rank, &mut got, device).unwrap();
        // The blocks beside the result are undefined; what rank 0 has of an exclusive scan is too.
        let part = match name {
            "reduce_scatter" => me * n..(me + 1) * n,
            "reduce" if me != root => 0..0,
            "exclusive_scan" if me == 0 => 0..0,
            _ => 0..len,
        };
        assert_eq!(got[part.clone()], want[part], "{name} in place of {n}, rank {me} of {size}");
        checked(1);
    }
    rank.comm.on(&rank.stream).barrier().unwrap();
}

fn buffers() {
    world(2, &config(&[]), |rank| {
        let (me, stream) = (rank.comm.rank(), &rank.stream);
        let mut zeros = DeviceBuffer::<u32>::new(&rank.context, 10).unwrap();
        let mut numbers = DeviceBuffer::from_slice(&rank.context, &[1u32, 2, 3, 4, 5]).unwrap();
        let empty = DeviceBuffer::<u32>::new(&rank.context, 0).unwrap();
        rank.settle();
        assert_eq!(zeros.to_vec(stream).unwrap(), [0; 10]);
        assert_eq!(numbers.to_vec(stream).unwrap(), [1, 2, 3, 4, 5]);
        assert!(empty.is_empty() && empty.to_vec(stream).unwrap().is_empty());
        assert!(!numbers.is_shared());
        let on = rank.comm.on(stream);
        on.all_gather(numbers.slice(1..4), zeros.slice_mut(2..8)).unwrap();
        assert_eq!(zeros.to_vec(stream).unwrap(), [0, 0, 2, 3, 4, 2, 3, 4, 0, 0]);
        on.broadcast(zeros.slice_mut(..=2).slice(1..), 0).unwrap();
        numbers.copy_from(&[me as u32; 5], stream).unwrap();
        on.all_reduce_in_place(&mut numbers, ReduceOp::Max).unwrap();
        let mut got = [9; 5];
        numbers.copy_to(&mut got, stream).unwrap();
        assert_eq!(got, [1; 5]);
        checked(6);
        rank.settle();
    });
}
