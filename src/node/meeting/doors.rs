//! The doors that a rank opens for the others, and what it says of itself.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;

use maypole_transports::fork;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::node::auth;
use crate::node::frame::Hello;
use crate::node::peer::{self, Peer, Settings};
use crate::node::{affinity, interfaces, ports, silence};

/// This rank's doors, for data and for ranks of its host, and what it says of itself. `control`:
/// its connection to the hub; `open`: as in [`open_data`].
pub(super) fn prepare(
    control: &TcpStream,
    open: bool,
    (rank, size): (usize, usize),
    config: &Config,
) -> Result<(TcpListener, UnixListener, Hello)> {
    silence::keep_alive(control, config.timeout)
        .map_err(|e| Error::system("cannot set keep-alive on the control connection", e))?;
    let unknown = |e| Error::system("cannot tell this rank's own address", e);
    let route = control.local_addr().map_err(unknown)?.ip();
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
            affinity: affinity::affinity(),
        },
        settings: Settings::of(config),
    };
    Ok((data, local, hello))
}

/// Open the door for data connections. `open`: whether other hosts may come although this rank
/// reached the meeting point by a loopback address. Returns what to publish, best first.
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

/// Open the door for ranks of this host: an abstract socket with a random name, which leaves no
/// file.
fn open_local() -> std::io::Result<(UnixListener, String)> {
    let random = u64::from_le_bytes(*auth::random()?.first_chunk().expect("32 bytes"));
    let name = format!("maypole-{}-{random:016x}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name)?;
    let listener = UnixListener::bind_addr(&address)?;
    fork::close_in_children(&listener);
    listener.set_nonblocking(true)?;
    Ok((listener, name))
}
