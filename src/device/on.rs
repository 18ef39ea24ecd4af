//! The collectives on a stream: dynamically typed calls; the methods on typed slices are in `src/forms`.
//!
//! What all have in common: the call returns once its commands are queued on the stream, and what they do is ordered with
//! everything else there; the buffers are device memory of the stream's context, and are the stream's until it has got
//! past the call; counts are elements; [`Error::Argument`](crate::Error::Argument) and
//! [`Error::Device`](crate::Error::Device) mean that nothing was queued. A failure after that shows at the next call, at
//! [`OnStream::synchronize`], or as [`Communicator::verdict`]; the output is then undefined. Every rank of the
//! communicator must make the same call, on a stream too. See the methods of the same names of [`Communicator`] for what
//! each does.
//!
//! After a failure other ranks may still read the buffers, where ranks are threads, until the device is idle. Memory that is
//! given back without waiting for the device (by `cuMemFreeAsync`) therefore waits for it then (`cuCtxSynchronize`).
//!
//! A stream has room for so many commands, and half of them are Maypole's: some eighty small calls, or a call of some
//! gigabytes. Where more would be outstanding a call waits for the stream, so a rank must not count on coming back from such
//! calls before the others have made theirs; and ranks that make them on several communicators from one thread do so in the
//! same order everywhere.

use maypole_cuda::Stream;

use super::buffer::{DeviceSlice, DeviceSliceMut, Home};
use crate::communicator::blocks::{Blocks, Sides};
use crate::communicator::on_stream::Queue;
use crate::communicator::{Buffers, Lengths};
use crate::error::Result;
use crate::{Call, Communicator};

/// A communicator's calls on one stream; made by [`Communicator::on`].
#[derive(Clone, Copy, Debug)]
pub struct OnStream<'a> {
    pub(super) comm: &'a Communicator,
    pub(super) stream: &'a Stream,
    pub(super) registered: bool,
}

impl Communicator {
    /// This communicator's calls on buffers in device memory, queued on `stream`. The first of them
    /// [attaches](Communicator::attach) the communicator to the stream's context, for which all ranks must make it.
    ///
    /// Calls of one communicator run in the order in which they were made, on whichever streams: one on another stream
    /// than the call before waits, on the device, for that. Use a communicator for each stream
    /// ([`Communicator::duplicate`]) where they are to run side by side.
    pub fn on<'a>(&'a self, stream: &'a Stream) -> OnStream<'a> {
        OnStream { comm: self, stream, registered: false }
    }
}

/// Input and output as the executor takes them.
fn sides(input: DeviceSlice<'_, u8>, output: DeviceSliceMut<'_, u8>) -> (Buffers, Lengths) {
    let buffers = Buffers {
        input: std::ptr::without_provenance(input.address() as usize),
        output: std::ptr::without_provenance_mut(output.address() as usize),
    };
    (buffers, Lengths::Apart { input: input.len(), output: output.len() })
}

/// One buffer for both.
fn both(buffer: DeviceSliceMut<'_, u8>) -> (Buffers, Lengths) {
    let at = buffer.address() as usize;
    let buffers = Buffers { input: std::ptr::without_provenance(at), output: std::ptr::without_provenance_mut(at) };
    (buffers, Lengths::InPlace { buffer: buffer.len() })
}

impl<'a> OnStream<'a> {
    /// The communicator.
    pub fn communicator(&self) -> &'a Communicator {
        self.comm
    }

    /// The same calls, with a promise: on all ranks, what they read of their callers lies in memory of
    /// [`alloc_device`](Communicator::alloc_device), the input and for all-reduce and broadcast the output too, as does
    /// memory of ranks that are threads with one context.
    /// Then nothing passes the staging memory of the devices, whose length cuts other calls into rounds, and a call has one
    /// round, however long it is: of 1 GiB on two ranks an all-reduce by default has one in place of 32. It changes
    /// collectives on blocks of one count and 32 KiB or more, by algorithms that lend. Results are the same.
    ///
    /// A rank whose buffer is other memory, or that calls all-to-all in place, gets
    /// [`Error::Argument`](crate::Error::Argument); all others are told that it has refused. All ranks make the promise for
    /// a call or none does, or they are told that their calls do not match.
    pub fn registered(self) -> OnStream<'a> {
        OnStream { registered: true, ..self }
    }

    /// The stream.
    pub fn stream(&self) -> &'a Stream {
        self.stream
    }

    fn queue(&self, homes: [Home; 2]) -> Queue<'a> {
        Queue { stream: self.stream, registered: self.registered, homes }
    }

    /// The collectives as one dynamically typed call, as [`Communicator::call`]: the buffers are as many bytes as the
    /// blocks that the collective takes and gives on this rank.
    pub fn call(&self, call: Call, input: DeviceSlice<'_, u8>, output: DeviceSliceMut<'_, u8>) -> Result<()> {
        let queue = self.queue([input.home(), output.home()]);
        let (buffers, lengths) = sides(input, output);
        self.comm.run_on(queue, call, buffers, lengths)
    }

    /// [`OnStream::call`] in place, as [`Communicator::call_in_place`].
    pub fn call_in_place(&self, call: Call, buffer: DeviceSliceMut<'_, u8>) -> Result<()> {
        let queue = self.queue([buffer.home(); 2]);
        let (buffers, lengths) = both(buffer);
        self.comm.run_on(queue, call, buffers, lengths)
    }

    /// [`OnStream::call`] with blocks that have counts of their own, as [`Communicator::call_v`].
    pub fn call_v(
        &self,
        call: Call,
        input: (DeviceSlice<'_, u8>, Blocks<'_>),
        output: (DeviceSliceMut<'_, u8>, Blocks<'_>),
    ) -> Result<()> {
        let queue = self.queue([input.0.home(), output.0.home()]);
        let (buffers, lengths) = sides(input.0, output.0);
        let sides = Sides::Apart { input: input.1, output: output.1 };
        self.comm.run_v_on(queue, call, buffers, lengths, sides)
    }

    /// [`OnStream::call_v`] in place, as [`Communicator::call_v_in_place`].
    pub fn call_v_in_place(&self, call: Call, buffer: DeviceSliceMut<'_, u8>, blocks: Blocks<'_>) -> Result<()> {
        let queue = self.queue([buffer.home(); 2]);
        let (buffers, lengths) = both(buffer);
        self.comm.run_v_on(queue, call, buffers, lengths, Sides::InPlace(blocks))
    }

    /// How `call` would be run here, in words, as [`Communicator::describe`]. Attaches the communicator.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) where the settings ask for an algorithm that cannot run here, and those
    /// of [`Communicator::attach`].
    pub fn describe(&self, call: &Call, variable: Option<usize>) -> Result<String> {
        self.comm.describe_on(self.stream, call, variable)
    }

    /// Blocks until this communicator's calls queued on the stream so far have ended.
    ///
    /// # Errors
    /// [`Error::Failed`](crate::Error::Failed) if the communicator fails before, or has failed.
    pub fn synchronize(&self) -> Result<()> {
        self.comm.synchronize_on(self.stream)
    }
}
