//! One direction of a link between hosts: from the slots of a ring to a connection, or from a connection to slots.
//!
//! State machines, like the lanes of the engine: each call does what can be done at once and says what it waits for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use maypole_transports::{Receiver, Sender};

use super::ring::Ring;
use crate::device::sentry::Flag;
use crate::engine::lane::Trouble;
use crate::engine::links::{announce, compare};
use crate::fingerprint::Fingerprint;
use crate::watch::Watch;

/// A run of bytes to be carried: it lies in as many slots as it needs, all full but the last, and in one slot if it is
/// empty. Both ends of a link carry the same passages in the same order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage {
    /// What it belongs to, as the other end should know it.
    pub operation: Fingerprint,
    pub bytes: usize,
}

/// How far a direction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Something was done; there may be more.
    Moved,
    /// Nothing was done: the device has to come first.
    NeedsDevice,
    /// Nothing was done: the network has to come first.
    NeedsNetwork,
    /// Nothing is to be done.
    Idle,
}

/// What says that nothing is to be carried any more.
pub(super) struct Signs {
    pub watch: Arc<Watch>,
    /// Not 0 once a job of this rank has found another operation's data.
    pub trouble: Flag,
}

impl Signs {
    fn are_bad(&self) -> bool {
        self.watch.raised() || self.trouble.load(Ordering::Acquire) != 0
    }
}

/// What is on its way through a direction.
struct Cargo {
    queue: VecDeque<Passage>,
    /// The operation for which the link has been opened last.
    opened: Option<Fingerprint>,
    /// Bytes of the first passage in the slots before the next one.
    before: usize,
    /// Bytes in the next slot that have been moved.
    within: usize,
}

impl Cargo {
    fn new() -> Cargo {
        Cargo { queue: VecDeque::new(), opened: None, before: 0, within: 0 }
    }

    fn operation(&self) -> Option<Fingerprint> {
        self.queue.front().map(|passage| passage.operation).or(self.opened)
    }

    /// How many bytes the next slot has in a ring with slots of `most` bytes.
    fn length(&self, passage: &Passage, most: usize) -> usize {
        (passage.bytes - self.before).min(most)
    }

    /// The next slot is done with. Returns whether that ends the passage.
    fn step(&mut self, passage: &Passage, length: usize) -> bool {
        (self.before, self.within) = (self.before + length, 0);
        if self.before < passage.bytes {
            return false;
        }
        self.before = 0;
        self.queue.pop_front();
        true
    }
}

/// From the device to the network.
pub(crate) struct Outgoing {
    ring: Ring,
    cargo: Cargo,
    /// The connection may hold bytes back.
    unflushed: bool,
}

impl Outgoing {
    pub fn new(ring: Ring) -> Outgoing {
        Outgoing { ring, cargo: Cargo::new(), unflushed: false }
    }

    pub fn post(&mut self, passage: Passage) {
        self.cargo.queue.push_back(passage);
    }

    /// The operation that is, or was last, on its way here.
    pub fn operation(&self) -> Option<Fingerprint> {
        self.cargo.operation()
    }

    pub fn is_idle(&self) -> bool {
        self.cargo.queue.is_empty() && !self.unflushed
    }

    /// Send of one slot what the connection takes. Without a connection nothing but looking at the ring.
    pub fn advance(&mut self, to: usize, tx: &mut dyn Sender, signs: &Signs) -> Result<Progress, Trouble> {
        let link = |error| Trouble::Link(to, error);
        let Outgoing { ring, cargo, unflushed } = self;
        let Some(passage) = cargo.queue.front().copied() else {
            if !*unflushed {
                return Ok(Progress::Idle);
            }
            *unflushed = !tx.flush().map_err(link)?;
            return Ok(if *unflushed { Progress::NeedsNetwork } else { Progress::Moved });
        };
        if !ring.is_filled() {
            // In the middle of a message, too: the other end needs what there is of it.
            if *unflushed {
                *unflushed = !tx.flush().map_err(link)?;
            }
            return Ok(Progress::NeedsDevice);
        }
        // After the word: what a stream fills that a verdict has released is not looked at, nor what comes after a job that
        // found another operation's data. It did nothing, and what later jobs make of that is not this operation's
        // result, whatever their headers say. To report it is the sentry's part.
        if signs.are_bad() || ring.digest() != passage.operation.digest() {
            return Ok(Progress::NeedsDevice);
        }
        if cargo.opened != Some(passage.operation) {
            if !announce(tx, &passage.operation).map_err(link)? {
                return Ok(Progress::NeedsNetwork);
            }
            cargo.opened = Some(passage.operation);
        }
        let length = cargo.length(&passage, ring.bytes());
        let taken = match cargo.within < length {
            true => tx.send(&ring.data(length)[cargo.within..]).map_err(link)?,
            false => 0,
        };
        (cargo.within, *unflushed) = (cargo.within + taken, true);
        if cargo.within < length {
            return Ok(if taken == 0 { Progress::NeedsNetwork } else { Progress::Moved });
        }
        ring.free();
        if cargo.step(&passage, length) {
            *unflushed = !tx.end().map_err(link)?;
        }
        Ok(Progress::Moved)
    }
}

/// From the network to the device.
pub(crate) struct Incoming {
    ring: Ring,
    cargo: Cargo,
}

impl Incoming {
    pub fn new(ring: Ring) -> Incoming {
        Incoming { ring, cargo: Cargo::new() }
    }

    pub fn post(&mut self, passage: Passage) {
        self.cargo.queue.push_back(passage);
    }

    /// The operation that is, or was last, on its way here.
    pub fn operation(&self) -> Option<Fingerprint> {
        self.cargo.operation()
    }

    pub fn is_idle(&self) -> bool {
        self.cargo.queue.is_empty()
    }

    /// Receive into one slot what has arrived.
    pub fn advance(&mut self, from: usize, rx: &mut dyn Receiver, signs: &Signs) -> Result<Progress, Trouble> {
        let Incoming { ring, cargo } = self;
        let Some(passage) = cargo.queue.front().copied() else { return Ok(Progress::Idle) };
        // Compared before there is room for what follows: ranks that disagree should know soon.
        if cargo.opened != Some(passage.operation) {
            if !compare(rx, from, &passage.operation)? {
                return Ok(Progress::NeedsNetwork);
            }
            cargo.opened = Some(passage.operation);
        }
        if !ring.is_free() {
            return Ok(Progress::NeedsDevice);
        }
        // After the word: once a verdict has released the streams, it does not say what may be written.
        if signs.are_bad() {
            return Ok(Progress::NeedsDevice);
        }
        let length = cargo.length(&passage, ring.bytes());
        let came = match cargo.within < length {
            true => rx.recv(&mut ring.room(length)[cargo.within..]).map_err(|error| Trouble::Link(from, error))?,
            false => 0,
        };
        cargo.within += came;
        if cargo.within < length {
            return Ok(if came == 0 { Progress::NeedsNetwork } else { Progress::Moved });
        }
        ring.fill(&passage.operation);
        if cargo.step(&passage, length) {
            rx.end();
        }
        Ok(Progress::Moved)
    }
}
