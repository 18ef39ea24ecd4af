//! Captures of the caller's that our calls must not end.
//!
//! While any thread captures a stream into a graph, "potentially unsafe" calls of all threads (those that allocate, give
//! memory back, ask events, and more that CUDA does not list) fail and end that capture, unless the capture began in
//! another mode than the usual one. A framework that captures knows what its own threads do, but not that a thread of
//! ours looks after the device, or gives memory back, just then. Such calls have nothing to do with the streams captured,
//! and a thread may say so.

use std::ffi::c_uint;
use std::marker::PhantomData;

use super::Functions;

/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: c_uint = 2;

/// As long as this lives, nothing that this thread calls ends a capture, except on the captured stream itself.
pub(super) struct Relaxed {
    driver: &'static Functions,
    /// The thread's mode before, if it could be changed.
    before: Option<c_uint>,
    /// Not to be sent: the mode is the thread's.
    _thread: PhantomData<*const ()>,
}

impl Relaxed {
    pub fn new(driver: &'static Functions) -> Relaxed {
        let mut mode = RELAXED;
        // SAFETY: the pointer is valid.
        let exchanged = unsafe { driver.cuThreadExchangeStreamCaptureMode(&mut mode) };
        Relaxed { driver, before: exchanged.is_ok().then_some(mode), _thread: PhantomData }
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        if let Some(mode) = &mut self.before {
            // SAFETY: the pointer is valid; this is the thread that `new` was called on.
            let _ = unsafe { self.driver.cuThreadExchangeStreamCaptureMode(mode) };
        }
    }
}
