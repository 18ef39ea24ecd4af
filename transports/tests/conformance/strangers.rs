//! Bytes from a peer that does not speak the protocol: an error or silence, never a panic, never memory taken at its
//! word.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use maypole_transports::{LinkError, Receiver, tcp};

use crate::factories::Tcp;
use crate::traffic::{Dice, bytes_at, send_all};

/// Have a striped receiver read what `written` says stands on each connection; returns the bytes that came and how it
/// ended.
fn receive(written: &[Vec<u8>]) -> (Vec<u8>, LinkError) {
    let (ours, theirs) = Tcp::v4(written.len()).streams();
    let (sender, mut receiver) = tcp::link(theirs, 64 << 10).unwrap();
    std::thread::scope(|scope| {
        for (mut stream, bytes) in ours.into_iter().zip(written) {
            scope.spawn(move || {
                // The receiver may have refused it and closed by now.
                let _ = stream.write_all(bytes);
                let _ = stream.shutdown(Shutdown::Write);
                // Closing at once could reset the connection under what was written.
                let _ = stream.read(&mut [0]);
            });
        }
        let mut got = Vec::new();
        let mut into = vec![0; 64 << 10];
        let start = Instant::now();
        let error = loop {
            match receiver.recv(&mut into) {
                Ok(n) => got.extend_from_slice(&into[..n]),
                Err(error) => break error,
            }
            assert!(start.elapsed() < Duration::from_secs(20), "neither an error nor an end");
        };
        drop((sender, receiver));
        (got, error)
    })
}

/// What a striped sender puts on each connection for a few messages.
fn recording(connections: usize, bytes: &[u8]) -> Vec<Vec<u8>> {
    let (ours, theirs) = Tcp::v4(connections).streams();
    let (mut sender, receiver) = tcp::link(ours, 64 << 10).unwrap();
    std::thread::scope(|scope| {
        // All are read at once, since a connection that nobody reads stands still.
        let readers: Vec<_> = theirs
            .into_iter()
            .map(|mut stream| {
                scope.spawn(move || {
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).unwrap();
                    all
                })
            })
            .collect();
        send_all(&mut sender, bytes, || {});
        drop((sender, receiver));
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    })
}

#[test]
fn random_bytes_are_refused() {
    let mut dice = Dice::new(1);
    for _ in 0..200 {
        let written: Vec<Vec<u8>> =
            (0..3).map(|_| (0..dice.length(3000)).map(|_| dice.below(256) as u8).collect()).collect();
        let (got, error) = receive(&written);
        assert_eq!(got, [], "random bytes taken for a segment");
        assert!(matches!(error, LinkError::Gone { .. } | LinkError::Io { .. }));
    }
}

#[test]
fn a_stranger_is_named_as_such() {
    let (_, error) = receive(&[Vec::new(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()]);
    let text = error.to_string();
    assert!(text.contains("no segment header"), "{text}");
}

#[test]
fn a_replay_delivers_and_damaged_replays_do_not_panic() {
    let bytes = bytes_at(0, 600_000);
    let recorded = recording(3, &bytes);
    assert!(recorded.iter().all(|one| !one.is_empty()), "600 kB went over fewer than 3 connections");
    let (got, error) = receive(&recorded);
    assert!(got == bytes && matches!(error, LinkError::Gone { .. }), "{} bytes, {error}", got.len());
    let mut dice = Dice::new(2);
    for _ in 0..40 {
        let mut damaged = recorded.clone();
        let lane = &mut damaged[dice.below(3)];
        // Damage near the first header or anywhere, by a bit, a loss or a repetition.
        let at = if dice.below(2) == 0 { dice.below(16) } else { dice.below(lane.len()) };
        match dice.below(3) {
            0 => lane[at] ^= 1 << dice.below(8),
            1 => drop(lane.drain(at..at + 1 + dice.below(lane.len() - at))),
            _ => lane.extend_from_within(at..),
        }
        let (got, _) = receive(&damaged);
        assert!(got.len() <= damaged.iter().map(Vec::len).sum(), "more bytes than were written");
    }
}
