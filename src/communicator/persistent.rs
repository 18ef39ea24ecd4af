//! Persistent operations: planned once, started many times.
//!
//! A training step makes the same few calls on the same buffers ten thousand times. A [`Persistent`] is such a call,
//! kept: it owns its buffers, its arguments were checked and its plan was made when it was made, and starting it
//! allocates nothing. (MPI has the same since version 4, as `MPI_Allreduce_init` and its like.)
//!
//! ```
//! # let comm = maypole::Communicator::threads(1)?.remove(0);
//! let mut sum = comm.persistent().all_reduce_in_place(vec![0.0f32; 1000], maypole::ReduceOp::Sum)?;
//! for step in 0..3 {
//!     sum.input_mut().fill(step as f32);
//!     sum.start()?;
//!     // ... compute something else ...
//!     let total = sum.wait()?;
//!     assert_eq!(total[0], (step * comm.size()) as f32);
//! }
//! # Ok::<(), maypole::Error>(())
//! ```
//!
//! Why it owns its buffers: a running operation writes into them, and a value that is forgotten
//! (`std::mem::forget`) ends no borrow in time. Memory that it owns is at worst leaked with it.

use std::ptr::NonNull;
use std::sync::Arc;

use maypole_collectives::Element;

use super::Inner;
use super::call::Buffers;
use super::prepared::Prepared;
use super::raw::RawPersistent;
use super::registered::Registered;
use super::stream::Stream;
use crate::error::Result;

/// The buffer of a persistent operation: a `Vec`, a boxed slice or a [`Registered`] buffer. Made by `into`.
pub struct Memory<T> {
    at: NonNull<[T]>,
    /// What the elements belong to, unless they are a box.
    registered: Option<Registered<T>>,
}

impl<T> std::fmt::Debug for Memory<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory")
            .field("elements", &self.at.len())
            .field("registered", &self.registered.is_some())
            .finish()
    }
}

// SAFETY: a Memory owns its elements as a boxed slice or a Registered does.
unsafe impl<T: Send> Send for Memory<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Memory<T> {}

impl<T> From<Vec<T>> for Memory<T> {
    fn from(elements: Vec<T>) -> Memory<T> {
        elements.into_boxed_slice().into()
    }
}

impl<T> From<Box<[T]>> for Memory<T> {
    fn from(elements: Box<[T]>) -> Memory<T> {
        // Not kept as a box: a box that moves claims its elements for itself, and an operation may be at them.
        Memory { at: NonNull::from(Box::leak(elements)), registered: None }
    }
}

impl<T> From<Registered<T>> for Memory<T> {
    fn from(elements: Registered<T>) -> Memory<T> {
        Memory { at: elements.elements(), registered: Some(elements) }
    }
}

impl<T> Memory<T> {
    pub(crate) fn len(&self) -> usize {
        self.at.len()
    }

    pub(super) fn address(&self) -> *mut u8 {
        self.at.as_ptr().cast()
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        if self.registered.is_none() {
            // SAFETY: made from a box in `from`, and given back only here.
            drop(unsafe { Box::from_raw(self.at.as_ptr()) });
        }
    }
}

/// A collective that was planned once and can be started any number of times; see the [module](self). Made by
/// [`Communicator::persistent`](crate::Communicator::persistent).
///
/// Every rank makes it and starts it in the same order as its other calls; each start is one operation of the
/// communicator. It keeps the communicator, which leaves its group when both are dropped. Dropping it while it runs
/// waits for the run.
pub struct Persistent<T> {
    /// First, as it waits for the run before the memory goes.
    raw: RawPersistent,
    /// `None` where input and output are the same buffer.
    input: Option<Memory<T>>,
    output: Memory<T>,
}

impl<T> std::fmt::Debug for Persistent<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Persistent").field("input", &self.input).field("output", &self.output).finish_non_exhaustive()
    }
}

impl<T: Element> Persistent<T> {
    /// An operation on memory of its own, at which `buffers` point.
    pub(super) fn new(
        inner: Arc<Inner>,
        prepared: Prepared,
        buffers: Buffers,
        (input, output): (Option<Memory<T>>, Memory<T>),
    ) -> Persistent<T> {
        // SAFETY: the buffers belong to this value, which hands out no reference to them while the operation runs and
        // drops it before them.
        let raw = unsafe { RawPersistent::new(inner, prepared, buffers) };
        Persistent { raw, input, output }
    }

    /// Start it: queue it on the communicator's own stream, behind what was called before, and return at once.
    /// Allocates nothing, but for the stream's thread if this is the communicator's first asynchronous call.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) if it was started before and not waited for since, whether that run
    /// has ended or not: nothing was started, the run under way goes on. [`Error::System`](crate::Error::System) when
    /// the stream gets no thread.
    pub fn start(&mut self) -> Result<()> {
        self.raw.start()
    }

    /// [`Persistent::start`] on a stream of the caller's: it also waits for everything queued there before.
    pub fn start_on(&mut self, stream: &Stream) -> Result<()> {
        self.raw.start_on(stream)
    }

    /// Start it and wait for it, on this thread. What costs least where nothing is to be done meanwhile.
    ///
    /// # Errors
    /// As [`Persistent::start`] and [`Persistent::wait`].
    pub fn run(&mut self) -> Result<&mut [T]> {
        self.raw.run()?;
        Ok(self.output_mut())
    }

    /// Whether [`Persistent::wait`] will not block: it is not running.
    pub fn test(&self) -> bool {
        self.raw.test()
    }

    /// Wait for the run that was started; gives access to the output (the whole buffer, in place). Returns at once if
    /// none was.
    ///
    /// # Errors
    /// Those of the blocking call. It may be started again, but the communicator has failed for good.
    pub fn wait(&mut self) -> Result<&mut [T]> {
        self.raw.wait()?;
        Ok(self.output_mut())
    }

    /// The input, to be filled for the next start. Waits while it runs; an error of that run is still
    /// [`Persistent::wait`]'s.
    pub fn input_mut(&mut self) -> &mut [T] {
        self.raw.settle();
        let memory = self.input.as_mut().unwrap_or(&mut self.output);
        // SAFETY: the memory is this value's, and nothing runs.
        unsafe { memory.at.as_mut() }
    }

    /// The input (the whole buffer, in place). Waits while it runs.
    pub fn input(&self) -> &[T] {
        self.raw.settle();
        // SAFETY: as in `input_mut`.
        unsafe { self.input.as_ref().unwrap_or(&self.output).at.as_ref() }
    }

    /// The output, as the latest run left it. Waits while it runs.
    pub fn output(&self) -> &[T] {
        self.raw.settle();
        // SAFETY: as in `input_mut`.
        unsafe { self.output.at.as_ref() }
    }

    /// [`Persistent::output`], to be changed.
    pub fn output_mut(&mut self) -> &mut [T] {
        self.raw.settle();
        // SAFETY: as in `input_mut`.
        unsafe { self.output.at.as_mut() }
    }
}
