//! Collectives on device buffers: the same schedules as on the host, enqueued on a CUDA stream.
//!
//! A call on a stream returns as soon as its commands are queued. They are of three kinds only: *wait* until a 32-bit
//! word is at least so much, *launch* a kernel that copies or reduces, *write* a word. The words lie in host memory that
//! all ranks of a host have mapped and made known to their devices, so streams of different processes wait for each
//! other without a host thread, and the host can let them go when something has failed. No kernel ever waits.
//!
//! * [`on`]: the calls, as methods on slices of device memory. [`buffer`]: that memory.
//! * `attach`: how the ranks of a communicator come to share staging memory and words on their devices. `assembled`: whether
//!   kernels need be assembled each time.
//! * `registered`, `loans`: buffers that other ranks read where they lie. `limbo`: memory on its way back to the driver.
//! * `plan`: which algorithm and slice, and its steps in one order. `pieces`, `executor`, `fold`: the steps as
//!   commands. `pace`: how many of them at a time. `state`: what they are queued with.
//! * [`messages`]: between two ranks.
//! * `courier`: links between hosts. `sentry`: watches what is queued, and ends it when it will never end by itself.

mod assembled;
mod attach;
pub mod buffer;
pub(crate) mod courier;
pub(crate) mod executor;
mod fold;
mod limbo;
mod loans;
pub mod messages;
pub mod on;
pub(crate) mod pace;
mod pieces;
pub(crate) mod plan;
mod registered;
pub(crate) mod sentry;
pub(crate) mod state;

pub(crate) use attach::is_under_mps;
pub use buffer::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
pub(crate) use limbo::queueing;
pub use messages::StreamGroup;
pub use on::OnStream;
