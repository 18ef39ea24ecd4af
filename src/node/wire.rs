//! How frames become bytes on a control connection, and become frames again.
//!
//! ```text
//! | length: u32 | its complement: u32 | `length` bytes of postcard, the body | tag: 16 bytes |    little-endian
//! ```
//! A reader sets a bound on the length before it keeps anything, and holds only bytes that have arrived: a length by
//! itself allocates nothing. The complement is there so that a length that was changed on the way is found at once, and
//! not when as many bytes have come; what tells that anything was changed is the tag ([`super::tag`]). All of it may be
//! within encrypted records besides. A writer keeps a queue, since a connection takes only so much at a time; a body that goes to many
//! connections is serialised once, and all their queues hold the same bytes.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::ops::Range;
use std::sync::Arc;

use maypole_transports::tcp::{Opener, Sealer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::tag::{TAG, Tags};

/// Bytes before a frame's body: its length, twice.
const HEAD: usize = 8;
/// How many bytes are read at a time.
const CHUNK: usize = 16 << 10;
/// An empty inbox gives memory back beyond this: the hub has one for every rank.
const KEPT: usize = 4 << 10;
/// A body shorter than this is copied although others have it, too: it is written together with its neighbours.
const SHORT: usize = 1 << 10;

/// What came on a control connection is not what its other end wrote.
#[derive(Debug, thiserror::Error)]
#[error("bytes that were changed on the way")]
struct Changed;

fn changed<E>(_: E) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, Changed)
}

/// Whether a control connection ends because what came on it was changed on the way.
pub(super) fn is_changed(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Changed>())
}

/// What becomes of a rank whose control connection is one of [`is_changed`], for people: the same at both ends.
pub(super) fn changed_on_the_way(hub: &str) -> String {
    format!(
        "bytes were changed on the way between its host and host {hub}, which holds the job together; look at what is \
         between the two hosts"
    )
}

/// Bytes that have arrived and are not yet whole frames.
pub(super) struct Inbox {
    tags: Tags,
    /// Where the connection is encrypted.
    opener: Option<Opener>,
    bytes: Vec<u8>,
    /// Where the first frame that has not been taken begins.
    start: usize,
}

impl Inbox {
    /// `tags`: those of the other end.
    pub fn new(tags: Tags, opener: Option<Opener>) -> Inbox {
        Inbox { tags, opener, bytes: Vec::new(), start: 0 }
    }

    /// Read what `from` has, without waiting if it is non-blocking, but hardly more than one frame of `limit` bytes:
    /// whoever sends faster than frames are taken fills its own socket and not this memory. Level-triggered epoll says
    /// that there is more. `Ok(false)` when the other end has closed.
    pub fn fill(&mut self, mut from: impl Read, limit: usize) -> io::Result<bool> {
        // Once for all frames that were taken since the last call, and less than a frame is left to move.
        self.bytes.drain(..self.start);
        self.start = 0;
        let mut chunk = [0u8; CHUNK];
        while self.bytes.len() < limit + HEAD + TAG {
            let place = match &mut self.opener {
                None => &mut chunk[..],
                Some(opener) => opener.room()?,
            };
            let most = place.len();
            let came = from.read(place);
            if let Some(opener) = &mut self.opener {
                opener.came(*came.as_ref().unwrap_or(&0));
            }
            match came {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    match &mut self.opener {
                        None => self.bytes.extend_from_slice(&chunk[..n]),
                        Some(opener) => open(opener, &mut chunk, &mut self.bytes)?,
                    }
                    // A short read has emptied the socket.
                    if n < most {
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

    /// The next whole frame, or `None` if it has not arrived. A frame that the other end did not write so
    /// ([`is_changed`]), that is longer than `limit` or that does not parse is an error.
    pub fn next<M: DeserializeOwned>(&mut self, limit: usize) -> io::Result<Option<M>> {
        let Some(body) = self.whole(limit)? else { return Ok(None) };
        let message = postcard::from_bytes(&self.bytes[body.clone()])
            .map_err(|e| io::Error::new(ErrorKind::InvalidData, format!("a frame that does not parse: {e}")))?;
        self.start = body.end + TAG;
        if self.start == self.bytes.len() {
            self.start = 0;
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
        }
        Ok(Some(message))
    }

    /// Where the body of the next frame lies, if all of it is here and the other end wrote it.
    fn whole(&mut self, limit: usize) -> io::Result<Option<Range<usize>>> {
        let Some((head, rest)) = self.bytes[self.start..].split_first_chunk::<HEAD>() else { return Ok(None) };
        let [length, complement] = [*head.first_chunk().expect("twice 4"), *head.last_chunk().expect("twice 4")];
        let (length, complement) = (u32::from_le_bytes(length), u32::from_le_bytes(complement));
        if length != !complement {
            return Err(changed(()));
        }
        let length = length as usize;
        if length > limit {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("a frame of {length} bytes, more than {limit}"),
            ));
        }
        let Some((body, tag)) = rest.get(..length + TAG).and_then(<[u8]>::split_last_chunk::<TAG>) else {
            return Ok(None);
        };
        if !self.tags.check(body, tag) {
            return Err(changed(()));
        }
        let begin = self.start + HEAD;
        Ok(Some(begin..begin + length))
    }

    /// Take the next frame without making anything of it: the length and the hash of its body.
    #[cfg(test)]
    pub fn skip(&mut self, limit: usize) -> io::Result<Option<(usize, blake3::Hash)>> {
        let Some(body) = self.whole(limit)? else { return Ok(None) };
        let skipped = (body.len(), blake3::hash(&self.bytes[body.clone()]));
        self.start = body.end + TAG;
        Ok(Some(skipped))
    }
}

/// Append what `opener` has to `bytes`.
fn open(opener: &mut Opener, chunk: &mut [u8], bytes: &mut Vec<u8>) -> io::Result<()> {
    let failed = |e: io::Error| if e.kind() == ErrorKind::InvalidData { changed(e) } else { e };
    loop {
        match opener.take(&mut [IoSliceMut::new(chunk)]).map_err(failed)? {
            0 => return Ok(()),
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
}

/// A frame's body, serialised once for any number of connections.
#[derive(Clone)]
pub(super) struct Body {
    bytes: Arc<[u8]>,
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
pub(super) struct Outbox {
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

    /// Write what `to` takes, without waiting if it is non-blocking. `Ok(true)` when nothing is left.
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

#[cfg(test)]
mod tests {
    use maypole_transports::tcp::seal;

    use super::super::frame::{RANK_LIMIT, TABLE_LIMIT, ToHub, ToNode};
    use super::super::key::Key;
    use super::super::tag::Writer;
    use super::*;

    /// Both ends of connection number `number`: what reads here what the hub writes, and what the hub writes with.
    fn ends(number: u8) -> (Inbox, Outbox) {
        let tags = || Tags::new(&Key::new([number; 32]), Writer::Hub);
        (Inbox::new(tags(), None), Outbox::new(tags(), None))
    }

    /// The same, encrypted.
    fn encrypted() -> (Inbox, Outbox) {
        let tags = || Tags::new(&Key::new([0; 32]), Writer::Hub);
        let (caller, hello) = seal::call(&[7; 32]);
        let (hello, ours) = seal::answer(&[7; 32], &hello).unwrap();
        let theirs = caller.answered(&hello).unwrap();
        let opener = Opener::new(Arc::new(theirs), 1);
        (Inbox::new(tags(), Some(opener)), Outbox::new(tags(), Some(Sealer::new(Arc::new(ours), 1))))
    }

    fn failed(length: usize) -> ToNode {
        ToNode::Failed { what: "x".repeat(length) }
    }

    #[test]
    fn frames_survive_any_cut() {
        let sent = [ToNode::Farewell, failed(300), failed(SHORT), ToNode::Farewell];
        let wire = |out: &mut Outbox| {
            out.push(&sent[0]);
            out.push(&sent[1]);
            out.share(&Body::of(&sent[2]));
            out.push(&sent[3]);
            let mut wire = Vec::new();
            assert!(out.flush(&mut wire).unwrap());
            assert_eq!(out.backlog(), 0);
            wire
        };
        let length = wire(&mut ends(0).1).len();
        for ends in [(|| ends(0)) as fn() -> (Inbox, Outbox), encrypted] {
            for cut in 0..length {
                let (mut inbox, mut out) = ends();
                let wire = wire(&mut out);
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
    }

    /// Whatever byte of a frame is changed, and whatever frame is left out or comes twice: an error at once that says so.
    #[test]
    fn changed_frames_are_errors_and_known_as_such() {
        let read = |inbox: &mut Inbox, wire: &[u8]| -> io::Result<Vec<ToNode>> {
            inbox.fill(wire, TABLE_LIMIT)?;
            std::iter::from_fn(|| inbox.next(TABLE_LIMIT).transpose()).collect()
        };
        let write = |out: &mut Outbox, length: usize| {
            let mut wire = Vec::new();
            out.push(&failed(length));
            out.flush(&mut wire).unwrap();
            wire
        };
        for ends in [(|| ends(0)) as fn() -> (Inbox, Outbox), encrypted] {
            for at in 0..write(&mut ends().1, 40).len() {
                let (mut inbox, mut out) = ends();
                let mut wire = write(&mut out, 40);
                wire[at] ^= 1 << (at % 8);
                let error = read(&mut inbox, &wire).expect_err(&format!("byte {at} was changed"));
                assert!(is_changed(&error), "byte {at}: {error}");
            }
            let (mut inbox, mut out) = ends();
            let [_, second] = [write(&mut out, 1), write(&mut out, 2)];
            assert!(is_changed(&read(&mut inbox, &second).unwrap_err()), "the first was left out");
            let (mut inbox, mut out) = ends();
            let first = write(&mut out, 1);
            assert_eq!(read(&mut inbox, &first).unwrap(), [failed(1)]);
            assert!(is_changed(&read(&mut inbox, &first).unwrap_err()), "it comes a second time");
        }
        let foreign = write(&mut ends(1).1, 1);
        assert!(is_changed(&read(&mut ends(0).0, &foreign).unwrap_err()), "it is another connection's");
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
        let (mut inbox, mut out) = ends(0);
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
        inbox.fill(&narrow.taken[..], TABLE_LIMIT).unwrap();
        for _ in 0..5 {
            assert_eq!(inbox.next(TABLE_LIMIT).unwrap(), Some(failed(2 * CHUNK)));
            assert_eq!(inbox.next(TABLE_LIMIT).unwrap(), Some(failed(2 * SHORT)));
        }
    }

    #[test]
    fn queues_share_a_body() {
        let table = Body::of(&failed(1 << 20));
        let mut queues: Vec<Outbox> = (0..1000).map(|_| ends(0).1).collect();
        queues.iter_mut().for_each(|queue| queue.share(&table));
        assert_eq!(Arc::strong_count(&table.bytes), 1001);
        queues.iter_mut().for_each(|queue| assert!(queue.flush(&mut io::sink()).unwrap()));
        assert_eq!(Arc::strong_count(&table.bytes), 1, "a body is kept no longer than it is to be sent");
    }

    #[test]
    fn long_and_garbled_frames_are_errors() {
        let mut inbox = ends(0).0;
        inbox.fill(&[0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0x80][..], RANK_LIMIT).unwrap();
        assert!(inbox.next::<ToHub>(RANK_LIMIT).unwrap_err().to_string().contains("bytes, more than"));
        let (mut inbox, mut out) = ends(0);
        out.push(&[0xee_u8, 0xee]);
        let mut wire = Vec::new();
        out.flush(&mut wire).unwrap();
        inbox.fill(&wire[..], RANK_LIMIT).unwrap();
        assert!(inbox.next::<ToHub>(RANK_LIMIT).unwrap_err().to_string().contains("does not parse"));
    }

    #[test]
    fn an_inbox_takes_in_no_more_than_a_frame_at_a_time() {
        let mut inbox = ends(0).0;
        assert!(inbox.fill(io::repeat(0xff), RANK_LIMIT).unwrap(), "an endless sender does not hold its reader");
        assert!(inbox.bytes.len() <= RANK_LIMIT + HEAD + TAG + CHUNK, "{} bytes", inbox.bytes.len());
        assert!(inbox.next::<ToHub>(RANK_LIMIT).is_err());
    }

    #[test]
    fn taking_a_frame_does_not_move_those_behind_it() {
        let (mut inbox, mut out) = ends(0);
        let frames = 300_000;
        (0..frames).for_each(|_| out.push(&ToHub::Bye));
        let mut wire = Vec::new();
        out.flush(&mut wire).unwrap();
        inbox.fill(&wire[..], TABLE_LIMIT).unwrap();
        let begun = std::time::Instant::now();
        for _ in 0..frames {
            assert_eq!(inbox.next(RANK_LIMIT).unwrap(), Some(ToHub::Bye));
        }
        // Moving them takes minutes: 300,000 times 4 MB on average.
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
        assert!(inbox.bytes.capacity() <= KEPT, "{} bytes are kept", inbox.bytes.capacity());
    }
}
