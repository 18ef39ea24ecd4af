//! What the tests share: a context of their own each, a few objects that free themselves, and turns for those that set
//! switches, which hold for the whole process.

pub use cudarc::driver::sys::{self, CUresult, CUresult::*};
use maypole_cuda_emulator::testing::{self, Emulator};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Once, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// The result of a call of the driver.
macro_rules! call {
    ($function:ident($($arg:expr),* $(,)?)) => {{
        // SAFETY: the tests' pointers are to variables of the right types that live until the call returns; handles are
        // looked up by the emulator, and what they get wrong on purpose it refuses.
        unsafe { crate::cuda::sys::$function($($arg),*) }
    }};
}

/// A call that must succeed.
macro_rules! cu {
    ($function:ident($($arg:expr),* $(,)?)) => {
        assert_eq!(call!($function($($arg),*)), crate::cuda::CUDA_SUCCESS, stringify!($function))
    };
}
pub(crate) use {call, cu};

static TURNS: RwLock<()> = RwLock::new(());

/// The emulator, with two devices.
pub fn emulator() -> &'static Emulator {
    static BEGIN: Once = Once::new();
    let emulator = testing::load();
    BEGIN.call_once(|| {
        emulator.set("DEVICES", "2");
        cu!(cuInit(0));
    });
    emulator
}

/// A context of the test's own, current on its thread, while no switch is set.
pub struct Here {
    pub context: sys::CUcontext,
    _turn: Option<RwLockReadGuard<'static, ()>>,
}

impl Here {
    pub fn new() -> Here {
        let turn = TURNS.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut here = Here::beside(0);
        here._turn = Some(turn);
        here
    }

    /// One more context, on any device, for a test that has its turn already.
    pub fn beside(device: i32) -> Here {
        emulator();
        let mut context = std::ptr::null_mut();
        cu!(cuCtxCreate_v2(&mut context, 0, device));
        Here { context, _turn: None }
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        let _ = call!(cuCtxDestroy_v2(self.context));
    }
}

/// The only test that runs; switches are as at the beginning again when it ends.
pub struct Alone(#[allow(dead_code)] RwLockWriteGuard<'static, ()>);

pub fn alone() -> Alone {
    let turn = TURNS.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    emulator();
    Alone(turn)
}

impl Drop for Alone {
    fn drop(&mut self) {
        let plain = [("CHAOS", "0"), ("FAIL", ""), ("DROP", ""), ("CONNECTIONS", "0"), ("LAZY", "0"), ("MEMORY", "4G")];
        let more = [("MEMORY_OPERATIONS", "1"), ("IPC", "1"), ("PEER_ACCESS", "1"), ("HOST_REGISTER", "1")];
        let last = [("HOST_FUNCTIONS", "serial"), ("DRIVER_VERSION", "12040"), ("CAPABILITY", "9.0"), ("MACHINE", "")];
        let waits = [("QUEUE", "0"), ("ALLOCATION_WAITS", "0"), ("EXCLUSIVE", "0"), ("SECOND_ADDRESS", "0")];
        plain.iter().chain(&more).chain(&last).chain(&waits).for_each(|(name, value)| emulator().set(name, value));
    }
}

/// A stream of the current context.
pub struct Stream(pub sys::CUstream);

impl Stream {
    /// One that takes no part in the legacy default stream's order.
    pub fn new() -> Stream {
        Stream::with(1)
    }

    pub fn blocking() -> Stream {
        Stream::with(0)
    }

    fn with(flags: u32) -> Stream {
        let mut stream = std::ptr::null_mut();
        cu!(cuStreamCreate(&mut stream, flags));
        Stream(stream)
    }

    pub fn is_idle(&self) -> bool {
        is_idle(self.0)
    }

    pub fn synchronize(&self) {
        cu!(cuStreamSynchronize(self.0));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = call!(cuStreamDestroy_v2(self.0));
    }
}

/// Whether a stream has done all it was given.
pub fn is_idle(stream: sys::CUstream) -> bool {
    match call!(cuStreamQuery(stream)) {
        CUDA_SUCCESS => true,
        CUDA_ERROR_NOT_READY => false,
        other => panic!("{other:?}"),
    }
}

/// Device memory of the current context.
pub struct Memory {
    pub at: u64,
}

impl Memory {
    pub fn new(bytes: usize) -> Memory {
        let mut at = 0;
        cu!(cuMemAlloc_v2(&mut at, bytes));
        Memory { at }
    }

    /// Waits for nothing: a copy on a stream of its own.
    pub fn read(&self, count: usize) -> Vec<u32> {
        let (stream, mut words) = (Stream::new(), vec![0u32; count]);
        cu!(cuMemcpyDtoHAsync_v2(words.as_mut_ptr().cast(), self.at, count * 4, stream.0));
        words
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = call!(cuMemFree_v2(self.at));
    }
}

/// A word of the host's that streams can wait for and write. It is let go with a value that ends every wait for it.
pub struct Word(Box<AtomicU32>);

impl Word {
    pub fn new(value: u32) -> Word {
        let word = Box::new(AtomicU32::new(value));
        cu!(cuMemHostRegister_v2(word.as_ptr().cast(), 4, 3));
        Word(word)
    }

    pub fn at(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    pub fn set(&self, value: u32) {
        self.0.store(value, SeqCst);
    }

    pub fn get(&self) -> u32 {
        self.0.load(SeqCst)
    }

    /// Holds a stream up until the word is 1 or more.
    pub fn hold(&self, stream: sys::CUstream) {
        cu!(cuStreamWaitValue32_v2(stream, self.at(), 1, 0));
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        if self.get() == 0 {
            self.set(1);
        }
        let _ = call!(cuMemHostUnregister(self.0.as_ptr().cast::<c_void>()));
    }
}

/// Writes a word by the first version of the call, which `cudarc` does not have.
pub fn write_as_before(stream: &Stream, word: &Word, value: u32, flags: u32) -> u32 {
    type Write = unsafe extern "C" fn(sys::CUstream, u64, u32, u32) -> u32;
    let loaded = libloading::os::unix::Library::this();
    // SAFETY: the type is that of the function in the emulator, which was loaded for the whole process.
    let write = unsafe { loaded.get::<Write>(b"cuStreamWriteValue32\0") }.expect("exported");
    // SAFETY: handles and addresses are looked up by the emulator.
    unsafe { write(stream.0, word.at(), value, flags) }
}

/// Waits until something is so; fails if that takes a few seconds.
pub fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Long enough for a stream to have done what nothing holds up, if it were going to.
pub fn a_while() {
    std::thread::sleep(Duration::from_millis(30));
}
