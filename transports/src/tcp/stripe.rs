//! Several connections for one link: each segment of the stream goes wherever there is room.
//!
//! One TCP connection seldom fills a fast network: it is one flow on one path, handled by one core, and one lost packet
//! halves it. Several do better, but not with equal shares: then the slowest connection governs. So the stream is cut
//! when it is sent, not before.
//!
//! # Sending
//!
//! The next segment (at most [`SEGMENT`](segment::SEGMENT) bytes; a small message is one) goes to the first connection,
//! in turn, that takes any of it. In front goes a header: where in the stream the segment begins, how long it is, and a
//! check:
//!
//! ```text
//! | offset: u64 | length: u32 | check: u32 |    little-endian, then `length` bytes
//! ```
//!
//! A connection that takes only a part must carry the rest too. While no other connection can take the segment after
//! it, the rest stays with the caller (it is simply not taken yet). When another can, the rest is copied and waits for
//! its connection, and the stream goes on at the other. A connection with a rest waiting gets no new segment, so at
//! most one segment a connection is ever copied. Connections are kept from queueing more than
//! [`UNSENT`](segment::UNSENT) bytes: a slow one shows after two segments, not after megabytes.
//!
//! A turn lasts a segment's worth of bytes, so small messages stay on one connection and in its packets.
//!
//! # Receiving
//!
//! Let `next` be the offset of the first byte not yet consumed. *The segment that begins at `next` is, or will be, at
//! the head of some connection.* Segments are cut in stream order and a connection gets a segment only after every
//! earlier one was given to some connection; so the segments of one connection have rising offsets. Whatever stands
//! before the segment at `next` on its connection therefore has a smaller offset, and is consumed. Hence nothing needs
//! to be reassembled: take from the connection whose head is at `next`, and leave the others in the kernel. It also
//! cannot block: bytes up to `next + credit` are taken in by [`absorb`](crate::Receiver::absorb), each from the head of
//! a connection, in turn.
//!
//! Headers come from outside and are believed only so far: a wrong check, an empty or overlong segment, an offset
//! behind what was consumed, or heads on all connections and none at `next`, are errors. No length allocates anything.

mod inward;
#[cfg(any(test, fuzzing))]
pub(super) mod outside;
mod outward;
mod segment;

pub(super) use inward::StripeIn;
pub(super) use outward::StripeOut;
pub(super) use segment::UNSENT;
