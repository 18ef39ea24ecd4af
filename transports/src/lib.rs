//! Bytes between ranks.
//!
//! *Collectives decide, transports move, src composes.* This crate is the part that moves: it knows ranks, links and
//! bytes, and nothing of collectives, element types or communicators.
//!
//! # The contract
//!
//! A **link** carries bytes from one rank to another on one channel. It is a first-in first-out queue of *messages*; a
//! message is a run of bytes whose length both ends know beforehand, so nothing on a link says how long anything is.
//! What every link promises:
//!
//! * **Order.** Bytes come out as they went in. Nothing is lost, doubled or invented.
//! * **Credit.** A link takes at least [`Sender::credit`] bytes before the receiver has asked for any of them, provided
//!   the receiving rank is awake inside a call (it need not be receiving from this link). Beyond that the sender waits
//!   for the receiver.
//! * **Partial progress.** Every call moves what it can at once and says how much; no call ever waits. Waiting is the
//!   caller's, with the group's bell ([`wait`]).
//! * **Ends of messages.** The sender calls [`Sender::end`] after the last byte of a message and the receiver
//!   [`Receiver::end`]. A message may be empty. What was sent need not be visible to the receiver before `end`. Links
//!   may align the start of messages.
//! * **In place or handed over.** A sender may write straight into the link's memory ([`Sender::reserve`],
//!   [`Sender::commit`]) or hand a slice over ([`Sender::send`]); a receiver may read in place ([`Receiver::peek`],
//!   [`Receiver::release`]) or take bytes into its own buffer ([`Receiver::recv`]). The forms mix freely.
//! * **Whole elements.** Elements are of a size that divides 64 and lie at multiples of it within their message. As
//!   long as the two ends move whole elements, `peek` and `reserve` never go on returning a part of one.
//! * **A peer that is gone** (its end dropped, its connection reset) is an error, [`LinkError::Gone`], once the bytes
//!   that did arrive are consumed; never a wait without end.
//!
//! A **window** is for ranks that share memory: one rank publishes, all the others read. See [`Window`].
//!
//! Every implementation passes the same suite, `tests/conformance`:
//!
//! * [`shm`]: ranks that share memory: processes of one host, or threads of one process over a private mapping.
//! * [`tcp`]: anything that can reach each other, several connections per pair.
//! * [`fault`]: wraps a link and delays, truncates or severs it, for tests.

mod crowd;
pub mod fault;
pub mod fork;
pub mod lock;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod outside;
pub mod pages;
pub mod shm;
mod sync;
pub mod tcp;
pub mod wait;

use thiserror::Error;

/// What goes wrong on a link. The rank and the operation are the caller's to add: a link does not know them.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The other end was closed or its process died. `detail` says how this end noticed.
    #[error("the peer is gone ({detail})")]
    Gone {
        /// How this end noticed.
        detail: String,
    },
    /// The operating system refused something.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Result of a link's calls.
pub type Result<T> = std::result::Result<T, LinkError>;

/// The sending end of a link. See the [crate's contract](crate).
pub trait Sender: Send {
    /// Bytes that this link takes before its receiver asks for any.
    fn credit(&self) -> usize;
    /// Contiguous room for the next bytes of the message, at this moment; empty when there is no credit. Writing into
    /// it sends nothing until [`Sender::commit`].
    fn reserve(&mut self) -> Result<&mut [u8]>;
    /// Whether what `reserve` returns is memory that the receiver reads itself. Such memory is best written around the
    /// caches: its lines are in the receiver's, and taking each of them back before overwriting it costs more than
    /// anything else on the way.
    fn is_shared(&self) -> bool {
        false
    }
    /// The first `len` bytes of what `reserve` returned are the next bytes of the message.
    fn commit(&mut self, len: usize);
    /// Take as many bytes from the front of `bytes` as there is credit for; returns how many. `bytes` may be reused at
    /// once.
    fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut taken = 0;
        while taken < bytes.len() {
            let room = self.reserve()?;
            if room.is_empty() {
                break;
            }
            let n = room.len().min(bytes.len() - taken);
            room[..n].copy_from_slice(&bytes[taken..taken + n]);
            self.commit(n);
            taken += n;
        }
        Ok(taken)
    }
    /// The message is complete: make all of it visible to the receiver. `false`: not all could be passed on yet; call
    /// again.
    fn end(&mut self) -> Result<bool>;
    /// Pass on bytes of ended messages that are still held back on this side. `true` when none are.
    fn flush(&mut self) -> Result<bool> {
        Ok(true)
    }
}

/// The receiving end of a link. See the [crate's contract](crate).
pub trait Receiver: Send {
    /// Contiguous bytes of the current message that have arrived and are not yet released; empty if none. May include
    /// bytes of later messages only where the link does not align them; the caller never uses more than the message has
    /// left.
    fn peek(&mut self) -> Result<&[u8]>;
    /// The first `len` bytes of what `peek` returned are consumed; their credit goes back to the sender.
    fn release(&mut self, len: usize);
    /// Take bytes into the front of `into`; returns how many came, 0 if none are there.
    fn recv(&mut self, into: &mut [u8]) -> Result<usize> {
        let mut got = 0;
        while got < into.len() {
            let there = match self.peek() {
                // What was taken must not be lost; the next call finds the error again.
                Err(_) if got > 0 => break,
                outcome => outcome?,
            };
            if there.is_empty() {
                break;
            }
            let n = there.len().min(into.len() - got);
            into[got..got + n].copy_from_slice(&there[..n]);
            self.release(n);
            got += n;
        }
        Ok(got)
    }
    /// All bytes of the message are consumed; the next bytes belong to the next message.
    fn end(&mut self);
    /// Called while this rank waits for something else: take in what has arrived, up to the link's credit, so that the
    /// sender can go on. Returns whether anything came in.
    fn absorb(&mut self) -> Result<bool> {
        Ok(false)
    }
    /// Whether [`Receiver::absorb`] is to be tried again though nothing changes on the way to the
    /// peer: it had no room for what is there, or waits for the rest of a link that is ending.
    fn is_behind(&self) -> bool {
        false
    }
    /// Whether nothing is at hand, so that only a system call, as in [`Receiver::absorb`], could
    /// bring anything.
    fn is_empty(&self) -> bool {
        false
    }
}

/// One rank's part of a group that shares memory: a place to publish bytes for all members to read, and the members'
/// places.
///
/// Publications are numbered from 0 over the window's life, separately for each rank, the same number on every rank. A
/// publication stays readable until every *other* member has called [`Window::done`] for it; only then can its place be
/// published into again. A rank may read its own latest publication without that.
pub trait Window: Send {
    /// Bytes that one publication can have.
    fn capacity(&self) -> usize;
    /// The place for this rank's next publication, `capacity` bytes; `None` while a member has not finished with the
    /// one before in that place.
    fn reserve(&mut self) -> Result<Option<&mut [u8]>>;
    /// What was written into the reserved place is published.
    fn publish(&mut self);
    /// Rank `from`'s publication number `number`, all `capacity` bytes of its place, or `None` if it is not published
    /// yet. What lies beyond what the publisher wrote is whatever was there.
    fn fetch(&mut self, from: usize, number: u64) -> Result<Option<&[u8]>>;
    /// This rank has read what it wants of rank `from`'s publication `number` and of all before it.
    fn done(&mut self, from: usize, number: u64);
    /// The first member that is not done with all that this rank has published, if there is one: what `done` says is
    /// then still to come from it. For publications that only say where something lies that others read.
    ///
    /// # Errors
    /// That member and [`LinkError::Gone`] if it has left and so will never be done.
    fn unread(&mut self) -> std::result::Result<Option<usize>, (usize, LinkError)>;
    /// Wake the members that may sleep on what this rank has published or finished since the last call. To be called
    /// before this rank waits for long and before it leaves the operation.
    fn settle(&mut self);
}
