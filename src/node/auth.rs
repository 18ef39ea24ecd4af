//! How both ends of a new connection show that they hold the job's key, before either keeps anything for the other.
//!
//! ```text
//! caller                                   door
//!   opening: magic, errand, nonce   ->              68 bytes
//!                                   <-  answer: magic, nonce, MAC("door", opening, nonce)     72 bytes
//!   proof: MAC("caller", opening, nonce) ->         32 bytes
//! ```
//! MAC is BLAKE3 keyed with the job's key. Both nonces are fresh, so nothing recorded can be played again, and the
//! errand (who calls, for whom, what for) is covered. The caller may write on at once after the proof. Everything has a
//! fixed size: a stranger costs the door a few hundred bytes and a file descriptor until its time is up. The connection
//! itself is not encrypted.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The secret of a job.
pub(super) type Key = [u8; 32];

/// `to` of an errand that is for the hub, and the hub's own number at its door.
pub(super) const HUB: u32 = u32::MAX;

/// Opens both directions; the last byte is the version of this protocol.
const MAGIC: [u8; 8] = *b"maypole\x01";
const OPENING: usize = 68;
const ANSWER: usize = 72;
const PROOF: usize = 32;

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
            &[self.purpose as u8, 0, 0, 0],
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
            from: word(12),
            to: word(16),
            context,
            channel: word(28),
            index: half(32),
            total: half(34),
        })
    }
}

fn mac(key: &Key, side: &[u8], opening: &[u8; OPENING], nonce: &[u8]) -> blake3::Hash {
    blake3::Hasher::new_keyed(key).update(side).update(opening).update(nonce).finalize()
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
    /// It holds the key; this is what it wants.
    Admitted(Errand),
    /// It is to be closed.
    Rejected(&'static str),
}

/// The door's side of one connection that has not shown the key yet: a state machine that never waits.
pub(super) struct Guest<S> {
    stream: S,
    buffer: [u8; OPENING],
    filled: usize,
    /// The errand and the proof that must come, once the opening has been answered.
    expected: Option<(Errand, blake3::Hash)>,
    /// When its time is up.
    pub deadline: Instant,
}

impl<S: Read + Write> Guest<S> {
    /// A connection just accepted; `stream` is non-blocking.
    pub fn new(stream: S, deadline: Instant) -> Guest<S> {
        Guest { stream, buffer: [0; OPENING], filled: 0, expected: None, deadline }
    }

    /// Give the connection up to whoever serves it now.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Take in what has arrived. `me` is who is called at this door, for `purpose` only. No byte after the proof is
    /// read.
    pub fn advance(&mut self, key: &Key, me: u32, purpose: Purpose) -> Standing {
        loop {
            let want = if self.expected.is_some() { PROOF } else { OPENING };
            if self.filled < want {
                match self.stream.read(&mut self.buffer[self.filled..want]) {
                    Ok(0) => return Standing::Rejected("it closed the connection"),
                    Ok(n) => self.filled += n,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Standing::Waiting,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return Standing::Rejected("the connection failed"),
                }
                continue;
            }
            if let Some((errand, expected)) = self.expected {
                let proof: [u8; PROOF] = *self.buffer.first_chunk().expect("read above");
                // Comparing hashes takes the same time whatever they are.
                let shown = blake3::Hash::from_bytes(proof) == expected;
                return if shown { Standing::Admitted(errand) } else { Standing::Rejected("it holds another key") };
            }
            let Some(errand) = Errand::parse(&self.buffer) else {
                return Standing::Rejected("it does not speak Maypole");
            };
            if errand.purpose != purpose || errand.to != me {
                return Standing::Rejected("it looks for somebody else");
            }
            let Ok(nonce) = random() else { return Standing::Rejected("there is no randomness") };
            let mut answer = [0; ANSWER];
            answer[..8].copy_from_slice(&MAGIC);
            answer[8..40].copy_from_slice(&nonce);
            answer[40..].copy_from_slice(mac(key, b"door", &self.buffer, &nonce).as_bytes());
            // A fresh connection has room for 72 bytes; one that has not is no caller of ours.
            if !matches!(self.stream.write(&answer), Ok(ANSWER)) {
                return Standing::Rejected("it takes no answer");
            }
            self.expected = Some((errand, mac(key, b"caller", &self.buffer, &nonce)));
            self.filled = 0;
        }
    }
}

/// Why a door did not let the caller in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it closed the connection: it belongs to another job or another rank")]
    Closed,
    #[error("what listens there does not speak Maypole")]
    Stranger,
    #[error("it holds another key: another job uses this address, or MAYPOLE_KEY differs")]
    WrongKey,
    #[error("it accepted the connection but did not answer in time")]
    Silent,
    #[error("given up")]
    GivenUp,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The caller's side: show the key and have the door show it. Blocks until `deadline`, or until `give_up` says so
/// (asked every 20 ms). `stream` is non-blocking and stays so.
pub(super) fn knock<S: Read + Write + AsFd>(
    stream: &mut S,
    key: &Key,
    errand: &Errand,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> Result<(), Refusal> {
    let opening = errand.opening(&random()?);
    transfer(stream, Transfer::Write(&opening), deadline, give_up)?;
    let mut answer = [0; ANSWER];
    transfer(stream, Transfer::Read(&mut answer), deadline, give_up)?;
    if answer[..8] != MAGIC {
        return Err(Refusal::Stranger);
    }
    let nonce = &answer[8..40];
    let shown = blake3::Hash::from_bytes(answer[40..].try_into().expect("32 bytes"));
    if shown != mac(key, b"door", &opening, nonce) {
        return Err(Refusal::WrongKey);
    }
    transfer(stream, Transfer::Write(mac(key, b"caller", &opening, nonce).as_bytes()), deadline, give_up)
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const ERRAND: Errand =
        Errand { purpose: Purpose::Data, from: 3, to: 7, context: u64::MAX - 5, channel: 9, index: 1, total: 4 };

    fn meet(caller: Key, door: Key, me: u32, purpose: Purpose) -> (Result<(), Refusal>, Standing) {
        let (mut outside, inside) = UnixStream::pair().unwrap();
        outside.set_nonblocking(true).unwrap();
        inside.set_nonblocking(true).unwrap();
        let soon = Instant::now() + Duration::from_secs(2);
        std::thread::scope(|scope| {
            let called = scope.spawn(move || {
                let mut guest = Guest::new(inside, soon);
                loop {
                    match guest.advance(&door, me, purpose) {
                        Standing::Waiting => wait(&guest.stream, PollFlags::POLLIN, soon, &|| false).unwrap(),
                        standing => return standing,
                    }
                }
            });
            let result = knock(&mut outside, &caller, &ERRAND, soon, &|| false);
            drop(outside);
            (result, called.join().unwrap())
        })
    }

    #[test]
    fn the_same_key_opens() {
        let (result, standing) = meet([1; 32], [1; 32], 7, Purpose::Data);
        result.unwrap();
        assert!(matches!(standing, Standing::Admitted(errand) if errand == ERRAND));
    }

    #[test]
    fn another_key_another_rank_another_purpose_do_not() {
        let (result, standing) = meet([1; 32], [2; 32], 7, Purpose::Data);
        assert!(matches!(result, Err(Refusal::WrongKey)));
        assert!(matches!(standing, Standing::Rejected(_)));
        let (result, _) = meet([1; 32], [1; 32], 8, Purpose::Data);
        assert!(matches!(result, Err(Refusal::Closed)), "{result:?}");
        let (result, _) = meet([1; 32], [1; 32], 7, Purpose::Control);
        assert!(matches!(result, Err(Refusal::Closed)));
    }

    #[test]
    fn a_caller_that_cannot_prove_the_key_is_rejected() {
        let (mut outside, inside) = UnixStream::pair().unwrap();
        inside.set_nonblocking(true).unwrap();
        let mut guest = Guest::new(inside, Instant::now());
        outside.write_all(&ERRAND.opening(&[0; 32])).unwrap();
        assert!(matches!(guest.advance(&[1; 32], 7, Purpose::Data), Standing::Waiting));
        outside.write_all(&[0; PROOF]).unwrap();
        assert!(matches!(guest.advance(&[1; 32], 7, Purpose::Data), Standing::Rejected(_)));
    }

    #[test]
    fn garbage_is_rejected_and_silence_waits() {
        let (mut outside, inside) = UnixStream::pair().unwrap();
        inside.set_nonblocking(true).unwrap();
        let mut guest = Guest::new(inside, Instant::now());
        assert!(matches!(guest.advance(&[1; 32], 7, Purpose::Data), Standing::Waiting));
        outside.write_all(&[b'G'; 200]).unwrap();
        assert!(matches!(guest.advance(&[1; 32], 7, Purpose::Data), Standing::Rejected(_)));
    }
}
