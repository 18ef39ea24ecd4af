//! The least that a row must read and write: the floor that a memory's speed sets, whatever the algorithm.
//!
//! Every rank writes its own output once. What it copies there is read once, also if several ranks read the same block;
//! what it reduces, each operand is read once by one rank, and where all ranks get the result (all-reduce) each writes
//! its copy without reading it again. Staging, and reading partial results a second time, are not in it: they are what
//! an algorithm pays on top. So an all-reduce of S bytes on n ranks has the floor 2nS, and so have all-gather and
//! all-to-all of S bytes in the larger buffer, and a broadcast of S.

use serde::{Deserialize, Serialize};

use maypole_collectives::schedule::Place;

use super::{Form, Row};

/// Bytes read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes read.
    pub read: usize,
    /// Bytes written.
    pub written: usize,
}

impl Traffic {
    /// Read and written together, as a copy's speed is counted.
    pub fn total(self) -> usize {
        self.read + self.written
    }
}

impl std::ops::Add for Traffic {
    type Output = Traffic;
    fn add(self, other: Traffic) -> Traffic {
        Traffic { read: self.read + other.read, written: self.written + other.written }
    }
}

impl Row {
    /// This rank's part of the floor. Rows of one rank in place have none: nothing need move.
    pub fn traffic(&self, form: Form) -> Traffic {
        let (input, output) = (self.bytes(self.blocks_in()), self.bytes(self.blocks_out()));
        let moved = |bytes| Traffic { read: bytes, written: bytes };
        if form == Form::InPlace && self.ranks == 1 {
            return Traffic::default();
        }
        let Some(collective) = self.operation.collective() else {
            return moved(output);
        };
        let place = |rank| Place { rank, size: self.ranks, root: self.root };
        if collective.reduces() {
            // The last rank's input of an exclusive scan is in nobody's result.
            let given = (0..self.ranks).any(|rank| {
                let blocks = collective.output_blocks(rank, self.ranks, self.root);
                (0..blocks).any(|block| collective.contributions(place(rank), block).ranks.contains(&self.rank))
            });
            return Traffic { read: if given { input } else { 0 }, written: output };
        }
        // In place the block that a rank has from itself is where it belongs.
        let is_there = |block: &usize| {
            form == Form::InPlace && collective.contributions(place(self.rank), *block).ranks.start == self.rank
        };
        let counts = self.counts(self.blocks_out());
        moved((0..counts.len()).filter(|block| !is_there(block)).map(|block| counts[block] * self.dtype.size()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataType;
    use crate::perf::operation::{NamedOp, Operation};

    /// The sum over all ranks of `name`, with 100 elements of 4 bytes per block.
    fn total(name: &str, ranks: usize, form: Form) -> Traffic {
        let operation: Operation = name.parse().unwrap();
        let op = operation.reduces().then_some(NamedOp::Sum);
        (0..ranks)
            .map(|rank| {
                Row { operation, dtype: DataType::F32, op, root: 1 % ranks, count: 100, rank, ranks }.traffic(form)
            })
            .fold(Traffic::default(), |a, b| a + b)
    }

    #[test]
    fn two_ranks_read_and_write_what_the_text_says() {
        let both = |name| (total(name, 2, Form::OutOfPlace), total(name, 2, Form::InPlace));
        let t = |read, written| Traffic { read, written };
        assert_eq!(both("all_reduce"), (t(800, 800), t(800, 800)));
        assert_eq!(both("all_gather"), (t(1600, 1600), t(800, 800)));
        assert_eq!(both("all_to_all"), (t(1600, 1600), t(800, 800)));
        assert_eq!(both("broadcast"), (t(800, 800), t(400, 400)));
        assert_eq!(both("reduce"), (t(800, 400), t(800, 400)));
        assert_eq!(both("reduce_scatter"), (t(1600, 800), t(1600, 800)));
        assert_eq!(both("gather"), (t(800, 800), t(400, 400)));
        assert_eq!(both("scatter"), (t(800, 800), t(400, 400)));
        assert_eq!(both("exclusive_scan").0, t(400, 400));
        assert_eq!(both("all_gather_v"), both("all_gather"));
        assert_eq!(both("send_recv").0, t(800, 800));
        assert_eq!(both("barrier").0, t(0, 0));
    }

    #[test]
    fn one_rank_in_place_moves_nothing() {
        for operation in Operation::all().filter(|o| o.has_in_place()) {
            assert_eq!(total(operation.name(), 1, Form::InPlace), Traffic::default(), "{}", operation.name());
        }
        assert_eq!(total("all_reduce", 1, Form::OutOfPlace).total(), 800);
    }
}
