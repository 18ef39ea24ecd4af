//! Streams: queues of operations that run in order, apart from the thread that queues them; and CUDA's.

use std::ffi::c_void;
use std::sync::Arc;

use maypole::RawRequest;
use maypole::cuda;
use maypole_transports::lock::Mutex;

use crate::communicator::{comm_of, maypole_comm};
use crate::entry::{check_out, enter, give};
use crate::operation::Operation;
use crate::status::*;
use crate::table::{Kind, Table};

/// What maypole_stream points to: nothing that C could look at.
pub struct maypole_stream_s {
    _opaque: [u8; 0],
}

/// A queue of operations, made by maypole_stream_create() or around a CUstream by maypole_stream_from_cuda(). Calls that
/// take one return as soon as the operation is queued; the buffers must stay until maypole_stream_synchronize() has
/// returned. What is queued on a stream runs in order, different streams run at the same time, and each communicator runs
/// its own operations in the order of the calls.
pub type maypole_stream = *mut maypole_stream_s;

pub(crate) enum Stream {
    Host(Host),
    Cuda(cuda::Stream),
}

pub(crate) struct Host {
    pub queue: maypole::Stream,
    queued: Mutex<Queued>,
}

/// What was queued without a request of the caller's, in the order of the calls.
#[derive(Default)]
struct Queued {
    /// How many ever were.
    count: u64,
    /// What has not ended, or not been looked at since; and the first that failed, until somebody
    /// is told.
    kept: Vec<Arc<Kept>>,
}

/// An operation of which nobody has a request.
struct Kept {
    /// How many were queued before it.
    number: u64,
    request: RawRequest,
    /// What it may still call.
    _operation: Option<Arc<Operation>>,
}

impl Host {
    /// Keep what was queued until it has ended.
    pub fn keep(&self, request: RawRequest, operation: Option<Arc<Operation>>) {
        let queued = &mut *self.queued.lock();
        // A program may queue for long before it synchronizes: what has ended goes before the list grows.
        if queued.kept.len() == queued.kept.capacity() {
            let mut told = false;
            queued.kept.retain(|kept| {
                let ended = kept.request.test();
                !ended || (kept.request.wait().is_err() && !std::mem::replace(&mut told, true))
            });
        }
        queued.kept.push(Arc::new(Kept { number: queued.count, request, _operation: operation }));
        queued.count += 1;
    }

    /// Wait for what was queued before the call. The list is left as it is meanwhile: another
    /// thread that calls this waits for the same, and is told the same.
    fn synchronize(&self) -> maypole::Result<()> {
        let (before, kept) = {
            let queued = self.queued.lock();
            (queued.count, queued.kept.clone())
        };
        let mut outcome = Ok(());
        for kept in kept {
            outcome = outcome.and(kept.request.wait());
        }
        self.queued.lock().kept.retain(|kept| kept.number >= before);
        outcome
    }
}

static STREAMS: Table<Stream> = Table::new(Kind::Stream);

/// A stream; `None` for NULL.
#[inline]
pub(crate) fn stream_of(stream: maypole_stream) -> Outcome<Option<Arc<Stream>>> {
    if stream.is_null() { Ok(None) } else { STREAMS.get("stream", stream.addr() as u64).map(Some) }
}

/// A stream on which requests and groups can be queued.
pub(crate) fn host_stream_of(stream: maypole_stream) -> Outcome<Option<Arc<Stream>>> {
    match stream_of(stream)? {
        Some(found) if matches!(*found, Stream::Cuda(_)) => Err(Fault::argument(
            "stream is a CUDA stream, on which a call without a request is queued as it is; wait for it with \
             maypole_stream_synchronize or with CUDA's events",
        )),
        found => Ok(found),
    }
}

/// The queue of a stream that [`host_stream_of`] gave.
pub(crate) fn queue(stream: &Option<Arc<Stream>>) -> Option<&maypole::Stream> {
    match stream.as_deref() {
        Some(Stream::Host(host)) => Some(&host.queue),
        _ => None,
    }
}

fn made(stream: Stream, to: *mut maypole_stream) -> Outcome {
    let handle: maypole_stream = std::ptr::without_provenance_mut(STREAMS.insert(stream) as usize);
    // SAFETY: the callers' promise.
    unsafe { give("stream", to, handle) }
}

/// A new, empty stream with a thread of its own.
///
/// @param stream gets it, to be given to maypole_stream_destroy().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_stream_create(stream: *mut maypole_stream) -> maypole_status {
    enter("maypole_stream_create", || {
        check_out("stream", stream)?;
        maypole::fork::watch();
        made(Stream::Host(Host { queue: maypole::Stream::new()?, queued: Mutex::default() }), stream)
    })
}

/// A handle for a CUDA stream, on which collectives and messages on device memory are then queued. Called with buffers in
/// host memory, they wait for the stream and block instead; ranks must not differ in that, and a rank that has no element
/// to pass counts as one with device memory unless its pointer says otherwise. The CUDA stream stays the caller's and must
/// outlive the handle and what was queued through it.
///
/// Before the first message between two ranks all ranks make a collective on such a stream (maypole_barrier() will do).
/// Messages in device memory have no tags. Calls with a request, groups, persistent operations and operations by callback
/// are for host memory.
///
/// What goes wrong after a call has returned shows at the next one or at maypole_stream_synchronize(); outputs are then
/// undefined. Where ranks are threads of one process, give memory back only while none of their streams waits for a rank:
/// cuMemFree() waits for all streams of the process.
///
/// @param cuda_stream a CUstream or cudaStream_t; NULL, 1 and 2 mean the default streams of the context that is current.
/// @param stream gets the handle, to be given to maypole_stream_destroy().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_stream_from_cuda(
    cuda_stream: *mut c_void,
    stream: *mut maypole_stream,
) -> maypole_status {
    enter("maypole_stream_from_cuda", || {
        check_out("stream", stream)?;
        maypole::fork::watch();
        // SAFETY: the caller's promise.
        let adopted = unsafe { cuda::Stream::adopt(cuda_stream) };
        made(Stream::Cuda(adopted.map_err(|error| Fault::new(MAYPOLE_ERROR_DEVICE, error.to_string()))?), stream)
    })
}

/// Wait until everything that was queued on the stream without a request is done. Several threads
/// may call it at the same time: each waits, and each is told.
///
/// @param stream the stream.
/// @param comm the communicator whose operations were queued, if it is a CUDA stream; otherwise ignored.
/// @return the first error of what was queued on a host stream since the last call; the failure of `comm` on a CUDA
/// stream.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_stream_synchronize(stream: maypole_stream, comm: maypole_comm) -> maypole_status {
    enter("maypole_stream_synchronize", || {
        let stream = STREAMS.get("stream", stream.addr() as u64)?;
        match &*stream {
            Stream::Host(host) => Ok(host.synchronize()?),
            Stream::Cuda(stream) => Ok(comm_of(comm)?.on(stream).synchronize()?),
        }
    })
}

/// Give up a stream. Waits until a host stream is empty, and drops the errors of what was queued there; a CUDA stream is
/// left alone.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_stream_destroy(stream: maypole_stream) -> maypole_status {
    enter("maypole_stream_destroy", || STREAMS.remove("stream", stream.addr() as u64).map(drop))
}
