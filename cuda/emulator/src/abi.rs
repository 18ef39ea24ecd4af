//! What crosses the boundary: result codes with their names, and the structures that callers fill in.
//!
//! Enumerations are plain integers here. What a caller passes is whatever it passes, and a Rust enum that holds a value
//! it does not list is undefined behaviour; an unknown value must become `CUDA_ERROR_INVALID_VALUE`.

use std::ffi::CStr;

/// A `CUresult`.
pub type Code = u32;

/// What an entry point's body returns; `Ok` is `CUDA_SUCCESS`.
pub type Outcome<T = ()> = Result<T, Code>;

macro_rules! codes {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        $(#[doc = $text] pub const $name: Code = $value;)*

        /// The name of a code, such as `CUDA_ERROR_INVALID_VALUE`; `None` if it is none of CUDA's that occur here.
        pub fn name_of(code: Code) -> Option<&'static CStr> {
            $(if code == $value {
                let name = concat!(stringify!($name), "\0");
                return CStr::from_bytes_until_nul(if code == 0 { b"CUDA_SUCCESS\0" } else { name.as_bytes() }).ok();
            })*
            None
        }

        /// What a code says, in words; `None` if it is none of CUDA's that occur here.
        pub fn text_of(code: Code) -> Option<&'static CStr> {
            $(if code == $value { return CStr::from_bytes_until_nul(concat!($text, "\0").as_bytes()).ok(); })*
            None
        }

        /// The code with this name; a plain number will do as well.
        pub fn code_named(name: &str) -> Option<Code> {
            $(if name == stringify!($name) { return Some($value); })*
            name.parse().ok()
        }
    };
}

codes! {
    CUDA_SUCCESS = 0, "no error";
    CUDA_ERROR_INVALID_VALUE = 1, "invalid argument";
    CUDA_ERROR_OUT_OF_MEMORY = 2, "out of memory";
    CUDA_ERROR_NOT_INITIALIZED = 3, "initialization error";
    CUDA_ERROR_DEINITIALIZED = 4, "driver shutting down";
    CUDA_ERROR_DEVICE_UNAVAILABLE = 46, "CUDA-capable device(s) is/are busy or unavailable";
    CUDA_ERROR_NO_DEVICE = 100, "no CUDA-capable device is detected";
    CUDA_ERROR_INVALID_DEVICE = 101, "invalid device ordinal";
    CUDA_ERROR_INVALID_IMAGE = 200, "device kernel image is invalid";
    CUDA_ERROR_INVALID_CONTEXT = 201, "invalid device context";
    CUDA_ERROR_MAP_FAILED = 205, "mapping of buffer object failed";
    CUDA_ERROR_ALREADY_MAPPED = 208, "resource already mapped";
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209, "no kernel image is available for execution on the device";
    CUDA_ERROR_NOT_MAPPED = 211, "resource not mapped";
    CUDA_ERROR_ECC_UNCORRECTABLE = 214, "uncorrectable ECC error encountered";
    CUDA_ERROR_PEER_ACCESS_UNSUPPORTED = 217, "peer access is not supported between these two devices";
    CUDA_ERROR_INVALID_PTX = 218, "a PTX JIT compilation failed";
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222, "the provided PTX was compiled with an unsupported toolchain.";
    CUDA_ERROR_OPERATING_SYSTEM = 304, "OS call failed or operation not supported on this OS";
    CUDA_ERROR_INVALID_HANDLE = 400, "invalid resource handle";
    CUDA_ERROR_ILLEGAL_STATE = 401, "the operation cannot be performed in the present state";
    CUDA_ERROR_NOT_FOUND = 500, "named symbol not found";
    CUDA_ERROR_NOT_READY = 600, "device not ready";
    CUDA_ERROR_ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered";
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701, "too many resources requested for launch";
    CUDA_ERROR_LAUNCH_TIMEOUT = 702, "the launch timed out and was terminated";
    CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704, "peer access is already enabled";
    CUDA_ERROR_PEER_ACCESS_NOT_ENABLED = 705, "peer access has not been enabled";
    CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE = 708, "cannot set while device is active in this process";
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709, "context is destroyed";
    CUDA_ERROR_TOO_MANY_PEERS = 711, "peer mapping resources exhausted";
    CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712, "part or all of the requested memory range is already mapped";
    CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED = 713, "pointer does not correspond to a registered memory region";
    CUDA_ERROR_MISALIGNED_ADDRESS = 716, "misaligned address";
    CUDA_ERROR_LAUNCH_FAILED = 719, "unspecified launch failure";
    CUDA_ERROR_NOT_PERMITTED = 800, "operation not permitted";
    CUDA_ERROR_NOT_SUPPORTED = 801, "operation not supported";
    CUDA_ERROR_SYSTEM_NOT_READY = 802, "system not yet initialized";
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900, "operation not permitted when stream is capturing";
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901, "operation failed due to a previous error during capture";
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903, "capture was not initiated in this stream";
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906, "the legacy stream would depend on a capturing stream";
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908, "a thread-local capture cannot be ended by another thread";
    CUDA_ERROR_UNKNOWN = 999, "unknown error";
}

/// The stream handles that stand for the default streams.
pub mod default_stream {
    /// The legacy default stream, also written as 0.
    pub const LEGACY: usize = 1;
    /// The calling thread's own default stream.
    pub const PER_THREAD: usize = 2;
}

/// Flags of `cuStreamWaitValue32`: the comparison, and what may be added to it.
pub mod wait_flag {
    /// `(int32)(word - value) >= 0`.
    pub const GEQ: u32 = 0;
    /// `word == value`.
    pub const EQ: u32 = 1;
    /// `(word & value) != 0`.
    pub const AND: u32 = 2;
    /// `~(word | value) != 0`.
    pub const NOR: u32 = 3;
    /// Follow the wait with a flush of outstanding remote writes.
    pub const FLUSH: u32 = 1 << 30;
}

/// Flag of `cuStreamWriteValue32`, in its first version alone: the write may overtake what the stream wrote before it.
pub const WRITE_WITHOUT_BARRIER: u32 = 1;

/// `CUstreamBatchMemOpParams`: 48 bytes of which the first four say what the rest is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemoryOperation {
    /// A `CU_STREAM_MEM_OP_*`.
    pub operation: u32,
    /// For barriers, whose structure ends here: of which kind.
    pub barrier: u32,
    /// Device address of the word.
    pub address: u64,
    /// What to compare with or to write; 32-bit operations use the lower half.
    pub value: u64,
    /// Flags as of the call that does the same alone.
    pub flags: u32,
    padding_behind: u32,
    alias: u64,
    rest: u64,
}

const _: () = assert!(size_of::<MemoryOperation>() == 48);

/// Values of [`MemoryOperation::operation`].
pub mod memory_operation {
    /// Wait for a 32-bit word.
    pub const WAIT_32: u32 = 1;
    /// Write a 32-bit word.
    pub const WRITE_32: u32 = 2;
    /// Flush outstanding remote writes.
    pub const FLUSH: u32 = 3;
    /// Wait for a 64-bit word.
    pub const WAIT_64: u32 = 4;
    /// Write a 64-bit word.
    pub const WRITE_64: u32 = 5;
    /// A memory barrier; its flags are 0 for one of the whole system, or the following.
    pub const BARRIER: u32 = 6;
    /// A barrier for what is on the device.
    pub const BARRIER_OF_DEVICE: u32 = 1;
}
