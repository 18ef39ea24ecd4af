//! The receiving half: what is buffered, what goes straight into the caller's memory, and what a closed connection
//! means.

use std::io::{self, IoSliceMut};
use std::net::Shutdown;
use std::sync::Arc;

use super::connection::{Arrival, Connections};
use super::halves::Incoming;
use super::hold::Hold;
use super::stripe::StripeIn;
use crate::{LinkError, Receiver, Result};

/// A read for at least this much goes straight into the caller's memory; below, one more copy costs less than the
/// system call that it saves.
const DIRECT: usize = 8 << 10;
/// Bytes that a direct read may bring beyond what was asked for: the header of the next message and its payload if that
/// is short.
const BEYOND: usize = 4 << 10;
/// Most bytes that one buffered read brings: they should still be in the second-level cache when they are used.
const READ: usize = 256 << 10;
/// The buffer holds this much even where the credit is smaller, so that reads stay few.
const LEAST: usize = 64 << 10;
/// What a caller is owed in one piece, see the contract's "Room for an element".
const ELEMENT: usize = 64;

/// The receiving half of a TCP link pair; see the [module](super) for what it promises.
#[derive(Debug)]
pub struct TcpReceiver {
    incoming: Incoming,
    inlet: Inlet,
    /// Most bytes that are held.
    most: usize,
    /// Bytes that have arrived and are not consumed. There is room for twice as many as are held,
    /// so that moving the rest to the front is rare.
    held: Hold,
    /// Why nothing more will come, known before what is held was consumed.
    failed: Option<LinkError>,
}

/// The way from sockets to a stream of bytes.
#[derive(Debug)]
enum Inlet {
    Bare,
    Striped(StripeIn),
}

impl Inlet {
    /// One attempt to fill `first` and then `rest`; 0 when nothing is there. Together they must not be empty.
    fn read(&mut self, incoming: &mut Incoming, first: &mut [u8], rest: &mut [u8]) -> Result<usize> {
        let arrival = match self {
            Self::Striped(stripe) => return stripe.read(incoming, first, rest),
            Self::Bare if rest.is_empty() => incoming.read(0, &mut [IoSliceMut::new(first)])?,
            Self::Bare => incoming.read(0, &mut [IoSliceMut::new(first), IoSliceMut::new(rest)])?,
        };
        match arrival {
            Arrival::Bytes(n) => Ok(n),
            Arrival::Nothing => Ok(0),
            Arrival::Closed(closed) => Err(closed.error()),
        }
    }
}

impl Inlet {
    /// Whether some connections have ended and others are given a moment to.
    fn is_ending(&self) -> bool {
        matches!(self, Self::Striped(stripe) if stripe.is_ending())
    }
}

impl TcpReceiver {
    pub(super) fn new(connections: Arc<Connections>, credit: usize) -> Self {
        let inlet = match connections.len() {
            1 => Inlet::Bare,
            n => Inlet::Striped(StripeIn::new(n)),
        };
        let most = credit.max(LEAST);
        Self { incoming: Incoming::new(connections), inlet, most, held: Hold::new(2 * most), failed: None }
    }

    pub(super) fn connections(&self) -> &Arc<Connections> {
        self.incoming.connections()
    }

    /// Read once into what is held, up to as much as may be. What goes wrong is kept for when that
    /// is consumed.
    fn fill(&mut self) -> usize {
        let wanted = self.most.saturating_sub(self.held.len()).min(READ);
        if wanted == 0 || self.failed.is_some() {
            return 0;
        }
        if self.held.free() < wanted.min(BEYOND) {
            self.held.close_up();
        }
        let outcome = self.held.room().and_then(|room| {
            let to = room.len().min(wanted);
            self.inlet.read(&mut self.incoming, &mut room[..to], &mut [])
        });
        let n = self.keep(outcome);
        self.held.came(n);
        n
    }

    /// The bytes that came, keeping an error for later.
    fn keep(&mut self, outcome: Result<usize>) -> usize {
        outcome.unwrap_or_else(|error| {
            self.failed = Some(error);
            0
        })
    }

    /// The error that ended the link, if its bytes are consumed. It stays: every later call gets it too.
    fn check(&self) -> Result<()> {
        match &self.failed {
            Some(error) if self.held.is_empty() => Err(again(error)),
            _ => Ok(()),
        }
    }

    /// Move bytes that are held to the front of `into`.
    fn take(&mut self, into: &mut [u8]) -> usize {
        let n = self.held.len().min(into.len());
        into[..n].copy_from_slice(&self.held.bytes()[..n]);
        self.held.gone(n);
        n
    }
}

impl Receiver for TcpReceiver {
    fn peek(&mut self) -> Result<&[u8]> {
        // Always ask the kernel while the caller may be short of an element: a caller about to sleep must have seen all
        // there is.
        if self.held.len() < ELEMENT {
            self.fill();
            self.check()?;
        }
        Ok(self.held.bytes())
    }

    fn release(&mut self, len: usize) {
        self.held.gone(len);
    }

    fn recv(&mut self, into: &mut [u8]) -> Result<usize> {
        let mut got = self.take(into);
        let left = into.len() - got;
        if left == 0 {
            return Ok(got);
        }
        // Nothing is held now.
        if left < DIRECT {
            self.fill();
            got += self.take(&mut into[got..]);
        } else if self.failed.is_none() {
            let outcome = self
                .held
                .room()
                .and_then(|room| self.inlet.read(&mut self.incoming, &mut into[got..], &mut room[..BEYOND]));
            let came = self.keep(outcome);
            self.held.came(came.saturating_sub(left));
            got += came.min(left);
        }
        if got == 0 {
            self.check()?;
        }
        Ok(got)
    }

    fn end(&mut self) {}

    fn absorb(&mut self) -> Result<bool> {
        Ok(self.fill() > 0)
    }

    fn is_behind(&self) -> bool {
        self.held.len() >= self.most || self.failed.is_none() && self.inlet.is_ending()
    }

    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.failed.is_none()
    }
}

impl Drop for TcpReceiver {
    fn drop(&mut self) {
        self.incoming.connections().shutdown(Shutdown::Both);
    }
}

/// The same error once more.
fn again(error: &LinkError) -> LinkError {
    match error {
        LinkError::Gone { detail } => LinkError::Gone { detail: detail.clone() },
        LinkError::Io { doing, source } => {
            LinkError::Io { doing, source: io::Error::new(source.kind(), source.to_string()) }
        }
    }
}
