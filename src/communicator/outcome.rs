//! How an asynchronous operation ends, for those who started it and wait for it.
//!
//! There are two kinds: operations queued on a stream, which some other thread runs from beginning to end, and messages
//! posted at the call, which progress whenever somebody is in the engine for messages. A group may be both.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use maypole_transports::fork::Own;
use maypole_transports::lock::{Condvar, Mutex};

use super::{Inner, Owner};
use crate::deadline::deadline;
use crate::engine::alarm::Alarm;
use crate::engine::messages::{Count, Messages};
use crate::engine::wait::Questions;
use crate::error::Result;

/// What becomes of one asynchronous operation. Clones are the same one.
#[derive(Clone)]
pub enum Outcome {
    /// Of an operation on a stream.
    Queued(Arc<Completion>),
    /// Of posted messages.
    Posted(Arc<Posted>),
    /// Of a group that has both.
    Both(Arc<Completion>, Arc<Posted>),
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outcome").field("has_ended", &self.has_ended()).finish_non_exhaustive()
    }
}

/// What is done with an outcome when it is there.
type Then = Box<dyn FnOnce(Result<()>) + Send>;

/// The outcome of an operation on a stream, shared between who runs it and who waits.
pub struct Completion {
    owner: Owner,
    done: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    result: Option<Result<()>>,
    onlookers: Vec<Arc<Alarm>>,
    then: Vec<Then>,
}

/// Messages under way, and the communicator that they need.
pub struct Posted {
    pub(super) inner: Own<Arc<Inner>>,
    /// Shared with what is to be done when it is there, which may outlive this.
    pub(super) count: Arc<Count>,
}

impl std::fmt::Debug for Posted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Posted").finish_non_exhaustive()
    }
}

impl Posted {
    /// Of `messages` messages that are about to be posted.
    pub(super) fn new(inner: &Arc<Inner>, messages: usize) -> Arc<Posted> {
        Arc::new(Posted { inner: Own::new(inner.clone()), count: Arc::new(Count::of(messages)) })
    }
}

impl Completion {
    /// Of an operation of this communicator.
    pub(super) fn new(inner: &Inner) -> Arc<Completion> {
        let (done, state, changed) = (AtomicBool::new(false), Mutex::default(), Condvar::new());
        Arc::new(Completion { owner: inner.owner, done, state, changed })
    }

    pub(super) fn set(&self, result: Result<()>) {
        let mut state = self.state.lock();
        state.result = Some(result.clone());
        self.done.store(true, Ordering::Release);
        self.changed.notify_all();
        state.onlookers.iter().for_each(|alarm| alarm.ring());
        let then = std::mem::take(&mut state.then);
        drop(state);
        then.into_iter().for_each(|then| then(result.clone()));
    }

    fn when_done(&self, then: Then) {
        let mut state = self.state.lock();
        match state.result.clone() {
            None => state.then.push(then),
            Some(result) => {
                drop(state);
                then(result);
            }
        }
    }

    fn wait(&self) -> Result<()> {
        let mut state = self.state.lock();
        loop {
            match &state.result {
                Some(result) => return result.clone(),
                None => self.changed.wait(&mut state),
            }
        }
    }
}

impl Outcome {
    /// The process in which it ends: in a child of it, nobody would.
    fn owner(&self) -> &Owner {
        match self {
            Outcome::Posted(posted) => &posted.inner.owner,
            Outcome::Queued(completion) | Outcome::Both(completion, _) => &completion.owner,
        }
    }

    /// Wait until the operation has ended.
    pub(super) fn wait(&self) -> Result<()> {
        self.owner().check()?;
        match self {
            Outcome::Queued(completion) => completion.wait(),
            Outcome::Posted(posted) => posted.inner.messages.wait(&posted.count),
            Outcome::Both(completion, posted) => {
                let messages = posted.inner.messages.wait(&posted.count);
                completion.wait().and(messages)
            }
        }
    }

    /// [`Outcome::wait`], but only for so long; `None` if it has not ended then.
    pub(super) fn wait_for(&self, at_most: Duration) -> Option<Result<()>> {
        let until = deadline(Instant::now(), at_most);
        wait_any_until(&[self], Some(until)).map(|_| self.wait())
    }

    /// Have `then` called with the result: at once if it has ended, otherwise on the thread that ends it.
    pub(super) fn when_done(&self, then: Then) {
        if let Err(elsewhere) = self.owner().check() {
            return then(Err(elsewhere));
        }
        let posted_done = |messages: &Arc<Messages>, count: &Arc<Count>, then| messages.when_done(count, then);
        match self {
            Outcome::Queued(completion) => completion.when_done(then),
            Outcome::Posted(posted) => posted_done(&posted.inner.messages, &posted.count, then),
            Outcome::Both(completion, posted) => {
                // Not the communicator: whoever ends the first half must not be the one to leave the job.
                let (messages, count) = (posted.inner.messages.clone(), posted.count.clone());
                completion.when_done(Box::new(move |first: Result<()>| {
                    posted_done(&messages, &count, Box::new(move |second| then(first.and(second))));
                }));
            }
        }
    }

    /// The messages that somebody must see to, if it has any.
    fn posted(&self) -> Option<&Arc<Posted>> {
        match self {
            Outcome::Queued(_) => None,
            Outcome::Posted(posted) | Outcome::Both(_, posted) => Some(posted),
        }
    }

    /// See [`Count::source`].
    pub(super) fn source(&self) -> Option<usize> {
        self.posted().and_then(|posted| posted.count.source())
    }

    fn completion(&self) -> Option<&Arc<Completion>> {
        match self {
            Outcome::Posted(_) => None,
            Outcome::Queued(completion) | Outcome::Both(completion, _) => Some(completion),
        }
    }

    /// Whether it has ended, or never will; moves messages on.
    pub(super) fn test(&self) -> bool {
        if !self.owner().is_here() {
            return true;
        }
        let messages = self.posted().is_none_or(|posted| posted.inner.messages.test(&posted.count));
        messages && self.is_complete()
    }

    /// Whether it has ended; only looks.
    pub(super) fn has_ended(&self) -> bool {
        self.posted().is_none_or(|posted| posted.count.is_done()) && self.is_complete()
    }

    fn is_complete(&self) -> bool {
        self.completion().is_none_or(|completion| completion.done.load(Ordering::Acquire))
    }

    /// Have `alarm` rung when it ends, or with other news, until [`Outcome::forget`].
    fn watch(&self, alarm: &Arc<Alarm>) {
        if let Some(completion) = self.completion() {
            completion.state.lock().onlookers.push(alarm.clone());
        }
        if let Some(posted) = self.posted() {
            posted.inner.messages.watch(alarm.clone());
        }
    }

    fn forget(&self, alarm: &Arc<Alarm>) {
        if let Some(completion) = self.completion() {
            completion.state.lock().onlookers.retain(|other| !Arc::ptr_eq(other, alarm));
        }
        if let Some(posted) = self.posted() {
            posted.inner.messages.forget(alarm);
        }
    }
}

/// The longest sleep without a look around.
const NAP: Duration = Duration::from_millis(100);
/// How often all are tested before the thread sleeps.
const TESTS: usize = 200;

/// Wait until one of them has ended: its index; the first, if several have. `None` if there are none.
pub(super) fn wait_any(outcomes: &[&Outcome]) -> Option<usize> {
    wait_any_until(outcomes, None)
}

/// [`wait_any`], but only until then; `None` also if the time has come.
fn wait_any_until(outcomes: &[&Outcome], until: Option<Instant>) -> Option<usize> {
    let left = || until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
    let ended = || outcomes.iter().position(|outcome| outcome.test());
    if outcomes.is_empty() {
        return None;
    }
    for _ in 0..TESTS {
        if let Some(index) = ended() {
            return Some(index);
        }
        if left().is_zero() {
            return None;
        }
        std::thread::yield_now();
    }
    let alarm: Arc<Alarm> = Arc::default();
    outcomes.iter().for_each(|outcome| outcome.watch(&alarm));
    let mut questions = Questions::new();
    // Rung from before the first look on, so nothing that ends after a look is missed.
    let index = loop {
        let index = ended();
        if index.is_some() || left().is_zero() {
            break index;
        }
        // Operations on streams watch their own deadlines; messages have none but that of whoever waits.
        let message = outcomes.iter().find_map(|outcome| outcome.posted().filter(|posted| !posted.count.is_done()));
        let nap = message.map_or(NAP, |posted| posted.inner.messages.insist(&posted.count, &mut questions));
        alarm.wait(nap.min(left()));
        if crate::interrupt::look() {
            break None;
        }
    };
    outcomes.iter().for_each(|outcome| outcome.forget(&alarm));
    index
}
