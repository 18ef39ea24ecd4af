//! Memory for a rank's data: aligned to a cache line, with guard bytes on both sides that nobody may touch.
//!
//! A buffer in a device's memory has a twin in host memory, where data is written and checked; [`Buffer::upload`] and
//! [`Buffer::download`] carry data and guards from one to the other.

use std::ops::{Deref, DerefMut};

use super::cuda::{Gpu, cuda};
use crate::cuda::{DeviceBuffer, DeviceSlice, DeviceSliceMut};
use crate::{Communicator, Error, Registered, Result};

/// Alignment of the data's first byte.
const LINE: usize = 64;
/// Guard bytes before and after the data.
const GUARD: usize = 64;

/// Bytes that start on a cache line and lie between two guards. Its length can be set anew, up to its capacity, without
/// moving it; the second guard follows the last byte directly.
#[derive(Debug)]
pub struct Buffer {
    storage: Storage,
    start: usize,
    len: usize,
    device: Option<DeviceBuffer<u8>>,
}

#[derive(Debug)]
enum Storage {
    Own(Vec<u8>),
    Registered(Registered<u8>),
}

impl Deref for Storage {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Storage::Own(bytes) => bytes,
            Storage::Registered(bytes) => bytes,
        }
    }
}

impl DerefMut for Storage {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Storage::Own(bytes) => bytes,
            Storage::Registered(bytes) => bytes,
        }
    }
}

impl Buffer {
    /// [`Buffer::new`] in registered memory. Every rank calls it.
    pub fn registered(comm: &Communicator, capacity: usize) -> Result<Buffer> {
        let storage = comm.alloc(capacity.saturating_add(LINE + 2 * GUARD))?;
        Ok(Buffer::in_storage(Storage::Registered(storage)))
    }

    /// [`Buffer::new`] in the device's memory. `registered`: in memory that peers read where it lies; then every rank calls
    /// it, after [`Communicator::attach`].
    pub fn on_device(comm: &Communicator, gpu: &Gpu, capacity: usize, registered: bool) -> Result<Buffer> {
        let mut buffer = Buffer::new(capacity)?;
        let bytes = buffer.storage.len();
        buffer.device = Some(if registered {
            comm.alloc_device(bytes)?
        } else {
            DeviceBuffer::new(&gpu.context, bytes)
                .map_err(cuda("allocating device memory (a smaller --maxbytes helps)"))?
        });
        // Aligned there, wherever the twin lies.
        buffer.start = GUARD;
        Ok(buffer)
    }

    fn in_storage(storage: Storage) -> Buffer {
        let start = GUARD + (storage.as_ptr() as usize + GUARD).wrapping_neg() % LINE;
        Buffer { storage, start, len: 0, device: None }
    }

    /// Whether other ranks can read it where it lies, in the device's memory.
    pub fn is_shared(&self) -> bool {
        self.device.as_ref().is_some_and(DeviceBuffer::is_shared)
    }

    /// Carry data and guards to the device; of host memory, nothing. Waits for the stream.
    pub fn upload(&mut self, gpu: &Gpu) -> Result<()> {
        let (from, to) = (self.start - GUARD, self.start + self.len + GUARD);
        let Some(device) = &mut self.device else { return Ok(()) };
        device.copy_from_at(from, &self.storage[from..to], &gpu.stream).map_err(cuda("copying to the device"))
    }

    /// Carry data and guards back. Waits for the stream.
    pub fn download(&mut self, gpu: &Gpu) -> Result<()> {
        let (from, to) = (self.start - GUARD, self.start + self.len + GUARD);
        let Some(device) = &self.device else { return Ok(()) };
        device.copy_to_at(from, &mut self.storage[from..to], &gpu.stream).map_err(cuda("copying from the device"))
    }

    /// The data in the device's memory.
    ///
    /// # Panics
    /// If it is not there.
    pub fn device_bytes(&self) -> DeviceSlice<'_, u8> {
        self.device.as_ref().expect("a buffer on a device").slice(self.start..self.start + self.len)
    }

    /// The data in the device's memory, to be written.
    ///
    /// # Panics
    /// If it is not there.
    pub fn device_bytes_mut(&mut self) -> DeviceSliceMut<'_, u8> {
        let range = self.start..self.start + self.len;
        self.device.as_mut().expect("a buffer on a device").slice_mut(range)
    }

    /// Zeroed memory for up to `capacity` bytes; its length starts at 0.
    ///
    /// # Errors
    /// [`Error::System`] if there is not enough memory.
    pub fn new(capacity: usize) -> Result<Buffer> {
        let total = capacity.saturating_add(LINE + 2 * GUARD);
        let mut storage = Vec::new();
        storage.try_reserve_exact(total).map_err(|e| {
            Error::system(format!("allocating a buffer of {capacity} bytes (a smaller --maxbytes helps)"), e)
        })?;
        storage.resize(total, 0);
        Ok(Buffer::in_storage(Storage::Own(storage)))
    }

    /// Set the length and write the guards afresh. The data keeps whatever the memory held.
    pub fn reset(&mut self, len: usize) {
        assert!(self.start + len + GUARD <= self.storage.len(), "{len} bytes exceed the buffer");
        self.len = len;
        let (start, end) = (self.start, self.start + len);
        for i in (start - GUARD..start).chain(end..end + GUARD) {
            self.storage[i] = guard_byte(i);
        }
    }

    /// How many guard bytes were changed since [`Buffer::reset`].
    pub fn trespasses(&self) -> u64 {
        let (start, end) = (self.start, self.start + self.len);
        let touched = |&i: &usize| self.storage[i] != guard_byte(i);
        (start - GUARD..start).chain(end..end + GUARD).filter(touched).count() as u64
    }

    /// The data.
    pub fn bytes(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }

    /// The data, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

/// What the guard has at position `i`: no constant, so that a copy of a neighbouring guard byte shows.
fn guard_byte(i: usize) -> u8 {
    (i as u8).wrapping_mul(0x1d) ^ 0xc3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_notice_one_byte_on_either_side() {
        let mut buffer = Buffer::new(1000).unwrap();
        for len in [0, 1, 63, 1000, 17] {
            buffer.reset(len);
            assert_eq!(buffer.bytes().len(), len);
            assert_eq!(buffer.bytes().as_ptr() as usize % LINE, 0);
            buffer.bytes_mut().fill(0xee);
            assert_eq!(buffer.trespasses(), 0);
            for at in [buffer.start - 1, buffer.start + len, buffer.start + len + GUARD - 1] {
                buffer.storage[at] ^= 4;
                assert_eq!(buffer.trespasses(), 1);
                buffer.storage[at] ^= 4;
            }
        }
    }

    #[test]
    fn too_much_memory_is_an_error() {
        let error = Buffer::new(usize::MAX / 2).unwrap_err();
        assert!(error.to_string().contains("--maxbytes"), "{error}");
    }
}
