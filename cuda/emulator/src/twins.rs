//! Kernels as host code, and running them.
//!
//! `build.rs` made one shared object of all kernels; it is carried inside this library and loaded from memory, so that
//! whoever has the library has the kernels.

use crate::abi::*;
use crate::switches::SWITCHES;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/twins.so"));

/// A kernel compiled for the host: `void kernel(const HostGrid *, const void *parameter)`.
type Kernel = unsafe extern "C" fn(*const Grid, *const c_void);
type Words = unsafe extern "C" fn(*const c_void, usize) -> u32;
type LoseWord = unsafe extern "C" fn(*mut c_void, u32);
type OnWord = extern "C" fn(*mut u32, u32);
type Run = unsafe extern "C" fn(Kernel, *const Grid, *const c_void, u32) -> c_int;

/// `HostGrid` of the kernels' shim.
#[repr(C)]
struct Grid {
    grid: [u32; 3],
    block: [u32; 3],
}

struct Twins {
    library: Library,
    run: Run,
    words: Words,
    lose_word: LoseWord,
    /// What jobs have read and written.
    traffic: &'static [AtomicU64; 2],
}

/// A kernel's host code.
#[derive(Clone, Copy)]
pub struct Twin {
    kernel: Kernel,
    /// It is right for every grid, so it need not be run with as many threads as it was launched with.
    strides: bool,
}

/// Threads that a kernel which strides by its grid is run with, at most: they run one after the other.
const ENOUGH: u32 = 64;

fn twins() -> Outcome<&'static Twins> {
    static TWINS: OnceLock<Option<Twins>> = OnceLock::new();
    let load = || {
        // SAFETY: the name is a C string; the descriptor that comes back is nobody else's.
        let mut file = unsafe {
            let descriptor = libc::memfd_create(c"maypole-twins".as_ptr(), libc::MFD_CLOEXEC);
            if descriptor < 0 {
                return None;
            }
            File::from_raw_fd(descriptor)
        };
        file.write_all(OBJECT).ok()?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // SAFETY: the object was made by this crate's build; it has no initialisers. `run` and the other have the types
        // that src/kernel/run.cpp gives them, and the library is never closed.
        unsafe {
            let library = Library::open(Some(path), RTLD_NOW | RTLD_LOCAL).ok()?;
            let run = *library.get::<Run>(b"emulator_run\0").ok()?;
            library.get::<unsafe extern "C" fn()>(b"emulator_catch_faults\0").ok()?();
            // Before any kernel runs.
            **library.get::<*mut OnWord>(b"emulator_on_word\0").ok()? = crate::work::write_for_kernel;
            // In the library's memory, which only atomic instructions touch.
            let traffic = &**library.get::<*const [AtomicU64; 2]>(b"emulator_traffic\0").ok()?;
            let words = *library.get::<Words>(b"emulator_words\0").ok()?;
            let lose_word = *library.get::<LoseWord>(b"emulator_lose_word\0").ok()?;
            Some(Twins { library, run, words, lose_word, traffic })
        }
    };
    TWINS.get_or_init(load).as_ref().ok_or(CUDA_ERROR_INVALID_IMAGE)
}

/// Bytes that kernels have read and written, as far as they tell.
pub fn traffic() -> [u64; 2] {
    twins().map_or([0; 2], |twins| [0, 1].map(|which: usize| twins.traffic[which].load(Relaxed)))
}

impl Twin {
    /// The kernel with this entry name.
    pub fn named(name: &str) -> Outcome<Twin> {
        let symbol = format!("{name}\0");
        // SAFETY: what the kernels' shim exports under an entry's name has this type.
        let found = unsafe { twins()?.library.get::<Kernel>(symbol.as_bytes()).map(|kernel| *kernel) };
        let kernel = found.map_err(|_| CUDA_ERROR_NOT_FOUND)?;
        // Maypole's own kernels stride by the grid, whatever it is; its benchmarks' need not.
        let strides = name.starts_with("maypole_") && !name.starts_with("maypole_bench_");
        Ok(Twin { kernel, strides })
    }

    /// Takes those words out of its parameters that are to be lost, of those that it is to write.
    pub fn lose_words(&self, parameters: &mut [u8], lost: impl Fn() -> bool) -> Outcome {
        let twins = twins()?;
        if !self.strides {
            return Ok(());
        }
        // SAFETY: the parameters are as many bytes as is said.
        let words = unsafe { (twins.words)(parameters.as_ptr().cast(), parameters.len()) };
        let losses: Vec<bool> = (0..words).map(|_| lost()).collect();
        for which in (0..words).rev().filter(|which| losses[*which as usize]) {
            // SAFETY: a job, since it writes words, and it has as many.
            unsafe { (twins.lose_word)(parameters.as_mut_ptr().cast(), which) };
        }
        Ok(())
    }

    /// Runs it to its end.
    pub fn run(&self, grid: [u32; 3], block: [u32; 3], parameters: &[u8]) -> Outcome {
        let mut shape = Grid { grid, block };
        if self.strides {
            shape.block[0] = block[0].min(ENOUGH / 2);
            shape.grid[0] = grid[0].min(ENOUGH / shape.block[0]);
        }
        let late = SWITCHES.late_stores.load(Relaxed) as u32;
        // SAFETY: the kernel takes parameters of the size that its PTX says, which is how many `parameters` has. What
        // it does to memory is its launcher's responsibility, as on a device; a fault ends it.
        match unsafe { (twins()?.run)(self.kernel, &shape, parameters.as_ptr().cast(), late) } {
            0 => Ok(()),
            _ => Err(CUDA_ERROR_ILLEGAL_ADDRESS),
        }
    }
}
