//! The collectives as methods on slices.
//!
//! What every method has in common: it blocks until this rank's part is done; the buffers are borrowed until it
//! returns; counts are elements; [`Error::Argument`](crate::Error::Argument) means that nothing was started and nothing
//! touched, [`Error::Failed`](crate::Error::Failed) that the communicator has failed on every rank, and the output is
//! then undefined. So it is where a user's operation panics: the panic is caught, and every rank is told of it. Every
//! rank of the communicator must make the same call.

use bytemuck::{cast_slice, cast_slice_mut};
use maypole_collectives::schedule::Collective;
use maypole_collectives::{DataType, Element, ReduceOp};

use super::{Call, Communicator};
use crate::error::Result;

impl Call {
    /// A call for elements of type `T`. `op` is ignored unless the collective reduces, `root` unless it has one.
    pub(crate) fn of<T: Element>(collective: Collective, count: usize, op: Option<ReduceOp>, root: usize) -> Call {
        Call { collective, dtype: T::DTYPE, count, op: op.unwrap_or(ReduceOp::Sum), root }
    }
}

impl Communicator {
    /// Every rank's `output` becomes the reduction of all ranks' `input`s, which have the same length. Bit-identical on
    /// all ranks.
    pub fn all_reduce<T: Element>(&self, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        let call = Call::of::<T>(Collective::AllReduce, input.len(), Some(op), 0);
        self.call(call, cast_slice(input), cast_slice_mut(output))
    }

    /// [`Communicator::all_reduce`] with `buffer` as input and output.
    pub fn all_reduce_in_place<T: Element>(&self, buffer: &mut [T], op: ReduceOp) -> Result<()> {
        self.call_in_place(Call::of::<T>(Collective::AllReduce, buffer.len(), Some(op), 0), cast_slice_mut(buffer))
    }

    /// `output` on rank `root` becomes the reduction of all ranks' `input`s. On the other ranks `output` must be empty.
    pub fn reduce<T: Element>(&self, input: &[T], output: &mut [T], op: ReduceOp, root: usize) -> Result<()> {
        let call = Call::of::<T>(Collective::Reduce, input.len(), Some(op), root);
        self.call(call, cast_slice(input), cast_slice_mut(output))
    }

    /// [`Communicator::reduce`] with `buffer` as input and, on rank `root`, as output. On the other ranks its content
    /// stays as it was.
    pub fn reduce_in_place<T: Element>(&self, buffer: &mut [T], op: ReduceOp, root: usize) -> Result<()> {
        self.call_in_place(Call::of::<T>(Collective::Reduce, buffer.len(), Some(op), root), cast_slice_mut(buffer))
    }

    /// Every rank's `buffer` becomes rank `root`'s.
    pub fn broadcast<T: Element>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        self.call_in_place(Call::of::<T>(Collective::Broadcast, buffer.len(), None, root), cast_slice_mut(buffer))
    }

    /// Every rank's `output` becomes rank `root`'s `input`. On the other ranks `input` must be empty.
    pub fn broadcast_from<T: Element>(&self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        let call = Call::of::<T>(Collective::Broadcast, output.len(), None, root);
        self.call(call, cast_slice(input), cast_slice_mut(output))
    }

    /// Every rank's `output` becomes all ranks' `input`s, in the order of the ranks: `size` times as long as `input`.
    pub fn all_gather<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<()> {
        let call = Call::of::<T>(Collective::AllGather, input.len(), None, 0);
        self.call(call, cast_slice(input), cast_slice_mut(output))
    }

    /// [`Communicator::all_gather`] where this rank's input already lies at its place, block `rank` of `buffer`'s
    /// `size` equal blocks.
    pub fn all_gather_in_place<T: Element>(&self, buffer: &mut [T]) -> Result<()> {
        let call = Call::of::<T>(Collective::AllGather, buffer.len() / self.size(), None, 0);
        self.call_in_place(call, cast_slice_mut(buffer))
    }

    /// `input` has `size` equal blocks; `output` becomes the reduction of all ranks' block number `rank`.
    pub fn reduce_scatter<T: Element>(&self, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        let call = Call::of::<T>(Collective::ReduceScatter, output.len(), Some(op), 0);
        self.call(call, cast_slice(input), cast_slice_mut(output))
    }

    /// [`Communicator::reduce_scatter`] whose result replaces block `rank` of `buffer`; the other blocks' contents are
    /// undefined afterwards.
    pub fn reduce_scatter_in_place<T: Element>(&self, buffer: &mut [T], op: ReduceOp) -> Result<()> {
        let call = Call::of::<T>(Collective::ReduceScatter, buffer.len() / self.size(), Some(op), 0);
        self.call_in_place(call, cast_slice_mut(buffer))
    }

    /// Both buffers have `size` equal blocks; block `s` of `output` becomes block `rank` of rank `s`'s `input`.
    pub fn all_to_all<T: Element>(&self, input: &[T], output: &mut [T]) -> Result<()> {
        let call = Call::of::<T>(Collective::AllToAll, input.len() / self.size(), None, 0);
        self.call(call, cast_slice(input), cast_slice_mut(output))
    }

    /// [`Communicator::all_to_all`] that replaces every block of `buffer`. Copies the buffer first.
    pub fn all_to_all_in_place<T: Element>(&self, buffer: &mut [T]) -> Result<()> {
        let call = Call::of::<T>(Collective::AllToAll, buffer.len() / self.size(), None, 0);
        self.call_in_place(call, cast_slice_mut(buffer))
    }

    /// `output` on rank `root` becomes all ranks' `input`s in the order of the ranks. On the other ranks `output` must
    /// be empty.
    pub fn gather<T: Element>(&self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        let call = Call::of::<T>(Collective::Gather, input.len(), None, root);
        self.call(call, cast_slice(input), cast_slice_mut(output))
    }

    /// [`Communicator::gather`] where rank `root`'s own input already lies at its place, block `root` of `buffer`'s
    /// `size` equal blocks; on the other ranks `buffer` is the input.
    pub fn gather_in_place<T: Element>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        let blocks = if self.rank() == root { self.size() } else { 1 };
        let call = Call::of::<T>(Collective::Gather, buffer.len() / blocks, None, root);
        self.call_in_place(call, cast_slice_mut(buffer))
    }

    /// `input` on rank `root` has `size` equal blocks; `output` becomes block `rank` of it. On the other ranks `input`
    /// must be empty.
    pub fn scatter<T: Element>(&self, input: &[T], output: &mut [T], root: usize) -> Result<()> {
        let call = Call::of::<T>(Collective::Scatter, output.len(), None, root);
        self.call(call, cast_slice(input), cast_slice_mut(output))
    }

    /// [`Communicator::scatter`] where rank `root`'s own block stays where it is in `buffer`; on the other ranks
    /// `buffer` is the output.
    pub fn scatter_in_place<T: Element>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        let blocks = if self.rank() == root { self.size() } else { 1 };
        let call = Call::of::<T>(Collective::Scatter, buffer.len() / blocks, None, root);
        self.call_in_place(call, cast_slice_mut(buffer))
    }

    /// `output` becomes the reduction of the `input`s of ranks 0 up to this one, this one included. [`ReduceOp::Avg`] is
    /// refused: of how many ranks it would be differs from rank to rank.
    pub fn scan<T: Element>(&self, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        let call = Call::of::<T>(Collective::Scan, input.len(), Some(op), 0);
        self.call(call, cast_slice(input), cast_slice_mut(output))
    }

    /// [`Communicator::scan`] with `buffer` as input and output.
    pub fn scan_in_place<T: Element>(&self, buffer: &mut [T], op: ReduceOp) -> Result<()> {
        self.call_in_place(Call::of::<T>(Collective::Scan, buffer.len(), Some(op), 0), cast_slice_mut(buffer))
    }

    /// `output` becomes the reduction of the `input`s of the ranks before this one. On rank 0 there are none: `output`
    /// stays as it was, whatever its length.
    pub fn exclusive_scan<T: Element>(&self, input: &[T], output: &mut [T], op: ReduceOp) -> Result<()> {
        let call = Call::of::<T>(Collective::ExclusiveScan, input.len(), Some(op), 0);
        let output = if self.rank() == 0 { &mut [] } else { output };
        self.call(call, cast_slice(input), cast_slice_mut(output))
    }

    /// [`Communicator::exclusive_scan`] with `buffer` as input and output. On rank 0 it stays as it was.
    pub fn exclusive_scan_in_place<T: Element>(&self, buffer: &mut [T], op: ReduceOp) -> Result<()> {
        self.call_in_place(Call::of::<T>(Collective::ExclusiveScan, buffer.len(), Some(op), 0), cast_slice_mut(buffer))
    }

    /// Returns once every rank has called it.
    pub fn barrier(&self) -> Result<()> {
        let call = Call { collective: Collective::Barrier, dtype: DataType::U8, count: 0, op: ReduceOp::Sum, root: 0 };
        self.call(call, &[], &mut [])
    }
}
