//! Devices and contexts: making them, making them current, and what goes wrong in one for good.

use crate::abi::*;
use crate::call::{Handles, INITIALISED, entries, give};
use crate::memory::bytes_in_use;
use crate::stream::{Stream, StreamKind};
use crate::switches::SWITCHES;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, OnceLock};
use std::thread::ThreadId;

/// A context: the streams, memory and errors of one user of a device in this process.
pub struct Context {
    pub handle: usize,
    pub device: usize,
    primary: bool,
    /// The error after which nothing works any more here; 0 for none.
    broken: AtomicU32,
    destroyed: AtomicBool,
    legacy: OnceLock<Arc<Stream>>,
    per_thread: Mutex<HashMap<ThreadId, Arc<Stream>>>,
    /// Taken while a command is queued: implicit order between streams follows the order of the calls.
    pub submission: Mutex<Submission>,
    /// Contexts whose memory may be used from this one.
    peers: Mutex<HashSet<usize>>,
}

/// What the order of submission leaves behind.
#[derive(Default)]
pub struct Submission {
    /// Streams of this context that take part in anything implicit, by number. Dead ones are dropped on the way.
    pub streams: Vec<std::sync::Weak<Stream>>,
    /// For each hardware queue (switch `CONNECTIONS`) the stream that used it last, and its position then.
    pub last_of_queue: HashMap<u64, (std::sync::Weak<Stream>, u64)>,
}

/// One emulated device.
struct Device {
    /// The primary context with its count of users, and the flags it was or will be made with.
    primary: Mutex<(Option<Arc<Context>>, usize, u32)>,
}

pub static CONTEXTS: LazyLock<Handles<Context>> = LazyLock::new(|| Handles::new(HashMap::new()));
static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();

thread_local! {
    static STACK: RefCell<Vec<Arc<Context>>> = const { RefCell::new(Vec::new()) };
}

/// How many devices there are.
pub fn devices() -> usize {
    DEVICES.get().map_or(0, Vec::len)
}

fn device(ordinal: c_int) -> Outcome<&'static Device> {
    let index = usize::try_from(ordinal).map_err(|_| CUDA_ERROR_INVALID_DEVICE)?;
    DEVICES.get().and_then(|devices| devices.get(index)).ok_or(CUDA_ERROR_INVALID_DEVICE)
}

/// The calling thread's context, if it still works.
pub fn current() -> Outcome<Arc<Context>> {
    let context = STACK.with_borrow(|stack| stack.last().cloned()).ok_or(CUDA_ERROR_INVALID_CONTEXT)?;
    context.check()?;
    Ok(context)
}

impl Context {
    fn make(device: usize, primary: bool) -> Arc<Context> {
        CONTEXTS.insert(|handle| Context {
            handle,
            device,
            primary,
            broken: AtomicU32::new(0),
            destroyed: AtomicBool::new(false),
            legacy: OnceLock::new(),
            per_thread: Mutex::new(HashMap::new()),
            submission: Mutex::new(Submission::default()),
            peers: Mutex::new(HashSet::new()),
        })
    }

    /// Fails if the context was destroyed, or with the error that broke it.
    pub fn check(&self) -> Outcome {
        if self.destroyed.load(Relaxed) {
            return Err(CUDA_ERROR_CONTEXT_IS_DESTROYED);
        }
        match self.broken.load(Relaxed) {
            CUDA_SUCCESS => Ok(()),
            code => Err(code),
        }
    }

    /// From now on everything here fails with this code, as after a kernel's fault. The first one stays.
    pub fn break_with(&self, code: Code) {
        let _ = self.broken.compare_exchange(CUDA_SUCCESS, code, Relaxed, Relaxed);
    }

    /// Whether commands are not executed any more, only taken off their streams.
    pub fn is_dead(&self) -> bool {
        self.broken.load(Relaxed) != CUDA_SUCCESS || self.destroyed.load(Relaxed)
    }

    /// Whether kernels of this context may use the other's memory.
    pub fn reaches(&self, other: &Context) -> bool {
        self.handle == other.handle || self.peers.lock().contains(&other.handle)
    }

    pub fn legacy_stream(self: &Arc<Context>) -> Arc<Stream> {
        self.legacy.get_or_init(|| Stream::make(self, StreamKind::Legacy, 0)).clone()
    }

    /// The legacy default stream if something was ever queued on it.
    pub fn legacy_if_used(&self) -> Option<&Arc<Stream>> {
        self.legacy.get()
    }

    /// The calling thread's default stream.
    pub fn thread_stream(self: &Arc<Context>) -> Arc<Stream> {
        let mut streams = self.per_thread.lock();
        streams
            .entry(std::thread::current().id())
            .or_insert_with(|| Stream::make(self, StreamKind::Blocking, 0))
            .clone()
    }

    /// Waits until everything queued in this context so far has ended.
    pub fn synchronize(&self) -> Outcome {
        let streams: Vec<_> = self.submission.lock().streams.iter().filter_map(std::sync::Weak::upgrade).collect();
        for stream in streams {
            if stream.is_capturing() {
                return Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
            }
            stream.wait_for(stream.submitted());
        }
        self.check()
    }

    fn destroy(&self) {
        let _ = self.synchronize();
        self.destroyed.store(true, Relaxed);
        crate::memory::forget_context(self.handle);
        self.per_thread.lock().clear();
    }
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

    /// The device's primary context, made if nobody has it yet.
    fn cuDevicePrimaryCtxRetain(to: *mut usize, ordinal: c_int) {
        let mut primary = device(ordinal)?.primary.lock();
        let context = primary.0.get_or_insert_with(|| Context::make(ordinal as usize, true)).clone();
        primary.1 += 1;
        // SAFETY: the caller's promise.
        unsafe { give(to, context.handle) }
    }

    /// Gives the primary context back; the last one ends it.
    fn cuDevicePrimaryCtxRelease_v2(ordinal: c_int) {
        let mut primary = device(ordinal)?.primary.lock();
        primary.1 = primary.1.checked_sub(1).ok_or(CUDA_ERROR_INVALID_CONTEXT)?;
        if primary.1 == 0 && let Some(context) = primary.0.take() {
            drop(primary);
            let _ = CONTEXTS.remove(context.handle);
            context.destroy();
        }
        Ok(())
    }

    /// Whether the primary context exists, and its flags.
    fn cuDevicePrimaryCtxGetState(ordinal: c_int, flags: *mut u32, active: *mut c_int) {
        let primary = device(ordinal)?.primary.lock();
        // SAFETY: the caller's promise, for both.
        unsafe {
            give(flags, primary.2)?;
            give(active, c_int::from(primary.0.is_some()))
        }
    }

    /// Flags of the primary context. They change nothing here.
    fn cuDevicePrimaryCtxSetFlags_v2(ordinal: c_int, flags: u32) {
        device(ordinal)?.primary.lock().2 = flags;
        Ok(())
    }

    /// A context of its own beside the primary one, current on the calling thread.
    fn cuCtxCreate_v2(to: *mut usize, _flags: u32, ordinal: c_int) {
        device(ordinal)?;
        let context = Context::make(ordinal as usize, false);
        // SAFETY: the caller's promise.
        unsafe { give(to, context.handle)? };
        STACK.with_borrow_mut(|stack| stack.push(context));
        Ok(())
    }

    /// Ends a context that `cuCtxCreate` made.
    fn cuCtxDestroy_v2(handle: usize) {
        let context = known(handle)?;
        if context.primary {
            return Err(CUDA_ERROR_INVALID_CONTEXT);
        }
        let _ = CONTEXTS.remove(handle);
        context.destroy();
        STACK.with_borrow_mut(|stack| if stack.last().is_some_and(|top| top.handle == handle) { stack.pop(); });
        Ok(())
    }

    /// Makes a context current and keeps the one that was.
    fn cuCtxPushCurrent_v2(handle: usize) {
        let context = known(handle)?;
        STACK.with_borrow_mut(|stack| stack.push(context));
        Ok(())
    }

    /// Makes the one before current again.
    fn cuCtxPopCurrent_v2(to: *mut usize) {
        let context = STACK.with_borrow_mut(Vec::pop).ok_or(CUDA_ERROR_INVALID_CONTEXT)?;
        // SAFETY: checked here; a null pointer is allowed.
        if to.is_null() { Ok(()) } else { unsafe { give(to, context.handle) } }
    }

    /// Replaces the current context; 0 takes it away.
    fn cuCtxSetCurrent(handle: usize) {
        let context = if handle == 0 { None } else { Some(known(handle)?) };
        STACK.with_borrow_mut(|stack| {
            stack.pop();
            stack.extend(context);
        });
        Ok(())
    }

    /// The current context, or 0.
    fn cuCtxGetCurrent(to: *mut usize) {
        let handle = STACK.with_borrow(|stack| stack.last().map_or(0, |context| context.handle));
        // SAFETY: the caller's promise.
        unsafe { give(to, handle) }
    }

    /// The current context's device.
    fn cuCtxGetDevice(to: *mut c_int) {
        let context = STACK.with_borrow(|stack| stack.last().cloned()).ok_or(CUDA_ERROR_INVALID_CONTEXT)?;
        // SAFETY: the caller's promise.
        unsafe { give(to, context.device as c_int) }
    }

    /// The current context's flags: none.
    fn cuCtxGetFlags(to: *mut u32) {
        current()?;
        // SAFETY: the caller's promise.
        unsafe { give(to, 0) }
    }

    /// A number that no other context has.
    fn cuCtxGetId(handle: usize, to: *mut u64) {
        let context = if handle == 0 { current()? } else { known(handle)? };
        // SAFETY: the caller's promise.
        unsafe { give(to, context.handle as u64) }
    }

    /// The version of the interface that the context was made for.
    fn cuCtxGetApiVersion(_handle: usize, to: *mut u32) {
        // SAFETY: the caller's promise.
        unsafe { give(to, 3020) }
    }

    /// Waits for everything in the current context.
    fn cuCtxSynchronize() {
        current()?.synchronize()
    }

    /// The least and the greatest priority of a stream. Priorities are accepted and change nothing.
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        current()?;
        // SAFETY: the caller's promise, for both.
        unsafe {
            give(least, 0)?;
            give(greatest, -5)
        }
    }

    /// Lets kernels of the current context use the peer's memory.
    fn cuCtxEnablePeerAccess(peer: usize, flags: u32) {
        let (context, peer) = (current()?, known(peer)?);
        if flags != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        if context.device == peer.device {
            return Err(CUDA_ERROR_INVALID_DEVICE);
        }
        if !SWITCHES.peer_access.load(Relaxed) {
            return Err(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
        }
        let new = context.peers.lock().insert(peer.handle);
        if new { Ok(()) } else { Err(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED) }
    }

    /// Takes that back.
    fn cuCtxDisablePeerAccess(peer: usize) {
        let removed = current()?.peers.lock().remove(&peer);
        if removed { Ok(()) } else { Err(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED) }
    }

    /// What is left of the current device's memory, and all of it. Counts this process alone.
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let context = current()?;
        let all = SWITCHES.memory.load(Relaxed) as usize;
        // SAFETY: the caller's promise, for both.
        unsafe {
            give(free, all.saturating_sub(bytes_in_use(context.device)))?;
            give(total, all)
        }
    }
}

/// A live context, for the calls that take one.
pub fn known(handle: usize) -> Outcome<Arc<Context>> {
    CONTEXTS.get(handle).map_err(|_| CUDA_ERROR_INVALID_CONTEXT)
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
