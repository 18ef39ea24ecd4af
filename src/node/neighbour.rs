//! Seeing other processes of this host end, whatever becomes of their connections.
//!
//! A process that ends closes its connections, and that is how the hub sees it; but a child that
//! the process forked off may keep copies of them open (`maypole_transports::fork` says which). The
//! kernel knows better, and tells whoever holds a pidfd of the process. So the processes of a host
//! watch each other in a ring, each the next one by rank: a descriptor each, however many there
//! are, and nobody is left out. A node whose neighbour ends tells the hub and watches the one
//! behind it. The hub's own process is watched by every node of its host, since nobody else could
//! tell them.
//!
//! The number of a process means something in one process namespace only. Equal [`Peer::host_id`]s
//! are in the same one, if the system says which one that is. A number that stands for another
//! process by now does no harm: then the one that it stood for has ended.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use super::peer::Peer;

/// A process, to be polled: readable once it has ended. Closed on drop.
pub(super) struct Ending(OwnedFd);

impl Ending {
    /// Of process `pid` of this namespace; `None` if there is none any more.
    ///
    /// # Errors
    /// When the system does not know pidfds, or has none to spare.
    fn of(pid: u32) -> nix::Result<Option<Ending>> {
        // SAFETY: a system call on numbers.
        match Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }) {
            // SAFETY: the kernel has just made this descriptor for us; it is close-on-exec.
            Ok(fd) => Ok(Some(Ending(unsafe { OwnedFd::from_raw_fd(fd as i32) }))),
            Err(Errno::ESRCH) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Ending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whose turn it is to be watched.
pub(super) struct Neighbours {
    me: usize,
    /// How far behind this rank the next one is looked for; the size of the world once there is
    /// none.
    next: usize,
}

/// What is there to be watched.
pub(super) enum Next {
    Lives(usize, Ending),
    HasEnded(usize),
    Nobody,
}

impl Neighbours {
    /// Those of rank `me`.
    pub fn of(me: usize, peers: &[Peer]) -> Neighbours {
        let named = std::fs::read_link("/proc/self/ns/pid").is_ok();
        Neighbours { me, next: if named { 1 } else { peers.len() } }
    }

    /// The next rank in another process of this host; each once.
    pub fn next(&mut self, peers: &[Peer]) -> Next {
        let own = &peers[self.me];
        while self.next < peers.len() {
            let rank = (self.me + self.next) % peers.len();
            let peer = &peers[rank];
            self.next += 1;
            if peer.host_id != own.host_id || peer.pid == own.pid {
                continue;
            }
            match Ending::of(peer.pid) {
                Ok(Some(ending)) => return Next::Lives(rank, ending),
                Ok(None) => return Next::HasEnded(rank),
                Err(e) => {
                    tracing::debug!("rank {}: processes of this host cannot be watched: {e}", self.me);
                    self.next = peers.len();
                }
            }
        }
        Next::Nobody
    }

    /// Rank `hub`, in whose process the hub is, if that is another one of this host. To be asked
    /// before [`Neighbours::next`].
    pub fn hub(&self, hub: Option<usize>, peers: &[Peer]) -> Next {
        let own = &peers[self.me];
        let other = |rank: &usize| peers[*rank].host_id == own.host_id && peers[*rank].pid != own.pid;
        match hub.filter(other).filter(|_| self.next < peers.len()).map(|rank| (rank, Ending::of(peers[rank].pid))) {
            Some((rank, Ok(Some(ending)))) => Next::Lives(rank, ending),
            Some((rank, Ok(None))) => Next::HasEnded(rank),
            Some((_, Err(_))) | None => Next::Nobody,
        }
    }
}
