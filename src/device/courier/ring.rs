//! A ring of slots between the device and this process, in memory that both read and write.
//!
//! Each slot is a header of 64 bytes and room for data. One side fills slots, the other empties them, in order and round
//! the ring; each counts what it has done in a word of its own, modulo 2^32. For an outgoing link the device fills (a
//! kernel, and then a word written by the stream) and the courier empties; for an incoming one it is the other way
//! round. The words are all that orders accesses to the slots.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use maypole_cuda::kernels::Header;
use maypole_cuda::peer::HEADER;

use crate::fingerprint::Fingerprint;

/// The courier's end of a ring, with the next slot for it. See the [module](self).
pub(crate) struct Ring {
    first: *mut u8,
    stride: usize,
    bytes: usize,
    slots: u32,
    filled: *const AtomicU32,
    freed: *const AtomicU32,
    /// Slots that the courier has done with, modulo 2^32.
    count: u32,
    /// Where the next one lies.
    place: u32,
    /// What the addresses above point into.
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: plain addresses of memory that `_keep` keeps; the words order the two sides' accesses to it, whichever thread
// is the courier's.
unsafe impl Send for Ring {}

impl Ring {
    /// The ring of `slots` slots that begins at `first`, both words 0. Slots are `stride` bytes apart, and hold `bytes`
    /// bytes of data behind their header.
    ///
    /// # Safety
    /// `first` and `stride` are multiples of 64, `stride` is at least [`HEADER`] + `bytes`, and everything is valid for
    /// reads and writes while `keep` lives. Only the device and one courier touch it, in turns as the two words say.
    pub unsafe fn new(
        (first, stride): (*mut u8, usize),
        (slots, bytes): (u32, usize),
        (filled, freed): (*const AtomicU32, *const AtomicU32),
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Ring {
        assert!(slots > 0 && bytes > 0 && stride >= HEADER + bytes, "{slots} slots of {bytes} bytes, {stride} apart");
        assert!(stride % HEADER == 0 && first.align_offset(HEADER) == 0, "slots begin at multiples of {HEADER}");
        Ring { first, stride, bytes, slots, filled, freed, count: 0, place: 0, _keep: keep }
    }

    /// Bytes of data that a slot holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the next slot has been filled.
    pub fn is_filled(&self) -> bool {
        // SAFETY: valid while `_keep` lives.
        has_reached(unsafe { &*self.filled }, self.count.wrapping_add(1))
    }

    /// Whether the next slot is free to be filled.
    pub fn is_free(&self) -> bool {
        // SAFETY: valid while `_keep` lives.
        has_reached(unsafe { &*self.freed }, self.count.wrapping_add(1).wrapping_sub(self.slots))
    }

    /// The digest of the operation for which the next slot, a filled one, was filled; 0 if none.
    pub fn digest(&self) -> u32 {
        // SAFETY: the first four bytes of a slot; volatile, since what a device writes is not for the compiler to reason
        // about.
        unsafe { self.slot().cast::<u32>().read_volatile() }
    }

    /// The first `bytes` bytes of data of the next slot, a filled one.
    pub fn data(&self, bytes: usize) -> &[u8] {
        debug_assert!(bytes <= self.bytes);
        // SAFETY: behind the header, in a slot that is the courier's until `free`, which needs the ring back.
        unsafe { std::slice::from_raw_parts(self.slot().add(HEADER), bytes) }
    }

    /// Room for the first `bytes` bytes of data of the next slot, a free one.
    pub fn room(&mut self, bytes: usize) -> &mut [u8] {
        debug_assert!(bytes <= self.bytes);
        // SAFETY: behind the header, in a slot that is the courier's until `fill`, which needs the ring back.
        unsafe { std::slice::from_raw_parts_mut(self.slot().add(HEADER), bytes) }
    }

    /// The next slot has been emptied. Its header is cleared first: a kernel that has seen something wrong writes
    /// nothing at all, and what it leaves must not pass for its work one lap later.
    pub fn free(&mut self) {
        // SAFETY: the slot is the courier's until `pass`.
        unsafe { self.slot().cast::<u32>().write_volatile(0) };
        self.pass(self.freed);
    }

    /// The next slot has been filled for this operation.
    pub fn fill(&mut self, operation: &Fingerprint) {
        // SAFETY: the slot is the courier's until `pass`, and aligned for it.
        unsafe { self.slot().cast::<Header>().write_volatile(header(operation)) };
        self.pass(self.filled);
    }

    /// Hand the next slot to the other side.
    fn pass(&mut self, word: *const AtomicU32) {
        self.count = self.count.wrapping_add(1);
        self.place = if self.place + 1 == self.slots { 0 } else { self.place + 1 };
        // SAFETY: valid while `_keep` lives.
        unsafe { &*word }.store(self.count, Ordering::Release);
    }

    /// As if so many slots had gone through, a multiple of their number.
    #[cfg(test)]
    pub fn begin_at(&mut self, count: u32) {
        self.count = count;
    }

    fn slot(&self) -> *mut u8 {
        self.first.wrapping_add(self.place as usize * self.stride)
    }
}

/// Whether the count in `word` has reached `value`, as the device compares: modulo 2^32, in half the circle.
fn has_reached(word: &AtomicU32, value: u32) -> bool {
    (word.load(Ordering::Acquire).wrapping_sub(value) as i32) >= 0
}

/// The header of what belongs to `operation`: whoever finds it in place of another's can say what it is.
pub(super) fn header(operation: &Fingerprint) -> Header {
    Header { digest: operation.digest(), operation: bytemuck::cast(*operation), ..Header::default() }
}
