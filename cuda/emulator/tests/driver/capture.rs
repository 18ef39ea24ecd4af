//! Capture: commands are recorded and not run, and what must not be called meanwhile ends it.

use crate::cuda::*;
use sys::CUstreamCaptureMode::*;
use sys::CUstreamCaptureStatus::{self, *};

fn status(stream: &Stream) -> CUstreamCaptureStatus {
    let mut status = CU_STREAM_CAPTURE_STATUS_NONE;
    cu!(cuStreamIsCapturing(stream.0, &mut status));
    status
}

#[test]
fn captured_commands_do_not_run() {
    // No other test may allocate meanwhile.
    let _alone = alone();
    let _here = Here::beside(0);
    let (stream, memory) = (Stream::new(), Memory::new(4));
    cu!(cuMemsetD32Async(memory.at, 1, 1, stream.0));
    stream.synchronize();
    cu!(cuStreamBeginCapture_v2(stream.0, CU_STREAM_CAPTURE_MODE_GLOBAL));
    assert_eq!(status(&stream), CU_STREAM_CAPTURE_STATUS_ACTIVE);
    cu!(cuMemsetD32Async(memory.at, 2, 1, stream.0));
    let (mut active, mut id) = (CU_STREAM_CAPTURE_STATUS_NONE, 0);
    let none = std::ptr::null_mut();
    cu!(cuStreamGetCaptureInfo_v2(stream.0, &mut active, &mut id, none, std::ptr::null_mut(), std::ptr::null_mut()));
    assert_eq!((active, id > 0), (CU_STREAM_CAPTURE_STATUS_ACTIVE, true));
    let mut graph = std::ptr::null_mut();
    cu!(cuStreamEndCapture(stream.0, &mut graph));
    assert!(!graph.is_null());
    cu!(cuGraphDestroy(graph));
    stream.synchronize();
    assert_eq!((memory.read(1), status(&stream)), (vec![1], CU_STREAM_CAPTURE_STATUS_NONE));
}

#[test]
fn waiting_for_a_capturing_stream_ends_the_capture() {
    let _here = Here::new();
    let (stream, memory) = (Stream::new(), Memory::new(4));
    cu!(cuStreamBeginCapture_v2(stream.0, CU_STREAM_CAPTURE_MODE_RELAXED));
    assert_eq!(call!(cuStreamSynchronize(stream.0)), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(status(&stream), CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    assert_eq!(call!(cuMemsetD32Async(memory.at, 2, 1, stream.0)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    let mut graph = std::ptr::null_mut();
    assert_eq!(call!(cuStreamEndCapture(stream.0, &mut graph)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    stream.synchronize();
    assert_eq!(call!(cuStreamEndCapture(stream.0, &mut graph)), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
}

#[test]
fn the_default_stream_may_not_wait_for_a_capture() {
    let _here = Here::new();
    let (stream, memory) = (Stream::blocking(), Memory::new(4));
    cu!(cuStreamBeginCapture_v2(stream.0, CU_STREAM_CAPTURE_MODE_RELAXED));
    assert_eq!(call!(cuMemsetD32_v2(memory.at, 2, 1)), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    let none = std::ptr::null_mut();
    let mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    assert_eq!(call!(cuStreamBeginCapture_v2(none, mode)), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let mut graph = std::ptr::null_mut();
    assert_eq!(call!(cuStreamEndCapture(stream.0, &mut graph)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

/// What another thread's allocation does to a capture, depending on both's modes.
#[test]
fn unsafe_calls_end_captures_unless_their_thread_is_relaxed() {
    let _alone = alone();
    let here = Here::beside(0);
    let stream = Stream::new();
    let context = here.context as usize;
    for (began, caller, ends) in [
        (CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_GLOBAL, true),
        (CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, false),
        (CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_RELAXED, false),
        (CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_GLOBAL, false),
        (CU_STREAM_CAPTURE_MODE_RELAXED, CU_STREAM_CAPTURE_MODE_GLOBAL, false),
    ] {
        cu!(cuStreamBeginCapture_v2(stream.0, began));
        std::thread::scope(|s| {
            s.spawn(|| {
                cu!(cuCtxSetCurrent(context as sys::CUcontext));
                let mut mode = caller;
                cu!(cuThreadExchangeStreamCaptureMode(&mut mode));
                assert_eq!(mode, CU_STREAM_CAPTURE_MODE_GLOBAL, "what threads begin with");
                let mut at = 0;
                let expected = if ends { CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED } else { CUDA_SUCCESS };
                assert_eq!(call!(cuMemAlloc_v2(&mut at, 64)), expected, "{began:?} {caller:?}");
                assert_eq!(call!(cuMemFree_v2(at)), CUDA_SUCCESS);
            });
        });
        let expected = if ends { CU_STREAM_CAPTURE_STATUS_INVALIDATED } else { CU_STREAM_CAPTURE_STATUS_ACTIVE };
        assert_eq!(status(&stream), expected, "{began:?} {caller:?}");
        let mut graph = std::ptr::null_mut();
        assert_eq!(call!(cuStreamEndCapture(stream.0, &mut graph)) == CUDA_SUCCESS, !ends);
    }
}
