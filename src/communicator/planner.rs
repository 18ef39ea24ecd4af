//! Making [`persistent`](super::persistent) operations: a form for each collective.

use maypole_collectives::schedule::Collective;
use maypole_collectives::{DataType, Element, ReduceOp};

use super::blocks::Sides;
use super::call::{Buffers, Lengths};
use super::persistent::{Memory, Persistent};
use super::{Call, Communicator};
use crate::error::Result;

/// Makes persistent operations; see [`Communicator::persistent`].
pub struct Planner<'c> {
    pub(super) comm: &'c Communicator,
}

impl Communicator {
    /// The persistent forms: `comm.persistent().all_reduce(input, output, op)` takes the buffers, checks and plans, and
    /// returns what can be started. That is local to this rank, but it waits for operations called before.
    pub fn persistent(&self) -> Planner<'_> {
        Planner { comm: self }
    }
}

/// One form per collective, each as the blocking method of the same name, with buffers (`Vec`s, boxed slices,
/// [`Registered`](crate::Registered) buffers) in place of slices.
///
/// # Errors
/// [`Error::Argument`](crate::Error::Argument) as in the blocking call: no operation was made, and the communicator has
/// noticed nothing.
impl Planner<'_> {
    /// See [`Communicator::all_reduce`].
    pub fn all_reduce<T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        output: impl Into<Memory<T>>,
        op: ReduceOp,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        self.apart(Call::of::<T>(Collective::AllReduce, input.len(), Some(op), 0), input, output)
    }

    /// See [`Communicator::all_reduce_in_place`].
    pub fn all_reduce_in_place<T: Element>(&self, buffer: impl Into<Memory<T>>, op: ReduceOp) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        self.in_place(Call::of::<T>(Collective::AllReduce, buffer.len(), Some(op), 0), buffer)
    }

    /// See [`Communicator::reduce`].
    pub fn reduce<T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        output: impl Into<Memory<T>>,
        op: ReduceOp,
        root: usize,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        self.apart(Call::of::<T>(Collective::Reduce, input.len(), Some(op), root), input, output)
    }

    /// See [`Communicator::reduce_in_place`].
    pub fn reduce_in_place<T: Element>(
        &self,
        buffer: impl Into<Memory<T>>,
        op: ReduceOp,
        root: usize,
    ) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        self.in_place(Call::of::<T>(Collective::Reduce, buffer.len(), Some(op), root), buffer)
    }

    /// See [`Communicator::broadcast`].
    pub fn broadcast<T: Element>(&self, buffer: impl Into<Memory<T>>, root: usize) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        self.in_place(Call::of::<T>(Collective::Broadcast, buffer.len(), None, root), buffer)
    }

    /// See [`Communicator::broadcast_from`].
    pub fn broadcast_from<T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        output: impl Into<Memory<T>>,
        root: usize,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        self.apart(Call::of::<T>(Collective::Broadcast, output.len(), None, root), input, output)
    }

    /// See [`Communicator::all_gather`].
    pub fn all_gather<T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        output: impl Into<Memory<T>>,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        self.apart(Call::of::<T>(Collective::AllGather, input.len(), None, 0), input, output)
    }

    /// See [`Communicator::all_gather_in_place`].
    pub fn all_gather_in_place<T: Element>(&self, buffer: impl Into<Memory<T>>) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        self.in_place(Call::of::<T>(Collective::AllGather, buffer.len() / self.comm.size(), None, 0), buffer)
    }

    /// See [`Communicator::reduce_scatter`].
    pub fn reduce_scatter<T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        output: impl Into<Memory<T>>,
        op: ReduceOp,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        self.apart(Call::of::<T>(Collective::ReduceScatter, output.len(), Some(op), 0), input, output)
    }

    /// See [`Communicator::reduce_scatter_in_place`].
    pub fn reduce_scatter_in_place<T: Element>(
        &self,
        buffer: impl Into<Memory<T>>,
        op: ReduceOp,
    ) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        let count = buffer.len() / self.comm.size();
        self.in_place(Call::of::<T>(Collective::ReduceScatter, count, Some(op), 0), buffer)
    }

    /// See [`Communicator::all_to_all`].
    pub fn all_to_all<T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        output: impl Into<Memory<T>>,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        self.apart(Call::of::<T>(Collective::AllToAll, input.len() / self.comm.size(), None, 0), input, output)
    }

    /// See [`Communicator::all_to_all_in_place`].
    pub fn all_to_all_in_place<T: Element>(&self, buffer: impl Into<Memory<T>>) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        self.in_place(Call::of::<T>(Collective::AllToAll, buffer.len() / self.comm.size(), None, 0), buffer)
    }

    /// See [`Communicator::gather`].
    pub fn gather<T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        output: impl Into<Memory<T>>,
        root: usize,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        self.apart(Call::of::<T>(Collective::Gather, input.len(), None, root), input, output)
    }

    /// See [`Communicator::gather_in_place`].
    pub fn gather_in_place<T: Element>(&self, buffer: impl Into<Memory<T>>, root: usize) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        let blocks = if self.comm.rank() == root { self.comm.size() } else { 1 };
        self.in_place(Call::of::<T>(Collective::Gather, buffer.len() / blocks, None, root), buffer)
    }

    /// See [`Communicator::scatter`].
    pub fn scatter<T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        output: impl Into<Memory<T>>,
        root: usize,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        self.apart(Call::of::<T>(Collective::Scatter, output.len(), None, root), input, output)
    }

    /// See [`Communicator::scatter_in_place`].
    pub fn scatter_in_place<T: Element>(&self, buffer: impl Into<Memory<T>>, root: usize) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        let blocks = if self.comm.rank() == root { self.comm.size() } else { 1 };
        self.in_place(Call::of::<T>(Collective::Scatter, buffer.len() / blocks, None, root), buffer)
    }

    /// See [`Communicator::scan`].
    pub fn scan<T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        output: impl Into<Memory<T>>,
        op: ReduceOp,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        self.apart(Call::of::<T>(Collective::Scan, input.len(), Some(op), 0), input, output)
    }

    /// See [`Communicator::scan_in_place`].
    pub fn scan_in_place<T: Element>(&self, buffer: impl Into<Memory<T>>, op: ReduceOp) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        self.in_place(Call::of::<T>(Collective::Scan, buffer.len(), Some(op), 0), buffer)
    }

    /// See [`Communicator::exclusive_scan`].
    pub fn exclusive_scan<T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        output: impl Into<Memory<T>>,
        op: ReduceOp,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        let call = Call::of::<T>(Collective::ExclusiveScan, input.len(), Some(op), 0);
        // Rank 0 has none, whatever was passed.
        let outputs = if self.comm.rank() == 0 { 0 } else { output.len() };
        let lengths = Lengths::Apart { input: size_of::<T>() * input.len(), output: size_of::<T>() * outputs };
        self.make((call, lengths, None), Some(input), output)
    }

    /// See [`Communicator::exclusive_scan_in_place`].
    pub fn exclusive_scan_in_place<T: Element>(
        &self,
        buffer: impl Into<Memory<T>>,
        op: ReduceOp,
    ) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        self.in_place(Call::of::<T>(Collective::ExclusiveScan, buffer.len(), Some(op), 0), buffer)
    }

    /// See [`Communicator::barrier`].
    pub fn barrier(&self) -> Result<Persistent<u8>> {
        let call = Call { collective: Collective::Barrier, dtype: DataType::U8, count: 0, op: ReduceOp::Sum, root: 0 };
        self.apart(call, Vec::new().into(), Vec::new().into())
    }

    fn apart<T: Element>(&self, call: Call, input: Memory<T>, output: Memory<T>) -> Result<Persistent<T>> {
        let size = size_of::<T>();
        let lengths = Lengths::Apart { input: input.len() * size, output: output.len() * size };
        self.make((call, lengths, None), Some(input), output)
    }

    fn in_place<T: Element>(&self, call: Call, buffer: Memory<T>) -> Result<Persistent<T>> {
        let lengths = Lengths::InPlace { buffer: buffer.len() * size_of::<T>() };
        self.make((call, lengths, None), None, buffer)
    }

    pub(super) fn make<T: Element>(
        &self,
        (call, lengths, sides): (Call, Lengths, Option<Sides<'_>>),
        input: Option<Memory<T>>,
        output: Memory<T>,
    ) -> Result<Persistent<T>> {
        let inner = self.comm.inner.clone();
        let prepared = inner.prepare(call, lengths, sides)?;
        let buffers =
            Buffers { input: input.as_ref().unwrap_or(&output).address().cast_const(), output: output.address() };
        Ok(Persistent::new(inner, prepared, buffers, (input, output)))
    }
}
