//! Making data connections to other ranks.
//!
//! The host at the other end may be down, stopped or cut off, and then connecting takes as long as one lets it. So a
//! rank that is in an operation does not wait in a call: [`Node::connected`] has a thread of its own make the
//! connections, and the rank waits for them as it waits for everything else, with its deadline, its other links served,
//! and an end as soon as there is a verdict.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use maypole_collectives::DataType;
use maypole_transports::tcp::Wire;

use super::auth::{Errand, Purpose};
use super::frame::ToHub;
use super::shared::Shared;
use super::{CONNECTIONS, Node, dial, interfaces};
use crate::descriptors;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::running::Limit;
use crate::watch::Watch;

/// The most threads that make connections at the same time.
const AT_ONCE: usize = 64;
/// The longest pause between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a connection within a working network may take to be made. Longer, and the network is to be suspected.
const SUSPECT_AFTER: Duration = Duration::from_secs(1);

/// Connections of [`Node::connected`], by (world rank, context, channel), until they are asked for.
pub(super) type Underway = HashMap<(usize, u64, usize), Making>;

/// One entry of it.
pub(super) enum Making {
    Since(Instant),
    Ended(Result<Vec<Wire>>),
}

impl Node {
    /// Open `connections` TCP connections to world rank `peer` for `context` and `channel`. Blocks until they stand, at
    /// most `MAYPOLE_CONNECT_TIMEOUT`, or until the communicator has a verdict. The other side gets them from
    /// [`Node::accepted`]; one of two ranks connects, the lower one. Streams are non-blocking, with `TCP_NODELAY`, in
    /// the same order on both sides; with `MAYPOLE_ENCRYPT` they come with keys.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] naming the peer, its addresses and what is wrong with each; [`Error::Failed`] if there is a
    /// verdict.
    pub fn connect(&self, peer: usize, context: u64, channel: usize, connections: usize) -> Result<Vec<Wire>> {
        self.shared.connect(peer, context, channel, connections)
    }

    /// [`Node::connect`] without waiting: the first call begins, and once the connections stand, a call returns them;
    /// `None` until then. What [`Node::on_accept`] was given is called when there is something to ask for.
    ///
    /// # Errors
    /// As [`Node::connect`], once; the next call begins anew. [`Error::System`] if there can be no thread.
    pub fn connected(
        &self,
        peer: usize,
        context: u64,
        channel: usize,
        connections: usize,
    ) -> Result<Option<Vec<Wire>>> {
        let key = (peer, context, channel);
        let mut underway = self.shared.underway.lock();
        match underway.remove(&key) {
            Some(Making::Ended(result)) => return result.map(Some),
            Some(begun) => {
                underway.insert(key, begun);
                return Ok(None);
            }
            None => {}
        }
        // Whichever of them ends next, the caller is woken and asks again.
        if underway.values().filter(|making| matches!(making, Making::Since(_))).count() >= AT_ONCE {
            return Ok(None);
        }
        underway.insert(key, Making::Since(Instant::now()));
        drop(underway);
        let shared = Arc::clone(&self.shared);
        let make = move || {
            super::quiet_thread();
            let result = shared.connect(peer, context, channel, connections);
            // Without an entry the communicator has been left meanwhile.
            if let Some(making) = shared.underway.lock().get_mut(&key) {
                *making = Making::Ended(result);
            }
            shared.wake(None);
        };
        if let Err(e) = std::thread::Builder::new().name("maypole-connect".into()).spawn(make) {
            self.shared.underway.lock().remove(&key);
            return Err(Error::system(format!("rank {} cannot start a thread to connect with", self.rank()), e));
        }
        Ok(None)
    }

    /// A world rank to which [`Node::connected`] has been trying in vain for more than a second.
    pub fn unreached(&self, context: u64) -> Option<usize> {
        let underway = self.shared.underway.lock();
        let late = underway.iter().filter(|((_, c, _), making)| {
            *c == context && matches!(making, Making::Since(begun) if begun.elapsed() > SUSPECT_AFTER)
        });
        late.map(|((peer, ..), _)| *peer).min()
    }
}

impl Shared {
    /// See [`Node::connect`].
    fn connect(&self, peer: usize, context: u64, channel: usize, connections: usize) -> Result<Vec<Wire>> {
        assert!((1..=CONNECTIONS).contains(&connections), "from 1 to {CONNECTIONS} connections");
        let watch = self.contexts.lock().get(&context).map(|r| (r.watch.clone(), r.me));
        let member = self.member(context, peer);
        let gone = |w: &Watch| member.is_some_and(|member| w.is_gone(member));
        let departed = || watch.as_ref().zip(member).is_some_and(|((w, _), member)| w.has_departed(member));
        let left = || self.leaving.load(Ordering::Acquire) || self.finished.lock().contains(context);
        let ended = || watch.as_ref().is_some_and(|(w, _)| w.is_over() || w.raised() && gone(w));
        let limit = Limit::after(self.config.connect_timeout);
        let give_up = || {
            limit.left();
            ended() || departed() || left()
        };
        let source = interfaces::source(&self.config);
        let (start, other) = (Instant::now(), &self.peers[peer]);
        let mut pause = Duration::from_millis(1);
        let mut ran_out: Option<Instant> = None;
        let mut streams = Vec::new();
        while streams.len() < connections {
            let errand = Errand {
                purpose: Purpose::Data,
                sealed: self.config.encrypt,
                from: self.rank as u32,
                to: peer as u32,
                context,
                channel: channel as u32,
                index: streams.len() as u16,
                total: connections as u16,
            };
            let failures = match dial::call(&other.data, source, &self.key, &errand, limit.if_not_stopped(), &give_up) {
                Ok((stream, _, session)) => {
                    streams.push(session.into_wire(stream));
                    continue;
                }
                Err(failures) => failures,
            };
            if let Some((verdict, me)) =
                watch.as_ref().filter(|_| ended()).and_then(|(w, me)| Some((w.verdict()?, *me)))
            {
                return Err(Error::Failed { rank: me, verdict });
            }
            if departed() {
                return Err(Error::bootstrap(format!(
                    "world rank {peer} on host {} has left the communicator",
                    other.host
                )));
            }
            if left() {
                return Err(Error::bootstrap(format!("world rank {} itself has left the communicator", self.rank)));
            }
            // It may have left in good order, and then nobody answers there any more.
            if let (Some((_, me)), Some(member)) = (&watch, member) {
                let operation = Fingerprint::point_to_point(0, DataType::U8, 0, (*me, member), 0);
                self.post(&ToHub::Inquire { context, operation, peer: member });
            }
            ran_out = dial::ran_out(&failures).then(|| ran_out.unwrap_or_else(Instant::now));
            let in_vain = ran_out.is_some_and(|since| since.elapsed() >= descriptors::PATIENCE);
            if limit.left() <= pause || in_vain {
                return Err(Error::bootstrap(format!(
                    "world rank {} on host {} could not connect to world rank {peer} on host {} within {:.1?} ({}); check that the \
                     hosts can reach each other there, or choose the network with MAYPOLE_INTERFACE",
                    self.rank,
                    self.peers[self.rank].host,
                    other.host,
                    start.elapsed(),
                    dial::explain(&failures)
                )));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE);
        }
        Ok(streams)
    }
}
