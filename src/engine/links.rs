//! A communicator's links: made when first used, each opened once per operation with the operation's fingerprint.
//!
//! Ranks of one host share a segment and are linked through it; all others by TCP. One-sided schedules need the window,
//! which only a communicator within one segment has.

use std::sync::Arc;

use maypole_transports::shm::{Exchange, Group};
use maypole_transports::tcp::{self, Poller};
use maypole_transports::{LinkError, Receiver, Sender, Window};

use super::lane::Trouble;
use crate::error::Error;
use crate::fingerprint::Fingerprint;
use crate::node::Node;
use crate::topology::Topology;

/// Channels per ordered pair of ranks: two for the lanes of collectives, one for point-to-point messages.
pub(crate) const CHANNELS: usize = 3;
/// The channel of point-to-point messages.
pub(crate) const POINT_TO_POINT: usize = 2;
/// Bytes at the start of a publication that hold its fingerprint.
pub(crate) const WINDOW_HEADER: usize = 64;
const HEADER: usize = size_of::<Fingerprint>();

/// One end of a link and the last operation for which it was opened.
struct End<L: ?Sized> {
    link: Box<L>,
    opened: u64,
}

/// How to reach ranks by TCP.
pub(crate) struct Network {
    pub node: Arc<Node>,
    pub context: u64,
    /// World rank of each rank of the communicator.
    pub members: Vec<usize>,
    pub connections: usize,
    pub credit: usize,
    pub poller: Poller,
}

/// Everything through which a rank of a communicator moves bytes.
pub(crate) struct Links {
    pub me: usize,
    pub size: usize,
    /// Number of the next publication of each rank.
    pub publications: Vec<u64>,
    pub group: Option<Group>,
    /// Each rank's place in the segment, if it has one.
    places: Vec<Option<usize>>,
    pub network: Option<Network>,
    window: Option<Box<dyn Window>>,
    exchange: Option<Exchange>,
    senders: Vec<Option<End<dyn Sender>>>,
    receivers: Vec<Option<End<dyn Receiver>>>,
}

impl Links {
    /// `places[r]`: rank r's place in `group`'s segment. Ranks without one are reached through `network`.
    pub fn new(me: usize, places: Vec<Option<usize>>, group: Option<Group>, network: Option<Network>) -> Links {
        let size = places.len();
        let everyone = places.iter().all(Option::is_some);
        let window = group.as_ref().filter(|_| everyone).map(Group::window);
        let exchange = group.as_ref().filter(|_| everyone).map(Group::exchange);
        let slots = size * CHANNELS;
        Links {
            me,
            size,
            publications: vec![0; size],
            group,
            places,
            network,
            window,
            exchange,
            senders: std::iter::repeat_with(|| None).take(slots).collect(),
            receivers: std::iter::repeat_with(|| None).take(slots).collect(),
        }
    }

    /// Whether all ranks share memory with this one.
    pub fn one_sided(&self) -> bool {
        self.window.is_some()
    }

    /// How the ranks are linked, in words.
    pub fn describe(&self, topology: &Topology) -> String {
        let near = self.places.iter().flatten().count() - 1;
        let far = self.size - 1 - near;
        let here = &topology.hosts()[self.me];
        match (near, far) {
            (0, 0) => "alone".to_string(),
            (_, 0) => format!("peers on {here} over shared memory: {near}"),
            (0, _) => format!("peers over TCP: {far}"),
            _ => format!("peers on {here} over shared memory: {near}, others over TCP: {far}"),
        }
    }

    /// The window; only for schedules that were chosen because there is one.
    pub fn window(&mut self) -> &mut dyn Window {
        &mut **self.window.as_mut().expect("a one-sided schedule runs only where all ranks share memory")
    }

    /// The exchange of small vectors; only where [`Links::one_sided`].
    #[inline]
    pub fn exchange(&mut self) -> &mut Exchange {
        self.exchange.as_mut().expect("small exchanges are chosen only where all ranks share memory")
    }

    /// Wake whoever may sleep on what this rank published or finished reading.
    pub fn settle(&mut self) {
        if let Some(window) = &mut self.window {
            window.settle();
        }
        if let Some(exchange) = &mut self.exchange {
            exchange.settle();
        }
    }

    /// The sender to `to`, its fingerprint sent; `None` while the link is not connected or has no credit.
    pub fn open_sender(
        &mut self,
        to: usize,
        channel: usize,
        stamp: u64,
        operation: &Fingerprint,
    ) -> Result<Option<&mut dyn Sender>, Trouble> {
        let slot = to * CHANNELS + channel;
        if self.senders[slot].is_none() && !self.connect(to, channel)? {
            return Ok(None);
        }
        let end = self.senders[slot].as_mut().expect("connected");
        if end.opened != stamp && !announce(&mut *end.link, operation).map_err(|e| Trouble::Link(to, e))? {
            return Ok(None);
        }
        end.opened = stamp;
        Ok(Some(&mut *end.link))
    }

    /// The receiver from `from`, its fingerprint compared; `None` while it has not arrived.
    pub fn open_receiver(
        &mut self,
        from: usize,
        channel: usize,
        stamp: u64,
        operation: &Fingerprint,
    ) -> Result<Option<&mut dyn Receiver>, Trouble> {
        let slot = from * CHANNELS + channel;
        if self.receivers[slot].is_none() && !self.connect(from, channel)? {
            return Ok(None);
        }
        let end = self.receivers[slot].as_mut().expect("connected");
        if end.opened != stamp && !compare(&mut *end.link, from, operation)? {
            return Ok(None);
        }
        end.opened = stamp;
        Ok(Some(&mut *end.link))
    }

    /// Both at once, for the fused steps.
    #[allow(clippy::type_complexity)]
    pub fn open_both(
        &mut self,
        from: usize,
        to: usize,
        channel: usize,
        stamp: u64,
        operation: &Fingerprint,
    ) -> Result<Option<(&mut dyn Receiver, &mut dyn Sender)>, Trouble> {
        let sender = self.open_sender(to, channel, stamp, operation)?.is_some();
        let receiver = self.open_receiver(from, channel, stamp, operation)?.is_some();
        if !(sender && receiver) {
            return Ok(None);
        }
        let rx = self.receivers[from * CHANNELS + channel].as_mut().expect("just opened");
        let tx = self.senders[to * CHANNELS + channel].as_mut().expect("just opened");
        Ok(Some((&mut *rx.link, &mut *tx.link)))
    }

    /// Which of two ranks keeps [`Links::open_both`] waiting.
    pub fn unopened(&self, from: usize, to: usize, channel: usize, stamp: u64) -> usize {
        let received = self.receivers[from * CHANNELS + channel].as_ref().is_some_and(|end| end.opened == stamp);
        if received { to } else { from }
    }

    /// Whether there is a link to `peer` for messages between two ranks.
    pub fn exchanges_messages(&self, peer: usize) -> bool {
        self.receivers[peer * CHANNELS + POINT_TO_POINT].is_some()
    }

    /// Make the links to and from `peer` on `channel`. `false`: the peer has not connected yet.
    fn connect(&mut self, peer: usize, channel: usize) -> Result<bool, Trouble> {
        let slot = peer * CHANNELS + channel;
        let (sender, receiver): (Box<dyn Sender>, Box<dyn Receiver>) = match (self.places[peer], &mut self.network) {
            (Some(place), _) => {
                let group = self.group.as_ref().expect("places are in the group's segment");
                (group.sender(place, channel), group.receiver(place, channel))
            }
            (None, Some(network)) => {
                let world = network.members[peer];
                // One connection serves both directions; the lower rank makes it.
                let streams = if self.me < peer {
                    let made = network.node.connect(world, network.context, channel, network.connections);
                    Some(made.map_err(|error| match error {
                        Error::Failed { .. } => Trouble::Error(error),
                        // The others wait for this rank: they are told.
                        other => Trouble::Link(peer, unreachable_peer(other)),
                    })?)
                } else {
                    network.node.accepted(world, network.context, channel, network.connections)
                };
                let Some(streams) = streams else { return Ok(false) };
                let link = |e| Trouble::Link(peer, e);
                let (sender, receiver) = tcp::link(streams, network.credit).map_err(link)?;
                for fd in receiver.fds() {
                    let io = |source| LinkError::Io { doing: "watching a connection", source };
                    network.poller.add(fd).map_err(io).map_err(link)?;
                }
                (Box::new(sender), Box::new(receiver))
            }
            (None, None) => unreachable!("rank {peer} has neither a place in the segment nor an address"),
        };
        tracing::debug!(rank = self.me, peer, channel, shared = self.places[peer].is_some(), "link made");
        self.senders[slot] = Some(End { link: sender, opened: 0 });
        self.receivers[slot] = Some(End { link: receiver, opened: 0 });
        Ok(true)
    }

    /// Take in what has arrived on links whose turn has not come, and push on what is held back, so that no peer waits
    /// for this rank while it waits for another. Returns whether anything moved.
    pub fn absorb(&mut self) -> Result<bool, Trouble> {
        if self.network.is_none() {
            return Ok(false);
        }
        let mut moved = false;
        for (slot, end) in self.receivers.iter_mut().enumerate() {
            if let Some(end) = end {
                // A peer that is gone is reported when it is needed: it may have left in good order.
                moved |= match end.link.absorb() {
                    Err(LinkError::Gone { .. }) => false,
                    other => other.map_err(|e| Trouble::Link(slot / CHANNELS, e))?,
                };
            }
        }
        self.flush()?;
        Ok(moved)
    }

    /// Push on what senders hold back. `None`: nothing is left; otherwise a rank whose link has no room.
    pub fn flush(&mut self) -> Result<Option<usize>, Trouble> {
        let mut blocked = None;
        if self.network.is_some() {
            for (slot, end) in self.senders.iter_mut().enumerate() {
                if let Some(end) = end
                    && !end.link.flush().map_err(|e| Trouble::Link(slot / CHANNELS, e))?
                {
                    blocked = Some(slot / CHANNELS);
                }
            }
        }
        Ok(blocked)
    }
}

fn unreachable_peer(error: Error) -> LinkError {
    LinkError::Io { doing: "connecting", source: std::io::Error::other(error.to_string()) }
}

/// Put the fingerprint in front of the message that follows.
fn announce(link: &mut dyn Sender, operation: &Fingerprint) -> Result<bool, LinkError> {
    let room = link.reserve()?;
    if room.len() < HEADER {
        return Ok(false);
    }
    room[..HEADER].copy_from_slice(bytemuck::bytes_of(operation));
    link.commit(HEADER);
    Ok(true)
}

/// Take the fingerprint off the link and compare.
fn compare(link: &mut dyn Receiver, from: usize, operation: &Fingerprint) -> Result<bool, Trouble> {
    let there = link.peek().map_err(|e| Trouble::Link(from, e))?;
    if there.len() < HEADER {
        return Ok(false);
    }
    let theirs: Fingerprint = bytemuck::pod_read_unaligned(&there[..HEADER]);
    if theirs != *operation {
        return Err(Trouble::Mismatch(from, theirs));
    }
    link.release(HEADER);
    Ok(true)
}
