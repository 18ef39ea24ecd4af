//! How an asynchronous operation ends, for those who started it and wait for it.
//!
//! There are two kinds: operations queued on a stream, which some other thread runs from beginning to end, and messages
//! posted at the call, which progress whenever somebody is in the engine for messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Inner;
use crate::engine::alarm::Alarm;
use crate::engine::messages::Count;
use crate::engine::wait::Questions;
use crate::error::Result;

/// What becomes of one asynchronous operation. Clones are the same one.
#[derive(Clone)]
pub enum Outcome {
    /// Of an operation on a stream.
    Queued(Arc<Completion>),
    /// Of posted messages.
    Posted(Arc<Posted>),
}

/// The outcome of an operation on a stream, shared between who runs it and who waits.
#[derive(Default)]
pub struct Completion {
    done: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    result: Option<Result<()>>,
    onlookers: Vec<Arc<Alarm>>,
}

/// Messages under way, and the communicator that they need.
pub struct Posted {
    pub(super) inner: Arc<Inner>,
    pub(super) count: Count,
}

impl Completion {
    pub(super) fn set(&self, result: Result<()>) {
        let mut state = self.state.lock();
        state.result = Some(result);
        self.done.store(true, Ordering::Release);
        self.changed.notify_all();
        state.onlookers.iter().for_each(|alarm| alarm.ring());
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
    /// Wait until the operation has ended.
    pub(super) fn wait(&self) -> Result<()> {
        match self {
            Outcome::Queued(completion) => completion.wait(),
            Outcome::Posted(posted) => posted.inner.messages.wait(&posted.count),
        }
    }

    /// Whether it has ended; moves messages on.
    pub(super) fn test(&self) -> bool {
        match self {
            Outcome::Queued(completion) => completion.done.load(Ordering::Acquire),
            Outcome::Posted(posted) => posted.inner.messages.test(&posted.count),
        }
    }

    /// Whether it has ended; only looks.
    pub(super) fn has_ended(&self) -> bool {
        match self {
            Outcome::Queued(_) => self.test(),
            Outcome::Posted(posted) => posted.count.is_done(),
        }
    }

    /// Have `alarm` rung when it ends, or with other news, until [`Outcome::forget`].
    fn watch(&self, alarm: &Arc<Alarm>) {
        match self {
            Outcome::Queued(completion) => completion.state.lock().onlookers.push(alarm.clone()),
            Outcome::Posted(posted) => posted.inner.messages.watch(alarm.clone()),
        }
    }

    fn forget(&self, alarm: &Arc<Alarm>) {
        match self {
            Outcome::Queued(completion) => {
                completion.state.lock().onlookers.retain(|other| !Arc::ptr_eq(other, alarm));
            }
            Outcome::Posted(posted) => posted.inner.messages.forget(alarm),
        }
    }
}

/// The longest sleep without a look around.
const NAP: Duration = Duration::from_millis(100);
/// How often all are tested before the thread sleeps.
const TESTS: usize = 200;

/// Wait until one of them has ended: its index; the first, if several have. `None` if there are none.
pub(super) fn wait_any(outcomes: &[&Outcome]) -> Option<usize> {
    let ended = || outcomes.iter().position(|outcome| outcome.test());
    if outcomes.is_empty() {
        return None;
    }
    for _ in 0..TESTS {
        if let Some(index) = ended() {
            return Some(index);
        }
        std::thread::yield_now();
    }
    let alarm: Arc<Alarm> = Arc::default();
    outcomes.iter().for_each(|outcome| outcome.watch(&alarm));
    let mut questions = Questions::new();
    // Rung from before the first look on, so nothing that ends after a look is missed.
    let index = loop {
        if let Some(index) = ended() {
            break index;
        }
        // Operations on streams watch their own deadlines; messages have none but that of whoever waits.
        let message = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Posted(posted) => Some(posted),
            Outcome::Queued(_) => None,
        });
        let nap = message.map_or(NAP, |posted| posted.inner.messages.insist(&posted.count, &mut questions));
        alarm.wait(nap);
    };
    outcomes.iter().for_each(|outcome| outcome.forget(&alarm));
    Some(index)
}
