//! Ports that are ours to choose: any free one, or one of `MAYPOLE_PORTS`, for machines behind a
//! firewall.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};

use maypole_transports::fork;
use socket2::{Domain, Protocol, Socket, Type};

use super::peer;
use crate::config::Family;

/// How many processes wait in the kernel for somebody to accept them.
const QUEUE: i32 = 4096;

/// Listen on a port of `ports`, or on any if that is `None`, at `ip`, or at all addresses of the
/// family.
///
/// # Errors
/// As [`bind`].
pub(super) fn listen(
    ip: Option<IpAddr>,
    family: Family,
    ports: Option<&RangeInclusive<u16>>,
) -> io::Result<TcpListener> {
    bind(ports, |port| listen_at(ip, port, family))
}

/// Listen on `port`, for a hub or for data: at `ip`, or at all addresses of the family, IPv4 and
/// IPv6 on one socket where that is allowed. Port 0 takes a free one.
pub(super) fn listen_at(ip: Option<IpAddr>, port: u16, family: Family) -> io::Result<TcpListener> {
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
            ErrorKind::AddrInUse | ErrorKind::PermissionDenied => Err(e),
            _ => bind(Ipv4Addr::UNSPECIFIED.into()),
        }),
    }
}

/// Have `attempt` bind a port of `ports`, or 0 (any) if that is `None`.
///
/// The ranks of a host begin to look at places that are spread over the range, so that many of them
/// do not all try the same ports one after the other.
///
/// # Errors
/// [`ErrorKind::AddrInUse`] with the range and the host if it is full; whatever else `attempt`
/// says.
pub(crate) fn bind(
    ports: Option<&RangeInclusive<u16>>,
    attempt: impl Fn(u16) -> io::Result<TcpListener>,
) -> io::Result<TcpListener> {
    let Some(range) = ports else { return attempt(0) };
    let (first, count) = (usize::from(*range.start()), range.len());
    let begin = start(count);
    for i in 0..count {
        match attempt((first + (begin + i) % count) as u16) {
            Err(e) if e.kind() == ErrorKind::AddrInUse => {}
            found => return found,
        }
    }
    Err(io::Error::new(
        ErrorKind::AddrInUse,
        format!(
            "none of the {count} ports of MAYPOLE_PORTS={}-{} is free on host {}; each rank needs \
             one, and rank 0 or who makes a unique id one more",
            range.start(),
            range.end(),
            peer::host_name()
        ),
    ))
}

/// Where to begin among `count` ports: another place for each process, and each time.
fn start(count: usize) -> usize {
    static TIMES: AtomicUsize = AtomicUsize::new(0);
    let times = TIMES.fetch_add(1, Ordering::Relaxed);
    // Consecutive processes lie far from each other whatever the length: the golden ratio's
    // multiples spread evenly.
    let spread = (std::process::id() as u64).wrapping_add(times as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((u128::from(spread) * count as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_used_up_and_then_says_so() {
        // Somebody else may have any of them: what counts is that the rest is found, and each once.
        let lo = Some(IpAddr::from([127, 0, 0, 1]));
        let range = 23_456..=23_475;
        let mut held: Vec<TcpListener> = Vec::new();
        let error = loop {
            match listen(lo, Family::Any, Some(&range)) {
                Ok(listener) => held.push(listener),
                Err(error) => break error,
            }
            assert!(held.len() <= 20);
        };
        let mut ports: Vec<u16> = held.iter().map(|l| l.local_addr().unwrap().port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() == held.len() && ports.len() >= 15 && ports.iter().all(|p| range.contains(p)), "{ports:?}");
        let text = error.to_string();
        assert!(text.contains("MAYPOLE_PORTS=23456-23475") && text.contains(&peer::host_name()), "{text}");
        drop(held.remove(7));
        listen(lo, Family::Any, Some(&range)).unwrap();
    }

    #[test]
    fn places_to_begin_are_spread() {
        let mut seen = [false; 101];
        (0..400).for_each(|_| seen[start(101)] = true);
        assert!(seen.iter().filter(|s| **s).count() > 80);
        assert_eq!(start(1), 0);
    }
}
