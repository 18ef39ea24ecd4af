//! Links: slots from one member to another, in order.
//!
//! # The protocol
//!
//! A link has a ring of `n` slots in the receiver's memory; its slot number `k` (from 0, ever on) is slot `k mod n` of
//! the ring. Shared are `filled`, written by the sender's stream alone, and `freed`, written by the receiver's. On the
//! streams stand
//!
//! * to send slot `k`: *wait* `freed >= k + 1 - n` (not for k < n); a kernel writes header and data; *write*
//!   `filled = k + 1`.
//! * to receive slot `k`: *wait* `filled >= k + 1`; kernels read the slot; *write* `freed = k + 1`.
//!
//! *What is read is complete*: the sender's kernel ended before its write of `filled`, whose barrier makes its stores
//! visible, in another device's memory too; the receiver's kernels come after its wait.
//!
//! *No slot is written while it is read*: slot `k` takes the place of `k - n`, and the sender's wait for
//! `freed >= (k - n) + 1` ends only when the receiver has written that, after its kernels that read `k - n` had ended.
//!
//! *Cyclic counters*: `filled - n <= freed <= filled` at all times, so what is compared differs by `n` at most.
//!
//! # Messages
//!
//! A message takes as many slots as its bytes need, and at least one, so that an empty one is a signal. Both sides know
//! its length and count its slots alike; slots are not shared between messages, and the last is as full as it happens
//! to be. The link has room for two messages of the longest slice ([`Shape::message`](super::Shape::message)), which is
//! the credit that schedules are verified with, of an executor that reads messages where they lie.
//!
//! The other end need not be a stream. Where the receiver is on another host, the slots lie in pinned memory of this
//! process, and a thread of it takes the other side of the two words: it loads `filled` with acquire, reads, and stores
//! `freed` with release, or the reverse for what comes in. For the stream nothing changes.

use super::Place;
use crate::commands::{Commands, Word};
use crate::driver::Result;

/// The memory of a link: `count` slots, the first header at `first`, one `stride` bytes after the other, with `bytes`
/// bytes of data each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Address of the first slot's header, as kernels of this member see it.
    pub first: u64,
    /// Bytes from one slot's header to the next one's.
    pub stride: usize,
    /// Bytes of data in a slot.
    pub bytes: usize,
    /// How many slots there are.
    pub count: u32,
}

impl Slots {
    /// How many slots a message of `bytes` bytes takes.
    #[inline]
    pub fn of_message(&self, bytes: usize) -> usize {
        bytes.div_ceil(self.bytes).max(1)
    }
}

/// One end's position: the next slot.
#[derive(Debug)]
struct Position {
    slots: Slots,
    /// Slots passed, modulo 2^32.
    number: u32,
    /// Where the next one lies; kept beside `number`, since the ring's length need not divide 2^32.
    place: u32,
}

impl Position {
    fn new(slots: Slots) -> Position {
        assert!(slots.count > 0 && slots.bytes > 0, "{slots:?}");
        Position { slots, number: 0, place: 0 }
    }

    fn here(&self) -> Place {
        Place { header: self.slots.first + u64::from(self.place) * self.slots.stride as u64, bytes: self.slots.bytes }
    }

    /// Goes on to the next slot and returns how many have been passed.
    fn pass(&mut self) -> u32 {
        self.number = self.number.wrapping_add(1);
        self.place = if self.place + 1 == self.slots.count { 0 } else { self.place + 1 };
        self.number
    }
}

/// The sending end of a link. All methods only queue commands; slots and words must stay until those have run.
#[derive(Debug)]
pub struct Outgoing {
    position: Position,
    filled: Word,
    freed: Word,
}

impl Outgoing {
    /// The sending end of a link on which nothing was sent yet: both words are 0.
    pub fn new(slots: Slots, filled: Word, freed: Word) -> Outgoing {
        Outgoing { position: Position::new(slots), filled, freed }
    }

    /// The memory of the link.
    pub fn slots(&self) -> &Slots {
        &self.position.slots
    }

    /// What the latest slot waited for before it was filled: the word, and the value.
    pub fn awaited(&self) -> (Word, u32) {
        (self.freed, self.position.number.wrapping_sub(self.position.slots.count))
    }

    /// The next slot, free when the stream comes to what is queued next: a kernel that writes its header, and data if
    /// there is any. [`Outgoing::end`] follows.
    ///
    /// # Errors
    /// The driver's.
    #[inline]
    pub fn begin(&mut self, commands: &mut Commands<'_>) -> Result<Place> {
        let free = self.position.number.wrapping_add(1).wrapping_sub(self.position.slots.count);
        // On the first lap that is 0 or less, and the word is at least that.
        commands.wait(&self.freed, free)?;
        Ok(self.position.here())
    }

    /// What was queued since [`Outgoing::begin`] fills the slot.
    ///
    /// # Errors
    /// The driver's.
    #[inline]
    pub fn end(&mut self, commands: &mut Commands<'_>) -> Result<()> {
        let filled = self.position.pass();
        commands.write(&self.filled, filled)
    }
}

/// The receiving end of a link. All methods only queue commands; slots and words must stay until those have run.
#[derive(Debug)]
pub struct Incoming {
    position: Position,
    filled: Word,
    freed: Word,
}

impl Incoming {
    /// The receiving end of a link on which nothing was sent yet: both words are 0.
    pub fn new(slots: Slots, filled: Word, freed: Word) -> Incoming {
        Incoming { position: Position::new(slots), filled, freed }
    }

    /// The memory of the link.
    pub fn slots(&self) -> &Slots {
        &self.position.slots
    }

    /// What the latest slot waited for before it was read: the word, and the value.
    pub fn awaited(&self) -> (Word, u32) {
        (self.filled, self.position.number)
    }

    /// The next slot, filled when the stream comes to what is queued next: kernels that read it. [`Incoming::end`]
    /// follows.
    ///
    /// # Errors
    /// The driver's.
    #[inline]
    pub fn begin(&mut self, commands: &mut Commands<'_>) -> Result<Place> {
        commands.wait(&self.filled, self.position.number.wrapping_add(1))?;
        Ok(self.position.here())
    }

    /// The slot is empty again when the stream comes here.
    ///
    /// # Errors
    /// The driver's.
    #[inline]
    pub fn end(&mut self, commands: &mut Commands<'_>) -> Result<()> {
        let freed = self.position.pass();
        commands.write(&self.freed, freed)
    }
}
