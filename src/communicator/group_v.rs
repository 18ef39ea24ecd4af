//! The collectives with variable counts as calls of a group; see [`group`](super::group).

use maypole_collectives::schedule::Collective;
use maypole_collectives::{Element, ReduceOp};

use super::Call;
use super::blocks::{Blocks, OwnedBlocks, OwnedSides};
use super::call::{Buffers, Lengths};
use super::group::{Collected, Group};

const NONE: Blocks<'static> = Blocks::packed(&[]);

/// One method per collective with variable counts, each as the communicator's of the same name. Counts and
/// displacements are copied.
impl<'env> Group<'env> {
    /// See [`Communicator::all_gather_v`](crate::Communicator::all_gather_v).
    pub fn all_gather_v<'b, T: Element>(
        &mut self,
        input: &'env [T],
        output: &'env mut [T],
        blocks: impl Into<Blocks<'b>>,
    ) {
        let call = Call::of::<T>(Collective::AllGather, 0, None, 0);
        self.apart_v(call, (input, Blocks::packed(&[input.len()])), (output, blocks.into()));
    }

    /// See [`Communicator::all_gather_v_in_place`](crate::Communicator::all_gather_v_in_place).
    pub fn all_gather_v_in_place<'b, T: Element>(&mut self, buffer: &'env mut [T], blocks: impl Into<Blocks<'b>>) {
        self.in_place_v(Call::of::<T>(Collective::AllGather, 0, None, 0), buffer, blocks.into());
    }

    /// See [`Communicator::reduce_scatter_v`](crate::Communicator::reduce_scatter_v).
    pub fn reduce_scatter_v<'b, T: Element>(
        &mut self,
        input: &'env [T],
        blocks: impl Into<Blocks<'b>>,
        output: &'env mut [T],
        op: ReduceOp,
    ) {
        let call = Call::of::<T>(Collective::ReduceScatter, 0, Some(op), 0);
        let own = [output.len()];
        self.apart_v(call, (input, blocks.into()), (output, Blocks::packed(&own)));
    }

    /// See [`Communicator::reduce_scatter_v_in_place`](crate::Communicator::reduce_scatter_v_in_place).
    pub fn reduce_scatter_v_in_place<'b, T: Element>(
        &mut self,
        buffer: &'env mut [T],
        blocks: impl Into<Blocks<'b>>,
        op: ReduceOp,
    ) {
        self.in_place_v(Call::of::<T>(Collective::ReduceScatter, 0, Some(op), 0), buffer, blocks.into());
    }

    /// See [`Communicator::all_to_all_v`](crate::Communicator::all_to_all_v).
    pub fn all_to_all_v<'a, 'b, T: Element>(
        &mut self,
        input: &'env [T],
        sent: impl Into<Blocks<'a>>,
        output: &'env mut [T],
        received: impl Into<Blocks<'b>>,
    ) {
        let call = Call::of::<T>(Collective::AllToAll, 0, None, 0);
        self.apart_v(call, (input, sent.into()), (output, received.into()));
    }

    /// See [`Communicator::all_to_all_v_in_place`](crate::Communicator::all_to_all_v_in_place).
    pub fn all_to_all_v_in_place<'b, T: Element>(&mut self, buffer: &'env mut [T], blocks: impl Into<Blocks<'b>>) {
        self.in_place_v(Call::of::<T>(Collective::AllToAll, 0, None, 0), buffer, blocks.into());
    }

    /// See [`Communicator::gather_v`](crate::Communicator::gather_v).
    pub fn gather_v<'b, T: Element>(
        &mut self,
        input: &'env [T],
        output: &'env mut [T],
        blocks: impl Into<Blocks<'b>>,
        root: usize,
    ) {
        let call = Call::of::<T>(Collective::Gather, 0, None, root);
        let blocks = if self.rank() == root { blocks.into() } else { NONE };
        self.apart_v(call, (input, Blocks::packed(&[input.len()])), (output, blocks));
    }

    /// See [`Communicator::gather_v_in_place`](crate::Communicator::gather_v_in_place).
    pub fn gather_v_in_place<'b, T: Element>(
        &mut self,
        buffer: &'env mut [T],
        blocks: impl Into<Blocks<'b>>,
        root: usize,
    ) {
        let own = [buffer.len()];
        let blocks = if self.rank() == root { blocks.into() } else { Blocks::packed(&own) };
        self.in_place_v(Call::of::<T>(Collective::Gather, 0, None, root), buffer, blocks);
    }

    /// See [`Communicator::scatter_v`](crate::Communicator::scatter_v).
    pub fn scatter_v<'b, T: Element>(
        &mut self,
        input: &'env [T],
        blocks: impl Into<Blocks<'b>>,
        output: &'env mut [T],
        root: usize,
    ) {
        let call = Call::of::<T>(Collective::Scatter, 0, None, root);
        let own = [output.len()];
        let blocks = if self.rank() == root { blocks.into() } else { NONE };
        self.apart_v(call, (input, blocks), (output, Blocks::packed(&own)));
    }

    /// See [`Communicator::scatter_v_in_place`](crate::Communicator::scatter_v_in_place).
    pub fn scatter_v_in_place<'b, T: Element>(
        &mut self,
        buffer: &'env mut [T],
        blocks: impl Into<Blocks<'b>>,
        root: usize,
    ) {
        let own = [buffer.len()];
        let blocks = if self.rank() == root { blocks.into() } else { Blocks::packed(&own) };
        self.in_place_v(Call::of::<T>(Collective::Scatter, 0, None, root), buffer, blocks);
    }

    fn apart_v<T: Element>(
        &mut self,
        call: Call,
        (input, sent): (&'env [T], Blocks<'_>),
        (output, received): (&'env mut [T], Blocks<'_>),
    ) {
        let buffers = Buffers { input: input.as_ptr().cast(), output: output.as_mut_ptr().cast() };
        let lengths = Lengths::Apart { input: size_of_val(input), output: size_of_val(output) };
        let sides = OwnedSides::Apart { input: OwnedBlocks::new(sent), output: OwnedBlocks::new(received) };
        self.collect(Collected { call, buffers, lengths, sides: Some(sides) });
    }

    fn in_place_v<T: Element>(&mut self, call: Call, buffer: &'env mut [T], blocks: Blocks<'_>) {
        let at = buffer.as_mut_ptr().cast::<u8>();
        let lengths = Lengths::InPlace { buffer: size_of_val(buffer) };
        let sides = OwnedSides::InPlace(OwnedBlocks::new(blocks));
        let buffers = Buffers { input: at, output: at };
        self.collect(Collected { call, buffers, lengths, sides: Some(sides) });
    }
}
