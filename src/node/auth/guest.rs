//! The door's side: a connection that has not shown the key yet.

use std::io::{ErrorKind, Read, Write};
use std::time::Instant;

use maypole_transports::tcp::seal::{self, HELLO};

use super::{Errand, GREETING, MAC, MAGIC, OPENING, Purpose, REFUSED, Refusal, Transcript};
use super::{check_magic, random};
use crate::node::key::Key;
use crate::node::session::Session;

/// What became of a guest after [`Guest::advance`].
#[derive(Debug)]
pub(in crate::node) enum Standing {
    /// More has to arrive.
    Waiting,
    /// It holds the job's key; this is what it wants, and what both ends have in common now.
    Admitted(Errand, Session),
    /// It is to be closed. It said that it is this rank, if it showed a key, but another one.
    Rejected(Refusal, Option<u32>),
}

/// The door's side of one connection that has not shown the key yet: a state machine that never
/// waits.
pub(in crate::node) struct Guest<S> {
    pub(super) stream: S,
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
        let buffer = [0; OPENING + MAC];
        Guest { stream, greeting: None, buffer, filled: 0, sealing: None, deadline }
    }

    /// Give the connection up to whoever serves it now.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Take in what has arrived, and answer. `me` is who is called at this door, for `purpose`
    /// only. No byte after the handshake is read.
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
        // Comparing hashes takes the same time whatever they are. The key comes first: who does not
        // hold it is not told whether there is anybody of that rank here.
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

    /// Write all of it: a fresh connection has room for that; one that has not is no caller of
    /// ours.
    fn say(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        if self.stream.write(bytes)? == bytes.len() { Ok(()) } else { Err(Refusal::Silent) }
    }
}
