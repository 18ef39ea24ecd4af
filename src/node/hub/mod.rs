//! The hub: one thread in one of the job's processes, to which every node keeps a control
//! connection. It gathers the ranks, then carries verdicts between them.
//!
//! This file is its loop: an epoll set of the door, the connections ([`super::lines`]) and a bell.
//! `gathering`: bringing the ranks together ([`super::roster`]), and telling all where that cannot
//! be. `serving`: what they say on their connections, from their introduction to their end, which
//! goes to the court ([`super::court`]). `stay`: how long the process stays that the hub is in.
//!
//! It ends when every rank has gone, or when the ranks could not be brought together and all were
//! told so.

mod gathering;
mod serving;
mod stay;

use std::collections::HashSet;
use std::io;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use self::stay::{Held, Stay};
pub(super) use self::stay::{give_up, give_way, withdraw};
use super::auth::{HUB, Purpose};
use super::court::Court;
use super::door::{Door, split, token};
use super::frame::ToNode;
use super::key::Key;
use super::lines::{Fault, Lines};
use super::roster::Roster;
use super::wire::Body;
use super::{BREATH, peer};
use crate::config::Config;
use crate::descriptors;
use crate::error::{Error, Result};
use crate::running::{Clock, LOOK, Moment};

/// Token kinds of the loop.
const DOOR: u8 = 0;
const LINE: u8 = 1;
const BELL: u8 = 2;

/// Start the hub's thread behind `listener`. `size`: the world size if this process knows it.
pub(super) fn start(listener: TcpListener, key: Key, config: &Config, size: Option<usize>) -> Result<()> {
    descriptors::raise();
    let failed = |e: io::Error| Error::system("cannot start the thread that holds the job together", e);
    let hub = Hub::new(listener, key, config, size).map_err(failed)?;
    let stay = hub.stay.clone();
    let thread = std::thread::Builder::new().name("maypole-hub".into());
    thread.spawn(move || hub.run()).map_err(failed)?;
    stay::list(&stay);
    Ok(())
}

enum Phase {
    /// Until all ranks have come.
    Gathering(Roster),
    /// They cannot be brought together; everybody who comes is told.
    Failed {
        what: String,
        size: usize,
        told: HashSet<usize>,
        /// Ranks with their processes that were told: where they come again, it is for another
        /// attempt. [`ANY`] process of a rank that could not take part or is gone.
        knows: HashSet<(usize, u64)>,
        held: HashSet<u64>,
        hold_until: Instant,
        until: Instant,
    },
    /// They have come. `ranks`: the connection of each; `waits`: whether its process waits at its
    /// end for the others; `held`: it does; `active`: when a rank last did anything in a
    /// communicator, or fell.
    Running { court: Court, ranks: Vec<u64>, waits: bool, held: Option<Held>, active: Moment },
}

struct Hub {
    epoll: Epoll,
    door: Door<TcpListener>,
    lines: Lines,
    phase: Phase,
    process: u64,
    patience: Duration,
    timeout: Duration,
    /// When gathering ends.
    give_up: Moment,
    /// The same, where callers find no place.
    starves_by: Option<Moment>,
    somebody_came: bool,
    /// The ranks meet at an address, where rank 0 may open another hub once this has failed.
    is_named: bool,
    /// Connections of processes that have ended, as their neighbours say: a child may keep them
    /// open.
    ended: Vec<u64>,
    stay: Arc<Stay>,
    /// For what has deadlines while the job runs.
    clock: Clock,
}

impl Hub {
    fn new(listener: TcpListener, key: Key, config: &Config, size: Option<usize>) -> io::Result<Hub> {
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let door = Door::open(listener, DOOR, Purpose::Control, HUB, key, &epoll)?.save_one()?;
        let stay = Arc::new(Stay::at(port)?);
        epoll.add(&stay.bell, EpollEvent::new(EpollFlags::EPOLLIN, token(BELL, 0)))?;
        let clock = Clock::start();
        // See `UniqueId::create`.
        let times = if size.is_some() { 1 } else { 10 };
        Ok(Hub {
            epoll,
            door,
            lines: Lines::new(LINE),
            phase: Phase::Gathering(Roster::default()),
            process: peer::process_id()?,
            patience: config.connect_timeout,
            timeout: config.timeout,
            give_up: clock.shown() + config.connect_timeout.saturating_mul(times),
            starves_by: None,
            somebody_came: size.is_some(),
            ended: Vec::new(),
            stay,
            is_named: size.is_some(),
            clock,
        })
    }

    /// Serve until nobody needs the hub any more. Should its thread fail, all are told.
    fn run(mut self) {
        super::quiet_thread();
        let ended = catch_unwind(AssertUnwindSafe(|| self.hold()));
        if let Err(why) = ended.unwrap_or_else(|panic| Err(super::defect(&*panic))) {
            tracing::error!("the hub: {why}");
            let why = format!("its thread failed: {why}");
            let _ = catch_unwind(AssertUnwindSafe(|| self.fall(&why)));
        }
        self.stay.end.come();
    }

    fn hold(&mut self) -> std::result::Result<(), String> {
        let mut events = [EpollEvent::empty(); 64];
        let mut admitted = Vec::new();
        while !self.finished() {
            let (nap, waits) = self.nap();
            let count = match self.epoll.wait(&mut events, nap) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(e) => return Err(format!("it cannot wait for its connections: {e}")),
            };
            let _ = if waits { self.clock.look() } else { self.clock.look_after_rest() };
            for event in &events[..count] {
                match split(event.data()) {
                    (DOOR, id) => self.door.attend(id, &self.epoll, &mut admitted),
                    (BELL, _) => _ = self.stay.bell.read(),
                    (_, id) => {
                        if event.events().contains(EpollFlags::EPOLLOUT) {
                            self.lines.has_room(id);
                        }
                        if event.events() != EpollFlags::EPOLLOUT {
                            self.hear(id);
                        }
                    }
                }
            }
            for (stream, errand, session) in admitted.drain(..) {
                self.greet(stream, errand.from as usize, session);
            }
            self.hang_up_on_ended();
            self.tick(Instant::now());
            self.deliver();
            if self.release(Instant::now()) {
                self.deliver();
            }
            let failed = matches!(self.phase, Phase::Failed { .. });
            if failed && !self.lines.any_unsent(&HashSet::new()) {
                self.stay.told.store(true, Ordering::Release);
            }
        }
        self.send_on();
        self.flush_for(Duration::from_secs(1));
        Ok(())
    }

    /// The hub ends though it is needed: tell everybody who is there.
    fn fall(&mut self, why: &str) {
        let gathering = !matches!(self.phase, Phase::Running { .. });
        let (pid, host) = (std::process::id(), peer::host_name());
        let message = if gathering {
            let what = format!("process {pid} on host {host}, where the ranks meet: {why}");
            ToNode::Failed { what }
        } else {
            ToNode::Fallen { why: why.to_string() }
        };
        self.lines.known().into_iter().for_each(|id| self.lines.send(id, &message));
        self.lines.flush(&self.epoll);
    }

    /// Whether nobody needs the hub any more.
    fn finished(&self) -> bool {
        match &self.phase {
            Phase::Gathering(_) if self.is_named => self.stay.withdrawn.load(Ordering::Acquire),
            Phase::Gathering(_) => !self.somebody_came && self.give_up <= self.clock.shown(),
            Phase::Failed { size, told, held, until, .. } => {
                let needless = self.stay.withdrawn.load(Ordering::Acquire) || told.len() >= *size;
                held.is_empty() && (needless || *until <= Instant::now())
            }
            Phase::Running { court, .. } => court.over(),
        }
    }

    /// How long to sleep, and whether something has a deadline on the clock.
    fn nap(&self) -> (EpollTimeout, bool) {
        let waits = match &self.phase {
            Phase::Running { court, held, active, .. } => {
                let held = held.as_ref().map(|held| held.deadline(court, *active));
                court.deadline().into_iter().chain(held).min()
            }
            Phase::Gathering(_) => Some(self.gathers_until()),
            Phase::Failed { .. } => None,
        };
        // What is due comes a little late, so that no sleep is one of no time.
        let look = waits.map(|by| Instant::now() + (by - self.clock.shown()).clamp(BREATH, LOOK));
        let until = look.into_iter().chain(self.deadline()).min();
        (until.map_or(EpollTimeout::NONE, super::nap_until), waits.is_some())
    }

    /// When something else is due.
    fn deadline(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Failed { held, hold_until, until, .. } => {
                [Some(*until), Some(*hold_until).filter(|_| !held.is_empty())]
            }
            Phase::Gathering(_) | Phase::Running { .. } => [None, None],
        };
        phase.into_iter().chain([self.door.deadline(), self.lines.deadline()]).flatten().min()
    }

    /// Time has passed.
    fn tick(&mut self, now: Instant) {
        self.door.sweep(now, &self.epoll);
        self.lines.sweep(now, &self.epoll);
        if let Some((what, size, gone)) = self.in_vain() {
            return self.fail(what, size, gone, now);
        }
        if let Phase::Running { court, .. } = &mut self.phase {
            court.tick(self.clock.shown());
        }
        self.let_process_go();
    }

    /// Send the court's letters and whatever else is queued, as far as the connections take it.
    fn deliver(&mut self) {
        loop {
            if let Phase::Running { court, ranks, .. } = &mut self.phase {
                for (to, message) in court.letters() {
                    let body = Body::of(&message);
                    to.iter().for_each(|rank| self.lines.share(ranks[*rank], &body));
                }
            }
            let faults = self.lines.flush(&self.epoll);
            if faults.is_empty() {
                return;
            }
            for (id, fault) in faults {
                let how = match fault {
                    Fault::Deaf => "its process does not read its control connection".to_string(),
                    Fault::Failed(e) => self.fate(id, &e),
                };
                // What it said before the connection broke counts: it may be its goodbye.
                self.hear(id);
                self.hang_up(id, &how);
            }
        }
    }

    /// Before the thread ends: give what is queued a moment.
    fn flush_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        self.deliver();
        while self.lines.any_unsent(&HashSet::new()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
            self.lines.try_again();
            self.deliver();
        }
    }
}

#[cfg(test)]
mod tests;
