//! Streams: queues of operations that run in order, apart from the thread that queues them.
//!
//! A [`Stream`] is a thread with a queue. What is queued on it runs in order; different streams run at the same time.
//! One stream may carry the operations of several communicators, and a communicator's operations may go to several
//! streams: each communicator still runs its own in the order of the calls.

use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::error::{Error, Result};

type Job = Box<dyn FnOnce() + Send>;

/// A queue of operations and the thread that runs them. Dropping it waits until the queue is empty.
pub struct Stream {
    queue: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// A new, empty stream.
    ///
    /// # Errors
    /// [`Error::System`] when the system gives no thread.
    pub fn new() -> Result<Stream> {
        let (queue, jobs) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("maypole-stream".into())
            .spawn(move || jobs.into_iter().for_each(|job| job()))
            .map_err(|e| Error::system("starting a stream's thread", e))?;
        Ok(Stream { queue: Some(queue), thread: Some(thread) })
    }

    pub(crate) fn push(&self, job: Job) {
        let queue = self.queue.as_ref().expect("taken only by drop");
        queue.send(job).expect("the thread lives as long as the queue");
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.queue = None;
        let thread = self.thread.take().expect("taken only here");
        // The last owner of a communicator's own stream may be an operation on that very stream.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}
