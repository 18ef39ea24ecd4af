//! The messages between this rank and one other: what is to be sent, what is expected, what came unexpectedly.
//!
//! A link carries one message after the other, each a fingerprint and then its bytes. What is posted for sending goes
//! out in the order of the calls. What arrives is matched by its tag with the earliest expected message of that tag. If
//! none has it, the message stays in the link, and with it all that follow, as long as nothing is expected: the
//! sender of a large one then waits for its receiver, and no memory is taken. Once another message is expected from
//! that rank, the unexpected one is *stashed*, taken into memory of this rank's, so that those behind it can come; a
//! message posted later finds it there, or takes over the rest if it is still arriving.
//!
//! A message that is expected from any rank is matched in the same place, in the order of the
//! calls ([`super::anyone`]).
//!
//! Messages of one tag never overtake each other: the stash is searched before a message is expected, so that nothing
//! is ever expected whose tag lies in the stash, and both are searched from the front.

use std::collections::VecDeque;
use std::sync::Arc;

use maypole_collectives::DataType;
use maypole_transports::{LinkError, Receiver, Sender};

use super::anyone::Anyone;
use super::stash::{Allowance, Stashed};
use super::tally::Tally;
use crate::engine::lane::{Trouble, put};
use crate::engine::routes::{Inward, Outward, POINT_TO_POINT, Routes};
use crate::fingerprint::Fingerprint;

const HEADER: usize = size_of::<Fingerprint>();

/// Messages up to this many bytes go into shared memory together with their fingerprint.
const TOGETHER: usize = 4 << 10;

/// What went wrong, and with which message.
pub(super) struct Failure {
    pub trouble: Trouble,
    pub operation: Fingerprint,
}

impl Failure {
    #[cold]
    pub fn of(trouble: Trouble, operation: Fingerprint) -> Box<Failure> {
        Box::new(Failure { trouble, operation })
    }
}

/// A message to be sent.
pub(super) struct Outgoing {
    pub operation: Fingerprint,
    pub from: *const u8,
    pub bytes: usize,
    pub tally: Tally,
    announced: bool,
    sent: usize,
}

/// A message that is expected.
pub(super) struct Incoming {
    pub operation: Fingerprint,
    pub into: *mut u8,
    pub bytes: usize,
    pub tally: Tally,
    /// Its place in the order of all messages that this rank has posted.
    pub place: u64,
}

impl Outgoing {
    /// # Safety
    /// `from` stays readable for `bytes` bytes until the message is counted off `tally` or dropped.
    pub unsafe fn new(operation: Fingerprint, from: *const u8, bytes: usize, tally: Tally) -> Outgoing {
        Outgoing { operation, from, bytes, tally, announced: false, sent: 0 }
    }

    fn rest(&self) -> &[u8] {
        // SAFETY: the promise made to `new`.
        unsafe { std::slice::from_raw_parts(self.from.add(self.sent), self.bytes - self.sent) }
    }
}

impl Incoming {
    /// # Safety
    /// `into` stays writable for `bytes` bytes, and nobody else's, until the message is counted off `tally` or dropped.
    pub unsafe fn new(operation: Fingerprint, into: *mut u8, bytes: usize, tally: Tally, place: u64) -> Incoming {
        Incoming { operation, into, bytes, tally, place }
    }

    fn rest(&mut self, got: usize) -> &mut [u8] {
        // SAFETY: the promise made to `new`.
        unsafe { std::slice::from_raw_parts_mut(self.into.add(got), self.bytes - got) }
    }

    /// Whether `theirs` is what is expected, its tag being right. The message stays where it is if not: all that are
    /// posted are counted off when the communicator fails.
    pub fn check(&self, from: usize, theirs: &Fingerprint) -> Result<(), Box<Failure>> {
        if self.operation.same_message(theirs) {
            return Ok(());
        }
        Err(Failure::of(Trouble::Mismatch { peer: from, ours: self.operation, theirs: *theirs }, self.operation))
    }
}

/// A message whose fingerprint has been taken off the link.
enum Arriving {
    /// It was expected, and so many bytes of it have come.
    Buffer(Incoming, usize),
    Stash(Stashed),
}

/// The messages to and from one rank. See the [module](self).
pub(super) struct Peer {
    pub rank: usize,
    /// Whether it is on the list of those with something to do.
    pub listed: bool,
    /// Messages posted so far in each direction.
    pub posted: [u64; 2],
    outward: Option<Outward>,
    inward: Option<Inward>,
    outgoing: VecDeque<Outgoing>,
    expected: VecDeque<Incoming>,
    arriving: Option<Arriving>,
    stash: VecDeque<Stashed>,
    allowance: Arc<Allowance>,
}

impl Peer {
    pub fn new(rank: usize, allowance: Arc<Allowance>) -> Peer {
        Peer {
            rank,
            listed: false,
            posted: [0; 2],
            outward: None,
            inward: None,
            outgoing: VecDeque::new(),
            expected: VecDeque::new(),
            arriving: None,
            stash: VecDeque::new(),
            allowance,
        }
    }

    /// The tags of messages that have come and that nobody wants, each once.
    pub fn unwanted_tags(&self) -> Vec<u32> {
        let mut tags: Vec<u32> = self.stash.iter().map(|stashed| stashed.operation.tag()).collect();
        tags.sort_unstable();
        tags.dedup();
        tags
    }

    /// Give what has come already, or begun to, to those who expect it from anyone.
    pub fn give_to_anyone(&mut self, anyone: &mut Anyone) -> Result<(), Box<Failure>> {
        let arriving = self.arriving.iter().filter_map(|arriving| match arriving {
            Arriving::Stash(stashed) => Some(stashed.operation),
            Arriving::Buffer(..) => None,
        });
        let come: Vec<Fingerprint> = self.stash.iter().map(|s| s.operation).chain(arriving).collect();
        for theirs in come {
            if anyone.is_empty() {
                break;
            }
            // What has come unwanted is wanted by no receive from this rank.
            if let Some(message) = anyone.take((self.rank, &mut self.posted[0]), &theirs, None)? {
                self.expect(message)?;
            }
        }
        Ok(())
    }

    pub fn send(&mut self, message: Outgoing) {
        self.outgoing.push_back(message);
    }

    /// Expect a message, which may have come already.
    pub fn expect(&mut self, mut message: Incoming) -> Result<(), Box<Failure>> {
        let tag = message.operation.tag();
        if let Some(at) = self.stash.iter().position(|s| s.operation.tag() == tag) {
            if let Err(failure) = message.check(self.rank, &self.stash[at].operation) {
                self.expected.push_back(message);
                return Err(failure);
            }
            let stashed = self.stash.remove(at).expect("just found");
            message.rest(0).copy_from_slice(stashed.content());
            message.tally.count_off();
            return Ok(());
        }
        if let Some(Arriving::Stash(stashed)) = &self.arriving
            && stashed.operation.tag() == tag
        {
            if let Err(failure) = message.check(self.rank, &stashed.operation) {
                self.expected.push_back(message);
                return Err(failure);
            }
            let got = stashed.content().len();
            message.rest(0)[..got].copy_from_slice(stashed.content());
            self.arriving = Some(Arriving::Buffer(message, got));
            return Ok(());
        }
        self.expected.push_back(message);
        Ok(())
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.outgoing.is_empty() && self.expected.is_empty() && self.arriving.is_none()
    }

    /// Whether a message to it is not quite sent.
    pub fn is_sending(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether bytes from this rank can only come in if somebody takes them in ahead of their time.
    pub fn is_linked_but_unread(&self) -> bool {
        self.inward.is_some() && self.expected.is_empty() && self.arriving.is_none()
    }

    /// Take in what has arrived ahead of its time, up to the link's credit. Returns whether anything came.
    pub fn absorb(&mut self) -> Result<bool, LinkError> {
        match &mut self.inward {
            Some(link) => match link.receiver.absorb() {
                // A rank that is gone is reported when it is needed: it may have left in good order.
                Err(LinkError::Gone { .. }) => Ok(false),
                other => other,
            },
            None => Ok(false),
        }
    }

    /// See [`Receiver::is_behind`].
    pub fn is_behind(&self) -> bool {
        self.inward.as_ref().is_some_and(|link| link.receiver.is_behind())
    }

    /// Do what can be done now. Returns whether anything moved.
    #[inline]
    pub fn advance(&mut self, routes: &Routes, stream_from: usize, anyone: &mut Anyone) -> Result<bool, Box<Failure>> {
        Ok(self.advance_outgoing(routes, stream_from)? | self.advance_incoming(routes, anyone)?)
    }

    fn advance_outgoing(&mut self, routes: &Routes, stream_from: usize) -> Result<bool, Box<Failure>> {
        let mut moved = false;
        while let Some(message) = self.outgoing.front_mut() {
            let operation = message.operation;
            let fail = |trouble| Failure::of(trouble, operation);
            if self.outward.is_none() {
                self.outward = routes.outward(self.rank, POINT_TO_POINT).map_err(fail)?;
            }
            let Some(link) = &mut self.outward else { break };
            let before = (message.announced, message.sent);
            let done = push(message, &mut *link.sender, stream_from).map_err(|e| fail(Trouble::Link(self.rank, e)))?;
            moved |= before != (message.announced, message.sent);
            if !done {
                break;
            }
            moved = true;
            let message = self.outgoing.pop_front().expect("it was the front");
            message.tally.count_off();
        }
        Ok(moved)
    }

    fn advance_incoming(&mut self, routes: &Routes, anyone: &mut Anyone) -> Result<bool, Box<Failure>> {
        let mut moved = false;
        loop {
            let operation = match (&self.arriving, self.expected.front()) {
                (Some(Arriving::Buffer(message, _)), _) | (None, Some(message)) => message.operation,
                (Some(Arriving::Stash(stashed)), _) => stashed.operation,
                (None, None) => match anyone.first() {
                    Some(operation) => operation,
                    None => break,
                },
            };
            let fail = |trouble| Failure::of(trouble, operation);
            if self.inward.is_none() {
                self.inward = routes.inward(self.rank, POINT_TO_POINT).map_err(fail)?;
            }
            let rank = self.rank;
            let link_trouble = |e| fail(Trouble::Link(rank, e));
            if self.arriving.is_none() {
                let Some(link) = &mut self.inward else { break };
                let theirs = match fingerprint(&mut *link.receiver) {
                    Ok(Some(theirs)) => theirs,
                    Ok(None) => break,
                    // Others may send what is expected from any rank.
                    Err(LinkError::Gone { .. }) if self.expected.is_empty() => break,
                    Err(error) => return Err(link_trouble(error)),
                };
                self.arriving = Some(self.matched(anyone, theirs)?);
                moved = true;
            }
            let (Some(link), Some(arriving)) = (&mut self.inward, &mut self.arriving) else { break };
            let receiver = &mut *link.receiver;
            let (came, is_whole) = match arriving {
                Arriving::Buffer(message, got) => {
                    let rest = message.rest(*got);
                    let wanted = rest.len();
                    let came = if wanted > 0 { receiver.recv(rest).map_err(link_trouble)? } else { 0 };
                    *got += came;
                    (came, came == wanted)
                }
                Arriving::Stash(stashed) => {
                    let came = stashed.take_in(receiver).map_err(link_trouble)?;
                    (came, stashed.is_whole())
                }
            };
            moved |= came > 0;
            if !is_whole {
                break;
            }
            receiver.end();
            match self.arriving.take().expect("just filled") {
                Arriving::Buffer(message, _) => message.tally.count_off(),
                Arriving::Stash(stashed) => self.stash.push_back(stashed),
            }
        }
        Ok(moved)
    }

    /// Whether a message with this tag has come, or begun to, that nobody expects. Those in front of it are stashed.
    pub fn look_for(&mut self, tag: u32, routes: &Routes, anyone: &mut Anyone) -> Result<bool, Box<Failure>> {
        loop {
            self.advance_incoming(routes, anyone)?;
            let begun = match &self.arriving {
                Some(Arriving::Stash(stashed)) => stashed.operation.tag() == tag,
                _ => false,
            };
            if begun || self.stash.iter().any(|stashed| stashed.operation.tag() == tag) {
                return Ok(true);
            }
            if self.arriving.is_some() || !self.expected.is_empty() || !anyone.is_empty() {
                return Ok(false);
            }
            // Nothing is expected, so what comes next is still in the link.
            let operation = Fingerprint::point_to_point(0, DataType::U8, 0, (self.rank, routes.me), tag);
            let fail = |trouble| Failure::of(trouble, operation);
            if self.inward.is_none() {
                self.inward = routes.inward(self.rank, POINT_TO_POINT).map_err(fail)?;
            }
            let Some(link) = &mut self.inward else { return Ok(false) };
            let theirs = match fingerprint(&mut *link.receiver) {
                Ok(Some(theirs)) => theirs,
                // A rank that is gone is reported when it is needed.
                Ok(None) | Err(LinkError::Gone { .. }) => return Ok(false),
                Err(error) => return Err(fail(Trouble::Link(self.rank, error))),
            };
            self.arriving = Some(self.matched(anyone, theirs)?);
        }
    }

    /// Where the message that begins with `theirs` goes: to the earliest receive that has its tag.
    fn matched(&mut self, anyone: &mut Anyone, theirs: Fingerprint) -> Result<Arriving, Box<Failure>> {
        let at = self.expected.iter().position(|m| m.operation.tag() == theirs.tag());
        let place = at.map(|at| self.expected[at].place);
        if !anyone.is_empty()
            && let Some(message) = anyone.take((self.rank, &mut self.posted[0]), &theirs, place)?
        {
            return Ok(Arriving::Buffer(message, 0));
        }
        if let Some(at) = at {
            self.expected[at].check(self.rank, &theirs)?;
            let message = self.expected.remove(at).expect("just found");
            return Ok(Arriving::Buffer(message, 0));
        }
        let operation = self.expected.front().map_or(theirs, |m| m.operation);
        Stashed::new(theirs, &self.allowance).map(Arriving::Stash).map_err(|what| {
            let source = std::io::Error::new(std::io::ErrorKind::OutOfMemory, what);
            let io = LinkError::Io { doing: "keeping an unexpected message", source };
            Failure::of(Trouble::Link(self.rank, io), operation)
        })
    }

    /// Messages to this rank itself: those sent are matched with those expected, in order.
    pub fn advance_self(&mut self, anyone: &mut Anyone) -> Result<bool, Box<Failure>> {
        let mut moved = false;
        let mut at = 0;
        while let Some(sent) = self.outgoing.get(at) {
            let tag = sent.operation.tag();
            let to = self.expected.iter().position(|e| e.operation.tag() == tag);
            let place = to.map(|to| self.expected[to].place);
            let free = anyone.take((self.rank, &mut self.posted[0]), &sent.operation, place)?;
            let mut message = match (free, to) {
                (Some(message), _) => message,
                (None, Some(to)) => {
                    self.expected[to].check(self.rank, &sent.operation)?;
                    self.expected.remove(to).expect("just found")
                }
                (None, None) => {
                    at += 1;
                    continue;
                }
            };
            message.rest(0).copy_from_slice(sent.rest());
            let sent = self.outgoing.remove(at).expect("just seen");
            message.tally.count_off();
            sent.tally.count_off();
            moved = true;
        }
        Ok(moved)
    }

    /// How many messages to or from this rank itself wait for one that is sent, or received, as their other side.
    pub fn waiting_for(&self, sent: bool, tag: u32) -> usize {
        match sent {
            true => self.expected.iter().filter(|m| m.operation.tag() == tag).count(),
            false => self.outgoing.iter().filter(|m| m.operation.tag() == tag).count(),
        }
    }

    /// The first message that is counted on `tally`.
    pub fn find(&self, tally: Tally) -> Option<Fingerprint> {
        self.posted_ones().find(|(counted, _)| *counted == tally).map(|(_, operation)| operation)
    }

    /// The first message that somebody has posted and that is not done.
    pub fn first(&self) -> Option<Fingerprint> {
        self.posted_ones().next().map(|(_, operation)| operation)
    }

    fn posted_ones(&self) -> impl Iterator<Item = (Tally, Fingerprint)> + '_ {
        let arriving = self.arriving.iter().filter_map(|arriving| match arriving {
            Arriving::Buffer(message, _) => Some(message),
            Arriving::Stash(_) => None,
        });
        let incoming = arriving.chain(&self.expected).map(|m| (m.tally, m.operation));
        incoming.chain(self.outgoing.iter().map(|m| (m.tally, m.operation)))
    }

    /// Whether nothing that this rank waits for can come any more once the other has left: it will read nothing, and
    /// there is no link that would bring what it has sent.
    pub fn is_pointless_without_it(&self) -> bool {
        !self.outgoing.is_empty() || self.inward.is_none()
    }

    /// Nothing will be done any more: count off everything as failed, and touch no buffer after that. `close`: those
    /// that wait for this rank are to learn so from the links.
    pub fn fail(&mut self, close: bool) {
        if close {
            (self.outward, self.inward) = (None, None);
        }
        self.outgoing.drain(..).for_each(|message| message.tally.fail());
        self.expected.drain(..).for_each(|message| message.tally.fail());
        if let Some(Arriving::Buffer(message, _)) = self.arriving.take() {
            message.tally.fail();
        }
        self.stash.clear();
    }
}

/// Send as much of a message as the link takes. `true`: all is sent.
fn push(message: &mut Outgoing, link: &mut dyn Sender, stream_from: usize) -> Result<bool, LinkError> {
    if !message.announced {
        let room = link.reserve()?;
        if room.len() < HEADER {
            return Ok(false);
        }
        room[..HEADER].copy_from_slice(bytemuck::bytes_of(&message.operation));
        let together = if message.bytes <= TOGETHER.min(room.len() - HEADER) { message.bytes } else { 0 };
        room[HEADER..HEADER + together].copy_from_slice(&message.rest()[..together]);
        link.commit(HEADER + together);
        (message.announced, message.sent) = (true, together);
        if together == message.bytes {
            return link.end();
        }
    }
    if message.sent == message.bytes {
        // It has ended, but not all of it could be passed on yet.
        return link.flush();
    }
    let took = put(link, message.rest(), stream_from)?;
    message.sent += took;
    if message.sent < message.bytes { Ok(false) } else { link.end() }
}

/// Take the fingerprint off the link, once it has arrived.
pub(super) fn fingerprint(link: &mut dyn Receiver) -> Result<Option<Fingerprint>, LinkError> {
    let there = link.peek()?;
    if there.len() < HEADER {
        return Ok(None);
    }
    let theirs = bytemuck::pod_read_unaligned(&there[..HEADER]);
    link.release(HEADER);
    Ok(Some(theirs))
}
