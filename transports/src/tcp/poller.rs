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
//!
//! # Links that nobody waits for
//!
//! To try every link between two sleeps takes a system call for each, and most of a thousand links
//! are idle. So the set also says which links have *news*: sockets that were added by number
//! ([`Poller::add_link`]) are marked when something has changed, by [`Poller::look`], one system
//! call for all of them, and by sleeps; [`Poller::take_news`] hands the marks out. Then the rule is
//!
//! > Between two sleeps, try everything you wait for, and look; of the other links `absorb` those
//! > that have news. One of which there may be more has news again ([`Poller::keep`]): it brought
//! > bytes, or [is behind](crate::Receiver::is_behind).
//!
//! What a look has seen, a sleep would not report any more, and it may be what the caller tried
//! just before. So a look that saw anything ends the next sleep at once, and everything is tried
//! again. Nobody looks while another thread sleeps here.
//!
//! No link is forgotten: where bytes lie in a socket unread, its mark is set or its change is
//! pending in the set. For a mark is taken away *before* its link is tried. If that finds the
//! socket empty, what comes later is a new change, which sets the mark again, even if another
//! thread's sleep reports it before the try has returned. Otherwise the mark is kept. Reading a
//! link that is waited for touches no mark, and leaves one too many at worst.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// What the set says of the waker, of a socket without a number, and of link 0.
const WAKER: u64 = 0;
const PLAIN: u64 = 1;
const LINKS: u64 = 2;

/// A set of sockets to sleep on, with a [`Waker`].
#[derive(Debug)]
pub struct Poller {
    set: Epoll,
    waker: Waker,
    /// By link, 64 to a word: whether it has news.
    news: Box<[AtomicU64]>,
    /// A look has seen something since the last sleep.
    seen: AtomicBool,
}

/// Ends a [`Poller`]'s sleep, from any thread. A wake while nobody sleeps ends the next sleep at once.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<EventFd>,
}

impl Poller {
    /// A poller with no sockets yet: it sleeps until woken. `links`: how many numbers links may
    /// have.
    ///
    /// # Errors
    ///
    /// What the system says, such as when the process has no file descriptors left.
    pub fn new(links: usize) -> io::Result<Self> {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        // Edge-triggered, the counter need not be read back: each write is a new edge.
        set.add(&event, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKER))?;
        let news = (0..links.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { set, waker: Waker { event: Arc::new(event) }, news, seen: AtomicBool::new(false) })
    }

    /// Wake for this socket from now on: for arrivals, for room after it was full, and for its end. A socket already in
    /// the set stays in it.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn add(&self, fd: impl AsFd) -> io::Result<()> {
        self.watch(fd, PLAIN)
    }

    /// The same for a socket of link number `link`: it has news when something changes there, and
    /// at first.
    ///
    /// # Errors
    ///
    /// What the system says.
    ///
    /// # Panics
    ///
    /// The poller was made for fewer.
    pub fn add_link(&self, link: usize, fd: impl AsFd) -> io::Result<()> {
        self.keep(link);
        self.watch(fd, LINKS + link as u64)
    }

    fn watch(&self, fd: impl AsFd, name: u64) -> io::Result<()> {
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        match self.set.add(fd, EpollEvent::new(events, name)) {
            Err(Errno::EEXIST) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    /// Link number `link` has news (again).
    ///
    /// # Panics
    ///
    /// The poller was made for fewer.
    #[inline]
    pub fn keep(&self, link: usize) {
        self.news[link / 64].fetch_or(1 << (link % 64), Ordering::AcqRel);
    }

    /// The links that have news, by number; each mark is taken away as it is handed out.
    pub fn take_news(&self) -> impl Iterator<Item = usize> {
        let words = self.news.iter().enumerate();
        // The load keeps the words of idle links in the caches of all that look.
        let marked = words.filter(|(_, word)| word.load(Ordering::Relaxed) != 0);
        marked.flat_map(|(at, word)| {
            let marks = word.swap(0, Ordering::AcqRel);
            (0..64).filter(move |bit| marks >> bit & 1 == 1).map(move |bit| at * 64 + bit)
        })
    }

    /// See what has changed, without sleeping: afterwards [`Poller::take_news`] knows. Only while
    /// no other thread sleeps here.
    ///
    /// # Errors
    ///
    /// What the system says.
    #[inline]
    pub fn look(&self) -> io::Result<()> {
        if self.wait(EpollTimeout::ZERO)? {
            self.seen.store(true, Ordering::Relaxed);
        }
        Ok(())
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
        if self.seen.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let at_most = if at_most < Duration::from_millis(1) { self.nap(at_most)? } else { at_most };
        let milliseconds = at_most.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
        let timeout = EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX);
        self.wait(timeout).map(|_| ())
    }

    /// Returns whether anything has changed.
    fn wait(&self, timeout: EpollTimeout) -> io::Result<bool> {
        // Events that do not fit are reported by the next call.
        let mut events = [EpollEvent::empty(); 64];
        match self.set.wait(&mut events, timeout) {
            Ok(count) => {
                let links = events[..count].iter().filter_map(|event| event.data().checked_sub(LINKS));
                links.for_each(|link| self.keep(link as usize));
                Ok(count > 0)
            }
            // Go back to the caller rather than to sleep: the signal's handler may have set what it waits for.
            Err(Errno::EINTR) => Ok(false),
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
