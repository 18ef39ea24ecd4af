//! Collectives on device buffers: the same schedules as on the host, enqueued on a CUDA stream.
