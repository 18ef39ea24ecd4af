//! Devices: how many there are, what is said about each, and the calls that need no context.

use crate::abi::*;
use crate::call::{INITIALISED, entries, give};
use crate::context::Context;
use crate::second_address;
use crate::switches::SWITCHES;
use parking_lot::Mutex;
use std::ffi::{c_char, c_int};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

/// One emulated device that this process sees.
pub struct Device {
    /// Its number among all of the machine.
    pub place: usize,
    /// Held as long as the device is this process' alone (switch `EXCLUSIVE`).
    claim: Mutex<Option<UnixListener>>,
    /// The primary context with its count of users, and the flags it was or will be made with.
    pub primary: Mutex<(Option<Arc<Context>>, usize, u32)>,
}

static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();

impl Device {
    fn at(place: usize) -> Device {
        Device { place, claim: Mutex::new(None), primary: Mutex::new((None, 0, 0)) }
    }

    /// A context is about to be made here: fails if the device is another process' alone.
    pub fn claim(&self) -> Outcome {
        let mut claim = self.claim.lock();
        if SWITCHES.exclusive.load(Relaxed) && claim.is_none() {
            // A name that one process at a time can have, and that ends with it.
            let name: String = uuid_of(self.place).iter().map(|byte| format!("{byte:02x}")).collect();
            let address = SocketAddr::from_abstract_name(format!("maypole emulator {name}"));
            let taken = address.and_then(|address| UnixListener::bind_addr(&address));
            *claim = Some(taken.map_err(|_| CUDA_ERROR_DEVICE_UNAVAILABLE)?);
        }
        Ok(())
    }
}

/// Which of the machine's devices a process sees, by what `CUDA_VISIBLE_DEVICES` says: numbers, or UUIDs as `nvidia-smi`
/// writes them, which may be cut short. The list ends before the first that is none; one that names a device twice is no
/// list.
fn visible(machine: usize, list: Option<&str>) -> Vec<usize> {
    let Some(list) = list else { return (0..machine).collect() };
    let hex = |place: usize| uuid_of(place).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let place = |name: &str| match name.strip_prefix("GPU-") {
        Some(start) => (0..machine).find(|place| !start.is_empty() && hex(*place).starts_with(&start.replace('-', ""))),
        None => name.parse().ok().filter(|place| *place < machine),
    };
    let places: Vec<usize> = list.split(',').map_while(|name| place(name.trim())).collect();
    let twice = (1..places.len()).any(|i| places[..i].contains(&places[i]));
    if twice { Vec::new() } else { places }
}

/// How many devices this process sees.
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
        let list = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let places = visible(SWITCHES.devices.load(Relaxed), list.as_deref());
        if places.is_empty() {
            return Err(CUDA_ERROR_NO_DEVICE);
        }
        DEVICES.get_or_init(|| places.into_iter().map(Device::at).collect());
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

    /// How many devices this process sees.
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
        let place = device(ordinal)?.place;
        // SAFETY: the caller's promise.
        unsafe { give(to, uuid_of(place)) }
    }

    /// The same as `cuDeviceGetUuid`: there are no partitions of a device here.
    fn cuDeviceGetUuid_v2(to: *mut [u8; 16], ordinal: c_int) {
        let place = device(ordinal)?.place;
        // SAFETY: the caller's promise.
        unsafe { give(to, uuid_of(place)) }
    }

    /// Where the device would sit on the bus.
    fn cuDeviceGetPCIBusId(to: *mut c_char, bytes: c_int, ordinal: c_int) {
        let place = device(ordinal)?.place;
        // SAFETY: the caller's promise: room for `bytes` characters.
        unsafe { give_text(to, bytes, &format!("0000:{:02X}:00.0", place + 1)) }
    }

    /// The device's memory in bytes (switch `MEMORY`).
    fn cuDeviceTotalMem_v2(bytes: *mut usize, ordinal: c_int) {
        device(ordinal)?;
        // SAFETY: the caller's promise.
        unsafe { give(bytes, SWITCHES.memory.load(Relaxed) as usize) }
    }

    /// One of the facts about a device. Those that are not known here are 0.
    fn cuDeviceGetAttribute(to: *mut c_int, attribute: u32, ordinal: c_int) {
        let place = device(ordinal)?.place;
        // SAFETY: the caller's promise.
        unsafe { give(to, fact(attribute, place)) }
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

/// The UUID of a device that this process sees.
pub fn uuid(ordinal: usize) -> [u8; 16] {
    uuid_of(DEVICES.get().and_then(|devices| devices.get(ordinal)).map_or(ordinal, |device| device.place))
}

/// Whether the machine has a device with this UUID of which this process sees nothing, but whose node is there for it.
pub fn is_there_unseen(wanted: [u8; 16]) -> bool {
    let machine = SWITCHES.devices.load(Relaxed);
    !SWITCHES.hidden.load(Relaxed) && (0..machine).any(|place| uuid_of(place) == wanted)
}

/// Made from the machine's boot, the switch `MACHINE` and the device's number there, since processes must agree without
/// talking.
fn uuid_of(place: usize) -> [u8; 16] {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let text = format!("{boot}/{}/{place}", SWITCHES.machine.lock());
    let half =
        |start: u64| text.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&half(0xCBF2_9CE4_8422_2325).to_le_bytes());
    uuid[8..].copy_from_slice(&half(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    uuid
}

fn fact(attribute: u32, place: usize) -> c_int {
    let capability = SWITCHES.capability.load(Relaxed) as c_int;
    let memory_operations = c_int::from(SWITCHES.memory_operations.load(Relaxed));
    match attribute {
        1..=3 => 1024,                               // threads of a block, and along x and y
        4 => 64,                                     // along z
        5 => i32::MAX,                               // blocks along x
        6 | 7 => 65535,                              // along y and z
        8 => 48 << 10,                               // shared memory of a block
        10 => 32,                                    // threads of a warp
        12 => 65536,                                 // registers of a block
        16 => 4,                                     // multiprocessors
        19 | 31 | 41 | 83 => 1, // maps host memory, runs kernels at once, one address space, managed memory
        33 => place as c_int + 1, // bus
        39 => 2048,             // threads of a multiprocessor
        40 => 2,                // copy engines
        75 => capability / 10,  // compute capability
        76 => capability % 10,  //
        78 | 99 => 1,           // priorities; registration
        91 => c_int::from(!second_address::is_on()), // registered memory at the host's address
        92..=94 => memory_operations, // stream memory operations, in the old and the new numbering
        122 | 123 => memory_operations,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_devices_are_those_of_the_list() {
        let hex: String = uuid_of(2).iter().map(|byte| format!("{byte:02x}")).collect();
        let short = format!("GPU-{}-{}", &hex[..8], &hex[8..10]);
        for (list, expected) in [
            (None, &[0, 1, 2][..]),
            (Some(""), &[]),
            (Some("1"), &[1]),
            (Some("2, 0"), &[2, 0]),
            (Some("1,-1,0"), &[1]),
            (Some("0,3,1"), &[0]),
            (Some("0,1,0"), &[]),
            (Some("all"), &[]),
            (Some(short.as_str()), &[2]),
        ] {
            assert_eq!(visible(3, list), expected, "{list:?}");
        }
    }
}
