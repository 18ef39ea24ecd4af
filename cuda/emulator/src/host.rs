//! Host memory that devices can use: allocated by the driver, or registered.
//!
//! Its device address is its host address, as on systems that say so in
//! `CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM`; or another, as on those that do not
//! ([`second_address`]).

use crate::abi::*;
use crate::call::{entries, give};
use crate::context::{Context, current};
use crate::mapping::{Mapping, PAGE, memory_file};
use crate::memory::{Allocation, Kind, before_allocating, find, is_mapped, overlaps, remove};
use crate::second_address;
use crate::switches::SWITCHES;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

fn allocate(bytes: usize, flags: u32) -> Outcome<u64> {
    let context = current()?;
    if bytes == 0 || flags & !7 != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    before_allocating(&context)?;
    let mut mapping = Mapping::reserve(bytes.next_multiple_of(PAGE), false)?;
    // Pages that can be mapped twice are a file's.
    let file = second_address::is_on().then(|| memory_file(bytes.next_multiple_of(PAGE))).transpose()?;
    mapping.fill(file)?;
    let base = mapping.start();
    Allocation::enter(base, bytes, Kind::Pinned, &context, context.device, flags, Some(mapping));
    if second_address::is_on() {
        second_address::give(base, &context)?;
    }
    Ok(base)
}

/// Waits until the streams of the context to which memory belongs have done what they were given.
fn settle(address: u64, kind: Kind, or: Code) -> Outcome<Arc<Context>> {
    let owner = find(address).filter(|one| one.base == address && one.kind == kind).ok_or(or)?.context.clone();
    owner.synchronize()?;
    Ok(owner)
}

entries! {
    /// Pinned host memory.
    fn cuMemAllocHost_v2(to: *mut *mut c_void, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { give(to, allocate(bytes, 0)? as *mut c_void) }
    }

    /// The same with flags, which change nothing.
    fn cuMemHostAlloc(to: *mut *mut c_void, bytes: usize, flags: u32) {
        // SAFETY: the caller's promise.
        unsafe { give(to, allocate(bytes, flags)? as *mut c_void) }
    }

    /// Frees it, once all streams of its context have done what they were given.
    fn cuMemFreeHost(address: *mut c_void) {
        current()?;
        settle(address as u64, Kind::Pinned, CUDA_ERROR_INVALID_VALUE)?;
        let memory = remove(address as u64, &[Kind::Pinned])?;
        second_address::take(&memory)
    }

    /// Lets devices use memory that the process already has. Without flag 1 (portable) only the current context may.
    fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, flags: u32) {
        let context = current()?;
        if !SWITCHES.host_register.load(Relaxed) {
            return Err(CUDA_ERROR_NOT_SUPPORTED);
        }
        if address.is_null() || bytes == 0 || flags & !15 != 0 || !is_mapped(address as u64, bytes) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        if overlaps(address as u64, bytes) {
            return Err(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        }
        Allocation::enter(address as u64, bytes, Kind::Registered, &context, context.device, flags, None);
        if second_address::is_on() { second_address::give(address as u64, &context) } else { Ok(()) }
    }

    /// Takes that back, once all streams of its context have done what they were given.
    fn cuMemHostUnregister(address: *mut c_void) {
        current()?;
        settle(address as u64, Kind::Registered, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED)?;
        let memory = remove(address as u64, &[Kind::Registered])?;
        second_address::take(&memory)
    }

    /// The address under which devices know pinned or registered memory.
    fn cuMemHostGetDevicePointer_v2(to: *mut u64, address: *mut c_void, flags: u32) {
        let context = current()?;
        let host = |one: &Arc<Allocation>| matches!(one.kind, Kind::Pinned | Kind::Registered | Kind::Managed);
        let allocation = find(address as u64).filter(host).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        let device = match allocation.beside.load(SeqCst) {
            0 => address as u64,
            view => view + (address as u64 - allocation.base),
        };
        if flags != 0 || !find(device).is_some_and(|seen| seen.is_reached_from(&context)) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        unsafe { give(to, device) }
    }

    /// The flags that pinned memory was made with.
    fn cuMemHostGetFlags(to: *mut u32, address: *mut c_void) {
        current()?;
        let pinned = |one: &Arc<Allocation>| matches!(one.kind, Kind::Pinned | Kind::Registered);
        let allocation = find(address as u64).filter(pinned).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        // SAFETY: the caller's promise.
        unsafe { give(to, allocation.flags) }
    }
}
