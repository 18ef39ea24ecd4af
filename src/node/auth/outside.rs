//! Openings of connections as strangers and members may make them, see [`crate::outside`].

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use maypole_transports::tcp::seal;

use super::*;
use crate::node::session::Session;
use crate::outside::input::{Input, flipped};

const KEY: [u8; 32] = [1; 32];
const ME: u32 = 7;

/// The other end: what it says, made when this end has nothing more to read, of all that this end
/// has written so far.
struct Other<F> {
    heard: Vec<u8>,
    says: Vec<u8>,
    said: usize,
    /// How many bytes come at a time.
    step: usize,
    /// Whether it makes this end wait between two of them.
    slow: bool,
    makes_wait: bool,
    answer: F,
}

impl<F: FnMut(&[u8]) -> Vec<u8>> Read for Other<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.slow && !std::mem::replace(&mut self.makes_wait, false) {
            self.makes_wait = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.said == self.says.len() {
            (self.says, self.said) = ((self.answer)(&self.heard), 0);
        }
        let rest = &self.says[self.said..];
        let n = rest.len().min(into.len()).min(self.step);
        into[..n].copy_from_slice(&rest[..n]);
        self.said += n;
        Ok(n)
    }
}

impl<F> Write for Other<F> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.heard.extend_from_slice(from);
        Ok(from.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<F> AsFd for Other<F> {
    /// Something that is always ready.
    fn as_fd(&self) -> BorrowedFd<'_> {
        static NULL: std::sync::LazyLock<std::fs::File> =
            std::sync::LazyLock::new(|| std::fs::File::open("/dev/null").expect("every system has it"));
        NULL.as_fd()
    }
}

fn other<F: FnMut(&[u8]) -> Vec<u8>>(pace: u8, answer: F) -> Other<F> {
    let step = usize::from(pace >> 1) + 1;
    Other { heard: Vec::new(), says: Vec::new(), said: 0, step, slow: pace & 1 == 1, makes_wait: true, answer }
}

/// Both ends, each against anything. The other end may hold the key: then what it proves is right
/// but for at most one bit.
pub(crate) fn openings(data: &[u8]) -> bool {
    let mut input = Input(data);
    match input.byte() % 4 {
        0 => door_and_stranger(input),
        1 => door_and_member(input),
        2 => caller_and_stranger(input),
        _ => caller_and_member(input),
    }
}

/// Have the door do all that it does for a guest: how that ends, if it does.
fn attend<F: FnMut(&[u8]) -> Vec<u8>>(caller: Other<F>) -> (Standing, Vec<u8>) {
    let mut guest = Guest::new(caller, Instant::now());
    let standing = loop {
        match guest.advance(&Key::new(KEY), ME, Purpose::Data) {
            Standing::Waiting => {}
            standing => break standing,
        }
    };
    (standing, guest.into_stream().heard)
}

fn door_and_stranger(mut input: Input<'_>) -> bool {
    let pace = input.byte();
    let mut words = Some(input.rest().to_vec());
    let (standing, heard) = attend(other(pace, |_| words.take().unwrap_or_default()));
    assert!(matches!(standing, Standing::Rejected(..)), "let in without the key: {standing:?}");
    assert!(heard.len() <= GREETING + MAC, "a stranger is told {} bytes", heard.len());
    false
}

fn door_and_member(mut input: Input<'_>) -> bool {
    let (pace, change, which) = (input.byte(), input.byte() % 4, input.number());
    let mut opening = [0; OPENING];
    let said = input.take(OPENING);
    opening[..said.len()].copy_from_slice(said);
    // The fuzzer need not find what is always the same.
    opening[..8].copy_from_slice(&MAGIC);
    let errand = Errand::parse(&opening);
    if let Some(errand) = errand {
        assert_eq!(Errand::parse(&errand.opening(opening.last_chunk().expect("32 bytes"))), Some(errand));
    }
    let for_me = errand.filter(|errand| errand.purpose == Purpose::Data && errand.to == ME);
    let mut turn = 0;
    let mut call = None;
    let caller = other(pace, |heard: &[u8]| {
        turn += 1;
        match turn {
            1 => opening.to_vec(),
            2 => {
                let greeting = heard.first_chunk().expect("the door greets who has opened");
                let transcript = Transcript { greeting, opening: &opening };
                let proof = transcript.mac(&Key::new(KEY), b"caller");
                call = Some(seal::call(transcript.session(&Key::new(KEY)).bytes()));
                if change == 1 { flipped(proof.as_bytes(), which) } else { proof.as_bytes().to_vec() }
            }
            3 if errand.is_some_and(|errand| errand.sealed) => {
                let hello = call.as_ref().expect("a turn ago").1;
                if change == 2 { flipped(&hello, which) } else { hello.to_vec() }
            }
            _ => Vec::new(),
        }
    });
    let (standing, heard) = attend(caller);
    let right = change != 1 && !(change == 2 && for_me.is_some_and(|errand| errand.sealed));
    match (standing, for_me) {
        (Standing::Admitted(admitted, session), Some(errand)) => {
            assert!(right && admitted == errand, "let in although a bit was changed");
            assert_eq!(session.seal.is_some(), errand.sealed);
            let transcript = Transcript { greeting: heard.first_chunk().expect("greeted"), opening: &opening };
            assert_eq!(session.key, transcript.session(&Key::new(KEY)));
            if errand.sealed {
                let hello = heard[GREETING + MAC..].first_chunk().expect("the door's part");
                call.expect("called").0.answered(hello).expect("both ends agree");
            }
            true
        }
        (standing @ Standing::Admitted(..), None) => panic!("let in on another's errand: {standing:?}"),
        (standing, Some(_)) if right => panic!("a member was not let in: {standing:?}"),
        _ => false,
    }
}

/// What a caller on `errand` comes to.
fn call<F: FnMut(&[u8]) -> Vec<u8>>(errand: &Errand, mut door: Other<F>) -> Result<Session, Refusal> {
    let deadline = Instant::now() + Duration::from_secs(60);
    knock(&mut door, &Key::new(KEY), errand, deadline, &|| false)
}

fn errand(sealed: bool) -> Errand {
    Errand { purpose: Purpose::Control, sealed, from: 3, to: HUB, context: 0, channel: 0, index: 0, total: 0 }
}

fn caller_and_stranger(mut input: Input<'_>) -> bool {
    let pace = input.byte();
    let mut words = Some(input.rest().to_vec());
    let outcome = call(&errand(true), other(pace, |_| words.take().unwrap_or_default()));
    assert!(outcome.is_err(), "a door was believed that does not hold the key");
    false
}

fn caller_and_member(mut input: Input<'_>) -> bool {
    let (pace, change, which) = (input.byte(), input.byte() % 4, input.number());
    let errand = errand(change < 2);
    let mut greeting = [0; GREETING];
    let nonce = input.take(GREETING - 8);
    greeting[..8].copy_from_slice(&MAGIC);
    greeting[8..8 + nonce.len()].copy_from_slice(nonce);
    let mut turn = 0;
    let door = other(pace, |heard: &[u8]| {
        turn += 1;
        let opening = heard.first_chunk().expect("the caller opens");
        let transcript = Transcript { greeting: &greeting, opening };
        match turn {
            1 => greeting.to_vec(),
            2 => {
                assert_eq!(heard[OPENING..], *transcript.mac(&Key::new(KEY), b"caller").as_bytes());
                let answer = transcript.mac(&Key::new(KEY), b"door");
                if change == 3 { flipped(answer.as_bytes(), which) } else { answer.as_bytes().to_vec() }
            }
            3 => {
                let session = transcript.session(&Key::new(KEY));
                let hello = heard[OPENING + MAC..].first_chunk().expect("the caller's part");
                let (answer, _) = seal::answer(session.bytes(), hello).expect("the caller holds the key");
                if change == 1 { flipped(&answer, which) } else { answer.to_vec() }
            }
            _ => Vec::new(),
        }
    });
    let outcome = call(&errand, door);
    assert_eq!(outcome.is_ok(), matches!(change, 0 | 2), "a change of a bit decides, and nothing else: {outcome:?}");
    outcome.is_ok()
}
