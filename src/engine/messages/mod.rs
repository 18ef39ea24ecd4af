//! Messages between two ranks: an engine of their own beside the collectives'.
//!
//! It has its own links, its own place to sleep, and no order between its messages but that of each pair of ranks and
//! tag, so messages and collectives of one communicator run at the same time and never wait for each other. `peer`
//! is what happens between two ranks, `traffic` all of it. `lead` and `attendant` do the work, with the lock `held`;
//! here is who does it, and when.
//!
//! # Who does the work
//!
//! Everything lies behind one lock. Posting a message takes the lock and moves the message as far as it goes at once,
//! which for most small ones is to the end. What is left needs somebody who polls the links, the **leader**:
//!
//! * A *caller* that waits becomes the leader unless another caller is. It moves everybody's messages, not only its
//!   own, until its own are done.
//! * A caller that finds another one leading *follows*: it watches its own count, first spinning, then asleep on
//!   `changed`, until its messages are done or nobody leads any more; then one of the followers leads.
//! * The *attendant*, a thread that the first message starts which is posted without being waited for and does not go
//!   through at once, leads when messages are under way and no caller has been here for a moment ([`GRACE`]). So posted
//!   messages move on while their owner computes, or sits in a collective. A caller that comes to wait takes the lead
//!   from it at once.
//!
//! The leader holds the lock while it polls, and lets others in between two polls (`bump`, which hands the lock to
//! whoever is parked on it and otherwise costs one load). It gives the lock back while it sleeps. So whoever has the
//! lock has everything, `lead` says who is responsible, and only a thread that holds the lock changes it.
//!
//! # Why nobody sleeps for ever
//!
//! *Links.* The leader arms the bell, polls everything once more with the lock held, marks itself `asleep`, gives the
//! lock back and sleeps; `transports::wait` argues that news for a link that was polled with nothing to show after the
//! arming ends the sleep, and `transports::tcp::Poller` the same for sockets. A message that is posted meanwhile was
//! not among those polled; so whoever posts, or moves anything else on, ends the sleep before it gives the lock back.
//!
//! *Done by others.* That also covers a thread that finishes what the leader waits for; and it wakes the followers.
//! They hold the lock when they look at their count and give it back only by sleeping, so they miss nothing.
//!
//! *Taking over.* One thread sleeps at a time: a caller that takes the lead from a sleeping attendant wakes it, and
//! does not arm or sleep before `asleep` is false again. Otherwise two threads in one epoll set would share one event,
//! and the one to whom it does not matter could get it; or the attendant, woken, would disarm a bell that is not its
//! own any more. It disarms only what it has armed and only while it still leads.
//!
//! *Nobody leads.* A leader that leaves wakes the followers, each of which then leads or finds itself done. A caller
//! that is done and sees nobody lead, though messages are under way, calls the attendant: there is one, since they were
//! posted without being waited for.
//!
//! *Verdicts.* A verdict wakes the place of rest, so the leader sees it and fails everything, or after a death what is
//! in vain ([`super::aftermath`]). Where nobody leads, nothing is waited for, and whoever comes next sees it.
//!
//! # Why buffers are safe
//!
//! A message has the addresses of its buffer and of its owner's [`Count`]. It is counted off, or failed, with the lock
//! held, after the last access to its buffer and after it was taken out of the traffic; the owner waits for the count
//! before it lets go of either. Should the code here panic, everything is failed before the lock is given back
//! ([`Held`]).

mod anyone;
mod attendant;
mod held;
mod lead;
#[cfg(any(test, fuzzing))]
pub(crate) mod outside;
mod peer;
mod stash;
mod tally;
mod traffic;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use maypole_transports::lock::{Condvar, Mutex, MutexGuard};
use maypole_transports::wait::Patience;

use self::attendant::Attendant;
use self::held::Held;
pub(crate) use self::tally::Count;
pub(crate) use self::traffic::Message;
use self::traffic::Traffic;
use super::aftermath::Aftermath;
use super::alarm::Alarm;
use super::rest::Rest;
use super::routes::Routes;
use super::wait::{Court, Questions};
use crate::config::Config;
use crate::error::Result;

/// How long no caller may have been here before the attendant leads. Longer than the time between two calls of a
/// program that does nothing but exchange messages: there the attendant would only be in the way.
const GRACE: Duration = Duration::from_micros(200);

/// Values of `lead`.
const NOBODY: u8 = 0;
const CALLER: u8 = 1;
const ATTENDANT: u8 = 2;

/// One rank's messages. See the [module](self).
pub(crate) struct Messages {
    state: Mutex<State>,
    /// Who leads. Written with the lock held, and read by those who only want to know whether somebody does.
    lead: AtomicU8,
    /// Something was finished, or the lead is free: for followers.
    changed: Condvar,
    /// There is work for the attendant.
    wanted: Condvar,
    rest: Rest,
    patience: Patience,
}

/// What the lock guards.
struct State {
    traffic: Traffic,
    court: Court,
    /// Whether a thread sleeps at the place of rest, or is about to.
    asleep: bool,
    followers: usize,
    /// Those who wait for any of several operations.
    onlookers: Vec<Arc<Alarm>>,
    /// What is to be done when a count is done, which may be just now: with the lock given back.
    endings: Vec<Ending>,
    ended: Vec<Ending>,
    /// How often a caller has been here, and how often something has moved.
    visits: u64,
    moves: u64,
    /// What goes on after a death, of messages that nobody need wait for.
    aftermath: Aftermath,
    attendant: Attendant,
}

/// What is to be done when a count is done.
struct Ending {
    count: Arc<Count>,
    then: Box<dyn FnOnce(Result<()>) + Send>,
    /// Whoever wants to be told waits, if not with a thread: the attendant asks in his place.
    questions: Questions,
}

impl Messages {
    /// None yet, over these routes, with what the settings say of writing around the caches and of unexpected messages.
    pub fn new(routes: Routes, court: Court, config: &Config) -> Messages {
        let (rest, patience) = (routes.rest().clone(), court.patience);
        let state = State {
            traffic: Traffic::new(routes, config.stream, config.stash),
            court,
            asleep: false,
            followers: 0,
            onlookers: Vec::new(),
            endings: Vec::new(),
            ended: Vec::new(),
            visits: 0,
            moves: 0,
            aftermath: Aftermath::in_passing(),
            attendant: Attendant::default(),
        };
        Messages {
            state: Mutex::new(state),
            lead: AtomicU8::new(NOBODY),
            changed: Condvar::new(),
            wanted: Condvar::new(),
            rest,
            patience,
        }
    }

    /// The deadline of waits from now on.
    pub fn set_timeout(&self, timeout: Duration) {
        self.hold().court.timeout = timeout;
    }

    /// Post messages and wait until all of them are done. Those that are received should come first.
    ///
    /// # Safety
    /// The buffers are valid for their messages until this returns: readable if sent, writable and unshared if
    /// received.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for a message to or from this rank itself whose other side is not
    /// posted: nothing was started. [`Error::Failed`](crate::Error::Failed).
    pub unsafe fn run(&self, messages: &[Message]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.run_counted(messages, &Count::of(messages.len())) }
    }

    /// [`Messages::run`] of one message that is expected from anyone: who has sent it.
    ///
    /// # Safety
    /// As for [`Messages::run`].
    pub unsafe fn run_from_anyone(&self, message: Message) -> Result<usize> {
        let count = Count::of(1);
        // SAFETY: the caller's promise.
        unsafe { self.run_counted(&[message], &count) }?;
        Ok(count.source().expect("a message that is done has come from a rank"))
    }

    /// # Safety
    /// As for [`Messages::run`]; `count` is of these messages and no others.
    #[inline]
    unsafe fn run_counted(&self, messages: &[Message], count: &Count) -> Result<()> {
        let mut held = self.hold();
        held.check_other_sides(messages)?;
        // SAFETY: the caller's promise; this does not return before the count is done.
        unsafe { held.post(messages, count) };
        self.await_count(held, count)
    }

    /// Post messages. What does not go through at once is moved on by whoever waits, or by the attendant.
    ///
    /// # Safety
    /// As for [`Messages::run`], and `count` (of these messages and no others) stays where it is: both until the count
    /// is done.
    pub unsafe fn post(self: &Arc<Self>, messages: &[Message], count: &Count) {
        let mut held = self.hold();
        // SAFETY: the caller's promise.
        unsafe { held.post(messages, count) };
        if !held.traffic.is_idle() {
            self.engage_attendant(&mut held);
        }
    }

    /// Wait until `count` is done.
    ///
    /// # Errors
    /// [`Error::Failed`](crate::Error::Failed) if one of its messages has failed.
    pub fn wait(&self, count: &Count) -> Result<()> {
        if count.is_done() && !count.has_failed() {
            return Ok(());
        }
        self.await_count(self.hold(), count)
    }

    /// Whether `count` is done; moves messages on if nobody else does.
    pub fn test(&self, count: &Count) -> bool {
        if count.is_done() {
            return true;
        }
        if self.lead.load(Ordering::Relaxed) == NOBODY
            && let Some(state) = self.state.try_lock()
        {
            let mut held = self.held(state);
            held.visits += 1;
            if held.advance() {
                held.note_moved();
            }
        }
        count.is_done()
    }

    /// Somebody has waited for `count` for long without leading: ask after its ranks, and end it when nothing has moved
    /// for too long.
    /// Returns how long to wait until the next time.
    pub fn insist(&self, count: &Count, questions: &mut Questions) -> Duration {
        let mut held = self.hold();
        held.question(count, questions).unwrap_or_default()
    }

    /// Whether a message of this rank's is not quite sent, or somebody is at work on messages. Does not wait: the process
    /// may be ending from within a signal's handler, on the very thread that holds the lock.
    pub fn is_sending(&self) -> bool {
        self.state.try_lock().is_none_or(|state| state.traffic.is_sending())
    }

    /// A rank from which a message with this tag has come that nobody expects. Does not wait.
    ///
    /// # Errors
    /// [`Error::Failed`](crate::Error::Failed).
    pub fn look_for(&self, tag: u32) -> Result<Option<usize>> {
        let mut held = self.hold();
        held.visits += 1;
        held.look_for(tag)
    }

    /// Have `alarm` rung whenever something may be finished, until [`Messages::forget`].
    pub fn watch(&self, alarm: Arc<Alarm>) {
        self.hold().onlookers.push(alarm);
    }

    pub fn forget(&self, alarm: &Arc<Alarm>) {
        self.hold().onlookers.retain(|other| !Arc::ptr_eq(other, alarm));
    }

    /// Refuse messages to or from this rank itself whose other side is neither posted nor among them.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument).
    pub fn check(&self, messages: &[Message]) -> Result<()> {
        self.hold().check_other_sides(messages)
    }

    /// Have `then` called when `count` is done: at once if it is, otherwise by whoever ends it, without the lock. It must
    /// not block. It has the deadline of a wait: the attendant sees to that.
    pub fn when_done(&self, count: &Arc<Count>, then: Box<dyn FnOnce(Result<()>) + Send>) {
        let mut held = self.hold();
        held.endings.push(Ending { count: count.clone(), then, questions: Questions::new() });
        held.collect_ended();
    }

    fn hold(&self) -> Held<'_> {
        self.held(self.state.lock())
    }

    fn held<'a>(&'a self, state: MutexGuard<'a, State>) -> Held<'a> {
        Held::new(self, state)
    }
}
