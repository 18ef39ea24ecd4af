//! What can go wrong with a device, said so that somebody can act on it.

use super::functions::Failed;

/// Why something about CUDA did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no driver on this machine, or it cannot be opened.
    #[error("no CUDA driver: {why}; buffers in host memory work without one")]
    NoDriver {
        /// What opening it said.
        why: String,
    },
    /// There is a driver, but no device that this process may use.
    #[error("the CUDA driver has no device for this process ({why}); look at nvidia-smi and at CUDA_VISIBLE_DEVICES")]
    NoDevice {
        /// What the driver said.
        why: String,
    },
    /// The driver is older than what the kernels and calls here need.
    #[error("the driver supports CUDA {}, and {} is needed; install a newer one", Version(*found), Version(*needed))]
    TooOld {
        /// As the driver counts: 12040 is 12.4.
        found: i32,
        /// The oldest that serves.
        needed: i32,
    },
    /// A function that every supported driver has is missing.
    #[error("the CUDA driver library lacks {symbol}; it is too old, or not NVIDIA's")]
    NoFunction {
        /// The symbol.
        symbol: &'static str,
    },
    /// A device number beyond those that there are.
    #[error("there is no CUDA device {ordinal}; this process has {count}, counted from 0")]
    NoSuchDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The thread has no current context, and the call needs one to know which device is meant.
    #[error("this thread has no current CUDA context{hint}")]
    NoContext {
        /// What to do, beginning with a semicolon.
        hint: &'static str,
    },
    /// A default stream was given while a green context is current.
    #[error(
        "a default stream was given while a green context is current, and cannot be told from the default stream of its \
         device; give a stream that was made in the green context"
    )]
    GreenDefaultStream,
    /// Something belongs to one context and was used with another.
    #[error(
        "{what} belongs to a CUDA context of device {found}, and this is used with another, of device {expected}; use \
         streams and memory of the context that the communicator is attached to"
    )]
    WrongContext {
        /// What it is: "the stream", "the event".
        what: &'static str,
        /// Ordinal of its context's device.
        found: usize,
        /// Ordinal of the device that was expected.
        expected: usize,
    },
    /// An address that was given as device memory is not.
    #[error("address {address:#x} is not device memory: {what}")]
    NotDevice {
        /// The address.
        address: u64,
        /// What it is instead, or that nothing is known of it.
        what: &'static str,
    },
    /// Device memory, but of another device.
    #[error("address {address:#x} lies on CUDA device {found}, and device {expected} was expected")]
    WrongDevice {
        /// The address.
        address: u64,
        /// Ordinal of the device on which it lies.
        found: usize,
        /// Ordinal of the device that was expected.
        expected: usize,
    },
    /// A range reaches beyond its allocation.
    #[error(
        "{bytes} bytes at {address:#x} reach beyond their allocation of {allocated} bytes at {base:#x} ({} are left)",
        (base + allocated).saturating_sub(*address)
    )]
    OutOfBounds {
        /// Where the range begins.
        address: u64,
        /// Its length.
        bytes: u64,
        /// Where the allocation begins.
        base: u64,
        /// The allocation's length.
        allocated: u64,
    },
    /// The device has no room.
    #[error("{bytes} bytes of {what} memory asked for, and there is no room{}", Room(*free, *total))]
    OutOfMemory {
        /// "device" or "pinned host".
        what: &'static str,
        /// How many bytes were asked for.
        bytes: u64,
        /// Bytes free on the device, where that is known.
        free: u64,
        /// Bytes that the device has; 0: not known.
        total: u64,
    },
    /// The system does not let this process share device memory with another.
    #[error(
        "CUDA IPC (device memory shared between processes) was refused: {call}: {name} ({code}): {meaning}. Ranks \
         in different containers need the same IPC and PID namespaces (--ipc=host --pid=host); some sandboxes have no CUDA \
         IPC at all. MAYPOLE_DEVICE_STAGING=host on all ranks goes through host memory and needs none"
    )]
    IpcRefused {
        /// The driver's function.
        call: &'static str,
        /// Its code.
        code: u32,
        /// The code's name.
        name: &'static str,
        /// What the driver says about it.
        meaning: &'static str,
    },
    /// One device cannot reach another's memory.
    #[error(
        "CUDA device {from} cannot reach the memory of device {to}; set MAYPOLE_DEVICE_STAGING=host on all ranks (or \
         leave it at auto), which goes through host memory"
    )]
    PeerRefused {
        /// Ordinal of the device that would read.
        from: usize,
        /// The other device.
        to: String,
    },
    /// Two ranks of one process use two contexts of one device, which cannot use each other's memory.
    #[error(
        "ranks that are threads of this process use different CUDA contexts of device {ordinal}; attach all of them with \
         its primary context (Context::primary), the one that frameworks use"
    )]
    TwoContexts {
        /// The device.
        ordinal: usize,
    },
    /// The stream is being captured into a graph.
    #[error(
        "the stream is being captured into a CUDA graph; a collective counts what it does in memory that ranks share, \
         and a graph that is launched twice would repeat old counts: call it outside the capture"
    )]
    Capturing,
    /// The device, or its driver, has no stream memory operations, and the way around them does not serve here.
    #[error(
        "CUDA device {ordinal} has no stream memory operations (cuStreamWaitValue32); the way around them, host \
         functions, needs each rank in a process of its own"
    )]
    NoMemoryOperations {
        /// The device.
        ordinal: usize,
    },
    /// The driver does not take host memory that ranks share.
    #[error(
        "{call}: {name} ({code}): {meaning}; ranks count in host memory that is registered with the driver, which some \
         sandboxes forbid: without it there are collectives on host memory only"
    )]
    RegistrationRefused {
        /// The driver's function.
        call: &'static str,
        /// Its code.
        code: u32,
        /// The code's name.
        name: &'static str,
        /// What the driver says about it.
        meaning: &'static str,
    },
    /// The device takes no context of this process.
    #[error(
        "CUDA device {ordinal} is busy or unavailable ({name}); where `nvidia-smi -q -d COMPUTE` says Exclusive_Process, \
         it takes one process: `nvidia-smi -c 0` lets several use it, and so does NVIDIA's MPS"
    )]
    DeviceUnavailable {
        /// The device.
        ordinal: usize,
        /// The code's name.
        name: &'static str,
    },
    /// Any other refusal of the driver's.
    #[error("{call}: {name} ({code}): {meaning}")]
    Call {
        /// The driver's function.
        call: &'static str,
        /// Its code.
        code: u32,
        /// The code's name.
        name: &'static str,
        /// What the driver says about it.
        meaning: &'static str,
    },
}

impl CudaError {
    /// Whether the context is lost: every later call in this process on that device will fail too (an illegal address, a
    /// failed assertion in a kernel, a device that fell off the bus). The driver reports it at whatever call comes next.
    pub fn is_sticky(&self) -> bool {
        matches!(self.code(), Some(214 | 220 | 700 | 702 | 709 | 710 | 714..=719))
    }

    /// Whether a device has access to as many others as it can have (8, where no switch connects them).
    pub fn is_too_many_peers(&self) -> bool {
        self.code() == Some(code::TOO_MANY_PEERS)
    }

    /// The driver's code, where a call of its failed.
    pub fn code(&self) -> Option<u32> {
        match *self {
            CudaError::Call { code, .. }
            | CudaError::IpcRefused { code, .. }
            | CudaError::RegistrationRefused { code, .. } => Some(code),
            CudaError::DeviceUnavailable { .. } => Some(code::DEVICE_UNAVAILABLE),
            _ => None,
        }
    }

    /// The same failure, as one of making a context on a device.
    pub(crate) fn of_device(failed: Failed, ordinal: usize) -> CudaError {
        match CudaError::from(failed) {
            CudaError::Call { code: code::DEVICE_UNAVAILABLE, name, .. } => {
                CudaError::DeviceUnavailable { ordinal, name }
            }
            other => other,
        }
    }

    /// The same failure, as one of registering host memory.
    pub(crate) fn of_registration(failed: Failed) -> CudaError {
        match CudaError::from(failed) {
            CudaError::Call { call, code, name, meaning } => {
                CudaError::RegistrationRefused { call, code, name, meaning }
            }
            other => other,
        }
    }

    /// The same failure, as one of IPC.
    pub(crate) fn of_ipc(failed: Failed) -> CudaError {
        match CudaError::from(failed) {
            CudaError::Call { call, code, name, meaning } => CudaError::IpcRefused { call, code, name, meaning },
            other => other,
        }
    }
}

impl From<Failed> for CudaError {
    fn from(Failed { call, code }: Failed) -> CudaError {
        let (name, meaning) = super::functions().map_or(("?", "?"), |functions| functions.describe(code));
        CudaError::Call { call, code, name, meaning }
    }
}

/// 12040 as 12.4.
struct Version(i32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

struct Room(u64, u64);

impl std::fmt::Display for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1 {
            0 => Ok(()),
            total => write!(f, ": {} of {total} are free", self.0),
        }
    }
}

/// What went wrong with CUDA, or the value.
pub type Result<T> = std::result::Result<T, CudaError>;

/// Codes that are answers, or that are told apart.
pub(crate) mod code {
    pub(crate) const OUT_OF_MEMORY: u32 = 2;
    pub(crate) const DEINITIALIZED: u32 = 4;
    pub(crate) const DEVICE_UNAVAILABLE: u32 = 46;
    pub(crate) const NO_DEVICE: u32 = 100;
    pub(crate) const NOT_READY: u32 = 600;
    pub(crate) const PEER_ACCESS_ALREADY_ENABLED: u32 = 704;
    pub(crate) const TOO_MANY_PEERS: u32 = 711;
    pub(crate) const NOT_SUPPORTED: u32 = 801;
    pub(crate) const STREAM_CAPTURE_IMPLICIT: u32 = 906;
}
