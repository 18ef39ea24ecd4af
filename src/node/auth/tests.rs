//! Both sides of it: who is let in, and what strangers learn.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::*;
use crate::node::session::Session;

const ERRAND: Errand = Errand {
    purpose: Purpose::Data,
    sealed: false,
    from: 3,
    to: 7,
    context: u64::MAX - 5,
    channel: 9,
    index: 1,
    total: 4,
};

fn meet(caller: [u8; 32], door: [u8; 32], me: u32, purpose: Purpose) -> (Result<Session, Refusal>, Standing) {
    meet_for(&ERRAND, caller, door, me, purpose)
}

fn meet_for(
    errand: &Errand,
    caller: [u8; 32],
    door: [u8; 32],
    me: u32,
    purpose: Purpose,
) -> (Result<Session, Refusal>, Standing) {
    let (mut outside, inside) = UnixStream::pair().unwrap();
    outside.set_nonblocking(true).unwrap();
    inside.set_nonblocking(true).unwrap();
    let soon = Instant::now() + Duration::from_secs(2);
    std::thread::scope(|scope| {
        let called = scope.spawn(move || {
            let mut guest = Guest::new(inside, soon);
            loop {
                match guest.advance(&Key::new(door), me, purpose) {
                    Standing::Waiting => wait(&guest.stream, PollFlags::POLLIN, soon, &|| false).unwrap(),
                    standing => return standing,
                }
            }
        });
        let result = knock(&mut outside, &Key::new(caller), errand, soon, &|| false);
        drop(outside);
        (result, called.join().unwrap())
    })
}

#[test]
fn the_same_key_opens_and_both_ends_have_a_key_of_their_own() {
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let (result, standing) = meet([1; 32], [1; 32], 7, Purpose::Data);
        let Standing::Admitted(errand, session) = standing else { panic!("{standing:?}") };
        assert_eq!(errand, ERRAND);
        assert_eq!(result.unwrap().key, session.key);
        assert_ne!(session.key, Key::new([1; 32]));
        assert!(session.seal.is_none());
        sessions.push(session.key);
    }
    assert_ne!(sessions[0], sessions[1], "each connection has another key");
}

#[test]
fn both_ends_have_keys_for_encryption_where_the_errand_says_so() {
    let sealed = Errand { sealed: true, ..ERRAND };
    let (result, standing) = meet_for(&sealed, [1; 32], [1; 32], 7, Purpose::Data);
    let Standing::Admitted(errand, session) = standing else { panic!("{standing:?}") };
    assert_eq!(errand, sealed);
    assert!(session.seal.is_some() && result.unwrap().seal.is_some());
}

#[test]
fn another_key_another_rank_another_purpose_do_not() {
    let (result, standing) = meet([1; 32], [2; 32], 7, Purpose::Data);
    assert!(matches!(result, Err(Refusal::WrongKey)), "{result:?}");
    assert!(matches!(standing, Standing::Rejected(Refusal::WrongKey, Some(3))), "{standing:?}");
    for (me, purpose) in [(8, Purpose::Data), (7, Purpose::Control)] {
        let (result, standing) = meet([1; 32], [1; 32], me, purpose);
        assert!(matches!(result, Err(Refusal::Closed)), "{result:?}");
        assert!(matches!(standing, Standing::Rejected(Refusal::Elsewhere, None)), "{standing:?}");
    }
}

/// A door for rank 7 with a key that the other end does not hold, and a stranger who has said
/// `words` there: what the stranger reads before the connection is closed, and why it is.
fn stranger(words: &[u8]) -> (Vec<u8>, Refusal) {
    let (mut outside, inside) = UnixStream::pair().unwrap();
    inside.set_nonblocking(true).unwrap();
    let mut guest = Guest::new(inside, Instant::now());
    let key = Key::new([1; 32]);
    assert!(matches!(guest.advance(&key, 7, Purpose::Data), Standing::Waiting), "silence waits");
    outside.write_all(words).unwrap();
    let Standing::Rejected(why, _) = guest.advance(&key, 7, Purpose::Data) else { panic!("let in") };
    drop(guest);
    let (mut read, mut byte) = (Vec::new(), [0]);
    // Closing with unread bytes is a reset, after what was written.
    while matches!(outside.read(&mut byte), Ok(1)) {
        read.push(byte[0]);
    }
    (read, why)
}

#[test]
fn a_stranger_learns_a_nonce_and_nothing_more() {
    // A real opening, for a rank that is here, for one that is not, for none; and any proof.
    for (to, purpose) in [(7, Purpose::Data), (8, Purpose::Data), (HUB, Purpose::Control)] {
        let opening = Errand { to, purpose, ..ERRAND }.opening(&[5; 32]);
        let (read, why) = stranger(&[&opening[..], &[3; MAC]].concat());
        assert!(matches!(why, Refusal::WrongKey), "{why:?}");
        assert_eq!(read[..8], MAGIC);
        assert_eq!(read[GREETING..], REFUSED);
        assert_ne!(read[8..GREETING], [0; 32]);
    }
    // The opening alone gets the greeting only: a MAC over it could be compared with guesses.
    let (mut outside, inside) = UnixStream::pair().unwrap();
    inside.set_nonblocking(true).unwrap();
    outside.set_nonblocking(true).unwrap();
    let mut guest = Guest::new(inside, Instant::now());
    outside.write_all(&ERRAND.opening(&[5; 32])).unwrap();
    assert!(matches!(guest.advance(&Key::new([1; 32]), 7, Purpose::Data), Standing::Waiting));
    let mut read = [0; 200];
    assert_eq!(outside.read(&mut read).unwrap(), GREETING);
    assert_eq!(outside.read(&mut read).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn other_protocols_and_other_versions_are_told_apart() {
    let (read, why) = stranger(b"GET / HTTP/1.0\r\n\r\n");
    assert!(matches!(why, Refusal::Stranger) && read.is_empty(), "{why:?}");
    // The first version's opening, and the 72 bytes for which it waits before it says what is
    // wrong.
    let (read, why) = stranger(&[&b"maypole\x01"[..], &[0; 60]].concat());
    assert!(matches!(why, Refusal::Version) && read.len() == 72, "{why:?}");
    for (first, expected) in [(&b"maypole\x03"[..], "another version"), (b"SSH-2.0-", "does not speak Maypole")] {
        let (mut outside, mut inside) = UnixStream::pair().unwrap();
        outside.set_nonblocking(true).unwrap();
        inside.write_all(&[first, &[0; 32]].concat()).unwrap();
        let soon = Instant::now() + Duration::from_secs(2);
        let refusal = knock(&mut outside, &Key::new([1; 32]), &ERRAND, soon, &|| false).unwrap_err();
        assert!(refusal.to_string().contains(expected), "{refusal}");
    }
}

#[test]
fn a_door_that_cannot_prove_the_key_is_rejected() {
    let (mut outside, mut inside) = UnixStream::pair().unwrap();
    outside.set_nonblocking(true).unwrap();
    inside.write_all(&[&MAGIC[..], &[9; 32], &[4; MAC]].concat()).unwrap();
    let soon = Instant::now() + Duration::from_secs(2);
    let result = knock(&mut outside, &Key::new([1; 32]), &ERRAND, soon, &|| false);
    assert!(matches!(result, Err(Refusal::WrongKey)), "{result:?}");
}
