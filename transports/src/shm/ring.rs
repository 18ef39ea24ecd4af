//! A link in shared memory: a ring of bytes with one writer and one reader.
//!
//! # The protocol
//!
//! Positions count bytes since the link was made; position `p` lies at `p mod capacity`. Two positions are shared, each
//! in a cache line that only one side writes:
//!
//! * `tail`, written by the sender: all bytes before it are there.
//! * `head`, written by the receiver: all bytes before it are consumed.
//!
//! Always `head <= tail <= head + capacity`. The sender writes only in `[tail, head + capacity)`, the receiver reads
//! only in `[head, tail)`, so the two never touch the same byte at the same time. The sender stores `tail` with release
//! after it has written, and the receiver loads it with acquire before it reads: the bytes are visible. The receiver
//! stores `head` with release after it has read, and the sender loads it with acquire before it overwrites: no byte is
//! overwritten while it is still read. Each side keeps a copy of the other's position and looks again only when the
//! copy says there is nothing to do, so a stream of messages costs one transfer of a line per batch, not per byte.
//!
//! A message starts at a multiple of 64, so that elements are aligned, never cross the ring's edge, and two messages
//! never share a line. Both sides know a message's length and skip the same padding; nothing is written into it.
//!
//! Bells (see [`crate::wait`]) are rung at the end of a message, after a large part of one, and before a side reports
//! that it cannot go on. `tests/loom` runs cursors and bells, over a ring of a few bytes, under a model checker.

use std::ptr::NonNull;
use std::sync::Arc;

use super::segment::{Segment, Shared};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::wait::Bell;
use crate::{LinkError, Receiver, Result, Sender};

/// A number in a line of its own.
#[repr(C, align(64))]
#[derive(Debug, Default)]
struct Line<T>(T);

/// The shared part of a ring: two positions, each written by one side, and who has closed the link. The positions are
/// 128 bytes apart because processors fetch lines in pairs.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct Cursors {
    tail: Line<AtomicU64>,
    sender_closed: Line<AtomicU32>,
    head: Line<AtomicU64>,
    receiver_closed: Line<AtomicU32>,
}

/// Whether a member of the group is still there.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Presence {
    /// 0 until the member has come.
    state: AtomicU32,
}

const HERE: u32 = 1;
const LEFT: u32 = 2;

impl Presence {
    pub(super) fn come(&self) {
        self.state.store(HERE, Ordering::Release);
    }
    pub(super) fn has_come(&self) -> bool {
        self.state.load(Ordering::Acquire) != 0
    }
    pub(super) fn leave(&self) {
        self.state.store(LEFT, Ordering::Release);
    }
    pub(super) fn has_left(&self) -> bool {
        self.state.load(Ordering::Acquire) == LEFT
    }
}

const ALIGN: u64 = 64;
/// Bytes after which a side rings the other's bell in the middle of a message.
const RING_AFTER: u64 = 16 << 10;

/// The sender's side of the protocol, without the bytes.
pub struct Producer {
    shared: Shared<Cursors>,
    capacity: u64,
    tail: u64,
    head_seen: u64,
}

impl Producer {
    /// A producer at the start of a fresh ring of `capacity` bytes (a power of two, at least 64).
    pub fn new(shared: Shared<Cursors>, capacity: usize) -> Producer {
        Producer { shared, capacity: capacity as u64, tail: 0, head_seen: 0 }
    }

    /// Offset and length of the contiguous room.
    #[inline]
    pub fn room(&mut self) -> (usize, usize) {
        // Less room than an element may be no use to the caller, so it counts as none.
        if self.tail - self.head_seen + ALIGN > self.capacity {
            self.head_seen = self.shared.head.0.load(Ordering::Acquire);
        }
        let offset = self.tail & (self.capacity - 1);
        let free = self.capacity - (self.tail - self.head_seen).min(self.capacity);
        (offset as usize, free.min(self.capacity - offset) as usize)
    }

    /// `len` bytes more are there.
    #[inline]
    pub fn commit(&mut self, len: usize) {
        self.tail += len as u64;
        self.shared.tail.0.store(self.tail, Ordering::Release);
    }

    /// The message is over: skip to where the next one starts. The padding may run ahead of what the receiver has
    /// freed; `room` then waits.
    #[inline]
    pub fn end(&mut self) {
        self.tail = self.tail.next_multiple_of(ALIGN);
    }
}

/// The receiver's side of the protocol, without the bytes.
pub struct Consumer {
    shared: Shared<Cursors>,
    capacity: u64,
    head: u64,
    tail_seen: u64,
}

impl Consumer {
    /// A consumer at the start of a fresh ring.
    pub fn new(shared: Shared<Cursors>, capacity: usize) -> Consumer {
        Consumer { shared, capacity: capacity as u64, head: 0, tail_seen: 0 }
    }

    /// Offset and length of the contiguous bytes that are there.
    #[inline]
    pub fn there(&mut self) -> (usize, usize) {
        // Less than an element may be no use to the caller, so it counts as nothing.
        if self.tail_seen < self.head + ALIGN {
            self.tail_seen = self.shared.tail.0.load(Ordering::Acquire);
        }
        let offset = self.head & (self.capacity - 1);
        let there = self.tail_seen.saturating_sub(self.head);
        (offset as usize, there.min(self.capacity - offset) as usize)
    }

    /// `len` bytes are consumed.
    #[inline]
    pub fn release(&mut self, len: usize) {
        self.head += len as u64;
        self.shared.head.0.store(self.head, Ordering::Release);
    }

    /// The message is over: skip its padding. The sender learns of it at once: it may wait for just that room. Returns
    /// the padding's bytes.
    #[inline]
    pub fn end(&mut self) -> usize {
        let next = self.head.next_multiple_of(ALIGN);
        let padding = next - self.head;
        self.head = next;
        self.shared.head.0.store(self.head, Ordering::Release);
        padding as usize
    }
}

/// The bell of the rank at the other end, and the bytes moved since it was rung.
struct PeerBell {
    bell: Shared<Bell>,
    unrung: u64,
}

impl PeerBell {
    #[inline]
    fn moved(&mut self, len: usize) {
        self.unrung += len as u64;
        if self.unrung >= RING_AFTER {
            self.ring();
        }
    }

    #[inline]
    fn ring(&mut self) {
        if self.unrung > 0 {
            self.unrung = 0;
            self.bell.ring();
        }
    }
}

/// A [`Producer`] that rings the receiver's bell where the protocol asks for it.
pub struct Outlet {
    cursor: Producer,
    peer: PeerBell,
}

impl Outlet {
    /// `bell`: the receiving rank's.
    pub fn new(cursor: Producer, bell: Shared<Bell>) -> Outlet {
        Outlet { cursor, peer: PeerBell { bell, unrung: 0 } }
    }

    /// [`Producer::room`]; the receiver is rung if there is too little to be sure of going on.
    #[inline]
    pub fn room(&mut self) -> (usize, usize) {
        let (offset, len) = self.cursor.room();
        if len < ALIGN as usize {
            self.peer.ring();
        }
        (offset, len)
    }

    /// [`Producer::commit`]; the receiver is rung when much has gathered.
    #[inline]
    pub fn commit(&mut self, len: usize) {
        self.cursor.commit(len);
        self.peer.moved(len);
    }

    /// [`Producer::end`]; the receiver is rung for what is not rung yet.
    #[inline]
    pub fn end(&mut self) {
        self.cursor.end();
        self.peer.ring();
    }
}

/// A [`Consumer`] that rings the sender's bell where the protocol asks for it.
pub struct Inlet {
    cursor: Consumer,
    peer: PeerBell,
}

impl Inlet {
    /// `bell`: the sending rank's.
    pub fn new(cursor: Consumer, bell: Shared<Bell>) -> Inlet {
        Inlet { cursor, peer: PeerBell { bell, unrung: 0 } }
    }

    /// [`Consumer::there`]; the sender is rung if nothing is.
    #[inline]
    pub fn there(&mut self) -> (usize, usize) {
        let (offset, len) = self.cursor.there();
        if len == 0 {
            self.peer.ring();
        }
        (offset, len)
    }

    /// [`Consumer::release`]; the sender is rung when much has gathered.
    #[inline]
    pub fn release(&mut self, len: usize) {
        self.cursor.release(len);
        self.peer.moved(len);
    }

    /// [`Consumer::end`]; the sender is rung for what is not rung yet. The padding counts: where the last `release` has
    /// just rung, a sender that finds less room than an element or a header may sleep for the padding alone.
    #[inline]
    pub fn end(&mut self) {
        let padding = self.cursor.end();
        self.peer.moved(padding);
        self.peer.ring();
    }
}

/// The bytes of a ring, and the bell and presence of the rank at its other end.
pub(super) struct Ends {
    pub(super) segment: Arc<Segment>,
    pub(super) data: NonNull<u8>,
    pub(super) capacity: usize,
    pub(super) peer_bell: Shared<Bell>,
    pub(super) peer: Shared<Presence>,
}

// SAFETY: `data` points to `capacity` bytes of the segment that the value keeps; who may touch them is the protocol's
// business, not the thread's.
unsafe impl Send for Ends {}

impl Ends {
    #[inline]
    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.capacity && self.capacity <= self.segment.shape().ring);
        // SAFETY: offset < capacity, and `data` points to that many bytes.
        unsafe { self.data.add(offset) }.as_ptr()
    }
}

/// Sending end of a link in shared memory.
pub struct RingSender {
    outlet: Outlet,
    ends: Ends,
}

impl RingSender {
    pub(super) fn new(shared: Shared<Cursors>, ends: Ends) -> RingSender {
        let outlet = Outlet::new(Producer::new(shared, ends.capacity), ends.peer_bell.clone());
        RingSender { outlet, ends }
    }
}

impl Sender for RingSender {
    fn credit(&self) -> usize {
        self.ends.capacity
    }

    fn is_shared(&self) -> bool {
        true
    }

    #[inline]
    fn reserve(&mut self) -> Result<&mut [u8]> {
        let (offset, len) = self.outlet.room();
        let closed = &self.outlet.cursor.shared.receiver_closed.0;
        if closed.load(Ordering::Relaxed) != 0 || (len == 0 && self.ends.peer.has_left()) {
            return Err(LinkError::Gone { detail: "it closed its end of the shared-memory link".into() });
        }
        // SAFETY: [offset, offset+len) lies in the ring and, by the protocol above, belongs to the sender until
        // committed; `&mut self` keeps this process from asking twice.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.ends.at(offset), len) })
    }

    #[inline]
    fn commit(&mut self, len: usize) {
        self.outlet.commit(len);
    }

    #[inline]
    fn end(&mut self) -> Result<bool> {
        self.outlet.end();
        Ok(true)
    }
}

impl Drop for RingSender {
    fn drop(&mut self) {
        self.outlet.cursor.shared.sender_closed.0.store(1, Ordering::Release);
        self.ends.peer_bell.ring();
    }
}

/// Receiving end of a link in shared memory.
pub struct RingReceiver {
    inlet: Inlet,
    ends: Ends,
}

impl RingReceiver {
    pub(super) fn new(shared: Shared<Cursors>, ends: Ends) -> RingReceiver {
        let inlet = Inlet::new(Consumer::new(shared, ends.capacity), ends.peer_bell.clone());
        RingReceiver { inlet, ends }
    }

    /// The sender is gone; look once more for what it sent before it went.
    #[cold]
    fn last_look(&mut self) -> Result<(usize, usize)> {
        match self.inlet.there() {
            (_, 0) => Err(LinkError::Gone { detail: "it closed its end of the shared-memory link".into() }),
            found => Ok(found),
        }
    }
}

impl Receiver for RingReceiver {
    #[inline]
    fn peek(&mut self) -> Result<&[u8]> {
        let (mut offset, mut len) = self.inlet.there();
        if len == 0 {
            let closed = &self.inlet.cursor.shared.sender_closed.0;
            if closed.load(Ordering::Acquire) != 0 || self.ends.peer.has_left() {
                (offset, len) = self.last_look()?;
            }
        }
        // SAFETY: [offset, offset+len) lies in the ring and, by the protocol above, is not written by the sender until
        // released.
        Ok(unsafe { std::slice::from_raw_parts(self.ends.at(offset), len) })
    }

    #[inline]
    fn release(&mut self, len: usize) {
        self.inlet.release(len);
    }

    #[inline]
    fn end(&mut self) {
        self.inlet.end();
    }
}

impl Drop for RingReceiver {
    fn drop(&mut self) {
        self.inlet.cursor.shared.receiver_closed.0.store(1, Ordering::Release);
        self.ends.peer_bell.ring();
    }
}
