//! A rank's way into the job: reach the meeting point, open its own doors, introduce itself, and wait until all have
//! come.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use maypole_transports::fork;
use nix::poll::PollFlags;

use super::auth::{self, Errand, HUB, Purpose};
use super::dial::{self, Failures};
use super::frame::{Hello, HubPlace, TABLE_LIMIT, ToHub, ToNode};
use super::id::Meeting;
use super::key::Key;
use super::peer::{self, Peer, Settings};
use super::session::Session;
use super::tag::Writer;
use super::wire::{self, Inbox, Outbox};
use super::{hub, interfaces, ports, roster, silence};
use crate::config::{Config, Family};
use crate::descriptors;
use crate::error::{Error, Result, cut};
use crate::running::Limit;

/// Between attempts to reach the meeting point: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(200));
/// How long one round of attempts lasts before names are looked up again.
const ROUND: Duration = Duration::from_secs(5);
/// How long another job's process may hold the meeting point (it may be ending) before that is an error.
const WRONG_KEY_PATIENCE: Duration = Duration::from_secs(3);
/// How long every address in a unique id may refuse. Whoever made it listened before, so that process has ended; a program
/// that tries again needs to know much sooner than its time is up, or it never meets the others' next attempts.
fn refused_patience(connect_timeout: Duration) -> Duration {
    (connect_timeout / 8).min(Duration::from_secs(1))
}
/// How much longer than the hub a rank waits: the hub knows better what is wrong.
const GRACE: Duration = Duration::from_secs(3);

/// What a rank has when all have come.
pub(super) struct Met {
    pub key: Key,
    /// The control connection, non-blocking, what has arrived on it, and what goes out on it.
    pub control: TcpStream,
    pub inbox: Inbox,
    pub outbox: Outbox,
    pub peers: Vec<Peer>,
    pub hub: HubPlace,
    pub data: TcpListener,
    pub local: UnixListener,
}

/// Where to go.
enum Point {
    Known(Vec<SocketAddr>),
    Named { host: String, port: u16, fallback: Option<SocketAddr> },
}

impl Point {
    /// For people.
    fn name(&self) -> String {
        match self {
            Point::Known(addresses) => addresses.iter().map(|a| a.to_string()).collect::<Vec<_>>().join(" or "),
            Point::Named { host, port, .. } => format!("{host}:{port}"),
        }
    }

    /// The addresses now: a name may get others while ranks start.
    fn addresses(&self, family: Family) -> std::result::Result<Vec<SocketAddr>, String> {
        let (mut list, fallback) = match self {
            Point::Known(addresses) => (addresses.clone(), None),
            Point::Named { host, port, fallback } => {
                let found = (host.as_str(), *port).to_socket_addrs();
                (
                    found.map(|all| all.collect()).or_else(|e| fallback.map(|_| Vec::new()).ok_or(e.to_string()))?,
                    *fallback,
                )
            }
        };
        // Somebody named the meeting point: the family that data connections shall have is only a preference here.
        list.sort_by_key(|a| (!peer::allowed(family, &a.ip()), a.is_ipv6()));
        list.dedup();
        list.extend(fallback.filter(|f| !list.contains(f)));
        if list.is_empty() { Err("the name has no address".to_string()) } else { Ok(list) }
    }
}

/// Bring this rank into the job. Blocks until all ranks have come.
///
/// # Errors
/// [`Error::Bootstrap`]: what is wrong with the job, the same on every rank, or why the meeting point cannot be
/// reached.
pub(super) fn meet(meeting: Meeting, rank: usize, size: usize, config: &Config) -> Result<Met> {
    let start = Instant::now();
    descriptors::raise();
    if size == 0 || size > roster::LARGEST || u32::try_from(rank).is_err() {
        return Err(Error::bootstrap(format!(
            "rank {rank} of a world of {size}: the size must be from 1 to {} and the rank below it",
            roster::LARGEST
        )));
    }
    let open = matches!(&meeting, Meeting::Address { host, .. } if !names_this_host(host));
    // A world of this job that met there before is no stranger: it is waited for as long as a late rank is.
    let patience = match &meeting {
        Meeting::Address { earlier: 1.., .. } => config.connect_timeout,
        _ => WRONG_KEY_PATIENCE,
    };
    let limit = Limit::after(config.connect_timeout);
    let (point, key) = go(meeting, rank, size, config, &limit)?;
    let met = come((&point, key), (rank, size), open, config, (start, &limit), patience);
    match (met, &point) {
        (Err(error), Point::Named { port, fallback: Some(_), .. }) => {
            let why = cut(format!("{} cannot take part: {error}", who(rank)));
            Err(hub::give_up(*port, &why).map_or(error, |why| Error::bootstrap(format!("rank {rank}: {why}"))))
        }
        (met, _) => met,
    }
}

/// This rank, for the others.
fn who(rank: usize) -> String {
    format!("rank {rank} (process {} on host {})", std::process::id(), peer::host_name())
}

/// Come to the meeting point, and wait there for the others. `open`: as in [`open_data`].
fn come(
    (point, key): (&Point, Key),
    (rank, size): (usize, usize),
    open: bool,
    config: &Config,
    (start, limit): (Instant, &Limit),
    patience: Duration,
) -> Result<Met> {
    let mut pause = RETRY.0;
    loop {
        let (control, address, session) = reach(point, &key, rank, config, (start, limit), patience)?;
        let (mut inbox, mut outbox) = session.into_frames(Writer::Node);
        let (data, local, hello) = prepare(&control, open, (rank, size), config).inspect_err(|error| {
            // Without a word the others would wait for this rank as long as they may.
            let why = format!("{} cannot take part: {error}", who(rank));
            outbox.push(&ToHub::Unable { rank, size, why: cut(why) });
            let _ = outbox.flush(&control);
        })?;
        let within = config.connect_timeout.saturating_add(GRACE);
        let longer = Limit::after(within);
        let word = match introduce((&control, address), (&mut inbox, &mut outbox), hello, &longer) {
            // Rank 0 opens the port anew for the next attempt.
            Ok(ToNode::Again) if limit.left() > pause => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(RETRY.1);
                continue;
            }
            Ok(ToNode::Table { peers, hub }) if peers.len() == size && in_order(&peers) => {
                return Ok(Met { key, control, inbox, outbox, peers, hub, data, local });
            }
            word => word,
        };
        return Err(no_table(word, (rank, address), point, within));
    }
}

/// What it means that the hub said `word` to `rank` at `address`, or nothing, in place of who the ranks are.
fn no_table(
    word: std::result::Result<ToNode, auth::Refusal>,
    (rank, address): (usize, SocketAddr),
    point: &Point,
    within: Duration,
) -> Error {
    Error::bootstrap(match word {
        Ok(ToNode::Failed { what }) => format!("rank {rank}: {what}"),
        Ok(ToNode::Again) => format!(
            "rank {rank} came to the meeting point {address} again after a failed attempt, but rank 0 did not, in time"
        ),
        Ok(_) => format!("rank {rank}: the meeting point at {address} answered something unexpected"),
        Err(refusal) => format!(
            "rank {rank} came to the meeting point {address}, but waited in vain for the other ranks: {}; \
             see the output of the process that holds it ({})",
            match refusal {
                auth::Refusal::Closed => "the process there ended".to_string(),
                auth::Refusal::Silent => format!("nothing was heard for {within:?}"),
                other => other.to_string(),
            },
            match point {
                Point::Named { .. } => "rank 0",
                Point::Known(_) => "the one that made the unique id",
            }
        ),
    })
}

/// This rank's doors, for data and for ranks of its host, and what it says of itself. `control`: its connection to the
/// hub; `open`: as in [`open_data`].
fn prepare(
    control: &TcpStream,
    open: bool,
    (rank, size): (usize, usize),
    config: &Config,
) -> Result<(TcpListener, UnixListener, Hello)> {
    silence::keep_alive(control, config.timeout)
        .map_err(|e| Error::system("cannot set keep-alive on the control connection", e))?;
    let route = control.local_addr().map_err(|e| Error::system("cannot tell this rank's own address", e))?.ip();
    let (data, published) = open_data(route, open, config)?;
    let (local, name) = open_local().map_err(|e| Error::system("cannot open a unix socket", e))?;
    let system = |e| Error::system("cannot tell this process' host and namespaces", e);
    let hello = Hello {
        size,
        version: env!("CARGO_PKG_VERSION").to_string(),
        process: peer::process_id().map_err(system)?,
        peer: Peer {
            rank,
            host: peer::host_name(),
            host_id: peer::host_id(config).map_err(system)?,
            pid: std::process::id(),
            data: published,
            local: name,
            cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
            affinity: super::affinity::affinity(),
        },
        settings: Settings::of(config),
    };
    Ok((data, local, hello))
}

/// Whether `host` can only mean the machine itself, so that all ranks are on it.
fn names_this_host(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Where this rank has to go; rank 0 opens the meeting point if it is an address.
fn go(meeting: Meeting, rank: usize, size: usize, config: &Config, limit: &Limit) -> Result<(Point, Key)> {
    let (host, port, key, earlier) = match meeting {
        Meeting::Id(id) => {
            let id = super::UniqueId::from_bytes(id.as_bytes())?;
            return Ok((Point::Known(id.addresses()), Key::of_world(id.random(), 0, config)));
        }
        Meeting::Address { host, port, key, earlier } => (host, port, Key::of_world(&key, earlier, config), earlier),
    };
    if rank != 0 {
        return Ok((Point::Named { host, port, fallback: None }, key));
    }
    let (own, family) = where_to_listen(&host, port, config)?;
    let bound = loop {
        match hub::listen(own, port, family) {
            // The world before holds the port until its last rank has left, a failed attempt until this one begins.
            Err(e)
                if e.kind() == std::io::ErrorKind::AddrInUse
                    && (hub::give_way(port) || earlier > 0)
                    && !limit.has_passed() =>
            {
                std::thread::sleep(RETRY.0);
            }
            bound => break bound,
        }
    };
    let listener = bound.map_err(|e| {
        let holder = match earlier {
            0 => "is another job or program using the port?",
            _ => "does an earlier world of this program still live? Drop it on every rank first, or split or duplicate it.",
        };
        Error::bootstrap(format!(
            "rank 0 cannot listen at the meeting point {host}:{port}: {}; {holder} Give all ranks another one (MASTER_PORT)",
            descriptors::explain(e)
        ))
    })?;
    let at = listener.local_addr().map_err(|e| Error::system("cannot tell the meeting point's address", e))?;
    let fallback = match at.ip() {
        ip if ip.is_unspecified() => SocketAddr::from(([127, 0, 0, 1], at.port())),
        _ => at,
    };
    hub::start(listener, key.clone(), config, Some(size))?;
    Ok((Point::Named { host, port: at.port(), fallback: Some(fallback) }, key))
}

/// The address at which rank 0 listens when the ranks meet at `host` (all of the machine's if `None`), and the family.
/// A loopback name is for this machine only. The interface and the family that are asked for count if the name has an
/// address there; otherwise it may mean one that this machine does not know as its own.
fn where_to_listen(host: &str, port: u16, config: &Config) -> Result<(Option<IpAddr>, Family)> {
    let mut known: Vec<IpAddr> =
        (host, port).to_socket_addrs().map_or_else(|_| Vec::new(), |all| all.map(|a| a.ip()).collect());
    known.sort_by_key(|ip| (!peer::allowed(config.family, ip), ip.is_ipv6()));
    if names_this_host(host) {
        return Ok((known.first().copied(), Family::Any));
    }
    let own = match &config.interface {
        Some(_) => interfaces::addresses(config)?.into_iter().find(|ip| known.contains(ip)),
        None => None,
    };
    let family = if known.iter().any(|ip| peer::allowed(config.family, ip)) { config.family } else { Family::Any };
    Ok((own, family))
}

/// Connect to the hub, again and again until it is there. `patience`: how long one with another key may be in its place.
fn reach(
    point: &Point,
    key: &Key,
    rank: usize,
    config: &Config,
    (start, limit): (Instant, &Limit),
    patience: Duration,
) -> Result<(TcpStream, SocketAddr, Session)> {
    let look = || {
        limit.left();
        false
    };
    let errand = Errand {
        purpose: Purpose::Control,
        sealed: config.encrypt,
        from: rank as u32,
        to: HUB,
        context: 0,
        channel: 0,
        index: 0,
        total: 0,
    };
    let mut pause = RETRY.0;
    let mut wrong_key: Option<Instant> = None;
    let mut before: Option<String> = None;
    let mut ran_out: Option<Instant> = None;
    let mut refused: Option<Instant> = None;
    loop {
        let mut why = match point.addresses(config.family) {
            Err(e) => e,
            Ok(addresses) => {
                let round = limit.if_not_stopped().min(Instant::now() + ROUND);
                let failures: Failures = match dial::call(&addresses, None, key, &errand, round, &look) {
                    Ok(reached) => return Ok(reached),
                    Err(failures) => failures,
                };
                let wrong = failures.iter().any(|(_, r)| matches!(r, auth::Refusal::WrongKey));
                wrong_key = wrong.then(|| wrong_key.unwrap_or_else(Instant::now));
                let nobody = matches!(point, Point::Known(_)) && dial::refused(&failures);
                refused = nobody.then(|| refused.unwrap_or_else(Instant::now));
                let none_left = dial::ran_out(&failures);
                ran_out = none_left.then(|| ran_out.unwrap_or_else(Instant::now));
                dial::explain(&failures)
            }
        };
        // Of an attempt that was cut short by the end of the time one learns nothing; the one before knows better.
        if limit.left().is_zero() {
            why = before.unwrap_or(why);
        }
        let in_vain = wrong_key.is_some_and(|since| since.elapsed() >= patience)
            || refused.is_some_and(|since| since.elapsed() >= refused_patience(config.connect_timeout))
            || ran_out.is_some_and(|since| since.elapsed() >= descriptors::PATIENCE);
        if limit.left() <= pause || in_vain {
            return Err(Error::bootstrap(format!(
                "rank {rank} on host {} could not reach the meeting point {} within {:.1?} ({why}); check that {}, and \
                 that no firewall is in between",
                peer::host_name(),
                point.name(),
                start.elapsed(),
                match point {
                    Point::Named { .. } =>
                        "rank 0 runs there, that every rank was given the same address, port (MASTER_ADDR, \
                         MASTER_PORT) and key (MAYPOLE_KEY)",
                    Point::Known(_) =>
                        "the process that made the unique id still runs, that every rank has the same MAYPOLE_KEY",
                }
            )));
        }
        before = Some(why);
        std::thread::sleep(pause);
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Open the door for data connections. `open`: whether other hosts may come although this rank reached the meeting
/// point by a loopback address. Returns what to publish, best first.
fn open_data(route: IpAddr, open: bool, config: &Config) -> Result<(TcpListener, Vec<SocketAddr>)> {
    let allowed = interfaces::addresses(config)?;
    let route = match route {
        // An IPv4 connection to a socket that serves both.
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(route, IpAddr::V4),
        IpAddr::V4(_) => route,
    };
    let wanted = match (&config.interface, route.is_loopback() && !open) {
        (Some(_), _) => interfaces::bound(config, &allowed, Some(route))?,
        (None, true) => allowed
            .iter()
            .find(|ip| ip.is_loopback() && ip.is_ipv4() == route.is_ipv4())
            .or_else(|| allowed.iter().find(|ip| ip.is_loopback()))
            .copied(),
        (None, false) => None,
    };
    let listener = ports::listen(wanted, config.family, config.ports.as_ref())
        .map_err(|e| Error::system("cannot open a port for data connections", e))?;
    listener.set_nonblocking(true).map_err(|e| Error::system("cannot set up the data port", e))?;
    let at = listener.local_addr().map_err(|e| Error::system("cannot tell the data port", e))?;
    let mut ips = match wanted {
        Some(ip) => vec![ip],
        None => allowed,
    };
    ips.retain(|ip| at.is_ipv6() || ip.is_ipv4());
    // To other hosts a loopback address means themselves.
    if ips.iter().any(|ip| !ip.is_loopback()) {
        ips.retain(|ip| !ip.is_loopback());
    }
    ips.sort_by_key(|ip| *ip != route);
    Ok((listener, ips.into_iter().map(|ip| SocketAddr::new(ip, at.port())).collect()))
}

/// Open the door for ranks of this host: an abstract socket with a random name, which leaves no file.
fn open_local() -> std::io::Result<(UnixListener, String)> {
    let random = u64::from_le_bytes(*auth::random()?.first_chunk().expect("32 bytes"));
    let name = format!("maypole-{}-{random:016x}", std::process::id());
    let listener = UnixListener::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(&name)?)?;
    fork::close_in_children(&listener);
    listener.set_nonblocking(true)?;
    Ok((listener, name))
}

/// Whether each rank has its place.
fn in_order(peers: &[Peer]) -> bool {
    peers.iter().enumerate().all(|(rank, peer)| peer.rank == rank)
}

/// Say who this is and wait for the hub's word.
fn introduce(
    (control, to): (&TcpStream, SocketAddr),
    (inbox, outbox): (&mut Inbox, &mut Outbox),
    hello: Hello,
    limit: &Limit,
) -> std::result::Result<ToNode, auth::Refusal> {
    let wait = |event| loop {
        let look = || {
            limit.left();
            false
        };
        match auth::wait(control, event, limit.if_not_stopped(), &look) {
            Err(auth::Refusal::Silent) if !limit.has_passed() => {}
            ready => return ready,
        }
    };
    outbox.push(&ToHub::Hello(hello));
    while !outbox.flush(control)? {
        wait(PollFlags::POLLOUT)?;
    }
    loop {
        let arrived = inbox.fill(control, TABLE_LIMIT).and_then(|open| Ok((open, inbox.next(TABLE_LIMIT)?)));
        let open = match arrived {
            Ok((_, Some(word))) => return Ok(word),
            Ok((open, None)) => open,
            Err(e) if !wire::is_changed(&e) => return Err(e.into()),
            Err(e) => {
                // The other way may still hold, and then the others are told.
                outbox.push(&ToHub::Fallen { how: wire::changed_on_the_way(&to.to_string()) });
                let _ = outbox.flush(control);
                return Err(e.into());
            }
        };
        if !open {
            return Err(auth::Refusal::Closed);
        }
        wait(PollFlags::POLLIN)?;
    }
}
