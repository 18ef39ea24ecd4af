//! Streams run beside the host and beside each other; the default stream does not.

use crate::cuda::*;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

#[test]
fn the_host_goes_on_while_a_stream_waits() {
    let _here = Here::new();
    let (stream, word, memory) = (Stream::new(), Word::new(0), Memory::new(4));
    cu!(cuMemsetD32Async(memory.at, 1, 1, stream.0));
    stream.synchronize();
    word.hold(stream.0);
    cu!(cuMemsetD32Async(memory.at, 2, 1, stream.0));
    a_while();
    assert!(!stream.is_idle());
    assert_eq!(memory.read(1), [1], "another stream is not held up, and the fill has not run");
    word.set(1);
    stream.synchronize();
    assert_eq!((memory.read(1), stream.is_idle()), (vec![2], true));
}

#[test]
fn commands_of_a_stream_run_in_their_order() {
    let _here = Here::new();
    let (stream, memory) = (Stream::new(), Memory::new(4000));
    for value in 0..200 {
        cu!(cuMemsetD32Async(memory.at, value, 1000, stream.0));
    }
    stream.synchronize();
    assert_eq!(memory.read(1000), [199; 1000]);
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams_and_they_for_it() {
    let _here = Here::new();
    let (before, after, word, memory) = (Stream::blocking(), Stream::blocking(), Word::new(0), Memory::new(8));
    word.hold(before.0);
    cu!(cuMemsetD32_v2(memory.at, 7, 1)); // returns although it waits: a fill is asynchronous
    cu!(cuMemsetD32Async(memory.at + 4, 8, 1, after.0));
    a_while();
    assert!(!is_idle(std::ptr::null_mut()), "the default stream waits for a blocking stream");
    assert!(!after.is_idle(), "a blocking stream waits for the default stream");
    word.set(1);
    after.synchronize();
    assert_eq!(memory.read(2), [7, 8]);
}

#[test]
fn non_blocking_streams_and_the_legacy_stream_do_not_know_each_other() {
    let _here = Here::new();
    let (stream, other, word, memory) = (Stream::new(), Stream::new(), Word::new(0), Memory::new(4));
    word.hold(stream.0);
    cu!(cuMemsetD32_v2(memory.at, 7, 1));
    cu!(cuStreamSynchronize(1 as sys::CUstream));
    assert!(!stream.is_idle());
    let held = Word::new(0);
    held.hold(std::ptr::null_mut());
    cu!(cuMemsetD32Async(memory.at, 9, 1, other.0));
    other.synchronize();
    assert_eq!(memory.read(1), [9]);
    assert!(!is_idle(1 as sys::CUstream));
    held.set(1);
    word.set(1);
}

#[test]
fn each_thread_has_a_default_stream() {
    let here = Here::new();
    let per_thread = 2 as sys::CUstream;
    let id = || {
        let mut id = 0;
        cu!(cuStreamGetId(2 as sys::CUstream, &mut id));
        id
    };
    let (mine, context) = (id(), here.context as usize);
    let other = std::thread::spawn(move || {
        cu!(cuCtxSetCurrent(context as sys::CUcontext));
        id()
    });
    assert_ne!(mine, other.join().unwrap());
    assert_eq!(mine, id());
    let memory = Memory::new(4);
    cu!(cuMemsetD32Async(memory.at, 5, 1, per_thread));
    cu!(cuStreamSynchronize(per_thread));
    assert_eq!(memory.read(1), [5]);
}

#[test]
fn what_a_destroyed_stream_was_given_is_done() {
    let _here = Here::new();
    let (stream, word, memory) = (Stream::new(), Word::new(0), Memory::new(4));
    word.hold(stream.0);
    cu!(cuMemsetD32Async(memory.at, 3, 1, stream.0));
    let handle = stream.0;
    drop(stream);
    assert_eq!(call!(cuStreamQuery(handle)), CUDA_ERROR_INVALID_HANDLE);
    word.set(1);
    until("the fill of a destroyed stream", || memory.read(1) == [3]);
}

/// Writes what a call of CUDA inside a host function returns.
unsafe extern "C" fn ask_in_host_function(to: *mut c_void) {
    let mut version = 0u64;
    let code = call!(cuMemAlloc_v2(&mut version, 4)) as u32;
    // SAFETY: the test passes a word of its own, which lives until the stream is done.
    unsafe { AtomicU32::from_ptr(to.cast()) }.store(code, SeqCst);
}

#[test]
fn host_functions_run_in_order_and_may_not_call_cuda() {
    let _here = Here::new();
    let (stream, word, result) = (Stream::new(), Word::new(0), AtomicU32::new(0));
    word.hold(stream.0);
    cu!(cuLaunchHostFunc(stream.0, Some(ask_in_host_function), result.as_ptr().cast()));
    a_while();
    assert_eq!(result.load(SeqCst), 0);
    word.set(1);
    stream.synchronize();
    assert_eq!(result.load(SeqCst), CUDA_ERROR_NOT_PERMITTED as u32);
}

#[test]
fn properties_are_those_it_was_made_with() {
    let here = Here::new();
    let mut stream = std::ptr::null_mut();
    cu!(cuStreamCreateWithPriority(&mut stream, 1, -3));
    let stream = Stream(stream);
    let (mut flags, mut priority, mut context) = (0, 0, std::ptr::null_mut());
    cu!(cuStreamGetFlags(stream.0, &mut flags));
    cu!(cuStreamGetPriority(stream.0, &mut priority));
    cu!(cuStreamGetCtx(stream.0, &mut context));
    assert_eq!((flags, priority, context), (1, -3, here.context));
    assert_eq!(call!(cuStreamSynchronize(0x1234 as sys::CUstream)), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(call!(cuStreamCreate(&mut context.cast(), 77)), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn an_idle_stream_has_no_thread_for_long() {
    let _alone = alone();
    let _here = Here::beside(0);
    let stream = Stream::new();
    let word = Word::new(0);
    cu!(cuStreamWriteValue32_v2(stream.0, word.at(), 1, 0));
    stream.synchronize();
    assert!(emulator().counters().threads >= 1);
    until("all threads of idle streams end", || emulator().counters().threads == 0);
    cu!(cuStreamWriteValue32_v2(stream.0, word.at(), 2, 0));
    stream.synchronize();
    assert_eq!(word.get(), 2);
}
