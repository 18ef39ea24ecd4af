//! Collective communication: calls that a group of processes make together to combine and exchange data.
//!
//! A [`Communicator`] is one rank's handle to a group of ranks, and everything else here serves it. A *rank* is one
//! process (or thread) of the group, numbered from 0; the group is its *world*. Every rank makes the same calls in the
//! same order, each with its own data:
//!
//! ```
//! use maypole::{Communicator, ReduceOp};
//!
//! let comm = Communicator::from_env()?; // the world this process was launched into; of one rank, if it was not
//! let mut mean = vec![comm.rank() as f32; 1000];
//! comm.all_reduce_in_place(&mut mean, ReduceOp::Avg)?;
//! # Ok::<(), maypole::Error>(())
//! ```
//!
//! Start it with `maypole run -n 4 -- program`, `mpirun`, `mpiexec`, `torchrun` or `srun`; or give each of a process's
//! threads a rank with [`Communicator::threads`].
//!
//! * Messages between two ranks: [`Communicator::send`], [`Communicator::tag`]. Many calls at once:
//!   [`Communicator::group`].
//! * Asynchronous calls: [`scope`], [`Communicator::start`], [`wait_any`], [`wait_all`], [`Stream`]. Calls planned once and started many times:
//!   [`Persistent`].
//! * Memory that the ranks of a host read where it lies: [`Communicator::alloc`], [`Registered`].
//! * What can go wrong, and who is to blame: [`Error`], [`Verdict`].
//! * Buffers in GPU memory: [`Communicator::on`], [`cuda`].
//! * Settings: [`Config`], from `MAYPOLE_*` variables.
//! * The algorithms, as data that is checked before it runs: [`maypole_collectives`]. The links under them:
//!   [`maypole_transports`].

// A reader that leaves makes these panic: `command::say` and `command::print` do not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![warn(missing_debug_implementations)]

mod capacity;
pub mod command;
pub mod communicator;
pub mod config;
mod deadline;
mod descriptors;
mod device;
mod engine;
pub mod error;
pub mod exit;
pub mod fingerprint;
mod forms;
pub mod interrupt;
pub mod launch;
mod log;
pub mod node;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod outside;
pub mod perf;
mod running;
mod secret;
pub mod topology;
mod tuner;
pub mod watch;

/// Device memory and CUDA streams: [`Communicator::on`] makes collectives on them.
///
/// ```no_run
/// use maypole::cuda::{Context, DeviceBuffer, Stream};
/// use maypole::{Communicator, ReduceOp};
///
/// let comm = Communicator::from_env()?;
/// let context = Context::primary(comm.rank() % maypole::cuda::probe()?.device_count())?;
/// let stream = Stream::new(&context)?;
/// let input = DeviceBuffer::from_slice(&context, &vec![comm.rank() as f32; 1000])?;
/// let mut output = DeviceBuffer::new(&context, 1000)?;
/// comm.on(&stream).all_reduce(&input, &mut output, ReduceOp::Sum)?; // queued; kernels behind it see the result
/// println!("{:?}", output.to_vec(&stream)?);
/// comm.on(&stream).synchronize()?; // and nothing went wrong
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub mod cuda {
    pub use crate::device::{DeviceBuffer, DeviceSlice, DeviceSliceMut, OnStream, StreamGroup};
    pub use maypole_cuda::{Context, CudaError, Event, Stream, probe};
}

pub use communicator::blocks::Blocks;
pub use communicator::persistent::Persistent;
pub use communicator::raw::{CallbackFailed, RawGroup, RawPersistent, RawRequest};
pub use communicator::registered::Registered;
pub use communicator::request::{Pending, Request, Scope, scope, wait_all, wait_any};
pub use communicator::stream::Stream;
pub use communicator::{Call, Communicator, Group, Tagged};
pub use config::Config;
pub use error::{Error, Result, Verdict};
pub use fingerprint::Fingerprint;
pub use maypole_collectives::algorithms::Algorithm;
pub use maypole_collectives::schedule::Collective;
pub use maypole_collectives::{
    DataType, Element, F8E4M3, F8E5M2, Hosts, Located, Operand, Operator, Order, Pair, ReduceOp, UserFn, UserFnWith,
    UserOp,
};
pub use maypole_transports::fork;
pub use node::UniqueId;
pub use secret::Secret;
