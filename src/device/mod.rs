//! Collectives on device buffers: the same schedules as on the host, enqueued on a CUDA stream.
//!
//! A call on a stream returns as soon as its commands are queued. They are of three kinds only: *wait* until a 32-bit
//! word is at least so much, *launch* a kernel that copies or reduces, *write* a word. The words lie in host memory that
//! all ranks of a host have mapped and made known to their devices, so streams of different processes wait for each
//! other without a host thread, and the host can let them go when something has failed. No kernel ever waits.
//!
//! * [`on`]: the calls, as methods on slices of device memory. [`buffer`]: that memory.
//! * `attach`: how the ranks of a communicator come to share staging memory and words on their devices.
//! * `plan`: which algorithm and slice, and its steps in one order. `executor`: the steps as commands.
//! * `courier`: links between hosts. `sentry`: watches what is queued, and ends it when it will never end by itself.

pub mod buffer;
// Called by the executor, which comes next.
#[allow(dead_code)]
pub(crate) mod courier;
pub mod on;
// Called by the executor, which comes next.
#[allow(dead_code)]
pub(crate) mod sentry;

pub use buffer::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
pub use on::OnStream;
