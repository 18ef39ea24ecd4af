//! All messages of a rank that are not done: posting them, moving them on, giving them up.
//!
//! Nothing here waits or locks; [`super::Messages`] does.

use std::ptr::NonNull;
use std::sync::Arc;

use maypole_collectives::{DataType, Element};

use super::anyone::Anyone;
use super::peer::{Failure, Incoming, Outgoing, Peer};
use super::stash::Allowance;
use super::tally::{Count, Tally};
use crate::engine::lane::Trouble;
use crate::engine::routes::Routes;
use crate::fingerprint::Fingerprint;

/// Which way a message goes, and where its bytes are.
#[derive(Clone, Copy)]
pub(super) enum Way {
    To(*const u8),
    From(*mut u8),
    FromAnyone(*mut u8),
}

/// A message to be posted, in elements of `dtype`.
#[derive(Clone, Copy)]
pub(crate) struct Message {
    way: Way,
    /// The rank at its other side; may be this one. None of any message from anyone.
    pub peer: usize,
    pub tag: u32,
    pub dtype: DataType,
    pub count: usize,
}

// SAFETY: plain addresses. Whoever posts a message sees to it that they stay valid, and unshared, until it is done.
unsafe impl Send for Message {}
// SAFETY: as above.
unsafe impl Sync for Message {}

impl Message {
    /// `buffer` to rank `to`.
    pub fn to<T: Element>(buffer: &[T], to: usize, tag: u32) -> Message {
        Message::sent((T::DTYPE, buffer.len()), buffer.as_ptr().cast(), to, tag)
    }

    /// Into `buffer`, from rank `from`.
    pub fn from<T: Element>(buffer: &mut [T], from: usize, tag: u32) -> Message {
        Message::received((T::DTYPE, buffer.len()), buffer.as_mut_ptr().cast(), from, tag)
    }

    /// So many elements at `data` to rank `to`.
    pub fn sent((dtype, count): (DataType, usize), data: *const u8, to: usize, tag: u32) -> Message {
        // An empty message may have no address, but even an empty slice needs one.
        let data = if count == 0 { NonNull::dangling().as_ptr() } else { data };
        Message { way: Way::To(data), peer: to, tag, dtype, count }
    }

    /// So many elements to `data`, from rank `from`.
    pub fn received((dtype, count): (DataType, usize), data: *mut u8, from: usize, tag: u32) -> Message {
        let data = if count == 0 { NonNull::dangling().as_ptr() } else { data };
        Message { way: Way::From(data), peer: from, tag, dtype, count }
    }

    /// So many elements to `data`, from whichever rank sends them.
    pub fn from_anyone((dtype, count): (DataType, usize), data: *mut u8, tag: u32) -> Message {
        let data = if count == 0 { NonNull::dangling().as_ptr() } else { data };
        Message { way: Way::FromAnyone(data), peer: usize::MAX, tag, dtype, count }
    }

    /// Where its bytes are.
    pub fn address(&self) -> *const u8 {
        match self.way {
            Way::To(from) => from,
            Way::From(into) | Way::FromAnyone(into) => into.cast_const(),
        }
    }

    /// Whether any rank may send it.
    pub fn is_from_anyone(&self) -> bool {
        matches!(self.way, Way::FromAnyone(_))
    }

    pub fn is_sent(&self) -> bool {
        matches!(self.way, Way::To(_))
    }
}

/// See the [module](self).
pub(super) struct Traffic {
    routes: Routes,
    stream_from: usize,
    allowance: Arc<Allowance>,
    /// By rank; made with the first message.
    peers: Vec<Option<Box<Peer>>>,
    /// Ranks with something to do.
    listed: Vec<usize>,
    /// Ranks with which there are messages or have been.
    known: Vec<usize>,
    /// What is expected from any rank. While there is something, all ranks are listed.
    anyone: Anyone,
    /// Messages posted so far.
    posted: u64,
}

// SAFETY: the messages point to buffers and counts of their callers, which wait elsewhere until they are done and do
// not care which thread works on them.
unsafe impl Send for Traffic {}

impl Traffic {
    /// Over these routes. Written pieces of at least `stream_from` bytes go around the caches, and messages that come
    /// before they are wanted take `stash` bytes at most.
    pub fn new(routes: Routes, stream_from: usize, stash: usize) -> Traffic {
        let peers = std::iter::repeat_with(|| None).take(routes.size()).collect();
        let allowance = Allowance::new(stash);
        let (listed, known, anyone) = (Vec::new(), Vec::new(), Anyone::default());
        Traffic { routes, stream_from, allowance, peers, listed, known, anyone, posted: 0 }
    }

    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// See [`Routes::unheard`].
    pub fn unheard(&self) -> Option<usize> {
        self.routes.unheard()
    }

    /// See [`Peer::unwanted_tags`].
    pub fn unwanted_tags(&self, rank: usize) -> Vec<u32> {
        self.peers[rank].as_ref().map_or_else(Vec::new, |peer| peer.unwanted_tags())
    }

    /// A rank from which a message with this tag has come that nobody expects. Asks the ranks in turn, beginning behind
    /// the one that was found last.
    pub fn look_for(&mut self, tag: u32) -> Result<Option<usize>, Box<Failure>> {
        let (me, size) = (self.routes.me, self.peers.len());
        for rank in in_turn(self.anyone.latest, size) {
            let peer = known(&mut self.peers, rank, &mut self.known, &self.allowance);
            let come = match rank == me {
                true => peer.waiting_for(false, tag) > 0,
                false => peer.look_for(tag, &self.routes, &mut self.anyone)?,
            };
            list(peer, &mut self.listed);
            if come {
                self.anyone.latest = rank;
                return Ok(Some(rank));
            }
        }
        Ok(None)
    }

    /// Expect a message from any rank, which may have come already; the ranks take turns.
    #[cold]
    fn expect_from_anyone(&mut self, message: Incoming) -> Result<(), Box<Failure>> {
        let (me, size) = (self.routes.me, self.peers.len());
        self.anyone.expect(message);
        for rank in in_turn(self.anyone.latest, size) {
            let peer = known(&mut self.peers, rank, &mut self.known, &self.allowance);
            let moved = peer.give_to_anyone(&mut self.anyone).and_then(|()| match rank == me {
                true => peer.advance_self(&mut self.anyone),
                false => peer.advance(&self.routes, self.stream_from, &mut self.anyone),
            });
            list(peer, &mut self.listed);
            moved?;
            if self.anyone.is_empty() {
                return Ok(());
            }
        }
        for peer in self.peers.iter_mut().flatten().filter(|peer| !peer.listed) {
            peer.listed = true;
            self.listed.push(peer.rank);
        }
        Ok(())
    }

    /// Whether no message is under way.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.listed.is_empty()
    }

    /// Whether a message is not quite sent.
    pub fn is_sending(&self) -> bool {
        self.listed.iter().any(|rank| self.peers[*rank].as_ref().is_some_and(|peer| peer.is_sending()))
    }

    /// Post a message and move it as far as it goes now.
    ///
    /// # Safety
    /// Its buffer has room for its elements and stays, like `count`, where it is until the message is counted off; an
    /// outgoing one is not written, an incoming one not touched by others. `count` counts this message.
    #[inline]
    pub unsafe fn post(&mut self, message: &Message, count: &Count) -> Result<(), Box<Failure>> {
        let me = self.routes.me;
        let bytes = message.count * message.dtype.size();
        // SAFETY: the caller's promise.
        let tally = unsafe { Tally::on(count) };
        self.posted += 1;
        if let Way::FromAnyone(into) = message.way {
            let Message { dtype, count, tag, .. } = *message;
            self.anyone.posted += 1;
            let operation = Fingerprint::from_anyone(self.anyone.posted, dtype, count, me, tag);
            // SAFETY: the caller's promise.
            let incoming = unsafe { Incoming::new(operation, into, bytes, tally, self.posted) };
            return self.expect_from_anyone(incoming);
        }
        let peer = known(&mut self.peers, message.peer, &mut self.known, &self.allowance);
        let number = &mut peer.posted[usize::from(message.is_sent())];
        *number += 1;
        let ends = if message.is_sent() { (me, message.peer) } else { (message.peer, me) };
        let operation = Fingerprint::point_to_point(*number, message.dtype, message.count, ends, message.tag);
        let posted = match message.way {
            Way::To(from) => {
                // SAFETY: the caller's promise.
                peer.send(unsafe { Outgoing::new(operation, from, bytes, tally) });
                Ok(())
            }
            Way::From(into) | Way::FromAnyone(into) => {
                // SAFETY: the caller's promise.
                peer.expect(unsafe { Incoming::new(operation, into, bytes, tally, self.posted) })
            }
        };
        let moved = posted.and_then(|()| match message.peer == me {
            true => peer.advance_self(&mut self.anyone),
            false => peer.advance(&self.routes, self.stream_from, &mut self.anyone),
        });
        list(peer, &mut self.listed);
        moved.map(|_| ())
    }

    /// Do what can be done now. Returns whether anything moved. `asleep`: another thread sleeps at
    /// the place of rest. Whatever comes wakes it, and it takes in what nobody reads.
    #[inline]
    pub fn advance(&mut self, asleep: bool) -> Result<bool, Box<Failure>> {
        let mut moved = false;
        let mut at = 0;
        let for_anyone = !self.anyone.is_empty();
        while at < self.listed.len() {
            let rank = self.listed[at];
            let peer = self.peers[rank].as_mut().expect("listed");
            // Messages to itself have been matched when the later of the two was posted.
            if rank != self.routes.me {
                moved |= peer.advance(&self.routes, self.stream_from, &mut self.anyone)?;
            }
            if peer.is_idle() && !for_anyone {
                peer.listed = false;
                self.listed.swap_remove(at);
            } else {
                at += 1;
            }
        }
        if for_anyone && self.anyone.is_empty() {
            self.unlist_idle();
        }
        Ok(moved || !asleep && self.routes.has_network() && !self.listed.is_empty() && self.absorb()?)
    }

    /// Nothing is expected from anyone any more.
    #[cold]
    fn unlist_idle(&mut self) {
        let peers = &mut self.peers;
        self.listed.retain(|rank| {
            let peer = peers[*rank].as_mut().expect("listed");
            peer.listed = !peer.is_idle();
            peer.listed
        });
    }

    /// Take in what has arrived on links that nobody reads now, up to their credit, so that no rank waits for this one
    /// while it waits for another.
    fn absorb(&mut self) -> Result<bool, Box<Failure>> {
        let unread = |rank: &usize| self.peers[*rank].as_ref().is_some_and(|peer| peer.is_linked_but_unread());
        if !self.known.iter().any(unread) {
            return Ok(false);
        }
        let me = self.routes.me;
        // No message of this rank needs anything of the link that fails.
        let blame =
            |peer: usize, trouble| Failure::of(trouble, Fingerprint::point_to_point(0, DataType::U8, 0, (peer, me), 0));
        let mut moved = false;
        for rank in self.routes.news().map_err(|trouble| blame(me, trouble))? {
            let Some(peer) = &mut self.peers[rank] else { continue };
            // What is read anyway may be left with more when it no longer is.
            let came = !peer.is_linked_but_unread() || {
                let came = peer.absorb().map_err(|e| blame(rank, Trouble::Link(rank, e)))?;
                moved |= came;
                came || peer.is_behind()
            };
            if came {
                self.routes.keep_news(rank);
            }
        }
        Ok(moved)
    }

    /// The first message that is counted on `count`, and the rank at its other side, `None` where
    /// any may be.
    #[cold]
    pub fn find(&self, count: &Count) -> Option<(Fingerprint, Option<usize>)> {
        // SAFETY: only compared with others.
        let tally = unsafe { Tally::on(count) };
        let mut under_way = self.listed.iter().filter_map(|rank| Some((self.peers[*rank].as_ref()?, *rank)));
        let found = under_way.find_map(|(peer, rank)| Some((peer.find(tally)?, Some(rank))));
        found.or_else(|| Some((self.anyone.find(tally)?, None)))
    }

    /// The first message that is expected from anyone.
    #[cold]
    pub fn first_from_anyone(&self) -> Option<Fingerprint> {
        self.anyone.first()
    }

    /// The first message under way with a rank that is `so`, and the rank.
    #[cold]
    pub fn first_with(&self, so: impl Fn(usize) -> bool) -> Option<(Fingerprint, usize)> {
        let mut those = self.listed.iter().filter(|rank| so(**rank));
        those.find_map(|rank| Some((self.peers[*rank].as_ref()?.first()?, *rank)))
    }

    /// Whether waiting for messages to or from `peer` is pointless once it has left.
    #[cold]
    pub fn is_pointless_without(&self, peer: usize) -> bool {
        self.peers[peer].as_ref().is_some_and(|p| p.is_pointless_without_it())
    }

    /// How many messages to or from this rank itself wait for one like this as their other side.
    pub fn waiting_for(&self, message: &Message) -> usize {
        let peer = self.peers[self.routes.me].as_ref();
        let waiting = peer.map_or(0, |peer| peer.waiting_for(message.is_sent(), message.tag));
        waiting + if message.is_sent() { self.anyone.waiting_for(message.tag) } else { 0 }
    }

    /// Give everything up: no buffer is touched after this. `close`: the links too, for good.
    #[cold]
    pub fn fail(&mut self, close: bool) {
        for peer in self.peers.iter_mut().flatten() {
            peer.fail(close);
            peer.listed = false;
        }
        self.anyone.fail();
        self.listed.clear();
    }
}

/// All ranks, beginning behind `latest`.
fn in_turn(latest: usize, size: usize) -> impl Iterator<Item = usize> {
    (latest + 1..size).chain(0..=latest)
}

/// What there is between this rank and `rank`: made with the first message.
#[inline]
fn known<'a>(
    peers: &'a mut [Option<Box<Peer>>],
    rank: usize,
    known: &mut Vec<usize>,
    allowance: &Arc<Allowance>,
) -> &'a mut Peer {
    match &mut peers[rank] {
        Some(peer) => peer,
        none => {
            known.push(rank);
            none.insert(Box::new(Peer::new(rank, allowance.clone())))
        }
    }
}

/// Put a rank with something to do on the list of those.
#[inline]
fn list(peer: &mut Peer, listed: &mut Vec<usize>) {
    if !peer.listed && !peer.is_idle() {
        peer.listed = true;
        listed.push(peer.rank);
    }
}
