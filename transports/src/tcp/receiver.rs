//! The receiving half: what is buffered, what goes straight into the caller's memory, and what a closed connection
//! means.

use std::io::{self, IoSliceMut};
use std::net::Shutdown;
use std::sync::Arc;

use super::connection::{Arrival, Connections};
use super::halves::Incoming;
use super::stripe::StripeIn;
use crate::pages::Pages;
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
    /// Most bytes held in the buffer.
    hold: usize,
    /// Bytes that have arrived and are not consumed are `buffer[start..end]`. Twice `hold` long, so that moving the
    /// rest to the front is rare.
    buffer: Pages,
    start: usize,
    end: usize,
    /// Why nothing more will come, known before the buffer was consumed.
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

impl TcpReceiver {
    pub(super) fn new(connections: Arc<Connections>, credit: usize) -> io::Result<Self> {
        let inlet = match connections.len() {
            1 => Inlet::Bare,
            n => Inlet::Striped(StripeIn::new(n)),
        };
        let hold = credit.max(LEAST);
        let buffer = Pages::new(2 * hold)?;
        Ok(Self { incoming: Incoming::new(connections), inlet, hold, buffer, start: 0, end: 0, failed: None })
    }

    pub(super) fn connections(&self) -> &Arc<Connections> {
        self.incoming.connections()
    }

    fn buffered(&self) -> usize {
        self.end - self.start
    }

    /// Read once into the buffer, up to what it may hold. What goes wrong is kept for when the buffer is consumed.
    fn fill(&mut self) -> usize {
        let wanted = (self.hold.saturating_sub(self.buffered())).min(READ);
        if wanted == 0 || self.failed.is_some() {
            return 0;
        }
        if self.start == self.end || self.buffer.len() - self.end < wanted.min(BEYOND) {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.buffered());
        }
        let to = self.buffer.len().min(self.end + wanted);
        let outcome = self.inlet.read(&mut self.incoming, &mut self.buffer[self.end..to], &mut []);
        let n = self.keep(outcome);
        self.end += n;
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
            Some(error) if self.start == self.end => Err(again(error)),
            _ => Ok(()),
        }
    }

    /// Move buffered bytes to the front of `into`.
    fn take(&mut self, into: &mut [u8]) -> usize {
        let n = self.buffered().min(into.len());
        into[..n].copy_from_slice(&self.buffer[self.start..self.start + n]);
        self.start += n;
        n
    }
}

impl Receiver for TcpReceiver {
    fn peek(&mut self) -> Result<&[u8]> {
        // Always ask the kernel while the caller may be short of an element: a caller about to sleep must have seen all
        // there is.
        if self.buffered() < ELEMENT {
            self.fill();
            self.check()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn release(&mut self, len: usize) {
        assert!(len <= self.buffered(), "release of {len} bytes, {} are there", self.buffered());
        self.start += len;
    }

    fn recv(&mut self, into: &mut [u8]) -> Result<usize> {
        let mut got = self.take(into);
        let left = into.len() - got;
        if left == 0 {
            return Ok(got);
        }
        // The buffer is empty now.
        (self.start, self.end) = (0, 0);
        if left < DIRECT {
            self.fill();
            got += self.take(&mut into[got..]);
        } else if self.failed.is_none() {
            let outcome = self.inlet.read(&mut self.incoming, &mut into[got..], &mut self.buffer[..BEYOND]);
            let came = self.keep(outcome);
            self.end = came.saturating_sub(left);
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
