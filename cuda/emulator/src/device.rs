//! Devices: how many there are, what is said about each, and the calls that need no context.

use crate::abi::*;
use crate::call::{INITIALISED, entries, give};
use crate::context::Context;
use crate::switches::SWITCHES;
use parking_lot::Mutex;
use std::ffi::{c_char, c_int};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

/// One emulated device.
pub struct Device {
    /// The primary context with its count of users, and the flags it was or will be made with.
    pub primary: Mutex<(Option<Arc<Context>>, usize, u32)>,
}

static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();

/// How many devices there are.
pub fn devices() -> usize {
    DEVICES.get().map_or(0, Vec::len)
}

/// The device with this ordinal.
pub fn device(ordinal: c_int) -> Outcome<&'static Device> {
    let index = usize::try_from(ordinal).map_err(|_| CUDA_ERROR_INVALID_DEVICE)?;
    DEVICES.get().and_then(|devices| devices.get(index)).ok_or(CUDA_ERROR_INVALID_DEVICE)
}

entries! {
    /// Begins; the number of devices is fixed from here on.
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let wanted = SWITCHES.devices.load(Relaxed);
        if wanted == 0 {
            return Err(CUDA_ERROR_NO_DEVICE);
        }
        DEVICES.get_or_init(|| (0..wanted).map(|_| Device { primary: Mutex::new((None, 0, 0)) }).collect());
        INITIALISED.store(true, Relaxed);
        Ok(())
    }

    /// The driver's version, as 12040 for 12.4.
    fn cuDriverGetVersion(version: *mut c_int) {
        // SAFETY: the caller's promise.
        unsafe { give(version, SWITCHES.driver_version.load(Relaxed) as c_int) }
    }

    /// The name of a code.
    fn cuGetErrorName(code: u32, text: *mut *const c_char) {
        let name = name_of(code);
        // SAFETY: the caller's promise.
        unsafe { give(text, name.map_or(std::ptr::null(), |name| name.as_ptr()))? };
        name.map(|_| ()).ok_or(CUDA_ERROR_INVALID_VALUE)
    }

    /// What a code means.
    fn cuGetErrorString(code: u32, text: *mut *const c_char) {
        let meaning = text_of(code);
        // SAFETY: the caller's promise.
        unsafe { give(text, meaning.map_or(std::ptr::null(), |meaning| meaning.as_ptr()))? };
        meaning.map(|_| ()).ok_or(CUDA_ERROR_INVALID_VALUE)
    }

    /// How many devices there are.
    fn cuDeviceGetCount(count: *mut c_int) {
        // SAFETY: the caller's promise.
        unsafe { give(count, devices() as c_int) }
    }

    /// The device with this ordinal: the ordinal.
    fn cuDeviceGet(to: *mut c_int, ordinal: c_int) {
        device(ordinal)?;
        // SAFETY: the caller's promise.
        unsafe { give(to, ordinal) }
    }

    /// The device's name, cut to `bytes`, with a zero behind it.
    fn cuDeviceGetName(to: *mut c_char, bytes: c_int, ordinal: c_int) {
        device(ordinal)?;
        // SAFETY: the caller's promise: room for `bytes` characters.
        unsafe { give_text(to, bytes, "Maypole emulated device") }
    }

    /// 16 bytes, the same in every process of this machine.
    fn cuDeviceGetUuid(to: *mut [u8; 16], ordinal: c_int) {
        device(ordinal)?;
        // SAFETY: the caller's promise.
        unsafe { give(to, uuid(ordinal as usize)) }
    }

    /// The same as `cuDeviceGetUuid`: there are no partitions of a device here.
    fn cuDeviceGetUuid_v2(to: *mut [u8; 16], ordinal: c_int) {
        device(ordinal)?;
        // SAFETY: the caller's promise.
        unsafe { give(to, uuid(ordinal as usize)) }
    }

    /// Where the device would sit on the bus.
    fn cuDeviceGetPCIBusId(to: *mut c_char, bytes: c_int, ordinal: c_int) {
        device(ordinal)?;
        // SAFETY: the caller's promise: room for `bytes` characters.
        unsafe { give_text(to, bytes, &format!("0000:{:02X}:00.0", ordinal + 1)) }
    }

    /// The device's memory in bytes (switch `MEMORY`).
    fn cuDeviceTotalMem_v2(bytes: *mut usize, ordinal: c_int) {
        device(ordinal)?;
        // SAFETY: the caller's promise.
        unsafe { give(bytes, SWITCHES.memory.load(Relaxed) as usize) }
    }

    /// One of the facts about a device. Those that are not known here are 0.
    fn cuDeviceGetAttribute(to: *mut c_int, attribute: u32, ordinal: c_int) {
        device(ordinal)?;
        // SAFETY: the caller's promise.
        unsafe { give(to, fact(attribute, ordinal)) }
    }

    /// Whether kernels on one device can use the other's memory (switch `PEER_ACCESS`).
    fn cuDeviceCanAccessPeer(to: *mut c_int, from: c_int, of: c_int) {
        device(from)?;
        device(of)?;
        // SAFETY: the caller's promise.
        unsafe { give(to, c_int::from(from != of && SWITCHES.peer_access.load(Relaxed))) }
    }

    /// Facts about a pair of devices: rank 0, access, no atomics.
    fn cuDeviceGetP2PAttribute(to: *mut c_int, attribute: u32, from: c_int, of: c_int) {
        device(from)?;
        device(of)?;
        if from == of {
            return Err(CUDA_ERROR_INVALID_DEVICE);
        }
        // SAFETY: the caller's promise.
        unsafe { give(to, c_int::from(attribute == 2 && SWITCHES.peer_access.load(Relaxed))) }
    }
}

/// # Safety
/// `to` must be null or have room for `bytes` characters.
unsafe fn give_text(to: *mut c_char, bytes: c_int, text: &str) -> Outcome {
    let Some(room) = usize::try_from(bytes).ok().and_then(|bytes| bytes.checked_sub(1)) else {
        return Err(CUDA_ERROR_INVALID_VALUE);
    };
    if to.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let text = &text.as_bytes()[..text.len().min(room)];
    // SAFETY: `text` and the zero behind it are at most `bytes` long, for which there is room.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

/// Made from the machine's boot, the switch `MACHINE` and the ordinal, since processes must agree without talking.
pub fn uuid(ordinal: usize) -> [u8; 16] {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let text = format!("{boot}/{}/{ordinal}", SWITCHES.machine.lock());
    let half =
        |start: u64| text.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&half(0xCBF2_9CE4_8422_2325).to_le_bytes());
    uuid[8..].copy_from_slice(&half(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    uuid
}

fn fact(attribute: u32, ordinal: c_int) -> c_int {
    let capability = SWITCHES.capability.load(Relaxed) as c_int;
    let memory_operations = c_int::from(SWITCHES.memory_operations.load(Relaxed));
    match attribute {
        1..=3 => 1024,                // threads of a block, and along x and y
        4 => 64,                      // along z
        5 => i32::MAX,                // blocks along x
        6 | 7 => 65535,               // along y and z
        8 => 48 << 10,                // shared memory of a block
        10 => 32,                     // threads of a warp
        12 => 65536,                  // registers of a block
        16 => 4,                      // multiprocessors
        19 | 31 | 41 | 83 => 1,       // maps host memory, runs kernels at once, one address space, managed memory
        33 => ordinal + 1,            // bus
        39 => 2048,                   // threads of a multiprocessor
        40 => 2,                      // copy engines
        75 => capability / 10,        // compute capability
        76 => capability % 10,        //
        78 | 91 | 99 => 1,            // priorities; registered memory at the host's address; registration
        92..=94 => memory_operations, // stream memory operations, in the old and the new numbering
        122 | 123 => memory_operations,
        _ => 0,
    }
}
