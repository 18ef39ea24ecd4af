//! Links over TCP: for ranks that share nothing but a network.
//!
//! [`link`] turns one or several connected sockets between two ranks into both directions of a channel: a [`TcpSender`]
//! towards the peer and a [`TcpReceiver`] from it. How the sockets came to be (who listens, who may connect, over which
//! interface, IPv4 or IPv6) is the caller's business.
//!
//! # One connection
//!
//! The bytes of the link are the bytes of the connection, with nothing around them: both ends know the lengths. What
//! this module adds is the number of system calls, because on a fast network these are what a message costs:
//!
//! * A small message is one `send`: short pieces (a header, a few elements, what was written in place) are staged and
//!   leave together at the end of the message. A large slice goes straight from the caller's memory, and what was
//!   staged before it goes in the same call.
//! * A small message is one `recv`: short reads take whatever the kernel holds into a buffer, so that a header brings
//!   its payload along. A large read goes straight into the caller's memory.
//!
//! # Memory
//!
//! A link has buffers while it holds bytes, and none otherwise (`hold.rs`): what it costs to have a
//! thousand links is their sockets.
//!
//! # Credit
//!
//! The kernel's buffers have no promised size, so they cannot carry the promise of
//! [`Sender::credit`](crate::Sender::credit). The receiver's own buffer does: it holds at least `credit` bytes, and
//! [`TcpReceiver::absorb`](crate::Receiver::absorb), called while the rank waits for anything at all, moves what has
//! arrived into it. A sender may therefore get much further than its credit, and never less far.
//!
//! # Several connections
//!
//! The stream is cut into segments with a short header, each sent on whichever connection has room at that moment; the
//! receiver takes them in stream order straight from the connections. `stripe.rs` argues why that needs no memory for
//! reassembly.
//!
//! # Encryption
//!
//! Whoever connects the sockets may agree with the other end on keys ([`seal`]). Then the bytes of each connection go in
//! records (`record.rs`), below everything else here: what is above, segments included, is what they carry. A byte
//! that was changed on the way is an error of the receiver's, [`LinkError::Io`], and never handed out.
//!
//! # Ends
//!
//! Dropping a sender closes its direction: the peer's receiver gets what was sent, then
//! [`LinkError::Gone`]. Dropping a receiver closes both, because TCP has no way to tell a sender that
//! nobody reads: the peer's sender gets `Gone`, and so does this rank's own sender.
//!
//! # Waiting
//!
//! Nothing here waits. A rank with nothing to do spins for a moment and then sleeps in a [`Poller`] over the sockets of
//! its links ([`TcpSender::fds`]). One that waits for long asks [`TcpReceiver::path`] whether the network is to blame.

mod connection;
mod halves;
mod hold;
#[cfg(any(test, fuzzing))]
pub(crate) mod outside;
mod path;
mod poller;
mod receiver;
mod record;
pub mod seal;
mod sender;
mod stripe;
mod wire;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::{LinkError, Result};
use connection::Connections;

pub use path::{Path, is_unanswered};
pub use poller::{Poller, Waker};
pub use receiver::TcpReceiver;
pub use record::{Opener, Sealer};
pub use sender::TcpSender;
pub use wire::Wire;

/// Most connections that one link can have.
pub const MAX_CONNECTIONS: usize = 16;

/// Make a link pair, both directions of one channel, of the connections between two ranks.
///
/// `streams` are 1 to [`MAX_CONNECTIONS`] connected sockets; the peer must make its pair of the other ends of the same
/// connections. Their order does not matter, their number does: one connection carries bare bytes, several carry
/// segments. A [`Wire`] with keys carries records: give all of them keys, or none. `credit` (bytes) is what each direction takes before its receiver asks; both ends should give the same.
/// The sockets are made non-blocking and their small packets are not delayed. Buffer sizes are left to the kernel,
/// which adapts them to the path: fixed ones of 256 KiB moved a third more between two ranks with a core each, since
/// what is queued stays in cache, but several times less where ranks share cores and every full buffer is a change of
/// context.
///
/// # Errors
///
/// [`LinkError::Io`] if the number of connections is out of range or the system refuses a socket
/// option.
pub fn link<W: Into<Wire>>(streams: Vec<W>, credit: usize) -> Result<(TcpSender, TcpReceiver)> {
    if streams.is_empty() || streams.len() > MAX_CONNECTIONS {
        let text = format!("{} connections given, 1 to {MAX_CONNECTIONS} are possible", streams.len());
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, text);
        return Err(LinkError::Io { doing: "making a TCP link", source });
    }
    let connections = Arc::new(Connections::new(streams.into_iter().map(Into::into).collect())?);
    Ok((TcpSender::new(Arc::clone(&connections), credit), TcpReceiver::new(connections, credit)))
}

impl TcpSender {
    /// The sockets of the link pair, for [`Poller::add`]. Both halves share them: adding one half's is enough.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.connections().fds()
    }
}

impl TcpReceiver {
    /// For asking whether anything gets through to the peer.
    pub fn path(&self) -> Path {
        Path::new(self.connections())
    }

    /// The sockets of the link pair, for [`Poller::add`]. Both halves share them: adding one half's is enough.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.connections().fds()
    }
}
