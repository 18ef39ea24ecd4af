//! Device memory of other processes.
//!
//! A handle says where the owner's file is found: process, descriptor, and a number that is also in the memory's shared
//! page, so that another file that got the same descriptor later is not taken for it. As with CUDA the owner's own
//! process cannot open it; a device need not be visible to whoever opens memory of it; a process opens it once per device and counts further times, and what its owner frees while
//! others have it open is theirs no more: it holds junk from then on, and the counter `freed_while_open` tells.

use crate::abi::*;
use crate::call::{entries, give};
use crate::context::current;
use crate::device::{devices, is_there_unseen, uuid};
use crate::mapping::{Mapping, PAGE};
use crate::memory::{self, Allocation, Kind, find};
use crate::switches::SWITCHES;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::sync::LazyLock;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// The 64 bytes of a `CUipcMemHandle`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Handle {
    magic: u64,
    process: u32,
    descriptor: u32,
    nonce: u64,
    bytes: u64,
    /// Where in the file the allocation begins.
    offset: u64,
    /// Bytes of the file before the shared page.
    data: u64,
    device: [u8; 16],
}

const _: () = assert!(size_of::<Handle>() == 64);
const MAGIC: u64 = u64::from_le_bytes(*b"maypole1");
const LAZY_ENABLE_PEER_ACCESS: u32 = 1;

/// In place of the ordinal of a device that this process does not see.
const UNSEEN: usize = usize::MAX;

/// What this process has open: by nonce the address, and how often.
static OPEN: LazyLock<Mutex<HashMap<u64, (u64, usize)>>> = LazyLock::new(Mutex::default);

fn open(handle: Handle, flags: u32) -> Outcome<u64> {
    let context = current()?;
    if !SWITCHES.ipc.load(Relaxed) || handle.magic != MAGIC || flags != LAZY_ENABLE_PEER_ACCESS {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if handle.process == std::process::id() {
        return Err(CUDA_ERROR_INVALID_CONTEXT);
    }
    let device = (0..devices()).find(|ordinal| uuid(*ordinal) == handle.device);
    let device = device.or(is_there_unseen(handle.device).then_some(UNSEEN)).ok_or(CUDA_ERROR_INVALID_DEVICE)?;
    if device != context.device && !SWITCHES.peer_access.load(Relaxed) {
        return Err(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
    }
    let mut open = OPEN.lock();
    if let Some((address, times)) = open.get_mut(&handle.nonce) {
        let same = find(*address).is_some_and(|one| one.context.handle == context.handle);
        if !same {
            return Err(CUDA_ERROR_INVALID_CONTEXT);
        }
        *times += 1;
        return Ok(*address);
    }
    let path = format!("/proc/{}/fd/{}", handle.process, handle.descriptor);
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|_| CUDA_ERROR_INVALID_VALUE)?;
    let length = file.metadata().map_err(|_| CUDA_ERROR_MAP_FAILED)?.len();
    if length != handle.data + PAGE as u64 || handle.offset + handle.bytes > handle.data {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut mapping = Mapping::reserve(handle.data as usize, true)?;
    mapping.fill(Some(file))?;
    let control = mapping.control().ok_or(CUDA_ERROR_MAP_FAILED)?;
    if control.nonce.load(SeqCst) != handle.nonce || control.freed.load(SeqCst) != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    control.opened.fetch_add(1, SeqCst);
    // What keeps the memory is the mapping; importers hold no descriptor.
    mapping.file = None;
    let base = mapping.start() + handle.offset;
    open.insert(handle.nonce, (base, 1));
    Ok(Allocation::enter(base, handle.bytes as usize, Kind::Imported, &context, device, 0, Some(mapping)))
}

entries! {
    /// A handle for other processes, of an allocation that `address` is the base of.
    fn cuIpcGetMemHandle(to: *mut Handle, address: u64) {
        current()?;
        if !SWITCHES.ipc.load(Relaxed) {
            return Err(CUDA_ERROR_NOT_SUPPORTED);
        }
        let own = find(address).filter(|one| one.base == address && one.kind == Kind::Device);
        let allocation = own.ok_or(CUDA_ERROR_INVALID_VALUE)?;
        let mapping = allocation.mapping.as_ref().ok_or(CUDA_ERROR_INVALID_VALUE)?;
        let (Some(file), Some(control)) = (&mapping.file, mapping.control()) else {
            return Err(CUDA_ERROR_INVALID_VALUE);
        };
        let handle = Handle {
            magic: MAGIC,
            process: std::process::id(),
            descriptor: file.as_raw_fd() as u32,
            nonce: control.nonce.load(SeqCst),
            bytes: allocation.bytes as u64,
            offset: allocation.base - mapping.start(),
            data: mapping.data as u64,
            device: uuid(allocation.device),
        };
        // SAFETY: the caller's promise.
        unsafe { give(to, handle) }
    }

    /// Maps another process' allocation.
    fn cuIpcOpenMemHandle_v2(to: *mut u64, handle: Handle, flags: u32) {
        // SAFETY: the caller's promise.
        unsafe { give(to, open(handle, flags)?) }
    }

    /// Takes it away again, once all streams of the context have done what they were given.
    fn cuIpcCloseMemHandle(address: u64) {
        let context = current()?;
        let mut open = OPEN.lock();
        let entry = open.iter_mut().find(|(_, (base, _))| *base == address);
        let (nonce, (_, times)) = entry.ok_or(CUDA_ERROR_INVALID_VALUE)?;
        *times -= 1;
        if *times > 0 {
            return Ok(());
        }
        let nonce = *nonce;
        open.remove(&nonce);
        drop(open);
        context.synchronize()?;
        let allocation = memory::remove(address, &[Kind::Imported])?;
        if let Some(control) = allocation.mapping.as_ref().and_then(Mapping::control) {
            control.opened.fetch_sub(1, SeqCst);
        }
        Ok(())
    }

    /// Events of other processes are not emulated: `CUDA_ERROR_NOT_SUPPORTED`.
    fn cuIpcGetEventHandle(_to: *mut Handle, _event: usize) {
        Err(CUDA_ERROR_NOT_SUPPORTED)
    }
}
