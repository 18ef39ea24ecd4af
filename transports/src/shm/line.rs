//! Small publications in shared memory: payload and flag in the same cache line.
//!
//! The cheapest thing that two cores can do for each other is to pass one line. So here a line carries 56 bytes of
//! payload and, in its last eight bytes, the flag that says for which exchange they are. One transfer of the line
//! brings both.
//!
//! # The protocol
//!
//! An *exchange* is one step in which every member publishes and every member reads all others. Exchanges are numbered
//! from 1, the same on every rank; each rank has two sets of lines and uses set `number mod 2`. The publisher stores a
//! line's payload and then, with release, its flag: the number, and a digest of what the exchange is for. A reader that
//! loads the number it expects, with acquire, sees the payload; if the digest differs, the two ranks are not doing the
//! same thing.
//!
//! A set is written for exchange `k` while nobody reads it for exchange `k - 2`: to begin exchange `k`, a rank must
//! have finished exchange `k - 1`, which took every other rank's lines of `k - 1`, and a rank publishes those only
//! after it has finished exchange `k - 2`. So no credit has to come back; that is what makes an exchange a single
//! transfer each way. A reader that looks at a line while its publisher writes the *next* exchange into the *other* set
//! is not disturbed. The payload words are atomics (relaxed), so a premature look at a line is no data race, only a
//! flag that does not fit.
//!
//! What does not fit into a few lines goes into the set's *body*: plain bytes, written before and read after the flag
//! of the set's first line, which then carries no payload. The same argument covers it: until the flag of exchange `k`
//! is seen nobody reads the body, and it is written for `k` only when nobody reads it for `k - 2`. A body can be
//! written around the caches, which lines with a flag in each cannot.

use super::ring::Presence;
use super::segment::{BODY, LINES, Segment, Shared};
use crate::sync::{AtomicU64, Ordering, fence};
use crate::wait::Bell;
use std::ptr::NonNull;
use std::sync::Arc;

/// Payload words of a line.
const WORDS: usize = 7;

/// One line: payload and flag.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Line {
    payload: [AtomicU64; WORDS],
    flag: AtomicU64,
}

/// Bytes of payload per line.
const PER_LINE: usize = WORDS * 8;

/// Store `bytes` into as many of `lines` as they need (at least one) under `flag`.
#[inline]
pub fn publish(lines: &[Line], flag: u64, bytes: &[u8]) {
    let mut rest = bytes;
    for line in lines {
        let (now, later) = rest.split_at(rest.len().min(PER_LINE));
        let (words, tail) = now.as_chunks::<8>();
        for (to, from) in line.payload.iter().zip(words) {
            to.store(u64::from_ne_bytes(*from), Ordering::Relaxed);
        }
        if !tail.is_empty() {
            let mut word = [0; 8];
            word[..tail.len()].copy_from_slice(tail);
            line.payload[words.len()].store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
        line.flag.store(flag, Ordering::Release);
        rest = later;
        if rest.is_empty() {
            return;
        }
    }
    assert!(rest.is_empty(), "more bytes than the lines hold");
}

/// What a reader finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Everything; it has been copied out.
    All,
    /// Not (all) there yet.
    NotYet,
    /// The publisher's exchange of this number has another digest: it does something else.
    Other,
}

/// Copy what was published under `flag` into `into`, if it is all there.
#[inline]
pub fn read(lines: &[Line], flag: u64, into: &mut [u8]) -> Seen {
    let mut rest = into;
    for line in lines {
        let found = line.flag.load(Ordering::Acquire);
        if found != flag {
            return if found as u32 == flag as u32 { Seen::Other } else { Seen::NotYet };
        }
        let length = rest.len().min(PER_LINE);
        let (now, later) = rest.split_at_mut(length);
        let (words, tail) = now.as_chunks_mut::<8>();
        for (to, from) in words.iter_mut().zip(&line.payload) {
            *to = from.load(Ordering::Relaxed).to_ne_bytes();
        }
        if !tail.is_empty() {
            let word = line.payload[words.len()].load(Ordering::Relaxed).to_ne_bytes();
            tail.copy_from_slice(&word[..tail.len()]);
        }
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    Seen::All
}

/// One member's view of another's lines.
struct Member {
    sets: [Shared<[Line; LINES]>; 2],
    bodies: [NonNull<u8>; 2],
    bell: Shared<Bell>,
    presence: Shared<Presence>,
}

/// One rank's part in the exchanges of a group.
pub struct Exchange {
    me: usize,
    number: u32,
    flag: u64,
    members: Vec<Member>,
    unsettled: bool,
    _segment: Arc<Segment>,
}

// SAFETY: the bodies lie in the segment that the value keeps; who may touch them is the protocol's business, not the
// thread's.
unsafe impl Send for Exchange {}

impl Exchange {
    /// Bytes that one rank can publish in lines.
    pub const CAPACITY: usize = LINES * PER_LINE;
    /// Bytes that one rank can publish in the body.
    pub const BODY: usize = BODY;

    pub(super) fn new(segment: &Arc<Segment>, me: usize) -> Exchange {
        let shape = segment.shape();
        let members = (0..shape.members)
            .map(|r| Member {
                // SAFETY: lines, bells and presences are atomics at offsets that every member computes alike.
                sets: [0, 1].map(|parity| unsafe { segment.shared(shape.lines(r, parity)) }),
                bodies: [0, 1].map(|parity| segment.bytes_at(shape.body(r, parity), BODY)),
                // SAFETY: as above.
                bell: unsafe { segment.shared(shape.bell(r, 0)) },
                // SAFETY: as above.
                presence: unsafe { segment.shared(shape.presence(r)) },
            })
            .collect();
        Exchange { me, number: 0, flag: 0, members, unsettled: false, _segment: segment.clone() }
    }

    /// Begin the next exchange with this rank's bytes, at most [`Exchange::CAPACITY`]. The one before must have been
    /// read from every other member.
    #[inline]
    pub fn publish(&mut self, digest: u32, bytes: &[u8]) {
        self.number = self.next();
        self.flag = u64::from(digest) << 32 | u64::from(self.number);
        self.unsettled = true;
        publish(&*self.members[self.me].sets[self.number as usize & 1], self.flag, bytes);
    }

    /// Copy rank `from`'s bytes of this exchange into `into`, which has as many.
    #[inline]
    pub fn read(&self, from: usize, into: &mut [u8]) -> Seen {
        read(&*self.members[from].sets[self.number as usize & 1], self.flag, into)
    }

    /// 0 is what fresh memory holds, so no exchange has that number.
    #[inline]
    fn next(&self) -> u32 {
        self.number.checked_add(1).unwrap_or(2)
    }

    /// The body of this rank's next exchange, to be filled before [`Exchange::publish`] with no bytes. As there, the
    /// exchange before must have been read from every other member.
    #[inline]
    pub fn body(&mut self) -> &mut [u8] {
        let at = self.members[self.me].bodies[self.next() as usize & 1];
        // SAFETY: the body has BODY bytes and, by the protocol, nobody reads it before the next exchange is published;
        // `&mut self` keeps this process from asking twice.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), BODY) }
    }

    /// Rank `from`'s body of this exchange, once [`Exchange::read`] of no bytes has said that it is there.
    #[inline]
    pub fn body_of(&self, from: usize) -> &[u8] {
        let at = self.members[from].bodies[self.number as usize & 1];
        // SAFETY: the body has BODY bytes and, by the protocol, is not written again before this rank has begun the
        // next exchange, which takes `&mut self`.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), BODY) }
    }

    /// Whether rank `from` has left the group.
    pub fn has_left(&self, from: usize) -> bool {
        self.members[from].presence.has_left()
    }

    /// Wake whoever sleeps on this rank's lines. To be called before this rank waits for long, and when it has read
    /// everything.
    #[inline]
    pub fn settle(&mut self) {
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
