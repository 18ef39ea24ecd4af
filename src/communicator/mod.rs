//! [`Communicator`]: one rank's handle to a group of ranks.
//!
//! * `build`: making one, from the environment, from an id, as threads. `children`: from another one.
//! * `call`: what an operation is made of: checking its arguments, planning it, running it.
//! * `call_v`, [`blocks`]: the same for blocks with counts of their own.
//! * `typed`, `typed_v`: the collectives as methods on slices of [`Element`](crate::Element)s.
//! * `point_to_point`: messages between two ranks. `group`, `group_v`, `group_run`: many calls at once.
//! * [`stream`], [`request`], `outcome`: asynchronous calls.
//! * [`persistent`]: calls planned once and started many times; [`planner`] makes them, `prepared` runs them.
//! * [`registered`]: buffers that the ranks of a host read where they lie.
//! * [`raw`]: all of it on memory by address, for other languages.
//! * `on_stream`: operations on device buffers, queued on a CUDA stream.
//! * `turn`: the order of operations. `panics`: their end when one of them panics. `local`: the jury of ranks that are threads.

pub mod blocks;
pub(crate) mod build;
mod call;
mod call_v;
mod children;
mod group;
mod group_run;
pub(crate) mod join;
mod local;
pub(crate) mod on_stream;
mod outcome;
mod panics;
pub mod persistent;
pub mod planner;
mod point_to_point;
mod prepared;
pub mod raw;
pub mod registered;
pub mod request;
pub(crate) mod sharing;
pub mod stream;
mod turn;

use std::cell::UnsafeCell;
use std::sync::{Arc, OnceLock};

use maypole_collectives::Order;
use maypole_transports::fork::{Own, Process};
use maypole_transports::lock::Mutex;
use maypole_transports::shm::Arena;

pub use call::Call;
pub(crate) use call::{Buffers, Lengths};
pub use group::Group;
pub use point_to_point::Tagged;

use self::blocks::Spread;
use self::build::World;
use self::children::Children;
use self::stream::Stream;
use self::turn::Turns;
use crate::config::{Config, TransportChoice};
use crate::device::state::Device;
use crate::engine::messages::Messages;
use crate::engine::{Engine, wait};
use crate::error::{Error, Result, Verdict};
use crate::topology::Topology;
use crate::tuner::{self, Tuner};
use crate::watch::{Jury, Watch};

/// One rank's handle to a group of ranks that exchange data by collective operations.
///
/// Every rank of the group makes the same calls in the same order, with the same counts, types, operations and roots;
/// ranks that do not, all get an error that shows both sides. Collectives run one at a time in the order of the calls,
/// messages between two ranks beside them. A call blocks until this rank's part is done: its output is complete and its
/// input may be changed; other ranks may still be at it.
///
/// After an error other than [`Error::Argument`] the communicator has failed for good, on every
/// rank, and every further call returns the same error. A rank that dies or leaves is one for those that need it: what
/// can be completed with what it had sent is completed, and the error comes at the next call that cannot.
///
/// It may be shared between threads; their calls are then ordered by when they were made, which must be the same on
/// every rank to be of use. Dropping it leaves the group, and so does the end of the process ([`exit`](crate::exit)), where the one
/// that holds the job together, rank 0's or where the id was made, waits for the others. Dropping waits for nobody, but
/// where it is attached to a device: for its own operations on streams, and for other processes to have read what they
/// need of this one's device memory.
///
/// It belongs to the process that made it. In a child by `fork` every call returns [`Error::Argument`], and dropping it
/// does nothing, to it or to the parent; the same holds for everything made of it.
pub struct Communicator {
    pub(crate) inner: Own<Arc<Inner>>,
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Communicator").field("rank", &self.rank()).field("size", &self.size()).finish_non_exhaustive()
    }
}

/// Whose something is.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    process: Process,
    rank: usize,
}

impl Owner {
    /// Rank `rank`, in this process.
    fn new(rank: usize) -> Owner {
        Owner { process: Process::this(), rank }
    }

    #[inline]
    fn is_here(&self) -> bool {
        self.process.is_this()
    }

    /// Whether it may be used here. One relaxed load.
    ///
    /// # Errors
    /// [`Error::Argument`] in a process that was forked off since.
    #[inline]
    fn check(&self) -> Result<()> {
        if self.is_here() { Ok(()) } else { Err(self.elsewhere()) }
    }

    #[cold]
    fn elsewhere(&self) -> Error {
        let what = format!(
            "process {} was forked off by the one that is this rank, and is no rank itself: connections and threads \
             stayed with its parent; make communicators after forking, or start processes by spawn or exec",
            std::process::id()
        );
        Error::Argument { rank: self.rank, what }
    }
}

pub(crate) struct Inner {
    owner: Owner,
    world: World,
    context: u64,
    /// World rank of each rank.
    members: Vec<usize>,
    rank: usize,
    size: usize,
    config: Config,
    topology: Topology,
    /// Whether all ranks share memory.
    shares_memory: bool,
    turns: Turns,
    work: UnsafeCell<Work>,
    /// Messages between two ranks, which have no turns.
    messages: Arc<Messages>,
    watch: Arc<Watch>,
    jury: Arc<dyn Jury>,
    children: Children,
    /// The memory of this host's ranks, in which children get theirs.
    arena: Option<Arc<Arena>>,
    /// Number of the latest registered buffer. Locked while one is made.
    allocations: Mutex<u64>,
    /// Its device, once it is attached to one, and whoever is at that.
    device: OnceLock<Arc<Device>>,
    attaching: Mutex<()>,
    /// Carries asynchronous calls that name no stream; started by the first of them.
    own_stream: Mutex<Option<Stream>>,
}

/// What an operation works with. Only the holder of the present ticket touches it.
struct Work {
    engine: Engine,
    tuner: Tuner,
    /// Number of the latest collective.
    sequence: u64,
    /// Digest of the latest collective.
    past: u32,
    /// The blocks of the present operation, where they have counts of their own.
    spread: Spread,
}

// SAFETY: `work` is only touched by whoever holds the present ticket of `turns` (see `Inner::work`), which orders the
// accesses of different threads; the raw pointers in it point into memory it owns. Everything else is Send and Sync.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Communicator {
    fn new(
        world: World,
        (context, members): (u64, Vec<usize>),
        topology: Topology,
        (engine, messages): (Engine, Messages),
        config: Config,
    ) -> Communicator {
        let links = &engine.links;
        let (rank, size) = (links.me, links.size);
        // Not from this rank's own links: one that is alone on its host has no group, though others have.
        let apart = config.transport == TransportChoice::Tcp || topology.host_count() == size;
        let kind = match (links.one_sided(), apart) {
            (true, _) => tuner::Links::Shared,
            (false, true) => tuner::Links::Tcp,
            (false, false) => tuner::Links::Mixed,
        };
        let arena = links.routes.group.as_ref().and_then(|group| group.arena().cloned());
        let tuner = Tuner::new((rank, size), kind, topology.placement(), &config);
        let (watch, jury) = (engine.court.watch.clone(), engine.court.jury.clone());
        let work = Work { engine, tuner, sequence: 0, past: 0, spread: Spread::default() };
        let inner = Inner {
            owner: Owner::new(rank),
            world,
            context,
            members,
            rank,
            size,
            config,
            topology,
            shares_memory: kind == tuner::Links::Shared,
            turns: Turns::default(),
            work: UnsafeCell::new(work),
            messages: Arc::new(messages),
            watch,
            jury,
            children: Children::default(),
            arena,
            allocations: Mutex::new(0),
            device: OnceLock::new(),
            attaching: Mutex::new(()),
            own_stream: Mutex::new(None),
        };
        let inner = Arc::new(inner);
        if matches!(inner.world, World::Processes(_)) {
            crate::exit::list_communicator(&inner);
        }
        Communicator { inner: Own::new(inner) }
    }

    /// This rank's number, from 0.
    pub fn rank(&self) -> usize {
        self.inner.rank
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.inner.size
    }

    /// The settings it was made with.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// A number that all its ranks know it by, and that no other communicator of the same world has.
    pub fn context(&self) -> u64 {
        self.inner.context
    }

    /// Where its ranks are.
    pub fn topology(&self) -> &Topology {
        &self.inner.topology
    }

    /// Whether its ranks are threads of this process, and more than one.
    pub fn ranks_are_threads(&self) -> bool {
        matches!(self.inner.world, build::World::Threads(_))
    }

    /// Set the deadline of this rank's operations from the next on: when nothing of one has moved for so long, on any
    /// rank, and a rank does not answer, the communicator fails, with an error that names that rank. One that is late but
    /// answers is waited for (with warnings) up to `MAYPOLE_LATE` if that is longer. Time in which this process does not
    /// run does not count. `MAYPOLE_TIMEOUT` is the first value.
    ///
    /// # Panics
    /// In a user's operation of this communicator, which would wait for itself.
    pub fn set_timeout(&self, timeout: std::time::Duration) {
        self.set_timeout_of_collectives(timeout);
        self.inner.messages.set_timeout(timeout);
        if let Some(device) = self.inner.device.get() {
            device.sentry.set_timeout(timeout);
        }
    }

    /// [`Communicator::set_timeout`] for collectives on host memory only: messages, which other threads may wait for
    /// meanwhile, keep theirs.
    ///
    /// # Panics
    /// As [`Communicator::set_timeout`].
    pub fn set_timeout_of_collectives(&self, timeout: std::time::Duration) {
        self.inner.set(|work| work.engine.court.timeout = timeout);
    }

    /// Set in which order this communicator's reductions combine ranks' elements, from the next operation on. Every rank
    /// must set the same; those that differ are told at the next reduction that this would run differently.
    /// `MAYPOLE_ORDER` is the first value.
    ///
    /// With [`Order::Canonical`] each element is ((x0 ⊕ x1) ⊕ x2) ⊕ ..., in the order of the ranks: the same bits
    /// whatever the algorithm, the transport, the hosts and the length of the message. It costs large reductions some
    /// speed, most where many ranks share hosts.
    ///
    /// # Panics
    /// As [`Communicator::set_timeout`].
    pub fn set_order(&self, order: Order) {
        self.inner.set(|work| work.tuner.order = order);
    }

    /// Give up: every rank's present and future calls on this communicator return an error that names this rank and
    /// `why` (of a text of more than 16 KiB, the beginning), unless it had failed before. Returns once the verdict stands
    /// here, which takes a round trip to the process that holds the job together.
    pub fn abort(&self, why: &str) {
        if !self.inner.owner.is_here() {
            return;
        }
        let verdict = Verdict::Aborted { rank: self.rank(), why: why.to_string() };
        self.inner.jury.report(self.inner.context, verdict.clone());
        // Not declared here at once: another rank's verdict may be on its way, and all ranks get the same.
        wait::for_verdict(&self.inner.watch, verdict);
        self.inner.give_up();
    }

    /// The verdict on this communicator, if it has failed.
    pub fn verdict(&self) -> Option<Verdict> {
        self.inner.watch.verdict()
    }
}

impl Inner {
    /// Whether it has something under way that others may wait for: a collective that has begun or is queued, or a
    /// message that is not quite sent.
    pub(crate) fn is_at_work(&self) -> bool {
        !self.watch.is_over() && (self.turns.are_taken() || self.messages.is_sending())
    }

    /// This rank does nothing in the communicator any more, even if the verdict on it is one after which operations go on.
    #[cold]
    fn give_up(&self) {
        if self.watch.give_up() {
            self.jury.give_up(self.context, self.rank);
        }
    }

    /// Whether this rank is the process that calls.
    ///
    /// # Errors
    /// [`Error::Argument`] in a child of it.
    pub(crate) fn check_process(&self) -> Result<()> {
        self.owner.check()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The others must not take this for a rank that has done its part.
            let how = "it dropped the communicator while panicking".to_string();
            let host = self.topology.hosts()[self.rank].clone();
            self.jury.report(self.context, Verdict::Died { rank: self.rank, host, how });
        }
        if let Some(device) = self.device.take() {
            device.leave();
        }
        self.messages.stop();
        self.jury.leave(self.context, self.rank);
        if let World::Processes(node) = &self.world {
            node.unregister(self.context);
        }
        crate::exit::unlist_communicator();
    }
}
