//! Memory that is allocated and given back while operations are outstanding, with ranks as threads: nobody waits in the
//! driver for a rank that waits for it, and what was dropped comes back before there is no room.

use std::sync::Barrier;
use std::time::Duration;

use maypole::cuda::{CudaError, DeviceBuffer, Event, Stream};
use maypole::{Communicator, ReduceOp};

use crate::arena::Arena;
use crate::hosts::spread;
use crate::ranks::threads;
use crate::runner::{On, Test, checked};
use crate::streams::Gate;
use crate::world::{Rank, config, emulator, world};

pub const TESTS: &[Test] = &[
    Test { name: "memory: scratch while another rank waits", on: On::Emulator, run: scratch },
    Test { name: "memory: scratch without memory pools", on: On::Emulator, run: without_pools },
    Test { name: "memory: links to other hosts while another rank waits", on: On::Emulator, run: links },
    Test { name: "memory: no room before others are idle", on: On::Emulator, run: no_room },
    Test { name: "memory: a pipeline that is never idle", on: On::Emulator, run: pipeline },
];

const LATE: Duration = Duration::from_millis(50);

/// The first scaled sum, for which each rank needs scratch: rank 1 comes to it when rank 0's stream waits for it already.
/// What rank 1 got.
fn late_scaled_sum(timeout: Duration) -> maypole::Result<Vec<u8>> {
    const N: usize = 10_000;
    let mut config = config(&[]);
    config.timeout = timeout;
    let queued = Barrier::new(2);
    let mut got = threads(2, &config, |comm| {
        let rank = Rank::new(comm);
        rank.comm.attach(&rank.context).unwrap();
        let (me, stream) = (rank.comm.rank(), &rank.stream);
        let arena = Arena::new(&rank, 4 * N);
        let ones: Vec<u8> = std::iter::repeat_n(1f32.to_ne_bytes(), N).flatten().collect();
        arena.put(stream, 0, &ones);
        rank.settle();
        emulator().set("ALLOCATION_WAITS", "1");
        let call = || {
            let buffer = arena.elements_mut::<f32>(0, N);
            rank.comm.on(stream).all_reduce_in_place(buffer, ReduceOp::PreMulSum(2.0))
        };
        let first = if me == 0 { call() } else { Ok(()) };
        queued.wait();
        let second = if me == 1 { call() } else { Ok(()) };
        let outcome = first.and(second).and_then(|()| rank.comm.on(stream).synchronize());
        stream.synchronize().unwrap();
        queued.wait();
        outcome.map(|()| arena.read(stream, 0, 4 * N))
    });
    emulator().set("ALLOCATION_WAITS", "0");
    got.swap_remove(1)
}

fn scratch() {
    let got = late_scaled_sum(Duration::from_secs(30)).unwrap();
    let fours: Vec<u8> = std::iter::repeat_n(4f32.to_ne_bytes(), 10_000).flatten().collect();
    assert!(got == fours);
    checked(1);
}

/// A device that has none, and a driver that waits: the rank that is late waits in the driver for the one that waits for it,
/// and the deadline ends it, which also shows that the test above would notice.
fn without_pools() {
    emulator().set("FAIL", "cuMemAllocAsync:1+:CUDA_ERROR_NOT_SUPPORTED");
    let error = late_scaled_sum(Duration::from_secs(1)).unwrap_err();
    assert!(matches!(error, maypole::Error::Failed { .. }), "{error}");
    println!("{error}");
    // Where nobody is ahead, such a device serves as well.
    world(2, &config(&[]), |rank| {
        let arena = Arena::new(rank, 1024);
        arena.put(&rank.stream, 0, &1.5f32.to_ne_bytes());
        rank.settle();
        let buffer = arena.elements_mut::<f32>(0, 1);
        rank.comm.on(&rank.stream).all_reduce_in_place(buffer, ReduceOp::PreMulSum(2.0)).unwrap();
        assert_eq!(arena.read(&rank.stream, 0, 4), 6f32.to_ne_bytes());
        checked(1);
    });
    emulator().set("FAIL", "");
}

/// The first collective between hosts: one rank's stream waits already when the others come to open their links.
fn links() {
    const N: usize = 200_000;
    let hosts = ["a", "a", "b", "b"];
    for ahead in [0, 3] {
        spread(&hosts, &config(&[]), |rank| {
            let arena = Arena::new(rank, N);
            arena.fill(&rank.stream, 0, N, 1 + rank.comm.rank() as u8);
            rank.stream.synchronize().unwrap();
            rank.comm.barrier().unwrap();
            emulator().set("ALLOCATION_WAITS", "1");
            if rank.comm.rank() != ahead {
                std::thread::sleep(LATE);
            }
            rank.comm.on(&rank.stream).all_reduce_in_place(arena.output(0, N), ReduceOp::Sum).unwrap();
            assert!(arena.read(&rank.stream, 0, N).iter().all(|byte| *byte == 10), "rank {}", rank.comm.rank());
            rank.settle();
            emulator().set("ALLOCATION_WAITS", "0");
            checked(1);
        });
    }
}

/// Room for one of two buffers: the second is there when the first has been given back, for which another rank must have
/// come to the end of what it has queued.
fn no_room() {
    const BYTES: usize = 40 << 20;
    let turn = Barrier::new(2);
    world(2, &config(&[]), |rank| {
        let alone: Communicator = rank.comm.split(Some(rank.comm.rank() as u32), 0).unwrap().unwrap();
        alone.attach(&rank.context).unwrap();
        let arena = Arena::new(rank, 1000);
        let first = (rank.comm.rank() == 0).then(|| DeviceBuffer::<u8>::new(&rank.context, BYTES).unwrap());
        rank.settle();
        if rank.comm.rank() == 0 {
            emulator().set("MEMORY", &(emulator().counters().bytes + BYTES as u64 / 2).to_string());
        }
        turn.wait();
        let gate = (rank.comm.rank() == 1).then(|| {
            let gate = Gate::on(&rank.stream);
            alone.on(&rank.stream).all_reduce_in_place(arena.output(0, 1000), ReduceOp::Sum).unwrap();
            gate
        });
        turn.wait();
        match gate {
            None => {
                // There is no room for it whoever is idle: at once.
                let error = DeviceBuffer::<u8>::new(&rank.context, BYTES).unwrap_err();
                assert!(matches!(error, CudaError::OutOfMemory { .. }), "{error}");
                drop(first);
                // Longer than an allocation waits.
                let error = DeviceBuffer::<u8>::new(&rank.context, BYTES).unwrap_err();
                assert!(error.to_string().contains("there is no room"), "{error}");
                turn.wait();
                // The other one's stream goes on while this waits.
                drop(DeviceBuffer::<u8>::new(&rank.context, BYTES).expect("room, once nobody is busy"));
            }
            Some(gate) => {
                turn.wait();
                std::thread::sleep(LATE);
                gate.open();
            }
        }
        rank.settle();
        let sum = rank.comm.on(&rank.stream).all_reduce_in_place(arena.output(0, 1000), ReduceOp::Sum);
        sum.expect("the communicator is as it was");
        rank.settle();
        checked(2);
    });
    emulator().set("MEMORY", "4G");
}

/// Each rank has always two operations on its stream, on memory that it has just made, and drops what has been used.
fn pipeline() {
    const LEN: usize = 1 << 20;
    const TURNS: usize = 150;
    emulator().set("CHAOS", "7");
    world(3, &config(&[]), |rank| {
        let stream = &rank.stream;
        let slow = Stream::new(&rank.context).unwrap();
        rank.settle();
        if rank.comm.rank() == 0 {
            emulator().set("MEMORY", &(emulator().counters().bytes + (80 << 20)).to_string());
        }
        rank.comm.barrier().unwrap();
        let mut under_way = std::collections::VecDeque::new();
        for turn in 0..TURNS {
            let mut buffer = DeviceBuffer::from_slice(&rank.context, &vec![turn as u8; LEN]).unwrap();
            let on = rank.comm.on(stream);
            on.all_reduce_in_place(&mut buffer, ReduceOp::Max).unwrap();
            let event = Event::new(&rank.context, false).unwrap();
            event.record(stream).unwrap();
            under_way.push_back((turn, buffer, event));
            if under_way.len() > 2 {
                let (turn, buffer, event) = under_way.pop_front().unwrap();
                event.synchronize().unwrap();
                let mut first = [0];
                buffer.copy_to_at(0, &mut first, &slow).unwrap();
                assert_eq!(first, [turn as u8], "rank {}", rank.comm.rank());
                checked(1);
            }
        }
        rank.settle();
    });
    emulator().set("MEMORY", "4G");
}
