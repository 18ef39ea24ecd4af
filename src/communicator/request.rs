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
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use maypole_collectives::schedule::Collective;
use maypole_collectives::{DataType, Element, ReduceOp};
use parking_lot::{Condvar, Mutex};

use super::call::{Buffers, Lengths};
use super::stream::Stream;
use super::{Call, Communicator};
use crate::error::Result;

/// The outcome of one asynchronous operation, shared between who runs it and who waits.
#[derive(Default)]
struct Completion {
    done: AtomicBool,
    result: Mutex<Option<Result<()>>>,
    changed: Condvar,
}

impl Completion {
    fn set(&self, result: Result<()>) {
        *self.result.lock() = Some(result);
        self.done.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    fn wait(&self) -> Result<()> {
        let mut result = self.result.lock();
        while result.is_none() {
            self.changed.wait(&mut result);
        }
        result.clone().expect("just seen")
    }
}

/// What outlives the asynchronous calls made in it. Made by [`scope`]; `'env` is what their buffers are borrowed for.
pub struct Scope<'env> {
    started: Mutex<Vec<Arc<Completion>>>,
    _env: PhantomData<&'env mut &'env ()>,
}

/// Run `f`, then wait until every request it started is done, waited for or not, even if `f` panics. Errors of requests
/// that nobody waited for are dropped with them; the communicator returns them again at the next call.
pub fn scope<'env, R>(f: impl FnOnce(&Scope<'env>) -> R) -> R {
    struct WaitForAll<'s, 'env>(&'s Scope<'env>);
    impl Drop for WaitForAll<'_, '_> {
        fn drop(&mut self) {
            for completion in self.0.started.lock().drain(..) {
                let _ = completion.wait();
            }
        }
    }
    let scope = Scope { started: Mutex::default(), _env: PhantomData };
    let _all = WaitForAll(&scope);
    f(&scope)
}

/// An asynchronous operation. Its buffers are borrowed until the scope ends; [`Request::wait`] gives the output back
/// earlier. Dropping it waits.
#[must_use = "dropping a request waits for it"]
pub struct Request<'env, T> {
    completion: Arc<Completion>,
    output: NonNull<[T]>,
    _env: PhantomData<&'env mut [T]>,
}

// SAFETY: a request stands for a `&mut [T]` that becomes usable when the operation is done.
unsafe impl<T: Send> Send for Request<'_, T> {}

impl<'env, T> Request<'env, T> {
    /// Wait until the operation is done; gives back its output (empty where this rank has none).
    ///
    /// # Errors
    /// Those of the blocking call.
    pub fn wait(self) -> Result<&'env mut [T]> {
        self.completion.wait()?;
        // SAFETY: the operation, sole user of the borrow that the request stands for, is done, and the request is used
        // up.
        Ok(unsafe { &mut *self.output.as_ptr() })
    }

    /// Whether it is done: [`Request::wait`] will not block.
    pub fn test(&self) -> bool {
        self.completion.done.load(Ordering::Acquire)
    }
}

impl<T> Drop for Request<'_, T> {
    fn drop(&mut self) {
        let _ = self.completion.wait();
    }
}

/// The asynchronous forms of a communicator's collectives; see [`Communicator::start`].
pub struct Start<'c, 'env> {
    comm: &'c Communicator,
    stream: Option<&'c Stream>,
    scope: &'c Scope<'env>,
}

impl Communicator {
    /// The asynchronous forms: `comm.start(scope).all_reduce(..)` returns once the operation is queued. Operations of
    /// this communicator run in the order of the calls, blocking ones included, on a thread of the communicator's own
    /// that the first asynchronous call starts.
    pub fn start<'c, 'env>(&'c self, scope: &'c Scope<'env>) -> Start<'c, 'env> {
        Start { comm: self, stream: None, scope }
    }

    /// [`Communicator::start`] on a stream of the caller's: the operation also waits for everything queued there
    /// before.
    pub fn start_on<'c, 'env>(&'c self, stream: &'c Stream, scope: &'c Scope<'env>) -> Start<'c, 'env> {
        Start { comm: self, stream: Some(stream), scope }
    }
}

/// One form per collective, each as the blocking method of the same name.
impl<'env> Start<'_, 'env> {
    /// See [`Communicator::all_reduce`].
    pub fn all_reduce<T: Element>(
        &self,
        input: &'env [T],
        output: &'env mut [T],
        op: ReduceOp,
    ) -> Result<Request<'env, T>> {
        self.apart(Call::of::<T>(Collective::AllReduce, input.len(), Some(op), 0), input, output)
    }

    /// See [`Communicator::all_reduce_in_place`].
    pub fn all_reduce_in_place<T: Element>(&self, buffer: &'env mut [T], op: ReduceOp) -> Result<Request<'env, T>> {
        self.in_place(Call::of::<T>(Collective::AllReduce, buffer.len(), Some(op), 0), buffer)
    }

    /// See [`Communicator::reduce`].
    pub fn reduce<T: Element>(
        &self,
        input: &'env [T],
        output: &'env mut [T],
        op: ReduceOp,
        root: usize,
    ) -> Result<Request<'env, T>> {
        self.apart(Call::of::<T>(Collective::Reduce, input.len(), Some(op), root), input, output)
    }

    /// See [`Communicator::reduce_in_place`].
    pub fn reduce_in_place<T: Element>(
        &self,
        buffer: &'env mut [T],
        op: ReduceOp,
        root: usize,
    ) -> Result<Request<'env, T>> {
        self.in_place(Call::of::<T>(Collective::Reduce, buffer.len(), Some(op), root), buffer)
    }

    /// See [`Communicator::broadcast`].
    pub fn broadcast<T: Element>(&self, buffer: &'env mut [T], root: usize) -> Result<Request<'env, T>> {
        self.in_place(Call::of::<T>(Collective::Broadcast, buffer.len(), None, root), buffer)
    }

    /// See [`Communicator::all_gather`].
    pub fn all_gather<T: Element>(&self, input: &'env [T], output: &'env mut [T]) -> Result<Request<'env, T>> {
        self.apart(Call::of::<T>(Collective::AllGather, input.len(), None, 0), input, output)
    }

    /// See [`Communicator::all_gather_in_place`].
    pub fn all_gather_in_place<T: Element>(&self, buffer: &'env mut [T]) -> Result<Request<'env, T>> {
        self.in_place(Call::of::<T>(Collective::AllGather, buffer.len() / self.comm.size(), None, 0), buffer)
    }

    /// See [`Communicator::reduce_scatter`].
    pub fn reduce_scatter<T: Element>(
        &self,
        input: &'env [T],
        output: &'env mut [T],
        op: ReduceOp,
    ) -> Result<Request<'env, T>> {
        self.apart(Call::of::<T>(Collective::ReduceScatter, output.len(), Some(op), 0), input, output)
    }

    /// See [`Communicator::reduce_scatter_in_place`].
    pub fn reduce_scatter_in_place<T: Element>(&self, buffer: &'env mut [T], op: ReduceOp) -> Result<Request<'env, T>> {
        self.in_place(Call::of::<T>(Collective::ReduceScatter, buffer.len() / self.comm.size(), Some(op), 0), buffer)
    }

    /// See [`Communicator::all_to_all`].
    pub fn all_to_all<T: Element>(&self, input: &'env [T], output: &'env mut [T]) -> Result<Request<'env, T>> {
        let count = input.len() / self.comm.size();
        self.apart(Call::of::<T>(Collective::AllToAll, count, None, 0), input, output)
    }

    /// See [`Communicator::all_to_all_in_place`].
    pub fn all_to_all_in_place<T: Element>(&self, buffer: &'env mut [T]) -> Result<Request<'env, T>> {
        self.in_place(Call::of::<T>(Collective::AllToAll, buffer.len() / self.comm.size(), None, 0), buffer)
    }

    /// See [`Communicator::gather`].
    pub fn gather<T: Element>(&self, input: &'env [T], output: &'env mut [T], root: usize) -> Result<Request<'env, T>> {
        self.apart(Call::of::<T>(Collective::Gather, input.len(), None, root), input, output)
    }

    /// See [`Communicator::gather_in_place`].
    pub fn gather_in_place<T: Element>(&self, buffer: &'env mut [T], root: usize) -> Result<Request<'env, T>> {
        let blocks = if self.comm.rank() == root { self.comm.size() } else { 1 };
        self.in_place(Call::of::<T>(Collective::Gather, buffer.len() / blocks, None, root), buffer)
    }

    /// See [`Communicator::scatter`].
    pub fn scatter<T: Element>(
        &self,
        input: &'env [T],
        output: &'env mut [T],
        root: usize,
    ) -> Result<Request<'env, T>> {
        self.apart(Call::of::<T>(Collective::Scatter, output.len(), None, root), input, output)
    }

    /// See [`Communicator::scatter_in_place`].
    pub fn scatter_in_place<T: Element>(&self, buffer: &'env mut [T], root: usize) -> Result<Request<'env, T>> {
        let blocks = if self.comm.rank() == root { self.comm.size() } else { 1 };
        self.in_place(Call::of::<T>(Collective::Scatter, buffer.len() / blocks, None, root), buffer)
    }

    /// See [`Communicator::scan`].
    pub fn scan<T: Element>(&self, input: &'env [T], output: &'env mut [T], op: ReduceOp) -> Result<Request<'env, T>> {
        self.apart(Call::of::<T>(Collective::Scan, input.len(), Some(op), 0), input, output)
    }

    /// See [`Communicator::scan_in_place`].
    pub fn scan_in_place<T: Element>(&self, buffer: &'env mut [T], op: ReduceOp) -> Result<Request<'env, T>> {
        self.in_place(Call::of::<T>(Collective::Scan, buffer.len(), Some(op), 0), buffer)
    }

    /// See [`Communicator::exclusive_scan`].
    pub fn exclusive_scan<T: Element>(
        &self,
        input: &'env [T],
        output: &'env mut [T],
        op: ReduceOp,
    ) -> Result<Request<'env, T>> {
        let output = if self.rank() == 0 { &mut [] } else { output };
        self.apart(Call::of::<T>(Collective::ExclusiveScan, input.len(), Some(op), 0), input, output)
    }

    /// See [`Communicator::exclusive_scan_in_place`].
    pub fn exclusive_scan_in_place<T: Element>(&self, buffer: &'env mut [T], op: ReduceOp) -> Result<Request<'env, T>> {
        self.in_place(Call::of::<T>(Collective::ExclusiveScan, buffer.len(), Some(op), 0), buffer)
    }

    /// See [`Communicator::barrier`].
    pub fn barrier(&self) -> Result<Request<'env, u8>> {
        let call = Call { collective: Collective::Barrier, dtype: DataType::U8, count: 0, op: ReduceOp::Sum, root: 0 };
        self.apart(call, &[], &mut [])
    }

    /// See [`Communicator::send`].
    pub fn send<T: Element>(&self, buffer: &'env [T], to: usize) -> Result<Request<'env, T>> {
        let direction = super::point_to_point::Direction { peer: to, count: buffer.len() };
        let buffers = Buffers { input: buffer.as_ptr().cast(), output: std::ptr::null_mut() };
        self.queue(&mut [], move |inner, number| {
            // SAFETY: the buffer is borrowed for 'env, which lasts until the scope has waited for this.
            unsafe { inner.message(number, T::DTYPE, buffers, Some(direction), None) }
        })
    }

    /// See [`Communicator::recv`].
    pub fn recv<T: Element>(&self, buffer: &'env mut [T], from: usize) -> Result<Request<'env, T>> {
        let direction = super::point_to_point::Direction { peer: from, count: buffer.len() };
        let buffers = Buffers { input: std::ptr::null(), output: buffer.as_mut_ptr().cast() };
        self.queue(buffer, move |inner, number| {
            // SAFETY: as in `send`.
            unsafe { inner.message(number, T::DTYPE, buffers, None, Some(direction)) }
        })
    }

    pub(super) fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn apart<T: Element>(&self, call: Call, input: &'env [T], output: &'env mut [T]) -> Result<Request<'env, T>> {
        let buffers = Buffers { input: input.as_ptr().cast(), output: output.as_mut_ptr().cast() };
        let lengths = Lengths::Apart { input: size_of_val(input), output: size_of_val(output) };
        self.collective(call, buffers, lengths, output)
    }

    fn in_place<T: Element>(&self, call: Call, buffer: &'env mut [T]) -> Result<Request<'env, T>> {
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

    pub(super) fn queue<T: Element>(
        &self,
        output: &'env mut [T],
        run: impl FnOnce(&super::Inner, u64) -> Result<()> + Send + 'static,
    ) -> Result<Request<'env, T>> {
        let completion: Arc<Completion> = Arc::default();
        let inner = self.comm.inner.clone();
        let mut own = inner.own_stream.lock();
        let stream = match self.stream {
            Some(stream) => stream,
            None => match &mut *own {
                Some(stream) => stream,
                none => none.insert(Stream::new()?),
            },
        };
        // Under the lock, so that what two threads queue on the communicator's own stream lies there in the order of
        // the tickets.
        let number = inner.turns.take();
        let request = Request { completion: completion.clone(), output: NonNull::from(output), _env: PhantomData };
        self.scope.started.lock().push(completion.clone());
        let job = {
            let inner = inner.clone();
            move || {
                // A user's operation may panic. The panic ends the communicator, not the stream's thread.
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&inner, number)));
                completion.set(outcome.unwrap_or_else(|_| Err(inner.panicked())));
            }
        };
        stream.push(Box::new(job));
        Ok(request)
    }
}
