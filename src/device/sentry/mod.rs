//! The sentry: watches what this rank has queued on CUDA streams, and lets the streams go when it will never end.
//!
//! A call on a stream returns once its commands are queued, so nobody is there to notice that it does not end. Each
//! communicator with device operations has a thread for that. Every operation writes its number into the word `started`
//! when the stream comes to it and into `ended` when it is done; operations of one communicator run one after the other
//! (a stream waits for `ended` of the other's last), so the two words tell which operation is on. What the thread does with them
//! is in [`patrol`]; here is what others call: [`Sentry::begin`] before an operation is queued, [`Entry::queued`] after
//! it, [`Sentry::synchronize`] to wait for the end.
//!
//! # Letting streams go
//!
//! A stream waits for words in memory that the host can write. Under a verdict the sentry *releases* them: it stores a
//! value far ahead of any that is waited for, again and again, since peers may still be writing, until every operation
//! has ended. Several ranks may wait for one word, and all store the same, which whoever comes first writes down beside it:
//! if each went ahead of what it found, two that come later would be half the circle of 2^32 ahead, which is behind.
//! Kernels that run then find headers of other operations and touch nothing, or data of a peer that has not
//! given up yet; either way the operation's result is void. A released word may be one that other ranks of the host
//! wait for too, and the verdict may reach them a moment later. So the word `released`, which they share, is set
//! first, and whoever waits for the end of an operation looks at it, and at `trouble`, after the operation has ended:
//! nobody takes what a released wait let through for a result.
//!
//! # Telling people
//!
//! Nobody may be in a call of Maypole's when this happens: a program that waits for its device alone would take what
//! there is for a result. So before it lets the first stream go, the thread says what is lost ([`Posts::lost`]).
//!
//! # Waking
//!
//! The thread naps while operations are outstanding and for a while after, so that queueing one costs a lock and no
//! system call; then it sleeps until it is woken.

mod health;
mod patrol;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::collections::VecDeque;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use maypole_transports::lock::{Condvar, Mutex, MutexGuard};
use maypole_transports::wait::{Idle, Next, Patience};

use crate::engine::wait::{Court, for_verdict};
use crate::error::{Error, Result, Verdict};
use crate::fingerprint::Fingerprint;
use crate::running::Limit;
use crate::watch::{Jury, Stall};

/// How many operations may be queued and not have ended. Beyond that, queueing one waits for the oldest.
pub(crate) const OUTSTANDING: usize = 256;
/// How many operations that have ended are remembered, to name the one in which ranks disagreed.
const RECENT: usize = 2 * OUTSTANDING;
/// How long after a verdict streams are given to drain, where an operation cannot say that it ended.
const DRAINED_WITHIN: Duration = Duration::from_secs(1);
/// The first nap of a caller that waits.
const BLINK: Duration = Duration::from_micros(20);
/// The longest nap of a caller that waits for an operation's end.
const DOZE: Duration = Duration::from_millis(1);

/// A 32-bit word that streams, and several processes, write or wait for.
#[derive(Clone)]
pub(crate) struct Flag {
    at: NonNull<AtomicU32>,
    _memory: Arc<dyn Any + Send + Sync>,
}

// SAFETY: it is a shared reference to an atomic together with what keeps its memory alive.
unsafe impl Send for Flag {}
// SAFETY: as above.
unsafe impl Sync for Flag {}

impl Flag {
    /// # Safety
    /// `at` points to a word that is valid, and only used atomically, as long as `memory` lives.
    pub unsafe fn new(at: *const AtomicU32, memory: Arc<dyn Any + Send + Sync>) -> Flag {
        Flag { at: NonNull::new(at.cast_mut()).expect("a word somewhere"), _memory: memory }
    }
}

impl Deref for Flag {
    type Target = AtomicU32;
    fn deref(&self) -> &AtomicU32 {
        // SAFETY: the promise made to `new`.
        unsafe { self.at.as_ref() }
    }
}

/// Whether a counter modulo 2^32 that reads `now` has come to `wanted`.
pub(crate) fn has_come(now: u32, wanted: u32) -> bool {
    now.wrapping_sub(wanted) as i32 >= 0
}

/// What one rank's sentry looks at.
pub(crate) struct Posts {
    /// Number of the latest operation that a stream has come to.
    pub started: Flag,
    /// Number of the latest operation that has ended.
    pub ended: Flag,
    /// 0, or 1 + the rank whose header one of this rank's kernels found to be of another operation.
    pub trouble: Flag,
    /// Not 0 once any rank that shares words with this one has begun to release them.
    pub released: Flag,
    /// What the kernel that set `trouble` expected (its operation's digest) and what it found, where that is known.
    pub found: Box<dyn Fn() -> Option<(u32, Fingerprint)> + Send + Sync>,
    /// The error that has broken the CUDA context, if one has. Asked ten times a second at most, on a thread of its own,
    /// since it may block.
    pub ailment: Box<dyn Fn() -> Option<String> + Send + Sync>,
    /// Told, in words and once, of operations that will have no result, before their streams are let go. May block.
    pub lost: Box<dyn Fn(&str) + Send + Sync>,
}

/// One word for which an operation waits, at last: who writes it, and the value.
pub(crate) struct Awaited {
    pub peer: usize,
    /// Which of the messages of a group this is about; the operation itself otherwise.
    pub operation: Fingerprint,
    pub word: Flag,
    pub value: u32,
}

/// Watches the device operations of one rank of one communicator.
pub(crate) struct Sentry {
    shared: Arc<Shared>,
}

struct Shared {
    posts: Posts,
    /// Of the world that the words are about.
    size: usize,
    state: Mutex<State>,
    /// For the thread: there is work. Nobody else sleeps on it.
    wanted: Condvar,
    /// What [`Posts::ailment`] said, once it said something.
    ailment: OnceLock<String>,
}

struct State {
    court: Court,
    /// Queued or being queued, oldest first; what has ended is taken out from the front.
    outstanding: VecDeque<Task>,
    /// What has ended lately, latest last.
    recent: VecDeque<Fingerprint>,
    /// The latest number given.
    number: u32,
    /// Words to be released, each with its mark.
    guarded: Vec<(Flag, Flag)>,
    /// When releasing began.
    releasing: Option<Instant>,
    /// Nothing runs on the device any more.
    broken: bool,
    thread: bool,
    asleep: bool,
    stop: bool,
}

/// An operation in the queue.
struct Task {
    number: u32,
    operation: Fingerprint,
    /// The stream, as the driver names it.
    stream: usize,
    awaited: Vec<Awaited>,
    /// Its commands did not get into the queue to the last: it will not say that it has ended.
    torn: bool,
}

/// An operation that is being queued. If it is dropped before [`Entry::queued`], part of it is in the queue at most.
pub(crate) struct Entry<'a> {
    shared: &'a Shared,
    number: u32,
    done: bool,
}

impl Sentry {
    /// For a rank of a world of `size` ranks. Its thread starts with the first operation.
    pub fn new(court: Court, size: usize, posts: Posts) -> Sentry {
        let number = posts.ended.load(Ordering::Acquire);
        let watch = court.watch.clone();
        let state = State {
            court,
            outstanding: VecDeque::new(),
            recent: VecDeque::new(),
            number,
            guarded: Vec::new(),
            releasing: None,
            broken: false,
            thread: false,
            asleep: false,
            stop: false,
        };
        let (wanted, ailment) = (Condvar::new(), OnceLock::new());
        let shared = Arc::new(Shared { posts, size, state: Mutex::new(state), wanted, ailment });
        // Weak: the watch lives as long as the court, which is in what it would hold. A wake-up that comes between the
        // thread's look and its sleep is lost, but with operations outstanding it only naps.
        let sleeper: Weak<Shared> = Arc::downgrade(&shared);
        watch.on_verdict(Box::new(move || {
            if let Some(shared) = sleeper.upgrade() {
                shared.wanted.notify_one();
            }
        }));
        Sentry { shared }
    }

    /// Release `word` under a verdict: it is one that this rank's streams wait for. `mark`: 0, and shared by all that may
    /// release the word; what they release it with, once the first has.
    pub fn guard(&self, word: Flag, mark: Flag) {
        self.shared.state.lock().guarded.push((word, mark));
    }

    /// This rank's stream goes on without the others, under a verdict that is about to be: what they read of its memory
    /// from now on is worth nothing, and they find that out when their operation has ended.
    pub fn renounce(&self) {
        self.shared.posts.released.store(1, Ordering::SeqCst);
    }

    /// For errors of the communicator.
    pub fn court(&self) -> Court {
        self.shared.state.lock().court.clone()
    }

    /// The deadline of operations that start from now on.
    pub fn set_timeout(&self, timeout: Duration) {
        self.shared.state.lock().court.timeout = timeout;
    }

    /// `operation` is about to be queued on `stream`; the caller has the turn. Waits while [`OUTSTANDING`] operations
    /// have not ended.
    ///
    /// # Errors
    /// [`Error::Failed`] if a verdict stands, [`Error::System`] if there is no thread; nothing may be queued then.
    pub fn begin(&self, operation: Fingerprint, stream: usize) -> Result<Entry<'_>> {
        let mut state = self.shared.state.lock();
        state.settle(&self.shared.posts);
        if state.outstanding.len() >= OUTSTANDING {
            let (oldest, patience) = (state.outstanding[0].number, state.court.patience);
            MutexGuard::unlocked(&mut state, || self.shared.await_end(oldest, patience, None));
            state.settle(&self.shared.posts);
        }
        if state.court.watch.raised() {
            return Err(state.court.failed());
        }
        self.shared.engage(&mut state)?;
        state.number = state.number.wrapping_add(1);
        let number = state.number;
        state.outstanding.push_back(Task { number, operation, stream, awaited: Vec::new(), torn: false });
        Ok(Entry { shared: &self.shared, number, done: false })
    }

    /// Wait until everything that was queued on `stream` has ended.
    ///
    /// # Errors
    /// [`Error::Failed`] if a verdict stands or comes meanwhile. The stream has then been let go, and has passed this
    /// communicator's operations unless something else holds it up for longer than a second.
    pub fn synchronize(&self, stream: usize) -> Result<()> {
        let shared = &*self.shared;
        let mut state = shared.state.lock();
        state.settle(&shared.posts);
        let (latest, patience) =
            (state.outstanding.iter().rev().find(|t| t.stream == stream).map(|t| t.number), state.court.patience);
        let court = state.court.clone();
        drop(state);
        if let Some(number) = latest {
            shared.await_end(number, patience, None);
        }
        shared.verify(&court)
    }

    /// Whether what has ended so far is worth something.
    ///
    /// # Errors
    /// [`Error::Failed`] if a verdict stands, or is on its way, for which this waits.
    pub fn outcome(&self) -> Result<()> {
        let court = self.court();
        self.shared.verify(&court)
    }

    /// Wait until `reached` says so, which is about what streams do. `false`: they will not, for there is a verdict or
    /// nothing runs on the device any more. The caller has begun an operation, so a deadline applies.
    pub fn wait_until(&self, mut reached: impl FnMut() -> bool) -> bool {
        let shared = &*self.shared;
        let mut idle = Idle::new(shared.state.lock().court.patience);
        let mut nap = BLINK;
        while !reached() {
            if idle.found_nothing() == Next::Poll {
                continue;
            }
            let state = shared.state.lock();
            if state.broken || state.court.watch.raised() {
                return false;
            }
            drop(state);
            std::thread::sleep(nap);
            nap = (nap * 5 / 4).min(DOZE / 4);
        }
        true
    }

    /// Whether streams of this host are let go: there is a verdict, or it is on its way.
    pub fn is_released(&self) -> bool {
        self.shared.posts.released.load(Ordering::Acquire) != 0
    }

    /// Wait until nothing is outstanding, at most as long as an operation may take, and under a verdict no longer than a
    /// second. Returns whether that is so: memory that streams use may then be given back.
    pub fn drain(&self) -> bool {
        let state = self.shared.state.lock();
        let (latest, patience) = (state.outstanding.back().map(|task| task.number), state.court.patience);
        let limit = Limit::after(state.court.longest());
        drop(state);
        if let Some(number) = latest {
            self.shared.await_end(number, patience, Some(&limit));
        }
        let mut state = self.shared.state.lock();
        state.settle(&self.shared.posts);
        state.outstanding.is_empty()
    }

    /// This rank leaves, and nothing is outstanding: the sentry lets go of the jury. A rank leaves its job when the last
    /// reference to the jury goes, and that must be for the thread that leaves. The threads here go a little later, and
    /// what keeps this sentry may be kept for long; were one of them the last, the program could end before the job knew.
    pub fn adjourn(&self) {
        self.shared.state.lock().court.jury = Arc::new(Adjourned);
    }
}

/// The jury of those who have left.
struct Adjourned;

impl Jury for Adjourned {
    fn report(&self, _: u64, _: Verdict) {}
    fn inquire(&self, _: u64, _: usize, _: Fingerprint, _: usize) {}
    fn stalled(&self, _: u64, _: usize, _: Stall) {}
    fn leave(&self, _: u64, _: usize) {}
}

impl Drop for Sentry {
    fn drop(&mut self) {
        // Not joined: where streams have not drained yet the thread goes on, and keeps the words' memory, until they
        // have.
        self.shared.state.lock().stop = true;
        self.shared.wanted.notify_one();
    }
}

impl Entry<'_> {
    /// The number that the stream writes into `started` before the operation and into `ended` after it.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// All of it is in the queue. `awaited`: the last value of each word that it waits for, as far as known; it tells
    /// whom to ask after when the operation does not end.
    pub fn queued(mut self, awaited: Vec<Awaited>) {
        self.done = true;
        if !awaited.is_empty() {
            let mut state = self.shared.state.lock();
            if let Some(task) = state.outstanding.iter_mut().rev().find(|task| task.number == self.number) {
                task.awaited = awaited;
            }
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if !self.done {
            let mut state = self.shared.state.lock();
            if let Some(task) = state.outstanding.iter_mut().rev().find(|task| task.number == self.number) {
                task.torn = true;
            }
        }
    }
}

impl Shared {
    /// See to it that there is a thread, awake.
    fn engage(self: &Arc<Self>, state: &mut State) -> Result<()> {
        if !state.thread {
            let shared = self.clone();
            std::thread::Builder::new()
                .name("maypole-sentry".into())
                .spawn(move || shared.patrol())
                .map_err(|e| Error::system("starting the thread that watches device operations", e))?;
            state.thread = true;
        } else if state.asleep {
            self.wanted.notify_one();
        }
        Ok(())
    }

    /// Wait until operation `number` has ended, or is known not to end, at most until `limit`.
    fn await_end(&self, number: u32, patience: Patience, limit: Option<&Limit>) {
        let mut idle = Idle::new(patience);
        let mut nap = BLINK;
        let ended = || has_come(self.posts.ended.load(Ordering::Acquire), number);
        while !ended() {
            if idle.found_nothing() == Next::Poll {
                continue;
            }
            let mut state = self.state.lock();
            state.settle(&self.posts);
            let late = state.gave_time_to_drain() || limit.is_some_and(Limit::has_passed);
            if late || state.outstanding.iter().all(|task| !has_come(number, task.number)) {
                return;
            }
            drop(state);
            std::thread::sleep(nap);
            nap = (nap * 5 / 4).min(DOZE);
        }
    }

    /// Whether what has ended is worth something.
    fn verify(&self, court: &Court) -> Result<()> {
        if self.posts.trouble.load(Ordering::Acquire) != 0 || self.posts.released.load(Ordering::Acquire) != 0 {
            // The thread, or the rank that released the words, has the verdict on its way.
            let why = "an operation on a stream found data of another operation".to_string();
            for_verdict(&court.watch, Verdict::Aborted { rank: court.me, why });
        }
        if court.watch.raised() { Err(court.failed()) } else { Ok(()) }
    }
}

impl State {
    /// Whether streams have been let go long enough ago for those to have passed that can.
    fn gave_time_to_drain(&self) -> bool {
        self.releasing.is_some_and(|since| since.elapsed() >= DRAINED_WITHIN)
    }

    /// Take out what has ended, and all when nothing will end any more.
    fn settle(&mut self, posts: &Posts) {
        let ended = posts.ended.load(Ordering::Acquire);
        let late = self.gave_time_to_drain();
        while let Some(front) = self.outstanding.front() {
            let torn = front.torn && (late || self.outstanding.get(1).is_some_and(|n| has_come(ended, n.number)));
            if !(has_come(ended, front.number) || torn || self.broken) {
                return;
            }
            let Some(task) = self.outstanding.pop_front() else { return };
            self.recent.extend(task.awaited.iter().map(|awaited| awaited.operation).chain([task.operation]));
            self.recent.drain(..self.recent.len().saturating_sub(RECENT));
        }
    }
}
