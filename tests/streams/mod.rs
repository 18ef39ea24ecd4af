//! Ranks with a CUDA stream each, on the stand-in driver of `cuda/emulator`.
//!
//! Switches of the stand-in hold for the whole process, so whoever sets one holds [`alone`] meanwhile.

#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::cuda::{Context, DeviceBuffer, Stream};
use maypole::{Communicator, Config, Element, ReduceOp, Result};
use maypole_cuda_emulator::testing;
use maypole_transports::lock::{Mutex, MutexGuard};

use crate::ranks;

/// One rank and where it queues.
pub struct Rank {
    pub comm: Communicator,
    pub context: Arc<Context>,
    pub stream: Stream,
}

impl Rank {
    /// For `comm`, on the first device.
    pub fn of(comm: Communicator) -> Rank {
        testing::load();
        let context = Context::primary(0).expect("the first device");
        let stream = Stream::new(&context).expect("a stream");
        Rank { comm, context, stream }
    }

    /// `count` times `value` on the device.
    pub fn full<T: Element>(&self, value: T, count: usize) -> DeviceBuffer<T> {
        DeviceBuffer::from_slice(&self.context, &vec![value; count]).expect("room on the device")
    }

    /// What is in `buffer` when the stream has come here.
    pub fn read<T: Element>(&self, buffer: &DeviceBuffer<T>) -> Vec<T> {
        buffer.to_vec(&self.stream).expect("a copy from the device")
    }

    /// Queue an all-reduce of ones, and wait for it.
    pub fn sum(&self, count: usize) -> Result<()> {
        let mut buffer = self.full(1.0f32, count);
        self.comm.on(&self.stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
        self.comm.on(&self.stream).synchronize()?;
        let right = self.comm.size() as f32;
        assert!(self.read(&buffer).iter().all(|x| *x == right), "a wrong sum on rank {}", self.comm.rank());
        Ok(())
    }
}

/// Settings of a world that is used once: little staging memory, which takes time to make. Messages of some hundred
/// kilobytes take several rounds.
pub fn small() -> Config {
    let mut config = ranks::config(TransportChoice::Auto);
    (config.device_window, config.device_fifo) = (128 << 10, 64 << 10);
    config
}

/// Run `body` once for each rank of a world of threads; results by rank.
pub fn threads<T: Send>(size: usize, config: &Config, body: impl Fn(&Rank) -> T + Sync) -> Vec<T> {
    testing::load();
    ranks::threads(size, config, |comm| body(&Rank::of(comm)))
}

/// The variables of a process that is to use the stand-in driver, for [`ranks::Job`].
pub fn environment() -> Vec<(&'static str, &'static str)> {
    let text = |text: std::ffi::OsString| -> &'static str { text.into_string().expect("plain paths").leak() };
    testing::environment().into_iter().map(|(name, value)| (text(name), text(value))).collect()
}

static TURN: Mutex<()> = Mutex::new(());

/// The only test of this process that runs now.
pub fn alone() -> MutexGuard<'static, ()> {
    TURN.lock()
}

/// Wait until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        ranks::all_stand();
        assert!(start.elapsed() < ranks::PATIENCE, "{what} does not happen");
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Begin to capture what is queued on `stream` into a graph.
pub fn begin_capture(stream: &Stream) {
    type Begin = unsafe extern "C" fn(*mut std::ffi::c_void, u32) -> u32;
    // SAFETY: the type is that of the driver's function; 2 is "relaxed".
    let code = unsafe {
        std::mem::transmute::<*mut std::ffi::c_void, Begin>(symbol(c"cuStreamBeginCapture_v2"))(stream.raw(), 2)
    };
    assert_eq!(code, 0);
}

/// The end of it; the graph is thrown away.
pub fn end_capture(stream: &Stream) {
    type End = unsafe extern "C" fn(*mut std::ffi::c_void, *mut *mut std::ffi::c_void) -> u32;
    let mut graph = std::ptr::null_mut();
    // SAFETY: the type is that of the driver's function, and the place is valid.
    let code = unsafe {
        std::mem::transmute::<*mut std::ffi::c_void, End>(symbol(c"cuStreamEndCapture"))(stream.raw(), &mut graph)
    };
    assert_eq!(code, 0);
}

/// A context beside the primary one of device 0, as `cuCtxCreate` makes it. Not current.
pub fn create_context() -> *mut std::ffi::c_void {
    type Create = unsafe extern "C" fn(*mut *mut std::ffi::c_void, u32, i32) -> u32;
    type Pop = unsafe extern "C" fn(*mut *mut std::ffi::c_void) -> u32;
    let mut context = std::ptr::null_mut();
    // SAFETY: the type is that of the driver's function, and the place is valid.
    let code =
        unsafe { std::mem::transmute::<*mut std::ffi::c_void, Create>(symbol(c"cuCtxCreate_v2"))(&mut context, 0, 0) };
    assert_eq!(code, 0);
    // SAFETY: as above.
    let code =
        unsafe { std::mem::transmute::<*mut std::ffi::c_void, Pop>(symbol(c"cuCtxPopCurrent_v2"))(&mut context) };
    assert_eq!(code, 0);
    context
}

/// The end of it: nothing of it is used any more.
pub fn destroy_context(context: *mut std::ffi::c_void) {
    type Destroy = unsafe extern "C" fn(*mut std::ffi::c_void) -> u32;
    // SAFETY: the type is that of the driver's function.
    let code = unsafe { std::mem::transmute::<*mut std::ffi::c_void, Destroy>(symbol(c"cuCtxDestroy_v2"))(context) };
    assert_eq!(code, 0);
}

/// A function of the driver that is loaded.
fn symbol(name: &std::ffi::CStr) -> *mut std::ffi::c_void {
    // SAFETY: the name is a C string.
    let found = unsafe { nix::libc::dlsym(nix::libc::RTLD_DEFAULT, name.as_ptr()) };
    assert!(!found.is_null(), "{name:?} is not loaded");
    found
}
