//! Ranks as processes: what threads share by plain pointers they share through CUDA IPC, or through host memory.

use maypole::cuda::DeviceBuffer;
use maypole::perf::operation::NamedOp;
use maypole::{Call, Collective, Communicator, DataType, ReduceOp};

use crate::arena::Arena;
use crate::case::{Case, calls};
use crate::lifetime::no_harm;
use crate::ranks::{Job, role, say};
use crate::runner::{On, Test, checked};
use crate::world::{Driver, Rank, SMALL as ROUNDS, driver, emulator};

pub const TESTS: &[Test] = &[
    Test { name: SOME, on: On::Either, run: some_of_everything },
    Test { name: ALL, on: On::Either, run: everything },
    Test { name: HOST, on: On::Either, run: staged_on_the_host },
    Test { name: DEVICES, on: On::Emulator, run: several_devices },
    Test { name: UNSEEN, on: On::Emulator, run: unseen_devices },
    Test { name: REGISTERED, on: On::Either, run: registered },
    Test { name: PIPELINE, on: On::Emulator, run: pipeline },
    Test { name: LEAVES, on: On::Either, run: leaves },
    Test { name: REFUSED, on: On::Emulator, run: refused },
    Test { name: UNREGISTERED, on: On::Emulator, run: unregistered },
    Test { name: NO_WORDS, on: On::Emulator, run: without_memory_operations },
];

const SOME: &str = "processes: every collective over IPC";
const ALL: &str = "processes: every collective, type and operation, 1 to 8 ranks";
const HOST: &str = "processes: staging in host memory";
const DEVICES: &str = "processes: a device each";
const UNSEEN: &str = "processes: each sees one device, its own";
const REGISTERED: &str = "processes: registered buffers come and go";
const PIPELINE: &str = "processes: a pipeline gives memory back";
const LEAVES: &str = "processes: a rank leaves while others still read";
const REFUSED: &str = "processes: IPC is refused";
const UNREGISTERED: &str = "processes: one may not register host memory";
const NO_WORDS: &str = "processes: without stream memory operations";

/// Start `size` ranks of test `name` with `knobs`, and wait until they have ended well.
fn job(name: &str, size: usize, knobs: &[(&str, &str)]) {
    let mut job = Job::start(name, "rank", size, knobs);
    let ranks: Vec<usize> = (0..size).collect();
    for (_, said) in job.hear(&ranks) {
        checked(said.parse().unwrap_or_else(|_| panic!("a rank said {said:?} in place of its checks")));
    }
    job.end(&ranks);
}

/// In a rank's process: the rank, attached.
fn joined() -> Rank {
    let rank = Rank::new(Communicator::from_env().unwrap());
    rank.comm.attach(&rank.context).unwrap_or_else(|error| panic!("attach: {error}"));
    rank
}

/// In a rank's process: how it went.
fn report(rank: &Rank, checks: usize) {
    rank.settle();
    say(checks);
}

/// The usual part of a rank.
fn collectives() {
    let rank = joined();
    let arena = Arena::new(&rank, 1 << 20);
    let mut checks = 0;
    for dtype in [DataType::F32, DataType::Bf16, DataType::U8] {
        for (collective, op) in calls(dtype).filter(|(_, op)| op.is_none_or(|op| op == NamedOp::Sum)) {
            let roots = if collective.is_rooted() { rank.comm.size() } else { 1 };
            for root in 0..roots {
                for count in [0, 1, 333, 9001] {
                    let case = Case { root, ..Case::new(collective, dtype, op, count) };
                    case.check(&rank, &arena);
                    case.in_place().check(&rank, &arena);
                    checks += 2;
                }
            }
        }
    }
    report(&rank, checks);
    drop(arena);
    drop(rank);
    no_harm();
}

const SMALL: [(&str, &str); 2] = [("MAYPOLE_DEVICE_WINDOW", "16K"), ("MAYPOLE_DEVICE_FIFO", "16K")];

fn some_of_everything() {
    role(|_| collectives());
    for size in [2, 3, 4] {
        job(SOME, size, &SMALL);
    }
    job(SOME, 3, &[SMALL[0], SMALL[1], ("MAYPOLE_ALGORITHM", "ring,chain,pairwise,binomial")]);
    if driver() == Driver::Emulator {
        // All streams of a process share two hardware queues, as under MPS they may.
        let queues = [("MAYPOLE_EMULATOR_CONNECTIONS", "2"), ("MAYPOLE_EMULATOR_CHAOS", "5")];
        job(SOME, 3, &[SMALL[0], SMALL[1], queues[0], queues[1]]);
    }
}

/// As the matrix of threads, with every operation.
fn everything() {
    role(|_| {
        let rank = joined();
        let size = rank.comm.size();
        let arena = Arena::new(&rank, 512 << 10);
        let mut checks = 0;
        for dtype in DataType::ALL {
            for (number, (collective, op)) in calls(dtype).enumerate() {
                let root = if collective.is_rooted() { number % size } else { 0 };
                for count in [37, if op.is_none() { 1501 } else { 601 }] {
                    let case = Case { root, ..Case::new(collective, dtype, op, count) };
                    let case = if (number + count) % 2 == 0 { case } else { case.in_place() };
                    case.check(&rank, &arena);
                    checks += 1;
                }
            }
        }
        report(&rank, checks);
        drop(arena);
        drop(rank);
        no_harm();
    });
    for size in 1..=8 {
        let began = std::time::Instant::now();
        job(ALL, size, &ROUNDS);
        println!("{size} ranks: {:.1?}", began.elapsed());
    }
}

fn staged_on_the_host() {
    role(|_| collectives());
    job(HOST, 3, &[SMALL[0], SMALL[1], ("MAYPOLE_DEVICE_STAGING", "host")]);
}

fn several_devices() {
    role(|_| collectives());
    job(DEVICES, 4, &[SMALL[0], SMALL[1], ("MAYPOLE_EMULATOR_DEVICES", "2")]);
    // Devices that do not reach each other: staging goes to the host by itself.
    let apart = [SMALL[0], SMALL[1], ("MAYPOLE_EMULATOR_DEVICES", "2"), ("MAYPOLE_EMULATOR_PEER_ACCESS", "off")];
    job(DEVICES, 2, &apart);
}

/// Where what ranks exchange lies, in the words of `describe`.
fn staging(rank: &Rank) -> String {
    let call = Call { collective: Collective::AllReduce, dtype: DataType::F32, count: 1, op: ReduceOp::Sum, root: 0 };
    let said = rank.comm.on(&rank.stream).describe(&call, None).unwrap();
    said.split(", ").find_map(|part| part.strip_prefix("staging in ")).expect("a part about staging").to_string()
}

/// `CUDA_VISIBLE_DEVICES` of each rank's own, as job scripts have it: their devices reach each other all the same, where
/// the system lets them.
fn unseen_devices() {
    const WANTED: &str = "MAYPOLE_TEST_STAGING";
    role(|_| {
        let wanted = std::env::var(WANTED).unwrap();
        assert_eq!(maypole::cuda::probe().unwrap().device_count(), 1);
        let rank = Rank::new(Communicator::from_env().unwrap());
        if wanted == "refused" {
            let error = rank.comm.attach(&rank.context).unwrap_err().to_string();
            assert!(error.contains("IPC") && error.contains("MAYPOLE_DEVICE_STAGING=host"), "{error}");
            say(1);
            return;
        }
        rank.comm.attach(&rank.context).unwrap_or_else(|error| panic!("attach: {error}"));
        let arena = Arena::new(&rank, 100_000);
        let mut own = rank.comm.alloc_device::<u8>(20_000).unwrap();
        own.copy_from(&[1 + rank.comm.rank() as u8; 20_000], &rank.stream).unwrap();
        for _ in 0..3 {
            rank.comm.on(&rank.stream).all_gather(&own, arena.output(0, 60_000)).unwrap();
        }
        let got = arena.read(&rank.stream, 0, 60_000);
        assert!(got.iter().enumerate().all(|(i, byte)| *byte == 1 + (i / 20_000) as u8));
        assert_eq!(staging(&rank), wanted);
        assert_eq!(own.is_shared(), wanted == "device memory", "registered memory is read where it lies");
        report(&rank, 60_000);
        drop((own, arena));
        drop(rank);
        no_harm();
    });
    let hidden = ("MAYPOLE_EMULATOR_HIDDEN", "1".to_string());
    let start = |hidden_from: &[usize], wanted: &str, knobs: &[(&str, &str)]| {
        let own = |rank: usize| {
            let visible = ("CUDA_VISIBLE_DEVICES", rank.to_string());
            [visible].into_iter().chain(hidden_from.contains(&rank).then(|| hidden.clone())).collect()
        };
        let places: Vec<_> = (0..3).map(|rank| (rank, 3, own(rank))).collect();
        let all = [&[("MAYPOLE_EMULATOR_DEVICES", "3"), (WANTED, wanted)], knobs].concat();
        let mut job = Job::start_at(UNSEEN, "rank", &places, &all);
        for (_, said) in job.hear(&[0, 1, 2]) {
            checked(said.parse().unwrap_or_else(|_| panic!("a rank said {said:?} in place of its checks")));
        }
        job.end(&[0, 1, 2]);
    };
    start(&[], "device memory", &[]);
    start(&[], "device memory", &[("MAYPOLE_DEVICE_STAGING", "device")]);
    // A cgroup keeps the others' devices from one rank, or from all: no memory of theirs can be opened.
    start(&[1], "pinned host memory", &[]);
    start(&[0, 1, 2], "pinned host memory", &[]);
    start(&[2], "refused", &[("MAYPOLE_DEVICE_STAGING", "device")]);
    // No peer access, which shows when memory is opened.
    start(&[], "pinned host memory", &[("MAYPOLE_EMULATOR_PEER_ACCESS", "0")]);
}

fn registered() {
    role(|_| {
        let rank = joined();
        let (me, size) = (rank.comm.rank(), rank.comm.size());
        const N: usize = 50_000;
        let arena = Arena::new(&rank, size * N);
        let mut checks = 0;
        for turn in 0..12u8 {
            let mut own = rank.comm.alloc_device::<u8>(N).unwrap();
            own.copy_from(&[turn + me as u8; N], &rank.stream).unwrap();
            let on = rank.comm.on(&rank.stream);
            on.all_gather(&own, arena.output(0, size * N)).unwrap();
            // One drops its buffer at once, one keeps it for a while, while the others go on.
            let got = arena.read(&rank.stream, 0, size * N);
            on.synchronize().unwrap();
            assert!(got.iter().enumerate().all(|(i, byte)| *byte == turn + (i / N) as u8), "turn {turn}");
            if turn as usize % size == me {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            checks += 1;
        }
        report(&rank, checks);
        drop(arena);
        drop(rank);
        no_harm();
    });
    job(REGISTERED, 3, &[]);
}

/// Buffers are dropped while an operation is always outstanding: they do not gather.
fn pipeline() {
    role(|_| {
        let rank = joined();
        const N: usize = 1 << 20;
        let arena = Arena::new(&rank, 1 << 16);
        let before = emulator().counters().bytes;
        for turn in 0..20 {
            let unused = DeviceBuffer::<u8>::new(&rank.context, N).unwrap();
            // Rank 1 is late, so that rank 0 has this one outstanding when it drops the buffer.
            if rank.comm.rank() == 1 {
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
            rank.comm.on(&rank.stream).all_reduce_in_place(arena.output(0, 5000), maypole::ReduceOp::Sum).unwrap();
            drop(unused);
            let more = emulator().counters().bytes - before;
            assert!(more < 2 * N as u64, "turn {turn}: {more} bytes more");
        }
        report(&rank, 20);
        drop(arena);
        drop(rank);
        no_harm();
    });
    job(PIPELINE, 2, &SMALL);
}

/// The root publishes and its process ends; the others read after that.
fn leaves() {
    role(|_| {
        let rank = joined();
        const N: usize = 50_000;
        let arena = Arena::new(&rank, N);
        rank.settle();
        let me = rank.comm.rank();
        if me == 0 {
            arena.fill(&rank.stream, 0, N, 11);
            rank.comm.on(&rank.stream).broadcast(arena.output(0, N), 0).unwrap();
            rank.comm.on(&rank.stream).synchronize().unwrap();
            say(1);
            drop(arena);
            drop(rank);
        } else {
            std::thread::sleep(std::time::Duration::from_millis(150 * me as u64));
            rank.comm.on(&rank.stream).broadcast(arena.output(0, N), 0).unwrap();
            rank.comm.on(&rank.stream).synchronize().unwrap();
            assert_eq!(arena.read(&rank.stream, 0, N), [11; N], "rank {me}");
            say(1);
        }
    });
    job(LEAVES, 3, &[]);
}

/// A container that may not use IPC: an error that says so and what to do, and host buffers go on.
fn refused() {
    role(|_| {
        let rank = Rank::new(Communicator::from_env().unwrap());
        let error = rank.comm.attach(&rank.context).unwrap_err().to_string();
        for part in ["IPC", "MAYPOLE_DEVICE_STAGING=host"] {
            assert!(error.contains(part), "no {part} in: {error}");
        }
        let mut sum = [1u32];
        rank.comm.all_reduce_in_place(&mut sum, maypole::ReduceOp::Sum).unwrap();
        assert_eq!(sum, [rank.comm.size() as u32]);
        say(1);
    });
    job(REFUSED, 2, &[("MAYPOLE_EMULATOR_IPC", "off")]);
    // One rank only: all get the error.
    let own = |rank: usize| if rank == 1 { vec![("MAYPOLE_EMULATOR_IPC", "off".to_string())] } else { Vec::new() };
    let places: Vec<_> = (0..3).map(|rank| (rank, 3, own(rank))).collect();
    let mut ranks = Job::start_at(REFUSED, "rank", &places, &[]);
    ranks.hear(&[0, 1, 2]);
    ranks.end(&[0, 1, 2]);
    checked(3);
}

/// Among three only one is refused host memory for its device: all are told, and go on with host buffers.
fn unregistered() {
    role(|_| {
        let rank = Rank::new(Communicator::from_env().unwrap());
        for _ in 0..2 {
            let error = rank.comm.attach(&rank.context).unwrap_err().to_string();
            assert!(error.contains("cuMemHostRegister") && error.contains("sandboxes"), "{error}");
        }
        let mut sum = [1u32];
        rank.comm.all_reduce_in_place(&mut sum, ReduceOp::Sum).unwrap();
        assert_eq!(sum, [3]);
        say(2);
    });
    let own = |rank: usize| match rank {
        1 => vec![("MAYPOLE_EMULATOR_HOST_REGISTER", "off".to_string())],
        _ => Vec::new(),
    };
    let places: Vec<_> = (0..3).map(|rank| (rank, 3, own(rank))).collect();
    for staging in ["auto", "host"] {
        let mut ranks = Job::start_at(UNREGISTERED, "rank", &places, &[("MAYPOLE_DEVICE_STAGING", staging)]);
        ranks.hear(&[0, 1, 2]);
        ranks.end(&[0, 1, 2]);
        checked(6);
    }
}

/// Host functions stand for waits and writes.
fn without_memory_operations() {
    role(|_| collectives());
    job(NO_WORDS, 2, &[SMALL[0], SMALL[1], ("MAYPOLE_EMULATOR_MEMORY_OPERATIONS", "off")]);
}
