//! Passing a file descriptor (a memfd, shared memory without a file) to another process of this host, over an abstract
//! unix socket.
//!
//! The fetcher connects, both sides show the key ([`super::auth`]) and check that the other runs as the same user, and
//! the owner answers with one byte and the descriptor as soon as it has one to give.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use maypole_transports::fork;
use nix::cmsg_space;
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use super::auth::{Errand, Refusal, knock, wait};
use super::key::Key;
use crate::descriptors;

/// Between attempts to connect.
const RETRY: Duration = Duration::from_millis(2);

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

/// Fetch the descriptor of `errand` from the owner of the abstract socket `name`. Blocks until it is given, `deadline`,
/// or `give_up`.
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
