//! Events: marks on streams that can be waited for.

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys::CUevent;

use super::capture::Relaxed;
use super::{Context, Result, Stream, code};

const BLOCKING_SYNC: u32 = 1;
const DISABLE_TIMING: u32 = 2;

/// A mark on a stream. An event that was never recorded counts as passed.
pub struct Event {
    raw: CUevent,
    context: Arc<Context>,
}

// SAFETY: an event's handle is a name for something of the driver's, whose functions may be called from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// A new event. With `timing` it can tell the time between two; without, it is cheaper. Threads that wait for it
    /// sleep.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(context: &Arc<Context>, timing: bool) -> Result<Event> {
        let _entered = context.enter()?;
        let flags = BLOCKING_SYNC | if timing { 0 } else { DISABLE_TIMING };
        let mut raw = null_mut();
        // SAFETY: a context is current, and the pointer valid.
        unsafe { context.driver().cuEventCreate(&mut raw, flags) }?;
        Ok(Event { raw, context: context.clone() })
    }

    pub(super) fn handle(&self) -> CUevent {
        self.raw
    }

    /// Marks where `stream`, of the same context, stands now. Forgets what it marked before. Does not block.
    ///
    /// # Errors
    /// The driver's, for a stream of another context among others.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: both are alive.
        Ok(unsafe { self.context.driver().cuEventRecord(self.raw, stream.handle()) }?)
    }

    /// Whether everything before the mark has ended. Does not block.
    ///
    /// # Errors
    /// What went wrong with that work, or with any before it on this device.
    pub fn is_done(&self) -> Result<bool> {
        let _entered = self.context.enter()?;
        // SAFETY: the event is alive.
        match unsafe { self.context.driver().cuEventQuery(self.raw) } {
            Ok(()) => Ok(true),
            Err(failed) if failed.code == code::NOT_READY => Ok(false),
            Err(failed) => Err(failed.into()),
        }
    }

    /// Whether the context still works: asks for the latest mark, and sets a new one on a stream of the context's own, on
    /// which nothing waits. A mark that was never set, or has long passed, would be answered without a look at the device.
    /// May block while another thread is inside the driver.
    ///
    /// # Errors
    /// What went wrong on this device; the driver's.
    pub fn check(&self) -> Result<()> {
        let (_relaxed, _entered) = (Relaxed::new(self.context.driver()), self.context.enter()?);
        self.is_done()?;
        let stream = self.context.service()?;
        // SAFETY: the event is alive, and the stream as long as its context.
        Ok(unsafe { self.context.driver().cuEventRecord(self.raw, stream) }?)
    }

    /// Blocks until everything before the mark has ended.
    ///
    /// # Errors
    /// As [`is_done`](Event::is_done).
    pub fn synchronize(&self) -> Result<()> {
        let _entered = self.context.enter()?;
        // SAFETY: the event is alive.
        Ok(unsafe { self.context.driver().cuEventSynchronize(self.raw) }?)
    }

    /// Microseconds from `earlier`'s mark to this one's; both have timing, and both have passed.
    ///
    /// # Errors
    /// The driver's, where that is not so.
    pub fn elapsed_us(&self, earlier: &Event) -> Result<f64> {
        let _entered = self.context.enter()?;
        let mut milliseconds = 0.0f32;
        // SAFETY: both events are alive, and the pointer is valid.
        unsafe { self.context.driver().cuEventElapsedTime(&mut milliseconds, earlier.raw, self.raw) }?;
        Ok(f64::from(milliseconds) * 1000.0)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: made in `new`; streams that still wait for it are not disturbed by this.
            let _ = unsafe { self.context.driver().cuEventDestroy(self.raw) };
        }
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Event({:p} on device {})", self.raw, self.context.ordinal())
    }
}
