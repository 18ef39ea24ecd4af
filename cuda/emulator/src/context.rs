//! Contexts: making them, making them current, and what goes wrong in one for good.

use crate::abi::*;
use crate::call::{Handles, entries, give};
use crate::device::device;
use crate::memory::bytes_in_use;
use crate::stream::{Stream, StreamKind};
use crate::switches::SWITCHES;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, OnceLock};
use std::thread::ThreadId;

/// What a driver does with kernels of its own, which it loads when they are first needed, like a program's.
#[derive(Clone, Copy)]
pub enum Builtin {
    /// Filling memory.
    Fill,
    /// Copying inside devices.
    Copy,
}

/// A context: the streams, memory and errors of one user of a device in this process.
pub struct Context {
    pub handle: usize,
    pub device: usize,
    primary: bool,
    /// Of a green context: the primary one of its device.
    pub green_of: Option<Arc<Context>>,
    /// The error after which nothing works any more here; 0 for none.
    broken: AtomicU32,
    destroyed: AtomicBool,
    legacy: OnceLock<Arc<Stream>>,
    per_thread: Mutex<HashMap<ThreadId, Arc<Stream>>>,
    /// Taken while a command is queued: implicit order between streams follows the order of the calls.
    pub submission: Mutex<Submission>,
    /// Contexts whose memory may be used from this one.
    peers: Mutex<HashSet<usize>>,
    /// Kernels of the driver's, by [`Builtin`], that are loaded here (switch `LAZY`).
    loaded: [AtomicBool; 2],
}

/// What the order of submission leaves behind.
#[derive(Default)]
pub struct Submission {
    /// Streams of this context that take part in anything implicit, by number. Dead ones are dropped on the way.
    pub streams: Vec<std::sync::Weak<Stream>>,
    /// For each hardware queue (switch `CONNECTIONS`) the stream that used it last, and its position then.
    pub last_of_queue: HashMap<u64, (std::sync::Weak<Stream>, u64)>,
}

pub static CONTEXTS: LazyLock<Handles<Context>> = LazyLock::new(|| Handles::new(HashMap::new()));

thread_local! {
    static STACK: RefCell<Vec<Arc<Context>>> = const { RefCell::new(Vec::new()) };
}

/// The calling thread's context, if it still works.
pub fn current() -> Outcome<Arc<Context>> {
    let context = STACK.with_borrow(|stack| stack.last().cloned()).ok_or(CUDA_ERROR_INVALID_CONTEXT)?;
    context.check()?;
    Ok(context)
}

impl Context {
    fn make(device: usize, primary: bool) -> Arc<Context> {
        Context::make_beside(device, primary, None)
    }

    /// A green context beside its device's primary one.
    pub fn make_green(primary: &Arc<Context>) -> Arc<Context> {
        Context::make_beside(primary.device, false, Some(primary.clone()))
    }

    fn make_beside(device: usize, primary: bool, green_of: Option<Arc<Context>>) -> Arc<Context> {
        CONTEXTS.insert(|handle| Context {
            handle,
            device,
            primary,
            green_of,
            broken: AtomicU32::new(0),
            destroyed: AtomicBool::new(false),
            legacy: OnceLock::new(),
            per_thread: Mutex::new(HashMap::new()),
            submission: Mutex::new(Submission::default()),
            peers: Mutex::new(HashSet::new()),
            loaded: [const { AtomicBool::new(false) }; 2],
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

    /// Whether a stream of this context is being captured.
    fn is_capturing(&self) -> bool {
        let submission = self.submission.lock();
        submission.streams.iter().filter_map(std::sync::Weak::upgrade).any(|stream| stream.is_capturing())
    }

    /// Waits until everything queued in this context so far has ended. What was captured is not queued.
    pub fn synchronize(&self) -> Outcome {
        let streams: Vec<_> = self.submission.lock().streams.iter().filter_map(std::sync::Weak::upgrade).collect();
        for stream in streams {
            stream.wait_for(stream.submitted());
        }
        self.check()
    }

    /// The first fill or copy waits for the context, as the first launch of a program's kernel does.
    pub fn first_use(&self, what: Builtin) -> Outcome {
        if SWITCHES.lazy_loading.load(Relaxed) && !self.loaded[what as usize].swap(true, Relaxed) {
            self.synchronize()?;
        }
        Ok(())
    }

    pub fn destroy(&self) {
        let _ = self.synchronize();
        self.destroyed.store(true, Relaxed);
        crate::memory::forget_context(self.handle);
        self.per_thread.lock().clear();
    }
}

entries! {
    /// The device's primary context, made if nobody has it yet.
    fn cuDevicePrimaryCtxRetain(to: *mut usize, ordinal: c_int) {
        let context = retain_primary(ordinal)?;
        // SAFETY: the caller's promise.
        unsafe { give(to, context.handle) }
    }

    /// Gives the primary context back; the last one ends it.
    fn cuDevicePrimaryCtxRelease_v2(ordinal: c_int) {
        release_primary(ordinal)
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
        device(ordinal)?.claim()?;
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
        let context = current()?;
        if context.is_capturing() { Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED) } else { context.synchronize() }
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

/// A device's primary context, made if nobody has it yet, and one reference more to it.
pub fn retain_primary(ordinal: c_int) -> Outcome<Arc<Context>> {
    let device = device(ordinal)?;
    let mut primary = device.primary.lock();
    device.claim()?;
    let context = primary.0.get_or_insert_with(|| Context::make(ordinal as usize, true)).clone();
    primary.1 += 1;
    Ok(context)
}

/// One reference less; the last one ends it.
pub fn release_primary(ordinal: c_int) -> Outcome {
    let mut primary = device(ordinal)?.primary.lock();
    primary.1 = primary.1.checked_sub(1).ok_or(CUDA_ERROR_INVALID_CONTEXT)?;
    if primary.1 == 0
        && let Some(context) = primary.0.take()
    {
        drop(primary);
        let _ = CONTEXTS.remove(context.handle);
        context.destroy();
    }
    Ok(())
}

/// A live context, for the calls that take one.
pub fn known(handle: usize) -> Outcome<Arc<Context>> {
    CONTEXTS.get(handle).map_err(|_| CUDA_ERROR_INVALID_CONTEXT)
}
