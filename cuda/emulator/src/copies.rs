//! Copies and fills. When a call returns follows the manual's "API synchronization behavior", which is stricter than
//! the names say for pageable memory and laxer for everything else:
//!
//! * from pageable memory: the bytes are taken when the call is made, and it returns before they have arrived. This
//!   goes for `cuMemcpyHtoD` too: a non-blocking stream may not see them yet;
//! * to pageable memory: the call returns when they have arrived, `Async` or not;
//! * from or to pinned memory: `Async` returns at once, the other when the copy is done;
//! * inside devices, and fills: the call returns at once, `Async` or not.

use crate::abi::*;
use crate::call::entries;
use crate::context::{Builtin, current, known};
use crate::memory::{Allocation, Kind, range};
use crate::stream::Stream;
use crate::streams::stream_of;
use crate::work::{Source, Work};
use std::ffi::c_void;
use std::sync::Arc;

/// What one side of a copy must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// An address that a device can use.
    Device,
    /// An address of the host.
    Host,
    /// Either.
    Any,
}

fn lies_on_device(memory: &Option<Arc<Allocation>>) -> bool {
    let on_device = [Kind::Device, Kind::Pool, Kind::Imported, Kind::Mapped];
    memory.as_ref().is_some_and(|one| on_device.contains(&one.kind))
}

fn side(address: u64, bytes: usize, wanted: Side) -> Outcome<Option<Arc<Allocation>>> {
    let allocation = range(address, bytes)?;
    let is_device = lies_on_device(&allocation);
    match wanted {
        Side::Device if allocation.is_none() => Err(CUDA_ERROR_INVALID_VALUE),
        Side::Host if is_device => Err(CUDA_ERROR_INVALID_VALUE),
        _ => Ok(allocation),
    }
}

/// Queues a copy; waits for it where CUDA does.
fn copy(stream: &Arc<Stream>, to: (u64, Side), from: (u64, Side), bytes: usize, waits: bool) -> Outcome {
    if bytes == 0 {
        return Ok(());
    }
    let target = side(to.0, bytes, to.1)?;
    let source = side(from.0, bytes, from.1)?;
    let inside = lies_on_device;
    let pageable = target.is_none() || (source.is_none() && !inside(&target));
    if inside(&target) && inside(&source) {
        stream.context.first_use(Builtin::Copy)?;
    }
    let work = if source.is_none() && target.is_some() && inside(&target) {
        if waits {
            stream.wait_for(stream.submitted());
        }
        let mut taken = vec![0u8; bytes];
        // SAFETY: the caller promised `bytes` readable bytes there, and the vector has as many.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, taken.as_mut_ptr(), bytes) };
        Work::Copy { to: to.0, from: Source::Taken(taken), bytes }
    } else {
        Work::Copy { to: to.0, from: Source::At(from.0), bytes }
    };
    let between_devices = inside(&target) && (inside(&source) || source.is_none());
    if let Some(position) = stream.submit(work)?
        && (pageable || waits && !between_devices)
    {
        stream.wait_for(position);
        stream.context.check()?;
    }
    Ok(())
}

fn fill(stream: &Arc<Stream>, to: u64, pattern: [u8; 4], width: usize, count: usize) -> Outcome {
    if count == 0 {
        return Ok(());
    }
    let bytes = count.checked_mul(width).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    if !(to as usize).is_multiple_of(width) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    side(to, bytes, Side::Device)?;
    stream.context.first_use(Builtin::Fill)?;
    stream.submit(Work::Fill { to, pattern, width, count }).map(|_| ())
}

fn legacy() -> Outcome<Arc<Stream>> {
    Ok(current()?.legacy_stream())
}

fn two(value: u16) -> [u8; 4] {
    let [low, high] = value.to_ne_bytes();
    [low, high, low, high]
}

entries! {
    /// Copies between any two addresses, on the legacy default stream.
    fn cuMemcpy(to: u64, from: u64, bytes: usize) {
        copy(&legacy()?, (to, Side::Any), (from, Side::Any), bytes, true)
    }

    /// Copies between any two addresses.
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: usize) {
        copy(&stream_of(stream)?, (to, Side::Any), (from, Side::Any), bytes, false)
    }

    /// Copies from the host to a device.
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) {
        copy(&legacy()?, (to, Side::Device), (from as u64, Side::Host), bytes, true)
    }

    /// Copies from the host to a device.
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize) {
        copy(&stream_of(stream)?, (to, Side::Device), (from as u64, Side::Host), bytes, false)
    }

    /// Copies from a device to the host.
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) {
        copy(&legacy()?, (to as u64, Side::Host), (from, Side::Device), bytes, true)
    }

    /// Copies from a device to the host.
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize) {
        copy(&stream_of(stream)?, (to as u64, Side::Host), (from, Side::Device), bytes, false)
    }

    /// Copies inside devices.
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        copy(&legacy()?, (to, Side::Device), (from, Side::Device), bytes, true)
    }

    /// Copies inside devices.
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) {
        copy(&stream_of(stream)?, (to, Side::Device), (from, Side::Device), bytes, false)
    }

    /// Copies from one context's memory to another's, peer access or not.
    fn cuMemcpyPeerAsync(to: u64, to_context: usize, from: u64, from_context: usize, bytes: usize, stream: usize) {
        known(to_context)?;
        known(from_context)?;
        copy(&stream_of(stream)?, (to, Side::Device), (from, Side::Device), bytes, false)
    }

    /// Fills with a byte.
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) {
        fill(&legacy()?, to, [value; 4], 1, count)
    }

    /// Fills with a byte.
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize) {
        fill(&stream_of(stream)?, to, [value; 4], 1, count)
    }

    /// Fills with two bytes.
    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) {
        fill(&legacy()?, to, two(value), 2, count)
    }

    /// Fills with two bytes.
    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: usize) {
        fill(&stream_of(stream)?, to, two(value), 2, count)
    }

    /// Fills with four bytes.
    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) {
        fill(&legacy()?, to, value.to_ne_bytes(), 4, count)
    }

    /// Fills with four bytes.
    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: usize) {
        fill(&stream_of(stream)?, to, value.to_ne_bytes(), 4, count)
    }
}
