//! Events refer to their last recording when they are waited for.

use crate::cuda::*;

fn event(flags: u32) -> sys::CUevent {
    let mut event = std::ptr::null_mut();
    cu!(cuEventCreate(&mut event, flags));
    event
}

#[test]
fn a_stream_waits_for_an_event_of_another() {
    let _here = Here::new();
    let (first, second, word, memory, event) = (Stream::new(), Stream::new(), Word::new(0), Memory::new(4), event(2));
    word.hold(first.0);
    cu!(cuMemsetD32Async(memory.at, 1, 1, first.0));
    cu!(cuEventRecord(event, first.0));
    cu!(cuStreamWaitEvent(second.0, event, 0));
    cu!(cuMemsetD32Async(memory.at, 2, 1, second.0));
    assert_eq!(call!(cuEventQuery(event)), CUDA_ERROR_NOT_READY);
    a_while();
    assert!(!second.is_idle());
    word.set(1);
    second.synchronize();
    assert_eq!((memory.read(1), call!(cuEventQuery(event))), (vec![2], CUDA_SUCCESS));
    cu!(cuEventDestroy_v2(event));
    assert_eq!(call!(cuEventQuery(event)), CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn an_event_that_was_never_recorded_holds_nobody_up() {
    let _here = Here::new();
    let (stream, event) = (Stream::new(), event(0));
    cu!(cuStreamWaitEvent(stream.0, event, 0));
    stream.synchronize();
    cu!(cuEventQuery(event));
    cu!(cuEventSynchronize(event));
}

#[test]
fn a_wait_is_for_the_recording_before_it() {
    let _here = Here::new();
    let (fast, slow, waiting, word, event) = (Stream::new(), Stream::new(), Stream::new(), Word::new(0), event(0));
    cu!(cuEventRecord(event, fast.0));
    cu!(cuStreamWaitEvent(waiting.0, event, 0));
    word.hold(slow.0);
    cu!(cuEventRecord(event, slow.0));
    waiting.synchronize();
    assert_eq!(call!(cuEventQuery(event)), CUDA_ERROR_NOT_READY, "the event now is the later recording");
    word.set(1);
    cu!(cuEventSynchronize(event));
}

#[test]
fn time_passes_between_events() {
    let _here = Here::new();
    let (stream, word, start, end) = (Stream::new(), Word::new(0), event(0), event(0));
    cu!(cuEventRecord(start, stream.0));
    word.hold(stream.0);
    cu!(cuEventRecord(end, stream.0));
    let mut time = 0f32;
    assert_eq!(call!(cuEventElapsedTime(&mut time, start, end)), CUDA_ERROR_NOT_READY);
    a_while();
    word.set(1);
    cu!(cuEventSynchronize(end));
    cu!(cuEventElapsedTime(&mut time, start, end));
    assert!((25.0..5000.0).contains(&time), "{time} ms");
    let untimed = event(2);
    cu!(cuEventRecord(untimed, stream.0));
    stream.synchronize();
    assert_eq!(call!(cuEventElapsedTime(&mut time, start, untimed)), CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn an_event_belongs_to_its_context() {
    let _here = Here::new();
    let event = event(0);
    let _other = Here::beside(0);
    let stream = Stream::new();
    assert_eq!(call!(cuEventRecord(event, stream.0)), CUDA_ERROR_INVALID_HANDLE);
}
