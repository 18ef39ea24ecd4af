//! Asynchronous calls whose buffers are addresses.

use std::time::Duration;

use crate::communicator::outcome::{self, Outcome};
use crate::error::Result;

/// An asynchronous call on memory by address. Its buffers must stay until it is done; dropping it waits for that, and
/// drops its error, which the communicator's next call returns again.
#[derive(Debug)]
#[must_use = "dropping a request waits for it"]
pub struct RawRequest {
    outcome: Outcome,
}

impl RawRequest {
    pub(in crate::communicator) fn new(outcome: Outcome) -> RawRequest {
        RawRequest { outcome }
    }

    /// Wait until it is done. May be called again, by several threads too.
    ///
    /// # Errors
    /// Those of the blocking call.
    pub fn wait(&self) -> Result<()> {
        self.outcome.wait()
    }

    /// Wait until it is done, at most for so long: its result, or `None` if it is not done, as the time is up or
    /// [`interrupt`](crate::interrupt) says so. It goes on then.
    pub fn wait_for(&self, at_most: Duration) -> Option<Result<()>> {
        self.outcome.wait_for(at_most)
    }

    /// Whether it is done: [`RawRequest::wait`] will not block. Moves messages on.
    pub fn test(&self) -> bool {
        self.outcome.test()
    }

    /// The rank that has sent the message of a receive from any rank, from when it begins to come.
    /// `None` of other calls.
    pub fn source(&self) -> Option<usize> {
        self.outcome.source()
    }

    /// Have `f` called once with the result: at once if it is done, otherwise on the thread that ends it, which must not
    /// be kept waiting. The request may be dropped in between. A panic in `f` is caught and dropped.
    ///
    /// It is a wait, though none that holds up a thread: for a message that does not come, `f` is
    /// called with the error that [`RawRequest::wait`] would return, at the deadline, which counts
    /// from here.
    pub fn when_done(&self, f: impl FnOnce(Result<()>) + Send + 'static) {
        self.outcome.when_done(Box::new(|result| {
            // It would end a thread that serves others too.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(result)));
        }));
    }

    /// Wait until one of `requests` is done (with or without an error): its place among them, the first if there are
    /// several. `None` if there are no requests, or [`interrupt`](crate::interrupt) ends the wait.
    pub fn wait_any<'r>(requests: impl IntoIterator<Item = &'r RawRequest>) -> Option<usize> {
        let outcomes: Vec<&Outcome> = requests.into_iter().map(|request| &request.outcome).collect();
        outcome::wait_any(&outcomes)
    }
}

impl Drop for RawRequest {
    fn drop(&mut self) {
        let _ = self.outcome.wait();
    }
}
