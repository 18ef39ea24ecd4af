//! What the two ends of a connection have in common once both have shown the job's key.

use std::net::TcpStream;
use std::sync::Arc;

use maypole_transports::tcp::{Opener, Sealer, Wire, seal::Seal};

use super::key::Key;
use super::tag::{Tags, Writer};
use super::wire::{Inbox, Outbox};

/// Records that a control connection holds of what it writes and reads: frames are short, and a hub has many connections.
const RECORDS: usize = 1;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Session {
    /// Of this one connection.
    pub key: Key,
    /// Keys for encryption, where the caller asked for that.
    pub seal: Option<Seal>,
}

impl Session {
    /// For a control connection: what `writer` reads and writes.
    pub fn into_frames(self, writer: Writer) -> (Inbox, Outbox) {
        let reader = match writer {
            Writer::Node => Writer::Hub,
            Writer::Hub => Writer::Node,
        };
        let seal = self.seal.map(Arc::new);
        let opener = seal.clone().map(|seal| Opener::new(seal, RECORDS));
        let sealer = seal.map(|seal| Sealer::new(seal, RECORDS));
        let inbox = Inbox::new(Tags::new(&self.key, reader), opener);
        (inbox, Outbox::new(Tags::new(&self.key, writer), sealer))
    }

    /// For a data connection.
    pub fn into_wire(self, stream: TcpStream) -> Wire {
        Wire { stream, seal: self.seal }
    }
}
