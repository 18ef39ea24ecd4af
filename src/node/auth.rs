//! How both ends of a new connection show that they hold the job's key, before either keeps anything for the other.
//!
//! ```text
//! caller                                               door
//!   opening: magic, errand, nonce          ->                                         68 bytes
//!                                          <-  greeting: magic, nonce                 40 bytes
//!   proof: MAC("caller", greeting, opening) ->                                        32 bytes
//!                                          <-  answer: MAC("door", greeting, opening) 32 bytes
//! ```
//! MAC is BLAKE3 keyed with the job's key. Both nonces are fresh, so nothing recorded can be played again, and the
//! errand (who calls, for whom, what for) is covered. The caller proves first: who does not hold the key gets a nonce
//! and, if it tries, a refusal of zeros, whoever it asked for; nothing that a guess at the key could be checked with.
//! (Somebody who listens where a door should be does get a caller's MAC; that is why short keys are refused.) The caller
//! speaks first, although the door need not know yet what it says: where a listener's queue is full, the kernel may
//! forget a connection that the caller takes for made, and learns of it again by what the caller sends.
//!
//! Both ends come out with a [`Key`] of this one connection, derived from the job's key, the greeting and the opening.
//! If the errand says so, keys for encryption are agreed on then, bound to that key: 48 bytes of the caller's and 48 of
//! the door's (`maypole_transports::tcp::seal`). The door may write on at once after its last word, the caller when it
//! has seen it. Everything has a fixed size: a stranger costs the door a few hundred bytes and a file descriptor until
//! its time is up.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use maypole_transports::tcp::seal::{self, HELLO};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::key::Key;
use super::session::Session;

/// `to` of an errand that is for the hub, and the hub's own number at its door.
pub(super) const HUB: u32 = u32::MAX;

/// Opens both directions; the last byte is the version of this protocol.
const MAGIC: [u8; 8] = *b"maypole\x02";
const GREETING: usize = 40;
const OPENING: usize = 68;
/// A MAC's bytes: a caller's proof, a door's answer.
const MAC: usize = 32;
/// What a door answers to a proof by another key: no MAC is that.
const REFUSED: [u8; MAC] = [0; MAC];

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Purpose {
    /// A node's control connection to the hub.
    Control = 1,
    /// One TCP connection of a data link.
    Data = 2,
    /// Fetching a file descriptor from a rank of the same host.
    Local = 3,
}

/// Why somebody calls. Fields that a purpose does not need are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errand {
    pub purpose: Purpose,
    /// Whether the connection is to be encrypted.
    pub sealed: bool,
    /// The caller's world rank.
    pub from: u32,
    /// The called rank, or [`HUB`].
    pub to: u32,
    pub context: u64,
    pub channel: u32,
    /// Which of `total` connections this is.
    pub index: u16,
    pub total: u16,
}

impl Errand {
    fn opening(&self, nonce: &[u8; 32]) -> [u8; OPENING] {
        let mut out = [0; OPENING];
        let mut at = 0;
        let fields: [&[u8]; 9] = [
            &MAGIC,
            &[self.purpose as u8, u8::from(self.sealed), 0, 0],
            &self.from.to_le_bytes(),
            &self.to.to_le_bytes(),
            &self.context.to_le_bytes(),
            &self.channel.to_le_bytes(),
            &self.index.to_le_bytes(),
            &self.total.to_le_bytes(),
            nonce,
        ];
        for field in fields {
            out[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        debug_assert_eq!(at, OPENING);
        out
    }

    fn parse(opening: &[u8; OPENING]) -> Option<Errand> {
        let word = |at: usize| u32::from_le_bytes(opening[at..at + 4].try_into().expect("4 bytes"));
        let half = |at: usize| u16::from_le_bytes(opening[at..at + 2].try_into().expect("2 bytes"));
        let purpose = match opening[8] {
            1 => Purpose::Control,
            2 => Purpose::Data,
            3 => Purpose::Local,
            _ => return None,
        };
        let context = u64::from_le_bytes(opening[20..28].try_into().expect("8 bytes"));
        (opening[..8] == MAGIC).then_some(Errand {
            purpose,
            sealed: opening[9] == 1,
            from: word(12),
            to: word(16),
            context,
            channel: word(28),
            index: half(32),
            total: half(34),
        })
    }
}

/// What both ends have said before the proofs.
struct Transcript<'a> {
    greeting: &'a [u8; GREETING],
    opening: &'a [u8; OPENING],
}

impl Transcript<'_> {
    fn mac(&self, key: &Key, side: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(key.bytes()).update(side).update(self.greeting).update(self.opening).finalize()
    }

    /// The key of this connection: another one each time, and from it nobody learns the job's.
    fn session(&self, key: &Key) -> Key {
        let mut hasher = blake3::Hasher::new_derive_key("maypole 2026 connection key");
        hasher.update(key.bytes()).update(self.greeting).update(self.opening);
        Key::new(*hasher.finalize().as_bytes())
    }
}

/// What is wrong with the first bytes of the other end, if anything. `start`: as much of [`MAGIC`] as has come.
fn check_magic(start: &[u8]) -> Result<(), Refusal> {
    let versionless = start.len().min(MAGIC.len() - 1);
    if start[..versionless] != MAGIC[..versionless] {
        return Err(Refusal::Stranger);
    }
    if start.len() >= MAGIC.len() && start[versionless] != MAGIC[versionless] {
        return Err(Refusal::Version);
    }
    Ok(())
}

/// 32 fresh random bytes.
pub(super) fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(bytes)
}

/// What became of a guest after [`Guest::advance`].
#[derive(Debug)]
pub(super) enum Standing {
    /// More has to arrive.
    Waiting,
    /// It holds the job's key; this is what it wants, and what both ends have in common now.
    Admitted(Errand, Session),
    /// It is to be closed. It said that it is this rank, if it showed a key, but another one.
    Rejected(Refusal, Option<u32>),
}

/// The door's side of one connection that has not shown the key yet: a state machine that never waits.
pub(super) struct Guest<S> {
    stream: S,
    /// What it was greeted with, once its opening had come.
    greeting: Option<[u8; GREETING]>,
    buffer: [u8; OPENING + MAC],
    filled: usize,
    /// It has shown the key, and keys for encryption are still to be agreed on.
    sealing: Option<(Errand, Key)>,
    /// When its time is up.
    pub deadline: Instant,
}

impl<S: Read + Write> Guest<S> {
    /// A connection just accepted; `stream` is non-blocking.
    pub fn new(stream: S, deadline: Instant) -> Guest<S> {
        Guest { stream, greeting: None, buffer: [0; OPENING + MAC], filled: 0, sealing: None, deadline }
    }

    /// Give the connection up to whoever serves it now.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Take in what has arrived, and answer. `me` is who is called at this door, for `purpose` only. No byte after the
    /// handshake is read.
    pub fn advance(&mut self, key: &Key, me: u32, purpose: Purpose) -> Standing {
        let standing = match self.sealing.take() {
            None => self.admit(key, me, purpose),
            Some((errand, session)) => self.seal(errand, session),
        };
        standing.unwrap_or_else(|refusal| Standing::Rejected(refusal, None))
    }

    fn admit(&mut self, key: &Key, me: u32, purpose: Purpose) -> Result<Standing, Refusal> {
        let greeting = loop {
            match self.greeting {
                Some(greeting) if self.filled == self.buffer.len() => break greeting,
                None if self.filled >= OPENING => {
                    self.greeting = Some(self.greet(random()?)?);
                    continue;
                }
                _ => {}
            }
            match self.stream.read(&mut self.buffer[self.filled..]) {
                Ok(0) => return Err(Refusal::Closed),
                Ok(n) => self.filled += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Standing::Waiting),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
            let refusal = check_magic(&self.buffer[..self.filled.min(MAGIC.len())]);
            if matches!(refusal, Err(Refusal::Version)) {
                // A caller of the first version reads 72 bytes before it looks at any of them.
                self.greet([0; 32])?;
                self.say(&REFUSED)?;
            }
            refusal?;
        };
        let (opening, proof) = self.buffer.split_first_chunk().expect("as long as both");
        let transcript = Transcript { greeting: &greeting, opening };
        let proof: [u8; MAC] = proof.try_into().expect("the rest of the buffer");
        let errand = Errand::parse(opening);
        // Comparing hashes takes the same time whatever they are. The key comes first: who does not hold it is not told
        // whether there is anybody of that rank here.
        if blake3::Hash::from_bytes(proof) != transcript.mac(key, b"caller") {
            let (_, from) = (self.stream.write(&REFUSED), errand.map(|errand| errand.from));
            return Ok(Standing::Rejected(Refusal::WrongKey, from));
        }
        let Some(errand) = errand.filter(|errand| errand.purpose == purpose && errand.to == me) else {
            return Err(Refusal::Elsewhere);
        };
        let (answer, session) = (transcript.mac(key, b"door"), transcript.session(key));
        self.say(answer.as_bytes())?;
        if errand.sealed {
            self.filled = 0;
            return self.seal(errand, session);
        }
        Ok(Standing::Admitted(errand, Session { key: session, seal: None }))
    }

    /// The caller has shown the key; it begins with its part of the keys for encryption.
    fn seal(&mut self, errand: Errand, session: Key) -> Result<Standing, Refusal> {
        while self.filled < HELLO {
            match self.stream.read(&mut self.buffer[self.filled..HELLO]) {
                Ok(0) => return Err(Refusal::Closed),
                Ok(n) => self.filled += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.sealing = Some((errand, session));
                    return Ok(Standing::Waiting);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        let hello = self.buffer.first_chunk().expect("longer than that");
        let (answer, seal) = seal::answer(session.bytes(), hello).map_err(|_| Refusal::Changed)?;
        self.say(&answer)?;
        Ok(Standing::Admitted(errand, Session { key: session, seal: Some(seal) }))
    }

    /// Say which protocol this is.
    fn greet(&mut self, nonce: [u8; 32]) -> Result<[u8; GREETING], Refusal> {
        let mut greeting = [0; GREETING];
        greeting[..8].copy_from_slice(&MAGIC);
        greeting[8..].copy_from_slice(&nonce);
        self.say(&greeting)?;
        Ok(greeting)
    }

    /// Write all of it: a fresh connection has room for that; one that has not is no caller of ours.
    fn say(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        if self.stream.write(bytes)? == bytes.len() { Ok(()) } else { Err(Refusal::Silent) }
    }
}

/// Why one end did not let the other in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it closed the connection")]
    Closed,
    #[error("what listens there does not speak Maypole")]
    Stranger,
    #[error("it runs another version of Maypole; every rank needs the same")]
    Version,
    #[error("it holds another key: another job uses this address, or MAYPOLE_KEY (or MAYPOLE_RUN) differs")]
    WrongKey,
    #[error("it holds the key, but is another rank")]
    Elsewhere,
    #[error("bytes were changed on the way")]
    Changed,
    #[error("it accepted the connection but did not answer in time")]
    Silent,
    #[error("given up")]
    GivenUp,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The caller's side: show the key and have the door show it; returns what both ends have in common then. Blocks until
/// `deadline`, or until `give_up` says so (asked every 20 ms). `stream` is non-blocking and stays so.
pub(super) fn knock<S: Read + Write + AsFd>(
    stream: &mut S,
    key: &Key,
    errand: &Errand,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> Result<Session, Refusal> {
    let opening = errand.opening(&random()?);
    transfer(stream, Transfer::Write(&opening), deadline, give_up)?;
    let mut greeting = [0; GREETING];
    transfer(stream, Transfer::Read(&mut greeting), deadline, give_up)?;
    check_magic(&greeting[..MAGIC.len()])?;
    let transcript = Transcript { greeting: &greeting, opening: &opening };
    let proof = transcript.mac(key, b"caller");
    transfer(stream, Transfer::Write(proof.as_bytes()), deadline, give_up)?;
    let mut answer = [0; MAC];
    transfer(stream, Transfer::Read(&mut answer), deadline, give_up)?;
    // Its refusal is no MAC either.
    if blake3::Hash::from_bytes(answer) != transcript.mac(key, b"door") {
        return Err(Refusal::WrongKey);
    }
    let key = transcript.session(key);
    let seal = match errand.sealed {
        false => None,
        true => {
            let (caller, hello) = seal::call(key.bytes());
            transfer(stream, Transfer::Write(&hello), deadline, give_up)?;
            let mut answer = [0; HELLO];
            transfer(stream, Transfer::Read(&mut answer), deadline, give_up)?;
            Some(caller.answered(&answer).map_err(|_| Refusal::Changed)?)
        }
    };
    Ok(Session { key, seal })
}

enum Transfer<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

fn transfer<S: Read + Write + AsFd>(
    stream: &mut S,
    mut what: Transfer<'_>,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> Result<(), Refusal> {
    let mut done = 0;
    loop {
        let (result, length, event) = match &mut what {
            Transfer::Read(into) => (stream.read(&mut into[done..]), into.len(), PollFlags::POLLIN),
            Transfer::Write(from) => (stream.write(&from[done..]), from.len(), PollFlags::POLLOUT),
        };
        match result {
            Ok(0) => return Err(Refusal::Closed),
            Ok(n) if done + n == length => return Ok(()),
            Ok(n) => done += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait(&*stream, event, deadline, give_up)?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Err(Refusal::Closed),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Wait until `stream` is ready for `event`.
pub(super) fn wait(
    stream: &impl AsFd,
    event: PollFlags,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> Result<(), Refusal> {
    loop {
        if give_up() {
            return Err(Refusal::GivenUp);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Refusal::Silent);
        }
        let nap = left.min(Duration::from_millis(20)).as_millis().max(1) as u16;
        match poll(&mut [PollFd::new(stream.as_fd(), event)], PollTimeout::from(nap)) {
            Ok(n) if n > 0 => return Ok(()),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Refusal::Io(e.into())),
        }
    }
}

#[cfg(any(test, fuzzing))]
#[path = "auth_outside.rs"]
pub(super) mod outside;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

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

    /// A door for rank 7 with a key that the other end does not hold, and a stranger who has said `words` there: what
    /// the stranger reads before the connection is closed, and why it is.
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
        // The first version's opening, and the 72 bytes for which it waits before it says what is wrong.
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
}
