//! Encryption of a connection: a Noise handshake between two ends that share a key already, and the keys that come of
//! it.
//!
//! The pattern is `NNpsk0`: each end sends a fresh Curve25519 key, and the key that both have (the caller's business:
//! new for each connection, from the proof that both hold the job's key) is mixed in before anything else. So only who
//! holds that key can answer, and who learns it later cannot read what was recorded before. Two messages of [`HELLO`]
//! bytes, one each way; then each direction has an AES-256-GCM key of its own and counts its records.
//!
//! The protocol and its ciphers are the crates' `snow` and `ring`; what is ours is when which bytes are sent.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use snow::{Builder, HandshakeState, TransportState};

/// Bytes of each of the two messages of the handshake: a public key and the check of an empty text.
pub const HELLO: usize = 48;
/// Bytes that a record is longer than its text.
pub(super) const CHECK: usize = 16;

const PROTOCOL: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
/// So many records are sent under one key. AES-GCM allows some 2^24 of our length before an onlooker's chances of telling
/// it from randomness grow beyond 2^-60 (RFC 8446, 5.5); this is a fourth of that, 64 GiB of full records.
const RENEW: u64 = if cfg!(test) { 100 } else { 1 << 22 };

/// The other end does not hold the key, or what it said was changed on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other end does not hold the key of this connection, or bytes were changed on the way")]
pub struct Unproven;

/// The keys of one encrypted connection, for both directions.
pub struct Seal {
    /// Two halves of a link use it; it is each's own direction, and nearly always one thread's.
    state: Mutex<TransportState>,
}

/// The caller's side of a handshake, while the other end has not answered.
pub struct Caller {
    state: HandshakeState,
}

/// Begin a handshake as the end that speaks first: what to send. `key` is what both ends have in common, for this
/// connection only.
pub fn call(key: &[u8; 32]) -> (Caller, [u8; HELLO]) {
    let mut state = builder(key).build_initiator().expect("the pattern needs no more than the key");
    let mut hello = [0; HELLO];
    let length = state.write_message(&[], &mut hello).expect("the first message is the caller's");
    assert_eq!(length, HELLO);
    (Caller { state }, hello)
}

impl Caller {
    /// The other end has answered.
    ///
    /// # Errors
    /// If it does not hold the key.
    pub fn answered(mut self, hello: &[u8; HELLO]) -> Result<Seal, Unproven> {
        self.state.read_message(hello, &mut []).map_err(|_| Unproven)?;
        Ok(Seal::new(self.state))
    }
}

/// The whole handshake of the end that is called, whose caller has sent `hello`: what to answer.
///
/// # Errors
/// If the caller does not hold the key.
pub fn answer(key: &[u8; 32], hello: &[u8; HELLO]) -> Result<([u8; HELLO], Seal), Unproven> {
    let mut state = builder(key).build_responder().expect("the pattern needs no more than the key");
    state.read_message(hello, &mut []).map_err(|_| Unproven)?;
    let mut answer = [0; HELLO];
    let length = state.write_message(&[], &mut answer).expect("the second message is this end's");
    assert_eq!(length, HELLO);
    Ok((answer, Seal::new(state)))
}

fn builder(key: &[u8; 32]) -> Builder<'_> {
    let protocol = PROTOCOL.parse().expect("a protocol of Noise");
    Builder::new(protocol).psk(0, key).expect("the pattern has one key, at the beginning")
}

impl Seal {
    fn new(state: HandshakeState) -> Seal {
        Seal { state: Mutex::new(state.into_transport_mode().expect("both messages have passed")) }
    }

    fn lock(&self) -> MutexGuard<'_, TransportState> {
        // Nothing in here is half done when a cipher panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Encrypt the next record of this end's direction into the front of `record`, which has room for it.
    pub(super) fn close(&self, text: &[u8], record: &mut [u8]) -> usize {
        let mut state = self.lock();
        let sent = state.sending_nonce();
        if sent > 0 && sent.is_multiple_of(RENEW) {
            state.rekey_outgoing();
        }
        state.write_message(text, record).expect("a record has room, and 2^64 of them are never sent")
    }

    /// Decrypt the other direction's next record into `text`, which must have room for the whole record, its check
    /// included (or the cipher would allocate). Returns the length of the text.
    pub(super) fn open(&self, record: &[u8], text: &mut [u8]) -> Result<usize, Unproven> {
        debug_assert!(text.len() >= record.len());
        let mut state = self.lock();
        let got = state.receiving_nonce();
        if got > 0 && got.is_multiple_of(RENEW) {
            state.rekey_incoming();
        }
        state.read_message(record, text).map_err(|_| Unproven)
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

#[cfg(test)]
pub(super) fn pair(key: &[u8; 32]) -> (Seal, Seal) {
    let (caller, hello) = call(key);
    let (hello, theirs) = answer(key, &hello).unwrap();
    (caller.answered(&hello).unwrap(), theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_meets() {
        pair(&[1; 32]);
        let (caller, hello) = call(&[1; 32]);
        assert_eq!(answer(&[2; 32], &hello).unwrap_err(), Unproven);
        let (_, foreign) = call(&[2; 32]);
        let (other, _) = answer(&[2; 32], &foreign).unwrap();
        assert_eq!(caller.answered(&other).unwrap_err(), Unproven);
    }

    #[test]
    fn any_changed_byte_of_the_handshake_ends_it() {
        let key = [7; 32];
        for at in 0..HELLO {
            let (_, mut hello) = call(&key);
            hello[at] ^= 0x10;
            assert!(answer(&key, &hello).is_err(), "byte {at} of the caller's");
            let (caller, hello) = call(&key);
            let (mut hello, _) = answer(&key, &hello).unwrap();
            hello[at] ^= 0x10;
            assert!(caller.answered(&hello).is_err(), "byte {at} of the answer");
        }
    }

    /// A record stands only in its place: not again, not before its time, not in the other direction.
    #[test]
    fn records_are_counted_and_have_a_direction() {
        let (ours, theirs) = pair(&[3; 32]);
        let (mut first, mut second, mut text) = ([0; 21], [0; 21], [0; 64]);
        ours.close(b"hello", &mut first);
        ours.close(b"again", &mut second);
        assert!(theirs.open(&second, &mut text).is_err(), "before its time");
        assert!(ours.open(&first, &mut text).is_err(), "in the other direction");
        assert_eq!(theirs.open(&first, &mut text), Ok(5));
        assert_eq!(&text[..5], b"hello");
        assert!(theirs.open(&first, &mut text).is_err(), "a second time");
        assert_eq!(theirs.open(&second, &mut text), Ok(5));
    }

    #[test]
    fn keys_are_renewed_on_both_ends_alike() {
        let (ours, theirs) = pair(&[4; 32]);
        let (mut record, mut text) = ([0; 40], [0; 40]);
        for number in 0..5 * RENEW {
            for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
                let length = from.close(&number.to_le_bytes(), &mut record);
                assert_eq!(to.open(&record[..length], &mut text), Ok(8), "record {number}");
                assert_eq!(text[..8], number.to_le_bytes());
                if to.lock().is_initiator() {
                    break;
                }
            }
        }
    }
}
