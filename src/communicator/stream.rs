//! Streams: queues of operations that run in order, apart from the thread that queues them.
//!
//! A [`Stream`] is a thread with a queue. What is queued on it runs in order; different streams run at the same time.
//! One stream may carry the operations of several communicators, and a communicator's operations may go to several
//! streams: each communicator still runs its own in the order of the calls.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use maypole_transports::fork::Own;
use maypole_transports::lock::{Condvar, Mutex};

use super::Inner;
use crate::error::{Error, Result};

/// Work that is queued again and again. Queueing it allocates nothing.
pub(crate) trait Again: Send + Sync {
    /// Do it once, on the stream's thread. Does not panic.
    fn run(&self);
}

/// What a stream carries.
enum Job {
    Once(Box<dyn FnOnce() + Send>),
    Again(Arc<dyn Again>),
}

/// What a stream's thread and those who queue share.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Its memory grows to the longest queue there was and is used again.
    jobs: VecDeque<Job>,
    /// The stream was dropped: the thread ends when the queue is empty.
    closed: bool,
}

/// A queue of operations and the thread that runs them. Dropping it waits until the queue is empty, but in a child by
/// `fork`, which has no such thread and can queue nothing on it.
pub struct Stream {
    queue: Arc<Queue>,
    thread: Own<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Stream {
    /// A new, empty stream.
    ///
    /// # Errors
    /// [`Error::System`] when the system gives no thread.
    pub fn new() -> Result<Stream> {
        let queue: Arc<Queue> = Arc::default();
        let jobs = queue.clone();
        let thread = std::thread::Builder::new()
            .name("maypole-stream".into())
            .spawn(move || jobs.serve())
            .map_err(|e| Error::system("starting a stream's thread", e))?;
        Ok(Stream { queue, thread: Own::new(Some(thread)) })
    }

    /// Refuse to queue anything in a child of the process that has the thread. `rank`: whose operation it would be.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub(super) fn check(&self, rank: usize) -> Result<()> {
        if self.thread.is_ours() {
            return Ok(());
        }
        let what = "the stream was made before this process was forked off, and its thread stayed with the parent";
        Err(Error::Argument { rank, what: what.to_string() })
    }

    /// Queue work that is done once. It does not panic.
    pub(crate) fn push(&self, job: Box<dyn FnOnce() + Send>) {
        self.queue.push(Job::Once(job));
    }

    /// Queue work that may be queued again later.
    pub(crate) fn push_again(&self, job: Arc<dyn Again>) {
        self.queue.push(Job::Again(job));
    }
}

impl Queue {
    fn push(&self, job: Job) {
        self.state.lock().jobs.push_back(job);
        self.changed.notify_one();
    }

    fn serve(&self) {
        loop {
            let mut state = self.state.lock();
            let job = loop {
                match state.jobs.pop_front() {
                    Some(job) => break job,
                    None if state.closed => return,
                    None => self.changed.wait(&mut state),
                }
            };
            drop(state);
            match job {
                Job::Once(job) => job(),
                Job::Again(job) => job.run(),
            }
        }
    }
}

impl Inner {
    /// Take a ticket and have `push` queue what will use it, on `stream` or else on the communicator's own stream.
    ///
    /// One lock covers both, so that what two threads queue lies in the queue in the order of the tickets: otherwise a
    /// stream could wait for a turn that lies behind it in its own queue.
    ///
    /// # Errors
    /// [`Error::System`] when the communicator's own stream gets no thread, [`Error::Argument`] in a child of whoever made
    /// the communicator or the stream, and those of [`Inner::number`]; nothing was queued.
    pub(super) fn queue(&self, stream: Option<&Stream>, push: impl FnOnce(&Stream, u64)) -> Result<()> {
        self.queue_several(stream, 1, |stream, numbers| push(stream, numbers.start))
    }

    /// [`Inner::queue`] with several tickets in a row.
    pub(super) fn queue_several(
        &self,
        stream: Option<&Stream>,
        tickets: usize,
        push: impl FnOnce(&Stream, Range<u64>),
    ) -> Result<()> {
        self.owner.check()?;
        stream.map_or(Ok(()), |stream| stream.check(self.rank))?;
        let mut own = self.own_stream.lock();
        let stream = match (stream, &mut *own) {
            (Some(stream), _) => stream,
            (None, Some(stream)) => stream,
            (None, none) => none.insert(Stream::new()?),
        };
        push(stream, self.numbers(tickets)?);
        Ok(())
    }
}

/// Whether this is that thread. Asking `std::thread::current()` would give threads that are not Rust's a handle, which the
/// main thread of a C program never gives back.
pub(crate) fn is_this_thread<T>(thread: &JoinHandle<T>) -> bool {
    // SAFETY: it has no conditions.
    thread.as_pthread_t() == unsafe { libc::pthread_self() }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.thread.is_ours() {
            return;
        }
        self.queue.state.lock().closed = true;
        self.queue.changed.notify_one();
        let thread = self.thread.take().expect("taken only here");
        // The last owner of a communicator's own stream may be an operation on that very stream.
        if !is_this_thread(&thread) {
            let _ = thread.join();
        }
    }
}
