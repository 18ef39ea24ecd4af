//! How frames become bytes on a control connection, and become frames again.
//!
//! A frame is its length (4 bytes, little-endian) and that many bytes of [`postcard`], its body. A reader sets a bound
//! on the length before it keeps anything, and holds only bytes that have arrived: a length by itself allocates
//! nothing. A writer keeps a queue, since a connection takes only so much at a time; a body that goes to many
//! connections is serialised once, and all their queues hold the same bytes.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes before a frame's body: its length.
const HEAD: usize = 4;
/// How many bytes are read at a time.
const CHUNK: usize = 16 << 10;
/// An empty inbox gives memory back beyond this: the hub has one for every rank.
const KEPT: usize = 4 << 10;
/// A body shorter than this is copied although others have it, too: it is written together with its neighbours.
const SHORT: usize = 1 << 10;

/// Bytes that have arrived and are not yet whole frames.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// Where the first frame that has not been taken begins.
    start: usize,
}

impl Inbox {
    /// Read what `from` has, without waiting if it is non-blocking, but hardly more than one frame of `limit` bytes:
    /// whoever sends faster than frames are taken fills its own socket and not this memory. Level-triggered epoll says
    /// that there is more. `Ok(false)` when the other end has closed.
    pub fn fill(&mut self, mut from: impl Read, limit: usize) -> io::Result<bool> {
        // Once for all frames that were taken since the last call, and less than a frame is left to move.
        self.bytes.drain(..self.start);
        self.start = 0;
        let mut chunk = [0u8; CHUNK];
        while self.bytes.len() < limit + HEAD {
            match from.read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.bytes.extend_from_slice(&chunk[..n]);
                    // A short read has emptied the socket.
                    if n < chunk.len() {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// The next whole frame, or `None` if it has not arrived. A frame longer than `limit` or that does not parse is an
    /// error.
    pub fn next<M: DeserializeOwned>(&mut self, limit: usize) -> io::Result<Option<M>> {
        let there = &self.bytes[self.start..];
        let Some((head, rest)) = there.split_first_chunk::<HEAD>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head) as usize;
        if length > limit {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a frame of {length} bytes, more than {limit}"),
            ));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = postcard::from_bytes(body)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("a frame that does not parse: {e}")))?;
        self.start += HEAD + length;
        if self.start == self.bytes.len() {
            self.start = 0;
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
        }
        Ok(Some(message))
    }
}

/// A frame's body, serialised once for any number of connections.
#[derive(Clone)]
pub(super) struct Body(Arc<[u8]>);

impl Body {
    /// Serialise a frame.
    pub fn of(message: &impl Serialize) -> Body {
        Body(postcard::to_stdvec(message).expect("these types always serialise").into())
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
            Part::Shared(body) => &body.0,
        }
    }
}

/// Frames that are still to be written.
#[derive(Default)]
pub(super) struct Outbox {
    parts: VecDeque<Part>,
    /// How many bytes of the first part have been written.
    written: usize,
    backlog: usize,
}

impl Outbox {
    /// Append a frame.
    pub fn push(&mut self, message: &impl Serialize) {
        let body = postcard::to_stdvec(message).expect("these types always serialise");
        self.add(&head(&body));
        self.add(&body);
    }

    /// Append a frame; a long body is not copied.
    pub fn share(&mut self, body: &Body) {
        self.add(&head(&body.0));
        if body.0.len() < SHORT {
            return self.add(&body.0);
        }
        self.parts.push_back(Part::Shared(body.clone()));
        self.backlog += body.0.len();
    }

    /// Append bytes of this connection's own. Never none: a part always has something to write.
    fn add(&mut self, bytes: &[u8]) {
        match self.parts.back_mut() {
            Some(Part::Own(last)) if last.len() < CHUNK => last.extend_from_slice(bytes),
            _ => self.parts.push_back(Part::Own(bytes.to_vec())),
        }
        self.backlog += bytes.len();
    }

    /// Write what `to` takes, without waiting if it is non-blocking. `Ok(true)` when nothing is left.
    pub fn flush(&mut self, mut to: impl Write) -> io::Result<bool> {
        while let Some(part) = self.parts.front() {
            let rest = &part.bytes()[self.written..];
            match to.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.backlog -= n;
                    self.written += n;
                    if n == rest.len() {
                        self.parts.pop_front();
                        self.written = 0;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Bytes that are still to be written.
    pub fn backlog(&self) -> usize {
        self.backlog
    }
}

/// What precedes `body`.
fn head(body: &[u8]) -> [u8; HEAD] {
    u32::try_from(body.len()).expect("frames are far below 4 GiB").to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::frame::{RANK_LIMIT, TABLE_LIMIT, ToHub, ToNode};
    use super::*;

    fn failed(length: usize) -> ToNode {
        ToNode::Failed { what: "x".repeat(length) }
    }

    #[test]
    fn frames_survive_any_cut() {
        let mut out = Outbox::default();
        let sent = [ToNode::Farewell, failed(300), failed(SHORT), ToNode::Farewell];
        out.push(&sent[0]);
        out.push(&sent[1]);
        out.share(&Body::of(&sent[2]));
        out.push(&sent[3]);
        let mut wire = Vec::new();
        let backlog = out.backlog();
        assert!(out.flush(&mut wire).unwrap());
        assert_eq!((backlog, out.backlog()), (wire.len(), 0));
        for cut in 0..wire.len() {
            let mut inbox = Inbox::default();
            let mut got: Vec<ToNode> = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                inbox.fill(part, TABLE_LIMIT).unwrap();
                while let Some(m) = inbox.next(TABLE_LIMIT).unwrap() {
                    got.push(m);
                }
            }
            assert_eq!(got, sent);
        }
    }

    /// Takes `room` bytes, and three at a time.
    struct Narrow {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Narrow {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            let n = from.len().min(self.room).min(3);
            if n == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.taken.extend_from_slice(&from[..n]);
            self.room -= n;
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_queue_goes_on_where_a_connection_took_no_more() {
        let table = Body::of(&failed(2 * SHORT));
        let mut out = Outbox::default();
        let mut narrow = Narrow { taken: Vec::new(), room: 0 };
        for _ in 0..5 {
            out.push(&failed(2 * CHUNK));
            out.share(&table);
            narrow.room = 7;
            assert!(!out.flush(&mut narrow).unwrap());
        }
        narrow.room = usize::MAX;
        assert!(out.flush(&mut narrow).unwrap());
        assert_eq!(out.backlog(), 0);
        let mut inbox = Inbox::default();
        inbox.fill(&narrow.taken[..], TABLE_LIMIT).unwrap();
        for _ in 0..5 {
            assert_eq!(inbox.next(TABLE_LIMIT).unwrap(), Some(failed(2 * CHUNK)));
            assert_eq!(inbox.next(TABLE_LIMIT).unwrap(), Some(failed(2 * SHORT)));
        }
    }

    #[test]
    fn queues_share_a_body() {
        let table = Body::of(&failed(1 << 20));
        let mut queues: Vec<Outbox> = (0..1000).map(|_| Outbox::default()).collect();
        queues.iter_mut().for_each(|queue| queue.share(&table));
        assert_eq!(Arc::strong_count(&table.0), 1001);
        queues.iter_mut().for_each(|queue| assert!(queue.flush(&mut io::sink()).unwrap()));
        assert_eq!(Arc::strong_count(&table.0), 1, "a body is kept no longer than it is to be sent");
    }

    #[test]
    fn long_and_garbled_frames_are_errors() {
        let mut inbox = Inbox::default();
        inbox.fill(&[0xff, 0xff, 0xff, 0x7f][..], RANK_LIMIT).unwrap();
        assert!(inbox.next::<ToHub>(RANK_LIMIT).is_err());
        let mut inbox = Inbox::default();
        inbox.fill(&[2, 0, 0, 0, 0xee, 0xee][..], RANK_LIMIT).unwrap();
        assert!(inbox.next::<ToHub>(RANK_LIMIT).is_err());
    }

    #[test]
    fn an_inbox_takes_in_no_more_than_a_frame_at_a_time() {
        let mut inbox = Inbox::default();
        assert!(inbox.fill(io::repeat(0xff), RANK_LIMIT).unwrap(), "an endless sender does not hold its reader");
        assert!(inbox.bytes.len() <= RANK_LIMIT + HEAD + CHUNK, "{} bytes", inbox.bytes.len());
        assert!(inbox.next::<ToHub>(RANK_LIMIT).is_err());
    }

    #[test]
    fn taking_a_frame_does_not_move_those_behind_it() {
        let mut out = Outbox::default();
        let frames = 300_000;
        (0..frames).for_each(|_| out.push(&ToHub::Bye));
        let mut wire = Vec::new();
        out.flush(&mut wire).unwrap();
        let mut inbox = Inbox::default();
        inbox.fill(&wire[..], TABLE_LIMIT).unwrap();
        let begun = std::time::Instant::now();
        for _ in 0..frames {
            assert_eq!(inbox.next(RANK_LIMIT).unwrap(), Some(ToHub::Bye));
        }
        // Moving them takes half a minute: 300,000 times 0.75 MB on average.
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
        assert!(inbox.bytes.capacity() <= KEPT, "{} bytes are kept", inbox.bytes.capacity());
    }
}
