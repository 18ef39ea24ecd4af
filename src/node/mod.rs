//! A node is one process's membership in a job.

/// Names a world that is about to meet: hand the same one to every rank. 128 bytes, safe to pass through any key-value store or file.
#[derive(Clone, Copy)]
pub struct UniqueId(pub [u8; 128]);
