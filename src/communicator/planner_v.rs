//! The persistent forms of the collectives with variable counts. Counts and displacements are copied.

use maypole_collectives::schedule::Collective;
use maypole_collectives::{Element, ReduceOp};

use super::Call;
use super::blocks::{Blocks, Sides};
use super::call::Lengths;
use super::persistent::{Memory, Persistent};
use super::planner::Planner;
use crate::error::Result;

const NONE: Blocks<'static> = Blocks::packed(&[]);

/// One form per collective with variable counts, each as the blocking method of the same name.
impl Planner<'_> {
    /// See [`Communicator::all_gather_v`](crate::Communicator::all_gather_v).
    pub fn all_gather_v<'b, T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        output: impl Into<Memory<T>>,
        blocks: impl Into<Blocks<'b>>,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        let call = Call::of::<T>(Collective::AllGather, 0, None, 0);
        let own = [input.len()];
        self.apart_v(call, (input, Blocks::packed(&own)), (output, blocks.into()))
    }

    /// See [`Communicator::all_gather_v_in_place`](crate::Communicator::all_gather_v_in_place).
    pub fn all_gather_v_in_place<'b, T: Element>(
        &self,
        buffer: impl Into<Memory<T>>,
        blocks: impl Into<Blocks<'b>>,
    ) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        self.in_place_v(Call::of::<T>(Collective::AllGather, 0, None, 0), buffer, blocks.into())
    }

    /// See [`Communicator::reduce_scatter_v`](crate::Communicator::reduce_scatter_v).
    pub fn reduce_scatter_v<'b, T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        blocks: impl Into<Blocks<'b>>,
        output: impl Into<Memory<T>>,
        op: ReduceOp,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        let call = Call::of::<T>(Collective::ReduceScatter, 0, Some(op), 0);
        let own = [output.len()];
        self.apart_v(call, (input, blocks.into()), (output, Blocks::packed(&own)))
    }

    /// See [`Communicator::reduce_scatter_v_in_place`](crate::Communicator::reduce_scatter_v_in_place).
    pub fn reduce_scatter_v_in_place<'b, T: Element>(
        &self,
        buffer: impl Into<Memory<T>>,
        blocks: impl Into<Blocks<'b>>,
        op: ReduceOp,
    ) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        self.in_place_v(Call::of::<T>(Collective::ReduceScatter, 0, Some(op), 0), buffer, blocks.into())
    }

    /// See [`Communicator::all_to_all_v`](crate::Communicator::all_to_all_v).
    pub fn all_to_all_v<'a, 'b, T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        sent: impl Into<Blocks<'a>>,
        output: impl Into<Memory<T>>,
        received: impl Into<Blocks<'b>>,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        let call = Call::of::<T>(Collective::AllToAll, 0, None, 0);
        self.apart_v(call, (input, sent.into()), (output, received.into()))
    }

    /// See [`Communicator::all_to_all_v_in_place`](crate::Communicator::all_to_all_v_in_place).
    pub fn all_to_all_v_in_place<'b, T: Element>(
        &self,
        buffer: impl Into<Memory<T>>,
        blocks: impl Into<Blocks<'b>>,
    ) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        self.in_place_v(Call::of::<T>(Collective::AllToAll, 0, None, 0), buffer, blocks.into())
    }

    /// See [`Communicator::gather_v`](crate::Communicator::gather_v).
    pub fn gather_v<'b, T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        output: impl Into<Memory<T>>,
        blocks: impl Into<Blocks<'b>>,
        root: usize,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        let call = Call::of::<T>(Collective::Gather, 0, None, root);
        let own = [input.len()];
        let blocks = if self.comm.rank() == root { blocks.into() } else { NONE };
        self.apart_v(call, (input, Blocks::packed(&own)), (output, blocks))
    }

    /// See [`Communicator::gather_v_in_place`](crate::Communicator::gather_v_in_place).
    pub fn gather_v_in_place<'b, T: Element>(
        &self,
        buffer: impl Into<Memory<T>>,
        blocks: impl Into<Blocks<'b>>,
        root: usize,
    ) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        let own = [buffer.len()];
        let blocks = if self.comm.rank() == root { blocks.into() } else { Blocks::packed(&own) };
        self.in_place_v(Call::of::<T>(Collective::Gather, 0, None, root), buffer, blocks)
    }

    /// See [`Communicator::scatter_v`](crate::Communicator::scatter_v).
    pub fn scatter_v<'b, T: Element>(
        &self,
        input: impl Into<Memory<T>>,
        blocks: impl Into<Blocks<'b>>,
        output: impl Into<Memory<T>>,
        root: usize,
    ) -> Result<Persistent<T>> {
        let (input, output) = (input.into(), output.into());
        let call = Call::of::<T>(Collective::Scatter, 0, None, root);
        let own = [output.len()];
        let blocks = if self.comm.rank() == root { blocks.into() } else { NONE };
        self.apart_v(call, (input, blocks), (output, Blocks::packed(&own)))
    }

    /// See [`Communicator::scatter_v_in_place`](crate::Communicator::scatter_v_in_place).
    pub fn scatter_v_in_place<'b, T: Element>(
        &self,
        buffer: impl Into<Memory<T>>,
        blocks: impl Into<Blocks<'b>>,
        root: usize,
    ) -> Result<Persistent<T>> {
        let buffer = buffer.into();
        let own = [buffer.len()];
        let blocks = if self.comm.rank() == root { blocks.into() } else { Blocks::packed(&own) };
        self.in_place_v(Call::of::<T>(Collective::Scatter, 0, None, root), buffer, blocks)
    }

    fn apart_v<T: Element>(
        &self,
        call: Call,
        (input, sent): (Memory<T>, Blocks<'_>),
        (output, received): (Memory<T>, Blocks<'_>),
    ) -> Result<Persistent<T>> {
        let bytes = |memory: &Memory<T>| memory.len() * size_of::<T>();
        let lengths = Lengths::Apart { input: bytes(&input), output: bytes(&output) };
        let sides = Sides::Apart { input: sent, output: received };
        self.make((call, lengths, Some(sides)), Some(input), output)
    }

    fn in_place_v<T: Element>(&self, call: Call, buffer: Memory<T>, blocks: Blocks<'_>) -> Result<Persistent<T>> {
        let lengths = Lengths::InPlace { buffer: buffer.len() * size_of::<T>() };
        self.make((call, lengths, Some(Sides::InPlace(blocks))), None, buffer)
    }
}
