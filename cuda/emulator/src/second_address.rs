//! Host memory as devices see it, where that is at another address than the host's (switch `SECOND_ADDRESS`).
//!
//! The same pages are mapped a second time, and only there may devices use them: a kernel that is given the host's address
//! breaks its context, and a stream refuses to wait for a word by it. So a library that mixes the two up is found out.

use crate::abi::*;
use crate::context::Context;
use crate::mapping::{Mapping, PAGE, memory_file};
use crate::memory::{Allocation, Kind, find, remove};
use crate::switches::SWITCHES;
use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// Whether host memory that is pinned or registered from now on has a second address.
pub fn is_on() -> bool {
    SWITCHES.second_address.load(Relaxed)
}

/// Maps the pages of the host memory that begins at `base`, an allocation in the table, a second time.
pub fn give(base: u64, context: &Arc<Context>) -> Outcome {
    const PORTABLE: u32 = 1;
    let memory = find(base).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    let (start, end) = (base & !(PAGE as u64 - 1), (base + memory.bytes as u64).next_multiple_of(PAGE as u64));
    let length = (end - start) as usize;
    let view = Mapping::reserve(length, false)?;
    // SAFETY: the pages are the host memory's, which its owner keeps as long as it is registered; those of the view are its
    // own.
    unsafe {
        if !duplicate(start, length, view.start()) {
            share(start, length)?;
            if !duplicate(start, length, view.start()) {
                return Err(CUDA_ERROR_MAP_FAILED);
            }
        }
    }
    let at = view.start() + (base - start);
    let flags = if memory.kind == Kind::Pinned { memory.flags | PORTABLE } else { memory.flags };
    Allocation::enter(at, memory.bytes, Kind::DeviceView, context, memory.device, flags, Some(view));
    find(at).ok_or(CUDA_ERROR_UNKNOWN)?.beside.store(base, SeqCst);
    memory.beside.store(at, SeqCst);
    Ok(())
}

/// Takes the second address of host memory back that is off the table.
pub fn take(memory: &Allocation) -> Outcome {
    match memory.beside.load(SeqCst) {
        0 => Ok(()),
        view => remove(view, &[Kind::DeviceView]).map(|_| ()),
    }
}

/// Maps pages a second time at `to`; false if they are this process' alone.
///
/// # Safety
/// The pages at `to` are nobody's.
unsafe fn duplicate(from: u64, length: usize, to: u64) -> bool {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: an old length of 0 leaves the old pages where they are, and `to` is the caller's to give.
    let at = unsafe { libc::mremap(from as *mut c_void, 0, length, flags, to as *mut c_void) };
    at != libc::MAP_FAILED
}

/// Puts the pages' content into a file, and the file in their place, so that they can be mapped twice.
///
/// # Safety
/// Nobody else writes them meanwhile.
unsafe fn share(start: u64, length: usize) -> Outcome {
    let file = memory_file(length)?;
    // SAFETY: the pages are mapped, as the caller of the driver promised; the descriptor is open.
    let copied = unsafe { libc::pwrite(file.as_raw_fd(), start as *const c_void, length, 0) };
    if copied != length as isize {
        return Err(CUDA_ERROR_MAP_FAILED);
    }
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
    // SAFETY: replaces pages by others of the same content.
    let at = unsafe { libc::mmap(start as *mut c_void, length, protection, flags, file.as_raw_fd(), 0) };
    if at == libc::MAP_FAILED { Err(CUDA_ERROR_MAP_FAILED) } else { Ok(()) }
}
