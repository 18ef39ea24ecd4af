//! Publications in shared memory: one writes, all others read.
//!
//! # The protocol
//!
//! Each rank has two *places*; its publication number `k` (from 0) lies in place `k mod 2`. Shared are
//!
//! * `published` of each rank, written by it alone: how many publications are readable;
//! * `done` of each ordered pair, written by the reader alone: with how many of the publisher's publications the reader
//!   has finished.
//!
//! Each is in a line of its own. The publisher writes publication `k` into its place only when every other rank's
//! `done` is at least `k - 1`, that is, when nobody reads publication `k - 2` any more, and then stores `k + 1` into
//! `published` with release. A reader reads publication `k` only after it has loaded `published > k` with acquire, and stores
//! `done = k + 1` with release when it has finished. So no place is written while it is read, and what is read is
//! complete. Two places let a publisher write the next publication while the others still read the last one.
//!
//! Bells are not rung at each store: [`Window::settle`] rings them, once for everything since the last time, when the
//! rank would otherwise wait or is leaving the operation. A rank sleeps only after it has polled for much longer than
//! that takes.

use std::ptr::NonNull;
use std::sync::Arc;

use super::ring::Presence;
use super::segment::{Segment, Shared};
use crate::sync::{AtomicU64, Ordering, fence};
use crate::wait::Bell;
use crate::{LinkError, Result, Window};

/// A count in a line of its own.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

/// The publisher's side of the protocol, without the bytes.
pub struct Publisher {
    published: Shared<Count>,
    done: Vec<Shared<Count>>,
    next: u64,
    free_before: u64,
}

impl Publisher {
    /// `done`: the counts of all other ranks for this publisher.
    pub fn new(published: Shared<Count>, done: Vec<Shared<Count>>) -> Publisher {
        Publisher { published, done, next: 0, free_before: 2 }
    }

    /// The place (0 or 1) into which the next publication may be written, if it is free.
    #[inline]
    pub fn place(&mut self) -> Option<usize> {
        if self.next >= self.free_before {
            let slowest = self.done.iter().map(|d| d.0.load(Ordering::Acquire)).min().unwrap_or(u64::MAX - 2);
            self.free_before = slowest + 2;
        }
        (self.next < self.free_before).then_some((self.next & 1) as usize)
    }

    /// The first of the other ranks, in the order of `done`, that has not finished with everything published. Where
    /// there is none, whatever they read of it, outside its places too, may be written again.
    pub fn unread(&self) -> Option<usize> {
        self.done.iter().position(|done| done.0.load(Ordering::Acquire) < self.next)
    }

    /// What was written is readable.
    #[inline]
    pub fn publish(&mut self) {
        self.next += 1;
        self.published.0.store(self.next, Ordering::Release);
    }
}

/// A reader's side of the protocol for one publisher, without the bytes.
pub struct Subscriber {
    published: Shared<Count>,
    done: Shared<Count>,
    seen: u64,
}

impl Subscriber {
    /// `done`: this reader's count for that publisher.
    pub fn new(published: Shared<Count>, done: Shared<Count>) -> Subscriber {
        Subscriber { published, done, seen: 0 }
    }

    /// The place of publication `number`, if it is readable.
    #[inline]
    pub fn place(&mut self, number: u64) -> Option<usize> {
        if self.seen <= number {
            self.seen = self.published.0.load(Ordering::Acquire);
        }
        debug_assert!(self.seen <= number + 2, "publication {number} was given up before it was read");
        (self.seen > number).then_some((number & 1) as usize)
    }

    /// Finished with publication `number` and all before it.
    #[inline]
    pub fn done(&mut self, number: u64) {
        self.done.0.store(number + 1, Ordering::Release);
    }
}

/// What one member sees of another.
struct Neighbour {
    subscriber: Subscriber,
    places: [NonNull<u8>; 2],
    bell: Shared<Bell>,
    presence: Shared<Presence>,
}

/// One rank's window in shared memory. See the [module](self) for the protocol.
pub struct ShmWindow {
    me: usize,
    capacity: usize,
    publisher: Publisher,
    members: Vec<Neighbour>,
    unsettled: bool,
    _segment: Arc<Segment>,
}

// SAFETY: the places lie in the segment that the value keeps; who may touch them is the protocol's business, not the
// thread's.
unsafe impl Send for ShmWindow {}

impl ShmWindow {
    pub(super) fn new(segment: &Arc<Segment>, me: usize) -> ShmWindow {
        let shape = segment.shape();
        // SAFETY: counts, bells and presences are atomics at offsets that every member computes alike.
        let count = |offset| unsafe { segment.shared::<Count>(offset) };
        let others = (0..shape.members).filter(|r| *r != me);
        let publisher = Publisher::new(count(shape.published(me)), others.map(|r| count(shape.done(me, r))).collect());
        let members = (0..shape.members)
            .map(|r| Neighbour {
                subscriber: Subscriber::new(count(shape.published(r)), count(shape.done(r, me))),
                places: [0, 1].map(|parity| segment.bytes_at(shape.place(r, parity), shape.window)),
                // SAFETY: as above.
                bell: unsafe { segment.shared(shape.bell(r, 0)) },
                // SAFETY: as above.
                presence: unsafe { segment.shared(shape.presence(r)) },
            })
            .collect();
        ShmWindow { me, capacity: shape.window, publisher, members, unsettled: false, _segment: segment.clone() }
    }

    fn someone_left(&self) -> Option<usize> {
        (0..self.members.len()).find(|r| *r != self.me && self.members[*r].presence.has_left())
    }
}

impl Window for ShmWindow {
    fn capacity(&self) -> usize {
        self.capacity
    }

    fn reserve(&mut self) -> Result<Option<&mut [u8]>> {
        let Some(place) = self.publisher.place() else {
            // Somebody who has left will never finish reading; the caller reports who.
            return match self.someone_left() {
                Some(_) if self.publisher.place().is_none() => {
                    Err(LinkError::Gone { detail: "it left the group without reading a publication".into() })
                }
                _ => Ok(None),
            };
        };
        let at = self.members[self.me].places[place];
        // SAFETY: the place has `capacity` bytes and, by the protocol, nobody reads it before `publish`; `&mut self`
        // keeps this process from asking twice.
        Ok(Some(unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), self.capacity) }))
    }

    fn publish(&mut self) {
        self.publisher.publish();
        self.unsettled = true;
    }

    #[inline]
    fn fetch(&mut self, from: usize, number: u64) -> Result<Option<&[u8]>> {
        let member = &mut self.members[from];
        let Some(place) = member.subscriber.place(number) else {
            if !member.presence.has_left() {
                return Ok(None);
            }
            // It may have published just before it left.
            return match member.subscriber.place(number) {
                None => Err(LinkError::Gone { detail: "it left the group".into() }),
                Some(_) => Ok(None),
            };
        };
        // SAFETY: the place has `capacity` bytes and, by the protocol, is not written before every reader is done with
        // it.
        Ok(Some(unsafe { std::slice::from_raw_parts(member.places[place].as_ptr(), self.capacity) }))
    }

    #[inline]
    fn done(&mut self, from: usize, number: u64) {
        if from != self.me {
            self.members[from].subscriber.done(number);
            self.unsettled = true;
        }
    }

    fn unread(&mut self) -> std::result::Result<Option<usize>, (usize, LinkError)> {
        let reader = |publisher: &Publisher, me| publisher.unread().map(|r| if r < me { r } else { r + 1 });
        let Some(rank) = reader(&self.publisher, self.me) else { return Ok(None) };
        if !self.members[rank].presence.has_left() {
            return Ok(Some(rank));
        }
        // It may have finished just before it left.
        match reader(&self.publisher, self.me) {
            Some(same) if same == rank => {
                Err((rank, LinkError::Gone { detail: "it left the group without reading a publication".into() }))
            }
            other => Ok(other),
        }
    }

    #[inline]
    fn settle(&mut self) {
        if std::mem::take(&mut self.unsettled) {
            fence(Ordering::SeqCst);
            for (rank, member) in self.members.iter().enumerate() {
                if rank != self.me {
                    member.bell.ring_after_fence();
                }
            }
        }
    }
}
