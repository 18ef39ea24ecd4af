//! A listening socket and the guests at it: connections that have not shown the job's key yet.
//!
//! A [`Door`] lives in an epoll loop (the hub's or a node's) and never waits. A guest has a few seconds; when too many
//! stand there, the one that has stood longest goes, so strangers who connect and say nothing cannot keep a rank out
//! for long.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::auth::{Errand, Guest, Key, Purpose, Standing};

/// How long a guest has to show the key.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many guests may stand at a door.
const CROWD: usize = 512;
/// How long a door stays shut when the process has run out of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The place of a token's kind: the bits below are for the loop's parts to use.
const KIND_SHIFT: u32 = 56;

/// An epoll token: which part of the loop it is for, and which of that part's sockets.
pub(super) fn token(kind: u8, id: u64) -> u64 {
    u64::from(kind) << KIND_SHIFT | id
}

/// The two parts of a token.
pub(super) fn split(token: u64) -> (u8, u64) {
    ((token >> KIND_SHIFT) as u8, token & ((1 << KIND_SHIFT) - 1))
}

/// A listener as a door needs it.
pub(super) trait Listen: AsFd {
    /// What comes in.
    type Stream: Read + Write + AsFd;
    /// The next connection, non-blocking.
    fn admit(&self) -> io::Result<Self::Stream>;
}

impl Listen for TcpListener {
    type Stream = TcpStream;
    fn admit(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept()?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;
    fn admit(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.accept()?;
        stream.set_nonblocking(true)?;
        // Abstract sockets have no file permissions: the kernel's word on who calls takes their place.
        let caller = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)?;
        if caller.uid() != nix::unistd::geteuid().as_raw() {
            return Err(ErrorKind::PermissionDenied.into());
        }
        Ok(stream)
    }
}

/// See the [module](self).
pub(super) struct Door<L: Listen> {
    listener: L,
    kind: u8,
    purpose: Purpose,
    me: u32,
    key: Key,
    /// By arrival; the listener itself is number 0.
    guests: BTreeMap<u64, Guest<L::Stream>>,
    arrivals: u64,
    shut_until: Option<Instant>,
}

impl<L: Listen> Door<L> {
    /// Serve `listener` (non-blocking) in `epoll`, with tokens of `kind`, for callers of `me` with `purpose`.
    pub fn open(listener: L, kind: u8, purpose: Purpose, me: u32, key: Key, epoll: &Epoll) -> io::Result<Door<L>> {
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, token(kind, 0)))?;
        Ok(Door { listener, kind, purpose, me, key, guests: BTreeMap::new(), arrivals: 0, shut_until: None })
    }

    /// Something happened at number `id` of this door. Those who have shown the key are appended to `admitted`; they
    /// are no longer in `epoll`.
    pub fn attend(&mut self, id: u64, epoll: &Epoll, admitted: &mut Vec<(L::Stream, Errand)>) {
        if id != 0 {
            return self.hear(id, epoll, admitted);
        }
        loop {
            match self.listener.admit() {
                Ok(stream) => {
                    self.arrivals += 1;
                    let id = self.arrivals;
                    if self.guests.len() >= CROWD {
                        self.guests.pop_first();
                    }
                    if epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, token(self.kind, id))).is_ok() {
                        self.guests.insert(id, Guest::new(stream, Instant::now() + PATIENCE));
                        self.hear(id, epoll, admitted);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e)
                    if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) =>
                {
                    tracing::warn!("cannot accept a connection: {e}");
                    if self.guests.pop_first().is_none() {
                        let _ = epoll.delete(&self.listener);
                        self.shut_until = Some(Instant::now() + PAUSE);
                        return;
                    }
                }
                // The caller went away meanwhile or is not ours; the next may be.
                Err(_) => {}
            }
        }
    }

    fn hear(&mut self, id: u64, epoll: &Epoll, admitted: &mut Vec<(L::Stream, Errand)>) {
        let Some(guest) = self.guests.get_mut(&id) else { return };
        match guest.advance(&self.key, self.me, self.purpose) {
            Standing::Waiting => {}
            Standing::Admitted(errand) => {
                let stream = self.guests.remove(&id).expect("found above").into_stream();
                let _ = epoll.delete(&stream);
                admitted.push((stream, errand));
            }
            Standing::Rejected(why) => {
                tracing::debug!("closed a connection for {:?}: {why}", self.purpose);
                self.guests.remove(&id);
            }
        }
    }

    /// Close those whose time is up, and listen again after a pause.
    pub fn sweep(&mut self, now: Instant, epoll: &Epoll) {
        while self.guests.first_key_value().is_some_and(|(_, guest)| guest.deadline <= now) {
            self.guests.pop_first();
        }
        if self.shut_until.is_some_and(|until| until <= now) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token(self.kind, 0));
            self.shut_until = epoll.add(&self.listener, event).err().map(|_| now + PAUSE);
        }
    }

    /// When [`Door::sweep`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let oldest = self.guests.first_key_value().map(|(_, guest)| guest.deadline);
        [oldest, self.shut_until].into_iter().flatten().min()
    }
}
