//! The driver's calls on streams: making them, asking them, waiting for them, host functions, capture.

use crate::abi::*;
use crate::call::{Handles, entries, give};
use crate::context::current;
use crate::stream::{Capture, Stream, StreamKind};
use crate::switches::SWITCHES;
use crate::work::Work;
use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Weak};

pub static STREAMS: LazyLock<Handles<Stream>> = LazyLock::new(|| Handles::new(HashMap::new()));
/// The handle of the stream that was destroyed last, if no other has it.
static FREE: Mutex<Option<usize>> = Mutex::new(None);
static CAPTURES: AtomicU64 = AtomicU64::new(0);
/// Streams whose capture other calls may end: not those in relaxed mode.
static CAPTURED: Mutex<Vec<(Weak<Stream>, CaptureMode)>> = Mutex::new(Vec::new());

thread_local! {
    /// What this thread's calls may end, `cuThreadExchangeStreamCaptureMode`.
    static MODE: Cell<CaptureMode> = const { Cell::new(capture_mode::GLOBAL) };
}

type CaptureMode = u32;

mod capture_mode {
    use super::CaptureMode;
    pub const GLOBAL: CaptureMode = 0;
    pub const RELAXED: CaptureMode = 2;
}

/// What must not be called by a thread that is not relaxed, while it captures a stream itself or another thread does in
/// global mode: such a capture does not survive it.
pub fn unsafe_while_capturing() -> Outcome {
    let (mode, me) = (MODE.get(), std::thread::current().id());
    if mode == capture_mode::RELAXED {
        return Ok(());
    }
    let mut captured = CAPTURED.lock();
    captured.retain(|(stream, _)| stream.upgrade().is_some_and(|stream| stream.is_capturing()));
    let mut outcome = Ok(());
    for (stream, began) in captured.iter() {
        if let Some(stream) = stream.upgrade()
            && let Capture::Recording { thread: Some(thread), .. } = stream.capture()
            && (thread == me || (mode == capture_mode::GLOBAL && *began == capture_mode::GLOBAL))
        {
            stream.invalidate_capture();
            outcome = Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
    }
    outcome
}

/// The stream that a handle stands for; default streams are those of the current context.
pub fn stream_of(handle: usize) -> Outcome<Arc<Stream>> {
    match handle {
        0 | default_stream::LEGACY => Ok(current()?.legacy_stream()),
        default_stream::PER_THREAD => Ok(current()?.thread_stream()),
        other => STREAMS.get(other),
    }
}

/// What a query or a wait may not be called for: a capture does not survive it.
fn not_capturing(stream: &Stream) -> Outcome {
    if stream.is_capturing() {
        stream.invalidate_capture();
        return Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    Ok(())
}

fn create(to: *mut usize, flags: u32, priority: c_int) -> Outcome {
    let context = current()?;
    let kind = match flags {
        0 => StreamKind::Blocking,
        1 => StreamKind::NonBlocking,
        _ => return Err(CUDA_ERROR_INVALID_VALUE),
    };
    let stream = Stream::make(&context, kind, priority.clamp(-5, 0));
    let handle = match FREE.lock().take() {
        Some(handle) if SWITCHES.reused_handles.load(Relaxed) => STREAMS.adopt_as(handle, stream),
        _ => STREAMS.adopt(stream),
    };
    // SAFETY: the caller's promise.
    unsafe { give(to, handle) }
}

entries! {
    /// Makes a stream. Flag 1: it does not take part in the legacy default stream's order.
    fn cuStreamCreate(to: *mut usize, flags: u32) {
        create(to, flags, 0)
    }

    /// The same with a priority, which is kept and changes nothing.
    fn cuStreamCreateWithPriority(to: *mut usize, flags: u32, priority: c_int) {
        create(to, flags, priority)
    }

    /// Ends a stream as soon as it has done what it was given.
    fn cuStreamDestroy_v2(handle: usize) {
        if handle <= default_stream::PER_THREAD {
            return Err(CUDA_ERROR_INVALID_HANDLE);
        }
        STREAMS.remove(handle)?.destroy();
        *FREE.lock() = Some(handle);
        Ok(())
    }

    /// Waits until the stream has done what it was given.
    fn cuStreamSynchronize(handle: usize) {
        let stream = stream_of(handle)?;
        not_capturing(&stream)?;
        stream.wait_for(stream.submitted());
        stream.context.check()
    }

    /// Whether it has.
    fn cuStreamQuery(handle: usize) {
        let stream = stream_of(handle)?;
        not_capturing(&stream)?;
        stream.context.check()?;
        if stream.is_idle() { Ok(()) } else { Err(CUDA_ERROR_NOT_READY) }
    }

    /// The stream's device.
    fn cuStreamGetDevice(handle: usize, to: *mut c_int) {
        // SAFETY: the caller's promise.
        unsafe { give(to, stream_of(handle)?.context.device as c_int) }
    }

    /// A number that no other stream has.
    fn cuStreamGetId(handle: usize, to: *mut u64) {
        // SAFETY: the caller's promise.
        unsafe { give(to, stream_of(handle)?.number) }
    }

    /// The flags that the stream was made with.
    fn cuStreamGetFlags(handle: usize, to: *mut u32) {
        // SAFETY: the caller's promise.
        unsafe { give(to, u32::from(stream_of(handle)?.kind == StreamKind::NonBlocking)) }
    }

    /// The priority that the stream was made with.
    fn cuStreamGetPriority(handle: usize, to: *mut c_int) {
        // SAFETY: the caller's promise.
        unsafe { give(to, stream_of(handle)?.priority) }
    }

    /// Calls a function of the host, on a thread of its own, before the stream goes on.
    fn cuLaunchHostFunc(handle: usize, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) {
        let stream = stream_of(handle)?;
        let function = function.ok_or(CUDA_ERROR_INVALID_VALUE)?;
        stream.submit(Work::Host { function, data }).map(|_| ())
    }

    /// Commands are recorded from here on and not run.
    fn cuStreamBeginCapture_v2(handle: usize, mode: u32) {
        if handle == 0 || handle == default_stream::LEGACY {
            return Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
        let stream = stream_of(handle)?;
        if stream.is_capturing() {
            return Err(CUDA_ERROR_ILLEGAL_STATE);
        }
        let thread = (mode != capture_mode::RELAXED).then(|| std::thread::current().id());
        stream.set_capture(Capture::Recording { id: CAPTURES.fetch_add(1, Relaxed) + 1, commands: 0, thread });
        if thread.is_some() {
            let mut captured = CAPTURED.lock();
            captured.retain(|(known, _)| !std::ptr::eq(known.as_ptr(), &*stream));
            captured.push((Arc::downgrade(&stream), mode));
        }
        Ok(())
    }

    /// Ends a capture. The graph's handle is the capture's number: it can be destroyed and nothing else.
    fn cuStreamEndCapture(handle: usize, graph: *mut usize) {
        let stream = stream_of(handle)?;
        match stream.capture() {
            Capture::None => Err(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED),
            Capture::Recording { thread: Some(thread), .. } if thread != std::thread::current().id() => {
                Err(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD)
            }
            Capture::Recording { id, .. } => {
                stream.set_capture(Capture::None);
                // SAFETY: the caller's promise.
                unsafe { give(graph, id as usize) }
            }
            Capture::Invalidated { .. } => {
                stream.set_capture(Capture::None);
                // SAFETY: the caller's promise.
                unsafe { give(graph, 0)? };
                Err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
            }
        }
    }

    /// 0 no capture, 1 capturing, 2 invalidated.
    fn cuStreamIsCapturing(handle: usize, to: *mut u32) {
        // SAFETY: the caller's promise.
        unsafe { give(to, status(stream_of(handle)?.capture()).0) }
    }

    /// The same with the capture's number; graph and dependencies are not told.
    fn cuStreamGetCaptureInfo_v2(
        handle: usize,
        to: *mut u32,
        id: *mut u64,
        graph: *mut usize,
        dependencies: *mut usize,
        count: *mut usize,
    ) {
        let (status, number) = status(stream_of(handle)?.capture());
        for wanted in [graph, dependencies, count] {
            if !wanted.is_null() {
                // SAFETY: the caller's promise.
                unsafe { give(wanted, 0)? };
            }
        }
        if !id.is_null() {
            // SAFETY: the caller's promise.
            unsafe { give(id, number)? };
        }
        // SAFETY: the caller's promise.
        unsafe { give(to, status) }
    }

    /// Sets how the calling thread minds captures, and tells how it did: 0 global, 1 only its own, 2 not at all.
    fn cuThreadExchangeStreamCaptureMode(mode: *mut u32) {
        if mode.is_null() {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        let wanted = unsafe { mode.read_unaligned() };
        if wanted > capture_mode::RELAXED {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        unsafe { give(mode, MODE.replace(wanted)) }
    }

    /// Forgets a graph.
    fn cuGraphDestroy(_graph: usize) {
        Ok(())
    }

    /// Graphs cannot be run here: `CUDA_ERROR_NOT_SUPPORTED`.
    fn cuGraphInstantiateWithFlags(_to: *mut usize, _graph: usize, _flags: u64) {
        Err(CUDA_ERROR_NOT_SUPPORTED)
    }
}

fn status(capture: Capture) -> (u32, u64) {
    match capture {
        Capture::None => (0, 0),
        Capture::Recording { id, .. } => (1, id),
        Capture::Invalidated { id } => (2, id),
    }
}
