//! The hub: one thread in one of the job's processes, to which every node keeps a control connection. It gathers the
//! ranks ([`super::roster`]), then carries verdicts between them ([`super::court`]). This file is its I/O: an epoll
//! loop over the listener and the connections.
//!
//! It ends when every rank has gone, or when the ranks could not be brought together and all were told so.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use maypole_transports::fork::{self, PerProcess};
use maypole_transports::lock::Mutex;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket2::{Domain, Protocol, Socket, Type};

use super::auth::{HUB, Purpose};
use super::court::Court;
use super::door::{Door, split, token};
use super::frame::{HELLO_LIMIT, Hello, HubPlace, RANK_LIMIT, ToHub, ToNode};
use super::key::Key;
use super::lines::{Fault, Line, Lines};
use super::roster::Roster;
use super::session::Session;
use super::wire::{self, Body};
use super::{BREATH, peer, roster, silence};
use crate::config::{Config, Family};
use crate::descriptors;
use crate::error::{Error, Result};
use crate::exit::{self, End, Membership, SAY_AFTER};
use crate::running::{Clock, LOOK, Moment};

/// Token kinds of the loop.
const DOOR: u8 = 0;
const LINE: u8 = 1;
const BELL: u8 = 2;
/// How long the hub, when the ranks could not be brought together, keeps its own process from ending so that the others
/// can be told.
const HELD: Duration = Duration::from_secs(1);
/// How long the hub's own process waits at its end for ranks that are in failed communicators only, and call nothing any
/// more.
const DISTURBED: Duration = Duration::from_secs(3);
/// The longest time between two times that it says for whom it waits.
const SAY_AT_LEAST: Duration = Duration::from_secs(600);
/// In place of a process' number: whichever it is.
const ANY: u64 = 0;
/// How a rank died that left without a word.
const ENDED: &str = "its process ended without leaving the job";
/// How many processes wait in the kernel for the hub to accept them.
const QUEUE: i32 = 4096;

/// Bind a port for a hub: at `ip`, or at all addresses of the family, IPv4 and IPv6 on one socket where that is
/// allowed. Port 0 takes a free one.
pub(super) fn listen(ip: Option<IpAddr>, port: u16, family: Family) -> io::Result<TcpListener> {
    let bind = |ip: IpAddr| {
        let address = SocketAddr::new(ip, port);
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        fork::close_in_children(&socket);
        if address.is_ipv6() {
            socket.set_only_v6(family == Family::V6 || !ip.is_unspecified())?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(QUEUE)?;
        Ok::<_, io::Error>(TcpListener::from(socket))
    };
    match (ip, family) {
        (Some(ip), _) => bind(ip),
        (None, Family::V4) => bind(Ipv4Addr::UNSPECIFIED.into()),
        (None, Family::V6) => bind(Ipv6Addr::UNSPECIFIED.into()),
        // A machine may have no IPv6 at all.
        (None, Family::Any) => bind(Ipv6Addr::UNSPECIFIED.into()).or_else(|e| match e.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(e),
            _ => bind(Ipv4Addr::UNSPECIFIED.into()),
        }),
    }
}

/// Start the hub's thread behind `listener`. `size`: the world size if this process knows it.
pub(super) fn start(listener: TcpListener, key: Key, config: &Config, size: Option<usize>) -> Result<()> {
    descriptors::raise();
    let failed = |e: io::Error| Error::system("cannot start the thread that holds the job together", e);
    let hub = Hub::new(listener, key, config, size).map_err(failed)?;
    let stay: Arc<dyn Membership> = hub.stay.clone();
    let mut here = HERE.get().lock();
    here.retain(|stay| stay.strong_count() > 0);
    here.push(Arc::downgrade(&hub.stay));
    drop(here);
    std::thread::Builder::new().name("maypole-hub".into()).spawn(move || hub.run()).map_err(failed)?;
    exit::list_membership(Arc::downgrade(&stay));
    Ok(())
}

/// What the hub's thread and the end of its process share.
struct Stay {
    /// The process is about to end, and waits until the hub lets it.
    asked: AtomicBool,
    /// Wakes the hub's thread.
    bell: EventFd,
    end: End,
    /// The port at which the ranks meet.
    port: u16,
    /// Whether they have met, after which nobody takes it back.
    stands: AtomicBool,
    /// Whether the attempt to bring them together is over: it has failed, or rank 0 has given it up.
    over: AtomicBool,
    /// Why it has failed.
    why: Mutex<Option<String>>,
    /// Why rank 0 has given it up, until the hub has seen that.
    given_up: Mutex<Option<String>>,
    /// Whether all who were there have been told.
    told: AtomicBool,
    /// Nobody is to meet there any more.
    withdrawn: AtomicBool,
}

/// The hubs of this process.
static HERE: PerProcess<Mutex<Vec<Weak<Stay>>>> = PerProcess::new();

/// Nobody is to meet any more at `port` of this process, unless the ranks have met there.
pub(super) fn withdraw(port: u16) {
    let _ = end(port, |stay| !stay.stands.load(Ordering::Acquire));
}

/// Rank 0 of this process begins another attempt at `port`: a hub there that could not bring the ranks together need tell
/// nobody any more why. Returns whether there is one; it ends soon.
pub(super) fn give_way(port: u16) -> bool {
    end(port, |stay| stay.over.load(Ordering::Acquire))
}

/// Rank 0 of this process has given up its attempt at `port` because of `why`: the others there are told. Its process may
/// end now, so this waits until they have been, a second at most. Returns why the hub itself had failed, if it had: it may
/// know better than who could not reach it.
pub(super) fn give_up(port: u16, why: &str) -> Option<String> {
    let found = HERE.get().lock().iter().filter_map(Weak::upgrade).find(|stay| stay.port == port);
    let stay = found.filter(|stay| !stay.stands.load(Ordering::Acquire))?;
    let knew = stay.why.lock().clone();
    *stay.given_up.lock() = Some(why.to_string());
    stay.over.store(true, Ordering::Release);
    // As in `end`.
    let _ = stay.bell.write(1);
    let until = Instant::now() + HELD;
    while !stay.told.load(Ordering::Acquire) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    knew
}

/// Have the hub at `port` end if it is one of `which`.
fn end(port: u16, which: impl Fn(&Stay) -> bool) -> bool {
    let here = HERE.get().lock();
    let found = here.iter().filter_map(Weak::upgrade).find(|stay| stay.port == port && which(stay));
    let Some(stay) = found else { return false };
    stay.withdrawn.store(true, Ordering::Release);
    // Only a full counter fails, and then the thread is woken anyway.
    let _ = stay.bell.write(1);
    true
}

impl Membership for Stay {
    fn part(&self) {
        self.asked.store(true, Ordering::Release);
        // Only a full counter fails, and then the thread is woken anyway.
        let _ = self.bell.write(1);
    }

    fn end(&self) -> &End {
        &self.end
    }
}

enum Phase {
    /// Until all ranks have come.
    Gathering(Roster),
    /// They cannot be brought together; everybody who comes is told.
    Failed {
        what: String,
        size: usize,
        told: HashSet<usize>,
        /// Ranks with their processes that were told: where they come again, it is for another attempt. [`ANY`] process
        /// of a rank that could not take part or is gone.
        knows: HashSet<(usize, u64)>,
        held: HashSet<u64>,
        hold_until: Instant,
        until: Instant,
    },
    /// They have come. `ranks`: the connection of each; `waits`: whether its process waits at its end for the
    /// others; `held`: it does; `active`: when a rank last did anything in a communicator, or fell.
    Running { court: Court, ranks: Vec<u64>, waits: bool, held: Option<Held>, active: Moment },
}

/// This process is at its end, and is not let go yet: the hub ends with it, and what the others do may be healthy.
struct Held {
    since: Moment,
    /// When it is said next for whom it waits.
    say_at: Moment,
}

impl Held {
    /// When it is let go although others remain: where something has gone wrong, those that have nothing healthy left to
    /// do may never end.
    fn until(&self, court: &Court, active: Moment) -> Option<Moment> {
        (court.disturbed() && !court.is_at_work()).then(|| self.since.max(active) + DISTURBED)
    }

    /// Say for whom it waits.
    fn say(&mut self, court: &Court, now: Moment) {
        let others = silence::list(&court.remaining());
        crate::log::warn(format_args!(
            "this process holds a job together; it has been at its end for {:.0?}, but waits for world ranks {others}, \
             which are still at work and could not go on without it; SIGTERM ends it at once",
            now - self.since
        ));
        self.say_at = now + (now - self.since).clamp(SAY_AFTER, SAY_AT_LEAST);
    }
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
    /// Connections of processes that have ended, as their neighbours say: a child may keep them open.
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
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, token(BELL, 0)))?;
        let clock = Clock::start();
        Ok(Hub {
            epoll,
            door,
            lines: Lines::new(LINE),
            phase: Phase::Gathering(Roster::default()),
            process: peer::process_id()?,
            patience: config.connect_timeout,
            timeout: config.timeout,
            give_up: clock.shown() + config.connect_timeout.saturating_mul(if size.is_some() { 1 } else { 10 }),
            starves_by: None,
            somebody_came: size.is_some(),
            ended: Vec::new(),
            stay: Arc::new(Stay {
                asked: AtomicBool::new(false),
                bell,
                end: End::default(),
                port,
                stands: AtomicBool::new(false),
                over: AtomicBool::new(false),
                why: Mutex::default(),
                given_up: Mutex::default(),
                told: AtomicBool::new(false),
                withdrawn: AtomicBool::new(false),
            }),
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
            let _ = catch_unwind(AssertUnwindSafe(|| self.fall(&format!("its thread failed: {why}"))));
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
            for id in std::mem::take(&mut self.ended) {
                // What it said before it ended counts.
                let says_more = |line: &Line| matches!(line.stream.peek(&mut [0]), Ok(1..));
                while self.lines.get(id).is_some_and(says_more) {
                    self.hear(id);
                }
                self.hang_up(id, ENDED);
            }
            self.tick(Instant::now());
            self.deliver();
            if self.release(Instant::now()) {
                self.deliver();
            }
            if matches!(self.phase, Phase::Failed { .. }) && !self.lines.any_unsent(&HashSet::new()) {
                self.stay.told.store(true, Ordering::Release);
            }
        }
        if self.is_named && self.stay.withdrawn.load(Ordering::Acquire) {
            // Those who came to this one while it ended are with rank 0 at the next.
            let is_told = |line: &Line| match (&self.phase, line.known) {
                (Phase::Failed { told, .. }, Some((rank, _))) => told.contains(&rank),
                _ => false,
            };
            let late: Vec<u64> = self.lines.iter().filter(|(_, line)| !is_told(line)).map(|(id, _)| id).collect();
            late.into_iter().for_each(|id| self.lines.send(id, &ToNode::Again));
        }
        self.flush_for(Duration::from_secs(1));
        Ok(())
    }

    /// The hub ends though it is needed: tell everybody who is there.
    fn fall(&mut self, why: &str) {
        let gathering = !matches!(self.phase, Phase::Running { .. });
        let what = format!("process {} on host {}, where the ranks meet: {why}", std::process::id(), peer::host_name());
        let message = if gathering { ToNode::Failed { what } } else { ToNode::Fallen { why: why.to_string() } };
        let known: Vec<u64> = self.lines.iter().filter(|(_, line)| line.known.is_some()).map(|(id, _)| id).collect();
        known.into_iter().for_each(|id| self.lines.send(id, &message));
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
                let until =
                    |held: &Held| held.until(court, *active).map_or(held.say_at, |until| until.min(held.say_at));
                court.deadline().into_iter().chain(held.as_ref().map(until)).min()
            }
            Phase::Gathering(_) => Some(self.gathers_until()),
            Phase::Failed { .. } => None,
        };
        // What is due comes a little late, so that no sleep is one of no time.
        let look = waits.map(|by| Instant::now() + (by - self.clock.shown()).clamp(BREATH, LOOK));
        let until = look.into_iter().chain(self.deadline()).min();
        (until.map_or(EpollTimeout::NONE, super::nap_until), waits.is_some())
    }

    /// When those who have not come are waited for no longer.
    fn gathers_until(&self) -> Moment {
        self.starves_by.map_or(self.give_up, |by| by.min(self.give_up))
    }

    /// When something else is due.
    fn deadline(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Gathering(_) => [None, None],
            Phase::Failed { held, hold_until, until, .. } => {
                [Some(*until), Some(*hold_until).filter(|_| !held.is_empty())]
            }
            Phase::Running { .. } => [None, None],
        };
        phase.into_iter().chain([self.door.deadline(), self.lines.deadline()]).flatten().min()
    }

    /// A connection has shown the key.
    fn greet(&mut self, stream: TcpStream, caller: usize, session: Session) {
        if let Err(e) = silence::keep_alive(&stream, self.timeout) {
            tracing::debug!("no keep-alive on a control connection: {e}");
        }
        if let Some(id) = self.lines.add(stream, caller, session, &self.epoll) {
            self.hear(id);
        }
    }

    /// Something happened on a connection.
    fn hear(&mut self, id: u64) {
        let Some(line) = self.lines.get_mut(id) else { return };
        let limit = if line.known.is_some() { RANK_LIMIT } else { HELLO_LIMIT };
        let open = line.inbox.fill(&line.stream, limit);
        loop {
            let Some(line) = self.lines.get_mut(id) else { return };
            let limit = if line.known.is_some() { RANK_LIMIT } else { HELLO_LIMIT };
            match line.inbox.next::<ToHub>(limit) {
                Ok(Some(ToHub::Hello(hello))) if line.known.is_none() => self.introduce(id, hello),
                Ok(Some(ToHub::Unable { rank, size, why })) if line.known.is_none() => {
                    return self.excuse(id, rank, size, why);
                }
                Ok(Some(frame)) if line.known.is_some() => self.serve(id, frame),
                Ok(None) => break,
                Ok(Some(_)) => return self.hang_up(id, "it did not introduce itself"),
                Err(e) => return self.distrust(id, &e),
            }
        }
        match open {
            Ok(true) => {}
            Ok(false) => self.hang_up(id, ENDED),
            Err(e) if wire::is_changed(&e) => self.distrust(id, &e),
            Err(e) => {
                let how = self.fate(id, &e);
                self.hang_up(id, &how);
            }
        }
    }

    /// A process says who it is.
    fn introduce(&mut self, id: u64, hello: Hello) {
        let rank = hello.peer.rank;
        let (size, process, own) = (hello.size, hello.process, hello.process == self.process);
        let line = self.lines.get_mut(id).expect("it spoke");
        if rank != line.caller {
            let caller = line.caller;
            tracing::warn!(
                "closed a control connection that came as rank {caller} and then introduced itself as {rank}"
            );
            return self.hang_up(id, "it introduced itself as another rank");
        }
        (line.known, line.process) = (Some((rank, own)), process);
        if !std::mem::replace(&mut self.somebody_came, true) {
            self.give_up = self.clock.shown() + self.patience;
        }
        let shortage = matches!(&self.phase, Phase::Gathering(roster) if roster.size().is_none())
            .then(|| self.shortage(hello.size))
            .flatten();
        match &mut self.phase {
            Phase::Gathering(roster) => match shortage.map_or_else(|| roster.admit(hello), Err) {
                Ok(false) => {}
                Ok(true) => self.complete(),
                Err(what) => {
                    let size = roster.size().unwrap_or(size);
                    self.fail(what, size, HashSet::new(), Instant::now() + HELD);
                }
            },
            Phase::Failed { knows, .. }
                if self.is_named && [process, ANY].iter().any(|process| knows.contains(&(rank, *process))) =>
            {
                let line = self.lines.remove(id, &self.epoll);
                line.expect("it spoke").last_words(&ToNode::Again);
            }
            Phase::Failed { .. } => self.tell(id),
            Phase::Running { ranks, .. } => {
                let what = format!(
                    "process {} on host {} came as rank {rank}, but all {} ranks of this job have come already; \
                     was it started twice, or does another job use the same meeting point and key?",
                    hello.peer.pid,
                    hello.peer.host,
                    ranks.len()
                );
                self.lines.send(id, &ToNode::Failed { what });
                // It is no rank of this job: what it says and when it goes concerns nobody.
                self.lines.get_mut(id).expect("it spoke").known = None;
            }
        }
    }

    /// A process says that it cannot be a rank: without it there is no job.
    fn excuse(&mut self, id: u64, rank: usize, size: usize, why: String) {
        self.lines.remove(id, &self.epoll);
        match &mut self.phase {
            Phase::Gathering(roster) => {
                let size = roster.size().unwrap_or(size);
                // Whoever excuses itself may share this process, and knows not how many descriptors are needed here.
                let why = [Some(why), self.shortage(size)].into_iter().flatten().collect::<Vec<_>>().join("; ");
                self.fail(why, size, HashSet::from([rank]), Instant::now() + HELD);
            }
            Phase::Failed { told, .. } => _ = told.insert(rank),
            Phase::Running { .. } => {}
        }
    }

    /// What to tell everybody if this process cannot have a connection to each of `size` ranks.
    fn shortage(&self, size: usize) -> Option<String> {
        let strangers = self.lines.len() + self.door.guests();
        let (limit, others) = (descriptors::limit(), descriptors::open().saturating_sub(strangers));
        let needs = size.saturating_add(others);
        (needs > limit && size <= roster::LARGEST).then(|| {
            format!(
                "process {} on host {}, which holds the job together, needs {needs} file descriptors: one for each of \
                 the {size} ranks, beside {others} that it has open; but it may have {limit}; {}",
                std::process::id(),
                peer::host_name(),
                descriptors::RAISE
            )
        })
    }

    /// All have come.
    fn complete(&mut self) {
        let Phase::Gathering(roster) = &mut self.phase else { return };
        let (peers, rank) = std::mem::take(roster).into_table(self.process);
        let mut ranks = vec![0; peers.len()];
        for (id, line) in self.lines.iter() {
            if let Some((rank, _)) = line.known {
                ranks[rank] = id;
            }
        }
        tracing::debug!("all {} ranks have come", peers.len());
        let court = Court::new(peers.iter().map(|p| p.host.clone()).collect());
        let hub = HubPlace { rank, host: peer::host_name(), pid: std::process::id(), process: self.process };
        // Once, whatever the number of ranks: it is as long as they are many.
        let table = Body::of(&ToNode::Table { peers, hub });
        for id in &ranks {
            self.lines.share(*id, &table);
        }
        let waits = rank.is_some();
        self.stay.stands.store(true, Ordering::Release);
        self.phase = Phase::Running { court, ranks, waits, held: None, active: self.clock.shown() };
    }

    /// They cannot be brought together: tell all who are there. `gone`: those who need not be told; `hold_until`: how
    /// long this process' own ranks wait for the others to be told.
    fn fail(&mut self, what: String, size: usize, gone: HashSet<usize>, hold_until: Instant) {
        tracing::debug!("the ranks cannot be brought together: {what}");
        let until = (Instant::now() + (self.give_up - self.clock.shown()).min(self.patience)).max(hold_until);
        *self.stay.why.lock() = Some(what.clone());
        let (knows, held) = (gone.iter().map(|rank| (*rank, ANY)).collect(), HashSet::new());
        self.phase = Phase::Failed { what, size, told: gone, knows, held, hold_until, until };
        self.stay.over.store(true, Ordering::Release);
        let known: Vec<u64> = self.lines.iter().filter(|(_, l)| l.known.is_some()).map(|(id, _)| id).collect();
        for id in known {
            self.tell(id);
        }
    }

    /// Tell one process why the job cannot start; this process' own ranks later, see [`Hub::release`].
    fn tell(&mut self, id: u64) {
        let Phase::Failed { what, told, knows, held, .. } = &mut self.phase else { return };
        let Some((line, (rank, own))) = self.lines.get(id).and_then(|line| Some((line, line.known?))) else { return };
        knows.insert((rank, line.process));
        if own {
            held.insert(id);
        } else {
            told.insert(rank);
            let message = ToNode::Failed { what: what.clone() };
            self.lines.send(id, &message);
        }
    }

    /// A rank says something.
    fn serve(&mut self, id: u64, frame: ToHub) {
        let Some((from, _)) = self.lines.get(id).and_then(|l| l.known) else { return };
        let Phase::Running { court, ranks, active, .. } = &mut self.phase else { return };
        #[cfg(test)]
        if let ToHub::Register { context, .. } = &frame {
            super::defect_tests::plant(super::defect_tests::HUB, *context);
        }
        let now = self.clock.shown();
        if !matches!(frame, ToHub::Answer { .. } | ToHub::Ping) {
            *active = now;
        }
        match frame {
            ToHub::Hello(_) | ToHub::Unable { .. } => self.hang_up(id, "it introduced itself twice"),
            ToHub::Register { context, members } => court.register(from, context, &members),
            ToHub::GiveUp { context } => court.give_up(from, context),
            ToHub::Leave { context, records } => court.leave(from, context, records),
            ToHub::Report { context, verdict } => court.report(from, context, verdict, now),
            ToHub::Inquire { context, operation, peer } => court.inquire(from, context, operation, peer, now),
            ToHub::Stalled { context, stall, unheard } => court.stalled(from, context, stall, unheard, now),
            ToHub::Answer { context, sequence, question, answer } => {
                court.answer(from, context, (sequence, question), answer)
            }
            ToHub::Ping => self.lines.send(id, &ToNode::Here),
            ToHub::Audit { context, records } => court.audit(from, context, records),
            ToHub::Bye => self.let_go(id, from, None),
            ToHub::Fallen { how } => self.let_go(id, from, Some(how)),
            ToHub::Ended { rank } => self.ended.extend(ranks.get(rank).copied()),
            ToHub::Made { context, apart } => court.made(from, context, apart),
            ToHub::WhoMade { context } => court.who_made(from, context),
        }
    }

    /// A rank leaves.
    fn let_go(&mut self, id: u64, rank: usize, how: Option<String>) {
        let Phase::Running { court, .. } = &mut self.phase else { return };
        court.departed(rank, how);
        self.lines.send(id, &ToNode::Farewell);
    }

    /// How connection `id` came to an end by `error`, for people.
    fn fate(&mut self, id: u64, error: &io::Error) -> String {
        if !silence::is_silence(error) {
            return match error.kind() {
                io::ErrorKind::ConnectionReset => ENDED.to_string(),
                _ => format!("its control connection failed ({error})"),
            };
        }
        let own = self.lines.get(id).and_then(|line| line.known).map(|(rank, _)| rank);
        let silent = self.lines.unanswered(Instant::now()).iter().copied();
        let ranks: Vec<usize> = silent.filter(|rank| Some(*rank) != own).collect();
        let as_little = match &ranks[..] {
            [] => String::new(),
            ranks => format!(", nor of late from the hosts of world ranks {}", silence::list(ranks)),
        };
        format!(
            "nothing has come from its host for {:?}{as_little}; it is down, or the network between it and host {} is cut",
            silence::patience(self.timeout),
            peer::host_name()
        )
    }

    /// What came on a connection is not to be trusted, by this error. Its rank is told why it is
    /// hung up on, while that way still holds, so that it fails as the others do.
    fn distrust(&mut self, id: u64, error: &io::Error) {
        let changed = wire::is_changed(error);
        let how = match changed {
            true => wire::changed_on_the_way(&peer::host_name()),
            false => format!("its control connection carried {error}"),
        };
        let Some(line) = self.lines.get_mut(id) else { return };
        // Nobody is known by a first frame that was changed, but by the key that it showed.
        if changed && matches!(self.phase, Phase::Gathering(_)) {
            line.known = line.known.or(Some((line.caller, false)));
        }
        line.last_words(&ToNode::Failed { what: how.clone() });
        self.hang_up(id, &how);
    }

    /// A connection is over.
    fn hang_up(&mut self, id: u64, how: &str) {
        let Some(line) = self.lines.remove(id, &self.epoll) else { return };
        let Some((rank, _)) = line.known else { return };
        match &mut self.phase {
            Phase::Gathering(roster) => {
                // Where nobody has said how many there are, those who come until the time is up are told.
                let (what, size) = (roster.lost(rank, how), roster.size().unwrap_or(usize::MAX));
                self.fail(what, size, HashSet::from([rank]), Instant::now() + HELD);
            }
            Phase::Failed { held, told, .. } => {
                held.remove(&id);
                told.insert(rank);
            }
            Phase::Running { court, active, .. } => {
                *active = self.clock.shown();
                court.departed(rank, Some(how.to_string()));
            }
        }
    }

    /// Time has passed.
    fn tick(&mut self, now: Instant) {
        let gathers_until = self.gathers_until();
        self.door.sweep(now, &self.epoll);
        self.lines.sweep(now, &self.epoll);
        match &mut self.phase {
            Phase::Gathering(roster) => {
                // A rank that finds no place here comes no later for being waited for; but it is told why, once there is one.
                if self.door.ran_out() {
                    self.starves_by.get_or_insert(self.clock.shown() + descriptors::PATIENCE);
                }
                let given_up = self.stay.given_up.lock().take();
                if let Some(what) = given_up {
                    let size = roster.size().unwrap_or(0);
                    return self.fail(what, size, HashSet::from([0]), now);
                }
                if self.stay.withdrawn.load(Ordering::Acquire) {
                    let size = roster.size().unwrap_or(0);
                    let what = "the process that holds the meeting point has given it up; see its output".to_string();
                    return self.fail(what, size, HashSet::new(), now);
                }
                if self.somebody_came && gathers_until <= self.clock.shown() {
                    let (mut what, size) = (roster.missing(self.patience), roster.size().unwrap_or(0));
                    if self.door.ran_out() {
                        what += &format!(
                            "; or the limit of {} file descriptors kept them out, which process {} on host {}, where \
                             they meet, has reached; {}",
                            descriptors::limit(),
                            std::process::id(),
                            peer::host_name(),
                            descriptors::RAISE
                        );
                    }
                    what += &self.door.turned_away.explain();
                    self.fail(what, size, HashSet::new(), now);
                }
            }
            Phase::Failed { .. } => {}
            Phase::Running { court, waits, held, active, .. } => {
                let now = self.clock.shown();
                court.tick(now);
                if *waits && self.stay.asked.load(Ordering::Acquire) {
                    let last = held.get_or_insert(Held { since: now, say_at: now + SAY_AFTER });
                    if last.until(court, *active).is_none_or(|until| now < until) {
                        if last.say_at <= now {
                            last.say(court, now);
                        }
                        return;
                    }
                    (*waits, *held) = (false, None);
                }
            }
        }
        // Nobody is waited for who has not come yet, nor where this process is no rank.
        if self.stay.asked.load(Ordering::Acquire) {
            self.stay.end.come();
        }
    }

    /// Tell this process' own ranks, too, why the job cannot start, once the others have been told: not merely once
    /// it is queued for them, since the process, and the hub with it, may end as soon as its own ranks know. Returns
    /// whether it did.
    fn release(&mut self, now: Instant) -> bool {
        let Phase::Failed { what, size, told, held, hold_until, .. } = &mut self.phase else { return false };
        let on_its_way = || self.lines.any_unsent(held);
        let due = *hold_until <= now || told.len() + held.len() >= *size;
        if held.is_empty() || !due || *hold_until + HELD > now && on_its_way() {
            return false;
        }
        let message = ToNode::Failed { what: what.clone() };
        for id in std::mem::take(held) {
            told.extend(self.lines.get(id).and_then(|line| line.known).map(|(rank, _)| rank));
            self.lines.send(id, &message);
        }
        true
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
#[path = "hub_tests.rs"]
mod tests;
