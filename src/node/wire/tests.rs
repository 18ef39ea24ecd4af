//! Frames on their way: cut, changed, endless, and many.

use std::io::Write;
use std::sync::Arc;

use maypole_transports::tcp::{Opener, Sealer, seal};

use super::super::frame::{RANK_LIMIT, TABLE_LIMIT, ToHub, ToNode};
use super::super::key::Key;
use super::super::tag::{TAG, Tags, Writer};
use super::inbox::KEPT;
use super::outbox::SHORT;
use super::*;

/// Both ends of connection number `number`: what reads here what the hub writes, and what the hub
/// writes with.
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

/// Whatever byte of a frame is changed, and whatever frame is left out or comes twice: an error at
/// once that says so.
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
