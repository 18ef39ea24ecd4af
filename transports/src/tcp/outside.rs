//! What comes on the connections of links, see [`crate::outside`].

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::sync::Arc;

use super::record::{Opener, Sealer};
use super::seal::{HELLO, Seal, answer, call};
pub(crate) use super::stripe::outside::segments;
use crate::outside::input::{Input, flipped};

const KEY: [u8; 32] = [5; 32];

/// The keys of both ends.
fn pair() -> (Seal, Seal) {
    let (caller, hello) = call(&KEY);
    let (hello, theirs) = answer(&KEY, &hello).expect("the same key");
    (caller.answered(&hello).expect("the same key"), theirs)
}

/// Put `wire` in, `step` bytes at a time, and take all out of it in places of `room` bytes, until an error.
fn open(opener: &mut Opener, mut wire: &[u8], step: usize, room: usize) -> (Vec<u8>, io::Result<()>) {
    let (mut got, mut place) = (Vec::new(), vec![0; room]);
    loop {
        match opener.take(&mut [IoSliceMut::new(&mut place)]) {
            Ok(0) if wire.is_empty() => return (got, Ok(())),
            Ok(0) => {
                let room = opener.room().expect("memory");
                let n = room.len().min(wire.len()).min(step);
                assert!(n > 0, "no room although all that came is taken");
                room[..n].copy_from_slice(&wire[..n]);
                wire = &wire[n..];
                opener.came(n);
            }
            Ok(n) => got.extend_from_slice(&place[..n]),
            Err(error) => return (got, Err(error)),
        }
    }
}

/// Records: nobody makes one without the keys; what was sealed comes out as it went in; and once a bit has changed only
/// what came before it.
pub(crate) fn records(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (choices, step, room, which) = (input.byte(), input.number() + 1, input.number() + 1, input.number());
    let (ours, theirs) = pair();
    let (mut sealer, mut opener) = (Sealer::new(Arc::new(ours), 2), Opener::new(Arc::new(theirs), 2));
    if choices & 3 == 3 {
        let (got, _) = open(&mut opener, input.rest(), step, room);
        assert!(got.is_empty(), "text without a key");
        return false;
    }
    let (mut text, mut wire) = (Vec::new(), Vec::new());
    while !input.is_empty() {
        // Longer than what is given, so that records become full.
        let times = usize::from(input.byte() & 63) + 1;
        let parts = [input.piece().repeat(times), input.piece().to_vec()];
        let total = parts[0].len() + parts[1].len();
        if text.len() + total > 1 << 17 {
            break;
        }
        let mut taken = 0;
        while taken < total {
            taken += sealer.take(&parts.each_ref().map(|part| IoSlice::new(part)), taken).expect("memory");
            wire.extend_from_slice(sealer.pending());
            sealer.sent(sealer.pending().len());
        }
        text.extend(parts.concat());
    }
    if choices & 1 == 0 || wire.is_empty() {
        let (got, end) = open(&mut opener, &wire, step, room);
        end.expect("nothing was changed");
        assert!(got == text && !opener.is_within_record());
        return !text.is_empty();
    }
    let (got, end) = open(&mut opener, &flipped(&wire, which), step, room);
    assert_eq!(end.expect_err("a bit was changed").kind(), ErrorKind::InvalidData);
    assert!(got.len() < text.len() && text.starts_with(&got));
    let again = opener.take(&mut [IoSliceMut::new(&mut [0; 10])]);
    assert_eq!(again.expect_err("text after a changed bit").kind(), ErrorKind::InvalidData);
    false
}

/// Both ends of a handshake, against anything that the other may say.
pub(crate) fn handshakes(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (choices, which) = (input.byte() % 6, input.number());
    let mut said = [0; HELLO];
    let words = input.take(HELLO);
    said[..words.len()].copy_from_slice(words);
    let (caller, hello) = call(&KEY);
    match choices {
        0 => assert!(answer(&KEY, &said).is_err(), "a caller without the key"),
        1 => assert!(caller.answered(&said).is_err(), "a door without the key"),
        2 => assert!(answer(&KEY, flipped(&hello, which).first_chunk().expect("as long")).is_err()),
        _ => {
            let (hello, _) = answer(&KEY, &hello).expect("the same key");
            match choices {
                3 => assert!(caller.answered(flipped(&hello, which).first_chunk().expect("as long")).is_err()),
                4 => assert!(caller.answered(&said).is_err(), "somebody else in the door's place"),
                _ => {
                    caller.answered(&hello).expect("the same key");
                    return true;
                }
            }
        }
    }
    false
}
