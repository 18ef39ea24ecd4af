//! Memory for a rank's data: aligned to a cache line, with guard bytes on both sides that nobody may touch.

use std::ops::{Deref, DerefMut};

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

    fn in_storage(storage: Storage) -> Buffer {
        let start = GUARD + (storage.as_ptr() as usize + GUARD).wrapping_neg() % LINE;
        Buffer { storage, start, len: 0 }
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
