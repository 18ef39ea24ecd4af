//! The system calls: one attempt to write to or read from one socket, and what its outcome means for a link.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use socket2::SockRef;

use super::seal::Seal;
use super::wire::Wire;
use crate::{LinkError, Result};

/// Bytes that are read and thrown away at most when a link is closed, see [`Connections`]'s `Drop`.
const DISCARD: usize = 4 << 20;

/// The sockets between two ranks on one channel, shared by the two halves of the link pair.
#[derive(Debug)]
pub(super) struct Connections {
    streams: Vec<TcpStream>,
    /// One for each of `streams`, or none at all.
    seals: Vec<Arc<Seal>>,
}

/// What one attempt to read brought.
#[derive(Debug)]
pub(super) enum Arrival {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing is there at the moment.
    Nothing,
    /// Nothing will ever come again.
    Closed(Closed),
}

/// How a connection ended.
#[derive(Clone, Debug)]
pub(super) struct Closed {
    /// Whether it broke, so that bytes may be lost, rather than being closed by the peer after its last byte.
    pub broken: bool,
    /// How this end noticed.
    pub detail: String,
}

impl Closed {
    pub fn error(&self) -> LinkError {
        LinkError::Gone { detail: self.detail.clone() }
    }
}

impl Connections {
    pub fn new(wires: Vec<Wire>) -> Result<Self> {
        let (streams, seals): (Vec<_>, Vec<_>) = wires.into_iter().map(|wire| (wire.stream, wire.seal)).unzip();
        let seals: Vec<_> = seals.into_iter().flatten().map(Arc::new).collect();
        assert!(seals.is_empty() || seals.len() == streams.len(), "a link is encrypted as a whole");
        for stream in &streams {
            let prepare = |stream: &TcpStream| {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)
            };
            prepare(stream).map_err(|source| LinkError::Io { doing: "preparing a TCP connection", source })?;
            if within_host(stream) {
                // Where this is refused, the host's default does as well.
                let _ = SockRef::from(stream).set_tcp_congestion(b"reno");
            }
        }
        Ok(Self { streams, seals })
    }

    /// Over sockets of any kind, as they are.
    #[cfg(any(test, fuzzing))]
    pub fn of(streams: Vec<TcpStream>) -> Connections {
        Connections { streams, seals: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// The keys of each connection; none if they are not encrypted.
    pub fn seals(&self) -> impl Iterator<Item = Arc<Seal>> {
        self.seals.iter().cloned()
    }

    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.streams.iter().map(AsFd::as_fd)
    }

    /// Have a connection refuse more than about `bytes` that it could not send on yet, so that the caller finds out
    /// early which connection is slow. A hint: where the system does not know it, connections are filled to the
    /// kernel's limit.
    pub fn limit_unsent(&self, bytes: u32) {
        for stream in &self.streams {
            let _ = SockRef::from(stream).set_tcp_notsent_lowat(bytes);
        }
    }

    /// One attempt to write `parts` in order to connection `index`; returns how many bytes it took, 0 when it is full.
    pub fn write(&self, index: usize, parts: &[IoSlice<'_>]) -> Result<usize> {
        let socket = SockRef::from(&self.streams[index]);
        // No SIGPIPE: a library must not depend on what its host program does with signals.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        loop {
            let outcome = match parts {
                [only] => socket.send_with_flags(only, flags),
                _ => socket.send_vectored_with_flags(parts, flags),
            };
            match outcome {
                Ok(n) => return Ok(n),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(e) if breaks(&e) => return Err(LinkError::Gone { detail: self.say(index, "sending failed", &e) }),
                Err(source) => return Err(LinkError::Io { doing: "sending on a TCP connection", source }),
            }
        }
    }

    /// One attempt to read from connection `index` into `parts` in order. The parts must have room for at least one
    /// byte.
    pub fn read(&self, index: usize, parts: &mut [IoSliceMut<'_>]) -> Result<Arrival> {
        let mut stream = &self.streams[index];
        loop {
            let outcome = match parts {
                [only] => stream.read(only),
                _ => stream.read_vectored(parts),
            };
            match outcome {
                Ok(0) => {
                    let detail = format!("{} was closed by the other end", self.name(index));
                    return Ok(Arrival::Closed(Closed { broken: false, detail }));
                }
                Ok(n) => return Ok(Arrival::Bytes(n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Arrival::Nothing),
                Err(e) if breaks(&e) => {
                    let detail = self.say(index, "receiving failed", &e);
                    return Ok(Arrival::Closed(Closed { broken: true, detail }));
                }
                Err(source) => return Err(LinkError::Io { doing: "receiving on a TCP connection", source }),
            }
        }
    }

    /// Close one or both directions of all connections. They may be closed or broken already, which is as good.
    pub fn shutdown(&self, how: Shutdown) {
        for stream in &self.streams {
            let _ = stream.shutdown(how);
        }
    }

    fn say(&self, index: usize, what: &str, error: &io::Error) -> String {
        format!("{what} on {}: {error}", self.name(index))
    }

    /// A connection by its addresses, for messages.
    pub fn name(&self, index: usize) -> String {
        let stream = &self.streams[index];
        let end = |address: io::Result<std::net::SocketAddr>| address.map_or("?".to_owned(), |a| a.to_string());
        let which = if self.len() > 1 { format!(" {} of {}", index + 1, self.len()) } else { String::new() };
        // A broken connection no longer knows its peer's address.
        format!("connection{which} from {} to {}", end(stream.local_addr()), end(stream.peer_addr()))
    }
}

/// Closing a socket whose received bytes nobody has read makes Linux reset the connection, which would also destroy
/// bytes that this rank sent just before and that are still under way. So they are read first, as far as they are
/// there.
impl Drop for Connections {
    fn drop(&mut self) {
        self.shutdown(Shutdown::Write);
        let mut scratch = [0; 16 << 10];
        let mut left = DISCARD;
        for index in 0..self.len() {
            while left > 0 {
                match self.read(index, &mut [IoSliceMut::new(&mut scratch)]) {
                    Ok(Arrival::Bytes(n)) => left = left.saturating_sub(n),
                    _ => break,
                }
            }
        }
    }
}

/// Whether both ends are on this host. Nothing is lost or congested there, so the plainest congestion control is the
/// fastest: a host whose default paces its packets (BBR) moved 1.1 to 1.7 times less over loopback than with Reno,
/// which every Linux has.
fn within_host(stream: &TcpStream) -> bool {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(ours), Ok(theirs)) => ours.ip() == theirs.ip() || theirs.ip().is_loopback(),
        _ => false,
    }
}

/// Whether an error of a socket call means that the connection is no more, as opposed to a call that went wrong.
fn breaks(error: &io::Error) -> bool {
    use ErrorKind::*;
    matches!(
        error.kind(),
        ConnectionReset
            | ConnectionAborted
            | BrokenPipe
            | NotConnected
            | TimedOut
            | HostUnreachable
            | NetworkUnreachable
            | NetworkDown
    )
}
