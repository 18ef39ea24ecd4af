//! The header in front of each segment.

use std::io;

use crate::{LinkError, Result};

/// Most bytes in one segment: long enough that the header and its system call cost nothing, short enough that a segment
/// is in the cache when it is copied and that a slow connection is noticed soon.
pub(in crate::tcp) const SEGMENT: usize = 128 << 10;
/// Bytes that a connection queues, before they are sent on, until it counts as full.
pub(in crate::tcp) const UNSENT: u32 = 2 * SEGMENT as u32;
/// Length of a header.
pub(super) const HEADER: usize = 16;
/// "mayp": the check's part that is always the same.
const MARK: u32 = 0x6d61_7970;

/// A run of the stream's bytes on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where in the stream it begins.
    pub offset: u64,
    /// Bytes of it, or what is left of them. Never 0 on the wire.
    pub left: usize,
}

impl Segment {
    pub fn encode(self) -> [u8; HEADER] {
        let length = self.left as u32;
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..].copy_from_slice(&check(self.offset, length).to_le_bytes());
        bytes
    }

    /// Read a header that may be anything. `least` is the smallest offset that can still come on this connection.
    pub fn decode(bytes: &[u8; HEADER], least: u64) -> Result<Self> {
        let [o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3, c0, c1, c2, c3] = *bytes;
        let offset = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if u32::from_le_bytes([c0, c1, c2, c3]) != check(offset, length) {
            return Err(malformed(format!(
                "{bytes:02x?} is no segment header; is the other end a Maypole of this version?"
            )));
        }
        if length == 0 || length as usize > SEGMENT {
            return Err(malformed(format!("a segment of {length} bytes, between 1 and {SEGMENT} are possible")));
        }
        if offset < least || offset.checked_add(u64::from(length)).is_none() {
            return Err(malformed(format!(
                "a segment at byte {offset} of the stream, expected one at {least} or later"
            )));
        }
        Ok(Self { offset, left: length as usize })
    }

    /// The stream's offset after this segment.
    pub fn after(self) -> u64 {
        self.offset + self.left as u64
    }
}

/// Tells a header from bytes that are none. No protection against malice: whoever can write to an authenticated
/// connection is trusted.
fn check(offset: u64, length: u32) -> u32 {
    MARK ^ length ^ offset as u32 ^ ((offset >> 32) as u32).rotate_left(16)
}

/// The error for a peer that does not speak this protocol.
pub(super) fn malformed(what: String) -> LinkError {
    LinkError::Io { doing: "reading a segment header", source: io::Error::new(io::ErrorKind::InvalidData, what) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_comes_back_as_it_was(offset in 0..u64::MAX / 2, left in 1..=SEGMENT) {
            let segment = Segment { offset, left };
            prop_assert_eq!(Segment::decode(&segment.encode(), offset).unwrap(), segment);
            prop_assert!(Segment::decode(&segment.encode(), offset + 1).is_err(), "consumed bytes must not come again");
        }

        #[test]
        fn any_flipped_bit_is_noticed(offset in 0..u64::MAX / 2, left in 1..=SEGMENT, bit in 0..HEADER * 8) {
            let mut bytes = Segment { offset, left }.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Segment::decode(&bytes, 0).is_err());
        }

        #[test]
        fn random_bytes_with_a_valid_check_stay_in_range(offset: u64, length: u32, least: u64) {
            let mut bytes = [0; HEADER];
            bytes[..8].copy_from_slice(&offset.to_le_bytes());
            bytes[8..12].copy_from_slice(&length.to_le_bytes());
            bytes[12..].copy_from_slice(&check(offset, length).to_le_bytes());
            if let Ok(segment) = Segment::decode(&bytes, least) {
                prop_assert!(segment.offset >= least && (1..=SEGMENT).contains(&segment.left));
                prop_assert!(segment.after() > segment.offset);
            }
        }
    }
}
