//! A node's thread: an epoll loop over the control connection, the doors for data connections and for ranks of this
//! host, and a bell. Everything in it is done at once; what has to wait is a state of a connection or a time to wake
//! up.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use maypole_transports::tcp::Wire;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv};

use super::auth::{Errand, Purpose};
use super::cut_off::CutOff;
use super::door::{Door, split, token};
use super::frame::{Answer, TABLE_LIMIT, ToHub, ToNode};
use super::making::Word;
use super::neighbour::{Ending, Neighbours, Next};
use super::shared::{Shared, latest};
use super::wire::{self, Inbox};
use super::{BREATH, CONNECTIONS, defect, handover};
use crate::running::{Clock, LOOK, Moment};
use crate::watch::{Record, Watch};

/// Token kinds of the loop.
const CONTROL: u8 = 0;
const BELL: u8 = 1;
const DATA: u8 = 2;
const LOCAL: u8 = 3;
const FETCHER: u8 = 4;
const NEIGHBOUR: u8 = 5;
const HUB: u8 = 6;

/// How often what ranks have called is compared while they are at work, at first and when nothing happens. Larger
/// worlds take longer: all of it goes through the hub.
const AUDIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// World size from which the audit becomes rarer.
const AUDIT_SIZE: usize = 64;
/// How many operations each audit tells.
const AUDITED: usize = 4;
/// How much longer than `MAYPOLE_TIMEOUT` a leaving node waits for the hub's farewell; the hub says it in time if it
/// lives.
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
    /// Set up everything that can fail. `inbox` is what has arrived on the control connection so far.
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

    /// Serve until the node has left and the hub knows it. Should the thread fail, the others are told.
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
                Err(nix::errno::Errno::EINTR) => 0,
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
        let has_to_look = !self.shared.contexts.lock().is_empty() || !self.shared.arrivals.lock().is_empty();
        let audit = has_to_look.then_some(self.audit_at);
        let until = [look, audit, self.data.deadline(), self.local.deadline()].into_iter().flatten().min();
        (until.map_or(EpollTimeout::NONE, super::nap_until), waits.is_some())
    }

    /// The control connection has something.
    fn hear(&mut self) {
        if self.shared.is_cut_off() {
            return;
        }
        let open = self.inbox.fill(&self.shared.control, TABLE_LIMIT);
        self.obey();
        match open {
            Ok(true) => {}
            Ok(false) => self.be_cut_off(CutOff::HubGone(None)),
            Err(e) if wire::is_changed(&e) => self.distrust_hub(&e),
            Err(e) => {
                tracing::debug!("rank {}: its control connection failed: {e}", self.shared.rank);
                self.be_cut_off(CutOff::HubGone(None));
            }
        }
    }

    /// Do what the hub's frames say.
    fn obey(&mut self) {
        loop {
            let frame = self.inbox.next::<ToNode>(TABLE_LIMIT);
            if matches!(frame, Ok(Some(_))) {
                self.shared.doubted.store(false, Ordering::Release);
            }
            match frame {
                Ok(None) => return,
                Ok(Some(ToNode::Here)) => self.shared.hub_answers(),
                Ok(Some(ToNode::Declare { context, verdict })) => self.shared.declare(context, verdict),
                Ok(Some(ToNode::Ask { context, sequence, question, message })) => {
                    let watch = self.shared.contexts.lock().get(&context).map(|r| r.watch.clone());
                    let watch = watch.as_deref();
                    let record = watch.map_or(Record::NotYet(None), |watch| watch.record(sequence));
                    let moved = watch.and_then(|watch| watch.moved_ago(message, &record));
                    let answer = Answer { record, unheard: watch.and_then(Watch::unheard), moved };
                    self.shared.post(&ToHub::Answer { context, sequence, question, answer });
                }
                Ok(Some(ToNode::GoOn { context, message, moved, late })) => {
                    self.shared.go_on(context, message, moved, late)
                }
                Ok(Some(ToNode::Left { context, rank })) => {
                    let watch = self.shared.contexts.lock().get(&context).map(|r| r.watch.clone());
                    if let Some(watch) = watch {
                        watch.depart(rank);
                    }
                }
                Ok(Some(ToNode::Farewell)) => self.farewell = true,
                Ok(Some(ToNode::Made { context, apart })) => self.shared.tell(context, Word::Made { apart }),
                Ok(Some(ToNode::Unmade { context, ranks })) => self.shared.tell(context, Word::Unmade { ranks }),
                Ok(Some(ToNode::Fallen { why })) => {
                    return self.be_cut_off(CutOff::HubGone(Some(why)));
                }
                Ok(Some(ToNode::Table { .. } | ToNode::Again)) => {}
                Ok(Some(ToNode::Failed { what })) => return self.be_cut_off(CutOff::Own(what)),
                Err(e) => return self.distrust_hub(&e),
            }
        }
    }

    /// What came from the hub is not to be trusted, by this error. The hub is told while the other
    /// way still holds, and tells the others.
    fn distrust_hub(&mut self, error: &io::Error) {
        self.be_cut_off(CutOff::Own(match wire::is_changed(error) {
            true => wire::changed_on_the_way(&self.shared.hub.host),
            false => format!("the process that holds the job together sent it {error}"),
        }));
    }

    /// This rank is cut off from the hub.
    fn be_cut_off(&mut self, why: CutOff) {
        if self.shared.be_cut_off(why) {
            let _ = self.epoll.delete(&self.shared.control);
        }
    }

    /// Watch the hub's process.
    fn watch_hub(&mut self) {
        match self.neighbours.hub(self.shared.hub.rank, &self.shared.peers) {
            Next::Lives(_, ending) => {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, token(HUB, 0));
                self.hub = self.epoll.add(&ending, event).ok().map(|()| ending);
            }
            Next::HasEnded(_) => self.hub_ended(),
            Next::Nobody => {}
        }
    }

    /// The hub's process has ended. What it said before counts.
    fn hub_ended(&mut self) {
        if let Some(ending) = self.hub.take() {
            // A child that has a copy of the descriptor must not keep it in the set.
            let _ = self.epoll.delete(&ending);
        }
        self.hear();
        self.be_cut_off(CutOff::HubGone(None));
    }

    /// Watch the process of the next rank of this host.
    fn watch_next(&mut self) {
        self.neighbour = loop {
            match self.neighbours.next(&self.shared.peers) {
                Next::HasEnded(rank) => self.shared.post(&ToHub::Ended { rank }),
                Next::Nobody => break None,
                Next::Lives(rank, ending) => {
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, token(NEIGHBOUR, 0));
                    break self.epoll.add(&ending, event).ok().map(|()| (rank, ending));
                }
            }
        };
    }

    /// The watched process has ended.
    fn neighbour_ended(&mut self) {
        if let Some((rank, ending)) = self.neighbour.take() {
            let _ = self.epoll.delete(&ending);
            self.shared.post(&ToHub::Ended { rank });
            self.watch_next();
        }
    }

    /// A data connection has come.
    fn arrive(&mut self, stream: Wire, errand: Errand) {
        let (from, index, total) = (errand.from as usize, usize::from(errand.index), usize::from(errand.total));
        let known = from < self.shared.peers.len() && errand.sealed == self.shared.config.encrypt;
        if !known || index >= total || total > CONNECTIONS {
            return tracing::warn!("rank {}: closed a connection whose errand makes no sense", self.shared.rank);
        }
        let context = errand.context;
        let key = (from, context, errand.channel as usize);
        {
            let mut arrivals = self.shared.arrivals.lock();
            if self.shared.finished.lock().contains(context) {
                return tracing::debug!("rank {}: rank {from} connects for what has been left", self.shared.rank);
            }
            let places = arrivals.entry(key).or_default();
            if places.is_empty() {
                places.resize_with(total, || None);
            }
            // Who comes first keeps the place, unless it has gone: a caller that did not hear this rank's answer in
            // time calls again.
            if places.len() != total || places[index].as_ref().is_some_and(|first| !is_spent(first)) {
                return tracing::warn!(
                    "rank {}: closed connection {index} of {total} that says it is rank {from}'s: that has come already",
                    self.shared.rank
                );
            }
            places[index] = Some(stream);
        }
        self.shared.wake(Some(context));
    }

    /// Close connections for communicators that this rank has not made, whose other ends are closed and have left nothing
    /// to read: it may never make them, and those who did are gone.
    fn close_strays(&self) {
        let mut arrivals = self.shared.arrivals.lock();
        if !arrivals.is_empty() {
            let contexts = self.shared.contexts.lock();
            arrivals.retain(|(_, context, _), places| {
                contexts.contains_key(context) || !places.iter().flatten().all(is_spent)
            });
        }
    }

    /// A rank of this host wants a descriptor.
    fn park(&mut self, stream: UnixStream, errand: Errand) {
        self.next_fetcher += 1;
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, token(FETCHER, self.next_fetcher));
        if self.epoll.add(&stream, event).is_ok() {
            self.fetchers.insert(self.next_fetcher, (stream, (errand.context, errand.channel)));
        }
    }

    /// Serve those whose descriptor is offered by now.
    fn hand_over(&mut self) {
        if self.fetchers.is_empty() {
            return;
        }
        let offered = self.shared.offered.lock().clone();
        self.fetchers.retain(|_, (stream, which)| {
            let Some(fd) = offered.get(which) else { return true };
            if let Err(e) = handover::give(stream, fd) {
                tracing::warn!("cannot pass a file descriptor on: {e}");
            }
            // As for all that epoll watches by level: a child that no handler has seen may hold a copy.
            let _ = self.epoll.delete(&*stream);
            false
        });
    }

    /// Time has passed.
    fn tick(&mut self, now: Instant) {
        #[cfg(test)]
        if self.shared.rank == 1 {
            let contexts: Vec<u64> = self.shared.contexts.lock().keys().copied().collect();
            contexts.into_iter().for_each(|context| super::defect_tests::plant(super::defect_tests::NODE, context));
        }
        self.shared.starved.store(self.data.starved(now) || self.local.starved(now), Ordering::Release);
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
            self.audit_pause =
                if busy { pace(&self.shared) } else { (self.audit_pause * 2).min(AUDIT.1.max(pace(&self.shared))) };
            self.audit_at = now + self.audit_pause;
        }
    }

    /// Tell the hub what this rank has called since the last time. Returns whether it has called anything.
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
                news.push(ToHub::Audit { context: *context, records: latest(&registered.watch, AUDITED) });
            }
        }
        news.iter().for_each(|message| self.shared.post(message));
        !news.is_empty()
    }

    /// Write what is queued for the hub, and have epoll say when there is room for the rest.
    fn flush(&mut self) {
        if self.shared.is_cut_off() {
            return;
        }
        let result = self.shared.outbox.lock().flush(&self.shared.control);
        let done = match result {
            Ok(done) => done,
            // What the hub said last is still to be read; the end of the connection is seen there.
            Err(_) => return self.hear(),
        };
        if self.wants_room == done {
            self.wants_room = !done;
            let more = if done { EpollFlags::empty() } else { EpollFlags::EPOLLOUT };
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN | more, token(CONTROL, 0));
            let _ = self.epoll.modify(&self.shared.control, &mut event);
        }
    }
}

/// Whether nothing is to be read from a connection, and nothing will be.
pub(super) fn is_spent(wire: &Wire) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    !matches!(recv(wire.stream.as_raw_fd(), &mut [0], flags), Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR))
}

/// Time between audits while there is something to compare.
fn pace(shared: &Shared) -> Duration {
    AUDIT.0 * shared.peers.len().div_ceil(AUDIT_SIZE).max(1) as u32
}
