//! The sending half: what is staged, what goes straight from the caller's memory, and when.

use std::io::IoSlice;
use std::net::Shutdown;
use std::sync::Arc;

use super::connection::Connections;
use super::halves::Outgoing;
use super::hold::Hold;
use super::stripe::StripeOut;
use crate::{LinkError, Result, Sender};

/// Bytes that can be staged. Half a typical second-level cache: what is written in place is still there when the kernel
/// copies it.
const STAGE: usize = 256 << 10;
/// A slice shorter than this is staged rather than sent by itself: copying it costs less than a system call.
const TINY: usize = 4 << 10;
/// So many staged bytes are passed on without waiting for the end of the message, so that long messages flow.
const EAGER: usize = 32 << 10;

/// The sending half of a TCP link pair; see the [module](super) for what it promises.
#[derive(Debug)]
pub struct TcpSender {
    outgoing: Outgoing,
    outlet: Outlet,
    credit: usize,
    stage: Hold,
    /// What went wrong in `commit`, which cannot say so itself.
    failed: Option<LinkError>,
}

/// The way from a stream of bytes to sockets.
#[derive(Debug)]
enum Outlet {
    Bare,
    Striped(StripeOut),
}

impl TcpSender {
    pub(super) fn new(connections: Arc<Connections>, credit: usize) -> Self {
        let outlet = match connections.len() {
            1 => Outlet::Bare,
            n => {
                connections.limit_unsent(super::stripe::UNSENT);
                Outlet::Striped(StripeOut::new(n))
            }
        };
        Self { outgoing: Outgoing::new(connections), outlet, credit, stage: Hold::new(STAGE), failed: None }
    }

    pub(super) fn connections(&self) -> &Connections {
        self.outgoing.connections()
    }

    /// Write what is staged and then `bytes`, as far as the sockets take them; returns how many of `bytes` they took.
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let staged = self.stage.bytes();
        let taken = match &mut self.outlet {
            Outlet::Bare => match (staged, bytes) {
                ([], []) => 0,
                (one, []) | ([], one) => self.outgoing.write(0, &[IoSlice::new(one)])?,
                _ => self.outgoing.write(0, &[IoSlice::new(staged), IoSlice::new(bytes)])?,
            },
            Outlet::Striped(stripe) => stripe.write(&mut self.outgoing, staged, bytes)?,
        };
        let of_staged = taken.min(self.stage.len());
        self.stage.gone(of_staged);
        Ok(taken - of_staged)
    }

    fn check(&mut self) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl Sender for TcpSender {
    fn credit(&self) -> usize {
        self.credit
    }

    fn reserve(&mut self) -> Result<&mut [u8]> {
        self.check()?;
        if self.stage.len() >= EAGER {
            self.write(&[])?;
        }
        // Move what is staged to the front only once as much has left, so that each byte is moved once at most.
        if self.stage.lost() >= self.stage.len() {
            self.stage.close_up();
        }
        self.stage.room()
    }

    fn commit(&mut self, len: usize) {
        self.stage.came(len);
        if self.stage.len() >= EAGER
            && let Err(error) = self.write(&[])
        {
            self.failed = Some(error);
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        self.check()?;
        if bytes.len() < TINY && self.stage.len() + bytes.len() < EAGER && bytes.len() <= self.stage.free() {
            self.stage.put(bytes)?;
            return Ok(bytes.len());
        }
        self.write(bytes)
    }

    fn end(&mut self) -> Result<bool> {
        self.flush()
    }

    fn flush(&mut self) -> Result<bool> {
        self.check()?;
        self.write(&[])?;
        let passed_on = self.outgoing.flush()?;
        Ok(passed_on && self.stage.is_empty() && self.outlet.is_clear())
    }
}

impl Outlet {
    /// Whether nothing waits behind a full connection.
    fn is_clear(&self) -> bool {
        match self {
            Self::Bare => true,
            Self::Striped(stripe) => stripe.is_clear(),
        }
    }
}

impl Drop for TcpSender {
    fn drop(&mut self) {
        // Whoever drops a link with bytes still staged has given up on them, or it would have called `flush`; trying
        // once costs nothing.
        if self.failed.is_none() {
            let _ = self.write(&[]).and_then(|_| self.outgoing.flush());
        }
        self.connections().shutdown(Shutdown::Write);
    }
}
