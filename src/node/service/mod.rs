//! A node's thread: an epoll loop over the control connection, the doors for data connections and
//! for ranks of this host, and a bell. Everything in it is done at once; what has to wait is a
//! state of a connection or a time to wake up.
//!
//! This file is the loop, and what happens as time passes. `control`: what the hub says, and the
//! end of its process and of others. `callers`: ranks that come for a data connection or a
//! descriptor.

mod callers;
mod control;

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

pub(super) use self::callers::is_spent;
use super::auth::Purpose;
use super::cut_off::CutOff;
use super::door::{Door, split, token};
use super::frame::ToHub;
use super::neighbour::{Ending, Neighbours};
use super::shared::{Shared, latest};
use super::wire::Inbox;
use super::{BREATH, defect};
use crate::running::{Clock, LOOK, Moment};

/// Token kinds of the loop.
const CONTROL: u8 = 0;
const BELL: u8 = 1;
const DATA: u8 = 2;
const LOCAL: u8 = 3;
const FETCHER: u8 = 4;
const NEIGHBOUR: u8 = 5;
const HUB: u8 = 6;

/// How often what ranks have called is compared while they are at work, at first and when nothing
/// happens. Larger worlds take longer: all of it goes through the hub.
const AUDIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// World size from which the audit becomes rarer.
const AUDIT_SIZE: usize = 64;
/// How many operations each audit tells.
const AUDITED: usize = 4;
/// How much longer than `MAYPOLE_TIMEOUT` a leaving node waits for the hub's farewell; the hub says
/// it in time if it lives.
const FAREWELL_GRACE: Duration = Duration::from_secs(3);
/// The same, once something has gone wrong.
const TROUBLED: Duration = Duration::from_secs(5);

pub(super) struct Service {
    shared: Arc<Shared>,
    epoll: Epoll,
    inbox: Inbox,
    data: Door<TcpListener>,
    local: Door<UnixListener>,
    /// Ranks that wait for a descriptor that is not offered yet, with its context and number.
    fetchers: HashMap<u64, (UnixStream, (u64, u32))>,
    next_fetcher: u64,
    neighbours: Neighbours,
    /// The rank whose process this one watches.
    neighbour: Option<(usize, Ending)>,
    /// The hub's process, where it is another one of this host.
    hub: Option<Ending>,
    /// Whether epoll watches for room on the control connection.
    wants_room: bool,
    audit_at: Instant,
    audit_pause: Duration,
    /// When a leaving node stops waiting for its farewell.
    leave_by: Option<Moment>,
    farewell: bool,
    clock: Clock,
}

impl Service {
    /// Set up everything that can fail. `inbox` is what has arrived on the control connection so
    /// far.
    pub fn new(shared: Arc<Shared>, inbox: Inbox, data: TcpListener, local: UnixListener) -> io::Result<Service> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let me = shared.rank as u32;
        epoll.add(&shared.control, EpollEvent::new(EpollFlags::EPOLLIN, token(CONTROL, 0)))?;
        epoll.add(&shared.bell, EpollEvent::new(EpollFlags::EPOLLIN, token(BELL, 0)))?;
        let data = Door::open(data, DATA, Purpose::Data, me, shared.key.clone(), &epoll)?;
        let local = Door::open(local, LOCAL, Purpose::Local, me, shared.key.clone(), &epoll)?;
        let audit_pause = pace(&shared);
        let neighbours = Neighbours::of(shared.rank, &shared.peers);
        Ok(Service {
            shared,
            epoll,
            inbox,
            data,
            local,
            fetchers: HashMap::new(),
            next_fetcher: 0,
            neighbours,
            neighbour: None,
            hub: None,
            wants_room: false,
            audit_at: Instant::now() + audit_pause,
            audit_pause,
            leave_by: None,
            farewell: false,
            clock: Clock::start(),
        })
    }

    /// Serve until the node has left and the hub knows it. Should the thread fail, the others are
    /// told.
    pub fn run(mut self) {
        super::quiet_thread();
        let shared = self.shared.clone();
        let ended = std::panic::catch_unwind(AssertUnwindSafe(move || self.serve()));
        let failed = ended.unwrap_or_else(|panic| Err(defect(&*panic)));
        if let Err(why) = failed {
            let how = format!("the thread that holds it in the job failed: {why}");
            shared.be_cut_off(CutOff::Own(how));
        }
        shared.end.come();
    }

    fn serve(&mut self) -> Result<(), String> {
        let mut events = [EpollEvent::empty(); 64];
        let (mut streams, mut fetchers) = (Vec::new(), Vec::new());
        self.obey();
        self.watch_hub();
        self.watch_next();
        while !self.finished() {
            let (nap, waits) = self.nap();
            let count = match self.epoll.wait(&mut events, nap) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(e) => return Err(format!("it cannot wait for its connections: {e}")),
            };
            let _ = if waits { self.clock.look() } else { self.clock.look_after_rest() };
            for event in &events[..count] {
                match split(event.data()) {
                    (CONTROL, _) => self.hear(),
                    (BELL, _) => {
                        let _ = self.shared.bell.read();
                    }
                    (DATA, id) => self.data.attend(id, &self.epoll, &mut streams),
                    (LOCAL, id) => self.local.attend(id, &self.epoll, &mut fetchers),
                    (NEIGHBOUR, _) => self.neighbour_ended(),
                    (HUB, _) => self.hub_ended(),
                    // A fetcher has nothing to say: it has gone.
                    (_, id) => {
                        if let Some((stream, _)) = self.fetchers.remove(&id) {
                            let _ = self.epoll.delete(&stream);
                        }
                    }
                }
            }
            for (stream, errand, session) in streams.drain(..) {
                self.arrive(session.into_wire(stream), errand);
            }
            for (stream, errand, _) in fetchers.drain(..) {
                self.park(stream, errand);
            }
            self.hand_over();
            self.tick(Instant::now());
            self.flush();
        }
        Ok(())
    }

    fn finished(&mut self) -> bool {
        if !self.shared.leaving.load(Ordering::Acquire) {
            return false;
        }
        let now = self.clock.shown();
        let troubled = self.shared.troubled.load(Ordering::Acquire);
        let timeout = self.shared.config.timeout;
        let patience = if troubled { TROUBLED } else { timeout.saturating_add(FAREWELL_GRACE) };
        let by = *self.leave_by.get_or_insert(now + patience);
        self.farewell || self.shared.is_cut_off() || by <= now
    }

    /// How long to sleep, and whether something has a deadline on the clock.
    fn nap(&self) -> (EpollTimeout, bool) {
        let due = self.shared.due.lock().iter().map(|entry| entry.by.unwrap_or_default()).min();
        let waits = due.into_iter().chain(self.leave_by).min();
        // What is due comes a little late, so that no sleep is one of no time.
        let look = waits.map(|by| Instant::now() + (by - self.clock.shown()).clamp(BREATH, LOOK));
        let shared = &self.shared;
        let idle = shared.contexts.lock().is_empty() && shared.arrivals.lock().is_empty();
        let audit = (!idle).then_some(self.audit_at);
        let until = [look, audit, self.data.deadline(), self.local.deadline()];
        let until = until.into_iter().flatten().min();
        (until.map_or(EpollTimeout::NONE, super::nap_until), waits.is_some())
    }

    /// Time has passed.
    fn tick(&mut self, now: Instant) {
        #[cfg(test)]
        if self.shared.rank == 1 {
            use super::defect_tests::{NODE, plant};
            let contexts: Vec<u64> = self.shared.contexts.lock().keys().copied().collect();
            contexts.into_iter().for_each(|context| plant(NODE, context));
        }
        let starved = self.data.starved(now) || self.local.starved(now);
        self.shared.starved.store(starved, Ordering::Release);
        self.data.sweep(now, &self.epoll);
        self.local.sweep(now, &self.epoll);
        let (ran, mut due) = (self.clock.shown(), Vec::new());
        self.shared.due.lock().retain_mut(|entry| {
            let over = *entry.by.get_or_insert(ran + entry.within) <= ran;
            if over {
                due.push((entry.context, entry.alone.clone()));
            }
            !over
        });
        due.retain(|(context, _)| self.shared.wants_verdict(*context));
        if !due.is_empty() {
            self.be_cut_off(CutOff::HubSilent(due));
        }
        if self.audit_at <= now {
            self.close_strays();
            let busy = self.audit();
            let pace = pace(&self.shared);
            self.audit_pause = if busy { pace } else { (self.audit_pause * 2).min(AUDIT.1.max(pace)) };
            self.audit_at = now + self.audit_pause;
        }
    }

    /// This rank is cut off from the hub.
    fn be_cut_off(&mut self, why: CutOff) {
        if self.shared.be_cut_off(why) {
            let _ = self.epoll.delete(&self.shared.control);
        }
    }

    /// Tell the hub what this rank has called since the last time. Returns whether it has called
    /// anything.
    fn audit(&mut self) -> bool {
        let mut news = Vec::new();
        for (context, registered) in self.shared.contexts.lock().iter_mut() {
            let last = registered.watch.latest();
            if last != registered.audited
                && registered.members.len() > 1
                && !registered.left
                && !registered.watch.raised()
            {
                registered.audited = last;
                let records = latest(&registered.watch, AUDITED);
                news.push(ToHub::Audit { context: *context, records });
            }
        }
        news.iter().for_each(|message| self.shared.post(message));
        !news.is_empty()
    }
}

/// Time between audits while there is something to compare.
fn pace(shared: &Shared) -> Duration {
    AUDIT.0 * shared.peers.len().div_ceil(AUDIT_SIZE).max(1) as u32
}
