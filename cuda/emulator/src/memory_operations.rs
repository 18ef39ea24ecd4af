//! Stream memory operations: streams that wait for a word of memory, and write one.
//!
//! The word may lie in device memory, in pinned or in registered memory, also in memory that another process maps. The
//! order that words make is not known to CUDA: two streams that wait for each other through words can be put into one
//! hardware queue, one behind the other, and never go on (switch `CONNECTIONS`).
//!
//! Each call has two versions. What differs here is the flag that lets a write go without a barrier
//! (`CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER`): the manual has it for the first version alone. The
//! second has an operation of its own in its place, [`memory_operation::BARRIER`].

use crate::abi::*;
use crate::call::entries;
use crate::context::Context;
use crate::memory::find;
use crate::streams::stream_of;
use crate::switches::{Droppable, SWITCHES};
use crate::work::Work;
use std::sync::atomic::Ordering::Relaxed;

/// A `cuStreamBatchMemOp` has fewer operations than this.
const TOO_MANY: u32 = 256;

/// Which version of a call was made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    First,
    Second,
}

fn checked(context: &Context, address: u64, wide: bool) -> Outcome {
    let bytes = if wide { 8 } else { 4 };
    let inside = |base: u64, length: usize| (address - base) as usize + bytes <= length;
    match find(address) {
        Some(one)
            if inside(one.base, one.bytes) && one.is_reached_from(context) && address.is_multiple_of(bytes as u64) =>
        {
            Ok(())
        }
        _ => Err(CUDA_ERROR_INVALID_VALUE),
    }
}

fn supported() -> Outcome {
    if SWITCHES.memory_operations.load(Relaxed) { Ok(()) } else { Err(CUDA_ERROR_NOT_SUPPORTED) }
}

fn wait(context: &Context, address: u64, value: u64, flags: u32, wide: bool) -> Outcome<Work> {
    checked(context, address, wide)?;
    if flags & !wait_flag::FLUSH > wait_flag::NOR {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if flags & wait_flag::FLUSH != 0 {
        // The device says that it cannot flush remote writes (attribute 98).
        return Err(CUDA_ERROR_NOT_SUPPORTED);
    }
    Ok(if SWITCHES.drops(Droppable::Wait) { Work::Nothing } else { Work::Wait { address, value, flags, wide } })
}

fn write(context: &Context, address: u64, value: u64, flags: u32, (wide, version): (bool, Version)) -> Outcome<Work> {
    checked(context, address, wide)?;
    let known = if version == Version::First { WRITE_WITHOUT_BARRIER } else { 0 };
    if flags & !known != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let barrier = flags & WRITE_WITHOUT_BARRIER == 0;
    Ok(if SWITCHES.drops(Droppable::Write) { Work::Nothing } else { Work::Write { address, value, wide, barrier } })
}

fn queue_wait(stream: usize, address: u64, value: u64, flags: u32, wide: bool) -> Outcome {
    supported()?;
    let stream = stream_of(stream)?;
    let work = wait(&stream.context, address, value, flags, wide)?;
    stream.submit(work).map(|_| ())
}

fn queue_write(stream: usize, address: u64, value: u64, flags: u32, how: (bool, Version)) -> Outcome {
    supported()?;
    let stream = stream_of(stream)?;
    let work = write(&stream.context, address, value, flags, how)?;
    stream.submit(work).map(|_| ())
}

/// # Safety
/// `operations` must point to `count` of them.
unsafe fn queue_batch(
    stream: usize,
    count: u32,
    operations: *const MemoryOperation,
    flags: u32,
    version: Version,
) -> Outcome {
    supported()?;
    let stream = stream_of(stream)?;
    if flags != 0 || count >= TOO_MANY || operations.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let context = &stream.context;
    let mut works = Vec::with_capacity(count as usize);
    for index in 0..count as usize {
        // SAFETY: below `count`, and valid by this function's contract.
        let MemoryOperation { operation, barrier, address, value, flags, .. } = unsafe { *operations.add(index) };
        let narrow = value & u64::from(u32::MAX);
        works.push(match operation {
            memory_operation::WAIT_32 => wait(context, address, narrow, flags, false)?,
            memory_operation::WAIT_64 => wait(context, address, value, flags, true)?,
            memory_operation::WRITE_32 => write(context, address, narrow, flags, (false, version))?,
            memory_operation::WRITE_64 => write(context, address, value, flags, (true, version))?,
            // Writes are seen in order here anyway.
            memory_operation::BARRIER
                if version == Version::Second && barrier <= memory_operation::BARRIER_OF_DEVICE =>
            {
                Work::Nothing
            }
            memory_operation::FLUSH => return Err(CUDA_ERROR_NOT_SUPPORTED),
            _ => return Err(CUDA_ERROR_INVALID_VALUE),
        });
    }
    stream.submit(Work::Batch(works)).map(|_| ())
}

entries! {
    /// The stream waits for a 32-bit word.
    fn cuStreamWaitValue32_v2(stream: usize, address: u64, value: u32, flags: u32) {
        queue_wait(stream, address, value.into(), flags, false)
    }

    /// The same, by the name of the first version.
    fn cuStreamWaitValue32(stream: usize, address: u64, value: u32, flags: u32) {
        queue_wait(stream, address, value.into(), flags, false)
    }

    /// The stream waits for a 64-bit word.
    fn cuStreamWaitValue64_v2(stream: usize, address: u64, value: u64, flags: u32) {
        queue_wait(stream, address, value, flags, true)
    }

    /// The stream writes a 32-bit word.
    fn cuStreamWriteValue32_v2(stream: usize, address: u64, value: u32, flags: u32) {
        queue_write(stream, address, value.into(), flags, (false, Version::Second))
    }

    /// The same, by the name of the first version.
    fn cuStreamWriteValue32(stream: usize, address: u64, value: u32, flags: u32) {
        queue_write(stream, address, value.into(), flags, (false, Version::First))
    }

    /// The stream writes a 64-bit word.
    fn cuStreamWriteValue64_v2(stream: usize, address: u64, value: u64, flags: u32) {
        queue_write(stream, address, value, flags, (true, Version::Second))
    }

    /// Several of these, in their order.
    fn cuStreamBatchMemOp_v2(stream: usize, count: u32, operations: *mut MemoryOperation, flags: u32) {
        // SAFETY: the caller's promise.
        unsafe { queue_batch(stream, count, operations, flags, Version::Second) }
    }

    /// The same, by the name of the first version.
    fn cuStreamBatchMemOp(stream: usize, count: u32, operations: *mut MemoryOperation, flags: u32) {
        // SAFETY: the caller's promise.
        unsafe { queue_batch(stream, count, operations, flags, Version::First) }
    }
}
