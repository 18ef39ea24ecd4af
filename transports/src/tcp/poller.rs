//! Sleeping until a socket has something to say, or another thread does.
//!
//! The set is edge-triggered: [`Poller::sleep`] returns for what has *changed* since it last returned, bytes that
//! arrived, room that appeared, a connection that ended. A socket whose state stays as it is wakes nobody, so a rank
//! can sleep beside a full receive buffer (its peer is ahead, and its credit is used up) or a closed connection (a peer
//! that is done), for which a level-triggered set would return at once for ever. The price is a rule for the caller:
//!
//! > Between two sleeps, try everything you wait for until it makes no progress: `peek`, `recv`, `send`, `flush` of the
//! > links you use, `absorb` of the others.
//!
//! A change before the last such try was seen by it; a change after it is still pending in the set and ends the next
//! sleep at once. Hence no wakeup is lost. It also needs no announcement of interest in writing: a socket that refused
//! bytes reports when it has room again.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A set of sockets to sleep on, with a [`Waker`].
#[derive(Debug)]
pub struct Poller {
    set: Epoll,
    waker: Waker,
}

/// Ends a [`Poller`]'s sleep, from any thread. A wake while nobody sleeps ends the next sleep at once.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<EventFd>,
}

impl Poller {
    /// A poller with no sockets yet: it sleeps until woken.
    ///
    /// # Errors
    ///
    /// What the system says, such as when the process has no file descriptors left.
    pub fn new() -> io::Result<Self> {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        // Edge-triggered, the counter need not be read back: each write is a new edge.
        set.add(&event, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
        Ok(Self { set, waker: Waker { event: Arc::new(event) } })
    }

    /// Wake for this socket from now on: for arrivals, for room after it was full, and for its end. A socket already in
    /// the set stays in it.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn add(&self, fd: impl AsFd) -> io::Result<()> {
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        match self.set.add(fd, EpollEvent::new(events, 1)) {
            Err(Errno::EEXIST) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    /// Wake for this socket no more. A socket not in the set is no error. Closing a socket also removes it,
    /// unless another process holds a copy; then each thing that happens to it wakes once more, for nothing.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        match self.set.delete(fd) {
            Err(Errno::ENOENT) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    /// Block until something has changed, a [`Waker`] is used, a signal is handled or `at_most` is over (above a
    /// millisecond rounded up to whole ones). It may return without a reason: the caller looks again in any case. See
    /// the module's rule.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn sleep(&self, at_most: Duration) -> io::Result<()> {
        let at_most = if at_most < Duration::from_millis(1) { self.nap(at_most)? } else { at_most };
        let milliseconds = at_most.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
        let timeout = EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX);
        // Which socket it was does not matter, the caller tries all. Events that do not fit are reported by the next
        // sleep.
        let mut events = [EpollEvent::empty(); 64];
        match self.set.wait(&mut events, timeout) {
            // Go back to the caller rather than to sleep: the signal's handler may have set what it waits for.
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// epoll counts in milliseconds, so what is shorter is slept beside the set, which is itself readable while it has
    /// something to report. Returns what is left to sleep: nothing.
    fn nap(&self, at_most: Duration) -> io::Result<Duration> {
        if !at_most.is_zero() {
            let mut set = [PollFd::new(self.set.0.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut set, Some(at_most.into()), None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Duration::ZERO)
    }

    /// A handle to end sleeps with, to be given to other threads.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Waker {
    /// End the sleep under way, or the next one.
    pub fn wake(&self) {
        // The only failure is a counter at its limit, and then the event has been pending all along.
        let _ = self.event.write(1);
    }
}
