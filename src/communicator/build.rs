//! Making communicators: bringing ranks together and giving each its links.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use maypole_transports::shm::{Arena, Group, Segment, Shape};
use maypole_transports::tcp::Poller;
use maypole_transports::wait::Patience;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::local::Threads;
use super::{Communicator, Inner};
use crate::capacity::Capacity;
use crate::config::{Config, TransportChoice, unknown};
use crate::engine::Engine;
use crate::engine::links::Links;
use crate::engine::messages::Messages;
use crate::engine::routes::{CHANNELS, DEVICE, Network, POINT_TO_POINT, Routes};
use crate::engine::wait::Court;
use crate::error::{Error, Result, Verdict};
use crate::launch::{self, Launch, LaunchMeeting};
use crate::node::{Meeting, Node, UniqueId};
use crate::running::Limit;
use crate::topology::Topology;
use crate::watch::{Jury, Watch};

/// The context of a world's first communicator.
const WORLD: u64 = 1;

/// What the ranks of a world have in common; children of a communicator are made from it.
#[derive(Clone)]
pub(super) enum World {
    /// A world of one needs nobody.
    Alone,
    /// Ranks as threads of this process.
    Threads(Arc<Threads>),
    /// Ranks as processes.
    Processes(Arc<Node>),
}

/// This machine's name, for messages.
pub(super) fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned())
}

/// Meet the other ranks in the way that the launcher offers, and wait until all have come; `None` in a world of one.
pub(crate) fn join(launch: Launch, config: &Config) -> Result<Option<Arc<Node>>> {
    let (rank, size) = (launch.rank, launch.size);
    let node = match launch.meeting {
        LaunchMeeting::Alone => return Ok(None),
        LaunchMeeting::Address { host, port } => {
            let key = address_key(&host, port, &launch.run);
            config.refuse_open("an address")?;
            // Only those that stood count, on all ranks alike: a rank that gave up and tries again
            // means the same one.
            let worlds = launch::worlds::met_at(&format!("{host} {port}"));
            let earlier = worlds.load(Ordering::Relaxed) as usize;
            let node = Node::join(Meeting::Address { host, port, key, earlier }, rank, size, config)?;
            worlds.store(earlier as u64 + 1, Ordering::Relaxed);
            warn_if_guessable(&node, config);
            node
        }
        LaunchMeeting::Board(mut board) => {
            if board.is_open() {
                config.refuse_open("a store that others can read")?;
            }
            // Rank 0's id must live until the others have come, and it reads too: some boards need every rank for that.
            let create = || if board.is_local() { UniqueId::local(config) } else { UniqueId::create(config) };
            let own = (rank == 0).then(create).transpose()?;
            if let Some(id) = &own {
                board.post(id.as_bytes())?;
            }
            let notice = board.read(config.connect_timeout)?;
            let id = own.map_or_else(|| UniqueId::from_bytes(&notice), Ok)?;
            // What rank 0 posted may vanish when it takes leave of the launcher: not before all have read it and come.
            let node = Node::join(Meeting::Id(id), rank, size, config);
            // The world stands whether or not that can be taken down.
            if rank == 0
                && node.is_ok()
                && let Err(error) = board.clear()
            {
                tracing::warn!("what rank 0 posted for the others cannot be taken down: {error}");
            }
            board.finish()?;
            node?
        }
    };
    Ok(Some(node))
}

impl Communicator {
    /// The world that this process was launched into, with settings from `MAYPOLE_*`.
    ///
    /// Understands torchrun, `maypole run`, Open MPI (PMIx), MPICH, Intel MPI and other Hydra launchers (PMI-1), Slurm,
    /// and plain RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Without any of these the world has one rank. Blocks
    /// until all ranks have come, at most `MAYPOLE_CONNECT_TIMEOUT`.
    ///
    /// A program may do so again. Where the ranks meet at an address (RANK and the rest by hand, srun without PMI), the
    /// earlier world must be gone on every rank, and is waited for; through a launcher's own board both may live. A part of a world, or a second one beside it, is had more cheaply from [`Communicator::split`] and
    /// [`Communicator::duplicate`].
    ///
    /// # Errors
    /// [`Error::Setting`] for a variable that makes no sense, [`Error::Bootstrap`] when ranks are missing, doubled or
    /// disagree, on every rank.
    pub fn from_env() -> Result<Communicator> {
        Communicator::from_env_with(Config::from_env()?)
    }

    /// [`Communicator::from_env`] with the settings given; the environment is only asked who and where this rank is.
    pub fn from_env_with(config: Config) -> Result<Communicator> {
        config.check()?;
        crate::log::init(config.log.as_deref());
        let launch = launch::detect(&config, &|name| std::env::var(name).ok())?;
        unknown::mention(launch.rank);
        tracing::debug!(rank = launch.rank, size = launch.size, launcher = launch.launcher, "launched");
        match join(launch, &config)? {
            None => Communicator::alone(config),
            Some(node) => Communicator::of_processes(node, config),
        }
    }

    /// A world whose ranks all hold the same id, made by one of them with [`UniqueId::create`] and handed to the others
    /// in any way. Blocks until all have come. Ranks may be processes or threads.
    pub fn from_id(id: &UniqueId, rank: usize, size: usize, config: Config) -> Result<Communicator> {
        config.check()?;
        crate::log::init(config.log.as_deref());
        unknown::mention(rank);
        Communicator::of_processes(Node::join(Meeting::Id(*id), rank, size, &config)?, config)
    }

    /// A world of `size` ranks within this process, one for each thread that is handed one. They share memory like
    /// processes do.
    ///
    /// ```
    /// let world = maypole::Communicator::threads(3)?;
    /// std::thread::scope(|s| {
    ///     for comm in world {
    ///         s.spawn(move || {
    ///             let mut sum = [0.0f32; 2];
    ///             comm.all_reduce(&[1.0, comm.rank() as f32], &mut sum, maypole::ReduceOp::Sum).unwrap();
    ///             assert_eq!(sum, [3.0, 3.0]);
    ///         });
    ///     }
    /// });
    /// # Ok::<(), maypole::Error>(())
    /// ```
    pub fn threads(size: usize) -> Result<Vec<Communicator>> {
        Communicator::threads_with(size, Config::from_env()?)
    }

    /// [`Communicator::threads`] with the settings given. With TCP as the transport, the threads meet on loopback.
    pub fn threads_with(size: usize, config: Config) -> Result<Vec<Communicator>> {
        config.check()?;
        crate::log::init(config.log.as_deref());
        if size == 0 {
            return Err(Error::bootstrap("a world needs at least one rank, but 0 were asked for"));
        }
        unknown::mention(0);
        if config.transport == TransportChoice::Tcp && size > 1 {
            let id = UniqueId::create(&config)?;
            return std::thread::scope(|s| {
                let join = |rank| {
                    let config = config.clone();
                    s.spawn(move || Communicator::from_id(&id, rank, size, config))
                };
                let ranks: Vec<_> = (0..size).map(join).collect();
                ranks.into_iter().map(|rank| rank.join().expect("joining does not panic")).collect()
            });
        }
        let threads = Arc::new(Threads::new(size));
        (0..size)
            .map(|rank| Communicator::of_threads(&threads, WORLD, rank, (0..size).collect(), config.clone()))
            .collect()
    }

    pub(super) fn alone(config: Config) -> Result<Communicator> {
        Ok(Communicator::threads_with(1, config)?.remove(0))
    }

    /// A communicator of some threads of a world. `members`: their ranks in the world, in the order of the communicator.
    pub(super) fn of_threads(
        threads: &Arc<Threads>,
        context: u64,
        me: usize,
        members: Vec<usize>,
        config: Config,
    ) -> Result<Communicator> {
        let size = members.len();
        let (segment, watch) = threads.join(context, me, &members, shape(size, &Capacity::of(size, &config))?)?;
        let group = Some(Arc::new(Group::new(segment, me)));
        let topology = Topology::one_host(host_name(), size);
        let places: Vec<Option<usize>> = (0..size).map(Some).collect();
        let routes = CHANNELS_APART.map(|channel| Routes::new(me, places.clone(), group.clone(), None, channel));
        let world = if size == 1 { World::Alone } else { World::Threads(threads.clone()) };
        let jury: Arc<dyn Jury> = threads.clone();
        let patience = patience(&Topology::one_host(host_name(), threads.size()), 0);
        Ok(Communicator::assemble(world, (context, members), (topology, patience), routes, (watch, jury), config))
    }

    fn of_processes(node: Arc<Node>, config: Config) -> Result<Communicator> {
        let members = (0..node.size()).collect();
        Communicator::of_members(node, WORLD, members, None, config)
    }

    /// A communicator of some ranks of a node's world. `members`: their world ranks, in the order of the communicator.
    /// `room`: where those of this host have agreed to have their segment; without, one of them makes it and hands it
    /// to the others.
    pub(super) fn of_members(
        node: Arc<Node>,
        context: u64,
        members: Vec<usize>,
        room: Option<Room>,
        config: Config,
    ) -> Result<Communicator> {
        let me = members.iter().position(|w| *w == node.rank()).expect("a rank builds only its own communicators");
        let watch: Arc<Watch> = Arc::default();
        node.register(context, members.clone(), watch.clone());
        Communicator::link_members(&node, (context, members), me, (watch, room), config).inspect_err(|error| {
            // The others may wait for this rank's part of what they build.
            node.report(context, Verdict::Aborted { rank: me, why: format!("it could not be made: {error}") });
            node.unregister(context);
        })
    }

    fn link_members(
        node: &Arc<Node>,
        (context, members): (u64, Vec<usize>),
        me: usize,
        (watch, room): (Arc<Watch>, Option<Room>),
        config: Config,
    ) -> Result<Communicator> {
        let peers = node.peers();
        let topology = Topology::new(members.iter().map(|w| &peers[*w]));
        let shares = |r: &usize| {
            config.transport != TransportChoice::Tcp && peers[members[*r]].host_id == peers[members[me]].host_id
        };
        let local: Vec<usize> = (0..members.len()).filter(|r| *r == me || shares(r)).collect();
        if config.transport == TransportChoice::Shm && local.len() < members.len() {
            let far = (0..members.len()).find(|r| !local.contains(r)).expect("counted");
            return Err(Error::bootstrap(format!(
                "MAYPOLE_TRANSPORT=shm, but rank {me} on host {} shares no memory with rank {far} on host {} (hosts, \
                 containers, users or MAYPOLE_HOST differ); use MAYPOLE_TRANSPORT=auto",
                peers[members[me]].host, peers[members[far]].host,
            )));
        }
        let mut places = vec![None; members.len()];
        let mut group = None;
        if local.len() > 1 {
            let place = local.iter().position(|rank| *rank == me).expect("this rank is local to itself");
            group = match room {
                Some(room) => {
                    Some(room.move_in(me, place, shape(local.len(), &Capacity::of(members.len(), &config))?)?)
                }
                None => share_group(node, (context, &members, &local), &watch, &config, place)?,
            };
        }
        match &group {
            Some(_) => local.iter().enumerate().for_each(|(place, rank)| places[*rank] = Some(place)),
            None => places[me] = Some(0),
        }
        let group = group.map(Arc::new);
        let far = places.contains(&None);
        let network = || far.then(|| network(node, (context, &members), &config)).transpose();
        let [collectives, messages] = CHANNELS_APART;
        let routes = [
            Routes::new(me, places.clone(), group.clone(), network()?, collectives),
            Routes::new(me, places, group, network()?, messages),
        ];
        let jury: Arc<dyn Jury> = node.clone();
        let world = World::Processes(node.clone());
        // All ranks of the host count, those outside this communicator too: they may be at work at the same time.
        let patience = patience(&Topology::new(peers.iter()), node.rank());
        let patience = if far { patience.with_sockets() } else { patience };
        Ok(Communicator::assemble(world, (context, members), (topology, patience), routes, (watch, jury), config))
    }

    fn assemble(
        world: World,
        (context, members): (u64, Vec<usize>),
        (topology, patience): (Topology, Patience),
        [collectives, messages]: [Routes; 2],
        (watch, jury): (Arc<Watch>, Arc<dyn Jury>),
        config: Config,
    ) -> Communicator {
        let links = Links::new(collectives);
        let me = links.me;
        for rest in [links.routes.rest().clone(), messages.rest().clone()] {
            watch.on_verdict(Box::new(move || rest.wake()));
        }
        let court = Court {
            context,
            me,
            hosts: topology.hosts(),
            watch,
            jury,
            patience: config.spin.map_or(patience, |time| patience.with_time(time)),
            timeout: config.timeout,
            late: config.late,
        };
        tracing::info!(
            rank = me,
            size = links.size,
            context,
            cores = topology.cores_beside(me),
            numa_node = topology.numa_node(me),
            "communicator made: {}",
            links.describe(&topology)
        );
        let messages = Messages::new(messages, court.clone(), &config);
        let engines = (Engine::new(links, court), messages);
        Communicator::new(world, (context, members), topology, engines, config)
    }
}

/// What ranks that meet at an address have in common without `MAYPOLE_KEY`, of this `run` of the job: only as secret as
/// the address. It keeps out accidents and other jobs, not an attacker.
fn address_key(host: &str, port: u16, run: &str) -> [u8; 32] {
    blake3::derive_key("maypole 2026 address", format!("{host}\n{port}\n{run}").as_bytes())
}

/// Say once, on rank 0, that strangers could join ranks on several hosts that met at an address without a secret.
fn warn_if_guessable(node: &Node, config: &Config) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let here = node.peers()[0].host_id;
    let far = node.peers().iter().find(|peer| peer.host_id != here && peer.data.iter().any(|a| !a.ip().is_loopback()));
    if let Some(far) = far.filter(|_| config.key.is_none() && node.rank() == 0)
        && !SAID.swap(true, Ordering::Relaxed)
    {
        crate::log::warn(format_args!(
            "the job's key is derived from the meeting point's address, and ranks are on several hosts ({}, {}): whoever \
             reaches their ports can join them; set MAYPOLE_KEY to the same secret on all ranks (`openssl rand -hex 32` \
             makes one), and MAYPOLE_REQUIRE_KEY=1 to have its absence refused",
            node.peers()[0].host,
            far.host
        ));
    }
}

/// How long a rank polls that shares its host with the ranks of `everyone` that are there.
fn patience(everyone: &Topology, rank: usize) -> Patience {
    Patience::for_host(everyone.ranks_beside(rank), everyone.cores_beside(rank))
}

/// The way to ranks that share no memory with this one, with a poller of its own.
fn network(node: &Arc<Node>, (context, members): (u64, &[usize]), config: &Config) -> Result<Network> {
    let poller = Arc::new(Poller::new(members.len()).map_err(|e| Error::system("making an epoll set", e))?);
    let waker = poller.waker();
    node.on_accept(context, Box::new(move || waker.wake()));
    let (members, connections) = (members.to_vec(), config.connections);
    let credit = Capacity::of(members.len(), config).socket;
    Ok(Network { node: node.clone(), context, members, connections, credit, poller })
}

impl Inner {
    /// Routes to the ranks that share no memory with this one, for device buffers: see `device/courier`. `None` where
    /// there are no such ranks.
    pub(crate) fn device_routes(&self) -> Result<Option<Routes>> {
        let World::Processes(node) = &self.world else { return Ok(None) };
        if self.shares_memory {
            return Ok(None);
        }
        let mut places = vec![None; self.size];
        places[self.rank] = Some(0);
        let network = network(node, (self.context, &self.members), &self.config)?;
        Ok(Some(Routes::new(self.rank, places, None, Some(network), DEVICE)))
    }

    /// What whoever waits on this communicator outside its engine needs to know. Waits for the operations before.
    ///
    /// # Errors
    /// Those of [`Inner::between`].
    pub(crate) fn court(&self) -> Result<Court> {
        self.between(|work| work.engine.court.clone())
    }
}

/// The number under which a communicator's segment is handed out; its registered memory has those from 1.
const SEGMENT: u32 = 0;

/// A channel of the collectives and one of the messages between two ranks: each kind waits apart.
const CHANNELS_APART: [usize; 2] = [0, POINT_TO_POINT];

/// A place for the segment of some ranks of a host, in a file that they have open.
pub(super) struct Room {
    pub arena: Arc<Arena>,
    pub at: u64,
}

impl Room {
    fn move_in(&self, rank: usize, place: usize, shape: Shape) -> Result<Group> {
        let segment = Segment::in_arena(shape, &self.arena, self.at);
        let segment = segment.map_err(|e| Error::system(format!("rank {rank}: sharing memory"), e))?;
        Ok(Group::new(segment, place))
    }
}

/// What is handed to the others in place of memory that there is not, for as long as the communicator is there.
fn stand_in() -> nix::Result<OwnedFd> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map(OwnedFd::from)
}

fn is_stand_in(fd: &OwnedFd) -> bool {
    nix::sys::stat::fstat(fd).is_ok_and(|about| about.st_mode & libc::S_IFMT != libc::S_IFREG)
}

/// The most bytes that a segment may have: more addresses than this no process has on the machines there are.
const ADDRESSES: usize = 1 << 47;

/// The segment of a communicator with `members` ranks on this host and links of that capacity.
///
/// # Errors
/// [`Error::System`] where that is more than a process can address.
pub(crate) fn shape(members: usize, capacity: &Capacity) -> Result<Shape> {
    let shape = Shape {
        members,
        channels: CHANNELS,
        second_bell_from: POINT_TO_POINT,
        ring: capacity.ring,
        window: capacity.place(),
    };
    if shape.bytes() <= ADDRESSES {
        return Ok(shape);
    }
    let Capacity { ring, window, .. } = capacity;
    Err(Error::system(
        format!("sharing memory among {members} ranks"),
        format!(
            "with links of {ring} bytes, {CHANNELS} each way between any two, and publications of {window} it takes \
             more than the {ADDRESSES} bytes that a process can address; set MAYPOLE_RING or MAYPOLE_WINDOW lower, or \
             MAYPOLE_TRANSPORT=tcp"
        ),
    ))
}

/// The lowest local rank makes the segment, the others fetch it from there. It waits until all have, so that whoever
/// has a communicator may drop it at once. `None` on all of them where the system does not let it, and TCP will do.
fn share_group(
    node: &Node,
    (context, members, local): (u64, &[usize], &[usize]),
    watch: &Watch,
    config: &Config,
    place: usize,
) -> Result<Option<Group>> {
    let shape = shape(local.len(), &Capacity::of(members.len(), config))?;
    let rank = local[place];
    let system = |e| Error::system(format!("rank {rank}: sharing memory"), e);
    if place > 0 {
        let fd = node.fetch_fd(members[local[0]], context, SEGMENT, config.connect_timeout)?;
        if is_stand_in(&fd) {
            return Ok(None);
        }
        return Ok(Some(Group::new(Segment::open(shape, fd).map_err(system)?, place)));
    }
    let segment = match Segment::create(shape) {
        Ok(segment) => segment,
        Err(refusal) if config.transport == TransportChoice::Auto => {
            node.share_fd(context, SEGMENT, stand_in().map_err(|e| Error::system("making an eventfd", e))?);
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| {
                crate::log::warn(format_args!(
                    "rank {rank}: the ranks of this host talk over TCP, which is slower, because they cannot share \
                     memory: {refusal}; MAYPOLE_TRANSPORT=tcp says that this is meant"
                ));
            });
            return Ok(None);
        }
        Err(refusal) => return Err(system(refusal)),
    };
    let fd = segment.fd().expect("made with a descriptor").try_clone_to_owned().map_err(|e| Error::system("dup", e))?;
    let group = Group::new(segment, place);
    node.share_fd(context, SEGMENT, fd);
    let (limit, mut pause) = (Limit::after(config.connect_timeout), Duration::from_micros(20));
    loop {
        let absent = group.absent();
        if absent.is_empty() {
            node.unshare_fd(context, SEGMENT);
            return Ok(Some(group));
        }
        if let Some(verdict) = watch.verdict() {
            return Err(Error::Failed { rank, verdict });
        }
        if let Some(what) = node.starved() {
            return Err(Error::bootstrap(format!("rank {rank} shares memory, and cannot hand it to others: {what}")));
        }
        if limit.has_passed() {
            let absent: Vec<usize> = absent.into_iter().map(|place| local[place]).collect();
            return Err(Error::bootstrap(format!(
                "rank {rank} shares memory, but ranks {absent:?} of its host did not take it within {:?}; if they are in \
                 different containers, set MAYPOLE_TRANSPORT=tcp",
                config.connect_timeout
            )));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(1));
    }
}
