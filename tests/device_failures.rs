//! What ranks are told when an operation on a stream does not end: all the same, soon, and who it was; and the streams go
//! on.

mod ranks;
mod streams;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::cuda::DeviceBuffer;
use maypole::{Call, Collective, Communicator, DataType, Error, ReduceOp, Result, Verdict};
use maypole_cuda_emulator::testing;
use nix::sys::signal::Signal;
use ranks::{Job, Meeting, PATIENCE, common_verdict, config, role, say, verdict};
use streams::{Rank, alone, threads, until};

const COUNT: usize = 5000;

type Wait = fn(&Rank, &mut DeviceBuffer<f32>) -> Result<()>;

/// Every way in which a stream can wait for rank 0, which does not come.
fn waits() -> Vec<(&'static str, Wait)> {
    vec![
        ("all_reduce", |r, b| r.comm.on(&r.stream).all_reduce_in_place(b, ReduceOp::Sum)),
        ("barrier", |r, _| r.comm.on(&r.stream).barrier()),
        ("broadcast", |r, b| r.comm.on(&r.stream).broadcast(b, 0)),
        ("recv", |r, b| r.comm.on(&r.stream).recv(b, 0)),
        ("send", |r, _| r.comm.on(&r.stream).send(&r.full(1.0f32, 2 << 20), 0)),
    ]
}

/// What a rank saw.
struct Seen {
    error: Error,
    took: Duration,
    /// Whether what was to be written was left alone.
    untouched: bool,
}

/// Ranks other than 0 queue `wait` and wait for the end; `zero` is what rank 0 does instead. One barrier before, one
/// after.
fn without_rank_0(timeout: Duration, wait: Wait, zero: impl Fn(&Rank) + Sync) -> Vec<Seen> {
    let meeting = Meeting::new(3);
    threads(3, &config(TransportChoice::Auto), |rank| {
        // Attaching may take longer.
        rank.sum(COUNT).unwrap();
        rank.comm.set_timeout(timeout);
        let mut buffer = rank.full(7.0f32, COUNT);
        meeting.wait();
        let start = Instant::now();
        let error = if rank.comm.rank() == 0 {
            zero(rank);
            until("a verdict", || rank.comm.verdict().is_some());
            rank.sum(1).expect_err("it has failed")
        } else {
            let end = wait(rank, &mut buffer).and_then(|()| rank.comm.on(&rank.stream).synchronize());
            end.expect_err("rank 0 does not come")
        };
        let took = start.elapsed();
        // The stream goes on.
        rank.stream.synchronize().unwrap();
        let untouched = rank.read(&buffer).iter().all(|x| *x == 7.0);
        // And it stays so, on streams and off.
        assert_eq!(verdict(&rank.sum(3).unwrap_err()), verdict(&error));
        assert_eq!(verdict(&rank.comm.barrier().unwrap_err()), verdict(&error));
        meeting.wait();
        Seen { error, took, untouched }
    })
}

fn verdict_of(seen: &[Seen]) -> Verdict {
    assert!(seen.iter().all(|s| s.untouched), "an output was touched");
    common_verdict(&seen.iter().map(|s| s.error.clone()).collect::<Vec<_>>())
}

#[test]
fn a_rank_that_never_comes_is_named_at_the_deadline() {
    let _alone = alone();
    let timeout = Duration::from_millis(400);
    for (what, wait) in waits() {
        let seen = without_rank_0(timeout, wait, |_| ());
        println!("{what}: {:.1?}", seen.iter().map(|s| s.took).collect::<Vec<_>>());
        let said = verdict_of(&seen);
        let Verdict::Stalled { culprits, after, .. } = &said else { panic!("{what}: {said}") };
        let [(0, host, state)] = &culprits[..] else { panic!("{what}: {said}") };
        assert!(!host.is_empty() && state.contains("its latest operation was all_reduce on device #"), "{said}");
        assert_eq!(*after, timeout);
        assert!(seen[1..].iter().any(|s| s.took >= timeout), "{what}: too early");
        assert!(seen.iter().all(|s| s.took < PATIENCE / 4), "{what}: too late");
    }
}

#[test]
fn the_deadline_counts_from_the_operations_start_on_the_stream() {
    let _alone = alone();
    let timeout = Duration::from_millis(300);
    let meeting = Meeting::new(2);
    threads(2, &config(TransportChoice::Auto), |rank| {
        rank.sum(COUNT).unwrap();
        rank.comm.set_timeout(timeout);
        // Memory that is given back waits for the device, and so would whoever wants to queue meanwhile.
        meeting.wait();
        // Both streams are busy with something else for much longer than that.
        let go = Arc::new(AtomicBool::new(false));
        let gone = go.clone();
        rank.stream
            .host_function(move || {
                while !gone.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
            .unwrap();
        let mut buffer = rank.full(1.0f32, COUNT);
        rank.comm.on(&rank.stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
        std::thread::sleep(3 * timeout);
        assert_eq!(rank.comm.verdict(), None);
        go.store(true, Ordering::Relaxed);
        rank.comm.on(&rank.stream).synchronize().unwrap();
        assert!(rank.read(&buffer).iter().all(|x| *x == 2.0));
        // Nobody frees memory, which would wait for the other's stream, before both are here.
        rank.comm.barrier().unwrap();
    });
}

#[test]
fn abort_ends_every_wait_on_a_stream() {
    let _alone = alone();
    for (what, wait) in waits() {
        let seen = without_rank_0(PATIENCE, wait, |rank| {
            std::thread::sleep(Duration::from_millis(60));
            rank.comm.abort("the loss is not a number");
        });
        println!("{what}: {:.1?}", seen.iter().map(|s| s.took).collect::<Vec<_>>());
        assert_eq!(verdict_of(&seen), Verdict::Aborted { rank: 0, why: "the loss is not a number".into() }, "{what}");
        assert!(seen.iter().all(|s| s.took < PATIENCE / 4), "{what}: too late");
    }
}

#[test]
fn a_thread_that_leaves_or_panics_is_named() {
    let _alone = alone();
    for (what, wait) in waits() {
        for panics in [false, true] {
            let meeting = Meeting::new(3);
            let errors = threads_that_may_leave(|rank| {
                rank.sum(COUNT).unwrap();
                let mut buffer = rank.full(7.0f32, COUNT);
                meeting.wait();
                if rank.comm.rank() == 0 {
                    if panics {
                        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                            let _held = rank;
                            std::panic::resume_unwind(Box::new("a test's panic"));
                        }));
                        panicked.expect_err("it panicked");
                    }
                    return None;
                }
                let end = wait(&rank, &mut buffer).and_then(|()| rank.comm.on(&rank.stream).synchronize());
                Some(end.expect_err("rank 0 is gone"))
            });
            let said = common_verdict(&errors);
            let Verdict::Died { rank: 0, host, how } = &said else { panic!("{what}: {said}") };
            assert!(!host.is_empty() && (!panics || how.contains("panic")), "{what}: {said}");
        }
    }
}

fn threads_that_may_leave(body: impl Fn(Rank) -> Option<Error> + Sync) -> Vec<Error> {
    testing::load();
    let results = ranks::threads(3, &config(TransportChoice::Auto), |comm| body(Rank::of(comm)));
    results.into_iter().flatten().collect()
}

#[test]
fn a_rank_that_has_queued_its_part_may_leave() {
    let _alone = alone();
    for late in 0..3 {
        threads_that_may_leave(|rank| {
            let me = rank.comm.rank();
            if me == late {
                std::thread::sleep(Duration::from_millis(20));
            }
            let mut sum = rank.full(1.0f32, COUNT);
            let mut told = rank.full(me as u64, 3);
            let on = rank.comm.on(&rank.stream);
            on.all_reduce_in_place(&mut sum, ReduceOp::Sum).unwrap();
            on.broadcast(&mut told, 1).unwrap();
            // Dropped with everything queued.
            let Rank { comm, stream, context } = rank;
            drop(comm);
            assert!(sum.to_vec(&stream).unwrap().iter().all(|x| *x == 3.0));
            assert_eq!(told.to_vec(&stream).unwrap(), [1; 3]);
            drop(context);
            None
        });
    }
}

/// The text without the rank that tells it: it must be the same everywhere.
fn told<'a>(lines: &[&'a str]) -> &'a str {
    let without = |line: &'a str| line.split_once(": ").map_or(line, |(_, rest)| rest);
    let first = without(lines[0]);
    assert!(lines.iter().all(|line| without(line) == first), "different verdicts: {lines:#?}");
    first
}

/// What all processes of a machine call now.
fn now() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("there is such a clock").into()
}

#[test]
fn a_killed_process_is_named_at_once_while_streams_wait() {
    role(|role| {
        let rank = Rank::of(Communicator::from_env().unwrap());
        let count = if role == "large" { 1 << 18 } else { 4 };
        (0..5).for_each(|_| rank.sum(count).unwrap());
        say("ready");
        let error = if role == "queued" {
            // The stream waits for the victim, which computes; nobody waits for the stream.
            if rank.comm.rank() == 2 {
                std::thread::sleep(PATIENCE);
            }
            let mut buffer = rank.full(1.0f32, count);
            rank.comm.on(&rank.stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
            until("a verdict", || rank.comm.verdict().is_some());
            rank.comm.on(&rank.stream).synchronize().unwrap_err()
        } else {
            loop {
                if let Err(error) = rank.sum(count) {
                    break error;
                }
            }
        };
        let named = now();
        // The stream goes on.
        rank.stream.synchronize().unwrap();
        say(format!("{} {} {error}", named.as_nanos(), now().as_nanos()));
    });
    let _alone = alone();
    let test = "a_killed_process_is_named_at_once_while_streams_wait";
    for what in ["small", "large", "queued"] {
        let mut job = Job::start(test, what, 4, &streams::environment());
        job.hear(&[0, 1, 2, 3]);
        std::thread::sleep(Duration::from_millis(50));
        let killed = now();
        job.signal(2, Signal::SIGKILL);
        let lines = job.hear(&[0, 1, 3]);
        // In the survivors, each of which says when it was told and when its stream had gone on.
        let mut slowest = [Duration::ZERO; 2];
        let mut texts = Vec::new();
        for (_, line) in &lines {
            let [named, went_on, text] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            for (slowest, at) in slowest.iter_mut().zip([named, went_on]) {
                *slowest = (*slowest).max(Duration::from_nanos(at.parse().unwrap()) - killed);
            }
            texts.push(text);
        }
        println!("{what}: all told within {:.1?}, and their streams went on within {:.1?}", slowest[0], slowest[1]);
        let text = told(&texts);
        assert!(text.contains("rank 2 on host ") && text.contains("is gone"), "{text}");
        // The deadline is not what found it.
        assert!(slowest.iter().all(|took| *took < PATIENCE / 3), "{what}: {slowest:?}");
        job.end(&[0, 1, 3]);
    }
}

/// A call as one rank makes it: collective, type, elements, operation, root; on the host if the last is set.
type Made = (Collective, DataType, usize, ReduceOp, usize, bool);

/// Make the call. Returns how it ended, and whether nothing of other ranks came into the output.
fn make(rank: &Rank, (collective, dtype, count, op, root, on_host): Made) -> (Result<()>, bool) {
    let call = Call { collective, dtype, count, op, root };
    let bytes = dtype.size() * count;
    let (me, size) = (rank.comm.rank(), rank.comm.size());
    // The schedule may give a rank its own block before it has heard of the others.
    let own = me as u8 + 1;
    let input = vec![own; collective.input_blocks(me, size, root) * bytes];
    let mut output = vec![7u8; collective.output_blocks(me, size, root) * bytes];
    if on_host {
        // What ranks on the host that agree have given each other may be there.
        return (rank.comm.call(call, &input, &mut output), true);
    }
    let input = DeviceBuffer::from_slice(&rank.context, &input).unwrap();
    let mut output = DeviceBuffer::from_slice(&rank.context, &output).unwrap();
    let on = rank.comm.on(&rank.stream);
    let done = on.call(call, input.slice(..), output.slice_mut(..)).and_then(|()| on.synchronize());
    rank.stream.synchronize().unwrap();
    (done, rank.read(&output).iter().all(|x| *x == 7 || *x == own))
}

#[test]
fn ranks_that_call_different_things_see_both_sides() {
    let _alone = alone();
    use Collective::{AllGather, AllReduce, AllToAll, Barrier, Broadcast, ReduceScatter};
    let sum = ReduceOp::Sum;
    for n in [6, 60_000] {
        let usual: Made = (AllReduce, DataType::F32, n, sum, 0, false);
        let told: Made = (Broadcast, DataType::F32, n, sum, 0, false);
        let cases: [(&str, Made, Made, &[&str]); 9] = [
            ("collective", usual, (AllGather, DataType::F32, n, sum, 0, false), &["all_reduce", "all_gather"]),
            ("barrier", usual, (Barrier, DataType::U8, 0, sum, 0, false), &["all_reduce", "barrier"]),
            ("count", usual, (AllReduce, DataType::F32, n + 1, sum, 0, false), &["x f32"]),
            ("dtype", usual, (AllReduce, DataType::I32, n, sum, 0, false), &["x f32", "x i32"]),
            ("op", usual, (AllReduce, DataType::F32, n, ReduceOp::Max, 0, false), &["sum", "max"]),
            ("root", told, (Broadcast, DataType::F32, n, sum, 1, false), &["root 0", "root 1"]),
            ("host", usual, (AllReduce, DataType::F32, n, sum, 0, true), &["all_reduce on device", "all_reduce #"]),
            (
                "to all",
                (AllToAll, DataType::F32, n, sum, 0, false),
                (ReduceScatter, DataType::F32, n, sum, 0, false),
                &["all_to_all", "reduce_scatter"],
            ),
            (
                "host and device",
                (AllReduce, DataType::F32, n, sum, 0, true),
                usual,
                &["all_reduce on device", "all_reduce #"],
            ),
        ];
        for (what, most, one, parts) in cases {
            for odd in [0, 2] {
                let meeting = Meeting::new(3);
                let began = Instant::now();
                let seen = threads(3, &streams::small(), |rank| {
                    rank.sum(COUNT).unwrap();
                    // The last is through before the first has a verdict for all.
                    meeting.wait();
                    let (done, untouched) = make(rank, if rank.comm.rank() == odd { one } else { most });
                    let error = match done {
                        Err(error) => error,
                        // What it gave was all that its call asked of it; it learns of it at the next.
                        Ok(()) => {
                            assert!(one.0.is_rooted(), "{what}: rank {} got a result", rank.comm.rank());
                            loop {
                                if let Err(error) = rank.sum(1) {
                                    break error;
                                }
                            }
                        }
                    };
                    meeting.wait();
                    // Of an all_to_all, what the ranks that agree give each other may be there.
                    (error, untouched || one.0.is_rooted() || most.0 == AllToAll)
                });
                println!("{what}, rank {odd}: {:.1?}", began.elapsed());
                assert!(seen.iter().all(|(_, untouched)| *untouched), "{what}, rank {odd}: an output was touched");
                let said = common_verdict(&seen.into_iter().map(|(error, _)| error).collect::<Vec<_>>());
                let Verdict::Mismatch { .. } = said else { panic!("{what}, rank {odd}: {said}") };
                let text = said.to_string();
                assert!(parts.iter().all(|part| text.contains(part)), "{what}: {text}");
                assert!(text.contains(&format!("rank {odd} ")), "{what}: {text}");
            }
        }
    }
}
