//! The reading end of a control connection.

use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::ops::Range;

use maypole_transports::tcp::Opener;
use serde::de::DeserializeOwned;

use super::{CHUNK, HEAD, changed};
use crate::node::tag::{TAG, Tags};

/// An empty inbox gives memory back beyond this: the hub has one for every rank.
pub(super) const KEPT: usize = 4 << 10;

/// Bytes that have arrived and are not yet whole frames.
pub(in crate::node) struct Inbox {
    tags: Tags,
    /// Where the connection is encrypted.
    opener: Option<Opener>,
    pub(super) bytes: Vec<u8>,
    /// Where the first frame that has not been taken begins.
    start: usize,
}

impl Inbox {
    /// `tags`: those of the other end.
    pub fn new(tags: Tags, opener: Option<Opener>) -> Inbox {
        Inbox { tags, opener, bytes: Vec::new(), start: 0 }
    }

    /// Read what `from` has, without waiting if it is non-blocking, but hardly more than one frame
    /// of `limit` bytes: whoever sends faster than frames are taken fills its own socket and not
    /// this memory. Level-triggered epoll says that there is more. `Ok(false)` when the other end
    /// has closed.
    pub fn fill(&mut self, mut from: impl Read, limit: usize) -> io::Result<bool> {
        // Once for all frames that were taken since the last call, and less than a frame is left to
        // move.
        self.bytes.drain(..self.start);
        self.start = 0;
        let mut chunk = [0u8; CHUNK];
        while self.bytes.len() < limit + HEAD + TAG {
            let place = match &mut self.opener {
                None => &mut chunk[..],
                Some(opener) => opener.room()?,
            };
            let most = place.len();
            let came = from.read(place);
            if let Some(opener) = &mut self.opener {
                opener.came(*came.as_ref().unwrap_or(&0));
            }
            match came {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    match &mut self.opener {
                        None => self.bytes.extend_from_slice(&chunk[..n]),
                        Some(opener) => open(opener, &mut chunk, &mut self.bytes)?,
                    }
                    // A short read has emptied the socket.
                    if n < most {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// The next whole frame, or `None` if it has not arrived. A frame that the other end did not
    /// write so ([`is_changed`]), that is longer than `limit` or that does not parse is an error.
    pub fn next<M: DeserializeOwned>(&mut self, limit: usize) -> io::Result<Option<M>> {
        let Some(body) = self.whole(limit)? else { return Ok(None) };
        let message = postcard::from_bytes(&self.bytes[body.clone()]).map_err(|e| {
            let what = format!("a frame that does not parse: {e}");
            io::Error::new(ErrorKind::InvalidData, what)
        })?;
        self.start = body.end + TAG;
        if self.start == self.bytes.len() {
            self.start = 0;
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
        }
        Ok(Some(message))
    }

    /// Where the body of the next frame lies, if all of it is here and the other end wrote it.
    fn whole(&mut self, limit: usize) -> io::Result<Option<Range<usize>>> {
        let Some((head, rest)) = self.bytes[self.start..].split_first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*head.first_chunk().expect("twice 4"));
        let complement = u32::from_le_bytes(*head.last_chunk().expect("twice 4"));
        if length != !complement {
            return Err(changed(()));
        }
        let length = length as usize;
        if length > limit {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("a frame of {length} bytes, more than {limit}"),
            ));
        }
        let Some(rest) = rest.get(..length + TAG) else { return Ok(None) };
        let (body, tag) = rest.split_last_chunk::<TAG>().expect("as long as both");
        if !self.tags.check(body, tag) {
            return Err(changed(()));
        }
        let begin = self.start + HEAD;
        Ok(Some(begin..begin + length))
    }

    /// Take the next frame without making anything of it: the length and the hash of its body.
    #[cfg(test)]
    pub fn skip(&mut self, limit: usize) -> io::Result<Option<(usize, blake3::Hash)>> {
        let Some(body) = self.whole(limit)? else { return Ok(None) };
        let skipped = (body.len(), blake3::hash(&self.bytes[body.clone()]));
        self.start = body.end + TAG;
        Ok(Some(skipped))
    }
}

/// Append what `opener` has to `bytes`.
fn open(opener: &mut Opener, chunk: &mut [u8], bytes: &mut Vec<u8>) -> io::Result<()> {
    let failed = |e: io::Error| if e.kind() == ErrorKind::InvalidData { changed(e) } else { e };
    loop {
        match opener.take(&mut [IoSliceMut::new(chunk)]).map_err(failed)? {
            0 => return Ok(()),
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
}
