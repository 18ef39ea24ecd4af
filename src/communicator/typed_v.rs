//! The collectives with variable counts as methods on slices; see `typed` for what every method has in common.
//!
//! Counts and displacements are elements. Wildly uneven counts are fine: a block costs what its own length asks, and a
//! rank with nothing to send is waited for only until it has called.

use bytemuck::{cast_slice, cast_slice_mut};
use maypole_collectives::schedule::Collective;
use maypole_collectives::{Element, ReduceOp};

use super::blocks::Blocks;
use super::{Call, Communicator};
use crate::error::Result;

const NONE: Blocks<'static> = Blocks::packed(&[]);

impl Communicator {
    /// Block r of every rank's `output` becomes rank r's `input`. All ranks pass the same counts; where blocks lie is
    /// each rank's own affair. `input` has as many elements as this rank's block.
    pub fn all_gather_v<'b, T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        blocks: impl Into<Blocks<'b>>,
    ) -> Result<()> {
        let call = Call::of::<T>(Collective::AllGather, 0, None, 0);
        let own = [input.len()];
        self.call_v(call, (cast_slice(input), Blocks::packed(&own)), (cast_slice_mut(output), blocks.into()))
    }

    /// [`Communicator::all_gather_v`] where this rank's input already lies at its place in `buffer`.
    pub fn all_gather_v_in_place<'b, T: Element>(&self, buffer: &mut [T], blocks: impl Into<Blocks<'b>>) -> Result<()> {
        let call = Call::of::<T>(Collective::AllGather, 0, None, 0);
        self.call_v_in_place(call, cast_slice_mut(buffer), blocks.into())
    }

    /// `output` becomes the reduction of all ranks' block number `rank`. All ranks pass the same counts.
    pub fn reduce_scatter_v<'b, T: Element>(
        &self,
        input: &[T],
        blocks: impl Into<Blocks<'b>>,
        output: &mut [T],
        op: ReduceOp,
    ) -> Result<()> {
        let call = Call::of::<T>(Collective::ReduceScatter, 0, Some(op), 0);
        let own = [output.len()];
        self.call_v(call, (cast_slice(input), blocks.into()), (cast_slice_mut(output), Blocks::packed(&own)))
    }

    /// [`Communicator::reduce_scatter_v`] whose result replaces this rank's block of `buffer`; the other blocks'
    /// contents are undefined afterwards.
    pub fn reduce_scatter_v_in_place<'b, T: Element>(
        &self,
        buffer: &mut [T],
        blocks: impl Into<Blocks<'b>>,
        op: ReduceOp,
    ) -> Result<()> {
        let call = Call::of::<T>(Collective::ReduceScatter, 0, Some(op), 0);
        self.call_v_in_place(call, cast_slice_mut(buffer), blocks.into())
    }

    /// Block s of `output` becomes the block of rank s's `input` that is for this rank. What rank r expects from rank s
    /// must be as long as what s has for r; if not, all ranks get an error that shows both.
    pub fn all_to_all_v<'a, 'b, T: Element>(
        &self,
        input: &[T],
        sent: impl Into<Blocks<'a>>,
        output: &mut [T],
        received: impl Into<Blocks<'b>>,
    ) -> Result<()> {
        let call = Call::of::<T>(Collective::AllToAll, 0, None, 0);
        self.call_v(call, (cast_slice(input), sent.into()), (cast_slice_mut(output), received.into()))
    }

    /// [`Communicator::all_to_all_v`] that replaces each block of `buffer` by one of the same length from the rank it
    /// was for. Copies the buffer first.
    pub fn all_to_all_v_in_place<'b, T: Element>(&self, buffer: &mut [T], blocks: impl Into<Blocks<'b>>) -> Result<()> {
        let call = Call::of::<T>(Collective::AllToAll, 0, None, 0);
        self.call_v_in_place(call, cast_slice_mut(buffer), blocks.into())
    }

    /// Block r of rank `root`'s `output` becomes rank r's `input`. On the other ranks `output` must be empty and
    /// `blocks` is ignored.
    pub fn gather_v<'b, T: Element>(
        &self,
        input: &[T],
        output: &mut [T],
        blocks: impl Into<Blocks<'b>>,
        root: usize,
    ) -> Result<()> {
        let call = Call::of::<T>(Collective::Gather, 0, None, root);
        let own = [input.len()];
        let blocks = if self.rank() == root { blocks.into() } else { NONE };
        self.call_v(call, (cast_slice(input), Blocks::packed(&own)), (cast_slice_mut(output), blocks))
    }

    /// [`Communicator::gather_v`] where rank `root`'s own input already lies at its place in `buffer`; on the other
    /// ranks `buffer` is the input and `blocks` is ignored.
    pub fn gather_v_in_place<'b, T: Element>(
        &self,
        buffer: &mut [T],
        blocks: impl Into<Blocks<'b>>,
        root: usize,
    ) -> Result<()> {
        let call = Call::of::<T>(Collective::Gather, 0, None, root);
        let own = [buffer.len()];
        let blocks = if self.rank() == root { blocks.into() } else { Blocks::packed(&own) };
        self.call_v_in_place(call, cast_slice_mut(buffer), blocks)
    }

    /// `output` becomes this rank's block of rank `root`'s `input`. On the other ranks `input` must be empty and
    /// `blocks` is ignored.
    pub fn scatter_v<'b, T: Element>(
        &self,
        input: &[T],
        blocks: impl Into<Blocks<'b>>,
        output: &mut [T],
        root: usize,
    ) -> Result<()> {
        let call = Call::of::<T>(Collective::Scatter, 0, None, root);
        let own = [output.len()];
        let blocks = if self.rank() == root { blocks.into() } else { NONE };
        self.call_v(call, (cast_slice(input), blocks), (cast_slice_mut(output), Blocks::packed(&own)))
    }

    /// [`Communicator::scatter_v`] where rank `root`'s own block stays where it is in `buffer`; on the other ranks
    /// `buffer` is the output and `blocks` is ignored.
    pub fn scatter_v_in_place<'b, T: Element>(
        &self,
        buffer: &mut [T],
        blocks: impl Into<Blocks<'b>>,
        root: usize,
    ) -> Result<()> {
        let call = Call::of::<T>(Collective::Scatter, 0, None, root);
        let own = [buffer.len()];
        let blocks = if self.rank() == root { blocks.into() } else { Blocks::packed(&own) };
        self.call_v_in_place(call, cast_slice_mut(buffer), blocks)
    }
}
