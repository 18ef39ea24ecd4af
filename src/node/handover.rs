//! Passing a file descriptor (a memfd, shared memory without a file) to another process of this
//! host, over an abstract unix socket.
//!
//! The fetcher connects, both sides show the key ([`super::auth`]) and check that the other runs as
//! the same user, and the owner answers with one byte and the descriptor as soon as it has one to
//! give.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_transports::fork;
use nix::cmsg_space;
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use super::Node;
use super::auth::{Errand, Purpose, Refusal, knock, wait};
use super::key::Key;
use crate::descriptors;
use crate::error::{self, Error};
use crate::running::Limit;

/// Between attempts to connect.
const RETRY: Duration = Duration::from_millis(2);

impl Node {
    /// Offer `fd` (a memfd) to the ranks of this host that fetch number `number` for `context`,
    /// until [`Node::unshare_fd`] or [`Node::unregister`].
    pub fn share_fd(&self, context: u64, number: u32, fd: OwnedFd) {
        fork::close_in_children(&fd);
        self.shared.offered.lock().insert((context, number), Arc::new(fd));
        self.shared.ring();
    }

    /// Fetch what world rank `peer`, on the same host, shares as number `number` for `context`.
    /// Blocks until it does, at most for the time `within`, or until the communicator has a
    /// verdict.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] naming the peer and what is wrong; [`Error::Failed`] if there is a
    /// verdict.
    pub fn fetch_fd(&self, peer: usize, context: u64, number: u32, within: Duration) -> error::Result<OwnedFd> {
        let shared = &self.shared;
        let watch = shared.contexts.lock().get(&context).map(|r| (r.watch.clone(), r.me));
        let limit = Limit::after(within);
        let give_up = || {
            limit.left();
            watch.as_ref().is_some_and(|(w, _)| w.raised())
        };
        let (start, other) = (Instant::now(), &shared.peers[peer]);
        let errand = Errand {
            purpose: Purpose::Local,
            sealed: false,
            from: shared.rank as u32,
            to: peer as u32,
            context,
            channel: number,
            index: 0,
            total: 1,
        };
        let fetched = loop {
            match fetch(&other.local, &shared.key, &errand, limit.if_not_stopped(), &give_up) {
                Err(Refusal::Silent) if !limit.has_passed() => {}
                fetched => break fetched,
            }
        };
        fetched.map_err(|refusal| match watch.as_ref().and_then(|(w, me)| Some((w.verdict()?, *me))) {
            Some((verdict, rank)) => Error::Failed { rank, verdict },
            None => Error::bootstrap(format!(
                "world rank {} could not get shared memory from world rank {peer} (process {} on \
                 host {}) within {:.1?}: {}; if the ranks are in different containers, set \
                 MAYPOLE_TRANSPORT=tcp",
                shared.rank,
                other.pid,
                other.host,
                start.elapsed(),
                descriptors::explain(refusal)
            )),
        })
    }

    /// Offer the descriptor no longer. Ranks that have fetched it keep theirs.
    pub fn unshare_fd(&self, context: u64, number: u32) {
        self.shared.offered.lock().remove(&(context, number));
    }
}

/// A unix socket whose writes never raise `SIGPIPE`: this runs on the application's threads.
struct Quiet(Socket);

impl Read for Quiet {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Quiet {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.0.send_with_flags(from, libc::MSG_NOSIGNAL)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Quiet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Give `fd` to the fetcher at the other end.
pub(super) fn give(to: &UnixStream, fd: &OwnedFd) -> io::Result<()> {
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(
        to.as_raw_fd(),
        &[IoSlice::new(b"!")],
        &rights,
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        None,
    )?;
    Ok(())
}

/// Fetch the descriptor of `errand` from the owner of the abstract socket `name`. Blocks until it
/// is given, `deadline`, or `give_up`.
pub(super) fn fetch(
    name: &str,
    key: &Key,
    errand: &Errand,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> Result<OwnedFd, Refusal> {
    let mut ran_out: Option<Instant> = None;
    loop {
        let result = attempt(name, key, errand, deadline, give_up);
        let none_left = matches!(&result, Err(Refusal::Io(e)) if descriptors::ran_out(e));
        ran_out = none_left.then(|| ran_out.unwrap_or_else(Instant::now));
        match result {
            _ if ran_out.is_some_and(|since| since.elapsed() >= descriptors::PATIENCE) => return result,
            Err(Refusal::Io(e)) if e.kind() == io::ErrorKind::PermissionDenied => return Err(e.into()),
            // The owner may have been busy or its queue full.
            Err(Refusal::Closed | Refusal::Io(_)) if Instant::now() + RETRY < deadline && !give_up() => {
                std::thread::sleep(RETRY)
            }
            other => return other,
        }
    }
}

fn attempt(
    name: &str,
    key: &Key,
    errand: &Errand,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> Result<OwnedFd, Refusal> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fork::close_in_children(&socket);
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(format!("\0{name}"))?)?;
    let owner = getsockopt(&socket, sockopt::PeerCredentials).map_err(io::Error::from)?;
    if owner.uid() != nix::unistd::geteuid().as_raw() {
        let what = format!("the process there runs as user {}, not as this one", owner.uid());
        return Err(Refusal::Io(io::Error::new(io::ErrorKind::PermissionDenied, what)));
    }
    let mut socket = Quiet(socket);
    knock(&mut socket, key, errand, deadline, give_up)?;
    wait(&socket, PollFlags::POLLIN, deadline, give_up)?;
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([std::os::fd::RawFd; 1]);
    let message = recvmsg::<()>(socket.0.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
        .map_err(io::Error::from)?;
    // So the kernel says that it had a descriptor for us and we no room for it.
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMFILE).into());
    }
    let given = message.cmsgs().map_err(io::Error::from)?.find_map(|m| match m {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let fd = given.ok_or(Refusal::Closed)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else in the process knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fork::close_in_children(&fd);
    Ok(fd)
}
