//! Where the ranks of a job meet: rank 0 opens the meeting point if it is an address, and each rank
//! goes there until somebody of its job is.

use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::config::{Config, Family};
use crate::descriptors;
use crate::error::{Error, Result};
use crate::node::auth::{self, Errand, HUB, Purpose};
use crate::node::dial::{self, Failures};
use crate::node::id::{Meeting, UniqueId};
use crate::node::key::Key;
use crate::node::peer;
use crate::node::session::Session;
use crate::node::{hub, interfaces, ports};
use crate::running::Limit;

/// Between attempts to reach the meeting point: at first, and at most.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(200));
/// How long one round of attempts lasts before names are looked up again.
const ROUND: Duration = Duration::from_secs(5);
/// How long another job's process may hold the meeting point (it may be ending) before that is an
/// error.
pub(super) const WRONG_KEY_PATIENCE: Duration = Duration::from_secs(3);
/// How long every address in a unique id may refuse. Whoever made it listened before, so that
/// process has ended; a program that tries again needs to know much sooner than its time is up, or
/// it never meets the others' next attempts.
fn refused_patience(connect_timeout: Duration) -> Duration {
    (connect_timeout / 8).min(Duration::from_secs(1))
}
/// Where to go.
pub(super) enum Point {
    Known(Vec<SocketAddr>),
    Named { host: String, port: u16, fallback: Option<SocketAddr> },
}

impl Point {
    /// For people.
    fn name(&self) -> String {
        match self {
            Point::Known(addresses) => {
                let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
                addresses.join(" or ")
            }
            Point::Named { host, port, .. } => format!("{host}:{port}"),
        }
    }

    /// The addresses now: a name may get others while ranks start.
    fn addresses(&self, family: Family) -> std::result::Result<Vec<SocketAddr>, String> {
        let (mut list, fallback) = match self {
            Point::Known(addresses) => (addresses.clone(), None),
            Point::Named { host, port, fallback } => {
                let found = match (host.as_str(), *port).to_socket_addrs() {
                    Ok(all) => all.collect(),
                    Err(_) if fallback.is_some() => Vec::new(),
                    Err(e) => return Err(e.to_string()),
                };
                (found, *fallback)
            }
        };
        // Somebody named the meeting point: the family that data connections shall have is only a
        // preference here.
        list.sort_by_key(|a| (!peer::allowed(family, &a.ip()), a.is_ipv6()));
        list.dedup();
        list.extend(fallback.filter(|f| !list.contains(f)));
        if list.is_empty() { Err("the name has no address".to_string()) } else { Ok(list) }
    }
}

/// Where this rank has to go; rank 0 opens the meeting point if it is an address.
pub(super) fn go(meeting: Meeting, rank: usize, size: usize, config: &Config, limit: &Limit) -> Result<(Point, Key)> {
    let (host, port, key, earlier) = match meeting {
        Meeting::Id(id) => {
            let id = UniqueId::from_bytes(id.as_bytes())?;
            return Ok((Point::Known(id.addresses()), Key::of_world(id.random(), 0, config)));
        }
        Meeting::Address { host, port, key, earlier } => (host, port, Key::of_world(&key, earlier, config), earlier),
    };
    if rank != 0 {
        return Ok((Point::Named { host, port, fallback: None }, key));
    }
    let (own, family) = where_to_listen(&host, port, config)?;
    let bound = loop {
        match ports::listen_at(own, port, family) {
            // The world before holds the port until its last rank has left, a failed attempt until
            // this one begins.
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
            _ => {
                "does an earlier world of this program still live? Drop it on every rank first, or \
                 split or duplicate it."
            }
        };
        Error::bootstrap(format!(
            "rank 0 cannot listen at the meeting point {host}:{port}: {}; {holder} Give all ranks \
             another one (MASTER_PORT)",
            descriptors::explain(e)
        ))
    })?;
    let unknown = |e| Error::system("cannot tell the meeting point's address", e);
    let at = listener.local_addr().map_err(unknown)?;
    let fallback = match at.ip() {
        ip if ip.is_unspecified() => SocketAddr::from(([127, 0, 0, 1], at.port())),
        _ => at,
    };
    hub::start(listener, key.clone(), config, Some(size))?;
    Ok((Point::Named { host, port: at.port(), fallback: Some(fallback) }, key))
}

/// The address at which rank 0 listens when the ranks meet at `host` (all of the machine's if
/// `None`), and the family. A loopback name is for this machine only. The interface and the family
/// that are asked for count if the name has an address there; otherwise it may mean one that this
/// machine does not know as its own.
fn where_to_listen(host: &str, port: u16, config: &Config) -> Result<(Option<IpAddr>, Family)> {
    let found = (host, port).to_socket_addrs();
    let mut known: Vec<IpAddr> = found.into_iter().flatten().map(|a| a.ip()).collect();
    known.sort_by_key(|ip| (!peer::allowed(config.family, ip), ip.is_ipv6()));
    if names_this_host(host) {
        return Ok((known.first().copied(), Family::Any));
    }
    let own = match &config.interface {
        Some(_) => interfaces::addresses(config)?.into_iter().find(|ip| known.contains(ip)),
        None => None,
    };
    let allowed = known.iter().any(|ip| peer::allowed(config.family, ip));
    let family = if allowed { config.family } else { Family::Any };
    Ok((own, family))
}

/// Connect to the hub, again and again until it is there. `patience`: how long one with another key
/// may be in its place.
pub(super) fn reach(
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
                let called = dial::call(&addresses, None, key, &errand, round, &look);
                let failures: Failures = match called {
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
        // Of an attempt that was cut short by the end of the time one learns nothing; the one
        // before knows better.
        if limit.left().is_zero() {
            why = before.unwrap_or(why);
        }
        let lasts = |since: Option<Instant>, patience| since.is_some_and(|s| s.elapsed() >= patience);
        let in_vain = lasts(wrong_key, patience)
            || lasts(refused, refused_patience(config.connect_timeout))
            || lasts(ran_out, descriptors::PATIENCE);
        if limit.left() <= pause || in_vain {
            return Err(Error::bootstrap(format!(
                "rank {rank} on host {} could not reach the meeting point {} within {:.1?} \
                 ({why}); check that {}, and that no firewall is in between",
                peer::host_name(),
                point.name(),
                start.elapsed(),
                match point {
                    Point::Named { .. } =>
                        "rank 0 runs there, that every rank was given the same address, port \
                         (MASTER_ADDR, MASTER_PORT) and key (MAYPOLE_KEY)",
                    Point::Known(_) =>
                        "the process that made the unique id still runs, that every rank has the \
                         same MAYPOLE_KEY",
                }
            )));
        }
        before = Some(why);
        std::thread::sleep(pause);
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Whether `host` can only mean the machine itself, so that all ranks are on it.
pub(super) fn names_this_host(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
