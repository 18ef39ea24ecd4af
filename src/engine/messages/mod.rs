//! Messages between two ranks: an engine of their own beside the collectives'.
//!
//! It has its own links, its own place to sleep, and no order between its messages but that of each pair of ranks and
//! tag, so messages and collectives of one communicator run at the same time and never wait for each other. `peer`
//! is what happens between two ranks, `traffic` all of it; here is who does the work, and when.
//!
//! # Who does the work
//!
//! Everything lies behind one lock. Posting a message takes the lock and moves the message as far as it goes at once,
//! which for most small ones is to the end. What is left needs somebody who polls the links, the **leader**:
//!
//! * A *caller* that waits becomes the leader unless another caller is. It moves everybody's messages, not only its own,
//!   until its own are done.
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
//! arming ends the sleep, and `transports::tcp::Poller` the same for sockets. A message that is posted meanwhile was not
//! among those polled; so whoever posts, or moves anything else on, ends the sleep before it gives the lock back.
//!
//! *Done by others.* That also covers a thread that finishes what the leader waits for; and it wakes the followers.
//! They hold the lock when they look at their count and give it back only by sleeping, so they miss nothing.
//!
//! *Taking over.* One thread sleeps at a time: a caller that takes the lead from a sleeping attendant wakes it, and does
//! not arm or sleep before `asleep` is false again. Otherwise two threads in one epoll set would share one event, and
//! the one to whom it does not matter could get it; or the attendant, woken, would disarm a bell that is not its own any
//! more. It disarms only what it has armed and only while it still leads.
//!
//! *Nobody leads.* A leader that leaves wakes the followers, each of which then leads or finds itself done. A caller that
//! is done and sees nobody lead, though messages are under way, calls the attendant: there is one, since they were
//! posted without being waited for.
//!
//! *Verdicts.* A verdict wakes the place of rest, so the leader sees it and fails everything. Where nobody leads,
//! nothing is waited for, and whoever comes next sees it.
//!
//! # Why buffers are safe
//!
//! A message has the addresses of its buffer and of its owner's [`Count`]. It is counted off, or failed, with the lock
//! held, after the last access to its buffer and after it was taken out of the traffic; the owner waits for the count
//! before it lets go of either. Should the code here panic, everything is failed before the lock is given back
//! ([`Held`]).

mod attendant;
mod peer;
mod tally;
mod traffic;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use maypole_transports::wait::{Idle, Next, Patience};
use parking_lot::{Condvar, Mutex, MutexGuard};

use self::attendant::Attendant;
use self::peer::Failure;
pub(crate) use self::tally::Count;
pub(crate) use self::traffic::Message;
use self::traffic::Traffic;
use super::alarm::Alarm;
use super::rest::Rest;
use super::routes::Routes;
use super::wait::{Court, Questions};
use crate::error::{Error, Result, Verdict};
use crate::fingerprint::Fingerprint;

/// How long no caller may have been here before the attendant leads. Longer than the time between two calls of a program
/// that does nothing but exchange messages: there the attendant would only be in the way.
const GRACE: Duration = Duration::from_micros(200);
/// The longest sleep without a look around.
const NAP: Duration = Duration::from_millis(100);

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
    /// How often a caller has been here.
    visits: u64,
    attendant: Attendant,
}

/// For whom a leader works.
#[derive(Clone, Copy)]
enum Leader<'a> {
    Caller(&'a Count),
    Attendant,
}

/// The lock, held. If the thread begins to panic meanwhile, everything is failed when it lets go.
struct Held<'a> {
    messages: &'a Messages,
    state: MutexGuard<'a, State>,
    panicking: bool,
}

impl Deref for Held<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        if std::thread::panicking() && !self.panicking {
            self.abandon();
        }
    }
}

impl Messages {
    /// None yet, over these routes. Written pieces of at least `stream_from` bytes go around the caches.
    pub fn new(routes: Routes, court: Court, stream_from: usize) -> Messages {
        let (rest, patience) = (routes.rest().clone(), court.patience);
        let state = State {
            traffic: Traffic::new(routes, stream_from),
            court,
            asleep: false,
            followers: 0,
            onlookers: Vec::new(),
            visits: 0,
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
    /// The buffers are valid for their messages until this returns: readable if sent, writable and unshared if received.
    ///
    /// # Errors
    /// [`Error::Argument`] for a message to or from this rank itself whose other side is not posted: nothing was
    /// started. [`Error::Failed`].
    pub unsafe fn run(&self, messages: &[Message]) -> Result<()> {
        let count = Count::of(messages.len());
        let mut held = self.hold();
        held.check_other_sides(messages)?;
        // SAFETY: the caller's promise; this does not return before the count is done.
        unsafe { held.post(messages, &count) };
        self.await_count(held, &count)
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
    /// [`Error::Failed`] if one of its messages has failed.
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
            held.advance();
        }
        count.is_done()
    }

    /// Somebody has waited for `count` for long without leading: ask after its ranks, and end it at the deadline.
    /// Returns how long to wait until the next time.
    pub fn insist(&self, count: &Count, questions: &mut Questions) -> Duration {
        let mut held = self.hold();
        held.question(count, questions).unwrap_or_default()
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
    /// [`Error::Argument`].
    pub fn check(&self, messages: &[Message]) -> Result<()> {
        self.hold().check_other_sides(messages)
    }

    fn hold(&self) -> Held<'_> {
        self.held(self.state.lock())
    }

    fn held<'a>(&'a self, state: MutexGuard<'a, State>) -> Held<'a> {
        Held { messages: self, state, panicking: std::thread::panicking() }
    }

    fn await_count<'a>(&'a self, mut held: Held<'a>, count: &Count) -> Result<()> {
        held.visits += 1;
        while !count.is_done() {
            held = match self.lead.load(Ordering::Relaxed) {
                CALLER => self.follow(held, count),
                _ => self.lead(held, Leader::Caller(count)),
            };
        }
        if self.lead.load(Ordering::Relaxed) == NOBODY && !held.traffic.is_idle() {
            self.call_attendant(&held);
        }
        if count.has_failed() { Err(held.court.failed()) } else { Ok(()) }
    }

    /// Wait while another caller leads.
    #[cold]
    fn follow<'a>(&'a self, held: Held<'a>, count: &Count) -> Held<'a> {
        drop(held);
        let mut idle = Idle::new(self.patience);
        while !count.is_done() && self.lead.load(Ordering::Relaxed) == CALLER && idle.found_nothing() == Next::Poll {}
        let mut held = self.hold();
        let mut questions = Questions::new();
        held.followers += 1;
        while !count.is_done() && self.lead.load(Ordering::Relaxed) == CALLER {
            if let Some(nap) = held.question(count, &mut questions) {
                self.changed.wait_for(&mut held.state, nap);
            }
        }
        held.followers -= 1;
        held
    }

    /// Lead until the caller's messages are done; the attendant leads until nothing is under way or a caller takes over.
    fn lead<'a>(&'a self, mut held: Held<'a>, leader: Leader<'_>) -> Held<'a> {
        let (who, patience) = match leader {
            Leader::Caller(_) => (CALLER, self.patience),
            // It must not take a core from those who compute meanwhile.
            Leader::Attendant => (ATTENDANT, Patience { spins: 20, then: Duration::from_micros(20), give_way: true }),
        };
        if held.asleep {
            self.rest.wake();
        }
        self.lead.store(who, Ordering::Relaxed);
        let mut idle = Idle::new(patience);
        let mut questions = Questions::new();
        let mut armed = false;
        loop {
            let (moved, mut slept) = (held.advance(), false);
            let done = match leader {
                Leader::Caller(count) => count.is_done(),
                Leader::Attendant => held.traffic.is_idle() || held.attendant.stop,
            };
            if done {
                break;
            }
            if moved {
                if std::mem::take(&mut armed) {
                    self.rest.disarm();
                }
                idle.reset();
            } else if idle.found_nothing() == Next::Sleep && !held.asleep {
                let nap = match leader {
                    Leader::Caller(count) => held.question(count, &mut questions),
                    Leader::Attendant => Some(NAP),
                };
                match nap {
                    // Once more with the bell armed, or nobody would ring for what came just before.
                    Some(_) if !std::mem::replace(&mut armed, true) => self.rest.arm(),
                    Some(nap) => {
                        held.asleep = true;
                        MutexGuard::unlocked(&mut held.state, || self.rest.sleep(nap));
                        (held.asleep, slept) = (false, true);
                    }
                    None => {}
                }
            }
            MutexGuard::bump(&mut held.state);
            // Only a caller takes the lead away, and only from the attendant; what was armed is then the caller's.
            if self.lead.load(Ordering::Relaxed) != who {
                return held;
            }
            if slept && std::mem::take(&mut armed) {
                self.rest.disarm();
            }
        }
        if armed {
            self.rest.disarm();
        }
        self.lead.store(NOBODY, Ordering::Relaxed);
        if held.followers > 0 {
            self.changed.notify_all();
        }
        held
    }
}

impl Held<'_> {
    /// A message to this rank itself that nobody else would post the other side of, while its caller waits for it.
    fn check_other_sides(&self, messages: &[Message]) -> Result<()> {
        let me = self.court.me;
        let fits = |a: &Message, b: &Message| a.peer == b.peer && a.tag == b.tag && a.is_sent() != b.is_sent();
        let mut own = messages.iter().filter(|m| m.peer == me);
        match own.find(|m| !messages.iter().any(|other| fits(m, other)) && !self.traffic.has_other_side(m)) {
            None => Ok(()),
            Some(message) => {
                let what = format!(
                    "{} itself (tag {}), and would wait for ever, since its other side has not been posted; post both \
                     in a group or asynchronously, or use send_recv with itself on both sides",
                    if message.is_sent() { "a rank sends to" } else { "a rank receives from" },
                    message.tag
                );
                Err(Error::Argument { rank: me, what })
            }
        }
    }

    /// # Safety
    /// As for [`Messages::post`].
    unsafe fn post(&mut self, messages: &[Message], count: &Count) {
        self.visits += 1;
        if self.court.watch.raised() {
            self.fail();
            // SAFETY: the count is there, and none of these messages was posted.
            return messages.iter().for_each(|_| unsafe { tally::Tally::on(count) }.fail());
        }
        for (at, message) in messages.iter().enumerate() {
            // SAFETY: the caller's promise.
            if let Err(failure) = unsafe { self.traffic.post(message, count) } {
                self.convict(*failure);
                // SAFETY: as above; this one was posted, those after it were not.
                return messages[at + 1..].iter().for_each(|_| unsafe { tally::Tally::on(count) }.fail());
            }
        }
        self.tell();
    }

    /// Move everything on; returns whether anything moved. After this either no verdict stands or nothing is under way.
    #[inline]
    fn advance(&mut self) -> bool {
        if self.court.watch.raised() {
            self.fail();
            return true;
        }
        match self.traffic.advance() {
            Ok(false) => false,
            Ok(true) => {
                self.tell();
                true
            }
            Err(failure) => {
                self.convict(*failure);
                true
            }
        }
    }

    /// Something may be finished: wake those who may wait for it.
    #[inline]
    fn tell(&self) {
        if self.followers > 0 {
            self.messages.changed.notify_all();
        }
        if self.asleep {
            self.messages.rest.wake();
        }
        self.onlookers.iter().for_each(|alarm| alarm.ring());
    }

    /// The wait for `count` has become long. `None`: something has changed.
    #[cold]
    fn question(&mut self, count: &Count, questions: &mut Questions) -> Option<Duration> {
        if self.court.watch.raised() {
            self.fail();
            return None;
        }
        let (operation, peer) = self.traffic.find(count)?;
        // A link says itself that its other end is gone, after what came before; where nothing hangs on a link, nothing
        // else would. Asked twice, since what it sent may have come just before it left.
        if self.court.watch.has_departed(peer) && self.traffic.is_pointless_without(peer) {
            if !questions.has_departed(peer) {
                return None;
            }
            return self.convict_departed(peer, &operation);
        }
        match questions.next(&self.court, &operation, peer, || self.traffic.unheard()) {
            Ok(nap) => Some(nap),
            Err(_) => {
                self.fail();
                None
            }
        }
    }

    #[cold]
    fn convict_departed(&mut self, peer: usize, operation: &Fingerprint) -> Option<Duration> {
        let how = format!("it left the communicator, while rank {} waits for it in {operation}", self.court.me);
        let host = self.court.hosts[peer].clone();
        self.court.convict(Verdict::Died { rank: peer, host, how });
        self.fail();
        None
    }

    #[cold]
    fn convict(&mut self, failure: Failure) {
        self.court.convict_for(failure.trouble, &failure.operation);
        self.fail();
    }

    /// A verdict stands: give everything up.
    #[cold]
    fn fail(&mut self) {
        self.traffic.fail();
        self.tell();
    }

    /// This thread panics with the lock held: nothing of the traffic can be relied on any more.
    #[cold]
    fn abandon(&mut self) {
        let verdict = Verdict::Aborted { rank: self.court.me, why: "its engine for messages panicked".into() };
        self.court.jury.report(self.court.context, verdict.clone());
        self.court.watch.declare(verdict);
        self.messages.lead.store(NOBODY, Ordering::Relaxed);
        self.fail();
    }
}
