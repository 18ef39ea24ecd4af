//! The collectives on a stream: as methods on slices of device memory.
//!
//! What all have in common: the call returns once its commands are queued on the stream, and what they do is ordered with
//! everything else there; the buffers are device memory of the stream's context, and are the stream's until it has got
//! past the call; counts are elements; [`Error::Argument`](crate::Error::Argument) and
//! [`Error::Device`](crate::Error::Device) mean that nothing was queued. A failure after that shows at the next call, at
//! [`OnStream::synchronize`], or as [`Communicator::verdict`]; the output is then undefined. Every rank of the
//! communicator must make the same call, on a stream too. See the methods of the same names of [`Communicator`] for what
//! each does.
//!
//! A stream has room for so many commands, and half of them are Maypole's: some eighty small calls, or a call of some
//! gigabytes. Where more would be outstanding a call waits for the stream, so a rank must not count on coming back from such
//! calls before the others have made theirs; and ranks that make them on several communicators from one thread do so in the
//! same order everywhere.

use maypole_collectives::schedule::Collective;
use maypole_collectives::{DataType, Element, ReduceOp};
use maypole_cuda::Stream;

use super::buffer::{DeviceSlice, DeviceSliceMut};
use crate::communicator::blocks::{Blocks, Sides};
use crate::communicator::{Buffers, Lengths};
use crate::error::Result;
use crate::{Call, Communicator};

/// A communicator's calls on one stream; made by [`Communicator::on`].
#[derive(Clone, Copy)]
pub struct OnStream<'a> {
    pub(super) comm: &'a Communicator,
    pub(super) stream: &'a Stream,
}

impl Communicator {
    /// This communicator's calls on buffers in device memory, queued on `stream`. The first of them
    /// [attaches](Communicator::attach) the communicator to the stream's context, for which all ranks must make it.
    ///
    /// Calls of one communicator run in the order in which they were made, on whichever streams: one on another stream
    /// than the call before waits, on the device, for that. Use a communicator for each stream
    /// ([`Communicator::duplicate`]) where they are to run side by side.
    pub fn on<'a>(&'a self, stream: &'a Stream) -> OnStream<'a> {
        OnStream { comm: self, stream }
    }
}

const NONE: Blocks<'static> = Blocks::packed(&[]);

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

    /// The stream.
    pub fn stream(&self) -> &'a Stream {
        self.stream
    }

    /// The collectives as one dynamically typed call, as [`Communicator::call`]: the buffers are as many bytes as the
    /// blocks that the collective takes and gives on this rank.
    pub fn call(&self, call: Call, input: DeviceSlice<'_, u8>, output: DeviceSliceMut<'_, u8>) -> Result<()> {
        let (buffers, lengths) = sides(input, output);
        self.comm.run_on(self.stream, call, buffers, lengths)
    }

    /// [`OnStream::call`] in place, as [`Communicator::call_in_place`].
    pub fn call_in_place(&self, call: Call, buffer: DeviceSliceMut<'_, u8>) -> Result<()> {
        let (buffers, lengths) = both(buffer);
        self.comm.run_on(self.stream, call, buffers, lengths)
    }

    /// [`OnStream::call`] with blocks that have counts of their own, as [`Communicator::call_v`].
    pub fn call_v(
        &self,
        call: Call,
        input: (DeviceSlice<'_, u8>, Blocks<'_>),
        output: (DeviceSliceMut<'_, u8>, Blocks<'_>),
    ) -> Result<()> {
        let (buffers, lengths) = sides(input.0, output.0);
        let sides = Sides::Apart { input: input.1, output: output.1 };
        self.comm.run_v_on(self.stream, call, buffers, lengths, sides)
    }

    /// [`OnStream::call_v`] in place, as [`Communicator::call_v_in_place`].
    pub fn call_v_in_place(&self, call: Call, buffer: DeviceSliceMut<'_, u8>, blocks: Blocks<'_>) -> Result<()> {
        let (buffers, lengths) = both(buffer);
        self.comm.run_v_on(self.stream, call, buffers, lengths, Sides::InPlace(blocks))
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

    /// Returns at once; on the device, what follows on the stream waits until every rank's stream has come here.
    pub fn barrier(&self) -> Result<()> {
        let call = Call { collective: Collective::Barrier, dtype: DataType::U8, count: 0, op: ReduceOp::Sum, root: 0 };
        self.call(call, DeviceSlice::empty(), DeviceSliceMut::empty())
    }
}

/// The collectives whose blocks all have the same count.
impl OnStream<'_> {
    /// [`Communicator::all_reduce`].
    pub fn all_reduce<'b, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        op: ReduceOp,
    ) -> Result<()> {
        let input = input.into();
        let output = output.into();
        let call = Call::of::<T>(Collective::AllReduce, input.len(), Some(op), 0);
        self.call(call, input.bytes(), output.bytes())
    }

    /// [`Communicator::all_reduce_in_place`].
    pub fn all_reduce_in_place<'b, T: Element>(
        &self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        op: ReduceOp,
    ) -> Result<()> {
        let buffer = buffer.into();
        let call = Call::of::<T>(Collective::AllReduce, buffer.len(), Some(op), 0);
        self.call_in_place(call, buffer.bytes())
    }

    /// [`Communicator::reduce`]. Pass [`DeviceSliceMut::empty`] where `root` is another rank.
    pub fn reduce<'b, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        op: ReduceOp,
        root: usize,
    ) -> Result<()> {
        let input = input.into();
        let output = output.into();
        let call = Call::of::<T>(Collective::Reduce, input.len(), Some(op), root);
        self.call(call, input.bytes(), output.bytes())
    }

    /// [`Communicator::reduce_in_place`].
    pub fn reduce_in_place<'b, T: Element>(
        &self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        op: ReduceOp,
        root: usize,
    ) -> Result<()> {
        let buffer = buffer.into();
        let call = Call::of::<T>(Collective::Reduce, buffer.len(), Some(op), root);
        self.call_in_place(call, buffer.bytes())
    }

    /// [`Communicator::broadcast`].
    pub fn broadcast<'b, T: Element>(&self, buffer: impl Into<DeviceSliceMut<'b, T>>, root: usize) -> Result<()> {
        let buffer = buffer.into();
        let call = Call::of::<T>(Collective::Broadcast, buffer.len(), None, root);
        self.call_in_place(call, buffer.bytes())
    }

    /// [`Communicator::broadcast_from`]. Pass [`DeviceSlice::empty`] where `root` is another rank.
    pub fn broadcast_from<'b, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        root: usize,
    ) -> Result<()> {
        let input = input.into();
        let output = output.into();
        let call = Call::of::<T>(Collective::Broadcast, output.len(), None, root);
        self.call(call, input.bytes(), output.bytes())
    }

    /// [`Communicator::all_gather`].
    pub fn all_gather<'b, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
    ) -> Result<()> {
        let input = input.into();
        let output = output.into();
        let call = Call::of::<T>(Collective::AllGather, input.len(), None, 0);
        self.call(call, input.bytes(), output.bytes())
    }

    /// [`Communicator::all_gather_in_place`].
    pub fn all_gather_in_place<'b, T: Element>(&self, buffer: impl Into<DeviceSliceMut<'b, T>>) -> Result<()> {
        let buffer = buffer.into();
        let call = Call::of::<T>(Collective::AllGather, buffer.len() / self.comm.size(), None, 0);
        self.call_in_place(call, buffer.bytes())
    }

    /// [`Communicator::reduce_scatter`].
    pub fn reduce_scatter<'b, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        op: ReduceOp,
    ) -> Result<()> {
        let input = input.into();
        let output = output.into();
        let call = Call::of::<T>(Collective::ReduceScatter, output.len(), Some(op), 0);
        self.call(call, input.bytes(), output.bytes())
    }

    /// [`Communicator::reduce_scatter_in_place`].
    pub fn reduce_scatter_in_place<'b, T: Element>(
        &self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        op: ReduceOp,
    ) -> Result<()> {
        let buffer = buffer.into();
        let call = Call::of::<T>(Collective::ReduceScatter, buffer.len() / self.comm.size(), Some(op), 0);
        self.call_in_place(call, buffer.bytes())
    }

    /// [`Communicator::all_to_all`].
    pub fn all_to_all<'b, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
    ) -> Result<()> {
        let input = input.into();
        let output = output.into();
        let call = Call::of::<T>(Collective::AllToAll, input.len() / self.comm.size(), None, 0);
        self.call(call, input.bytes(), output.bytes())
    }

    /// [`Communicator::all_to_all_in_place`].
    pub fn all_to_all_in_place<'b, T: Element>(&self, buffer: impl Into<DeviceSliceMut<'b, T>>) -> Result<()> {
        let buffer = buffer.into();
        let call = Call::of::<T>(Collective::AllToAll, buffer.len() / self.comm.size(), None, 0);
        self.call_in_place(call, buffer.bytes())
    }

    /// [`Communicator::gather`]. Pass [`DeviceSliceMut::empty`] where `root` is another rank.
    pub fn gather<'b, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        root: usize,
    ) -> Result<()> {
        let input = input.into();
        let output = output.into();
        let call = Call::of::<T>(Collective::Gather, input.len(), None, root);
        self.call(call, input.bytes(), output.bytes())
    }

    /// [`Communicator::gather_in_place`].
    pub fn gather_in_place<'b, T: Element>(&self, buffer: impl Into<DeviceSliceMut<'b, T>>, root: usize) -> Result<()> {
        let buffer = buffer.into();
        let call = Call::of::<T>(
            Collective::Gather,
            buffer.len() / if self.comm.rank() == root { self.comm.size() } else { 1 },
            None,
            root,
        );
        self.call_in_place(call, buffer.bytes())
    }

    /// [`Communicator::scatter`]. Pass [`DeviceSlice::empty`] where `root` is another rank.
    pub fn scatter<'b, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        root: usize,
    ) -> Result<()> {
        let input = input.into();
        let output = output.into();
        let call = Call::of::<T>(Collective::Scatter, output.len(), None, root);
        self.call(call, input.bytes(), output.bytes())
    }

    /// [`Communicator::scatter_in_place`].
    pub fn scatter_in_place<'b, T: Element>(
        &self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        root: usize,
    ) -> Result<()> {
        let buffer = buffer.into();
        let call = Call::of::<T>(
            Collective::Scatter,
            buffer.len() / if self.comm.rank() == root { self.comm.size() } else { 1 },
            None,
            root,
        );
        self.call_in_place(call, buffer.bytes())
    }

    /// [`Communicator::scan`].
    pub fn scan<'b, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        op: ReduceOp,
    ) -> Result<()> {
        let input = input.into();
        let output = output.into();
        let call = Call::of::<T>(Collective::Scan, input.len(), Some(op), 0);
        self.call(call, input.bytes(), output.bytes())
    }

    /// [`Communicator::scan_in_place`].
    pub fn scan_in_place<'b, T: Element>(&self, buffer: impl Into<DeviceSliceMut<'b, T>>, op: ReduceOp) -> Result<()> {
        let buffer = buffer.into();
        let call = Call::of::<T>(Collective::Scan, buffer.len(), Some(op), 0);
        self.call_in_place(call, buffer.bytes())
    }

    /// [`Communicator::exclusive_scan`].
    pub fn exclusive_scan<'b, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        op: ReduceOp,
    ) -> Result<()> {
        let input = input.into();
        let output = output.into();
        let output = if self.comm.rank() == 0 { DeviceSliceMut::empty() } else { output };
        let call = Call::of::<T>(Collective::ExclusiveScan, input.len(), Some(op), 0);
        self.call(call, input.bytes(), output.bytes())
    }

    /// [`Communicator::exclusive_scan_in_place`].
    pub fn exclusive_scan_in_place<'b, T: Element>(
        &self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        op: ReduceOp,
    ) -> Result<()> {
        let buffer = buffer.into();
        let call = Call::of::<T>(Collective::ExclusiveScan, buffer.len(), Some(op), 0);
        self.call_in_place(call, buffer.bytes())
    }
}

/// The collectives whose blocks have counts of their own.
impl OnStream<'_> {
    /// [`Communicator::all_gather_v`].
    pub fn all_gather_v<'b, 'c, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        blocks: impl Into<Blocks<'c>>,
    ) -> Result<()> {
        let (input, output) = (input.into(), output.into());
        let call = Call::of::<T>(Collective::AllGather, 0, None, 0);
        let own = [input.len()];
        self.call_v(call, (input.bytes(), Blocks::packed(&own)), (output.bytes(), blocks.into()))
    }

    /// [`Communicator::all_gather_v_in_place`].
    pub fn all_gather_v_in_place<'b, 'c, T: Element>(
        &self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        blocks: impl Into<Blocks<'c>>,
    ) -> Result<()> {
        let call = Call::of::<T>(Collective::AllGather, 0, None, 0);
        self.call_v_in_place(call, buffer.into().bytes(), blocks.into())
    }

    /// [`Communicator::reduce_scatter_v`].
    pub fn reduce_scatter_v<'b, 'c, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        blocks: impl Into<Blocks<'c>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        op: ReduceOp,
    ) -> Result<()> {
        let (input, output) = (input.into(), output.into());
        let call = Call::of::<T>(Collective::ReduceScatter, 0, Some(op), 0);
        let own = [output.len()];
        self.call_v(call, (input.bytes(), blocks.into()), (output.bytes(), Blocks::packed(&own)))
    }

    /// [`Communicator::reduce_scatter_v_in_place`].
    pub fn reduce_scatter_v_in_place<'b, 'c, T: Element>(
        &self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        blocks: impl Into<Blocks<'c>>,
        op: ReduceOp,
    ) -> Result<()> {
        let call = Call::of::<T>(Collective::ReduceScatter, 0, Some(op), 0);
        self.call_v_in_place(call, buffer.into().bytes(), blocks.into())
    }

    /// [`Communicator::all_to_all_v`].
    pub fn all_to_all_v<'b, 'c, 'd, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        sent: impl Into<Blocks<'c>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        received: impl Into<Blocks<'d>>,
    ) -> Result<()> {
        let call = Call::of::<T>(Collective::AllToAll, 0, None, 0);
        self.call_v(call, (input.into().bytes(), sent.into()), (output.into().bytes(), received.into()))
    }

    /// [`Communicator::all_to_all_v_in_place`].
    pub fn all_to_all_v_in_place<'b, 'c, T: Element>(
        &self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        blocks: impl Into<Blocks<'c>>,
    ) -> Result<()> {
        let call = Call::of::<T>(Collective::AllToAll, 0, None, 0);
        self.call_v_in_place(call, buffer.into().bytes(), blocks.into())
    }

    /// [`Communicator::gather_v`].
    pub fn gather_v<'b, 'c, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        blocks: impl Into<Blocks<'c>>,
        root: usize,
    ) -> Result<()> {
        let input = input.into();
        let call = Call::of::<T>(Collective::Gather, 0, None, root);
        let own = [input.len()];
        let blocks = if self.comm.rank() == root { blocks.into() } else { NONE };
        self.call_v(call, (input.bytes(), Blocks::packed(&own)), (output.into().bytes(), blocks))
    }

    /// [`Communicator::gather_v_in_place`].
    pub fn gather_v_in_place<'b, 'c, T: Element>(
        &self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        blocks: impl Into<Blocks<'c>>,
        root: usize,
    ) -> Result<()> {
        let buffer = buffer.into();
        let call = Call::of::<T>(Collective::Gather, 0, None, root);
        let own = [buffer.len()];
        let blocks = if self.comm.rank() == root { blocks.into() } else { Blocks::packed(&own) };
        self.call_v_in_place(call, buffer.bytes(), blocks)
    }

    /// [`Communicator::scatter_v`].
    pub fn scatter_v<'b, 'c, T: Element>(
        &self,
        input: impl Into<DeviceSlice<'b, T>>,
        blocks: impl Into<Blocks<'c>>,
        output: impl Into<DeviceSliceMut<'b, T>>,
        root: usize,
    ) -> Result<()> {
        let output = output.into();
        let call = Call::of::<T>(Collective::Scatter, 0, None, root);
        let own = [output.len()];
        let blocks = if self.comm.rank() == root { blocks.into() } else { NONE };
        self.call_v(call, (input.into().bytes(), blocks), (output.bytes(), Blocks::packed(&own)))
    }

    /// [`Communicator::scatter_v_in_place`].
    pub fn scatter_v_in_place<'b, 'c, T: Element>(
        &self,
        buffer: impl Into<DeviceSliceMut<'b, T>>,
        blocks: impl Into<Blocks<'c>>,
        root: usize,
    ) -> Result<()> {
        let buffer = buffer.into();
        let call = Call::of::<T>(Collective::Scatter, 0, None, root);
        let own = [buffer.len()];
        let blocks = if self.comm.rank() == root { blocks.into() } else { Blocks::packed(&own) };
        self.call_v_in_place(call, buffer.bytes(), blocks)
    }
}
