//! CUDA for Maypole: every call to the driver, the reduction kernels, and the transport between GPUs by peer copies.
//!
//! *Collectives decide, transports move, cuda accelerates, src composes.* Nothing here knows a communicator. A machine
//! without a GPU, or without a driver, is the usual case: nothing is linked, and asking for a device there is an error
//! that says so.
//!
//! * [`driver`]: the library, found when first asked for; contexts, streams, events, memory, IPC.
//! * [`Commands`]: the three things that a device operation puts on a stream: wait for a word, launch, write a word.
//! * [`kernels`]: copy, reduce, scale, and their one parameter.
//! * [`peer`]: memory and words that the ranks of one host share, and the two protocols over them.

pub mod commands;
pub mod driver;
pub mod kernels;
pub mod peer;

pub use commands::{Commands, Word};
pub use driver::{
    Context, CudaError, DeviceMemory, Driver, Event, HostRegion, HostRegistration, ImportedMemory, IpcHandle, Pinned,
    Reach, Result, Stream, Where, expect_device, locate, probe,
};
pub use kernels::{Header, Job, Kernel, Kernels, Source};
