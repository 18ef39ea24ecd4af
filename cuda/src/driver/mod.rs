//! The CUDA driver, as far as Maypole uses it: each call wrapped once.
//!
//! [`probe`] opens the library and says what is there; everything else needs what it returns, or a [`Context`], which
//! has it. A context is never made, only found: the device's primary one, which frameworks use too, or whatever the
//! caller has. Memory, streams and events belong to a context and keep it. Where a handle of the caller's comes in as a
//! number ([`Context::of`], [`Stream::adopt`]), the function is unsafe; all else is safe to call at any time from any
//! thread, and errors say what the driver refused.
//!
//! Device memory is not memory to Rust: nothing here hands out references to it, and what kernels do with it is ordered
//! by streams and events, not by borrows.

mod adopted;
mod capture;
mod context;
mod error;
mod event;
mod functions;
mod host;
mod ipc;
mod memory;
mod module;
mod pointer;
mod stream;

use std::sync::OnceLock;

use libloading::Library;
use libloading::os::unix;

pub use context::{Context, Entered, Reach};
pub use error::{CudaError, Result};
pub use event::Event;
pub(crate) use host::PAGE;
pub use host::{HostRegion, HostRegistration, Pinned};
pub use ipc::{ImportedMemory, IpcHandle};
pub use memory::DeviceMemory;
pub use module::{Function, Module};
pub use pointer::{Where, expect_device, locate};
pub use stream::Stream;

pub(crate) use error::code;
pub(crate) use functions::{Failed, Functions};

/// The oldest CUDA whose driver serves: the kernels are PTX 8.4, which older drivers do not compile.
pub const OLDEST: i32 = 12_040;

/// The library's functions, once it has been opened. They are never dropped, so the library stays.
static FUNCTIONS: OnceLock<Functions> = OnceLock::new();

fn functions() -> Option<&'static Functions> {
    FUNCTIONS.get()
}

/// The CUDA driver of this machine, initialised.
pub struct Driver {
    functions: &'static Functions,
    version: i32,
    devices: usize,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("version", &self.version).field("devices", &self.devices).finish()
    }
}

impl Driver {
    #[inline]
    pub(crate) fn functions(&self) -> &'static Functions {
        self.functions
    }

    /// Newest CUDA that the driver supports: 12040 is 12.4.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// How many devices this process may use; at least 1.
    pub fn device_count(&self) -> usize {
        self.devices
    }
}

/// Opens and initialises the driver. The first call that finds one does it, and later ones return what that found, success
/// or failure. Without a library each call looks again: a framework may load it meanwhile.
///
/// # Errors
/// [`CudaError::NoDriver`] without a library, [`CudaError::NoDevice`] without a device, [`CudaError::TooOld`] or
/// [`CudaError::NoFunction`] where it cannot serve; whatever else `cuInit` says. It never panics.
pub fn probe() -> Result<&'static Driver> {
    static DRIVER: OnceLock<Result<Driver>> = OnceLock::new();
    if let Some(found) = DRIVER.get() {
        return found.as_ref().map_err(Clone::clone);
    }
    let library = library().map_err(|error| CudaError::NoDriver { why: error.to_string() })?;
    DRIVER.get_or_init(|| open(library)).as_ref().map_err(Clone::clone)
}

/// The driver's library: the one that this process has loaded already, by whichever name, so that a framework and this
/// use the same; otherwise the one that the system finds. The name with the version comes first there: without it, the
/// stub that programs are linked against on build machines may answer.
fn library() -> std::result::Result<Library, libloading::Error> {
    const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
    // RTLD_NOLOAD of Linux; it has no name in `libloading`.
    const LOADED_ONLY: i32 = 4;
    let open = |name: &str, how| {
        // SAFETY: loading the driver runs its initialisers, which every program that uses CUDA trusts.
        unsafe { unix::Library::open(Some(name), unix::RTLD_NOW | unix::RTLD_LOCAL | how) }.map(Library::from)
    };
    let loaded = NAMES.iter().find_map(|name| open(name, LOADED_ONLY).ok());
    loaded.map_or_else(|| open(NAMES[0], 0).or_else(|first| open(NAMES[1], 0).map_err(|_| first)), Ok)
}

fn open(library: Library) -> Result<Driver> {
    let functions = Functions::load(library).map_err(|symbol| CudaError::NoFunction { symbol })?;
    let functions = FUNCTIONS.get_or_init(|| functions);
    let mut version = 0;
    // SAFETY: the pointer is valid; the call needs no initialisation.
    unsafe { functions.cuDriverGetVersion(&mut version) }?;
    if version < OLDEST {
        return Err(CudaError::TooOld { found: version, needed: OLDEST });
    }
    // SAFETY: cuInit may be called at any time, and again.
    if let Err(failed) = unsafe { functions.cuInit(0) } {
        let (name, meaning) = functions.describe(failed.code);
        return Err(match failed.code {
            code::NO_DEVICE => CudaError::NoDevice { why: format!("{name}: {meaning}") },
            _ => failed.into(),
        });
    }
    let mut devices = 0;
    // SAFETY: initialised, and the pointer is valid.
    unsafe { functions.cuDeviceGetCount(&mut devices) }?;
    if devices <= 0 {
        return Err(CudaError::NoDevice { why: "it counts 0 devices".into() });
    }
    tracing::debug!(version, devices, "CUDA driver");
    Ok(Driver { functions, version, devices: devices as usize })
}
