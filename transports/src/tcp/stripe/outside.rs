//! Segments as another end may send them, on connections that are what a link takes them for.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::segment::{HEADER, SEGMENT, Segment};
use crate::outside::input::Input;
use crate::tcp::connection::Connections;
use crate::tcp::receiver::TcpReceiver;
use crate::{LinkError, Receiver};

/// Most bytes on one connection: what a socket holds, whatever the system's settings.
const MOST: usize = 16 << 10;

/// What the link has to bring of what the connections carry: the stream as far as it is there, and whether all of them
/// make sense to their ends. Slow and plain: no bounds, no turns, nothing read ahead.
fn expected(connections: &[Vec<u8>]) -> (Vec<u8>, bool) {
    let (mut stream, mut sense) = (Vec::new(), true);
    let mut segments: Vec<(u64, &[u8], bool)> = Vec::new();
    for bytes in connections {
        let (mut rest, mut least) = (&bytes[..], 0);
        while let Some((header, after)) = rest.split_first_chunk::<HEADER>() {
            let Ok(segment) = Segment::decode(header, least) else {
                sense = false;
                break;
            };
            assert!(segment.offset >= least && (1..=SEGMENT).contains(&segment.left));
            assert_eq!(segment.encode(), *header);
            least = segment.after();
            let (here, after) = after.split_at(segment.left.min(after.len()));
            segments.push((segment.offset, here, here.len() == segment.left));
            rest = after;
        }
    }
    // Two segments may claim one place, and either may be taken.
    let mut offsets: Vec<u64> = segments.iter().map(|(offset, ..)| *offset).collect();
    offsets.sort_unstable();
    sense &= offsets.windows(2).all(|two| two[0] != two[1]);
    while let Some((_, bytes, whole)) = segments.iter().find(|(offset, ..)| *offset == stream.len() as u64) {
        stream.extend_from_slice(bytes);
        if !whole {
            break;
        }
    }
    (stream, sense)
}

/// Up to four connections with segments, well made or not, in any order.
pub(crate) fn segments(data: &[u8]) -> bool {
    let mut input = Input(data);
    let mut sent = vec![Vec::new(); 2 + usize::from(input.byte() % 3)];
    let (room, count) = (input.number() + 1, sent.len());
    let mut next = 0;
    while !input.is_empty() {
        let choice = usize::from(input.byte());
        let connection: &mut Vec<u8> = &mut sent[choice % count];
        match choice >> 5 {
            // As it is.
            0 => connection.extend(input.piece()),
            // A segment from anywhere.
            1 => {
                let (offset, bytes) = (input.number() as u64, input.piece());
                connection.extend(Segment { offset, left: input.number() }.encode());
                connection.extend(bytes);
            }
            // The next one, as it should be.
            _ => {
                let bytes = input.piece();
                if !bytes.is_empty() {
                    connection.extend(Segment { offset: next, left: bytes.len() }.encode());
                    connection.extend(bytes);
                    next += bytes.len() as u64;
                }
            }
        }
    }
    sent.iter_mut().for_each(|bytes| bytes.truncate(MOST));
    let (stream, sense) = expected(&sent);
    let mut streams = Vec::new();
    for bytes in &sent {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        ours.set_nonblocking(true).expect("a socket");
        theirs.write_all(bytes).expect("there is room");
        theirs.shutdown(Shutdown::Write).expect("it is open");
        streams.push(TcpStream::from(OwnedFd::from(ours)));
    }
    let mut receiver = TcpReceiver::new(Arc::new(Connections::of(streams)), 4096);
    let (mut got, mut place, mut idle) = (Vec::new(), vec![0; room], 0);
    let end = loop {
        match receiver.recv(&mut place) {
            // Connections may be closed one after the other: that is waited for, longer than here.
            Ok(0) if idle > 2 * count => break None,
            Ok(0) => idle += 1,
            Ok(n) => {
                got.extend_from_slice(&place[..n]);
                idle = 0;
            }
            Err(error) => break Some(error),
        }
        let _ = receiver.absorb();
    };
    if sense {
        assert_eq!(got.len(), stream.len(), "ended by {end:?}");
        assert!(got == stream);
    }
    sense && !got.is_empty() && !matches!(end, Some(LinkError::Io { .. }))
}
