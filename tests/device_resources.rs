//! Operations on streams and communicators with devices leave nothing behind: device and host memory, mappings, streams,
//! events, threads, descriptors.

mod ranks;
mod streams;

use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::cuda::{Context, DeviceBuffer};
use maypole::{Communicator, ReduceOp};
use maypole_cuda_emulator::testing;
use ranks::{Job, Meeting, config, role, say};
use streams::{Rank, alone, threads, until};

/// Resident KiB, open files, threads with one of our names, shared mappings.
fn holdings() -> [usize; 4] {
    let entries = |path: &str| std::fs::read_dir(path).unwrap().flatten().collect::<Vec<_>>();
    let resident: usize =
        std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let named = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("maypole-"))
    };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let shared = maps.lines().filter(|l| l.split(' ').nth(1).is_some_and(|p| p.ends_with('s'))).count();
    [
        resident * 4,
        entries("/proc/self/fd").len(),
        entries("/proc/self/task").iter().filter(|t| named(t)).count(),
        shared,
    ]
}

/// What must not grow, of the driver's.
fn kept() -> [u64; 8] {
    let c = testing::load().counters();
    [c.allocations, c.bytes, c.pinned, c.registered, c.imported, c.streams, c.events, c.modules]
}

/// Queue `count` operations of all kinds without waiting for each.
fn many(rank: &Rank, count: usize) {
    let (me, size) = (rank.comm.rank(), rank.comm.size());
    let mut sums = rank.full(0.0f32, 600);
    let (mut out, mut back) = (rank.full(0u8, 3000), rank.full(0u8, 3000));
    let on = rank.comm.on(&rank.stream);
    for i in 0..count / 4 {
        on.all_reduce_in_place(&mut sums, ReduceOp::Sum).unwrap();
        on.broadcast(&mut out, i % size).unwrap();
        on.send_recv(&out, (me + 1) % size, &mut back, (me + size - 1) % size).unwrap();
        on.barrier().unwrap();
    }
    on.synchronize().unwrap();
    rank.comm.barrier().unwrap();
}

#[test]
fn ten_thousand_operations_do_not_grow_anything() {
    let _alone = alone();
    let meeting = Meeting::new(2);
    threads(2, &config(TransportChoice::Auto), |rank| {
        rank.comm.attach(&rank.context).unwrap();
        // The thread that asks how the device is starts with the first question, after some time with work.
        let warm = Instant::now();
        loop {
            many(rank, 1000);
            let mut enough = [u8::from(warm.elapsed() > Duration::from_millis(500))];
            rank.comm.broadcast(&mut enough, 0).unwrap();
            if enough[0] != 0 {
                break;
            }
        }
        meeting.wait();
        let before = (kept(), holdings());
        meeting.wait();
        let start = Instant::now();
        many(rank, 10_000);
        meeting.wait();
        let (now, holds) = (kept(), holdings());
        println!("10,000 operations in {:.1?}: {before:?} -> {:?}", start.elapsed(), (now, holds));
        assert_eq!(now, before.0, "of the driver's");
        // Threads of other tests' streams end in their own time.
        assert!(holds[2] <= before.1[2] && holds[3] <= before.1[3], "threads, mappings");
        assert!(holds[1] <= before.1[1] + 4, "{} files, then {}", before.1[1], holds[1]);
        assert!(holds[0] < before.1[0] + 2048, "{} KiB more", holds[0] - before.1[0]);
        meeting.wait();
    });
}

/// Wait until the threads of all communicators have ended. What was dropped while another rank's stream ran is given back
/// when something else is dropped.
fn settle() {
    let context = Context::primary(0).unwrap();
    until("the end of all threads", || {
        drop(DeviceBuffer::<u8>::new(&context, 1).unwrap());
        holdings()[2] == 0
    });
}

#[test]
fn communicators_leave_nothing_behind() {
    let _alone = alone();
    testing::load();
    let _context = Context::primary(0).unwrap();
    let make_one = |ends: usize| {
        threads(3, &config(TransportChoice::Auto), |rank| {
            rank.comm.attach(&rank.context).unwrap();
            rank.sum(2000).unwrap();
            let shared = rank.comm.alloc_device::<f32>(5000).unwrap();
            let child = rank.comm.split(Some(0), -(rank.comm.rank() as i64)).unwrap().unwrap();
            child.attach(&rank.context).unwrap();
            let mut buffer = rank.full(1.0f32, 10);
            child.on(&rank.stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
            child.on(&rank.stream).synchronize().unwrap();
            match ends {
                // In good order; after an abort, with an operation in the queue that cannot end; by dropping at once.
                0 => rank.comm.barrier().unwrap(),
                1 => {
                    if rank.comm.rank() == 0 {
                        rank.comm.abort("the end of the test");
                    } else {
                        let _ = rank.comm.on(&rank.stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum);
                    }
                    rank.comm.on(&rank.stream).synchronize().unwrap_err();
                }
                _ => rank.comm.on(&rank.stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap(),
            }
            drop(shared);
        });
    };
    // What is kept once worlds have ended in good order: after other ends it takes longer until no more is.
    let mut baseline = None;
    for ends in 0..3 {
        make_one(ends);
        settle();
        let before = (*baseline.get_or_insert_with(kept), holdings());
        (0..6).for_each(|_| make_one(ends));
        settle();
        // Streams' threads of the stand-in end by themselves, later.
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_more = |now: [usize; 4]| now[1] > before.1[1] || now[3] > before.1[3];
        while (kept() != before.0 || is_more(holdings())) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        let (now, holds) = (kept(), holdings());
        println!("6 worlds that end in way {ends}: {before:?} -> {:?}", (now, holds));
        assert_eq!(now, before.0, "way {ends}: of the driver's");
        assert!(holds[1] <= before.1[1] && holds[3] <= before.1[3], "way {ends}: files, mappings");
        assert!(holds[0] < before.1[0] + 4096, "way {ends}: {} KiB more", holds[0] - before.1[0]);
    }
}

#[test]
fn processes_leave_nothing_behind() {
    role(|_| {
        let rank = Rank::of(Communicator::from_env().unwrap());
        let make_one = || {
            let mut times = [Duration::ZERO; 4];
            let mut start = Instant::now();
            let mut lap = |which: usize| times[which] = std::mem::replace(&mut start, Instant::now()).elapsed();
            let child = rank.comm.split(Some(0), 0).unwrap().unwrap();
            lap(0);
            child.attach(&rank.context).unwrap();
            lap(1);
            let mut buffer = rank.full(1.0f32, 3000);
            child.on(&rank.stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
            child.on(&rank.stream).synchronize().unwrap();
            lap(2);
            drop(child);
            lap(3);
            times
        };
        (0..3).for_each(|_| {
            make_one();
        });
        rank.comm.barrier().unwrap();
        let before = (kept(), holdings());
        let times: Vec<_> = (0..20).map(|_| make_one()).collect();
        rank.comm.barrier().unwrap();
        until("the end of what was dropped", || {
            drop(rank.full(0u8, 1));
            kept().iter().zip(&before.0).all(|(now, before)| now <= before)
        });
        let holds = holdings();
        assert!(holds[1] <= before.1[1], "{} files, then {}", before.1[1], holds[1]);
        assert!(holds[3] <= before.1[3], "{} shared mappings, then {}", before.1[3], holds[3]);
        let counters = testing::load().counters();
        assert_eq!((counters.overruns, counters.freed_while_open), (0, 0));
        // What each step always takes: a busy machine adds to some of them, a wait that need not be to all.
        let names = ["split", "attach", "use", "close"];
        let least = [0, 1, 2, 3].map(|which| times.iter().map(|times| times[which]).min().unwrap());
        let slow = least.iter().any(|least| *least > Duration::from_millis(250));
        say(format!("{} {names:?} {least:.1?}", if slow { "slow:" } else { "fine:" }));
    });
    let mut job = Job::start("processes_leave_nothing_behind", "", 3, &streams::environment());
    let said = job.hear(&[0, 1, 2]);
    println!("{said:#?}");
    assert!(said.iter().all(|(_, line)| line.starts_with("fine")), "{said:#?}");
    job.end(&[0, 1, 2]);
}
