//! Host memory that devices can use: allocated by the driver, or registered.
//!
//! Its device address is its host address, as on systems that say so in
//! `CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM`.

use crate::abi::*;
use crate::call::{entries, give};
use crate::context::{Context, current};
use crate::mapping::{Mapping, PAGE};
use crate::memory::{Allocation, Kind, before_allocating, find, is_mapped, overlaps, remove};
use crate::switches::SWITCHES;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

fn allocate(bytes: usize, flags: u32) -> Outcome<u64> {
    let context = current()?;
    if bytes == 0 || flags & !7 != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    before_allocating(&context)?;
    let mut mapping = Mapping::reserve(bytes.next_multiple_of(PAGE), false)?;
    mapping.fill(None)?;
    let base = mapping.start();
    Ok(Allocation::enter(base, bytes, Kind::Pinned, &context, context.device, flags, Some(mapping)))
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
        remove(address as u64, &[Kind::Pinned]).map(|_| ())
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
        Ok(())
    }

    /// Takes that back, once all streams of its context have done what they were given.
    fn cuMemHostUnregister(address: *mut c_void) {
        current()?;
        settle(address as u64, Kind::Registered, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED)?;
        remove(address as u64, &[Kind::Registered]).map(|_| ())
    }

    /// The address under which devices know pinned or registered memory.
    fn cuMemHostGetDevicePointer_v2(to: *mut u64, address: *mut c_void, flags: u32) {
        let context = current()?;
        let host = |one: &Arc<Allocation>| matches!(one.kind, Kind::Pinned | Kind::Registered | Kind::Managed);
        let allocation = find(address as u64).filter(host).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        if flags != 0 || !allocation.is_reached_from(&context) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        unsafe { give(to, address as u64) }
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
