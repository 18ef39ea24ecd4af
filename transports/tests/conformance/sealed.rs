//! Encryption: what an onlooker sees, and what becomes of bytes that somebody on the way changes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use maypole_transports::tcp::{self, TcpReceiver, Wire};
use maypole_transports::{LinkError, Receiver};

use crate::factories::{Sealed, Tcp};
use crate::traffic::{bytes_at, send_all};

/// What an encrypted sender puts on each of some connections for `bytes`, and the end that can read it.
fn recorded(connections: usize, bytes: &[u8]) -> (Vec<Vec<u8>>, Vec<Wire>) {
    let (ours, mut theirs) = Sealed(Tcp::v4(connections)).wires();
    let (mut sender, receiver) = tcp::link(ours, 64 << 10).unwrap();
    let recorded = thread::scope(|scope| {
        let read = |wire: &mut Wire| {
            let mut stream = wire.stream.try_clone().unwrap();
            scope.spawn(move || {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                all
            })
        };
        let readers: Vec<_> = theirs.iter_mut().map(read).collect();
        send_all(&mut sender, bytes, || {});
        drop((sender, receiver));
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    (recorded, theirs)
}

/// Give `reader`, the end of [`recorded`], other connections, on which `written` stands; the bytes that come of it and
/// how it ends.
fn replayed(reader: Vec<Wire>, written: &[Vec<u8>]) -> (Vec<u8>, LinkError) {
    let (ours, theirs) = Tcp::v4(written.len()).streams();
    let exchange = |(wire, stream)| Wire { stream, ..wire };
    let wires: Vec<Wire> = reader.into_iter().zip(theirs).map(exchange).collect();
    let (sender, mut receiver) = tcp::link(wires, 64 << 10).unwrap();
    thread::scope(|scope| {
        for (stream, bytes) in ours.into_iter().zip(written) {
            scope.spawn(move || write(stream, bytes));
        }
        let outcome = until_error(&mut receiver);
        drop((sender, receiver));
        outcome
    })
}

fn write(mut stream: TcpStream, bytes: &[u8]) {
    // The receiver may have refused it and closed by now.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    // Closing at once could reset the connection under what was written.
    let _ = stream.read(&mut [0]);
}

fn until_error(receiver: &mut TcpReceiver) -> (Vec<u8>, LinkError) {
    let (mut got, mut into, start) = (Vec::new(), vec![0; 50_000], Instant::now());
    loop {
        match receiver.recv(&mut into) {
            Ok(n) => got.extend_from_slice(&into[..n]),
            Err(error) => return (got, error),
        }
        assert!(start.elapsed() < Duration::from_secs(20), "neither an error nor an end");
    }
}

fn is_changed(error: &LinkError) -> bool {
    let text = error.to_string();
    let invalid = matches!(error, LinkError::Io { source, .. } if source.kind() == ErrorKind::InvalidData);
    invalid && text.contains("bytes were changed on the way") && text.contains("127.0.0.1:")
}

#[test]
fn an_onlooker_sees_nothing_that_he_knows() {
    let pattern = b"a text that everybody knows";
    let bytes = pattern.repeat(10_000);
    for connections in [1, 3] {
        let (recorded, reader) = recorded(connections, &bytes);
        assert!(recorded.iter().map(Vec::len).sum::<usize>() > bytes.len());
        for lane in &recorded {
            // Any eight bytes of it in a row.
            assert!(!lane.windows(8).any(|seen| pattern.windows(8).any(|part| part == seen)));
        }
        let (got, error) = replayed(reader, &recorded);
        assert!(got == bytes && matches!(error, LinkError::Gone { .. }), "{} bytes, {error}", got.len());
    }
}

#[test]
fn a_changed_byte_is_an_error_and_never_handed_out() {
    for (connections, len, step) in [(1, 300, 1), (1, 100_000, 9973), (3, 600_000, 49_999)] {
        let bytes = bytes_at(0, len);
        for at in (0..len).step_by(step) {
            let (mut lanes, reader) = recorded(connections, &bytes);
            let lane = at % connections;
            let at = at % lanes[lane].len();
            lanes[lane][at] ^= 1 << (at % 8);
            let (got, error) = replayed(reader, &lanes);
            assert!(is_changed(&error), "byte {at} on connection {lane}: {error}");
            assert!(bytes.starts_with(&got), "byte {at} on connection {lane}: bytes that nobody sent");
        }
    }
}

#[test]
fn a_connection_that_ends_too_early_is_no_end() {
    let bytes = bytes_at(0, 100_000);
    let whole = recorded(1, &bytes).0[0].len();
    for cut in [1, 3, 20, 17_000, whole - 1] {
        let (mut lanes, reader) = recorded(1, &bytes);
        lanes[0].truncate(cut);
        let (got, error) = replayed(reader, &lanes);
        assert!(error.to_string().contains("within a record"), "cut at {cut}: {error}");
        assert!(matches!(error, LinkError::Gone { .. }) && got.len() < bytes.len() && bytes.starts_with(&got));
    }
}

#[test]
fn bytes_that_are_no_records_are_refused() {
    let (_, reader) = recorded(1, b"x");
    let (got, error) = replayed(reader, &[b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()]);
    assert!(got.is_empty() && is_changed(&error), "{error}");
}
