//! What every frame on a control connection ends with: proof that the other end wrote it, as it stands, in this place.
//!
//! A tag is BLAKE3 keyed for this connection (16 bytes of it) over which end writes, how many frames that end wrote
//! before, and the BLAKE3 hash of the frame's body, which is computed once for a body that goes to many. So a frame that was changed, left out, repeated, or sent back to where it came from has
//! the wrong tag, and the connection ends there.

use super::key::Key;

/// Bytes of a tag.
pub(super) const TAG: usize = 16;

/// Which end of a control connection writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Writer {
    Node = 1,
    Hub = 2,
}

/// The tags of one direction of a connection, one after the other.
pub(super) struct Tags {
    key: Key,
    writer: Writer,
    frames: u64,
}

impl Tags {
    /// For what `writer` writes; `session` is the key of the connection.
    pub fn new(session: &Key, writer: Writer) -> Tags {
        let key = Key::new(blake3::derive_key("maypole 2026 tags of frames", session.bytes()));
        Tags { key, writer, frames: 0 }
    }

    /// That of the next frame, whose body has the hash `body`.
    pub fn next(&mut self, body: &blake3::Hash) -> [u8; TAG] {
        let mut hasher = blake3::Hasher::new_keyed(self.key.bytes());
        hasher.update(&[self.writer as u8]).update(&self.frames.to_le_bytes()).update(body.as_bytes());
        self.frames += 1;
        *hasher.finalize().as_bytes().first_chunk().expect("a hash is longer")
    }

    /// Whether the next frame, which came with the tag `shown`, is what the other end wrote.
    pub fn check(&mut self, body: &[u8], shown: &[u8; TAG]) -> bool {
        let whole = |tag: &[u8; TAG]| {
            let mut bytes = [0; 32];
            bytes[..TAG].copy_from_slice(tag);
            blake3::Hash::from_bytes(bytes)
        };
        // Comparing hashes takes the same time whatever they are.
        whole(&self.next(&blake3::hash(body))) == whole(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_fits_its_frame_in_its_place_only() {
        let (one, other) = (Key::new([1; 32]), Key::new([2; 32]));
        let tag = Tags::new(&one, Writer::Node).next(&blake3::hash(b"body"));
        assert!(Tags::new(&one, Writer::Node).check(b"body", &tag));
        assert!(!Tags::new(&one, Writer::Node).check(b"bodx", &tag), "another body");
        assert!(!Tags::new(&one, Writer::Hub).check(b"body", &tag), "sent back");
        assert!(!Tags::new(&other, Writer::Node).check(b"body", &tag), "another connection");
        let mut later = Tags::new(&one, Writer::Node);
        assert!(later.check(b"body", &tag));
        assert!(!later.check(b"body", &tag), "a second time");
    }
}
