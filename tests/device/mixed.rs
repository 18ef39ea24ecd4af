//! Host and device buffers in one communicator, call by call.

use maypole::perf::operation::NamedOp;
use maypole::{Call, Collective, DataType, ReduceOp};

use crate::arena::Arena;
use crate::case::Case;
use crate::runner::{On, Test, checked};
use crate::world::{config, world};

pub const TESTS: &[Test] = &[
    Test { name: "mixed: host and device buffers take turns", on: On::Either, run: turns },
    Test { name: "mixed: the pointer says where the buffers are", on: On::Either, run: by_pointer },
    Test { name: "mixed: children have devices of their own", on: On::Either, run: children },
];

/// Device calls are queued, host calls made meanwhile, and nobody waits for the stream before the end.
fn turns() {
    for size in [2, 4] {
        world(size, &config(&[]), |rank| {
            let arenas: Vec<Arena> = (0..8).map(|_| Arena::new(rank, 16 << 10)).collect();
            rank.settle();
            let queued: Vec<_> = (0..8)
                .map(|i| {
                    let case = Case::new(Collective::AllReduce, DataType::F32, Some(NamedOp::Sum), 100 + i);
                    let queued = Case { seed: i as u64, ..case }.queue(rank, &arenas[i]);
                    let mut sum = vec![rank.comm.rank() as u64 + i as u64; 50 * i];
                    rank.comm.all_reduce_in_place(&mut sum, ReduceOp::Sum).unwrap();
                    let want = (0..size).map(|r| r + i).sum::<usize>() as u64;
                    assert!(sum.iter().all(|x| *x == want));
                    queued
                })
                .collect();
            queued.iter().zip(&arenas).for_each(|(queued, arena)| queued.compare(rank, arena));
            rank.settle();
        });
    }
}

fn by_pointer() {
    world(2, &config(&[]), |rank| {
        let arena = Arena::new(rank, 4 << 10);
        let (me, stream) = (rank.comm.rank(), &rank.stream);
        let call =
            Call { collective: Collective::AllReduce, dtype: DataType::U32, count: 3, op: ReduceOp::Sum, root: 0 };
        for turn in 0..4u32 {
            let given = [turn, 10 + me as u32, 100];
            let want = [2 * turn, 21, 200];
            let mut got = [0u32; 3];
            // On the host: waits for what is on the stream, and is done when it returns.
            // SAFETY: both are arrays of three elements, and the call is done with them when it returns.
            unsafe { rank.comm.call_at(call, given.as_ptr().cast(), got.as_mut_ptr().cast(), stream) }.unwrap();
            assert_eq!(got, want);
            arena.put(stream, 0, bytemuck::cast_slice(&given));
            let at = |offset| std::ptr::without_provenance_mut::<u8>(arena.output(offset, 12).address() as usize);
            // SAFETY: device memory of the stream's context, of three elements each.
            unsafe { rank.comm.call_at(call, at(0), at(1024), stream) }.unwrap();
            assert_eq!(arena.read(stream, 1024, 12), bytemuck::cast_slice::<u32, u8>(&want));
            // One of each makes no sense.
            // SAFETY: as above.
            let error = unsafe { rank.comm.call_at(call, given.as_ptr().cast(), at(1024), stream) }.unwrap_err();
            assert!(error.to_string().contains("device"), "{error}");
            checked(3);
        }
        rank.settle();
    });
}

fn children() {
    world(4, &config(&[]), |rank| {
        let arena = Arena::new(rank, 16 << 10);
        let mut own = rank.comm.duplicate().unwrap();
        own = own.split(Some(rank.comm.rank() as u32 % 2), 0).unwrap().expect("every rank has a color");
        own.attach(&rank.context).unwrap();
        rank.settle();
        let me = rank.comm.rank() as u64;
        for turn in 0..5 {
            arena.put(&rank.stream, 0, &(me + turn).to_ne_bytes());
            own.on(&rank.stream).all_reduce_in_place(arena.elements_mut::<u64>(0, 1), ReduceOp::Sum).unwrap();
            rank.comm.on(&rank.stream).all_reduce_in_place(arena.elements_mut::<u64>(0, 1), ReduceOp::Sum).unwrap();
            let got = arena.read(&rank.stream, 0, 8);
            // Each of the two halves has a sum, and each rank of them adds it.
            assert_eq!(got, (2 * (6 + 4 * turn)).to_ne_bytes());
            checked(1);
        }
        own.on(&rank.stream).synchronize().unwrap();
        rank.settle();
    });
}
