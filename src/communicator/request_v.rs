//! The asynchronous forms of the collectives with variable counts. Counts and displacements are copied at the call;
//! buffers are borrowed as in [`request`](super::request).

use maypole_collectives::schedule::Collective;
use maypole_collectives::{Element, ReduceOp};

use super::Call;
use super::blocks::{Blocks, OwnedBlocks, OwnedSides};
use super::call::{Buffers, Lengths};
use super::request::{Request, Start};
use crate::error::Result;

const NONE: Blocks<'static> = Blocks::packed(&[]);

/// One form per collective with variable counts, each as the blocking method of the same name.
impl<'env> Start<'_, 'env> {
    /// See [`Communicator::all_gather_v`](crate::Communicator::all_gather_v).
    pub fn all_gather_v<'b, T: Element>(
        &self,
        input: &'env [T],
        output: &'env mut [T],
        blocks: impl Into<Blocks<'b>>,
    ) -> Result<Request<'env, T>> {
        let call = Call::of::<T>(Collective::AllGather, 0, None, 0);
        self.apart_v(call, (input, Blocks::packed(&[input.len()])), (output, blocks.into()))
    }

    /// See [`Communicator::all_gather_v_in_place`](crate::Communicator::all_gather_v_in_place).
    pub fn all_gather_v_in_place<'b, T: Element>(
        &self,
        buffer: &'env mut [T],
        blocks: impl Into<Blocks<'b>>,
    ) -> Result<Request<'env, T>> {
        self.in_place_v(Call::of::<T>(Collective::AllGather, 0, None, 0), buffer, blocks.into())
    }

    /// See [`Communicator::reduce_scatter_v`](crate::Communicator::reduce_scatter_v).
    pub fn reduce_scatter_v<'b, T: Element>(
        &self,
        input: &'env [T],
        blocks: impl Into<Blocks<'b>>,
        output: &'env mut [T],
        op: ReduceOp,
    ) -> Result<Request<'env, T>> {
        let call = Call::of::<T>(Collective::ReduceScatter, 0, Some(op), 0);
        let own = [output.len()];
        self.apart_v(call, (input, blocks.into()), (output, Blocks::packed(&own)))
    }

    /// See [`Communicator::reduce_scatter_v_in_place`](crate::Communicator::reduce_scatter_v_in_place).
    pub fn reduce_scatter_v_in_place<'b, T: Element>(
        &self,
        buffer: &'env mut [T],
        blocks: impl Into<Blocks<'b>>,
        op: ReduceOp,
    ) -> Result<Request<'env, T>> {
        self.in_place_v(Call::of::<T>(Collective::ReduceScatter, 0, Some(op), 0), buffer, blocks.into())
    }

    /// See [`Communicator::all_to_all_v`](crate::Communicator::all_to_all_v).
    pub fn all_to_all_v<'a, 'b, T: Element>(
        &self,
        input: &'env [T],
        sent: impl Into<Blocks<'a>>,
        output: &'env mut [T],
        received: impl Into<Blocks<'b>>,
    ) -> Result<Request<'env, T>> {
        let call = Call::of::<T>(Collective::AllToAll, 0, None, 0);
        self.apart_v(call, (input, sent.into()), (output, received.into()))
    }

    /// See [`Communicator::all_to_all_v_in_place`](crate::Communicator::all_to_all_v_in_place).
    pub fn all_to_all_v_in_place<'b, T: Element>(
        &self,
        buffer: &'env mut [T],
        blocks: impl Into<Blocks<'b>>,
    ) -> Result<Request<'env, T>> {
        self.in_place_v(Call::of::<T>(Collective::AllToAll, 0, None, 0), buffer, blocks.into())
    }

    /// See [`Communicator::gather_v`](crate::Communicator::gather_v).
    pub fn gather_v<'b, T: Element>(
        &self,
        input: &'env [T],
        output: &'env mut [T],
        blocks: impl Into<Blocks<'b>>,
        root: usize,
    ) -> Result<Request<'env, T>> {
        let call = Call::of::<T>(Collective::Gather, 0, None, root);
        let blocks = if self.rank() == root { blocks.into() } else { NONE };
        self.apart_v(call, (input, Blocks::packed(&[input.len()])), (output, blocks))
    }

    /// See [`Communicator::gather_v_in_place`](crate::Communicator::gather_v_in_place).
    pub fn gather_v_in_place<'b, T: Element>(
        &self,
        buffer: &'env mut [T],
        blocks: impl Into<Blocks<'b>>,
        root: usize,
    ) -> Result<Request<'env, T>> {
        let own = [buffer.len()];
        let blocks = if self.rank() == root { blocks.into() } else { Blocks::packed(&own) };
        self.in_place_v(Call::of::<T>(Collective::Gather, 0, None, root), buffer, blocks)
    }

    /// See [`Communicator::scatter_v`](crate::Communicator::scatter_v).
    pub fn scatter_v<'b, T: Element>(
        &self,
        input: &'env [T],
        blocks: impl Into<Blocks<'b>>,
        output: &'env mut [T],
        root: usize,
    ) -> Result<Request<'env, T>> {
        let call = Call::of::<T>(Collective::Scatter, 0, None, root);
        let own = [output.len()];
        let blocks = if self.rank() == root { blocks.into() } else { NONE };
        self.apart_v(call, (input, blocks), (output, Blocks::packed(&own)))
    }

    /// See [`Communicator::scatter_v_in_place`](crate::Communicator::scatter_v_in_place).
    pub fn scatter_v_in_place<'b, T: Element>(
        &self,
        buffer: &'env mut [T],
        blocks: impl Into<Blocks<'b>>,
        root: usize,
    ) -> Result<Request<'env, T>> {
        let own = [buffer.len()];
        let blocks = if self.rank() == root { blocks.into() } else { Blocks::packed(&own) };
        self.in_place_v(Call::of::<T>(Collective::Scatter, 0, None, root), buffer, blocks)
    }

    fn apart_v<T: Element>(
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

    fn in_place_v<T: Element>(
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
}
