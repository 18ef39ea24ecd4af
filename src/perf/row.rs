//! One row of the table as one rank sees it: what lies where in its buffers, what it puts in, and what must be there
//! afterwards.

use std::ops::Range;

use super::buffer::Buffer;
use super::operation::{NamedOp, Operation};
use super::values::Values;
use crate::{Call, Collective, DataType, ReduceOp};

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
    /// Elements per block.
    pub count: usize,
    /// This rank.
    pub rank: usize,
    /// World size.
    pub ranks: usize,
}

/// A rank's two buffers; in-place calls use the second.
pub struct Buffers {
    /// Input of out-of-place calls.
    pub input: Buffer,
    /// Output of out-of-place calls; input and output of in-place calls.
    pub output: Buffer,
}

/// Where expected data comes from.
#[derive(Clone, Copy)]
enum Origin {
    /// The reduction of the first so many ranks' inputs, from this element on.
    Reduced { ranks: usize, first: usize },
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

    fn block_bytes(&self) -> usize {
        self.count * self.dtype.size()
    }

    fn blocks_in(&self) -> usize {
        match self.operation {
            Operation::Collective(c) => c.input_blocks(self.rank, self.ranks, self.root),
            Operation::SendRecv => 1,
        }
    }

    fn blocks_out(&self) -> usize {
        match self.operation {
            Operation::Collective(c) => c.output_blocks(self.rank, self.ranks, self.root),
            Operation::SendRecv => 1,
        }
    }

    /// Where input and output lie in the in-place buffer, in bytes.
    fn in_place_ranges(&self) -> (Range<usize>, Range<usize>) {
        let (ins, outs, block) = (self.blocks_in(), self.blocks_out(), self.block_bytes());
        let inner = match self.operation {
            Operation::Collective(c) => c.in_place_block(self.rank).unwrap_or(0),
            Operation::SendRecv => 0,
        };
        // Only a smaller buffer is offset, and an absent one lies nowhere.
        let input_at = if 0 < ins && ins < outs { inner } else { 0 };
        let output_at = if 0 < outs && outs < ins { inner } else { 0 };
        (input_at * block..(input_at + ins) * block, output_at * block..(output_at + outs) * block)
    }

    /// Give the buffers this row's lengths, write the input, and spoil the output.
    pub fn prepare(&self, form: Form, values: &Values, buffers: &mut Buffers) {
        let block = self.block_bytes();
        match form {
            Form::OutOfPlace => {
                buffers.input.reset(self.blocks_in() * block);
                buffers.output.reset(self.blocks_out() * block);
                values.input(self.rank, 0, buffers.input.bytes_mut());
                buffers.output.bytes_mut().fill(0xa5);
            }
            Form::InPlace => {
                buffers.input.reset(0);
                buffers.output.reset(self.blocks_in().max(self.blocks_out()) * block);
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
        let block = self.block_bytes();
        let outputs: u64 = (0..self.blocks_out())
            .map(|b| self.wrong_from(self.origin(b), values, &output[b * block..(b + 1) * block]))
            .sum();
        guards + unchanged + outputs
    }

    /// Where block `block` of this rank's output comes from.
    fn origin(&self, block: usize) -> Origin {
        let (rank, ranks, mine) = (self.rank, self.ranks, self.rank * self.count);
        let Operation::Collective(collective) = self.operation else {
            return Origin::Input { of: (rank + self.ranks - 1) % self.ranks, first: 0 };
        };
        match collective {
            Collective::AllReduce | Collective::Reduce => Origin::Reduced { ranks, first: 0 },
            Collective::ReduceScatter => Origin::Reduced { ranks, first: mine },
            Collective::Scan => Origin::Reduced { ranks: rank + 1, first: 0 },
            Collective::ExclusiveScan => Origin::Reduced { ranks: rank, first: 0 },
            Collective::Broadcast => Origin::Input { of: self.root, first: 0 },
            Collective::Scatter => Origin::Input { of: self.root, first: mine },
            Collective::AllGather | Collective::Gather => Origin::Input { of: block, first: 0 },
            Collective::AllToAll => Origin::Input { of: block, first: mine },
            Collective::Barrier => Origin::Input { of: rank, first: 0 },
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
                Origin::Reduced { ranks, first } => values.reduced(ranks, first + at, expected),
                Origin::Input { of, first } => values.input(of, first + at, expected),
            }
            if expected != actual {
                wrong += expected.chunks(size).zip(actual.chunks(size)).filter(|(e, a)| e != a).count() as u64;
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests;
