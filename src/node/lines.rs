//! The hub's control connections, and what is queued for each.
//!
//! The hub has one for every rank, and wakes up for each frame of each. So nothing here looks at all of them: those that
//! have something to write, those that wait for room and those that have yet to introduce themselves are listed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use maypole_transports::tcp;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::door::token;
use super::frame::ToNode;
use super::session::Session;
use super::tag::Writer;
use super::wire::{Body, Inbox, Outbox};

/// How long a connection that has shown the key has to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// Bytes that a connection may leave unread before it counts as dead.
const BACKLOG: usize = 512 << 20;
/// How often something is read and thrown away at most before a connection is closed.
const DISCARDED: usize = 64;
/// How long it is remembered which hosts do not answer: where a network is cut, connections end by the hundred.
const UNANSWERED: Duration = Duration::from_secs(1);

/// A control connection that has shown the key.
pub(super) struct Line {
    pub stream: TcpStream,
    /// The rank as which it has shown the key.
    pub caller: usize,
    pub inbox: Inbox,
    outbox: Outbox,
    /// The rank as which it has introduced itself, and whether that is a thread of the hub's own process.
    pub known: Option<(usize, bool)>,
    /// The process as which it has, see [`super::frame::Hello::process`].
    pub process: u64,
}

impl Line {
    /// Write a frame on a connection that is about to be closed, as far as it takes it now.
    pub fn last_words(&mut self, message: &ToNode) {
        self.outbox.push(message);
        let _ = self.outbox.flush(&self.stream);
        let _ = self.stream.shutdown(Shutdown::Write);
        // Closing while there is something to read would be a reset, which may overtake what was just written.
        let mut scratch = [0; 16 << 10];
        for _ in 0..DISCARDED {
            if !matches!((&self.stream).read(&mut scratch), Ok(1..)) {
                return;
            }
        }
    }
}

/// Why a connection has to be given up.
pub(super) enum Fault {
    /// Its process takes nothing in.
    Deaf,
    /// The system says so.
    Failed(io::Error),
}

/// See the [module](self).
pub(super) struct Lines {
    /// The kind of their tokens in the hub's loop.
    kind: u8,
    lines: HashMap<u64, Line>,
    latest: u64,
    /// By arrival, those that may not have introduced themselves, and when they must have.
    strangers: VecDeque<(Instant, u64)>,
    /// Those for which something is queued. All others have nothing to write, or are in `blocked`.
    queued: Vec<u64>,
    /// Those that took only a part, and for whose room epoll watches.
    blocked: HashSet<u64>,
    /// Ranks whose hosts did not answer, and when that was seen.
    unanswered: Option<(Instant, Vec<usize>)>,
}

impl Lines {
    pub fn new(kind: u8) -> Lines {
        Lines {
            kind,
            lines: HashMap::new(),
            latest: 0,
            strangers: VecDeque::new(),
            queued: Vec::new(),
            blocked: HashSet::new(),
            unanswered: None,
        }
    }

    /// Take in a connection; its number. `None` if the system refuses to watch it.
    pub fn add(&mut self, stream: TcpStream, caller: usize, session: Session, epoll: &Epoll) -> Option<u64> {
        let id = self.latest + 1;
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, token(self.kind, id))).ok()?;
        self.latest = id;
        let (inbox, outbox) = session.into_frames(Writer::Hub);
        self.lines.insert(id, Line { stream, caller, inbox, outbox, known: None, process: 0 });
        self.strangers.push_back((Instant::now() + INTRODUCTION, id));
        Some(id)
    }

    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn get(&self, id: u64) -> Option<&Line> {
        self.lines.get(&id)
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut Line> {
        self.lines.get_mut(&id)
    }

    /// All of them, with their numbers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Line)> {
        self.lines.iter().map(|(id, line)| (*id, line))
    }

    /// Those whose processes have introduced themselves, in no order.
    pub fn known(&self) -> Vec<u64> {
        self.iter().filter(|(_, line)| line.known.is_some()).map(|(id, _)| id).collect()
    }

    /// Take a connection out, to be closed.
    pub fn remove(&mut self, id: u64, epoll: &Epoll) -> Option<Line> {
        self.blocked.remove(&id);
        let line = self.lines.remove(&id)?;
        // A child that no handler has seen may hold a copy, for which epoll would go on to report what nobody reads.
        let _ = epoll.delete(&line.stream);
        Some(line)
    }

    /// Queue a frame.
    pub fn send(&mut self, id: u64, message: &ToNode) {
        self.queue(id, |outbox| outbox.push(message));
    }

    /// Queue a frame that others get, too.
    pub fn share(&mut self, id: u64, body: &Body) {
        self.queue(id, |outbox| outbox.share(body));
    }

    fn queue(&mut self, id: u64, put: impl FnOnce(&mut Outbox)) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        let was_empty = line.outbox.backlog() == 0;
        put(&mut line.outbox);
        if was_empty || line.outbox.backlog() > BACKLOG {
            self.queued.push(id);
        }
    }

    /// Epoll says that there is room on connection `id`.
    pub fn has_room(&mut self, id: u64) {
        if self.blocked.contains(&id) {
            self.queued.push(id);
        }
    }

    /// Take it that all connections have room: nobody waits for epoll any more.
    pub fn try_again(&mut self) {
        self.queued.extend(&self.blocked);
    }

    /// Whether something has yet to be written, to connections other than `except`.
    pub fn any_unsent(&self, except: &HashSet<u64>) -> bool {
        self.queued.iter().chain(&self.blocked).any(|id| !except.contains(id) && self.lines.contains_key(id))
    }

    /// Write what is queued, as far as the connections take it. Returns those that are to be given up.
    pub fn flush(&mut self, epoll: &Epoll) -> Vec<(u64, Fault)> {
        let mut faults = Vec::new();
        for id in std::mem::take(&mut self.queued) {
            let Some(line) = self.lines.get_mut(&id) else { continue };
            let done = match line.outbox.flush(&line.stream) {
                Ok(done) => done,
                Err(e) => {
                    faults.push((id, Fault::Failed(e)));
                    continue;
                }
            };
            let changed = if done { self.blocked.remove(&id) } else { self.blocked.insert(id) };
            if changed {
                let more = if done { EpollFlags::empty() } else { EpollFlags::EPOLLOUT };
                let mut event = EpollEvent::new(EpollFlags::EPOLLIN | more, token(self.kind, id));
                let _ = epoll.modify(&line.stream, &mut event);
            }
            if line.outbox.backlog() > BACKLOG {
                faults.push((id, Fault::Deaf));
            }
        }
        faults
    }

    /// Close those that have not introduced themselves in time.
    pub fn sweep(&mut self, now: Instant, epoll: &Epoll) {
        while let Some(&(_, id)) = self.strangers.front().filter(|(until, _)| *until <= now) {
            self.strangers.pop_front();
            if self.lines.get(&id).is_some_and(|line| line.known.is_none()) {
                self.remove(id, epoll);
            }
        }
    }

    /// When [`Lines::sweep`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.strangers.front().map(|(until, _)| *until)
    }

    /// Ranks from whose hosts nothing comes at the moment, in order.
    pub fn unanswered(&mut self, now: Instant) -> &[usize] {
        if self.unanswered.as_ref().is_none_or(|(seen, _)| *seen + UNANSWERED <= now) {
            let silent = self.lines.values().filter(|line| tcp::is_unanswered(&line.stream));
            let mut ranks: Vec<usize> = silent.filter_map(|line| Some(line.known?.0)).collect();
            ranks.sort_unstable();
            self.unanswered = Some((now, ranks));
        }
        self.unanswered.as_ref().map_or(&[], |(_, ranks)| ranks)
    }
}
