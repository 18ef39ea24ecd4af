//! Hosts that vanish: power, kernel or network gone, so that no connection is closed.
//!
//! A process that ends has its connections closed by the kernel, and everybody knows at once. Of a host that vanishes
//! only its silence tells. Control connections therefore carry keep-alive probes, and after [`patience`] without any
//! answer the other side counts as gone. Data connections have no such limit: a rank may compute for an hour before it
//! takes what was sent to it, and a probed connection with a full receiver would be closed over that.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// When the first probe is sent on a connection that carries nothing, and the time between probes.
const PROBES: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(2));
/// The longest time after which the kernel sends again what was not answered. It would double that time for ever, and
/// after a cut of half a minute it would be another half minute until it finds the network mended.
const SEND_AGAIN: Duration = Duration::from_secs(1);

/// How long a control connection may be silent: a quarter of `timeout`, the deadline of operations, at least ten
/// seconds and at most a minute. Longer, and ranks wait for a host that is down; shorter, and a switch that restarts
/// ends jobs that could have gone on.
pub(super) fn patience(timeout: Duration) -> Duration {
    (timeout / 4).clamp(Duration::from_secs(10), Duration::from_secs(60))
}

/// Have the kernel close a control connection once the other end's host has been silent for [`patience`].
pub(super) fn keep_alive(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(PROBES.0).with_interval(PROBES.1);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(patience(timeout)))?;
    // Linux has this since 6.15. Without it, cuts of more than half the patience may end the job.
    let _ = nix::sys::socket::setsockopt(stream, LongestPause, &(SEND_AGAIN.as_millis() as i32));
    Ok(())
}

/// `TCP_RTO_MAX_MS`, which the libc crate does not name yet.
const TCP_RTO_MAX_MS: libc::c_int = 44;
#[derive(Clone, Copy)]
struct LongestPause;
nix::setsockopt_impl!(
    LongestPause,
    libc::IPPROTO_TCP,
    TCP_RTO_MAX_MS,
    i32,
    nix::sys::socket::sockopt::SetStruct<'_, i32>
);

/// Whether a control connection ended because nothing came through any more, rather than by its other end's doing.
pub(super) fn is_silence(error: &io::Error) -> bool {
    use ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
}

/// Ranks, as people write them: `2, 3 and 5`.
pub(super) fn list(ranks: &[usize]) -> String {
    match ranks {
        [] => "nobody".to_string(),
        [one] => one.to_string(),
        [most @ .., last] => {
            let most: Vec<String> = most.iter().map(|r| r.to_string()).collect();
            format!("{} and {last}", most.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_the_deadline() {
        let after = |seconds| patience(Duration::from_secs(seconds)).as_secs();
        assert_eq!([after(1), after(40), after(120), after(240), after(86400)], [10, 10, 30, 60, 60]);
    }

    #[test]
    fn lists_read_well() {
        assert_eq!([list(&[]), list(&[4]), list(&[4, 5]), list(&[0, 1, 2])], ["nobody", "4", "4 and 5", "0, 1 and 2"]);
    }
}
