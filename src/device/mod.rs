//! Collectives on device buffers: the same schedules as on the host, enqueued on a CUDA stream.

// Called by the executor, which comes next.
#[allow(dead_code)]
pub(crate) mod courier;
// Called by the executor, which comes next.
#[allow(dead_code)]
pub(crate) mod sentry;
