//! What the driver knows about an address.

use crate::abi::*;
use crate::call::{entries, give};
use crate::memory::{Allocation, Kind, find};
use crate::virtual_memory::reservation;
use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering::SeqCst;

const CONTEXT: u32 = 1;
const MEMORY_TYPE: u32 = 2;
const DEVICE_POINTER: u32 = 3;
const HOST_POINTER: u32 = 4;
const SYNC_MEMOPS: u32 = 6;
const BUFFER_ID: u32 = 7;
const IS_MANAGED: u32 = 8;
const DEVICE_ORDINAL: u32 = 9;
const IS_LEGACY_IPC_CAPABLE: u32 = 10;
const RANGE_START: u32 = 11;
const RANGE_SIZE: u32 = 12;
const MAPPED: u32 = 13;
const ALLOWED_HANDLE_TYPES: u32 = 14;
const POOL: u32 = 17;
/// The handle of the first device's pool; nothing can be asked of it.
const POOLS: u64 = 0x0D00_0000_1000;

/// Stores one attribute.
///
/// # Safety
/// `to` must have room for the attribute's type.
unsafe fn attribute(to: *mut c_void, attribute: u32, address: u64, one: &Allocation) -> Outcome {
    let on_host = matches!(one.kind, Kind::Pinned | Kind::Registered | Kind::DeviceView);
    let there = match one.beside.load(SeqCst) {
        0 => address,
        beside => beside + (address - one.base),
    };
    let (on_device, of_host) = if one.kind == Kind::DeviceView { (address, there) } else { (there, address) };
    let has_context = !matches!(one.kind, Kind::Mapped | Kind::Pool);
    // Of mapped memory "not necessarily the size of the mapped region, but the size of the mappable address range", as
    // the manual says.
    let (base, bytes) = match one.kind {
        Kind::Mapped => reservation(address).ok_or(CUDA_ERROR_INVALID_VALUE)?,
        _ => (one.base, one.bytes),
    };
    // SAFETY: in every arm: the room is promised by this function's contract.
    unsafe {
        match attribute {
            CONTEXT => give(to.cast::<usize>(), if has_context { one.context.handle } else { 0 }),
            MEMORY_TYPE => give(to.cast::<u32>(), if on_host { 1 } else { 2 }),
            DEVICE_POINTER => give(to.cast::<u64>(), on_device),
            HOST_POINTER if on_host || one.kind == Kind::Managed => give(to.cast::<u64>(), of_host),
            HOST_POINTER => Err(CUDA_ERROR_INVALID_VALUE),
            SYNC_MEMOPS => give(to.cast::<u8>(), 0),
            BUFFER_ID => give(to.cast::<u64>(), one.id),
            IS_MANAGED => give(to.cast::<u8>(), u8::from(one.kind == Kind::Managed)),
            DEVICE_ORDINAL => give(to.cast::<c_int>(), one.device as c_int),
            IS_LEGACY_IPC_CAPABLE => give(to.cast::<u8>(), u8::from(one.kind == Kind::Device)),
            RANGE_START => give(to.cast::<u64>(), base),
            RANGE_SIZE => give(to.cast::<usize>(), bytes),
            MAPPED => give(to.cast::<u8>(), 1),
            POOL if one.kind == Kind::Pool => give(to.cast::<u64>(), POOLS + one.device as u64),
            ALLOWED_HANDLE_TYPES | POOL => give(to.cast::<u64>(), 0),
            _ => Err(CUDA_ERROR_NOT_SUPPORTED),
        }
    }
}

/// The bytes that an attribute takes.
fn size(attribute: u32) -> usize {
    match attribute {
        MEMORY_TYPE | DEVICE_ORDINAL => 4,
        SYNC_MEMOPS | IS_MANAGED | IS_LEGACY_IPC_CAPABLE | MAPPED => 1,
        _ => 8,
    }
}

entries! {
    /// One attribute of an address; `CUDA_ERROR_INVALID_VALUE` if no driver knows the address.
    fn cuPointerGetAttribute(to: *mut c_void, which: u32, address: u64) {
        let allocation = find(address).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        // SAFETY: the caller's promise.
        unsafe { attribute(to, which, address, &allocation) }
    }

    /// Several of them; zeros (and ordinal -2) for an address that no driver knows, which is no error here.
    fn cuPointerGetAttributes(count: u32, which: *mut u32, to: *mut *mut c_void, address: u64) {
        if which.is_null() || to.is_null() {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let allocation = find(address);
        for index in 0..count as usize {
            // SAFETY: the caller's promise: `count` attributes and as many places.
            let (which, to) = unsafe { (*which.add(index), *to.add(index)) };
            if to.is_null() {
                return Err(CUDA_ERROR_INVALID_VALUE);
            }
            // SAFETY: the caller's promise: room for the attribute.
            unsafe { std::ptr::write_bytes(to.cast::<u8>(), 0, size(which)) };
            match &allocation {
                // SAFETY: as above.
                Some(allocation) => match unsafe { attribute(to, which, address, allocation) } {
                    Err(code) if code != CUDA_ERROR_INVALID_VALUE => return Err(code),
                    _ => {}
                },
                // SAFETY: as above.
                None if which == DEVICE_ORDINAL => unsafe { give(to.cast::<c_int>(), -2)? },
                None => {}
            }
        }
        Ok(())
    }

    /// Accepted and without effect: copies are ordered here in any case where the flag would order them.
    fn cuPointerSetAttribute(_value: *const c_void, which: u32, address: u64) {
        find(address).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        if which == SYNC_MEMOPS { Ok(()) } else { Err(CUDA_ERROR_INVALID_VALUE) }
    }
}
