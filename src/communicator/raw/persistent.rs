//! Persistent operations on memory by address: what [`Persistent`](crate::Persistent) is made of.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use maypole_transports::fork::Own;
use maypole_transports::lock::{Condvar, Mutex, MutexGuard};

use crate::communicator::blocks::Blocks;
use crate::communicator::call::Buffers;
use crate::communicator::prepared::Prepared;
use crate::communicator::stream::{Again, Stream};
use crate::communicator::{Call, Communicator, Inner};
use crate::deadline::deadline;
use crate::error::{Error, Result};

/// The longest sleep without a look around.
const NAP: Duration = Duration::from_millis(100);

/// What the thread that runs the operation needs of it.
struct Run {
    /// Weak, so that a stream that has just run it never is the last to hold the communicator: leaving the job is for
    /// the thread that drops the operation.
    inner: Weak<Inner>,
    prepared: Prepared,
    buffers: Buffers,
    running: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

/// The present or latest run.
struct State {
    /// Its ticket.
    number: u64,
    outcome: Result<()>,
    /// It was started and not waited for since.
    pending: bool,
}

impl State {
    /// The outcome, for whoever waits for the run. Of none, if none was started.
    fn collect(&mut self) -> Result<()> {
        match std::mem::take(&mut self.pending) {
            true => std::mem::replace(&mut self.outcome, Ok(())),
            false => Ok(()),
        }
    }
}

// SAFETY: `buffers` are addresses of memory that whoever made the operation keeps for it. They are used by the thread
// that runs the operation while `running` is set, and by nobody else then.
unsafe impl Sync for Run {}

impl Again for Run {
    fn run(&self) {
        let number = self.state.lock().number;
        let Some(inner) = self.inner.upgrade() else { unreachable!("the operation waits for its run before it goes") };
        // SAFETY: whoever made the operation keeps the buffers valid and untouched while this runs.
        let outcome = unsafe { inner.run_prepared(number, &self.prepared, self.buffers) };
        drop(inner);
        let mut state = self.state.lock();
        state.outcome = outcome;
        self.running.store(false, Ordering::Release);
        self.changed.notify_all();
    }
}

/// A collective on memory by address that was planned once and can be started any number of times. Made by
/// [`Communicator::persistent_at`].
///
/// It keeps the communicator, which leaves its group when both are dropped. Dropping it while it runs waits for the run.
pub struct RawPersistent {
    run: Arc<Run>,
    inner: Own<Arc<Inner>>,
}

impl std::fmt::Debug for RawPersistent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawPersistent").field("rank", &self.inner.rank).finish_non_exhaustive()
    }
}

impl Communicator {
    /// A persistent operation ([`crate::communicator::persistent`]) on memory by address: checked and planned now,
    /// started any number of times. Local to this rank, but it waits for the operations called before.
    ///
    /// # Errors
    /// [`Error::Argument`] as in [`Communicator::run_at`]: no operation was made, and the communicator has noticed
    /// nothing.
    ///
    /// # Safety
    /// `input` and `output` are as in [`Communicator::run_at`], and stay so while the operation runs: from each start to
    /// the wait for it or to the operation's drop. They are mapped until then.
    pub unsafe fn persistent_at(&self, call: Call, input: *const u8, output: *mut u8) -> Result<RawPersistent> {
        let inner: &Arc<Inner> = &self.inner;
        let (buffers, lengths) =
            inner.locate(&call, input, output).map_err(|what| Error::Argument { rank: inner.rank, what })?;
        let prepared = inner.prepare(call, lengths, None)?;
        // SAFETY: the caller's promise.
        Ok(unsafe { RawPersistent::new(inner.clone(), prepared, buffers) })
    }

    /// [`Communicator::persistent_at`] on blocks with counts of their own, which are copied; as
    /// [`Communicator::run_v_at`].
    ///
    /// # Errors
    /// As [`Communicator::persistent_at`].
    ///
    /// # Safety
    /// As for [`Communicator::persistent_at`].
    pub unsafe fn persistent_v_at(
        &self,
        call: Call,
        input: (*const u8, Blocks<'_>),
        output: (*mut u8, Blocks<'_>),
    ) -> Result<RawPersistent> {
        let inner: &Arc<Inner> = &self.inner;
        let (buffers, lengths, sides) =
            inner.locate_v(&call, input, output).map_err(|what| Error::Argument { rank: inner.rank, what })?;
        let prepared = inner.prepare(call, lengths, Some(sides))?;
        // SAFETY: the caller's promise.
        Ok(unsafe { RawPersistent::new(inner.clone(), prepared, buffers) })
    }
}

impl RawPersistent {
    /// # Safety
    /// The buffers have the lengths that the call was prepared for, and are valid and left alone while it runs.
    pub(in crate::communicator) unsafe fn new(inner: Arc<Inner>, prepared: Prepared, buffers: Buffers) -> Self {
        let run = Run {
            inner: Arc::downgrade(&inner),
            prepared,
            buffers,
            running: AtomicBool::new(false),
            state: Mutex::new(State { number: 0, outcome: Ok(()), pending: false }),
            changed: Condvar::new(),
        };
        RawPersistent { run: Arc::new(run), inner: Own::new(inner) }
    }

    /// Start it on the communicator's own stream, behind what was called before, and return at once.
    ///
    /// # Errors
    /// [`Error::Argument`] if it was started before and not waited for since: nothing was started, the run under way
    /// goes on. [`Error::System`] when the stream gets no thread.
    pub fn start(&self) -> Result<()> {
        self.queue(None)
    }

    /// [`RawPersistent::start`] on a stream of the caller's: it also waits for everything queued there before.
    ///
    /// # Errors
    /// As [`RawPersistent::start`].
    pub fn start_on(&self, stream: &Stream) -> Result<()> {
        self.queue(Some(stream))
    }

    /// Start it and wait for it, on this thread. What costs least where nothing is to be done meanwhile.
    ///
    /// # Errors
    /// As [`RawPersistent::start`] and [`RawPersistent::wait`].
    pub fn run(&self) -> Result<()> {
        let mut state = self.idle()?;
        self.begin(&mut state, self.inner.number()?);
        drop(state);
        Again::run(&*self.run);
        self.wait()
    }

    /// Whether [`RawPersistent::wait`] will not block: it is not running.
    pub fn test(&self) -> bool {
        !self.run.running.load(Ordering::Acquire) || !self.inner.is_ours()
    }

    /// Wait for the run that was started. Returns at once if none was.
    ///
    /// # Errors
    /// Those of the blocking call. It may be started again, but the communicator has failed for good.
    pub fn wait(&self) -> Result<()> {
        self.inner.check_process()?;
        self.settled().collect()
    }

    /// [`RawPersistent::wait`], at most for so long: `None` if the run has not ended, as the time is up or
    /// [`interrupt`](crate::interrupt) says so. It goes on then.
    pub fn wait_for(&self, at_most: Duration) -> Option<Result<()>> {
        if let Err(elsewhere) = self.inner.check_process() {
            return Some(Err(elsewhere));
        }
        let until = deadline(Instant::now(), at_most);
        let mut state = self.run.state.lock();
        while !self.test() {
            let nap = until.saturating_duration_since(Instant::now()).min(NAP);
            if nap.is_zero() {
                return None;
            }
            let timed_out = self.run.changed.wait_for(&mut state, nap);
            if timed_out && MutexGuard::unlocked(&mut state, crate::interrupt::look) {
                return None;
            }
        }
        Some(state.collect())
    }

    /// Wait until it is not running.
    pub(in crate::communicator) fn settle(&self) {
        if !self.test() {
            drop(self.settled());
        }
    }

    fn settled(&self) -> MutexGuard<'_, State> {
        let mut state = self.run.state.lock();
        while !self.test() {
            self.run.changed.wait(&mut state);
        }
        state
    }

    fn queue(&self, stream: Option<&Stream>) -> Result<()> {
        let mut state = self.idle()?;
        self.inner.queue(stream, |stream, number| {
            self.begin(&mut state, number);
            stream.push_again(self.run.clone());
        })
    }

    /// Its state, if it may be started.
    fn idle(&self) -> Result<MutexGuard<'_, State>> {
        self.inner.check_process()?;
        let state = self.run.state.lock();
        if !state.pending {
            return Ok(state);
        }
        let name = self.run.prepared.call.collective.name();
        let what = format!(
            "a persistent {name} was started twice without a wait in between; wait() for one run before the next"
        );
        Err(Error::Argument { rank: self.inner.rank, what })
    }

    fn begin(&self, state: &mut State, number: u64) {
        (state.number, state.pending) = (number, true);
        self.run.running.store(true, Ordering::Release);
    }
}

impl Drop for RawPersistent {
    fn drop(&mut self) {
        // The buffers may go next. A run ends: at the latest at its deadline.
        self.settle();
    }
}
