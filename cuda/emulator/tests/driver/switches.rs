//! Each switch does what it says. Those of memory, IPC, modules and loading are tested beside their subjects.

use crate::cuda::*;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Passes data from one stream to another `times` times, guarded by a word. How often the reader saw old data.
fn stale_reads(times: u32) -> u32 {
    let (writer, reader, memory, ready, done) =
        (Stream::new(), Stream::new(), Memory::new(8), Word::new(0), Word::new(0));
    let mut at = std::ptr::null_mut();
    cu!(cuMemAllocHost_v2(&mut at, times as usize * 4));
    for round in 0..times {
        cu!(cuStreamWaitValue32_v2(writer.0, done.at(), round, 0));
        cu!(cuMemsetD32Async(memory.at, round, 1, writer.0));
        cu!(cuStreamWriteValue32_v2(writer.0, ready.at(), round + 1, 0));
        cu!(cuStreamWaitValue32_v2(reader.0, ready.at(), round + 1, 0));
        let place = at.cast::<u32>().wrapping_add(round as usize);
        cu!(cuMemcpyDtoHAsync_v2(place.cast::<c_void>(), memory.at, 4, reader.0));
        cu!(cuStreamWriteValue32_v2(reader.0, done.at(), round + 1, 0));
    }
    writer.synchronize();
    reader.synchronize();
    // SAFETY: as many words were allocated, and all copies into them have ended.
    let seen = unsafe { std::slice::from_raw_parts(at.cast::<u32>(), times as usize) };
    let stale = seen.iter().zip(0..).filter(|(seen, round)| *seen != round).count();
    cu!(cuMemFreeHost(at));
    stale as u32
}

#[test]
fn chaos_breaks_nothing_that_is_ordered() {
    let _alone = alone();
    let _here = Here::beside(0);
    for seed in 1..5 {
        emulator().set("CHAOS", &seed.to_string());
        assert_eq!(stale_reads(100), 0, "seed {seed}");
    }
}

#[test]
fn a_dropped_wait_is_seen() {
    let _alone = alone();
    let _here = Here::beside(0);
    let seeds = ["1", "2", "3"];
    for seed in seeds {
        emulator().set("CHAOS", seed);
        emulator().set("DROP", "wait:all");
        assert!(stale_reads(100) > 0, "seed {seed}: nothing waited, and nothing was stale");
        emulator().set("DROP", "");
        assert_eq!(stale_reads(20), 0);
    }
}

#[test]
fn a_dropped_write_holds_up_whoever_waits_for_it() {
    let _alone = alone();
    let _here = Here::beside(0);
    let (first, second, word) = (Stream::new(), Stream::new(), Word::new(0));
    let before = emulator().counters().dropped;
    emulator().set("DROP", "write:2");
    cu!(cuStreamWriteValue32_v2(first.0, word.at(), 1, 0));
    cu!(cuStreamWriteValue32_v2(first.0, word.at(), 2, 0));
    cu!(cuStreamWaitValue32_v2(second.0, word.at(), 2, 0));
    first.synchronize();
    a_while();
    assert_eq!((word.get(), second.is_idle()), (1, false));
    assert_eq!(emulator().counters().dropped, before + 1);
    word.set(2);
    second.synchronize();
}

#[test]
fn dropped_events_and_default_stream_order_are_seen() {
    let _alone = alone();
    let _here = Here::beside(0);
    let (held, waiting, word, mut event) = (Stream::blocking(), Stream::new(), Word::new(0), std::ptr::null_mut());
    let memory = Memory::new(4);
    cu!(cuEventCreate(&mut event, 2));
    word.hold(held.0);
    cu!(cuEventRecord(event, held.0));
    emulator().set("DROP", "event:1,legacy:1");
    cu!(cuStreamWaitEvent(waiting.0, event, 0));
    waiting.synchronize();
    cu!(cuMemsetD32_v2(memory.at, 1, 1));
    cu!(cuStreamSynchronize(std::ptr::null_mut()));
    assert!(!held.is_idle());
    cu!(cuStreamWaitEvent(waiting.0, event, 0));
    cu!(cuMemsetD32_v2(memory.at, 1, 1));
    a_while();
    assert!(!waiting.is_idle() && !is_idle(std::ptr::null_mut()), "only the first of each was dropped");
    word.set(1);
}

#[test]
fn a_write_without_barrier_overtakes_under_chaos() {
    let _alone = alone();
    let _here = Here::beside(0);
    let mut overtaken = [0, 0];
    for (barrier, overtaken) in [true, false].into_iter().zip(&mut overtaken) {
        emulator().set("CHAOS", "3");
        let (stream, gate, memory) = (Stream::new(), Word::new(0), Memory::new(64 << 20));
        let (mut seen, none) = (0, 16 << 20);
        for round in 1..40u32 {
            let word = Word::new(0);
            gate.set(0);
            gate.hold(stream.0);
            cu!(cuMemsetD32Async(memory.at, round, none, stream.0));
            assert_eq!(write_as_before(&stream, &word, 1, if barrier { 0 } else { 1 }), 0);
            gate.set(1);
            until("the write", || word.get() == 1);
            // SAFETY: a word of device memory, which is host memory here; whether the fill has come so far is the test.
            let last = unsafe { AtomicU32::from_ptr((memory.at + (64 << 20) - 4) as *mut u32) }.load(SeqCst);
            seen += u32::from(last != round);
            stream.synchronize();
            if seen > 3 {
                break;
            }
        }
        *overtaken = seen;
    }
    assert_eq!(overtaken[0], 0, "with its barrier a write is never early");
    assert!(overtaken[1] > 0, "without it, some are");
}

#[test]
fn the_nth_call_fails() {
    let _alone = alone();
    let _here = Here::beside(0);
    let calls = emulator().calls("cuMemAlloc");
    emulator().set("FAIL", "cuMemAlloc:2:CUDA_ERROR_OUT_OF_MEMORY,cuStreamWaitValue32:1+:719");
    let mut at = 0;
    let _first = Memory::new(4);
    assert_eq!(call!(cuMemAlloc_v2(&mut at, 4)), CUDA_ERROR_OUT_OF_MEMORY);
    let third = Memory::new(4);
    let stream = Stream::new();
    for _ in 0..2 {
        assert_eq!(call!(cuStreamWaitValue32_v2(stream.0, third.at, 0, 0)), CUDA_ERROR_LAUNCH_FAILED);
    }
    assert_eq!(emulator().calls("cuMemAlloc"), calls + 3);
    emulator().set("FAIL", "*:2:CUDA_ERROR_UNKNOWN");
    cu!(cuCtxSynchronize());
    assert_eq!(call!(cuCtxSynchronize()), CUDA_ERROR_UNKNOWN);
}

#[test]
fn without_memory_operations_the_device_says_so() {
    let _alone = alone();
    let _here = Here::beside(0);
    emulator().set("MEMORY_OPERATIONS", "0");
    let (stream, memory, mut can) = (Stream::new(), Memory::new(4), -1);
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_MEM_OPS_V1;
    cu!(cuDeviceGetAttribute(&mut can, attribute, 0));
    assert_eq!(can, 0);
    assert_eq!(call!(cuStreamWriteValue32_v2(stream.0, memory.at, 1, 0)), CUDA_ERROR_NOT_SUPPORTED);
    emulator().set("MEMORY_OPERATIONS", "1");
    cu!(cuDeviceGetAttribute(&mut can, attribute, 0));
    assert_eq!(can, 1);
}

#[test]
fn refused_registration_and_peers() {
    let _alone = alone();
    let there = Here::beside(1);
    let _here = Here::beside(0);
    emulator().set("HOST_REGISTER", "0");
    emulator().set("PEER_ACCESS", "0");
    let (mut word, mut can) = ([0u32; 4], -1);
    assert_eq!(call!(cuMemHostRegister_v2(word.as_mut_ptr().cast(), 16, 3)), CUDA_ERROR_NOT_SUPPORTED);
    cu!(cuDeviceCanAccessPeer(&mut can, 0, 1));
    assert_eq!(can, 0);
    assert_eq!(call!(cuCtxEnablePeerAccess(there.context, 0)), CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
}

#[test]
fn few_hardware_queues_put_streams_behind_each_other() {
    let _alone = alone();
    let _here = Here::beside(0);
    for (queues, held_up) in [("0", false), ("1", true)] {
        emulator().set("CONNECTIONS", queues);
        let (first, second, word, memory) = (Stream::new(), Stream::new(), Word::new(0), Memory::new(4));
        word.hold(first.0);
        cu!(cuMemsetD32Async(memory.at, 1, 1, second.0));
        if held_up {
            a_while();
            assert!(!second.is_idle());
        } else {
            second.synchronize();
        }
        word.set(1);
        second.synchronize();
    }
}

const RUNS: u32 = 7;

/// Says that it runs, and returns when the word is 1; at once if it is.
unsafe extern "C" fn poll(word: *mut c_void) {
    // SAFETY: the test passes a word of its own, which lives until the stream is done.
    let word = unsafe { AtomicU32::from_ptr(word.cast()) };
    let _ = word.compare_exchange(0, RUNS, SeqCst, SeqCst);
    while word.load(SeqCst) != 1 {
        std::thread::yield_now();
    }
}

#[test]
fn host_functions_run_one_at_a_time_unless_told_otherwise() {
    let _alone = alone();
    let _here = Here::beside(0);
    for (mode, held_up) in [("serial", true), ("parallel", false)] {
        emulator().set("HOST_FUNCTIONS", mode);
        let (first, second) = (Stream::new(), Stream::new());
        let (slow, fast) = (AtomicU32::new(0), AtomicU32::new(1));
        cu!(cuLaunchHostFunc(first.0, Some(poll), slow.as_ptr().cast()));
        until("the first runs", || slow.load(SeqCst) == RUNS);
        cu!(cuLaunchHostFunc(second.0, Some(poll), fast.as_ptr().cast()));
        let deadline = Instant::now() + if held_up { Duration::from_millis(30) } else { Duration::from_secs(10) };
        while !second.is_idle() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        // Let go before anything can fail: the first reads this test's own word.
        let was_held_up = !second.is_idle();
        slow.store(1, SeqCst);
        second.synchronize();
        first.synchronize();
        assert_eq!(was_held_up, held_up, "{mode}");
    }
}

#[test]
fn an_old_driver_says_how_old() {
    let _alone = alone();
    let mut version = 0;
    emulator().set("DRIVER_VERSION", "11020");
    cu!(cuDriverGetVersion(&mut version));
    assert_eq!(version, 11020);
}

#[test]
fn counters_count() {
    let _alone = alone();
    let _here = Here::beside(0);
    let before = emulator().counters();
    let (memory, stream, word, mut event) = (Memory::new(1000), Stream::new(), Word::new(0), std::ptr::null_mut());
    cu!(cuEventCreate(&mut event, 0));
    let during = emulator().counters();
    assert_eq!((during.allocations, during.bytes), (before.allocations + 1, before.bytes + 1000));
    assert_eq!((during.streams, during.events), (before.streams + 1, before.events + 1));
    assert_eq!(during.registered, before.registered + 1);
    cu!(cuEventDestroy_v2(event));
    drop((memory, stream, word));
    let after = emulator().counters();
    assert_eq!((after.allocations, after.streams, after.events), (before.allocations, before.streams, before.events));
    assert_eq!((after.bytes, after.registered), (before.bytes, before.registered));
}
