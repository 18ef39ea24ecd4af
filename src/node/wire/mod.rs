//! How frames become bytes on a control connection, and become frames again.
//!
//! ```text
//! | length: u32 | its complement: u32 | `length` bytes of postcard, the body | tag: 16 bytes |
//! ```
//! A reader sets a bound on the length before it keeps anything, and holds only bytes that have
//! arrived: a length by itself allocates nothing. The complement is there so that a length that was
//! changed on the way is found at once, and not when as many bytes have come; what tells that
//! anything was changed is the tag ([`super::tag`]). All of it may be within encrypted records
//! besides. A writer keeps a queue, since a connection takes only so much at a time; a body that
//! goes to many connections is serialised once, and all their queues hold the same bytes.

mod inbox;
mod outbox;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};

pub(super) use self::inbox::Inbox;
pub(super) use self::outbox::{Body, Outbox};

/// Bytes before a frame's body: its length, twice.
const HEAD: usize = 8;
/// How many bytes are read at a time.
const CHUNK: usize = 16 << 10;

/// What came on a control connection is not what its other end wrote.
#[derive(Debug, thiserror::Error)]
#[error("bytes that were changed on the way")]
struct Changed;

fn changed<E>(_: E) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, Changed)
}

/// Whether a control connection ends because what came on it was changed on the way.
pub(super) fn is_changed(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Changed>())
}

/// What becomes of a rank whose control connection is one of [`is_changed`], for people: the same
/// at both ends.
pub(super) fn changed_on_the_way(hub: &str) -> String {
    format!(
        "bytes were changed on the way between its host and host {hub}, which holds the job \
         together; look at what is between the two hosts"
    )
}
