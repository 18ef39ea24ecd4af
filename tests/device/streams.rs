//! Order on streams: what was put there before a call is done before the call reads, what comes after it sees the
//! result, and calls on several streams and communicators neither mix nor wait for each other for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use maypole::ReduceOp;
use maypole::cuda::{Event, Stream};

use crate::arena::Arena;
use crate::ranks::PATIENCE;
use crate::runner::{On, Test, checked};
use crate::world::{SMALL, config, world};

pub const TESTS: &[Test] = &[
    Test { name: "streams: a call returns while the stream is held", on: On::Either, run: returns_at_once },
    Test { name: "streams: work before is read, work after reads", on: On::Either, run: before_and_after },
    Test { name: "streams: a pipeline that nobody waits for", on: On::Either, run: pipeline },
    Test { name: "streams: one communicator, two streams", on: On::Either, run: two_streams },
    Test { name: "streams: events carry the order to other streams", on: On::Either, run: events },
    Test { name: "streams: communicators side by side", on: On::Either, run: side_by_side },
    Test { name: "streams: a default stream", on: On::Either, run: default_streams },
];

/// Something on a stream that does not end before it is told to.
#[derive(Clone)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// Whatever is put on `stream` from now on waits.
    pub fn on(stream: &Stream) -> Gate {
        let open = Arc::new(AtomicBool::new(false));
        let looked_at = open.clone();
        let wait = move || {
            let until = Instant::now() + PATIENCE;
            while !looked_at.load(Ordering::Acquire) && Instant::now() < until {
                std::thread::sleep(Duration::from_micros(200));
            }
        };
        stream.host_function(wait).expect("a host function");
        Gate(open)
    }

    pub fn open(&self) {
        self.0.store(true, Ordering::Release);
    }
}

fn returns_at_once() {
    world(3, &config(&SMALL), |rank| {
        let arena = Arena::new(rank, 1 << 20);
        arena.put(&rank.stream, 0, &[1; 100_000]);
        // Only one rank: host functions of a process may run one at a time.
        let gate = (rank.comm.rank() == 1).then(|| Gate::on(&rank.stream));
        let on = rank.comm.on(&rank.stream);
        // In several rounds, so that rank 1's part is long, and waits for the others.
        on.all_reduce_in_place(arena.output(0, 100_000), ReduceOp::Sum).unwrap();
        on.barrier().unwrap();
        assert!(gate.is_none() || !rank.stream.is_idle().unwrap());
        rank.comm.barrier().unwrap();
        // A barrier on the stream holds everybody's.
        assert!(!rank.stream.is_idle().unwrap(), "rank {}", rank.comm.rank());
        rank.comm.barrier().unwrap();
        gate.inspect(Gate::open);
        assert_eq!(arena.read(&rank.stream, 0, 100_000), [3; 100_000]);
        checked(2);
        rank.settle();
    });
}

fn before_and_after() {
    const N: usize = 50_000;
    world(3, &config(&SMALL), |rank| {
        let (me, stream) = (rank.comm.rank(), &rank.stream);
        let arena = Arena::new(rank, 1 << 20);
        for late in [0, 1, 2] {
            rank.settle();
            arena.fill(stream, 0, N, 99);
            let gate = (me == late).then(|| Gate::on(stream));
            // A kernel's place: it must have run before the call reads.
            arena.fill(stream, 0, N, me as u8 + 1);
            let on = rank.comm.on(stream);
            on.all_reduce(arena.input(0, N), arena.output(N, N), ReduceOp::Sum).unwrap();
            // What follows overwrites the input, and reads the output.
            arena.fill(stream, 0, N, 77);
            on.all_gather(arena.input(N, N), arena.output(2 * N, 3 * N)).unwrap();
            arena.fill(stream, N, N, 55);
            if let Some(gate) = gate {
                std::thread::sleep(Duration::from_millis(20));
                gate.open();
            }
            assert_eq!(arena.read(stream, 2 * N, 3 * N), vec![6; 3 * N], "rank {me}, rank {late} late");
            checked(1);
        }
        rank.settle();
    });
}

fn pipeline() {
    const N: usize = 3000;
    const TURNS: usize = 30;
    world(4, &config(&SMALL), |rank| {
        let (me, stream) = (rank.comm.rank(), &rank.stream);
        let arena = Arena::new(rank, (TURNS + 2) * N);
        let on = rank.comm.on(stream);
        for turn in 0..TURNS {
            // Input and output are used again at once.
            arena.fill(stream, 0, N, (me + turn) as u8);
            match turn % 3 {
                0 => on.all_reduce(arena.input(0, N), arena.output(N, N), ReduceOp::Sum),
                1 => on.reduce_scatter(arena.input(0, N), arena.output(N, N / 4), ReduceOp::Sum),
                _ => on.all_reduce_in_place(arena.output(0, N), ReduceOp::Sum),
            }
            .unwrap();
            let from = if turn % 3 == 2 { 0 } else { N };
            let given = if me == turn % 4 { N / 4 } else { 0 };
            on.broadcast_from(arena.input(from, given), arena.output((turn + 2) * N, N / 4), turn % 4).unwrap();
        }
        for turn in 0..TURNS {
            let want = (6 + 4 * turn) as u8;
            assert_eq!(arena.read(stream, (turn + 2) * N, N / 4), vec![want; N / 4], "rank {me}, turn {turn}");
            checked(1);
        }
        rank.settle();
    });
}

/// Calls of one communicator run one after the other, on whichever stream they are.
fn two_streams() {
    world(3, &config(&SMALL), |rank| {
        let other = Stream::new(&rank.context).unwrap();
        let arena = Arena::new(rank, 64 << 10);
        const N: usize = 2000;
        let ones: Vec<u8> = (0..N).flat_map(|_| 1u32.to_ne_bytes()).collect();
        arena.put(&rank.stream, 0, &ones);
        rank.settle();
        for turn in 0..10 {
            // Not the same streams on every rank.
            let streams = [&rank.stream, &other];
            let stream = streams[(turn + turn / 2 * rank.comm.rank()) % 2];
            rank.comm.on(stream).all_reduce_in_place(arena.elements_mut::<u32>(0, N), ReduceOp::Sum).unwrap();
        }
        rank.comm.on(&rank.stream).synchronize().unwrap();
        rank.comm.on(&other).synchronize().unwrap();
        other.synchronize().unwrap();
        let want: Vec<u8> = (0..N).flat_map(|_| 3u32.pow(10).to_ne_bytes()).collect();
        assert!(arena.read(&rank.stream, 0, 4 * N) == want);
        checked(10);
        rank.settle();
    });
}

fn events() {
    const N: usize = 40_000;
    world(2, &config(&SMALL), |rank| {
        let compute = Stream::new(&rank.context).unwrap();
        let (ready, done) = (Event::new(&rank.context, false).unwrap(), Event::new(&rank.context, false).unwrap());
        let arena = Arena::new(rank, 2 * N);
        rank.settle();
        for turn in 0..10u8 {
            let gate = (rank.comm.rank() == turn as usize % 2).then(|| Gate::on(&compute));
            arena.fill(&compute, 0, N, turn + 1);
            ready.record(&compute).unwrap();
            rank.stream.wait_event(&ready).unwrap();
            let on = rank.comm.on(&rank.stream);
            on.all_reduce(arena.input(0, N), arena.output(N, N), ReduceOp::Sum).unwrap();
            done.record(&rank.stream).unwrap();
            compute.wait_event(&done).unwrap();
            gate.inspect(Gate::open);
            assert_eq!(arena.read(&compute, N, N), vec![2 * (turn + 1); N]);
            checked(1);
        }
        rank.settle();
    });
}

/// Each rank queues on several communicators in another order: they do not hold each other up.
fn side_by_side() {
    const COMMS: usize = 3;
    const N: usize = 5000;
    const TURNS: usize = 8;
    world(3, &config(&SMALL), |rank| {
        let me = rank.comm.rank();
        let comms: Vec<_> = (0..COMMS).map(|_| rank.comm.duplicate().unwrap()).collect();
        let streams: Vec<_> = (0..COMMS).map(|_| Stream::new(&rank.context).unwrap()).collect();
        let arena = Arena::new(rank, COMMS * N);
        comms.iter().for_each(|comm| comm.attach(&rank.context).unwrap());
        rank.settle();
        for i in 0..COMMS {
            let which = (i + me) % COMMS;
            arena.fill(&streams[which], which * N, N, 1 + which as u8);
            for _ in 0..TURNS {
                comms[which]
                    .on(&streams[which])
                    .all_reduce_in_place(arena.output(which * N, N), ReduceOp::Sum)
                    .unwrap();
            }
        }
        for which in 0..COMMS {
            comms[which].on(&streams[which]).synchronize().unwrap();
            let want = (1 + which as u8).wrapping_mul(3u8.wrapping_pow(TURNS as u32));
            assert_eq!(arena.read(&streams[which], which * N, N), vec![want; N]);
            checked(TURNS as u64);
        }
        rank.settle();
    });
}

/// The legacy default stream on one rank and ordinary streams on the others; then each thread's default stream. (Both
/// kinds in one process would wait for each other, whatever they do.)
fn default_streams() {
    world(3, &config(&SMALL), |rank| {
        let _current = rank.context.enter().unwrap();
        let arena = Arena::new(rank, 64 << 10);
        for (legacy, turn) in [true, false].into_iter().flat_map(|legacy| (0..5u8).map(move |turn| (legacy, turn))) {
            let adopted = match (legacy, rank.comm.rank()) {
                (true, 0) => Some(0),
                (true, _) => None,
                (false, _) => Some(2),
            };
            // SAFETY: default streams.
            let adopt = |raw| unsafe { Stream::adopt(std::ptr::without_provenance_mut(raw)) };
            let adopted = adopted.map(|raw| adopt(raw).unwrap());
            let stream = adopted.as_ref().unwrap_or(&rank.stream);
            assert!(Arc::ptr_eq(stream.context(), &rank.context), "adopting a stream makes no context");
            rank.settle();
            arena.fill(stream, 0, 9000, turn);
            rank.comm.on(stream).all_reduce_in_place(arena.output(0, 9000), ReduceOp::Sum).unwrap();
            rank.comm.on(stream).synchronize().unwrap();
            assert_eq!(arena.read(stream, 0, 9000), vec![3 * turn; 9000], "legacy: {legacy}, turn {turn}");
            checked(1);
        }
        rank.settle();
    });
}
