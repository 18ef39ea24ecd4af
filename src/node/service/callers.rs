//! Who comes to a node's doors: ranks with a data connection, and ranks of this host that want a
//! descriptor.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use maypole_transports::tcp::Wire;
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, recv};

use super::{FETCHER, Service};
use crate::node::auth::Errand;
use crate::node::door::token;
use crate::node::{CONNECTIONS, handover};

impl Service {
    /// A data connection has come.
    pub(super) fn arrive(&mut self, stream: Wire, errand: Errand) {
        let (index, total) = (usize::from(errand.index), usize::from(errand.total));
        let (me, from) = (self.shared.rank, errand.from as usize);
        let known = from < self.shared.peers.len() && errand.sealed == self.shared.config.encrypt;
        if !known || index >= total || total > CONNECTIONS {
            return tracing::warn!("rank {me}: closed a connection whose errand makes no sense");
        }
        let context = errand.context;
        let key = (from, context, errand.channel as usize);
        {
            let mut arrivals = self.shared.arrivals.lock();
            if self.shared.finished.lock().contains(context) {
                return tracing::debug!("rank {me}: rank {from} connects for what has been left");
            }
            let places = arrivals.entry(key).or_default();
            if places.is_empty() {
                places.resize_with(total, || None);
            }
            // Who comes first keeps the place, unless it has gone: a caller that did not hear this
            // rank's answer in time calls again.
            let is_taken = |place: &Option<Wire>| place.as_ref().is_some_and(|it| !is_spent(it));
            if places.len() != total || is_taken(&places[index]) {
                return tracing::warn!(
                    "rank {me}: closed connection {index} of {total} that says it is rank \
                     {from}'s: that has come already"
                );
            }
            places[index] = Some(stream);
        }
        self.shared.wake(Some(context));
    }

    /// Close connections for communicators that this rank has not made, whose other ends are closed
    /// and have left nothing to read: it may never make them, and those who did are gone.
    pub(super) fn close_strays(&self) {
        let mut arrivals = self.shared.arrivals.lock();
        if !arrivals.is_empty() {
            let contexts = self.shared.contexts.lock();
            arrivals.retain(|(_, context, _), places| {
                contexts.contains_key(context) || !places.iter().flatten().all(is_spent)
            });
        }
    }

    /// A rank of this host wants a descriptor.
    pub(super) fn park(&mut self, stream: UnixStream, errand: Errand) {
        self.next_fetcher += 1;
        let what = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        let event = EpollEvent::new(what, token(FETCHER, self.next_fetcher));
        if self.epoll.add(&stream, event).is_ok() {
            self.fetchers.insert(self.next_fetcher, (stream, (errand.context, errand.channel)));
        }
    }

    /// Serve those whose descriptor is offered by now.
    pub(super) fn hand_over(&mut self) {
        if self.fetchers.is_empty() {
            return;
        }
        let offered = self.shared.offered.lock().clone();
        self.fetchers.retain(|_, (stream, which)| {
            let Some(fd) = offered.get(which) else { return true };
            if let Err(e) = handover::give(stream, fd) {
                tracing::warn!("cannot pass a file descriptor on: {e}");
            }
            // As for all that epoll watches by level: a child that no handler has seen may hold a
            // copy.
            let _ = self.epoll.delete(&*stream);
            false
        });
    }
}

/// Whether nothing is to be read from a connection, and nothing will be.
pub(in crate::node) fn is_spent(wire: &Wire) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let came = recv(wire.stream.as_raw_fd(), &mut [0], flags);
    !matches!(came, Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR))
}
