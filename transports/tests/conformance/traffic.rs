//! Messages of random sizes, written and read in random ways.
//!
//! Byte `i` of a link's life is a function of `i`, so a reader knows what every byte must be without being told.

use std::time::{Duration, Instant};

use maypole_transports::{Receiver, Result, Sender};

/// Long past what any test needs on a busy machine; reaching it is the failure "never came".
pub const PATIENCE: Duration = Duration::from_secs(60);
/// What an element may need in one piece.
pub const ELEMENT: usize = 64;

/// The byte at position `position` of the stream.
pub fn byte_at(position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// The bytes from `position` on.
pub fn bytes_at(position: u64, len: usize) -> Vec<u8> {
    (position..position + len as u64).map(byte_at).collect()
}

/// Random numbers that are the same in every run (the splitmix64 sequence).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    /// A length up to `most`, short ones as likely as long ones.
    pub fn length(&mut self, most: usize) -> usize {
        let scale = most >> self.below(most.max(2).ilog2() as usize + 1);
        self.below(scale + 1)
    }
}

/// In what portions a message is written or read.
#[derive(Clone, Copy, PartialEq)]
pub enum Portions {
    /// Any.
    Any,
    /// In place only, never less than an element (or the rest) at once: refuses to go on with less, as a reduction
    /// would.
    Elements,
}

/// Writes one message.
pub struct Writer {
    pub position: u64,
    left: usize,
    ended: bool,
    portions: Portions,
}

impl Writer {
    pub fn new(portions: Portions) -> Self {
        Self { position: 0, left: 0, ended: true, portions }
    }

    pub fn begin(&mut self, len: usize) {
        assert!(self.ended && self.left == 0);
        (self.left, self.ended) = (len, false);
    }

    /// Do one call or two; returns whether the message is complete.
    pub fn step(&mut self, link: &mut dyn Sender, dice: &mut Dice) -> Result<bool> {
        if self.left == 0 {
            self.ended = if self.ended { link.flush()? } else { link.end()? };
            return Ok(self.ended);
        }
        let n = match self.portions {
            Portions::Any if dice.below(2) == 0 => {
                let len = 1 + dice.length(self.left - 1);
                let n = link.send(&bytes_at(self.position, len))?;
                assert!(n <= len, "took {n} bytes of {len}");
                n
            }
            portions => {
                let room = link.reserve()?;
                let most = room.len().min(self.left);
                let n = portion(portions, most, self.left, dice);
                room[..n].copy_from_slice(&bytes_at(self.position, n));
                link.commit(n);
                n
            }
        };
        self.left -= n;
        self.position += n as u64;
        Ok(false)
    }
}

/// Reads one message.
pub struct Reader {
    pub position: u64,
    left: usize,
    portions: Portions,
}

impl Reader {
    pub fn new(portions: Portions) -> Self {
        Self { position: 0, left: 0, portions }
    }

    pub fn begin(&mut self, len: usize) {
        assert_eq!(self.left, 0);
        self.left = len;
    }

    /// Do one call or two; returns whether the message is complete.
    pub fn step(&mut self, link: &mut dyn Receiver, dice: &mut Dice) -> Result<bool> {
        if self.left == 0 {
            link.end();
            return Ok(true);
        }
        let n = match self.portions {
            Portions::Any if dice.below(8) == 0 => {
                link.absorb()?;
                0
            }
            Portions::Any if dice.below(2) == 0 => {
                let mut into = vec![0; 1 + dice.length(self.left - 1)];
                let n = link.recv(&mut into)?;
                assert_eq!(into[..n], bytes_at(self.position, n), "at {}", self.position);
                n
            }
            portions => {
                let there = link.peek()?;
                let most = there.len().min(self.left);
                let n = portion(portions, most, self.left, dice);
                assert_eq!(there[..n], bytes_at(self.position, n), "at {}", self.position);
                link.release(n);
                n
            }
        };
        self.left -= n;
        self.position += n as u64;
        Ok(false)
    }
}

/// How many of `most` bytes at hand to use, of a message with `left` to go.
fn portion(portions: Portions, most: usize, left: usize, dice: &mut Dice) -> usize {
    match portions {
        Portions::Any => dice.length(most),
        // Whole elements, or the short rest of the message.
        Portions::Elements if most == left && left < ELEMENT => left,
        Portions::Elements => {
            let elements = most / ELEMENT;
            if elements == 0 { 0 } else { (1 + dice.length(elements - 1)) * ELEMENT }
        }
    }
}

/// Repeat until `step` says yes.
pub fn until(what: &str, mut step: impl FnMut() -> bool) {
    let start = Instant::now();
    while !step() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// Send one message while the other side may be doing anything; `idle` is called while it does not go on.
pub fn send_all(link: &mut dyn Sender, bytes: &[u8], mut idle: impl FnMut()) {
    let mut sent = 0;
    until("sending", || {
        let n = link.send(&bytes[sent..]).unwrap();
        sent += n;
        if n == 0 {
            idle();
        }
        sent == bytes.len()
    });
    let mut done = link.end().unwrap();
    until("flushing", || {
        if !done {
            idle();
            done = link.flush().unwrap();
        }
        done
    });
}

/// Receive one message of `len` bytes.
pub fn recv_all(link: &mut dyn Receiver, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut got = 0;
    until("receiving", || {
        got += link.recv(&mut bytes[got..]).unwrap();
        got == len
    });
    link.end();
    bytes
}
