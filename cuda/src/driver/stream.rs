//! Streams: queues of a device's work.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys::CUstream;

use super::adopted::{self, Facts};
use super::{Context, CudaError, Event, Result, code, probe};

/// Made with this flag a stream does not wait for the default stream, nor that one for it.
const NON_BLOCKING: u32 = 1;

/// The priority that streams have if nobody asks for another.
pub(super) const ORDINARY: i32 = 0;
/// In place of a number, of a default stream.
const DEFAULT: u64 = u64::MAX;
/// Lower numbers go first. Beyond the device's range, the driver takes its end.
const MOST_URGENT: i32 = -100;

/// A CUDA stream: made here, or one of the caller's. Work on one stream runs in the order in which it was put there.
///
/// Use streams that do not synchronise with the legacy default stream, as those made here, and those of PyTorch's pool:
/// what ranks put on a stream waits for other ranks, and a default stream that waits for it stops everything behind it,
/// perhaps just what the other ranks wait for. PyTorch's current stream is the legacy default stream unless a program
/// takes another.
pub struct Stream {
    raw: CUstream,
    number: u64,
    context: Arc<Context>,
    priority: i32,
    owned: bool,
}

// SAFETY: a stream's handle is a name for something of the driver's, whose functions may be called from any thread. The
// handle of the per-thread default stream means another stream on another thread, which is safe all the same.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream, destroyed when dropped (the driver finishes what is on it first). It does not synchronise with the
    /// legacy default stream.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(context: &Arc<Context>) -> Result<Stream> {
        Stream::own(context, ORDINARY)
    }

    /// As [`new`](Stream::new), of the highest priority: where blocks of several kernels wait for a multiprocessor,
    /// those of this stream go first. That is what collectives beside computation need: otherwise each of their short
    /// kernels waits until a long one that was there before has found room for its last block.
    ///
    /// # Errors
    /// The driver's.
    pub fn urgent(context: &Arc<Context>) -> Result<Stream> {
        Stream::own(context, MOST_URGENT)
    }

    fn own(context: &Arc<Context>, priority: i32) -> Result<Stream> {
        let raw = Stream::create(context, priority)?;
        let mut stream = Stream { raw, number: 0, priority: ORDINARY, context: context.clone(), owned: true };
        // SAFETY: it has just been made.
        let facts = unsafe { Facts::of(raw, stream.context.clone()) }?;
        (stream.number, stream.priority) = (facts.number, facts.priority);
        Ok(stream)
    }

    pub(super) fn create(context: &Context, priority: i32) -> Result<CUstream> {
        let _entered = context.enter()?;
        let mut raw = null_mut();
        // SAFETY: a context is current, and the pointer valid.
        unsafe { context.driver().cuStreamCreateWithPriority(&mut raw, NON_BLOCKING, priority) }?;
        Ok(raw)
    }

    /// A stream of the caller's, for instance a framework's: `raw` is a `CUstream` or `cudaStream_t`. The values 0 and
    /// 1 (the legacy default stream) and 2 (the thread's default stream) mean the stream of the context that is current
    /// on this thread; 2 means another stream on each thread that uses the result. A stream of a green context belongs
    /// to the primary context of its device, as far as driver 12.5 or later tells. The stream is not destroyed.
    ///
    /// It costs two calls to the driver where this thread has adopted the stream before.
    ///
    /// # Errors
    /// [`CudaError::NoContext`] for a default stream where no context is current; [`CudaError::GreenDefaultStream`];
    /// those of [`probe`]; the driver's where it does not know the stream.
    ///
    /// # Safety
    /// `raw` is a default stream or a living one, and lives as long as the result and whatever was queued through it.
    pub unsafe fn adopt(raw: *mut c_void) -> Result<Stream> {
        // SAFETY: the caller's promise.
        unsafe { Stream::adopt_for(raw, None) }
    }

    /// As [`adopt`](Stream::adopt), for work on memory of device `ordinal`, whose default streams 0, 1 and 2 are then: in
    /// the context that is current on this thread if it is one of this device, otherwise in the primary one. To
    /// frameworks a thread always has a device; to the driver a thread that has called nothing yet has no context.
    ///
    /// # Errors
    /// Those of [`adopt`](Stream::adopt), and of [`Context::primary`].
    ///
    /// # Safety
    /// As for [`adopt`](Stream::adopt).
    pub unsafe fn adopt_on(raw: *mut c_void, ordinal: usize) -> Result<Stream> {
        // SAFETY: the caller's promise.
        unsafe { Stream::adopt_for(raw, Some(ordinal)) }
    }

    /// # Safety
    /// As for [`adopt`](Stream::adopt).
    unsafe fn adopt_for(raw: *mut c_void, ordinal: Option<usize>) -> Result<Stream> {
        let driver = probe()?.functions();
        let raw: CUstream = raw.cast();
        if (raw as usize) <= 2 {
            let context = Context::of_default_streams(ordinal)?;
            return Ok(Stream { raw, number: DEFAULT, priority: ORDINARY, context, owned: false });
        }
        // SAFETY: the caller promises a living stream.
        if let Some(Facts { number, priority, context }) = unsafe { adopted::recall(raw) } {
            return Ok(Stream { raw, number, priority, context, owned: false });
        }
        // SAFETY: as above.
        let (context, _) = unsafe { driver.stream_context(raw) }?;
        if context.is_null() {
            return Err(CudaError::NoContext { hint: " for this stream" });
        }
        // SAFETY: a living stream's context is alive, and by the caller's promise stays so.
        let context = unsafe { Context::of(context.cast()) }?;
        // SAFETY: as above.
        let facts = unsafe { Facts::of(raw, context) }?;
        adopted::remember(raw, &facts);
        let Facts { number, priority, context } = facts;
        Ok(Stream { raw, number, priority, context, owned: false })
    }

    /// Whether it was made with a priority above the ordinary one. Default streams never are.
    pub fn is_urgent(&self) -> bool {
        // Lower numbers go first.
        self.priority < ORDINARY
    }

    /// What tells this stream from all others of the process, past ones too, whose handle it may have. `None` for default
    /// streams, one of which is another on each thread.
    pub fn number(&self) -> Option<u64> {
        (self.number != DEFAULT).then_some(self.number)
    }

    /// The handle, a `CUstream`.
    pub fn raw(&self) -> *mut c_void {
        self.raw.cast()
    }

    pub(crate) fn handle(&self) -> CUstream {
        self.raw
    }

    /// The context to which it belongs.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Whether both are the same stream. (The thread's default stream is the same as itself only on one thread.)
    pub fn is(&self, other: &Stream) -> bool {
        // 0 and 1 both are the legacy default stream.
        let name = |stream: &Stream| if stream.raw as usize == 1 { 0 } else { stream.raw as usize };
        name(self) == name(other) && Arc::ptr_eq(&self.context, &other.context)
    }

    /// Blocks until all work put on the stream so far has ended.
    ///
    /// # Errors
    /// What went wrong with that work, or with any before it on this device.
    pub fn synchronize(&self) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: the stream is alive, and its context current.
        Ok(unsafe { self.context.driver().cuStreamSynchronize(self.raw) }?)
    }

    /// Whether all work put on the stream so far has ended. Does not block.
    ///
    /// # Errors
    /// As [`synchronize`](Stream::synchronize).
    pub fn is_idle(&self) -> Result<bool> {
        let _entered = self.context.enter()?;
        // SAFETY: the stream is alive, and its context current.
        match unsafe { self.context.driver().cuStreamQuery(self.raw) } {
            Ok(()) => Ok(true),
            Err(failed) if failed.code == code::NOT_READY => Ok(false),
            Err(failed) => Err(failed.into()),
        }
    }

    /// Whether what is put on the stream goes into a graph instead of running.
    ///
    /// # Errors
    /// The driver's.
    pub fn is_capturing(&self) -> Result<bool> {
        let _entered = self.context.enter()?;
        let mut status = 0;
        // SAFETY: the stream is alive, its context current, and the pointer valid for an `int`-sized enumeration.
        match unsafe { self.context.driver().cuStreamIsCapturing(self.raw, &mut status) } {
            Ok(()) => Ok(status != 0),
            // The legacy stream, while some stream that synchronises with it is captured: nothing may be put on it.
            Err(failed) if failed.code == code::STREAM_CAPTURE_IMPLICIT => Ok(true),
            Err(failed) => Err(failed.into()),
        }
    }

    /// Whatever is put on the stream from now on waits until what `event` recorded has ended. Does not block.
    ///
    /// # Errors
    /// The driver's.
    pub fn wait_event(&self, event: &Event) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: both are alive; the driver lets streams wait for events of other contexts.
        Ok(unsafe { self.context.driver().cuStreamWaitEvent(self.raw, event.handle(), 0) }?)
    }

    /// Runs `function` on a thread of the driver's when everything before it on the stream has ended; what follows on
    /// the stream waits for it. It must not call CUDA. If the device fails before, it never runs, and is not dropped.
    ///
    /// # Errors
    /// The driver's; `function` is dropped then.
    pub fn host_function(&self, function: impl FnOnce() + Send + 'static) -> Result<()> {
        unsafe extern "C" fn run<F: FnOnce()>(data: *mut c_void) {
            // SAFETY: the pointer comes from `Box::into_raw` below, and the driver calls once.
            let function = unsafe { Box::from_raw(data.cast::<F>()) };
            // A panic must not cross into the driver. Nothing waits for this closure's word, so it is logged.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(function)).is_err() {
                tracing::error!("a host function on a CUDA stream panicked");
            }
        }
        fn trampoline<F: FnOnce()>(_: &F) -> unsafe extern "C" fn(*mut c_void) {
            run::<F>
        }
        let _entered = self.context.enter()?;
        let call = trampoline(&function);
        let data = Box::into_raw(Box::new(function));
        // SAFETY: the stream is alive, its context current; `call` takes what `data` is.
        if let Err(failed) = unsafe { self.context.driver().cuLaunchHostFunc(self.raw, Some(call), data.cast()) } {
            // SAFETY: the driver has refused it, so it will not call, and the box is still ours.
            drop(unsafe { Box::from_raw(data) });
            return Err(failed.into());
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned
            && let Ok(_entered) = self.context.enter()
        {
            // SAFETY: made in `new`, and nobody else has been given the right to destroy it. The driver lets work that
            // is still queued end first.
            let _ = unsafe { self.context.driver().cuStreamDestroy(self.raw) };
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({:p} on device {})", self.raw, self.context.ordinal())
    }
}
