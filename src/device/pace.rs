//! How far a rank's host may run ahead of its streams.
//!
//! A stream's queue in the driver has room for about 1,024 commands. A call that finds it full blocks until the device
//! has taken some, and, as far as is known, holds the context's lock meanwhile. Where ranks are threads with one context,
//! that lock is what another rank needs to queue the very command for which the full stream waits. So no stream is ever
//! given so much: this counts the calls to the driver, by stream and over all communicators of the process, and has the
//! host wait while more than [`MOST`] of them have not run. The other half of the queue is for what the caller puts there.
//!
//! What has run is told by *marks*: every [`STRIDE`] calls the stream writes into this rank's word `progress`, in the batch
//! that is due anyway, and an operation's end is a mark too, by the word `ended`.
//!
//! # Why nobody stands still
//!
//! A host waits only until its own stream has run commands that are on it already. Suppose that ranks which would all
//! come to their ends with queues of any length stand still with this. Take an order in which the commands could run then,
//! and the first of them, `c`, that has not run. All it waits for on the device has run, so it is not on its stream yet,
//! and its host waits for a mark before it there. But everything before `c` on its stream comes before `c` in the order,
//! too, and has run: the mark has been passed, and the host goes on.
//!
//! That needs three things. *What a host has dealt with has left its hands* before it waits: gathered waits and writes are
//! flushed, and what the courier is to carry is handed over. *Nobody needs a lock that the waiting host holds*: that is
//! the communicator's turn, in which only later operations of the same rank and communicator queue up, and the lock of the
//! device's state, which belongs to that turn. Nothing is given back meanwhile ([`limbo`](super::limbo) only tries), and
//! the sentry, which has the deadline, takes neither. And *the order in which one host queues fits the order of the
//! others*: a host that waits within a long operation does not come to the next communicator's, so ranks that queue long
//! operations of several communicators, each in an order of its own and by one thread, can wait for each other in a
//! circle. So they can with the driver's queue; whoever does not want to think of that queues in the same order
//! everywhere, as with NCCL. The deadline ends it otherwise.
//!
//! A verdict ends the wait, and with it the operation: the rest of it is not queued.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, Weak};

use maypole_cuda::peer::Words;
use maypole_cuda::{Commands, CudaError, Stream, Word};
use maypole_transports::lock::{Mutex, MutexGuard};

use super::courier::{Courier, End, Passage};
use super::sentry::{Flag, Sentry, has_come};
use super::state::{flag, name};

/// How many calls to the driver may be on a stream and not have run.
const MOST: u64 = 512;
/// From one mark to the next, in calls.
const STRIDE: u64 = 64;

/// Why an operation was not queued to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Halt {
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// There is a verdict, or nothing runs on the device any more.
    #[error("the communicator has failed meanwhile")]
    Failed,
}

/// What the communicators of this process have put on one stream.
#[derive(Default)]
struct Gauge {
    /// Calls to the driver, ever.
    queued: u64,
    /// Those of them that are known to have run.
    run: u64,
    marks: VecDeque<Mark>,
}

/// When `word` has come to `value`, the first `at` calls have run.
struct Mark {
    at: u64,
    word: Flag,
    value: u32,
}

impl Gauge {
    /// How many calls may not have run.
    fn outstanding(&mut self) -> u64 {
        while let Some(mark) = self.marks.front()
            && has_come(mark.word.load(Ordering::Acquire), mark.value)
        {
            self.run = mark.at;
            self.marks.pop_front();
        }
        self.queued - self.run
    }

    /// One more mark, of all that was queued so far.
    fn mark(&mut self, word: &Flag, value: u32) {
        let (mark, count) = (Mark { at: self.queued, word: word.clone(), value }, self.marks.len());
        // Ends of short operations take the place of the one before: there are no more marks than strides.
        match count > 1 && self.queued - self.marks[count - 2].at < STRIDE {
            true => self.marks[count - 1] = mark,
            false => self.marks.push_back(mark),
        }
    }

    /// Whether all calls so far come before some mark.
    fn is_marked(&self) -> bool {
        self.marks.back().map_or(self.run, |mark| mark.at) == self.queued
    }
}

/// A context and a stream of it, and a rank where the name stands for a stream of each thread's.
type Key = (usize, usize, usize);

/// The gauges in use.
static GAUGES: LazyLock<Mutex<HashMap<Key, Weak<Mutex<Gauge>>>>> = LazyLock::new(Mutex::default);

/// The handle of a thread's own default stream.
const OF_THE_THREAD: usize = 2;

/// Keeps one rank of one communicator from running too far ahead.
pub(crate) struct Pace {
    sentry: Arc<Sentry>,
    courier: Option<Arc<Courier>>,
    progress: Word,
    /// The same word.
    passed: Flag,
    ended: Flag,
    /// The last value for `progress` that is on its way.
    value: u32,
    /// The streams of this communicator on which something may be outstanding, the one in use last.
    gauges: Vec<(Key, Arc<Mutex<Gauge>>)>,
    /// Calls of the operation that is being queued that are in the gauge.
    counted: u64,
    /// Those before its latest mark.
    marked: u64,
    /// From how many of them on to look whether there is room.
    look_at: u64,
}

impl Pace {
    /// For member `me`, whose operations the `sentry` watches and whose messages to other hosts the `courier` carries.
    pub fn new(sentry: Arc<Sentry>, courier: Option<Arc<Courier>>, words: &Arc<Words>, me: usize) -> Pace {
        let progress = words.progress(me);
        Pace {
            sentry,
            courier,
            progress,
            passed: flag(&progress, words.clone()),
            ended: flag(&words.ended(me), words.clone()),
            value: 0,
            gauges: Vec::new(),
            counted: 0,
            marked: 0,
            look_at: 0,
        }
    }

    /// An operation begins on `stream`, with commands of its own.
    pub fn begin(&mut self, stream: &Stream) {
        let name = name(stream);
        let whose = if name == OF_THE_THREAD { Arc::as_ptr(&self.sentry).addr() } else { 0 };
        let key = (Arc::as_ptr(stream.context()).addr(), name, whose);
        if self.gauges.last().is_none_or(|(last, _)| *last != key) {
            self.change_to(key);
        }
        (self.counted, self.marked) = (0, 0);
        let outstanding = self.gauge().outstanding();
        self.look_at = STRIDE.min(MOST.saturating_sub(outstanding));
    }

    #[cold]
    fn change_to(&mut self, key: Key) {
        self.gauges.retain(|(other, gauge)| *other == key || gauge.lock().outstanding() > 0);
        let gauge = match self.gauges.iter().position(|(other, _)| *other == key) {
            Some(at) => self.gauges.remove(at).1,
            None => {
                let mut all = GAUGES.lock();
                all.retain(|_, gauge| gauge.strong_count() > 0);
                let known = all.get(&key).and_then(Weak::upgrade).unwrap_or_default();
                all.insert(key, Arc::downgrade(&known));
                known
            }
        };
        self.gauges.push((key, gauge));
    }

    fn gauge(&self) -> MutexGuard<'_, Gauge> {
        self.gauges.last().expect("an operation has begun").1.lock()
    }

    /// A job is about to be launched: not before there is room for it. `passages`: what the courier has yet to be told.
    ///
    /// # Errors
    /// The driver's, and [`Halt::Failed`].
    #[inline]
    pub fn keep(&mut self, commands: &mut Commands<'_>, passages: &mut Vec<(End, Passage)>) -> Result<(), Halt> {
        if commands.calls() < self.look_at { Ok(()) } else { self.look(commands, passages) }
    }

    fn look(&mut self, commands: &mut Commands<'_>, passages: &mut Vec<(End, Passage)>) -> Result<(), Halt> {
        self.count(commands.calls());
        let mut outstanding = self.gauge().outstanding();
        let is_full = outstanding >= MOST;
        if commands.calls() - self.marked >= STRIDE || is_full && !self.gauge().is_marked() {
            self.value = self.value.wrapping_add(1);
            commands.write(&self.progress, self.value)?;
            commands.hand_over()?;
            self.count(commands.calls());
            self.marked = self.counted;
            self.gauge().mark(&self.passed, self.value);
        }
        if is_full {
            commands.hand_over()?;
            self.carry(passages);
            if !self.sentry.wait_until(|| self.gauge().outstanding() < MOST) {
                return Err(Halt::Failed);
            }
            // Perhaps there is room only because the stream was let go: the verdict comes, if it is not there.
            if self.sentry.is_released() && !self.sentry.wait_until(|| false) {
                return Err(Halt::Failed);
            }
            outstanding = self.gauge().outstanding();
        }
        let room = MOST.saturating_sub(outstanding).max(1);
        self.look_at = commands.calls() + room.min(STRIDE - (commands.calls() - self.marked).min(STRIDE - 1));
        Ok(())
    }

    /// The operation's last commands have been handed over, the write of `number` into `ended` with them: `calls` in all.
    pub fn end(&mut self, calls: u64, number: u32) {
        self.count(calls);
        self.gauge().mark(&self.ended, number);
    }

    /// So many calls there were in this operation so far.
    fn count(&mut self, calls: u64) {
        self.gauge().queued += calls - self.counted;
        self.counted = calls;
    }

    /// Have the courier carry what was queued for other hosts.
    pub fn carry(&self, passages: &mut Vec<(End, Passage)>) {
        if let Some(courier) = &self.courier {
            courier.carry(passages);
        }
        passages.clear();
    }
}
