//! The courier: carries what lies in device buffers from host to host.
//!
//! To a CUDA stream a link to another host looks like one to a neighbour: a ring of slots, a word that says how many are
//! filled, another that says how many are free again. Here the slots lie in pinned memory of this process, which kernels
//! read and write directly, and at the other end of the words is no stream but a thread, the courier. It sends what
//! the device has filled over the network, and receives from there into slots for the device ([`crossing`]). The two
//! hosts' couriers speak as the engine's links do: bare bytes, and the fingerprint of the operation in front of its first
//! message.
//!
//! # What overlaps
//!
//! Everything goes slot by slot and nothing waits for the end of a message. So while a slot is on the wire, the device
//! fills the next one, and on the other host the one before is being emptied. All links move at the same time, each as
//! far as it can: the courier goes round them, moves at most one slot's worth at a time, and never waits at one.
//!
//! No host thread enqueues anything for that. What the courier needs to know, which operation and how many bytes come
//! next on each link, it is told when the operation is enqueued ([`Courier::carry`]).
//!
//! # Credit
//!
//! Schedules are verified for links that take in one message before its receiver comes to it. Here the sender's own ring
//! is what takes it in, so nothing has to be absorbed on the other side, and a courier with nothing to do leaves the
//! sockets alone.
//!
//! # Sleeping
//!
//! With nothing to carry the courier sleeps until it is given something. While it waits for the network alone, it sleeps in
//! epoll. A device cannot wake it (a stream could run a host function, which would cost each slot more than the courier's
//! looking): while it waits for a word, it sleeps in naps of an eighth of what it has waited so far, at most [`NAP`], so
//! that they add an eighth to the waiting. Arriving bytes end a nap.
//!
//! # When something fails
//!
//! A link that breaks, or a fingerprint that is not ours, is reported as the engine would report it, and becomes the
//! verdict of all ranks. With a verdict the courier touches no slot and no word any more; the sentry releases the
//! streams. Deadlines are the sentry's too, since it knows when an operation has begun on its stream.

mod crossing;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole_collectives::DataType;
use maypole_transports::lock::{Condvar, Mutex};
use maypole_transports::wait::{Idle, Next};

pub(crate) use self::crossing::Passage;
use self::crossing::{Incoming, Outgoing, Progress, Signs};
pub(crate) use self::ring::Ring;
use super::sentry::Flag;
use crate::engine::lane::Trouble;
use crate::engine::routes::{DEVICE, Pair, Routes};
use crate::engine::wait::Court;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;

/// The longest nap while the device has to come first.
const NAP: Duration = Duration::from_millis(1);
/// The shortest.
const BLINK: Duration = Duration::from_micros(20);
/// The longest sleep while the network has to come first: then the courier looks whether anything gets through at all.
const LOOK: Duration = Duration::from_millis(500);
/// The longest sleep with nothing to carry.
const REST: Duration = Duration::from_secs(3600);

/// One direction of the link to a rank of another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub peer: usize,
    /// As the schedules number them, from 0.
    pub channel: usize,
    pub outward: bool,
}

impl End {
    /// From this rank to `peer`.
    pub fn to(peer: usize, channel: usize) -> End {
        End { peer, channel, outward: true }
    }

    /// From `peer` to this rank.
    pub fn from(peer: usize, channel: usize) -> End {
        End { peer, channel, outward: false }
    }
}

/// The handle to one rank's courier on one communicator. Dropping it ends the thread, with whatever it still had to
/// carry: see [`Courier::finish`].
pub(crate) struct Courier {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    routes: Routes,
    inbox: Mutex<Inbox>,
    /// Something is in the inbox; for the courier, which looks often.
    news: AtomicBool,
    /// The courier has nothing left to carry.
    idle: Condvar,
}

#[derive(Default)]
struct Inbox {
    rings: Vec<(End, Ring)>,
    passages: Vec<(End, Passage)>,
    stop: bool,
    /// The courier sleeps, or is about to, and has seen all that was in the inbox.
    asleep: bool,
    /// It has nothing to carry, or it carries no more.
    idle: bool,
}

impl Courier {
    /// Start the thread. `routes`: to the ranks of other hosts, for this courier alone. `trouble`: not 0 once a job of
    /// this rank has found another operation's data.
    ///
    /// # Errors
    /// [`Error::System`] if there can be no thread.
    pub fn start(routes: Routes, court: Court, trouble: Flag) -> Result<Courier> {
        let rest = routes.rest().clone();
        court.watch.on_verdict(Box::new(move || rest.wake()));
        let rank = court.me;
        let shared = Arc::new(Shared {
            routes,
            inbox: Mutex::new(Inbox { idle: true, ..Inbox::default() }),
            news: AtomicBool::new(false),
            idle: Condvar::new(),
        });
        let signs = Signs { watch: court.watch.clone(), trouble };
        let rounds = Rounds { shared: shared.clone(), court, signs, lines: Vec::new(), index: HashMap::new() };
        let thread = std::thread::Builder::new().name("maypole-courier".into()).spawn(move || rounds.run());
        let thread = thread.map_err(|e| Error::system(format!("rank {rank}: starting the courier's thread"), e))?;
        Ok(Courier { shared, thread: Some(thread) })
    }

    /// From now on `end` goes through `ring`. Once for each end, before its first passage.
    pub fn open(&self, end: End, ring: Ring) {
        self.tell(|inbox| inbox.rings.push((end, ring)));
    }

    /// Carry these as well, those of each end in this order. Returns at once.
    pub fn carry(&self, passages: &[(End, Passage)]) {
        if !passages.is_empty() {
            self.tell(|inbox| inbox.passages.extend_from_slice(passages));
        }
    }

    /// Wait until everything is carried, what was sent is with the kernel, or there is a verdict, but no longer than
    /// `at_most`. Returns whether so.
    pub fn finish(&self, at_most: Duration) -> bool {
        let mut inbox = self.shared.inbox.lock();
        self.shared.idle.wait_while_for(&mut inbox, |inbox| !inbox.idle, at_most);
        inbox.idle
    }

    fn tell(&self, what: impl FnOnce(&mut Inbox)) {
        let mut inbox = self.shared.inbox.lock();
        what(&mut inbox);
        inbox.idle &= inbox.passages.is_empty();
        self.shared.news.store(true, Ordering::Release);
        if std::mem::take(&mut inbox.asleep) {
            self.shared.routes.rest().wake();
        }
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.tell(|inbox| inbox.stop = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What went wrong on a line, and in which operation.
struct Failure {
    trouble: Trouble,
    operation: Fingerprint,
}

/// Both directions between this rank and another on one channel.
struct Line {
    peer: usize,
    channel: usize,
    connection: Option<Pair>,
    outgoing: Option<Outgoing>,
    incoming: Option<Incoming>,
}

impl Line {
    fn is_idle(&self) -> bool {
        self.outgoing.as_ref().is_none_or(Outgoing::is_idle) && self.incoming.as_ref().is_none_or(Incoming::is_idle)
    }

    /// Both directions as far as one slot each.
    fn advance(&mut self, routes: &Routes, signs: &Signs) -> std::result::Result<[Progress; 2], Box<Failure>> {
        let Line { peer, channel, connection, outgoing, incoming } = self;
        let peer = *peer;
        let unknown = || Fingerprint::point_to_point(0, DataType::U8, 0, (routes.me, peer), 0);
        let in_outgoing = outgoing.as_ref().and_then(Outgoing::operation);
        let in_incoming = incoming.as_ref().and_then(Incoming::operation);
        let named = |operation: Option<Fingerprint>| {
            let operation = operation.unwrap_or_else(unknown);
            move |trouble| Box::new(Failure { trouble, operation })
        };
        let (tx, rx) = match connection {
            Some((tx, rx)) => (tx, rx),
            none => match routes.link(peer, DEVICE + *channel).map_err(named(in_outgoing.or(in_incoming)))? {
                Some(pair) => {
                    let (tx, rx) = none.insert(pair);
                    (tx, rx)
                }
                None => return Ok([Progress::NeedsNetwork; 2]),
            },
        };
        let outward = outgoing.as_mut().map(|o| o.advance(peer, &mut **tx, signs)).transpose();
        let inward = incoming.as_mut().map(|i| i.advance(peer, &mut **rx, signs)).transpose();
        Ok([
            outward.map_err(named(in_outgoing))?.unwrap_or(Progress::Idle),
            inward.map_err(named(in_incoming))?.unwrap_or(Progress::Idle),
        ])
    }

    /// Whether the peer is gone to which something is to be sent. One that has closed its end while its buffers were
    /// full does not refuse what is sent: its kernel says for a minute that there is no room. But it has ended its own
    /// direction.
    fn look(&mut self) -> std::result::Result<(), Box<Failure>> {
        let Line { peer, connection: Some((_, rx)), outgoing: Some(outgoing), .. } = self else { return Ok(()) };
        match (outgoing.is_idle(), outgoing.operation()) {
            (false, Some(operation)) => match rx.peek() {
                Ok(_) => Ok(()),
                Err(error) => Err(Box::new(Failure { trouble: Trouble::Link(*peer, error), operation })),
            },
            _ => Ok(()),
        }
    }
}

/// What the courier's thread has.
struct Rounds {
    shared: Arc<Shared>,
    court: Court,
    signs: Signs,
    lines: Vec<Line>,
    /// Where in `lines` the one to a rank on a channel is.
    index: HashMap<(usize, usize), usize>,
}

/// What a round over all lines has come to.
#[derive(Clone, Copy, Default)]
struct Round {
    moved: bool,
    device: bool,
    network: bool,
}

impl Rounds {
    fn run(mut self) {
        match self.carry() {
            Ok(()) => {}
            Err(None) => self.stand_by(),
            Err(Some(failure)) => {
                // What it says is the verdict, and that is on the watch.
                let _ = self.court.convict_for(failure.trouble, &failure.operation);
                self.stand_by();
            }
        }
    }

    /// Carry until it is time to stop.
    ///
    /// # Errors
    /// What went wrong; `None`: there is a verdict.
    fn carry(&mut self) -> std::result::Result<(), Option<Box<Failure>>> {
        let mut idle = Idle::new(self.court.patience.with_sockets());
        // Since when nothing has moved that should.
        let mut since = None;
        let mut look_at = Instant::now() + LOOK;
        loop {
            if self.shared.news.load(Ordering::Acquire) && !self.take_in() {
                return Ok(());
            }
            if self.court.watch.raised() {
                return Err(None);
            }
            let round = self.round()?;
            if round.moved {
                if since.is_some() {
                    // It carries what collectives and messages on streams send.
                    [false, true].into_iter().for_each(|message| self.court.watch.note_moved(message));
                }
                idle.reset();
                since = None;
                continue;
            }
            if !round.device && !round.network {
                since = None;
                self.sleep(REST, true);
                continue;
            }
            if idle.found_nothing() == Next::Poll {
                continue;
            }
            let now = Instant::now();
            let waited = now - *since.get_or_insert(now);
            if now >= look_at {
                self.look_around()?;
                look_at = now + LOOK;
            }
            self.sleep(if round.device { (waited / 8).clamp(BLINK, NAP) } else { LOOK }, false);
        }
    }

    /// Whether anything gets through at all, which what is blocked cannot tell.
    fn look_around(&mut self) -> std::result::Result<(), Box<Failure>> {
        if let Some(peer) = self.shared.routes.unheard() {
            self.court.watch.note_unheard(peer);
        }
        self.lines.iter_mut().try_for_each(Line::look)
    }

    /// Once over all lines.
    fn round(&mut self) -> std::result::Result<Round, Box<Failure>> {
        let mut round = Round::default();
        for line in &mut self.lines {
            if line.is_idle() {
                continue;
            }
            for progress in line.advance(&self.shared.routes, &self.signs)? {
                round.moved |= progress == Progress::Moved;
                round.device |= progress == Progress::NeedsDevice;
                round.network |= progress == Progress::NeedsNetwork;
            }
        }
        Ok(round)
    }

    /// Take in what is new. `false`: it is time to stop.
    fn take_in(&mut self) -> bool {
        let mut inbox = self.shared.inbox.lock();
        self.shared.news.store(false, Ordering::Relaxed);
        let (rings, passages) = (std::mem::take(&mut inbox.rings), std::mem::take(&mut inbox.passages));
        let stop = inbox.stop;
        drop(inbox);
        for (end, ring) in rings {
            let line = self.line(end);
            match end.outward {
                true => line.outgoing = Some(Outgoing::new(ring)),
                false => line.incoming = Some(Incoming::new(ring)),
            }
        }
        for (end, passage) in passages {
            let line = self.line(end);
            match end.outward {
                true => line.outgoing.as_mut().expect("opened before its first passage").post(passage),
                false => line.incoming.as_mut().expect("opened before its first passage").post(passage),
            }
        }
        !stop
    }

    fn line(&mut self, end: End) -> &mut Line {
        let End { peer, channel, .. } = end;
        let at = *self.index.entry((peer, channel)).or_insert_with(|| {
            self.lines.push(Line { peer, channel, connection: None, outgoing: None, incoming: None });
            self.lines.len() - 1
        });
        &mut self.lines[at]
    }

    /// Sleep, unless something has come in meanwhile.
    fn sleep(&self, nap: Duration, idle: bool) {
        let mut inbox = self.shared.inbox.lock();
        if self.shared.news.load(Ordering::Relaxed) {
            return;
        }
        inbox.asleep = true;
        if idle {
            inbox.idle = true;
            self.shared.idle.notify_all();
        }
        drop(inbox);
        self.shared.routes.rest().sleep(nap);
        self.shared.inbox.lock().asleep = false;
    }

    /// There is a verdict: nothing is carried any more. Connections stay open, or ranks to which the verdict is yet to
    /// come would take this one for dead.
    fn stand_by(self) {
        let mut inbox = self.shared.inbox.lock();
        loop {
            (inbox.idle, inbox.asleep) = (true, true);
            self.shared.idle.notify_all();
            if inbox.stop {
                return;
            }
            maypole_transports::lock::MutexGuard::unlocked(&mut inbox, || self.shared.routes.rest().sleep(REST));
        }
    }
}
