//! Green contexts: parts of a device that have streams of their own and share all else with its
//! primary context.
//!
//! While one is current, default streams are its own. It gets no multiprocessors of its own here,
//! as nothing here has any, and memory that is allocated while it is current counts as its own.

use crate::abi::*;
use crate::call::{Handles, entries, give};
use crate::context::{CONTEXTS, Context, release_primary, retain_primary};
use crate::stream::{Stream, StreamKind};
use crate::streams::{STREAMS, stream_of};
use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::LazyLock;

/// By their handles as green contexts, which are others than the ones as contexts.
static GREEN: LazyLock<Handles<Context>> = LazyLock::new(|| Handles::new(HashMap::new()));

/// `CU_GREEN_CTX_DEFAULT_STREAM`, without which drivers before 13 make none.
const DEFAULT_STREAM: u32 = 1;

/// The stream flag that green contexts ask for.
const NON_BLOCKING: u32 = 1;

entries! {
    /// Makes a green context, of whatever resources the descriptor says.
    fn cuGreenCtxCreate(to: *mut usize, _resources: usize, ordinal: c_int, flags: u32) {
        if flags != DEFAULT_STREAM {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let context = Context::make_green(&retain_primary(ordinal)?);
        // SAFETY: the caller's promise.
        unsafe { give(to, GREEN.adopt(context)) }
    }

    /// Ends it, and gives its reference to the primary context back.
    fn cuGreenCtxDestroy(green: usize) {
        let context = GREEN.remove(green).map_err(|_| CUDA_ERROR_INVALID_CONTEXT)?;
        let _ = CONTEXTS.remove(context.handle);
        context.destroy();
        release_primary(context.device as c_int)
    }

    /// The green context as one that can be made current.
    fn cuCtxFromGreenCtx(to: *mut usize, green: usize) {
        let context = GREEN.get(green).map_err(|_| CUDA_ERROR_INVALID_CONTEXT)?;
        // SAFETY: the caller's promise.
        unsafe { give(to, context.handle) }
    }

    /// A stream of the green context: work of the primary one's, on the part of the device.
    fn cuGreenCtxStreamCreate(to: *mut usize, green: usize, flags: u32, priority: c_int) {
        let context = GREEN.get(green).map_err(|_| CUDA_ERROR_INVALID_CONTEXT)?;
        let Some(primary) = context.green_of.as_ref().filter(|_| flags == NON_BLOCKING) else {
            return Err(CUDA_ERROR_INVALID_VALUE);
        };
        let stream = Stream::make_in(primary, StreamKind::NonBlocking, priority.clamp(-5, 0), Some(context.handle));
        // SAFETY: the caller's promise.
        unsafe { give(to, STREAMS.adopt(stream)) }
    }

    /// The stream's context: of a green context's stream, the green one.
    fn cuStreamGetCtx(handle: usize, to: *mut usize) {
        let stream = stream_of(handle)?;
        // SAFETY: the caller's promise.
        unsafe { give(to, stream.green.unwrap_or(stream.context.handle)) }
    }

    /// The same, but of a green context's stream both: the primary context and the green one.
    fn cuStreamGetCtx_v2(handle: usize, to: *mut usize, green: *mut usize) {
        let stream = stream_of(handle)?;
        let (context, is_green) = match &stream.context.green_of {
            Some(primary) => (primary.handle, Some(stream.context.handle)),
            None => (stream.context.handle, stream.green),
        };
        // SAFETY: the caller's promise, for both.
        unsafe {
            give(green, is_green.unwrap_or(0))?;
            give(to, context)
        }
    }
}
