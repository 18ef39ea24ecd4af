//! How a rank reaches the others, and the making of links to them.
//!
//! Ranks of one host share a segment, all others are reached by TCP. Collectives and messages have links of their own:
//! each engine has its own [`Routes`], over the same segment and node, but with its own [`Rest`].

use std::sync::Arc;

use maypole_transports::lock::Mutex;
use maypole_transports::shm::Group;
use maypole_transports::tcp::{self, Path, Poller, Wire};
use maypole_transports::{LinkError, Receiver, Sender};

use super::lane::Trouble;
use super::rest::Rest;
use crate::error::Error;
use crate::node::Node;

/// Channels per ordered pair of ranks: two for the lanes of collectives, one for messages between two ranks.
pub(crate) const CHANNELS: usize = 3;
/// The channel of messages between two ranks; those below are the collectives'.
pub(crate) const POINT_TO_POINT: usize = 2;
/// What device buffers are carried on between hosts: as many channels again, from this one. They are never in a segment.
pub(crate) const DEVICE: usize = CHANNELS;

/// How to reach ranks by TCP.
pub(crate) struct Network {
    pub node: Arc<Node>,
    pub context: u64,
    /// World rank of each rank of the communicator.
    pub members: Vec<usize>,
    pub connections: usize,
    pub credit: usize,
    /// Of the links to and from each rank, by its number: whatever their channel.
    pub poller: Arc<Poller>,
}

/// See the [module](self).
pub(crate) struct Routes {
    pub me: usize,
    pub group: Option<Arc<Group>>,
    /// Each rank's place in the segment, if it has one.
    places: Vec<Option<usize>>,
    network: Option<Network>,
    rest: Rest,
    /// The way to each rank that is linked by TCP.
    paths: Mutex<Vec<(usize, Path)>>,
}

/// Both directions between two ranks on one channel.
pub(crate) type Pair = (Box<dyn Sender>, Box<dyn Receiver>);

/// A link that is used in one direction only.
pub(crate) struct Outward {
    pub sender: Box<dyn Sender>,
    /// The other half of its connection: dropping that would close both.
    _back: Option<Box<dyn Receiver>>,
}

/// A link that is used in one direction only.
pub(crate) struct Inward {
    pub receiver: Box<dyn Receiver>,
    _back: Option<Box<dyn Sender>>,
}

impl Routes {
    /// The routes of the links on `channel` and its like (see [`Group::bell`]). `places[r]`: rank r's place in
    /// `group`'s segment. Ranks without one are reached through `network`.
    pub fn new(
        me: usize,
        places: Vec<Option<usize>>,
        group: Option<Arc<Group>>,
        network: Option<Network>,
        channel: usize,
    ) -> Routes {
        let rest = Rest::new(group.as_deref(), channel, network.as_ref().map(|n| n.poller.clone()));
        Routes { me, group, places, network, rest, paths: Mutex::default() }
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.places.len()
    }

    /// Whether all ranks share memory with this one.
    pub fn all_share(&self) -> bool {
        self.group.is_some() && self.places.iter().all(Option::is_some)
    }

    /// How many others share memory with this rank.
    pub fn near(&self) -> usize {
        self.places.iter().flatten().count() - 1
    }

    /// Whether rank `peer` shares memory with this one.
    pub fn is_near(&self, peer: usize) -> bool {
        self.places[peer].is_some()
    }

    /// Whether some ranks are reached by TCP.
    pub fn has_network(&self) -> bool {
        self.network.is_some()
    }

    /// Where this rank sleeps for news of these links.
    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    /// The ranks whose links over TCP have news: see [`Poller`] for what the caller does about
    /// each. One system call.
    ///
    /// # Errors
    /// The system cannot tell.
    #[inline]
    pub fn news(&self) -> Result<impl Iterator<Item = usize>, Trouble> {
        let network = self.network.as_ref();
        let failed = |source| Trouble::Link(self.me, LinkError::Io { doing: "looking at all connections", source });
        network.map_or(Ok(()), |network| network.poller.look()).map_err(failed)?;
        Ok(network.into_iter().flat_map(|network| network.poller.take_news()))
    }

    /// Rank `peer`'s links have news again.
    #[inline]
    pub fn keep_news(&self, peer: usize) {
        if let Some(network) = &self.network {
            network.poller.keep(peer);
        }
    }

    /// A rank to which nothing gets through: what was sent to it goes unanswered by its host's kernel, or it cannot
    /// even be connected to, for more than a second. `None` if none is known to be so. A few system calls for each TCP
    /// link.
    pub fn unheard(&self) -> Option<usize> {
        let network = self.network.as_ref()?;
        let silent = self.paths.lock().iter().find(|(_, path)| path.is_unanswered()).map(|(peer, _)| *peer);
        let unreached = || network.node.unreached(network.context);
        silent.or_else(|| unreached().and_then(|world| network.members.iter().position(|w| *w == world)))
    }

    /// Make the links to and from `peer` on `channel`. `None`: they are not connected yet. Where they are sockets,
    /// one connection serves both directions, and the lower rank makes it.
    pub fn link(&self, peer: usize, channel: usize) -> Result<Option<Pair>, Trouble> {
        let pair: Option<Pair> = match self.near_by(peer) {
            Some((group, place)) => Some((group.sender(place, channel), group.receiver(place, channel))),
            None if self.me < peer => self.connected(peer, channel)?,
            None => self.accepted(peer, channel)?,
        };
        if pair.is_some() {
            tracing::debug!(rank = self.me, peer, channel, shared = self.places[peer].is_some(), "link made");
        }
        Ok(pair)
    }

    /// Make the link to `peer` on `channel`, for messages. Where it is a socket, the sender connects, so that it need
    /// not wait for the receiver to come; one connection per direction. `None`: it is not connected yet.
    pub fn outward(&self, peer: usize, channel: usize) -> Result<Option<Outward>, Trouble> {
        Ok(match self.near_by(peer) {
            Some((group, place)) => Some(Outward { sender: group.sender(place, channel), _back: None }),
            None => {
                let pair = self.connected(peer, channel)?;
                pair.map(|(sender, back)| Outward { sender, _back: Some(back) })
            }
        })
    }

    /// Take the link from `peer` on `channel`, for messages. `None`: the peer has not connected yet.
    pub fn inward(&self, peer: usize, channel: usize) -> Result<Option<Inward>, Trouble> {
        Ok(match self.near_by(peer) {
            Some((group, place)) => Some(Inward { receiver: group.receiver(place, channel), _back: None }),
            None => {
                let pair = self.accepted(peer, channel)?;
                pair.map(|(back, receiver)| Inward { receiver, _back: Some(back) })
            }
        })
    }

    /// Where a rank that shares memory with this one has its place.
    fn near_by(&self, peer: usize) -> Option<(&Group, usize)> {
        let place = self.places[peer]?;
        Some((self.group.as_ref().expect("places are in the group's segment"), place))
    }

    fn network(&self, peer: usize) -> &Network {
        let network = self.network.as_ref();
        network.unwrap_or_else(|| unreachable!("rank {peer} has neither a place in the segment nor an address"))
    }

    fn connected(&self, peer: usize, channel: usize) -> Result<Option<Pair>, Trouble> {
        let network = self.network(peer);
        let made = network.node.connected(network.members[peer], network.context, channel, network.connections);
        let streams = made.map_err(|error| match error {
            Error::Failed { .. } => Trouble::Error(error),
            // The others wait for this rank: they are told.
            other => Trouble::Link(peer, unreachable_peer(other)),
        })?;
        streams.map(|streams| self.pair(network, peer, streams)).transpose().map_err(|e| Trouble::Link(peer, e))
    }

    fn accepted(&self, peer: usize, channel: usize) -> Result<Option<Pair>, Trouble> {
        let network = self.network(peer);
        let there = network.node.accepted(network.members[peer], network.context, channel, network.connections);
        if let Some(what) = network.node.starved().filter(|_| there.is_none()) {
            return Err(Trouble::Link(peer, unreachable_peer(Error::bootstrap(what))));
        }
        there.map(|streams| self.pair(network, peer, streams)).transpose().map_err(|e| Trouble::Link(peer, e))
    }

    fn pair(&self, network: &Network, peer: usize, streams: Vec<Wire>) -> Result<Pair, LinkError> {
        let (sender, receiver) = tcp::link(streams, network.credit)?;
        for fd in receiver.fds() {
            let io = |source| LinkError::Io { doing: "watching a connection", source };
            network.poller.add_link(peer, fd).map_err(io)?;
        }
        self.paths.lock().push((peer, receiver.path()));
        Ok((Box::new(sender), Box::new(receiver)))
    }
}

fn unreachable_peer(error: Error) -> LinkError {
    LinkError::Io { doing: "connecting", source: std::io::Error::other(error.to_string()) }
}
