//! The connections of a link as each half of the pair uses them: bare, or with records around the bytes.
//!
//! Where nothing is encrypted there is no list of sealers and openers, and looking for one is all that it costs.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use super::connection::{Arrival, Connections};
use super::record::{Opener, Sealer};
use crate::{LinkError, Result};

/// Records that go in one system call: these are in the second-level cache still, and it costs little beside them.
const BATCH: usize = 4;

/// The sending half's connections.
#[derive(Debug)]
pub(super) struct Outgoing {
    connections: Arc<Connections>,
    /// By connection; empty if they are not encrypted.
    sealers: Vec<Sealer>,
}

/// The receiving half's connections.
#[derive(Debug)]
pub(super) struct Incoming {
    connections: Arc<Connections>,
    /// By connection; empty if they are not encrypted.
    openers: Vec<Opener>,
}

impl Outgoing {
    pub fn new(connections: Arc<Connections>) -> Outgoing {
        let sealers = connections.seals().map(|seal| Sealer::new(seal, BATCH)).collect();
        Outgoing { connections, sealers }
    }

    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// One attempt to write `parts` in order to connection `index`; returns how many bytes it took, 0 when it is full.
    /// What it took may still have to be pushed on with [`Outgoing::flush`].
    #[inline]
    pub fn write(&mut self, index: usize, parts: &[IoSlice<'_>]) -> Result<usize> {
        match self.sealers.get_mut(index) {
            None => self.connections.write(index, parts),
            Some(sealer) => write_sealed(&self.connections, index, sealer, parts),
        }
    }

    /// Push on what was taken; returns whether nothing is left.
    #[inline]
    pub fn flush(&mut self) -> Result<bool> {
        let mut clear = true;
        for (index, sealer) in self.sealers.iter_mut().enumerate() {
            clear &= push(&self.connections, index, sealer)?;
        }
        Ok(clear)
    }
}

impl Incoming {
    pub fn new(connections: Arc<Connections>) -> Incoming {
        let openers = connections.seals().map(|seal| Opener::new(seal, BATCH)).collect();
        Incoming { connections, openers }
    }

    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// One attempt to read from connection `index` into `parts` in order. The parts must have room for at least one
    /// byte.
    #[inline]
    pub fn read(&mut self, index: usize, parts: &mut [IoSliceMut<'_>]) -> Result<Arrival> {
        match self.openers.get_mut(index) {
            None => self.connections.read(index, parts),
            Some(opener) => read_sealed(&self.connections, index, opener, parts),
        }
    }
}

fn write_sealed(connections: &Connections, index: usize, sealer: &mut Sealer, parts: &[IoSlice<'_>]) -> Result<usize> {
    let mut taken = 0;
    while push(connections, index, sealer)? {
        let n = sealer.take(parts, taken).map_err(no_memory)?;
        if n == 0 {
            break;
        }
        taken += n;
    }
    Ok(taken)
}

/// Send records that wait. They are tried until the connection refuses, so that it reports when it has room again.
fn push(connections: &Connections, index: usize, sealer: &mut Sealer) -> Result<bool> {
    while !sealer.pending().is_empty() {
        match connections.write(index, &[IoSlice::new(sealer.pending())])? {
            0 => return Ok(false),
            n => sealer.sent(n),
        }
    }
    Ok(true)
}

fn read_sealed(
    connections: &Connections,
    index: usize,
    opener: &mut Opener,
    parts: &mut [IoSliceMut<'_>],
) -> Result<Arrival> {
    loop {
        let got = opener.take(parts).map_err(|source| connections.spoiled(index, source))?;
        if got > 0 {
            return Ok(Arrival::Bytes(got));
        }
        let came = connections.read(index, &mut [IoSliceMut::new(opener.room().map_err(no_memory)?)]);
        opener.came(if let Ok(Arrival::Bytes(n)) = came { n } else { 0 });
        match came? {
            Arrival::Bytes(_) => {}
            Arrival::Nothing => return Ok(Arrival::Nothing),
            Arrival::Closed(mut closed) => {
                if opener.is_within_record() {
                    closed.broken = true;
                    closed.detail += ", within a record";
                }
                return Ok(Arrival::Closed(closed));
            }
        }
    }
}

fn no_memory(source: std::io::Error) -> LinkError {
    LinkError::Io { doing: "memory for a TCP link", source }
}

impl Connections {
    /// The error of connection `index`, which carried what the other end did not send.
    fn spoiled(&self, index: usize, source: std::io::Error) -> LinkError {
        let source = std::io::Error::new(source.kind(), format!("{}: {source}", self.name(index)));
        LinkError::Io { doing: "receiving on an encrypted connection", source }
    }
}
