//! The writing end of a control connection: a queue of frames.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::sync::Arc;

use maypole_transports::tcp::Sealer;
use serde::Serialize;

use super::{CHUNK, HEAD};
use crate::node::tag::Tags;

/// A body shorter than this is copied although others have it, too: it is written together with its
/// neighbours.
pub(super) const SHORT: usize = 1 << 10;

/// A frame's body, serialised once for any number of connections.
#[derive(Clone)]
pub(in crate::node) struct Body {
    pub(super) bytes: Arc<[u8]>,
    hash: blake3::Hash,
}

impl Body {
    /// Serialise a frame.
    pub fn of(message: &impl Serialize) -> Body {
        let bytes = postcard::to_stdvec(message).expect("these types always serialise");
        Body { hash: blake3::hash(&bytes), bytes: bytes.into() }
    }
}

/// A stretch of what is to be written.
enum Part {
    /// Whole small frames, and what this connection adds to frames that it shares.
    Own(Vec<u8>),
    /// The body of a frame that other connections send, too.
    Shared(Body),
}

impl Part {
    fn bytes(&self) -> &[u8] {
        match self {
            Part::Own(bytes) => bytes,
            Part::Shared(body) => &body.bytes,
        }
    }
}

/// Frames that are still to be written.
pub(in crate::node) struct Outbox {
    tags: Tags,
    /// Where the connection is encrypted.
    sealer: Option<Sealer>,
    parts: VecDeque<Part>,
    /// How many bytes of the first part have been written.
    written: usize,
    backlog: usize,
}

impl Outbox {
    /// `tags`: those of this end.
    pub fn new(tags: Tags, sealer: Option<Sealer>) -> Outbox {
        Outbox { tags, sealer, parts: VecDeque::new(), written: 0, backlog: 0 }
    }

    /// Append a frame.
    pub fn push(&mut self, message: &impl Serialize) {
        let body = postcard::to_stdvec(message).expect("these types always serialise");
        let tag = self.tags.next(&blake3::hash(&body));
        self.add(&head(&body));
        self.add(&body);
        self.add(&tag);
    }

    /// Append a frame; a long body is not copied.
    pub fn share(&mut self, body: &Body) {
        let tag = self.tags.next(&body.hash);
        self.add(&head(&body.bytes));
        if body.bytes.len() < SHORT {
            self.add(&body.bytes);
        } else {
            self.parts.push_back(Part::Shared(body.clone()));
            self.backlog += body.bytes.len();
        }
        self.add(&tag);
    }

    /// Append bytes of this connection's own. Never none: a part always has something to write.
    fn add(&mut self, bytes: &[u8]) {
        match self.parts.back_mut() {
            Some(Part::Own(last)) if last.len() < CHUNK => last.extend_from_slice(bytes),
            _ => self.parts.push_back(Part::Own(bytes.to_vec())),
        }
        self.backlog += bytes.len();
    }

    /// Write what `to` takes, without waiting if it is non-blocking. `Ok(true)` when nothing is
    /// left.
    pub fn flush(&mut self, mut to: impl Write) -> io::Result<bool> {
        loop {
            if let Some(sealer) = &mut self.sealer {
                while !sealer.pending().is_empty() {
                    let Some(n) = write(&mut to, sealer.pending())? else { return Ok(false) };
                    sealer.sent(n);
                }
            }
            let Some(part) = self.parts.front() else { return Ok(true) };
            let rest = &part.bytes()[self.written..];
            let n = match &mut self.sealer {
                Some(sealer) => sealer.take(&[IoSlice::new(rest)], 0)?,
                None => match write(&mut to, rest)? {
                    Some(n) => n,
                    None => return Ok(false),
                },
            };
            self.backlog -= n;
            self.written += n;
            if n == rest.len() {
                self.parts.pop_front();
                self.written = 0;
            }
        }
    }

    /// Bytes that are still to be written.
    pub fn backlog(&self) -> usize {
        self.backlog + self.sealer.as_ref().map_or(0, |sealer| sealer.pending().len())
    }
}

/// One attempt to write; `None`: `to` takes nothing now.
fn write(to: &mut impl Write, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        match to.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => return Ok(Some(n)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// What precedes `body`.
fn head(body: &[u8]) -> [u8; HEAD] {
    let length = u32::try_from(body.len()).expect("frames are far below 4 GiB");
    let mut head = [0; HEAD];
    head[..HEAD / 2].copy_from_slice(&length.to_le_bytes());
    head[HEAD / 2..].copy_from_slice(&(!length).to_le_bytes());
    head
}
