//! Calling a process that has several addresses, of which some may lead nowhere.
//!
//! Connections are attempted side by side, each next one [`STAGGER`] after the last (as RFC 8305 has it), and whoever
//! answers and shows the key first is taken. Another process may listen at one of the addresses: then the key tells,
//! and the others are tried.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use maypole_transports::fork;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::auth::{Errand, Refusal, knock};
use super::key::Key;
use super::session::Session;
use crate::descriptors;

/// How long an address has before the next one is tried beside it.
const STAGGER: Duration = Duration::from_millis(150);
/// How long a door has to answer once it is connected.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// What went wrong at each address.
pub(super) type Failures = Vec<(SocketAddr, Refusal)>;

/// Call the process at `addresses` for `errand`, from the local address `source` if one is given. Blocks until somebody
/// has answered who holds the key, all have failed, or `deadline`. Returns the stream (non-blocking, without Nagle's
/// delay), the address that answered, and what both ends have in common now.
pub(super) fn call(
    addresses: &[SocketAddr],
    source: Option<IpAddr>,
    key: &Key,
    errand: &Errand,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> Result<(TcpStream, SocketAddr, Session), Failures> {
    let mut untried: Vec<SocketAddr> = addresses.to_vec();
    let mut failures = Failures::new();
    while let Some((mut stream, address)) = connect(&mut untried, source, deadline, give_up, &mut failures) {
        match knock(&mut stream, key, errand, deadline.min(Instant::now() + ANSWER_TIME), give_up) {
            Ok(session) => return Ok((stream, address, session)),
            Err(refusal) => failures.push((address, refusal)),
        }
    }
    Err(failures)
}

/// Connect to one of `untried`. That address and those that fail are removed from the list, the latter noted.
fn connect(
    untried: &mut Vec<SocketAddr>,
    source: Option<IpAddr>,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
    failures: &mut Failures,
) -> Option<(TcpStream, SocketAddr)> {
    let mut queue: std::collections::VecDeque<SocketAddr> = untried.iter().copied().collect();
    let mut pending: Vec<(Socket, SocketAddr)> = Vec::new();
    let mut next_start = Instant::now();
    loop {
        let now = Instant::now();
        if now >= deadline || give_up() {
            let why = || if give_up() { Refusal::GivenUp } else { Refusal::Io(io::ErrorKind::TimedOut.into()) };
            failures.extend(untried.drain(..).map(|a| (a, why())));
            return None;
        }
        if pending.is_empty() || now >= next_start {
            if let Some(address) = queue.pop_front() {
                next_start = now + STAGGER;
                match start(address, source) {
                    Ok(socket) => pending.push((socket, address)),
                    Err(e) => {
                        untried.retain(|a| *a != address);
                        failures.push((address, e.into()));
                    }
                }
                continue;
            }
            if pending.is_empty() {
                return None;
            }
            next_start = deadline;
        }
        let nap = next_start.min(deadline).saturating_duration_since(now).min(Duration::from_millis(20));
        let mut fds: Vec<PollFd> = pending.iter().map(|(s, _)| PollFd::new(s.as_fd(), PollFlags::POLLOUT)).collect();
        if poll(&mut fds, PollTimeout::from(nap.as_millis().max(1) as u16)).is_err() {
            continue;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        for at in (0..ready.len()).rev().filter(|at| ready[*at]) {
            let (socket, address) = pending.swap_remove(at);
            untried.retain(|a| *a != address);
            let result = socket.take_error().and_then(|e| e.map_or(Ok(()), Err));
            match result.and_then(|()| socket.set_tcp_nodelay(true)) {
                Ok(()) => return Some((socket.into(), address)),
                Err(e) => failures.push((address, e.into())),
            }
        }
    }
}

/// Begin one connection.
fn start(address: SocketAddr, source: Option<IpAddr>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    fork::close_in_children(&socket);
    socket.set_nonblocking(true)?;
    if let Some(ip) = source.filter(|ip| ip.is_ipv4() == address.is_ipv4()) {
        socket.bind(&SocketAddr::new(ip, 0).into())?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => Ok(socket),
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

/// Whether there was no descriptor to call with.
pub(super) fn ran_out(failures: &Failures) -> bool {
    failures.iter().any(|(_, refusal)| matches!(refusal, Refusal::Io(e) if descriptors::ran_out(e)))
}

/// Whether nobody listens at any of the addresses.
pub(super) fn refused(failures: &Failures) -> bool {
    let refuses = |refusal: &Refusal| matches!(refusal, Refusal::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused);
    !failures.is_empty() && failures.iter().all(|(_, refusal)| refuses(refusal))
}

/// `failures` for people: each address with what is wrong there, once.
pub(super) fn explain(failures: &Failures) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (address, refusal) in failures {
        let part = descriptors::explain(format!("{address}: {refusal}"));
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    if parts.is_empty() { "it has no address".to_string() } else { parts.join("; ") }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::auth::Purpose;
    use super::*;

    const ERRAND: Errand =
        Errand { purpose: Purpose::Data, sealed: false, from: 0, to: 1, context: 0, channel: 0, index: 0, total: 1 };

    #[test]
    fn every_address_is_explained() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = [closed, deaf.local_addr().unwrap()];
        let soon = Instant::now() + Duration::from_millis(300);
        let failures = call(&addresses, None, &Key::new([0; 32]), &ERRAND, soon, &|| false).unwrap_err();
        let text = explain(&failures);
        assert!(text.contains("refused") && text.contains("did not answer in time"), "{text}");
        assert!(addresses.iter().all(|a| text.contains(&a.to_string())), "{text}");
    }

    #[test]
    fn a_hole_does_not_hold_up_the_others() {
        // 192.0.2.0/24 is reserved for documentation: nobody answers.
        let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = ["192.0.2.1:9".parse().unwrap(), deaf.local_addr().unwrap()];
        let (mut failures, begun) = (Failures::new(), Instant::now());
        let far = begun + Duration::from_secs(10);
        let (_, to) = connect(&mut addresses.to_vec(), None, far, &|| false, &mut failures).unwrap();
        assert_eq!(to, addresses[1]);
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn giving_up_ends_the_call() {
        let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
        let begun = Instant::now();
        let up = move || begun.elapsed() > Duration::from_millis(50);
        let far = begun + Duration::from_secs(60);
        call(&[deaf.local_addr().unwrap()], None, &Key::new([0; 32]), &ERRAND, far, &up).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
