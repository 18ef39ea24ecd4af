//! Asynchronous calls.
//!
//! An asynchronous call borrows its buffers while it runs, so something must outlive it that cannot be forgotten: a
//! [`scope`], as in `std::thread::scope`. All requests started in a scope are done when it ends; each may be waited for
//! earlier.
//!
//! ```
//! # let comm = maypole::Communicator::threads(1)?.remove(0);
//! let (gradients, mut sum) = (vec![1.0f32; 1000], vec![0.0f32; 1000]);
//! maypole::scope(|s| {
//!     let request = comm.start(s).all_reduce(&gradients, &mut sum, maypole::ReduceOp::Sum)?;
//!     // ... compute something else ...
//!     let sum = request.wait()?;
//!     assert_eq!(sum[0], comm.size() as f32);
//!     Ok::<(), maypole::Error>(())
//! })?;
//! # Ok::<(), maypole::Error>(())
//! ```

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use maypole_collectives::Element;
use maypole_transports::fork::Process;
use maypole_transports::lock::Mutex;

use super::blocks::{Blocks, OwnedBlocks, OwnedSides};
use super::call::{Buffers, Lengths};
use super::outcome::{self, Completion, Outcome, Posted};
use super::stream::Stream;
use super::{Call, Communicator, Inner};
use crate::engine::messages::Message;
use crate::error::Result;

/// What outlives the asynchronous calls made in it. Made by [`scope`]; `'env` is what their buffers are borrowed for.
pub struct Scope<'env> {
    started: Mutex<Vec<Outcome>>,
    process: Process,
    _env: PhantomData<&'env mut &'env ()>,
}

impl std::fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}

impl Scope<'_> {
    /// An operation was started: it is waited for when the scope ends.
    fn started(&self, outcome: Outcome) -> Outcome {
        let mut started = self.started.lock();
        // A scope may last long: what has ended is forgotten before the list grows.
        if started.len() == started.capacity() {
            started.retain(|outcome| !outcome.has_ended());
        }
        started.push(outcome.clone());
        outcome
    }
}

/// Run `f`, then wait until every request it started is done, waited for or not, even if `f` panics. Errors of requests
/// that nobody waited for are dropped with them; the communicator returns them again at the next call.
pub fn scope<'env, R>(f: impl FnOnce(&Scope<'env>) -> R) -> R {
    struct WaitForAll<'s, 'env>(&'s Scope<'env>);
    impl Drop for WaitForAll<'_, '_> {
        fn drop(&mut self) {
            // A child by `fork` has none of the threads, and perhaps a lock that one of them held.
            let Some(mut started) = self.0.process.is_this().then(|| self.0.started.lock()) else { return };
            for outcome in started.drain(..) {
                let _ = outcome.wait();
            }
        }
    }
    let scope = Scope { started: Mutex::default(), process: Process::this(), _env: PhantomData };
    let _all = WaitForAll(&scope);
    f(&scope)
}

/// An asynchronous operation. Its buffers are borrowed until the scope ends; [`Request::wait`] gives the output back
/// earlier. Dropping it waits until the operation is done, and drops its error.
#[must_use = "dropping a request waits for it"]
pub struct Request<'env, T> {
    outcome: Outcome,
    output: NonNull<[T]>,
    _env: PhantomData<&'env mut [T]>,
}

impl<T> std::fmt::Debug for Request<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("has_ended", &self.outcome.has_ended())
            .field("elements", &self.output.len())
            .finish()
    }
}

// SAFETY: a request stands for a `&mut [T]` that becomes usable when the operation is done.
unsafe impl<T: Send> Send for Request<'_, T> {}

impl<'env, T> Request<'env, T> {
    /// Wait until the operation is done; gives back its output (empty where this rank has none).
    ///
    /// # Errors
    /// Those of the blocking call.
    pub fn wait(self) -> Result<&'env mut [T]> {
        self.outcome.wait()?;
        // SAFETY: the operation, sole user of the borrow that the request stands for, is done, and the request is used
        // up.
        Ok(unsafe { &mut *self.output.as_ptr() })
    }

    /// Whether it is done: [`Request::wait`] will not block.
    pub fn test(&self) -> bool {
        self.outcome.test()
    }

    /// The rank that has sent the message of a receive from any rank ([`Start::recv_any`]), from
    /// when it begins to come. `None` of other calls.
    pub fn source(&self) -> Option<usize> {
        self.outcome.source()
    }
}

impl<T> Drop for Request<'_, T> {
    fn drop(&mut self) {
        let _ = self.outcome.wait();
    }
}

mod sealed {
    /// What only this crate implements.
    pub trait Sealed {
        fn outcome(&self) -> &super::Outcome;
    }
    impl<T> Sealed for super::Request<'_, T> {
        fn outcome(&self) -> &super::Outcome {
            &self.outcome
        }
    }
}

/// A [`Request`], whatever the type of its elements: `&dyn Pending` lets [`wait_all`] and [`wait_any`] take requests of
/// different types together.
pub trait Pending: sealed::Sealed {
    /// [`Request::test`].
    fn is_done(&self) -> bool {
        self.outcome().test()
    }
}

impl<T> Pending for Request<'_, T> {}

/// Wait until all of these requests are done. Each still gives its output and its own error when it is asked
/// ([`Request::wait`]), now without blocking.
///
/// ```
/// # let comm = maypole::Communicator::threads(1)?.remove(0);
/// let (mut sum, mut highest) = ([1.0f32; 4], [7u64]);
/// maypole::scope(|s| {
///     let sum = comm.start(s).all_reduce_in_place(&mut sum, maypole::ReduceOp::Sum)?;
///     let highest = comm.start(s).all_reduce_in_place(&mut highest, maypole::ReduceOp::Max)?;
///     maypole::wait_all([&sum as &dyn maypole::Pending, &highest])?;
///     assert!(sum.test() && highest.test());
///     Ok::<(), maypole::Error>(())
/// })?;
/// # Ok::<(), maypole::Error>(())
/// ```
///
/// # Errors
/// The first of their errors, in their order, after all are done.
pub fn wait_all<'r, P: Pending + ?Sized + 'r>(requests: impl IntoIterator<Item = &'r P>) -> Result<()> {
    let mut first = Ok(());
    for request in requests {
        first = first.and(request.outcome().wait());
    }
    first
}

/// Wait until one of these requests is done (with or without an error): its place among them, the first if there are
/// several. `None` if there are no requests.
///
/// ```
/// # let comm = maypole::Communicator::threads(1)?.remove(0);
/// # let mut buffers = vec![[comm.rank() as u32; 2]; 3];
/// maypole::scope(|s| {
///     let mut requests = Vec::new();
///     for buffer in &mut buffers {
///         requests.push(comm.start(s).all_reduce_in_place(buffer, maypole::ReduceOp::Sum)?);
///     }
///     while let Some(next) = maypole::wait_any(&requests) {
///         let buffer = requests.swap_remove(next).wait()?;
///         // ... use it ...
///     }
///     Ok::<(), maypole::Error>(())
/// })?;
/// # Ok::<(), maypole::Error>(())
/// ```
pub fn wait_any<'r, P: Pending + ?Sized + 'r>(requests: impl IntoIterator<Item = &'r P>) -> Option<usize> {
    let outcomes: Vec<&Outcome> = requests.into_iter().map(|request| request.outcome()).collect();
    outcome::wait_any(&outcomes)
}

/// The asynchronous forms of a communicator's collectives; see [`Communicator::start`].
#[derive(Clone, Copy, Debug)]
pub struct Start<'c, 'env> {
    comm: &'c Communicator,
    stream: Option<&'c Stream>,
    tag: u32,
    scope: &'c Scope<'env>,
}

impl Communicator {
    /// The asynchronous forms: `comm.start(scope).all_reduce(..)` returns once the operation is queued. Collectives of
    /// this communicator run in the order of the calls, blocking ones included, on a thread of the communicator's own
    /// that the first asynchronous call starts. Messages between two ranks are posted at the call.
    pub fn start<'c, 'env>(&'c self, scope: &'c Scope<'env>) -> Start<'c, 'env> {
        Start { comm: self, stream: None, tag: 0, scope }
    }

    /// [`Communicator::start`] on a stream of the caller's: the operation also waits for everything queued there
    /// before.
    pub fn start_on<'c, 'env>(&'c self, stream: &'c Stream, scope: &'c Scope<'env>) -> Start<'c, 'env> {
        Start { comm: self, stream: Some(stream), tag: 0, scope }
    }
}

/// Messages; the collectives are in `src/forms`.
impl<'env> Start<'_, 'env> {
    /// See [`Communicator::send`]. Without a stream the message is posted at once, and goes on its way while this rank
    /// does something else; so `recv`, `send` and then [`Request::wait`] for both is fine on both sides.
    pub fn send<T: Element>(&self, buffer: &'env [T], to: usize) -> Result<Request<'env, T>> {
        self.message(Message::to(buffer, to, self.tag), &mut [])
    }

    /// See [`Communicator::recv`]. Without a stream the message is expected from now on.
    pub fn recv<T: Element>(&self, buffer: &'env mut [T], from: usize) -> Result<Request<'env, T>> {
        self.message(Message::from(buffer, from, self.tag), buffer)
    }

    /// See [`Communicator::recv_any`]; [`Request::source`] says who has sent it. The message is
    /// expected from now on.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) on a stream, where each message has its sender.
    pub fn recv_any<T: Element>(&self, buffer: &'env mut [T]) -> Result<Request<'env, T>> {
        if self.stream.is_some() {
            let what = "recv_any on a stream: name the sender, or start it without a stream".into();
            return Err(crate::Error::Argument { rank: self.rank(), what });
        }
        let data = buffer.as_mut_ptr().cast();
        self.message(Message::from_anyone((T::DTYPE, buffer.len()), data, self.tag), buffer)
    }

    /// The same, for messages with this tag. See [`Communicator::tag`].
    pub fn tag(self, tag: u32) -> Self {
        Start { tag, ..self }
    }

    fn message<T: Element>(&self, message: Message, output: &'env mut [T]) -> Result<Request<'env, T>> {
        let inner = &self.comm.inner;
        inner.check_peers(&[message])?;
        // SAFETY: the buffer is borrowed for 'env, which lasts until the scope has waited for the outcome.
        let outcome = unsafe { inner.start_message(message, self.stream, |outcome| drop(self.scope.started(outcome))) };
        Ok(Request { outcome, output: NonNull::from(output), _env: PhantomData })
    }

    pub(crate) fn rank(&self) -> usize {
        self.comm.rank()
    }

    pub(crate) fn size(&self) -> usize {
        self.comm.size()
    }

    pub(crate) fn apart<T: Element>(
        &self,
        call: Call,
        input: &'env [T],
        output: &'env mut [T],
    ) -> Result<Request<'env, T>> {
        let buffers = Buffers { input: input.as_ptr().cast(), output: output.as_mut_ptr().cast() };
        let lengths = Lengths::Apart { input: size_of_val(input), output: size_of_val(output) };
        self.collective(call, buffers, lengths, output)
    }

    pub(crate) fn in_place<T: Element>(&self, call: Call, buffer: &'env mut [T]) -> Result<Request<'env, T>> {
        let at = buffer.as_mut_ptr().cast::<u8>();
        let lengths = Lengths::InPlace { buffer: size_of_val(buffer) };
        self.collective(call, Buffers { input: at, output: at }, lengths, buffer)
    }

    fn collective<T: Element>(
        &self,
        call: Call,
        buffers: Buffers,
        lengths: Lengths,
        output: &'env mut [T],
    ) -> Result<Request<'env, T>> {
        self.queue(output, move |inner, number| {
            // SAFETY: the buffers are borrowed for 'env, which lasts until the scope has waited for this; their lengths
            // are checked before use.
            unsafe { inner.run(number, call, buffers, lengths) }
        })
    }

    /// [`Start::apart`] on blocks with counts of their own.
    pub(crate) fn apart_v<T: Element>(
        &self,
        call: Call,
        (input, sent): (&'env [T], Blocks<'_>),
        (output, received): (&'env mut [T], Blocks<'_>),
    ) -> Result<Request<'env, T>> {
        let buffers = Buffers { input: input.as_ptr().cast(), output: output.as_mut_ptr().cast() };
        let lengths = Lengths::Apart { input: size_of_val(input), output: size_of_val(output) };
        let sides = OwnedSides::Apart { input: OwnedBlocks::new(sent), output: OwnedBlocks::new(received) };
        self.collective_v(call, buffers, lengths, sides, output)
    }

    /// [`Start::in_place`] on blocks with counts of their own.
    pub(crate) fn in_place_v<T: Element>(
        &self,
        call: Call,
        buffer: &'env mut [T],
        blocks: Blocks<'_>,
    ) -> Result<Request<'env, T>> {
        let at = buffer.as_mut_ptr().cast::<u8>();
        let lengths = Lengths::InPlace { buffer: size_of_val(buffer) };
        let sides = OwnedSides::InPlace(OwnedBlocks::new(blocks));
        self.collective_v(call, Buffers { input: at, output: at }, lengths, sides, buffer)
    }

    fn collective_v<T: Element>(
        &self,
        call: Call,
        buffers: Buffers,
        lengths: Lengths,
        sides: OwnedSides,
        output: &'env mut [T],
    ) -> Result<Request<'env, T>> {
        self.queue(output, move |inner, number| {
            // SAFETY: the buffers are borrowed for 'env, which lasts until the scope has waited for this; the blocks
            // are checked against their lengths before use.
            unsafe { inner.run_v(number, call, buffers, lengths, sides.sides()) }
        })
    }

    fn queue<T: Element>(
        &self,
        output: &'env mut [T],
        run: impl FnOnce(&Inner, u64) -> Result<()> + Send + 'static,
    ) -> Result<Request<'env, T>> {
        let run = move |inner: &Inner, numbers: Range<u64>| run(inner, numbers.start);
        let outcome = self.scope.started(self.comm.inner.start(self.stream, 1, run)?);
        Ok(Request { outcome, output: NonNull::from(output), _env: PhantomData })
    }
}

impl Inner {
    /// Queue `run` on `stream` (or the communicator's own), with `tickets` tickets in a row, which it must use. What it
    /// works on must stay until the outcome has ended.
    pub(super) fn start(
        self: &Arc<Self>,
        stream: Option<&Stream>,
        tickets: usize,
        run: impl FnOnce(&Inner, Range<u64>) -> Result<()> + Send + 'static,
    ) -> Result<Outcome> {
        let completion = Completion::new(self);
        self.queue_several(stream, tickets, |stream, numbers| {
            stream.push(Box::new(completing(self, &completion, move |inner: &Inner| run(inner, numbers))));
        })?;
        Ok(Outcome::Queued(completion))
    }

    /// Post a message whose peer was checked; on a stream, queue it there. `known` is told of the outcome first: whoever
    /// knows of it can wait for it.
    ///
    /// # Safety
    /// The buffer is valid, and unshared if it is received into, until the outcome has ended.
    pub(super) unsafe fn start_message(
        self: &Arc<Self>,
        message: Message,
        stream: Option<&Stream>,
        known: impl FnOnce(Outcome),
    ) -> Outcome {
        let Some(stream) = stream else {
            let posted = Posted::new(self, 1);
            let outcome = Outcome::Posted(posted.clone());
            known(outcome.clone());
            // SAFETY: the caller's promise; the outcome keeps the count.
            unsafe { self.messages.post(&[message], &posted.count) };
            return outcome;
        };
        let completion = Completion::new(self);
        let outcome = Outcome::Queued(completion.clone());
        known(outcome.clone());
        if let Err(elsewhere) = stream.check(self.rank) {
            completion.set(Err(elsewhere));
            return outcome;
        }
        // SAFETY: the caller's promise.
        let run = move |inner: &Inner| unsafe { inner.messages.run(&[message]) };
        stream.push(Box::new(completing(self, &completion, run)));
        outcome
    }
}

/// A stream's job: `run`, and then its result for whoever waits.
fn completing(
    inner: &Arc<Inner>,
    completion: &Arc<Completion>,
    run: impl FnOnce(&Inner) -> Result<()> + Send + 'static,
) -> impl FnOnce() + Send + 'static {
    let (inner, completion) = (inner.clone(), completion.clone());
    move || {
        // What a user's operation panics with has ended in `Inner::operation`. A defect of Maypole's own must not end the
        // stream's thread either: others wait for what is behind it, without a deadline.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&inner))).unwrap_or_else(|payload| {
            Err(inner.panicked(&*payload, || "a stream's operation panicked, which is a defect in Maypole".into()))
        });
        // First, so that whoever has waited for everything and dropped the communicator has left: not a thread that may
        // end with the process before it has said goodbye.
        drop(inner);
        completion.set(result);
    }
}
