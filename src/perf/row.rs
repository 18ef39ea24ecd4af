//! One row of the table as one rank sees it: what lies where in its buffers, what it puts in, and what must be there
//! afterwards.

use std::ops::Range;

use maypole_collectives::schedule::Place;

use super::buffer::Buffer;
use super::cuda::Gpu;
use super::operation::{NamedOp, Operation};
use super::values::Values;
use crate::{Call, Collective, DataType, ReduceOp, Result};

/// Whether input and output are one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Two buffers.
    OutOfPlace,
    /// One buffer, the smaller of the two inside the larger at NCCL's offset.
    InPlace,
}

/// A row on one rank.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What is called.
    pub operation: Operation,
    /// Element type.
    pub dtype: DataType,
    /// Reduction operation; `None` where data only moves.
    pub op: Option<NamedOp>,
    /// The root; 0 where there is none.
    pub root: usize,
    /// Elements per block; on average, where blocks are uneven.
    pub count: usize,
    /// This rank.
    pub rank: usize,
    /// World size.
    pub ranks: usize,
}

/// A rank's two buffers; in-place calls use the second.
#[derive(Debug)]
pub struct Buffers {
    /// Input of out-of-place calls.
    pub input: Buffer,
    /// Output of out-of-place calls; input and output of in-place calls.
    pub output: Buffer,
}

impl Buffers {
    /// Carry both to the device, if that is where they are.
    pub fn upload(&mut self, gpu: Option<&Gpu>) -> Result<()> {
        gpu.map_or(Ok(()), |gpu| self.input.upload(gpu).and_then(|()| self.output.upload(gpu)))
    }

    /// Whether other ranks can read both where they lie, in the device's memory.
    pub fn are_shared(&self) -> bool {
        self.input.is_shared() && self.output.is_shared()
    }

    /// Carry both back.
    pub fn download(&mut self, gpu: Option<&Gpu>) -> Result<()> {
        gpu.map_or(Ok(()), |gpu| self.input.download(gpu).and_then(|()| self.output.download(gpu)))
    }
}

/// Where expected data comes from.
#[derive(Clone, Copy)]
enum Origin {
    /// The reduction of the inputs of the first `of` ranks, from this element on.
    Reduced { of: usize, first: usize },
    /// A rank's input, from this element on.
    Input { of: usize, first: usize },
}

impl Row {
    /// The call, for collectives.
    pub fn call(&self, collective: Collective) -> Call {
        Call {
            collective,
            dtype: self.dtype,
            count: self.count,
            op: self.op.map_or(ReduceOp::Sum, |op| op.reduce_op(self.rank, self.dtype)),
            root: self.root,
        }
    }

    fn blocks_in(&self) -> usize {
        self.operation.collective().map_or(1, |c| c.input_blocks(self.rank, self.ranks, self.root))
    }

    fn blocks_out(&self) -> usize {
        self.operation.collective().map_or(1, |c| c.output_blocks(self.rank, self.ranks, self.root))
    }

    /// The counts of the `blocks` blocks on one side: all, this rank's own, or none.
    fn counts(&self, blocks: usize) -> Vec<usize> {
        let count = |block| self.operation.block(self.rank, block, self.count, self.ranks).1;
        match blocks {
            0 | 1 if self.ranks > 1 => vec![count(self.rank); blocks],
            _ => (0..blocks).map(count).collect(),
        }
    }

    /// The counts of this rank's blocks of input and of output.
    pub fn both_counts(&self) -> (Vec<usize>, Vec<usize>) {
        (self.counts(self.blocks_in()), self.counts(self.blocks_out()))
    }

    fn bytes(&self, blocks: usize) -> usize {
        self.counts(blocks).iter().sum::<usize>() * self.dtype.size()
    }

    /// Where input and output lie in the in-place buffer, in bytes.
    fn in_place_ranges(&self) -> (Range<usize>, Range<usize>) {
        let (ins, outs) = (self.blocks_in(), self.blocks_out());
        let inner = match self.operation.collective().and_then(|c| c.in_place_block(self.rank)) {
            Some(block) => self.operation.block(self.rank, block, self.count, self.ranks).0 * self.dtype.size(),
            None => 0,
        };
        // Only a smaller buffer is offset, and an absent one lies nowhere.
        let input_at = if 0 < ins && ins < outs { inner } else { 0 };
        let output_at = if 0 < outs && outs < ins { inner } else { 0 };
        (input_at..input_at + self.bytes(ins), output_at..output_at + self.bytes(outs))
    }

    /// Give the buffers this row's lengths, write the input, and spoil the output.
    pub fn prepare(&self, form: Form, values: &Values, buffers: &mut Buffers) {
        let (input, output) = (self.bytes(self.blocks_in()), self.bytes(self.blocks_out()));
        match form {
            Form::OutOfPlace => {
                buffers.input.reset(input);
                buffers.output.reset(output);
                values.input(self.rank, 0, buffers.input.bytes_mut());
                buffers.output.bytes_mut().fill(0xa5);
            }
            Form::InPlace => {
                buffers.input.reset(0);
                buffers.output.reset(input.max(output));
                buffers.output.bytes_mut().fill(0xa5);
                let (input, _) = self.in_place_ranges();
                values.input(self.rank, 0, &mut buffers.output.bytes_mut()[input]);
            }
        }
    }

    /// How many elements are wrong after the call: of the output, of an input that had to stay as it was, and guard
    /// bytes.
    pub fn wrong(&self, form: Form, values: &Values, buffers: &Buffers) -> u64 {
        let guards = buffers.input.trespasses() + buffers.output.trespasses();
        let untouched = |bytes: &[u8]| self.wrong_from(Origin::Input { of: self.rank, first: 0 }, values, bytes);
        let (output, unchanged) = match form {
            Form::OutOfPlace => (buffers.output.bytes(), untouched(buffers.input.bytes())),
            Form::InPlace => {
                let bytes = buffers.output.bytes();
                let (input, output) = self.in_place_ranges();
                // With no output on this rank, its input stays.
                let unchanged = if output.is_empty() { untouched(&bytes[input]) } else { 0 };
                (&bytes[output], unchanged)
            }
        };
        let mut at = 0;
        let counts = self.counts(self.blocks_out()).into_iter().enumerate();
        let outputs: u64 = counts
            .map(|(block, count)| {
                let bytes = count * self.dtype.size();
                at += bytes;
                self.wrong_from(self.origin(block), values, &output[at - bytes..at])
            })
            .sum();
        guards + unchanged + outputs
    }

    /// Where block `block` of this rank's output comes from.
    fn origin(&self, block: usize) -> Origin {
        let rank = self.rank;
        let Some(collective) = self.operation.collective() else {
            return Origin::Input { of: (rank + self.ranks - 1) % self.ranks, first: 0 };
        };
        let place = Place { rank, size: self.ranks, root: self.root };
        let from = collective.contributions(place, block);
        // Where that block starts in the input of a rank that gives it.
        let first = |owner| self.operation.block(owner, from.block, self.count, self.ranks).0;
        match collective.reduces() {
            true => Origin::Reduced { of: from.ranks.end, first: first(rank) },
            false => Origin::Input { of: from.ranks.start, first: first(from.ranks.start) },
        }
    }

    /// Elements of `actual` that differ from what they should be. Compared a batch at a time, so that the expected
    /// values never leave the first cache level.
    fn wrong_from(&self, origin: Origin, values: &Values, actual: &[u8]) -> u64 {
        let size = self.dtype.size();
        let mut expected = [0; 4096];
        let mut wrong = 0;
        for (batch, actual) in actual.chunks(expected.len()).enumerate() {
            let expected = &mut expected[..actual.len()];
            let at = batch * 4096 / size;
            match origin {
                Origin::Reduced { of, first } => values.reduced(of, first + at, expected),
                Origin::Input { of, first } => values.input(of, first + at, expected),
            }
            if expected != actual {
                wrong += expected.chunks(size).zip(actual.chunks(size)).filter(|(e, a)| e != a).count() as u64;
            }
        }
        wrong
    }
}

mod traffic;
pub use traffic::Traffic;

#[cfg(test)]
mod tests;
