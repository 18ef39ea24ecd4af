//! The links of a communicator's collectives: made when first used, each opened once per operation with the operation's
//! fingerprint.
//!
//! One-sided schedules need the window, which only a communicator within one segment has.

use std::collections::BTreeSet;

use maypole_collectives::schedule::Schedule;
use maypole_transports::shm::{Exchange, Group};
use maypole_transports::{LinkError, Receiver, Sender, Window};

use super::lane::Trouble;
use super::loans::Loans;
use super::routes::{POINT_TO_POINT, Routes};
use crate::fingerprint::Fingerprint;
use crate::topology::Topology;

/// Channels per ordered pair of ranks that lanes use.
const CHANNELS: usize = POINT_TO_POINT;
/// Bytes at the start of a publication that hold its fingerprint and its loan.
pub(crate) const WINDOW_HEADER: usize = 64;
const HEADER: usize = size_of::<Fingerprint>();
/// From so many lanes on, a lane does not read its socket to see whether anything has come: one
/// look tells for all.
const CROWD: usize = 8;

/// One end of a link and the last operation for which it was opened.
struct End<L: ?Sized> {
    link: Box<L>,
    opened: u64,
}

/// Everything through which a rank's collectives move bytes.
pub(crate) struct Links {
    pub me: usize,
    pub size: usize,
    /// Number of the next publication of each rank.
    pub publications: Vec<u64>,
    pub routes: Routes,
    window: Option<Box<dyn Window>>,
    /// Registered memory that can be lent and borrowed.
    pub loans: Loans,
    exchange: Option<Exchange>,
    senders: Vec<Option<End<dyn Sender>>>,
    receivers: Vec<Option<End<dyn Receiver>>>,
    /// The senders that were opened in the present operation, where any is a socket: only those may
    /// hold something back.
    begun: Vec<usize>,
    /// Whether the present operation has a [`CROWD`] of lanes.
    crowded: bool,
    /// Links that are to be made, see [`Links::expect`].
    wanted: BTreeSet<usize>,
}

impl Links {
    /// No links yet, over these routes.
    pub fn new(routes: Routes) -> Links {
        let (me, size) = (routes.me, routes.size());
        let group = routes.group.as_deref().filter(|_| routes.all_share());
        let window = group.map(Group::window);
        let exchange = group.map(Group::exchange);
        let slots = size * CHANNELS;
        Links {
            me,
            size,
            publications: vec![0; size],
            routes,
            window,
            loans: Loans::default(),
            exchange,
            senders: std::iter::repeat_with(|| None).take(slots).collect(),
            receivers: std::iter::repeat_with(|| None).take(slots).collect(),
            begun: Vec::new(),
            crowded: false,
            wanted: BTreeSet::new(),
        }
    }

    /// The operations that follow use the links of `schedule`: make those that are sockets, all at the same time, from
    /// the next operation on, and not one after the other as their steps come up. Schedules are verified for links that
    /// take in a message before their receiver comes to it. One that is not connected takes in nothing; and since one
    /// of two ranks connects, ranks that wait to send could wait in a circle for those that have yet to connect.
    pub fn expect(&mut self, schedule: &dyn Schedule) {
        if !self.routes.has_network() {
            return;
        }
        for lane in 0..schedule.lanes() {
            let channel = schedule.channel(lane);
            for i in 0..schedule.steps(lane) {
                let (from, to) = schedule.step(lane, i).peers();
                let slots = from.into_iter().chain(to).map(|peer| peer * CHANNELS + channel);
                self.wanted.extend(slots.filter(|slot| self.senders[*slot].is_none()));
            }
        }
    }

    /// Go on with making the links that are wanted. Returns whether one was made.
    pub fn make_wanted(&mut self) -> Result<bool, Trouble> {
        if self.wanted.is_empty() {
            return Ok(false);
        }
        let wanted = std::mem::take(&mut self.wanted);
        let mut made = false;
        for slot in wanted {
            // Its step may have come up meanwhile.
            if self.senders[slot].is_some() {
                continue;
            }
            match self.connect(slot / CHANNELS, slot % CHANNELS)? {
                true => made = true,
                false => _ = self.wanted.insert(slot),
            }
        }
        Ok(made)
    }

    /// Whether all ranks share memory with this one.
    pub fn one_sided(&self) -> bool {
        self.window.is_some()
    }

    /// How the ranks are linked, in words.
    pub fn describe(&self, topology: &Topology) -> String {
        let near = self.routes.near();
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

    /// A rank that has not read all that this one has published.
    #[cold]
    pub fn unread(&mut self) -> Option<usize> {
        self.window.as_mut().and_then(|window| window.unread().unwrap_or_else(|(rank, _)| Some(rank)))
    }

    /// This rank gives up, and those that wait for it must not do so for long.
    #[cold]
    pub fn close(&mut self) {
        self.senders.fill_with(|| None);
        self.receivers.fill_with(|| None);
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
        if end.opened != stamp {
            if !announce(&mut *end.link, operation).map_err(|e| Trouble::Link(to, e))? {
                return Ok(None);
            }
            end.opened = stamp;
            if self.routes.has_network() {
                self.begun.push(slot);
            }
        }
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
        // What comes there is news, and absorbed.
        if self.crowded && end.link.is_empty() {
            return Ok(None);
        }
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

    /// Make the links to and from `peer` on `channel`. `false`: the peer has not connected yet.
    fn connect(&mut self, peer: usize, channel: usize) -> Result<bool, Trouble> {
        let Some((sender, receiver)) = self.routes.link(peer, channel)? else { return Ok(false) };
        let slot = peer * CHANNELS + channel;
        self.senders[slot] = Some(End { link: sender, opened: 0 });
        self.receivers[slot] = Some(End { link: receiver, opened: 0 });
        Ok(true)
    }

    /// An operation of so many lanes begins: nothing is held back of those before.
    #[inline]
    pub fn begin(&mut self, lanes: usize) {
        self.begun.clear();
        self.crowded = lanes >= CROWD;
    }

    /// Go on besides the lanes, so that no peer waits for this rank while it waits for another:
    /// push on what is held back, and, if it `looks`, take in what has arrived on links whose turn
    /// has not come. Returns whether anything came. Idle links cost nothing.
    pub fn absorb(&mut self, looks: bool) -> Result<bool, Trouble> {
        if !self.routes.has_network() {
            return Ok(false);
        }
        let mut moved = self.make_wanted()?;
        let news = if looks || self.crowded { Some(self.routes.news()?) } else { None };
        for peer in news.into_iter().flatten() {
            let mut more = false;
            for end in self.receivers[peer * CHANNELS..][..CHANNELS].iter_mut().flatten() {
                // A peer that is gone is reported when it is needed: it may have left in good order.
                let came = match end.link.absorb() {
                    Err(LinkError::Gone { .. }) => false,
                    other => other.map_err(|e| Trouble::Link(peer, e))?,
                };
                moved |= came;
                more |= came || end.link.is_behind();
            }
            if more {
                self.routes.keep_news(peer);
            }
        }
        self.flush()?;
        Ok(moved)
    }

    /// Push on what senders hold back. `None`: nothing is left; otherwise a rank whose link has no room.
    pub fn flush(&mut self) -> Result<Option<usize>, Trouble> {
        let mut blocked = None;
        for slot in &self.begun {
            if let Some(end) = &mut self.senders[*slot]
                && !end.link.flush().map_err(|e| Trouble::Link(slot / CHANNELS, e))?
            {
                blocked = Some(slot / CHANNELS);
            }
        }
        Ok(blocked)
    }
}

impl Links {
    /// What still keeps a rank whose lanes are done: a rank whose link has no room for what senders hold back, or, if
    /// this rank has lent publications, one that is not done with them.
    pub fn unfinished(&mut self, lends: bool) -> Result<Option<usize>, Trouble> {
        match self.flush()? {
            None if lends => self.window().unread().map_err(|(rank, error)| Trouble::Link(rank, error)),
            held_back => Ok(held_back),
        }
    }
}

/// Put the fingerprint in front of the message that follows.
pub(crate) fn announce(link: &mut dyn Sender, operation: &Fingerprint) -> Result<bool, LinkError> {
    let room = link.reserve()?;
    if room.len() < HEADER {
        return Ok(false);
    }
    room[..HEADER].copy_from_slice(bytemuck::bytes_of(operation));
    link.commit(HEADER);
    Ok(true)
}

/// Take the fingerprint off the link and compare.
pub(crate) fn compare(link: &mut dyn Receiver, from: usize, operation: &Fingerprint) -> Result<bool, Trouble> {
    let there = link.peek().map_err(|e| Trouble::Link(from, e))?;
    if there.len() < HEADER {
        return Ok(false);
    }
    let theirs: Fingerprint = bytemuck::pod_read_unaligned(&there[..HEADER]);
    if theirs != *operation {
        return Err(Trouble::Mismatch { peer: from, ours: *operation, theirs });
    }
    link.release(HEADER);
    Ok(true)
}
