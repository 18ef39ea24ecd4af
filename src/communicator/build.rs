//! Making communicators: giving ranks that have come together their links, on all of them or on none.

use std::sync::Arc;

use maypole_transports::shm::Group;
use maypole_transports::tcp::Poller;
use maypole_transports::wait::Patience;

use super::join::join;
use super::local::Threads;
use super::sharing::{Room, SEGMENT, shape, share_group};
use super::{Communicator, Inner};
use crate::capacity::Capacity;
use crate::config::{Config, TransportChoice, unknown};
use crate::engine::Engine;
use crate::engine::links::Links;
use crate::engine::messages::Messages;
use crate::engine::routes::{DEVICE, Network, POINT_TO_POINT, Routes};
use crate::engine::wait::Court;
use crate::error::{Error, Result, Verdict};
use crate::launch;
use crate::node::{Meeting, Node, UniqueId};
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
        Communicator::of_members(node, WORLD, members, Making::Apart, config)
    }

    /// A communicator of some ranks of a node's world. `members`: their world ranks, in the order of the communicator.
    pub(super) fn of_members(
        node: Arc<Node>,
        context: u64,
        members: Vec<usize>,
        making: Making,
        config: Config,
    ) -> Result<Communicator> {
        let me = members.iter().position(|w| *w == node.rank()).expect("a rank builds only its own communicators");
        let watch: Arc<Watch> = Arc::default();
        node.register(context, members.clone(), watch.clone());
        Communicator::link_members(&node, (context, members), me, (watch, making), config).inspect_err(|error| {
            // The others may wait for this rank's part of what they build.
            node.report(context, Verdict::Aborted { rank: me, why: format!("it could not be made: {error}") });
            node.see_verdict(context);
            node.unregister(context);
        })
    }

    fn link_members(
        node: &Arc<Node>,
        (context, members): (u64, Vec<usize>),
        me: usize,
        (watch, making): (Arc<Watch>, Making),
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
        let place = local.iter().position(|rank| *rank == me).expect("this rank is local to itself");
        let routes = |group: Option<Group>| routes(node, (context, &members, me), (&local, group), &config);
        let (routes, far) = match making {
            Making::Together(room) => {
                let shape = || shape(local.len(), &Capacity::of(members.len(), &config));
                routes(room?.map(|room| room.move_in(me, place, shape()?)).transpose()?)?
            }
            Making::Apart => {
                let group = match local.len() {
                    1 => None,
                    _ => share_group(node, (context, &members, &local), &config, place)?,
                };
                let cannot = group.is_none() && local.len() > 1;
                let mut made = routes(group)?;
                let apart = node.all_make(context, cannot, config.connect_timeout)?;
                if !apart.is_empty() {
                    // What one cannot share no rank of its host shares.
                    if !cannot && local.iter().any(|rank| apart.contains(rank)) {
                        made = routes(None)?;
                    }
                    node.all_make(context, false, config.connect_timeout)?;
                }
                node.unshare_fd(context, SEGMENT);
                made
            }
        };
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

/// The ways from rank `me` to the others: through `group` to those that are `local`, if there is one; and whether any go
/// through the network.
fn routes(
    node: &Arc<Node>,
    (context, members, me): (u64, &[usize], usize),
    (local, group): (&[usize], Option<Group>),
    config: &Config,
) -> Result<([Routes; 2], bool)> {
    let mut places = vec![None; members.len()];
    match &group {
        Some(_) => local.iter().enumerate().for_each(|(place, rank)| places[*rank] = Some(place)),
        None => places[me] = Some(0),
    }
    let group = group.map(Arc::new);
    let far = places.contains(&None);
    let network = || far.then(|| network(node, (context, members), config)).transpose();
    let [collectives, messages] = CHANNELS_APART;
    let routes = [
        Routes::new(me, places.clone(), group.clone(), network()?, collectives),
        Routes::new(me, places, group, network()?, messages),
    ];
    Ok((routes, far))
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

/// How the members of a communicator know that all have made their parts.
pub(super) enum Making {
    /// They tell each other in the parent, all of whose ranks make children at the same time. Those of this host have
    /// agreed to have their segment there, if they share memory; or this rank could not make the room.
    Together(Result<Option<Room>>),
    /// Through the hub: they alone know of it. One of them makes the segment and hands it to the others of its host.
    Apart,
}

/// A channel of the collectives and one of the messages between two ranks: each kind waits apart.
const CHANNELS_APART: [usize; 2] = [0, POINT_TO_POINT];
