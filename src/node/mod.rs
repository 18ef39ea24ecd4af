//! A node is one process's membership in a job: meeting the others, showing the key, and from then on news of their
//! fate.
//!
//! ```text
//!           node 0 ── control ──┐                 ┌── control ── node 2
//!   (data and unix doors)       ├───── hub ───────┤        (data and unix doors)
//!           node 1 ── control ──┘   (one thread   └── control ── node 3
//!                                in one process)
//! ```
//! Every node has one thread and one control connection to the *hub*, a thread in rank 0's process or wherever the
//! [`UniqueId`] was made. The hub gathers the ranks, tells each who the others are, and afterwards carries what they
//! report: it sees a process end because its connection closes, and it makes sure that all members of a communicator
//! get the same verdict. Data never passes through it: for that, nodes accept connections from each other
//! ([`Node::connect`]) and hand each other shared memory ([`Node::fetch_fd`]).
//!
//! * `id`: what names a job and says where it meets. `meeting`: a rank's way in.
//! * `hub`: the hub's I/O with its connections, `lines`, around `roster` (who has come) and `court` (verdicts), both
//!   without I/O.
//! * `service`: a node's thread. `shared`: what it shares with its callers. `cut_off`: how a node's
//!   connection to the hub ends before it leaves. `handover`: passing file descriptors.
//! * `frame`: the control connection's messages, `wire`: as bytes, each with its `tag`. `auth`: showing the `key`, which
//!   makes a `session`. `door`: accepting strangers safely, `turned_away`: those that are not let in. `dial`: calling
//!   somebody with several addresses. `connecting`: making data connections. `making`: whether all members have made a
//!   communicator. `silence`: hosts that vanish. `neighbour`:
//!   processes of this host that end. `peer`: what ranks know of each other, `affinity`: the cores among it.
//!   `interfaces`, `ports`: where to listen.
//!
//! Nothing here is global to the process: threads may each have a node of their own. Children by `fork` have none: see
//! [`fork`].

mod affinity;
mod auth;
#[cfg(test)]
mod claims_tests;
mod connecting;
mod court;
mod cut_off;
#[cfg(test)]
mod cut_off_tests;
#[cfg(test)]
mod defect_tests;
mod dial;
mod door;
mod frame;
mod handover;
mod hub;
mod id;
pub(crate) mod interfaces;
mod key;
mod lines;
mod making;
mod meeting;
mod neighbour;
#[cfg(any(test, fuzzing))]
pub(crate) mod outside;
mod peer;
pub(crate) mod ports;
mod recent;
mod roster;
mod service;
mod session;
mod shared;
mod silence;
mod tag;
mod turned_away;
mod wire;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole_transports::fork::{self, Own};
use maypole_transports::lock::{Condvar, Mutex};
use maypole_transports::tcp::Wire;
use nix::sys::epoll::EpollTimeout;
use nix::sys::eventfd::{EfdFlags, EventFd};

pub(crate) use self::affinity::affinity;
use self::auth::{Errand, Purpose};
use self::frame::{Runs, ToHub};
pub use self::id::{Meeting, UniqueId};
pub use self::peer::{Peer, Settings};
use self::shared::{Registered, Shared};
use crate::config::Config;
use crate::error::{Error, Result, Verdict};
use crate::exit::{End, Membership};
use crate::fingerprint::Fingerprint;
use crate::launch::run_board;
use crate::running::Limit;
use crate::watch::{Jury, Stall, Watch};

/// The shortest sleep of a thread for which something is due.
const BREATH: Duration = Duration::from_millis(1);
/// The most TCP connections between two ranks on a channel.
const CONNECTIONS: usize = 64;

/// One rank's membership in a job. See the [module](self).
///
/// Dropping it leaves the job in good order, and so does the end of the process ([`exit`](crate::exit)). That takes a
/// round trip to the hub. A process that has the hub waits at its end until the other processes have left too, because the
/// hub ends with it. A process that is killed or aborts, or drops its node while panicking, counts as dead.
pub struct Node {
    shared: Own<Arc<Shared>>,
    thread: Own<Option<JoinHandle<()>>>,
}

impl Node {
    /// Bring this rank into the job. Blocks until all `size` ranks have come, at most `MAYPOLE_CONNECT_TIMEOUT` and a
    /// few seconds. Raises the process' soft limit of file descriptors to its hard one.
    ///
    /// # Errors
    /// [`Error::Bootstrap`], on every rank with the same text: a rank that did not come (named), two processes with one
    /// rank, a rank out of range, different world sizes, versions or settings, a rank that cannot take part, a world that
    /// needs more file descriptors than the process that gathers it may have. The same kind if this rank cannot reach
    /// the meeting point. [`Error::Setting`] if no network interface is as the settings ask; [`Error::System`] if the
    /// system refuses sockets or a thread.
    pub fn join(meeting: Meeting, rank: usize, size: usize, config: &Config) -> Result<Arc<Node>> {
        config.check()?;
        let mut met = meeting::meet(meeting, rank, size, config)?;
        let system = |e: std::io::Error| Error::system(format!("rank {rank} cannot start its node's thread"), e);
        // The others have this rank in their tables by now: they are told if it cannot go on.
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| system(e.into()))
            .inspect_err(|error| {
                met.outbox.push(&ToHub::Fallen { how: error.to_string() });
                let _ = met.outbox.flush(&met.control);
            })?;
        let shared = Arc::new(Shared {
            rank,
            peers: met.peers,
            hub: met.hub,
            key: met.key,
            config: config.clone(),
            control: met.control,
            outbox: Mutex::new(met.outbox),
            bell,
            contexts: Mutex::default(),
            spoken: Condvar::new(),
            early: Mutex::default(),
            finished: Mutex::default(),
            arrivals: Mutex::default(),
            underway: Mutex::default(),
            on_accept: Mutex::default(),
            offered: Mutex::default(),
            due: Mutex::default(),
            doubted: AtomicBool::new(false),
            pings: Mutex::default(),
            here: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            troubled: AtomicBool::new(false),
            cut_off: OnceLock::new(),
            end: End::default(),
            starved: AtomicBool::new(false),
        });
        let thread = service::Service::new(shared.clone(), met.inbox, met.data, met.local)
            .and_then(|service| std::thread::Builder::new().name("maypole-node".into()).spawn(move || service.run()))
            .map_err(system)
            .inspect_err(|error| shared.post(&ToHub::Fallen { how: error.to_string() }))?;
        let membership: Arc<dyn Membership> = shared.clone();
        crate::exit::list_membership(Arc::downgrade(&membership));
        Ok(Arc::new(Node { shared: Own::new(shared), thread: Own::new(Some(thread)) }))
    }

    /// This rank in the world.
    pub fn rank(&self) -> usize {
        self.shared.rank
    }

    /// Number of ranks in the world.
    pub fn size(&self) -> usize {
        self.shared.peers.len()
    }

    /// All ranks of the world, this one included, by rank.
    pub fn peers(&self) -> &[Peer] {
        &self.shared.peers
    }

    /// Take part in the communicator `context` (a number that no other communicator of the job has), whose members are
    /// these world ranks in the communicator's order: `watch` is told its verdict, at once if there is one already, and
    /// is asked what this rank has called. Verdicts name communicator ranks. Returns at once.
    ///
    /// # Panics
    /// If this rank is not among `members`.
    pub fn register(&self, context: u64, members: Vec<usize>, watch: Arc<Watch>) {
        let shared = &self.shared;
        let me =
            members.iter().position(|r| *r == shared.rank).expect("a rank registers communicators that it belongs to");
        if members.len() > 1 {
            shared.post(&ToHub::Register { context, members: Runs::new(&members) });
        }
        let registered = Registered { members, me, watch: watch.clone(), left: false, audited: 0, word: None };
        shared.contexts.lock().insert(context, registered);
        shared.finished.lock().remove(context);
        if let Some(verdict) = shared.early.lock().remove(context) {
            watch.declare(verdict);
        }
        shared.declare_cut_off(context);
        shared.ring();
    }

    /// Whether there is a verdict on `context`, of which this rank is a member that has not registered it.
    pub fn has_ended(&self, context: u64) -> bool {
        self.shared.early.lock().contains(context)
    }

    /// This rank has no more to do with `context`; the others are told if [`Jury::leave`] has not told them.
    /// Connections and descriptors that wait for it are dropped.
    pub fn unregister(&self, context: u64) {
        let shared = &self.shared;
        shared.leave(context);
        shared.contexts.lock().remove(&context);
        shared.finished.lock().insert(context, ());
        shared.early.lock().remove(context);
        shared.arrivals.lock().retain(|(_, c, _), _| *c != context);
        shared.underway.lock().retain(|(_, c, _), _| *c != context);
        shared.on_accept.lock().retain(|(c, _)| *c != context);
        shared.offered.lock().retain(|(c, _), _| *c != context);
    }

    /// The connections that world rank `peer` has opened to this rank for `context` and `channel`, once all
    /// `connections` of them are there; each is given out once. Never waits.
    pub fn accepted(&self, peer: usize, context: u64, channel: usize, connections: usize) -> Option<Vec<Wire>> {
        let mut arrivals = self.shared.arrivals.lock();
        let there = arrivals.get(&(peer, context, channel))?;
        // One that its caller has closed already, since it did not hear in time that it was let in, will be made again.
        if there.len() != connections || there.iter().any(|place| place.as_ref().is_none_or(service::is_spent)) {
            return None;
        }
        arrivals.remove(&(peer, context, channel))?.into_iter().collect()
    }

    /// What is wrong if others have been calling this rank for some seconds and its process has had no file descriptor to
    /// let them in with. Whoever waits for them to come waits in vain.
    pub fn starved(&self) -> Option<String> {
        self.shared.starved.load(Ordering::Acquire).then(|| {
            format!(
                "process {} on host {}, rank {} of the world, has none of its {} file descriptors left to let others in \
                 with; {}",
                std::process::id(),
                self.shared.peers[self.shared.rank].host,
                self.shared.rank,
                crate::descriptors::limit(),
                crate::descriptors::RAISE
            )
        })
    }

    /// Have `wake` called, on a thread of the node's, whenever a TCP connection for `context` has come in or been made,
    /// and at times for no reason, until [`Node::unregister`]. It must not block.
    pub fn on_accept(&self, context: u64, wake: Box<dyn Fn() + Send + Sync>) {
        self.shared.on_accept.lock().push((context, wake.into()));
    }

    /// Offer `fd` (a memfd) to the ranks of this host that fetch number `number` for `context`, until
    /// [`Node::unshare_fd`] or [`Node::unregister`].
    pub fn share_fd(&self, context: u64, number: u32, fd: OwnedFd) {
        fork::close_in_children(&fd);
        self.shared.offered.lock().insert((context, number), Arc::new(fd));
        self.shared.ring();
    }

    /// Fetch what world rank `peer`, on the same host, shares as number `number` for `context`. Blocks until it does, at most
    /// for the time `within`, or until the communicator has a verdict.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] naming the peer and what is wrong; [`Error::Failed`] if there is a verdict.
    pub fn fetch_fd(&self, peer: usize, context: u64, number: u32, within: Duration) -> Result<OwnedFd> {
        let shared = &self.shared;
        let watch = shared.contexts.lock().get(&context).map(|r| (r.watch.clone(), r.me));
        let limit = Limit::after(within);
        let give_up = || {
            limit.left();
            watch.as_ref().is_some_and(|(w, _)| w.raised())
        };
        let (start, other) = (Instant::now(), &shared.peers[peer]);
        let errand = Errand {
            purpose: Purpose::Local,
            sealed: false,
            from: shared.rank as u32,
            to: peer as u32,
            context,
            channel: number,
            index: 0,
            total: 1,
        };
        let fetched = loop {
            match handover::fetch(&other.local, &shared.key, &errand, limit.if_not_stopped(), &give_up) {
                Err(auth::Refusal::Silent) if !limit.has_passed() => {}
                fetched => break fetched,
            }
        };
        fetched.map_err(|refusal| match watch.as_ref().and_then(|(w, me)| Some((w.verdict()?, *me))) {
            Some((verdict, rank)) => Error::Failed { rank, verdict },
            None => Error::bootstrap(format!(
                "world rank {} could not get shared memory from world rank {peer} (process {} on host {}) within \
                     {:.1?}: {}; if the ranks are in different containers, set MAYPOLE_TRANSPORT=tcp",
                shared.rank,
                other.pid,
                other.host,
                start.elapsed(),
                crate::descriptors::explain(refusal)
            )),
        })
    }

    /// Offer the descriptor no longer. Ranks that have fetched it keep theirs.
    pub fn unshare_fd(&self, context: u64, number: u32) {
        self.shared.offered.lock().remove(&(context, number));
    }
}

impl Jury for Node {
    fn report(&self, context: u64, verdict: Verdict) {
        if matches!(verdict, Verdict::Aborted { .. }) && self.shared.is_fine(context) {
            run_board::say_that_this_rank_aborts();
        }
        self.shared.report(context, verdict);
    }

    fn hears(&self) -> bool {
        !self.shared.is_cut_off()
    }

    fn inquire(&self, context: u64, _asker: usize, operation: Fingerprint, peer: usize) {
        self.shared.post(&ToHub::Inquire { context, operation, peer });
    }

    fn stalled(&self, context: u64, reporter: usize, stall: Stall) {
        let (shared, Stall { operation, after, .. }) = (&self.shared, stall);
        let watch = shared.contexts.lock().get(&context).map(|r| r.watch.clone());
        let unheard = watch.and_then(|watch| watch.unheard());
        let hub = shared.hub_as_member(context);
        let culprits = hub.map_or_else(Vec::new, |rank| {
            vec![(
                rank,
                shared.hub.host.clone(),
                "its process, which holds the job together, does not answer".to_string(),
            )]
        });
        let alone = match unheard {
            Some(peer) if culprits.is_empty() => {
                let host = shared.host_of_member(context, peer);
                Verdict::unheard(operation, (reporter, peer), host, after)
            }
            // Where the hub does not answer, each rank says so by itself, and all are to say the same: in the name of the
            // first that can.
            _ => {
                let reporter = hub.map_or(reporter, |hub| usize::from(hub == 0));
                Verdict::Stalled { operation, reporter, after, culprits }
            }
        };
        shared.post_or_else(context, &ToHub::Stalled { context, stall, unheard }, alone);
    }

    fn doubt(&self, context: u64) {
        self.shared.doubt(context);
    }

    fn give_up(&self, context: u64, _rank: usize) {
        self.shared.post(&ToHub::GiveUp { context });
    }

    fn leave(&self, context: u64, _rank: usize) {
        self.shared.leave(context);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.shared.is_ours() {
            return;
        }
        self.shared.part();
        if let Some(thread) = self.thread.take().filter(|t| !crate::communicator::stream::is_this_thread(t))
            && self.shared.end.wait(crate::interrupt::look)
        {
            let _ = thread.join();
        }
        crate::exit::unlist_membership(Arc::as_ptr(&self.shared).cast());
    }
}

/// What a panic of a thread of ours is called, for people.
fn defect(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().copied();
    let words = words.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given");
    format!("a defect in Maypole: {words}")
}

/// Keep signals away from this thread: handlers are the application's, and so are the threads they interrupt.
pub(crate) fn quiet_thread() {
    let _ = nix::sys::signal::SigSet::all().thread_block();
}

/// An epoll timeout that ends at `deadline` or just after.
fn nap_until(deadline: Instant) -> EpollTimeout {
    let millis = deadline.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000).min(60_000);
    EpollTimeout::from(millis as u16)
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("rank", &self.rank()).field("size", &self.size()).finish_non_exhaustive()
    }
}
