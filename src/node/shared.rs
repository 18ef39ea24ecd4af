//! What a node's thread and its callers share: the table, the control connection, and what they
//! leave for each other.

use std::collections::HashMap;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use maypole_transports::lock::{Condvar, Mutex};
use maypole_transports::tcp::Wire;
use nix::sys::eventfd::EventFd;

use super::connecting::Underway;
use super::court::inquest_lasts;
use super::cut_off::CutOff;
use super::frame::{HubPlace, Late, ToHub};
use super::key::Key;
use super::making::Word;
use super::peer::Peer;
use super::recent::Recent;
use super::wire::Outbox;
use crate::config::Config;
use crate::error::Verdict;
use crate::exit::{End, Membership};
use crate::running::Moment;
use crate::watch::{self, Record, Watch};

/// How long the hub has to answer a report before the rank acts alone: a stopped hub must not hold
/// anybody for long. An eighth of the deadline, at least three seconds and at most ten.
fn hub_patience(deadline: Duration) -> Duration {
    (deadline / 8).clamp(Duration::from_secs(3), Duration::from_secs(10))
}
/// How many of its latest operations a rank that leaves a communicator tells.
const TOLD_ON_LEAVING: usize = 16;

/// A communicator of which this rank is a member.
pub(super) struct Registered {
    /// World ranks in the communicator's order.
    pub members: Vec<usize>,
    /// This rank in it.
    pub me: usize,
    pub watch: Arc<Watch>,
    /// Whether the hub has been told that this rank has left.
    pub left: bool,
    /// The latest operation number that was sent for comparison.
    pub audited: u64,
    /// What the hub has said of its making, until the rank that waits for it takes it.
    pub word: Option<Word>,
}

/// What to declare on a communicator if the hub does not speak.
pub(super) struct Due {
    pub context: u64,
    /// Whether a word that the ranks go on is enough.
    pub stall: bool,
    /// How long the hub may take.
    pub within: Duration,
    /// When that is over, by the clock of the node's thread; `None` before that thread has seen
    /// this.
    pub by: Option<Moment>,
    pub alone: Verdict,
}

/// TCP connections that came in, by (world rank, context, channel), until they are asked for.
pub(super) type Arrivals = HashMap<(usize, u64, usize), Vec<Option<Wire>>>;

/// What a communicator has called when something came in for it.
type Wake = Arc<dyn Fn() + Send + Sync>;

/// What the node's thread and its callers share.
pub(super) struct Shared {
    pub rank: usize,
    pub peers: Vec<Peer>,
    pub hub: HubPlace,
    pub key: Key,
    pub config: Config,
    pub control: TcpStream,
    pub outbox: Mutex<Outbox>,
    /// Wakes the node's thread.
    pub bell: EventFd,
    pub contexts: Mutex<HashMap<u64, Registered>>,
    /// Wakes ranks that wait for the others to make a communicator, who hold `contexts`.
    pub spoken: Condvar,
    /// Verdicts on communicators that this rank has not registered yet.
    pub early: Mutex<Recent<Verdict>>,
    /// Communicators that this rank has left lately: nothing about them is kept.
    pub finished: Mutex<Recent<()>>,
    pub arrivals: Mutex<Arrivals>,
    /// TCP connections to others, while they are made and until they are asked for.
    pub underway: Mutex<Underway>,
    pub on_accept: Mutex<Vec<(u64, Wake)>>,
    /// Descriptors to hand out, by context and number.
    pub offered: Mutex<HashMap<(u64, u32), Arc<OwnedFd>>>,
    /// What to declare here if the hub does not speak.
    pub due: Mutex<Vec<Due>>,
    /// Whether the hub was asked if it is there, and has said nothing since.
    pub doubted: AtomicBool,
    /// How often it was asked, and has answered: in the order in which it was asked.
    pub pings: Mutex<u64>,
    pub here: AtomicU64,
    pub leaving: AtomicBool,
    /// Whether any communicator of this rank has failed: then leaving does not wait for long.
    pub troubled: AtomicBool,
    /// Why this rank is cut off from the hub, once it is.
    pub cut_off: OnceLock<CutOff>,
    /// Of the node's thread, which ends when the hub has taken leave.
    pub end: End,
    /// See [`super::Node::starved`].
    pub starved: AtomicBool,
}

impl Shared {
    /// Wake the node's thread.
    pub fn ring(&self) {
        // Only a full counter fails, and then the thread is woken anyway.
        let _ = self.bell.write(1);
    }

    /// Wake the waiting ranks of `context`, or of all communicators: connections have come or been
    /// made.
    pub fn wake(&self, context: Option<u64>) {
        let wakes = self.on_accept.lock().clone();
        wakes.iter().filter(|(c, _)| context.is_none_or(|context| *c == context)).for_each(|(_, wake)| wake());
    }

    /// Send a frame to the hub; what the socket does not take now, the node's thread writes.
    pub fn post(&self, message: &ToHub) {
        if self.is_cut_off() {
            return;
        }
        let mut outbox = self.outbox.lock();
        outbox.push(message);
        if !matches!(outbox.flush(&self.control), Ok(true)) {
            drop(outbox);
            self.ring();
        }
    }

    /// Send a frame that must lead to a verdict on `context`, or to a word that its ranks go on;
    /// without the hub, `alone` is declared here.
    pub fn post_or_else(&self, context: u64, message: &ToHub, alone: Verdict) {
        let members = self.contexts.lock().get(&context).map_or(0, |r| r.members.len());
        if self.is_cut_off() || members == 1 {
            return self.declare(context, alone);
        }
        self.post(message);
        let (stall, within) = match message {
            // A hub that has been silent since half of the deadline gets no more time than another
            // rank would.
            ToHub::Stalled { stall, .. } if self.doubted.load(Ordering::Acquire) => {
                (true, inquest_lasts(stall.deadline))
            }
            ToHub::Stalled { stall, .. } => (true, inquest_lasts(stall.deadline) + hub_patience(stall.deadline)),
            _ => (false, hub_patience(self.config.timeout)),
        };
        let mut due = self.due.lock();
        if !due.iter().any(|entry| (entry.context, entry.stall) == (context, stall)) {
            due.push(Due { context, stall, within, by: None, alone });
        }
        drop(due);
        self.ring();
    }

    /// Have the hub show that it is there, before a rank of `context` needs it.
    pub fn doubt(&self, context: u64) {
        let members = self.contexts.lock().get(&context).map_or(0, |r| r.members.len());
        if members > 1 && !self.doubted.swap(true, Ordering::AcqRel) {
            self.ping();
        }
    }

    /// Ask whether the hub is there. It has answered when [`Shared::here`] has come to the number
    /// that is returned, and what it said before has been heard.
    pub fn ping(&self) -> u64 {
        let mut pings = self.pings.lock();
        *pings += 1;
        self.post(&ToHub::Ping);
        *pings
    }

    /// The hub is there.
    pub fn hub_answers(&self) {
        self.here.fetch_add(1, Ordering::AcqRel);
        self.wake_listeners();
    }

    /// The hub says that the ranks of `context` that wait go on.
    pub fn go_on(&self, context: u64, message: bool, moved: Option<Duration>, late: Option<Late>) {
        self.due.lock().retain(|entry| entry.context != context || !entry.stall);
        let Some((watch, reporter)) = self.contexts.lock().get(&context).map(|r| (r.watch.clone(), r.me)) else {
            return;
        };
        if let Some(ago) = moved {
            watch.note_moved_elsewhere(message, ago);
        }
        if let Some(Late { stall, culprits }) = late {
            let late = watch::Late { reporter, stall: &stall, culprits: &culprits };
            crate::log::warn(format_args!("{late}"));
        }
    }

    pub fn report(&self, context: u64, verdict: Verdict) {
        // Also where the communicator is left before anybody has said so.
        self.troubled.store(true, Ordering::Release);
        let verdict = verdict.cut();
        self.post_or_else(context, &ToHub::Report { context, verdict: verdict.clone() }, verdict);
    }

    /// Whether this rank is in `context` and knows of no verdict on it.
    pub fn is_fine(&self, context: u64) -> bool {
        self.contexts.lock().get(&context).is_some_and(|registered| !registered.watch.raised())
    }

    /// Tell the hub, once, that this rank leaves `context`, and what it did last.
    pub fn leave(&self, context: u64) {
        let mut contexts = self.contexts.lock();
        let Some(registered) = contexts.get_mut(&context) else { return };
        if std::mem::replace(&mut registered.left, true) || registered.members.len() == 1 {
            return;
        }
        let records = latest(&registered.watch, TOLD_ON_LEAVING);
        drop(contexts);
        self.post(&ToHub::Leave { context, records });
    }

    /// Pass a verdict on to this rank's watch.
    pub fn declare(&self, context: u64, verdict: Verdict) {
        self.due.lock().retain(|entry| entry.context != context);
        self.troubled.store(true, Ordering::Release);
        let watch = self.contexts.lock().get(&context).map(|r| r.watch.clone());
        match watch {
            Some(watch) => watch.declare(verdict),
            None if self.finished.lock().contains(context) => {}
            None => {
                self.early.lock().insert(context, verdict);
                // It may have been registered between the two looks.
                let registered = self.contexts.lock().get(&context).map(|r| r.watch.clone());
                if let Some(watch) = registered
                    && let Some(verdict) = self.early.lock().remove(context)
                {
                    watch.declare(verdict);
                }
            }
        }
        self.wake_listeners();
    }

    /// The hub has a word for whoever makes `context` here.
    pub fn tell(&self, context: u64, word: Word) {
        if let Some(registered) = self.contexts.lock().get_mut(&context) {
            registered.word = Some(word);
        }
        self.wake_listeners();
    }

    /// Wake whoever waits for what the hub says, or for a verdict: there is news.
    pub fn wake_listeners(&self) {
        // Whoever looks whether there is news holds the lock until it waits.
        drop(self.contexts.lock());
        self.spoken.notify_all();
    }

    /// Whether this rank still needs a verdict on `context`. Once it has one, or has left, the hub
    /// may well say no more.
    pub fn wants_verdict(&self, context: u64) -> bool {
        self.contexts.lock().get(&context).is_some_and(|registered| !registered.watch.raised())
    }

    /// World rank `world`'s rank in `context`, if it is a member.
    pub fn member(&self, context: u64, world: usize) -> Option<usize> {
        self.contexts.lock().get(&context)?.members.iter().position(|r| *r == world)
    }

    /// The name of the host of rank `rank` of `context`.
    pub fn host_of_member(&self, context: u64, rank: usize) -> String {
        let world = self.contexts.lock().get(&context).and_then(|r| r.members.get(rank).copied());
        world.and_then(|world| self.peers.get(world)).map_or_else(String::new, |peer| peer.host.clone())
    }

    /// The hub's rank in `context`, if it is a member.
    pub fn hub_as_member(&self, context: u64) -> Option<usize> {
        self.member(context, self.hub.rank?)
    }
}

impl Membership for Shared {
    /// Tell the hub that this rank leaves the job in good order, or while panicking that it falls.
    fn part(&self) {
        if self.leaving.swap(true, Ordering::AcqRel) {
            return;
        }
        let contexts: Vec<u64> = self.contexts.lock().keys().copied().collect();
        let panicking = std::thread::panicking();
        contexts.into_iter().filter(|_| !panicking).for_each(|context| self.leave(context));
        self.contexts.lock().clear();
        self.post(&if panicking {
            ToHub::Fallen { how: "a thread of its process panicked".to_string() }
        } else {
            ToHub::Bye
        });
        self.ring();
    }

    fn end(&self) -> &End {
        &self.end
    }
}

/// The latest operations of a rank, at most `count` numbers, oldest first.
pub(super) fn latest(watch: &Watch, count: usize) -> Vec<(u64, Record)> {
    let last = watch.latest();
    let first = last.saturating_sub(count as u64 - 1).max(1);
    let records = (first..=last).map(|sequence| (sequence, watch.record(sequence)));
    records.filter(|(_, record)| matches!(record, Record::Called(_) | Record::Refused(_))).collect()
}
