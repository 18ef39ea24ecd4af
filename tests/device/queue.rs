//! Streams' queues are of a length, and a call that finds one full holds up the whole context. One rank queues more than a
//! queue has room for before the others begin, with the emulator's switch `QUEUE`: without the bound on what is
//! outstanding each of these ends at the deadline.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use maypole::cuda::{DeviceBuffer, Stream};
use maypole::{Call, Collective, Communicator, DataType, ReduceOp};

use crate::arena::Arena;
use crate::hosts::spread;
use crate::ranks::threads;
use crate::runner::{On, Test, checked};
use crate::world::{Rank, SMALL, a_context_for_each, config, emulator, world};

pub const TESTS: &[Test] = &[
    Test { name: "queue: a long collective", on: On::Emulator, run: long },
    Test { name: "queue: long pipelines of messages", on: On::Emulator, run: pipelines },
    Test { name: "queue: many short calls", on: On::Emulator, run: short },
    Test { name: "queue: several communicators on one stream", on: On::Emulator, run: communicators },
    Test { name: "queue: streams in turns", on: On::Emulator, run: streams },
    Test { name: "queue: long messages between two ranks", on: On::Emulator, run: messages },
    Test { name: "queue: long collectives between hosts", on: On::Emulator, run: between_hosts },
    Test { name: "queue: a fold and its publication are one launch", on: On::Emulator, run: launches },
    Test { name: "queue: fetches from several ranks are one launch", on: On::Emulator, run: gathers },
    Test { name: "queue: the driver is asked about addresses only", on: On::Emulator, run: asked },
    Test { name: "queue: what is lent has one round among threads", on: On::Emulator, run: one_round },
    Test { name: "queue: what is lent has one round where all promise it", on: On::Emulator, run: promised },
    Test { name: "queue: a promise of registered memory is kept", on: On::Emulator, run: promise_broken },
    Test { name: "queue: small jobs write their words", on: On::Emulator, run: small },
    Test { name: "queue: words do not grow with the ranks", on: On::Emulator, run: words },
    Test { name: "queue: a verdict ends a call that waits for room", on: On::Emulator, run: verdict },
];

/// As many commands as a GPU's queue is said to take.
const ROOM: &str = "1024";
/// How long the others leave the first rank alone.
const HEAD_START: Duration = Duration::from_millis(50);

/// The rank `ahead` begins, and has a while before the others do.
fn staggered(rank: &Rank, ahead: usize) {
    rank.settle();
    if rank.comm.rank() != ahead {
        std::thread::sleep(HEAD_START);
    }
}

fn long() {
    const N: usize = 2 << 20;
    a_context_for_each();
    emulator().set("QUEUE", ROOM);
    for (size, ahead) in [(2, 0), (3, 2)] {
        world(size, &config(&SMALL), |rank| {
            let arena = Arena::new(rank, N);
            arena.fill(&rank.stream, 0, N, 1 + rank.comm.rank() as u8);
            staggered(rank, ahead);
            rank.comm.on(&rank.stream).all_reduce_in_place(arena.output(0, N), ReduceOp::Sum).unwrap();
            let want = (size * (size + 1) / 2) as u8;
            assert!(arena.read(&rank.stream, 0, N).iter().all(|byte| *byte == want), "rank {}", rank.comm.rank());
            checked(1);
        });
    }
}

/// A small all-reduce is two launches and one batch, of the waits between them: the first kernel says itself that what it has
/// published can be read, and the second that it has read it, and that the operation has ended.
fn small() {
    const CALLS: u64 = 10;
    for size in [2, 4] {
        world(size, &config(&[]), |rank| {
            let arena = Arena::new(rank, 64);
            let call = || rank.comm.on(&rank.stream).all_reduce_in_place(arena.output(0, 8), ReduceOp::Max).unwrap();
            let calls = || ["cuLaunchKernel", "cuStreamBatchMemOp"].map(|function| emulator().calls(function));
            call();
            rank.settle();
            let before = calls();
            for _ in 0..CALLS {
                rank.comm.barrier().unwrap();
                call();
                rank.settle();
            }
            let now = calls();
            let [launches, batches] = [0, 1].map(|which| (now[which] - before[which]) / size as u64);
            // Once in a while a rank writes how far it is.
            println!("{size} ranks: {launches} launches and {batches} batches of each for {CALLS} calls");
            assert_eq!(launches, 2 * CALLS);
            assert!((CALLS..=CALLS + 1).contains(&batches), "{batches}");
            rank.comm.barrier().unwrap();
            checked(1);
        });
    }
}

/// Each word that a stream writes costs about a microsecond: a reader says once that it has read everybody's
/// publications, however many ranks there are.
fn words() {
    const CALLS: usize = 20;
    for size in [2, 6] {
        let written = world(size, &config(&[]), |rank| {
            let arena = Arena::new(rank, 64);
            let call = || rank.comm.on(&rank.stream).all_reduce_in_place(arena.output(0, 8), ReduceOp::Max).unwrap();
            call();
            rank.settle();
            let before = emulator().counters().words;
            rank.comm.barrier().unwrap();
            (0..CALLS).for_each(|_| call());
            rank.settle();
            let written = emulator().counters().words - before;
            // Nobody queues more before all have looked.
            rank.comm.barrier().unwrap();
            written
        });
        // That it has begun, that its part can be read, that it has read the others', that it has ended; and once in a
        // while how far it is.
        let most = (4 * size * CALLS + 2 * size) as u64;
        assert!(written.iter().all(|written| (1..=most).contains(written)), "{size} ranks: {written:?}, not {most}");
        checked(size as u64);
    }
}

/// What a fold makes is published by the kernel that makes it: three launches a round on each of two ranks.
fn launches() {
    const N: usize = 2 << 20;
    a_context_for_each();
    let knobs = [("MAYPOLE_ALGORITHM", "two_shot"), ("MAYPOLE_DEVICE_WINDOW", "128K")];
    let launches = || emulator().calls("cuLaunchKernel");
    let before = std::sync::Mutex::new(0);
    world(2, &config(&knobs), |rank| {
        let arena = Arena::new(rank, N);
        arena.fill(&rank.stream, 0, N, 1 + rank.comm.rank() as u8);
        rank.settle();
        if rank.comm.rank() == 0 {
            *before.lock().unwrap() = launches();
        }
        rank.comm.barrier().unwrap();
        rank.comm.on(&rank.stream).all_reduce_in_place(arena.output(0, N), ReduceOp::Sum).unwrap();
        rank.settle();
        if rank.comm.rank() == 0 {
            // Each rank adds up one half, 128 KiB a round.
            let rounds = (N / 2 / (128 << 10)) as u64;
            assert_eq!(launches() - *before.lock().unwrap(), 2 * 3 * rounds);
        }
        rank.comm.barrier().unwrap();
        assert!(arena.read(&rank.stream, 0, N).iter().all(|byte| *byte == 3));
        checked(1);
    });
}

/// Whoever fetches from several ranks into places of their own launches one kernel for all of them: the launches of a call
/// grow with the ranks, and not with their square.
fn gathers() {
    // No multiple of a line: blocks do not lie as close in memory as in a publication.
    const N: usize = 3000;
    let knobs = [("MAYPOLE_ALGORITHM", "all_reduce=two_shot,broadcast=two_shot")];
    for size in [4, 8] {
        // Publish, copy the own block or fold and publish, and fetch; of a broadcast the root publishes, copies, and looks
        // at the others' headers, and those fetch their part and the rest.
        let each = 3 * size as u64;
        let want = [
            (Collective::AllReduce, each),
            (Collective::AllGather, each),
            (Collective::AllToAll, each),
            (Collective::Broadcast, 3 + 2 * (size as u64 - 1)),
        ];
        world(size, &config(&knobs), |rank| {
            let arena = Arena::new(rank, 16 * N * size);
            for (collective, want) in want {
                let call = Call { collective, dtype: DataType::U8, count: N, op: ReduceOp::Sum, root: 0 };
                let inputs = collective.input_blocks(rank.comm.rank(), size, 0) * N;
                let outputs = collective.output_blocks(rank.comm.rank(), size, 0) * N;
                rank.settle();
                let before = emulator().calls("cuLaunchKernel");
                rank.comm.barrier().unwrap();
                let on = rank.comm.on(&rank.stream);
                on.call(call, arena.input(0, inputs), arena.output(8 * N * size, outputs)).unwrap();
                rank.settle();
                let launches = emulator().calls("cuLaunchKernel") - before;
                rank.comm.barrier().unwrap();
                if rank.comm.rank() == 0 {
                    println!("{}: {launches} launches of {size} ranks", collective.name());
                    assert_eq!(launches, want, "{} of {size} ranks", collective.name());
                    checked(1);
                }
            }
        });
    }
}

/// Of a buffer of this library's it is known what it is; of an address the driver is asked.
fn asked() {
    const N: usize = 1000;
    world(1, &config(&[]), |rank| {
        let (input, mut output) =
            (DeviceBuffer::new(&rank.context, N).unwrap(), DeviceBuffer::new(&rank.context, N).unwrap());
        let arena = Arena::new(rank, 2 * N);
        let on = rank.comm.on(&rank.stream);
        let asked = |call: &mut dyn FnMut() -> maypole::Result<()>| {
            let before = emulator().calls("cuPointerGetAttributes");
            call().unwrap();
            emulator().calls("cuPointerGetAttributes") - before
        };
        assert_eq!(asked(&mut || on.all_gather(&input, &mut output)), 0);
        assert_eq!(asked(&mut || on.all_reduce_in_place(output.slice_mut(1..9), ReduceOp::Sum)), 0);
        assert_eq!(asked(&mut || on.all_gather(arena.input(0, N), arena.output(N, N))), 2);
        assert_eq!(asked(&mut || on.all_gather(&input, arena.output(N, N))), 1);
        input.to_vec(&rank.stream).unwrap().iter().for_each(|byte: &u8| assert_eq!(*byte, 0));
        checked(4);
    });
}

/// A buffer of which a window of 64 KiB makes as many rounds as one of 16 MiB makes of 1 GiB: two ranks, each of which
/// adds up half of it.
const ROUNDS: u64 = 32;
const ROUND: (&str, &str) = ("MAYPOLE_DEVICE_WINDOW", "64K");
const CUT: usize = 2 * ROUNDS as usize * (64 << 10);

/// The launches of all ranks for an all-reduce of `buffer`, which holds ones.
fn launches_of(rank: &Rank, buffer: &mut DeviceBuffer<u8>, registered: bool) -> u64 {
    buffer.copy_from(&vec![1; CUT], &rank.stream).unwrap();
    rank.settle();
    let before = emulator().calls("cuLaunchKernel");
    rank.comm.barrier().unwrap();
    let on = rank.comm.on(&rank.stream);
    let on = if registered { on.registered() } else { on };
    on.all_reduce_in_place(&mut *buffer, ReduceOp::Sum).unwrap();
    rank.settle();
    let launches = emulator().calls("cuLaunchKernel") - before;
    rank.comm.barrier().unwrap();
    assert_eq!(buffer.to_vec(&rank.stream).unwrap(), vec![2; CUT]);
    checked(1);
    launches
}

/// Three launches on each rank: publishing, adding up and publishing, fetching.
fn one_round() {
    world(2, &config(&[ROUND]), |rank| {
        let mut registered = rank.comm.alloc_device::<u8>(CUT).unwrap();
        let mut plain = DeviceBuffer::<u8>::new(&rank.context, CUT).unwrap();
        assert_eq!(launches_of(rank, &mut registered, false), 2 * 3);
        assert_eq!(launches_of(rank, &mut registered, true), 2 * 3);
        assert_eq!(launches_of(rank, &mut plain, false), 2 * 3);
    });
}

/// With a context each, ranks do not know of each other's memory.
fn promised() {
    a_context_for_each();
    world(2, &config(&[ROUND]), |rank| {
        let mut registered = rank.comm.alloc_device::<u8>(CUT).unwrap();
        let mut plain = DeviceBuffer::<u8>::new(&rank.context, CUT).unwrap();
        assert_eq!(launches_of(rank, &mut plain, false), 2 * 3 * ROUNDS);
        assert_eq!(launches_of(rank, &mut registered, false), 2 * 3 * ROUNDS);
        assert_eq!(launches_of(rank, &mut registered, true), 2 * 3);
    });
}

/// A rank whose buffer is not registered is refused, and the others are told; one that does not promise what another does
/// makes another call.
fn promise_broken() {
    a_context_for_each();
    for breach in ["another buffer", "no promise"] {
        let told = Barrier::new(2);
        threads(2, &config(&[ROUND]), |comm| {
            let rank = Rank::new(comm);
            rank.comm.attach(&rank.context).unwrap();
            let me = rank.comm.rank();
            let mut registered = rank.comm.alloc_device::<u8>(CUT).unwrap();
            let mut plain = DeviceBuffer::<u8>::new(&rank.context, CUT).unwrap();
            rank.settle();
            let on = rank.comm.on(&rank.stream);
            let called = match (me, breach) {
                (0, _) => on.registered().all_reduce_in_place(&mut registered, ReduceOp::Sum),
                (_, "no promise") => on.all_reduce_in_place(&mut registered, ReduceOp::Sum),
                _ => on.registered().all_reduce_in_place(&mut plain, ReduceOp::Sum),
            };
            let error = called.and_then(|()| on.synchronize()).unwrap_err().to_string();
            println!("{breach}, rank {me}: {error}");
            match breach {
                "no promise" => assert!(error.contains("in one round"), "{error}"),
                _ => assert!(error.contains("alloc_device"), "{error}"),
            }
            rank.stream.synchronize().unwrap();
            // Nobody leaves before both have been told.
            told.wait();
            checked(1);
        });
    }
}

/// Rings and chains: every rank waits for its neighbours at each slot.
fn pipelines() {
    const N: usize = 3 << 20;
    emulator().set("QUEUE", ROOM);
    for algorithm in ["ring", "chain", "double_tree"] {
        let knobs = [("MAYPOLE_ALGORITHM", algorithm), SMALL[0], SMALL[1]];
        world(3, &config(&knobs), |rank| {
            let (me, stream) = (rank.comm.rank(), &rank.stream);
            let arena = Arena::new(rank, N);
            arena.fill(stream, 0, N, if me == 1 { 9 } else { 0 });
            staggered(rank, 1);
            let on = rank.comm.on(stream);
            match algorithm {
                "ring" => on.all_reduce_in_place(arena.output(0, N), ReduceOp::Sum).unwrap(),
                _ => on.broadcast(arena.output(0, N), 1).unwrap(),
            }
            assert!(arena.read(stream, 0, N).iter().all(|byte| *byte == 9), "rank {me}, {algorithm}");
            checked(1);
        });
    }
}

fn short() {
    const TURNS: usize = 700;
    emulator().set("QUEUE", ROOM);
    world(3, &config(&[]), |rank| {
        let arena = Arena::new(rank, 64);
        arena.fill(&rank.stream, 0, 64, 0);
        staggered(rank, 0);
        for turn in 0..TURNS {
            let mine = turn % 3 == rank.comm.rank();
            arena.fill(&rank.stream, 0, 8, mine as u8 * turn as u8);
            rank.comm.on(&rank.stream).all_reduce_in_place(arena.output(0, 8), ReduceOp::Sum).unwrap();
        }
        assert_eq!(arena.read(&rank.stream, 0, 8), [(TURNS - 1) as u8; 8]);
        checked(1);
    });
}

/// Together they put more on the stream than any of them alone.
fn communicators() {
    const N: usize = 100_000;
    const TURNS: usize = 3;
    a_context_for_each();
    emulator().set("QUEUE", ROOM);
    world(2, &config(&SMALL), |rank| {
        let comms: Vec<Communicator> = (0..6).map(|_| rank.comm.duplicate().unwrap()).collect();
        comms.iter().for_each(|comm| comm.attach(&rank.context).unwrap());
        let arena = Arena::new(rank, N);
        arena.fill(&rank.stream, 0, N, 1);
        staggered(rank, 1);
        for comm in comms.iter().cycle().take(TURNS * comms.len()) {
            comm.on(&rank.stream).all_reduce_in_place(arena.output(0, N), ReduceOp::Max).unwrap();
        }
        assert_eq!(arena.read(&rank.stream, 0, N), vec![1; N]);
        // Nobody frees a communicator's memory while another rank's stream waits.
        rank.settle();
        checked(1);
    });
}

/// What is outstanding on each of two streams is known whichever was used last.
fn streams() {
    const TURNS: usize = 60;
    const N: usize = 100_000;
    a_context_for_each();
    emulator().set("QUEUE", "600");
    world(2, &config(&SMALL), |rank| {
        let other = Stream::new(&rank.context).unwrap();
        let arena = Arena::new(rank, N);
        arena.fill(&rank.stream, 0, N, 1);
        staggered(rank, 0);
        for turn in 0..TURNS {
            let stream = if turn % 2 == 0 { &rank.stream } else { &other };
            rank.comm.on(stream).all_reduce_in_place(arena.output(0, N), ReduceOp::Max).unwrap();
        }
        rank.comm.on(&other).synchronize().unwrap();
        assert_eq!(arena.read(&rank.stream, 0, N), vec![1; N]);
        rank.settle();
        checked(1);
    });
}

fn messages() {
    const N: usize = 3 << 20;
    emulator().set("QUEUE", ROOM);
    world(2, &config(&SMALL), |rank| {
        let (me, stream) = (rank.comm.rank(), &rank.stream);
        let arena = Arena::new(rank, 2 * N);
        arena.fill(stream, 0, N, 1 + me as u8);
        staggered(rank, 0);
        rank.comm.on(stream).send_recv(arena.input(0, N), 1 - me, arena.output(N, N), 1 - me).unwrap();
        assert!(arena.read(stream, N, N).iter().all(|byte| *byte == 2 - me as u8), "rank {me}");
        checked(1);
    });
}

/// What a host has queued for the courier must have been handed over before it waits.
fn between_hosts() {
    const N: usize = 3 << 20;
    emulator().set("QUEUE", ROOM);
    for hosts in [&["a", "b"][..], &["a", "a", "b", "b"]] {
        spread(hosts, &config(&[("MAYPOLE_DEVICE_FIFO", "16K")]), |rank| {
            let arena = Arena::new(rank, N);
            arena.fill(&rank.stream, 0, N, 1);
            staggered(rank, 1);
            rank.comm.on(&rank.stream).all_reduce_in_place(arena.output(0, N), ReduceOp::Sum).unwrap();
            let want = hosts.len() as u8;
            assert!(arena.read(&rank.stream, 0, N).iter().all(|byte| *byte == want), "rank {}", rank.comm.rank());
            rank.settle();
            checked(1);
        });
    }
}

/// A rank waits for room within a call, and the others never come.
fn verdict() {
    const N: usize = 3 << 20;
    a_context_for_each();
    emulator().set("QUEUE", ROOM);
    for why in [Some("enough of it"), None] {
        let begun = AtomicBool::new(false);
        threads(2, &config(&SMALL), |comm| {
            let rank = Rank::new(comm);
            rank.comm.attach(&rank.context).unwrap();
            let arena = Arena::new(&rank, N);
            rank.settle();
            if rank.comm.rank() == 0 {
                if why.is_none() {
                    rank.comm.set_timeout(Duration::from_secs(1));
                }
                begun.store(true, Ordering::Release);
                let call = rank.comm.on(&rank.stream).all_reduce_in_place(arena.output(0, N), ReduceOp::Sum);
                let text = call.expect_err("it is not queued to its end").to_string();
                println!("{text}");
                assert!(text.contains(why.unwrap_or("rank 1")), "{text}");
            } else {
                // Until it has begun, and does nothing any more because there is no room.
                while !begun.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let (mut before, mut now) = (0, emulator().calls("*"));
                while before != now {
                    std::thread::sleep(HEAD_START);
                    (before, now) = (now, emulator().calls("*"));
                }
                why.inspect(|why| rank.comm.abort(why));
                while rank.comm.verdict().is_none() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            assert!(rank.comm.on(&rank.stream).synchronize().is_err());
            rank.stream.synchronize().unwrap();
            checked(1);
        });
    }
}
