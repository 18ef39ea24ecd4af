//! Whether anything gets through to the other end of a connection, as the kernel sees it.
//!
//! TCP itself does not say so for a quarter of an hour: it sends again, ever more rarely, and a connection whose
//! network is cut looks like one whose other end has nothing to say. Who wants to know why an operation does not end
//! asks here.

use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

use nix::sys::socket::{getsockopt, sockopt};

use super::connection::Connections;

/// So many times in a row the kernel has sent something and nothing came back. It begins after 0.2 s (for keep-alive
/// probes: as they are set) and doubles its patience each time, so the third time is 1.4 s after what was lost.
const UNANSWERED: u8 = 3;

#[derive(Clone, Copy)]
struct TcpInfo;
nix::getsockopt_impl!(TcpInfo, libc::IPPROTO_TCP, libc::TCP_INFO, libc::tcp_info, sockopt::GetStruct<libc::tcp_info>);

/// Whether what this end sends on a TCP connection has been going unanswered for more than a second: data, a probe of
/// a full receiver, or a keep-alive probe. The kernel of a stopped process still answers, the kernel of a host that is
/// down or cut off does not. Of a connection on which this end has sent nothing, and that has no keep-alive probes, it
/// cannot be told. Never blocks.
pub fn is_unanswered(connection: impl AsFd) -> bool {
    getsockopt(&connection.as_fd(), TcpInfo)
        .is_ok_and(|info| info.tcpi_retransmits >= UNANSWERED || info.tcpi_probes >= UNANSWERED)
}

/// The way to the other end of a link pair, for asking after it. It does not keep the connections open.
#[derive(Clone, Debug)]
pub struct Path {
    connections: Weak<Connections>,
}

impl Path {
    pub(super) fn new(connections: &Arc<Connections>) -> Path {
        Path { connections: Arc::downgrade(connections) }
    }

    /// Whether [`is_unanswered`] holds of one of the connections; `false` once the link is closed.
    pub fn is_unanswered(&self) -> bool {
        self.connections.upgrade().is_some_and(|connections| connections.fds().any(is_unanswered))
    }
}
