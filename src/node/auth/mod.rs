//! How both ends of a new connection show that they hold the job's key, before either keeps
//! anything for the other.
//!
//! ```text
//! caller                                               door
//!   opening: magic, errand, nonce          ->                                         68 bytes
//!                                          <-  greeting: magic, nonce                 40 bytes
//!   proof: MAC("caller", greeting, opening) ->                                        32 bytes
//!                                          <-  answer: MAC("door", greeting, opening) 32 bytes
//! ```
//! MAC is BLAKE3 keyed with the job's key. Both nonces are fresh, so nothing recorded can be played
//! again, and the errand (who calls, for whom, what for) is covered. The caller proves first: who
//! does not hold the key gets a nonce and, if it tries, a refusal of zeros, whoever it asked for;
//! nothing that a guess at the key could be checked with. (Somebody who listens where a door should
//! be does get a caller's MAC; that is why short keys are refused.) The caller speaks first,
//! although the door need not know yet what it says: where a listener's queue is full, the kernel
//! may forget a connection that the caller takes for made, and learns of it again by what the
//! caller sends.
//!
//! Both ends come out with a [`Key`] of this one connection, derived from the job's key, the
//! greeting and the opening. If the errand says so, keys for encryption are agreed on then, bound
//! to that key: 48 bytes of the caller's and 48 of the door's (`maypole_transports::tcp::seal`).
//! The door may write on at once after its last word, the caller when it has seen it. Everything
//! has a fixed size: a stranger costs the door a few hundred bytes and a file descriptor until its
//! time is up.

mod guest;
mod knock;
#[cfg(any(test, fuzzing))]
pub(super) mod outside;
#[cfg(test)]
mod tests;

use std::io;

pub(super) use self::guest::{Guest, Standing};
pub(super) use self::knock::{knock, wait};
use super::key::Key;

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
        let mut hasher = blake3::Hasher::new_keyed(key.bytes());
        hasher.update(side).update(self.greeting).update(self.opening).finalize()
    }

    /// The key of this connection: another one each time, and from it nobody learns the job's.
    fn session(&self, key: &Key) -> Key {
        let mut hasher = blake3::Hasher::new_derive_key("maypole 2026 connection key");
        hasher.update(key.bytes()).update(self.greeting).update(self.opening);
        Key::new(*hasher.finalize().as_bytes())
    }
}

/// What is wrong with the first bytes of the other end, if anything. `start`: as much of [`MAGIC`]
/// as has come.
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

/// Why one end did not let the other in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it closed the connection")]
    Closed,
    #[error("what listens there does not speak Maypole")]
    Stranger,
    #[error("it runs another version of Maypole; every rank needs the same")]
    Version,
    #[error(
        "it holds another key: another job uses this address, or MAYPOLE_KEY (or MAYPOLE_RUN) \
         differs"
    )]
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
