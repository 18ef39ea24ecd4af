//! Records: how bytes stand on an encrypted connection.
//!
//! ```text
//! | length: u16 | its complement: u16 | `length` bytes: text of at most RECORD bytes, encrypted, with its check |
//! ```
//! The numbers are big-endian. The check covers the text, the key its direction and its place among all records, so
//! whatever is changed, left out, repeated or put elsewhere on the way is found before a byte of it is handed out. The
//! length is not covered before the record is there: the complement is, so that a length changed by accident is found at
//! once, and does not have this end wait for bytes that never come. (Who changes both on purpose can have it wait, which
//! he also can by passing nothing on.)
//!
//! Where a connection ends is no news here: both ends of a link know the lengths of all messages, and who leaves says so
//! in a frame. One that is cut between two records is found to lack what is still expected, as one that breaks is.
//!
//! [`Sealer`] and [`Opener`] have buffers of fixed lengths, and only while there is something in
//! them.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::sync::Arc;

use super::hold::Hold;
use super::seal::{CHECK, Seal};
use crate::LinkError;

/// Most bytes of text in a record: what the receiver must have whole before it can use any of it. Longer ones would hold
/// up a pipeline of ranks, shorter ones cost time at each end (0.1 us, and 2 us for 16 KiB, on a machine with AES).
pub(super) const RECORD: usize = 16 << 10;
const HEADER: usize = 4;
const LONGEST: usize = HEADER + RECORD + CHECK;

/// Turns bytes into records.
#[derive(Debug)]
pub struct Sealer {
    seal: Arc<Seal>,
    /// Records that wait to be sent.
    records: Hold,
    /// Where the text of one record is put together if it lies in several places.
    text: Hold,
}

impl Sealer {
    /// For this end's direction of a connection. So many records are encrypted before they are sent in one call.
    pub fn new(seal: Arc<Seal>, records: usize) -> Sealer {
        Sealer { seal, records: Hold::new(records * LONGEST), text: Hold::new(RECORD) }
    }

    /// Encrypt `parts`, which are one text, from its byte `from` on, as far as there is room; returns how many bytes were
    /// taken: all, or none of the last ones. Nothing is taken before what waits has been sent.
    ///
    /// # Errors
    /// There is no memory.
    pub fn take(&mut self, parts: &[IoSlice<'_>], from: usize) -> io::Result<usize> {
        if !self.records.is_empty() {
            return Ok(0);
        }
        let mut rest = Rest { parts, skip: from };
        let mut taken = 0;
        while self.records.free() >= LONGEST {
            let text = rest.next(&mut self.text)?;
            if text.is_empty() {
                break;
            }
            let (header, record) = self.records.room().map_err(system)?.split_at_mut(HEADER);
            let length = self.seal.close(text, record);
            header.copy_from_slice(&encode(length));
            self.records.came(HEADER + length);
            taken += text.len();
            self.text.gone(self.text.len());
        }
        Ok(taken)
    }

    /// What is to be sent.
    pub fn pending(&self) -> &[u8] {
        self.records.bytes()
    }

    /// The first `bytes` of [`Sealer::pending`] are sent.
    ///
    /// # Panics
    /// There was less.
    pub fn sent(&mut self, bytes: usize) {
        self.records.gone(bytes);
    }
}

/// What is left of a text in several parts.
struct Rest<'a> {
    parts: &'a [IoSlice<'a>],
    /// So many bytes at the front of `parts` are done.
    skip: usize,
}

impl<'a> Rest<'a> {
    /// The text of the next record: where it lies, or put together in `scratch`, which is empty
    /// before. Empty at the end.
    fn next<'b>(&mut self, scratch: &'b mut Hold) -> io::Result<&'b [u8]>
    where
        'a: 'b,
    {
        while let [first, parts @ ..] = self.parts
            && self.skip >= first.len()
        {
            self.skip -= first.len();
            self.parts = parts;
        }
        let [first, parts @ ..] = self.parts else { return Ok(&[]) };
        let here = &first[self.skip..];
        if here.len() >= RECORD || parts.iter().all(|part| part.is_empty()) {
            let text = &here[..here.len().min(RECORD)];
            self.skip += text.len();
            return Ok(text);
        }
        for part in std::iter::once(here).chain(parts.iter().map(|part| &part[..])) {
            let room = part.len().min(scratch.free());
            scratch.put(&part[..room]).map_err(system)?;
        }
        self.skip += scratch.len();
        Ok(scratch.bytes())
    }
}

/// Turns records into bytes.
#[derive(Debug)]
pub struct Opener {
    seal: Arc<Seal>,
    /// What has arrived and is not decrypted.
    records: Hold,
    /// Text that the caller had no room for.
    text: Hold,
}

impl Opener {
    /// For the other end's direction of a connection. So many records are read in one call.
    pub fn new(seal: Arc<Seal>, records: usize) -> Opener {
        Opener { seal, records: Hold::new(records * LONGEST), text: Hold::new(RECORD + CHECK) }
    }

    /// Room for bytes from the connection, never empty once [`Opener::take`] has found nothing
    /// more. Whoever asks says how many [came](Opener::came), also if none did.
    ///
    /// # Errors
    /// There is no memory.
    pub fn room(&mut self) -> io::Result<&mut [u8]> {
        self.records.close_up();
        self.records.room().map_err(system)
    }

    /// So many bytes were put into [`Opener::room`].
    ///
    /// # Panics
    /// There was no room for so many.
    pub fn came(&mut self, bytes: usize) {
        self.records.came(bytes);
    }

    /// Whether a part of a record is here, whose rest is not: the connection must not end now.
    pub fn is_within_record(&self) -> bool {
        !self.records.is_empty()
    }

    /// Fill `parts` in order with text, as far as there is any; returns how much.
    ///
    /// # Errors [`ErrorKind::InvalidData`] if what came is not what the other end sent; again at
    /// each call. Others: there is no memory.
    pub fn take(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut got = 0;
        for part in parts {
            let mut into = &mut part[..];
            while !into.is_empty() {
                let n = match self.fill(into) {
                    Ok(n) => n,
                    // What was taken must not be lost; the next call finds the error again.
                    Err(_) if got > 0 => return Ok(got),
                    Err(error) => return Err(error),
                };
                if n == 0 {
                    return Ok(got);
                }
                got += n;
                into = &mut into[n..];
            }
        }
        Ok(got)
    }

    fn fill(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.text.is_empty() {
            let Some(length) = self.next()? else { return Ok(0) };
            let record = &self.records.bytes()[HEADER..HEADER + length];
            if into.len() >= length {
                let n = self.seal.open(record, into).map_err(changed)?;
                self.records.gone(HEADER + length);
                return Ok(n);
            }
            let opened = self.seal.open(record, self.text.room().map_err(system)?);
            self.text.came(*opened.as_ref().unwrap_or(&0));
            opened.map_err(changed)?;
            self.records.gone(HEADER + length);
        }
        let n = into.len().min(self.text.len());
        into[..n].copy_from_slice(&self.text.bytes()[..n]);
        self.text.gone(n);
        Ok(n)
    }

    /// The length of the next record, if all of it is here.
    fn next(&self) -> io::Result<Option<usize>> {
        let here = self.records.bytes();
        let Some(header) = here.first_chunk::<HEADER>() else { return Ok(None) };
        let length = decode(*header).ok_or_else(|| changed("no length of a record"))?;
        Ok((here.len() >= HEADER + length).then_some(length))
    }
}

/// What the system said.
fn system(error: LinkError) -> io::Error {
    match error {
        LinkError::Io { source, .. } => source,
        gone => io::Error::other(gone),
    }
}

fn encode(length: usize) -> [u8; HEADER] {
    let length = length as u16;
    let [a, b] = length.to_be_bytes();
    let [c, d] = (!length).to_be_bytes();
    [a, b, c, d]
}

/// A length that a record can have: no record is without text.
fn decode([a, b, c, d]: [u8; HEADER]) -> Option<usize> {
    let length = u16::from_be_bytes([a, b]);
    let possible = (CHECK + 1..=CHECK + RECORD).contains(&usize::from(length));
    (length == !u16::from_be_bytes([c, d]) && possible).then_some(length.into())
}

fn changed<E>(_: E) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "bytes were changed on the way, which encryption has found")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::seal::pair;
    use super::*;

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 + i / 251) as u8).collect()
    }

    /// Everything that `parts` become on the connection.
    fn seal(sealer: &mut Sealer, parts: &[&[u8]]) -> Vec<u8> {
        let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let (mut taken, mut wire) = (0, Vec::new());
        while taken < total {
            taken += sealer.take(&parts, taken).unwrap();
            wire.extend_from_slice(sealer.pending());
            sealer.sent(sealer.pending().len());
        }
        wire
    }

    fn ends() -> (Sealer, Opener) {
        let (ours, theirs) = pair(&[5; 32]);
        (Sealer::new(Arc::new(ours), 4), Opener::new(Arc::new(theirs), 4))
    }

    /// Put `wire` in, `step` bytes at a time, and take out into places of the lengths `places`, in turn.
    fn open(opener: &mut Opener, wire: &[u8], step: usize, places: &[usize]) -> io::Result<Vec<u8>> {
        let mut got = Vec::new();
        let mut places = places.iter().cycle();
        let mut wire = wire;
        loop {
            let mut first = vec![0; *places.next().unwrap()];
            let mut second = vec![0; *places.next().unwrap()];
            let n = opener.take(&mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)])?;
            let of_first = n.min(first.len());
            got.extend_from_slice(&first[..of_first]);
            got.extend_from_slice(&second[..n - of_first]);
            if n == 0 && wire.is_empty() {
                return Ok(got);
            }
            if n == 0 {
                let room = opener.room().unwrap();
                let n = room.len().min(wire.len()).min(step);
                assert!(n > 0, "no room although all that came is taken");
                room[..n].copy_from_slice(&wire[..n]);
                wire = &wire[n..];
                opener.came(n);
            }
        }
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            lengths in prop::collection::vec(prop_oneof![0..100usize, 0..200_000usize], 1..4),
            step in prop_oneof![1..50usize, 1..100_000usize],
            places in prop::collection::vec(prop_oneof![1..40usize, 1..40_000usize], 2..6),
        ) {
            let (mut sealer, mut opener) = ends();
            let whole = text(lengths.iter().sum());
            let mut rest = &whole[..];
            let mut parts = Vec::new();
            for length in lengths {
                let (part, after) = rest.split_at(length);
                parts.push(part);
                rest = after;
            }
            let wire = seal(&mut sealer, &parts);
            prop_assert!(open(&mut opener, &wire, step, &places).unwrap() == whole);
            prop_assert!(!opener.is_within_record());
        }
    }

    /// Whatever byte is changed: an error at once, without waiting for more, and nothing but errors after it.
    #[test]
    fn any_changed_byte_is_found_at_once() {
        let whole = text(100);
        for at in 0..3 * (HEADER + 100 + CHECK) {
            let (mut sealer, mut opener) = ends();
            let mut wire: Vec<u8> = (0..3).flat_map(|_| seal(&mut sealer, &[&whole])).collect();
            wire[at] ^= 1 << (at % 8);
            let outcome = open(&mut opener, &wire, 50, &[30, 7]);
            let error = outcome.map(|_| ()).expect_err(&format!("byte {at} was changed, and nobody noticed"));
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            let again = opener.take(&mut [IoSliceMut::new(&mut [0; 10])]).map(|_| ());
            assert_eq!(again.expect_err("text after a changed byte").kind(), ErrorKind::InvalidData);
        }
    }

    #[test]
    fn records_left_out_or_repeated_are_found() {
        let (mut sealer, mut opener) = ends();
        let [first, second] = [seal(&mut sealer, &[b"one"]), seal(&mut sealer, &[b"two"])];
        assert!(open(&mut opener, &second, 100, &[10, 10]).is_err(), "the first was left out");
        let (mut sealer, mut opener) = ends();
        let again = [seal(&mut sealer, &[b"one"]), first].concat();
        assert_eq!(open(&mut opener, &again[..again.len() / 2], 100, &[10, 10]).unwrap(), b"one");
        assert!(open(&mut opener, &again[..again.len() / 2], 100, &[10, 10]).is_err(), "a record was repeated");
    }

    #[test]
    fn an_end_within_a_record_shows() {
        let (mut sealer, mut opener) = ends();
        let wire = seal(&mut sealer, &[b"hello"]);
        assert_eq!(open(&mut opener, &wire[..wire.len() - 1], 100, &[10, 10]).unwrap(), b"");
        assert!(opener.is_within_record());
    }

    #[test]
    fn records_that_wait_are_sent_before_others_are_made() {
        let (mut sealer, _) = ends();
        assert_eq!(sealer.take(&[IoSlice::new(b"hello")], 0).unwrap(), 5);
        sealer.sent(3);
        assert_eq!(sealer.take(&[IoSlice::new(b"again")], 0).unwrap(), 0);
        sealer.sent(sealer.pending().len());
        assert_eq!(sealer.take(&[IoSlice::new(b"again")], 0).unwrap(), 5);
    }
}
