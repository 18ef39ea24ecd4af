//! What is wrong with buffers, streams, devices and drivers gets an error that names it, before anything is queued: no
//! hang, no wrong data, and the communicator goes on wherever that is possible.

mod ranks;
mod streams;

use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::cuda::{Context, DeviceBuffer, DeviceSlice, DeviceSliceMut, Stream};
use maypole::{Communicator, Error, ReduceOp, Result, Verdict};
use maypole_cuda_emulator::testing;
use ranks::{Job, Meeting, PATIENCE, config, role, say};
use streams::{Rank, alone, threads};

/// An error that refuses a call, and says all of `parts`.
fn refused(result: Result<()>, parts: &[&str]) {
    let text = match &result {
        Err(error @ (Error::Argument { .. } | Error::Device { .. } | Error::System { .. })) => error.to_string(),
        other => panic!("not refused ({parts:?}): {other:?}"),
    };
    assert!(parts.iter().all(|part| text.contains(part)), "not {parts:?} in: {text}");
}

/// `len` elements at an address that need not be device memory: calls must find out before they queue anything.
fn at<T>(address: u64, len: usize) -> DeviceSliceMut<'static, T> {
    // SAFETY: nothing is queued with it, which is what the tests here are about.
    unsafe { DeviceSliceMut::from_raw(address, len) }
}

#[test]
fn buffers_that_are_not_this_devices_memory_are_refused_and_the_communicator_goes_on() {
    let _alone = alone();
    testing::load().set("DEVICES", "2");
    threads(2, &config(TransportChoice::Auto), |rank| {
        rank.sum(5000).unwrap();
        let on = rank.comm.on(&rank.stream);
        let (mut good, input) = (rank.full(7.0f32, 100), rank.full(1.0f32, 100));
        let other = Context::primary(1).unwrap();
        let elsewhere = DeviceBuffer::<f32>::new(&other, 100).unwrap();
        let mut on_host = vec![7.0f32; 100];
        for round in 0..2 {
            // Really freed: a dropped `DeviceBuffer` may wait for its end. Nobody allocates meanwhile.
            let freed = maypole_cuda::DeviceMemory::new(&rank.context, 64 << 20).unwrap().address();
            rank.comm.barrier().unwrap();
            // Every rank makes the same mistake.
            let sum = ReduceOp::Sum;
            refused(on.all_reduce_in_place(at::<f32>(elsewhere.address(), 100), sum), &["device 1", "device 0"]);
            refused(on.all_reduce(&elsewhere, &mut good, sum), &["input", "device 1", "device 0"]);
            refused(on.all_reduce_in_place(at::<f32>(freed, 100), sum), &["not device memory"]);
            let host = on_host.as_mut_ptr() as u64;
            refused(on.all_reduce(&input, at::<f32>(host, 100), sum), &["output", "not device memory", "host"]);
            refused(on.all_reduce_in_place(at::<f32>(1 << 20, 100), sum), &["not device memory"]);
            refused(on.all_reduce_in_place(at::<f32>(good.address(), 1 << 30), sum), &["reach beyond"]);
            refused(on.broadcast(at::<f32>(host, 100), 0), &["broadcast", "not device memory"]);
            let peer = 1 - rank.comm.rank();
            refused(on.send(at_const(host), peer), &["send", "not device memory"]);
            refused(on.recv(at::<f32>(freed, 100), peer), &["recv", "not device memory"]);
            assert_eq!(rank.read(&good), [7.0; 100]);
            assert_eq!(on_host, [7.0; 100]);
            rank.comm.barrier().unwrap();
            rank.sum(5000).unwrap_or_else(|error| panic!("round {round}: {error}"));
            rank.comm.barrier().unwrap();
        }
        assert_eq!(rank.comm.verdict(), None);
    });
    testing::load().set("DEVICES", "1");
}

fn at_const(address: u64) -> DeviceSlice<'static, f32> {
    // SAFETY: as for `at`.
    unsafe { DeviceSlice::from_raw(address, 100) }
}

#[test]
fn one_ranks_mistake_reaches_the_others() {
    let _alone = alone();
    let seen = threads(2, &config(TransportChoice::Auto), |rank| {
        rank.sum(5000).unwrap();
        let on = rank.comm.on(&rank.stream);
        let mut buffer = rank.full(7.0f32, 100);
        let start = Instant::now();
        let error = if rank.comm.rank() == 0 {
            let mut host = vec![7.0f32; 100];
            refused(on.all_reduce_in_place(at::<f32>(host.as_mut_ptr() as u64, 100), ReduceOp::Sum), &["host"]);
            streams::until("a verdict", || rank.comm.verdict().is_some());
            on.synchronize().unwrap_err()
        } else {
            on.all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
            on.synchronize().unwrap_err()
        };
        assert!(start.elapsed() < PATIENCE / 4);
        assert_eq!(rank.read(&buffer), [7.0; 100]);
        error
    });
    let said = ranks::common_verdict(&seen);
    assert!(matches!(&said, Verdict::Refused { rank: 0, why, .. } if why.contains("not device memory")), "{said}");
}

#[test]
fn streams_of_another_context_and_captured_ones_are_refused() {
    let _alone = alone();
    testing::load().set("DEVICES", "2");
    threads(2, &config(TransportChoice::Auto), |rank| {
        rank.sum(5000).unwrap();
        let peer = 1 - rank.comm.rank();
        let other = Context::primary(1).unwrap();
        let stream = Stream::new(&other).unwrap();
        let mut elsewhere = DeviceBuffer::<f32>::new(&other, 100).unwrap();
        refused(rank.comm.on(&stream).all_reduce_in_place(&mut elsewhere, ReduceOp::Sum), &["attached"]);
        refused(rank.comm.on(&stream).recv(&mut elsewhere, peer), &["stream", "device 1", "device 0"]);
        refused(rank.comm.attach(&other), &["attached"]);

        let mut buffer = rank.full(1.0f32, 100);
        let on = rank.comm.on(&rank.stream);
        streams::begin_capture(&rank.stream);
        refused(on.all_reduce_in_place(&mut buffer, ReduceOp::Sum), &["captured"]);
        refused(on.barrier(), &["captured"]);
        refused(on.send(&buffer, peer), &["captured"]);
        streams::end_capture(&rank.stream);
        rank.sum(5000).unwrap();
        assert_eq!(rank.comm.verdict(), None);
        rank.comm.barrier().unwrap();
    });
    testing::load().set("DEVICES", "1");
}

/// What a process without what it needs says, and that it can go on with buffers in host memory.
fn say_how_it_ends() {
    let comm = Communicator::from_env().unwrap();
    let mut sum = [comm.rank() as f32 + 1.0];
    // A rank without a device says so itself; the others are told when they attach.
    let outcome = comm.attach_found(&Context::primary(0));
    comm.all_reduce_in_place(&mut sum, ReduceOp::Sum).unwrap();
    assert_eq!(sum, [3.0], "host memory still serves");
    match outcome {
        Ok(()) => say("fine"),
        Err(error) => say(error),
    }
}

#[test]
fn a_rank_without_what_it_needs_says_why_to_all_and_host_memory_still_serves() {
    role(|_| say_how_it_ends());
    let cases: [(&str, &[&str]); 5] = [
        ("MAYPOLE_EMULATOR_DEVICES=0", &["no device"]),
        ("MAYPOLE_EMULATOR_DRIVER_VERSION=11080", &["11.8", "12.4", "newer"]),
        ("MAYPOLE_EMULATOR_IPC=off", &["IPC", "MAYPOLE_DEVICE_STAGING=host", "--ipc=host --pid=host"]),
        ("MAYPOLE_EMULATOR_MEMORY=1M", &["no room", "bytes"]),
        ("MAYPOLE_EMULATOR_HOST_REGISTER=off", &["cuMemHostRegister"]),
    ];
    for (switch, parts) in cases {
        let (name, value) = switch.split_once('=').unwrap();
        let place = |rank: usize| {
            let own = if rank == 1 { vec![(name, value.to_string())] } else { Vec::new() };
            (rank, 2, own)
        };
        let test = "a_rank_without_what_it_needs_says_why_to_all_and_host_memory_still_serves";
        let mut job = Job::start_at(test, "", &[place(0), place(1)], &streams::environment());
        for (_, line) in job.hear(&[0, 1]) {
            println!("{switch}: {line}");
            assert!(parts.iter().all(|part| line.contains(part)), "{switch}: not {parts:?} in: {line}");
            assert!(line.contains("rank 1"), "{switch}: who? {line}");
        }
        job.end(&[0, 1]);
    }
}

#[test]
fn with_staging_in_host_memory_ipc_is_not_needed() {
    role(|_| {
        let rank = Rank::of(Communicator::from_env().unwrap());
        rank.sum(100_000).unwrap();
        say("fine");
    });
    let mut extra = streams::environment();
    extra.extend([("MAYPOLE_EMULATOR_IPC", "off"), ("MAYPOLE_DEVICE_STAGING", "host")]);
    let mut job = Job::start("with_staging_in_host_memory_ipc_is_not_needed", "", 2, &extra);
    assert!(job.hear(&[0, 1]).iter().all(|(_, line)| line == "fine"));
    job.end(&[0, 1]);
}

/// A world of two that attaches, sums twice and says how each rank fared; with the nth call of the driver's failing.
fn a_world_in_which_a_call_fails(nth: Option<u64>, first: bool) -> (Vec<Result<()>>, u64) {
    let emulator = testing::load();
    let meeting = Meeting::new(2);
    let calls = std::sync::atomic::AtomicU64::new(0);
    let results = threads(2, &config(TransportChoice::Auto), |rank| {
        let count = 50_000;
        let (input, mut output) = (rank.full(1.0f32, count), rank.full(7.0f32, count));
        if !first {
            rank.sum(count).unwrap();
        }
        if meeting.wait() {
            let before = emulator.calls("*");
            calls.store(before, std::sync::atomic::Ordering::Relaxed);
            if let Some(nth) = nth {
                emulator.set("FAIL", &format!("*:{nth}:CUDA_ERROR_UNKNOWN"));
            }
        }
        meeting.wait();
        let start = Instant::now();
        let on = rank.comm.on(&rank.stream);
        let mut done = on.all_reduce(&input, &mut output, ReduceOp::Sum).and_then(|()| on.synchronize());
        assert!(start.elapsed() < PATIENCE / 4, "call {nth:?} failed, and rank {} hung", rank.comm.rank());
        if meeting.wait() {
            calls
                .fetch_update(std::sync::atomic::Ordering::Relaxed, std::sync::atomic::Ordering::Relaxed, |before| {
                    Some(emulator.calls("*") - before)
                })
                .unwrap();
            emulator.set("FAIL", "");
        }
        meeting.wait();
        rank.stream.synchronize().unwrap();
        let result = rank.read(&output);
        if done.is_ok() {
            assert!(
                result.iter().all(|x| *x == 2.0),
                "call {nth:?} failed, and rank {} got wrong data",
                rank.comm.rank()
            );
        }
        // A verdict that comes late is for both all the same.
        std::thread::sleep(Duration::from_millis(if nth.is_some() { 5 } else { 0 }));
        meeting.wait();
        if let Some(verdict) = rank.comm.verdict() {
            done = done.and(Err(Error::Failed { rank: rank.comm.rank(), verdict }));
        } else {
            // Nothing was begun, or all of it ended: host memory serves as before.
            let mut ones = [1.0f32];
            rank.comm.all_reduce_in_place(&mut ones, ReduceOp::Sum).unwrap();
            assert_eq!(ones, [2.0]);
            if done.is_ok() {
                rank.sum(100).unwrap();
            }
        }
        meeting.wait();
        done
    });
    (results, calls.load(std::sync::atomic::Ordering::Relaxed))
}

#[test]
fn whichever_call_of_the_driver_fails_nobody_hangs_or_gets_wrong_data() {
    let _alone = alone();
    for first in [true, false] {
        let (results, calls) = a_world_in_which_a_call_fails(None, first);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert!(calls > 5, "{calls} calls");
        let (mut clean, mut told) = (0, 0);
        // All of those of an operation; of the many of attaching a sample.
        for nth in (1..=calls + 2).step_by((calls / 60).max(1) as usize) {
            let (results, _) = a_world_in_which_a_call_fails(Some(nth), first);
            if results.iter().all(Result::is_ok) {
                clean += 1;
                continue;
            }
            told += 1;
            let failed: Vec<&Error> = results.iter().filter_map(|r| r.as_ref().err()).collect();
            assert!(failed.iter().any(|e| e.to_string().contains("CUDA_ERROR_UNKNOWN")), "call {nth}: {results:?}");
            let verdicts: Vec<_> = failed
                .iter()
                .filter_map(|e| match e {
                    Error::Failed { verdict, .. } => Some(verdict),
                    _ => None,
                })
                .collect();
            assert!(verdicts.windows(2).all(|pair| pair[0] == pair[1]), "call {nth}: {results:?}");
        }
        println!("first: {first}: {calls} calls; {told} failures told, {clean} without harm");
        assert!(told > 3, "{told} failures told, {clean} without harm: does the switch work?");
    }
}
