//! A node is one process's membership in a job: meeting the others, showing the key, and from then
//! on news of their fate.
//!
//! ```text
//!           node 0 ── control ──┐                 ┌── control ── node 2
//!   (data and unix doors)       ├───── hub ───────┤        (data and unix doors)
//!           node 1 ── control ──┘   (one thread   └── control ── node 3
//!                                in one process)
//! ```
//! Every node has one thread and one control connection to the *hub*, a thread in rank 0's process
//! or wherever the [`UniqueId`] was made. The hub gathers the ranks, tells each who the others are,
//! and afterwards carries what they report: it sees a process end because its connection closes,
//! and it makes sure that all members of a communicator get the same verdict. Data never passes
//! through it: for that, nodes accept connections from each other ([`Node::connect`]) and hand each
//! other shared memory ([`Node::fetch_fd`]).
//!
//! * `id`: what names a job and says where it meets. `meeting`: a rank's way in.
//! * `hub`: the hub's I/O with its connections, `lines`, around `roster` (who has come) and `court`
//!   (verdicts), both without I/O.
//! * `service`: a node's thread. `shared`: what it shares with its callers. `jury`: asking for
//!   verdicts. `cut_off`: how the connection to the hub ends before the node leaves. `handover`:
//!   passing file descriptors.
//! * `frame`: the control connection's messages, `wire`: as bytes, each with its `tag`. `auth`:
//!   showing the `key`, which makes a `session`. `door`: accepting strangers safely, `turned_away`:
//!   those that are not let in. `dial`: calling somebody with several addresses. `connecting`:
//!   making data connections. `making`: whether all members have made a communicator. `silence`:
//!   hosts that vanish. `neighbour`: processes of this host that end. `peer`: what ranks know of
//!   each other, `affinity`: the cores among it. `interfaces`, `ports`: where to listen.
//!
//! Nothing here is global to the process: threads may each have a node of their own. Children by
//! `fork` have none: see [`fork`](maypole_transports::fork).

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
mod jury;
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

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole_transports::fork::Own;
use maypole_transports::lock::{Condvar, Mutex};
use maypole_transports::tcp::Wire;
use nix::sys::epoll::EpollTimeout;
use nix::sys::eventfd::{EfdFlags, EventFd};

pub(crate) use self::affinity::affinity;
use self::frame::{Runs, ToHub};
pub use self::id::{Meeting, UniqueId};
pub use self::peer::{Peer, Settings};
use self::shared::{Registered, Shared};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::exit::{End, Membership};
use crate::watch::Watch;

/// The shortest sleep of a thread for which something is due.
const BREATH: Duration = Duration::from_millis(1);
/// The most TCP connections between two ranks on a channel.
const CONNECTIONS: usize = 64;

/// One rank's membership in a job. See the [module](self).
///
/// Dropping it leaves the job in good order, and so does the end of the process
/// ([`exit`](crate::exit)). That takes a round trip to the hub. A process that has the hub waits at
/// its end until the other processes have left too, because the hub ends with it. A process that is
/// killed or aborts, or drops its node while panicking, counts as dead.
pub struct Node {
    shared: Own<Arc<Shared>>,
    thread: Own<Option<JoinHandle<()>>>,
}

impl Node {
    /// Bring this rank into the job. Blocks until all `size` ranks have come, at most
    /// `MAYPOLE_CONNECT_TIMEOUT` and a few seconds. Raises the process' soft limit of file
    /// descriptors to its hard one.
    ///
    /// # Errors
    /// [`Error::Bootstrap`], on every rank with the same text: a rank that did not come (named),
    /// two processes with one rank, a rank out of range, different world sizes, versions or
    /// settings, a rank that cannot take part, a world that needs more file descriptors than the
    /// process that gathers it may have. The same kind if this rank cannot reach the meeting point.
    /// [`Error::Setting`] if no network interface is as the settings ask; [`Error::System`] if the
    /// system refuses sockets or a thread.
    pub fn join(meeting: Meeting, rank: usize, size: usize, config: &Config) -> Result<Arc<Node>> {
        config.check()?;
        let mut met = meeting::meet(meeting, rank, size, config)?;
        let system = |e: std::io::Error| {
            let what = format!("rank {rank} cannot start its node's thread");
            Error::system(what, e)
        };
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
        let thread = std::thread::Builder::new().name("maypole-node".into());
        let thread = service::Service::new(shared.clone(), met.inbox, met.data, met.local)
            .and_then(|service| thread.spawn(move || service.run()))
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

    /// Take part in the communicator `context` (a number that no other communicator of the job
    /// has), whose members are these world ranks in the communicator's order: `watch` is told its
    /// verdict, at once if there is one already, and is asked what this rank has called. Verdicts
    /// name communicator ranks. Returns at once.
    ///
    /// # Panics
    /// If this rank is not among `members`.
    pub fn register(&self, context: u64, members: Vec<usize>, watch: Arc<Watch>) {
        let shared = &self.shared;
        let me = members.iter().position(|rank| *rank == shared.rank);
        let me = me.expect("a rank registers communicators that it belongs to");
        if members.len() > 1 {
            shared.post(&ToHub::Register { context, members: Runs::new(&members) });
        }
        let (watched, left, audited) = (watch.clone(), false, 0);
        let registered = Registered { members, me, watch: watched, left, audited, word: None };
        shared.contexts.lock().insert(context, registered);
        shared.finished.lock().remove(context);
        if let Some(verdict) = shared.early.lock().remove(context) {
            watch.declare(verdict);
        }
        shared.declare_cut_off(context);
        shared.ring();
    }

    /// Whether there is a verdict on `context`, of which this rank is a member that has not
    /// registered it.
    pub fn has_ended(&self, context: u64) -> bool {
        self.shared.early.lock().contains(context)
    }

    /// This rank has no more to do with `context`; the others are told if
    /// [`Jury::leave`](crate::watch::Jury::leave) has not told them. Connections and descriptors
    /// that wait for it are dropped.
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

    /// The connections that world rank `peer` has opened to this rank for `context` and `channel`,
    /// once all `connections` of them are there; each is given out once. Never waits.
    pub fn accepted(&self, peer: usize, context: u64, channel: usize, connections: usize) -> Option<Vec<Wire>> {
        let mut arrivals = self.shared.arrivals.lock();
        let there = arrivals.get(&(peer, context, channel))?;
        // One that its caller has closed already, since it did not hear in time that it was let in,
        // will be made again.
        let is_missing = |place: &Option<Wire>| place.as_ref().is_none_or(service::is_spent);
        if there.len() != connections || there.iter().any(is_missing) {
            return None;
        }
        arrivals.remove(&(peer, context, channel))?.into_iter().collect()
    }

    /// What is wrong if others have been calling this rank for some seconds and its process has had
    /// no file descriptor to let them in with. Whoever waits for them to come waits in vain.
    pub fn starved(&self) -> Option<String> {
        self.shared.starved.load(Ordering::Acquire).then(|| {
            format!(
                "process {} on host {}, rank {} of the world, has none of its {} file descriptors \
                 left to let others in with; {}",
                std::process::id(),
                self.shared.peers[self.shared.rank].host,
                self.shared.rank,
                crate::descriptors::limit(),
                crate::descriptors::RAISE
            )
        })
    }

    /// Have `wake` called, on a thread of the node's, whenever a TCP connection for `context` has
    /// come in or been made, and at times for no reason, until [`Node::unregister`]. It must not
    /// block.
    pub fn on_accept(&self, context: u64, wake: Box<dyn Fn() + Send + Sync>) {
        self.shared.on_accept.lock().push((context, wake.into()));
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

/// Keep signals away from this thread: handlers are the application's, and so are the threads they
/// interrupt.
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
