//! Registered device buffers as operations see them: publications that lend in place of copying. As
//! [`crate::engine::loans`], which says when; here the reader's kernel finds the lender's memory in a table.

use maypole_collectives::algorithms::Algorithm;
use maypole_collectives::schedule::Collective;

use crate::engine::bound::Bound;
use crate::engine::loans::{LEND_FROM, Loan};

/// This rank's part of an allocation.
struct Part {
    /// The allocation's place in everybody's tables.
    number: usize,
    address: u64,
    bytes: usize,
}

/// This rank's registered memory.
#[derive(Default)]
pub(crate) struct Loans {
    parts: Vec<Part>,
}

impl Loans {
    /// From now on the `bytes` bytes at `address` can be lent, as allocation `number`.
    pub fn add(&mut self, number: usize, address: u64, bytes: usize) {
        self.parts.push(Part { number, address, bytes });
    }

    /// Allocation `number` is no more.
    pub fn remove(&mut self, number: usize) {
        self.parts.retain(|part| part.number != number);
    }

    fn locate(&self, at: u64, bytes: usize) -> Option<Loan> {
        self.parts.iter().find_map(|part| {
            let offset = at.checked_sub(part.address)?;
            let inside = offset as usize + bytes <= part.bytes;
            inside.then_some(Loan { allocation: part.number as u64, offset, first: 0 })
        })
    }

    /// As [`Links::lend`](crate::engine::links::Links::lend).
    pub fn lend(&self, bound: &mut Bound<'_>, algorithm: Algorithm, collective: Collective, blocks: [usize; 2]) {
        let block = bound.block();
        if self.parts.is_empty() || block < LEND_FROM || !algorithm.one_sided() {
            return;
        }
        let buffers = [bound.input, bound.output.cast_const()].map(<*const u8>::addr);
        let ends = [0, 1].map(|side| buffers[side] + blocks[side] * block);
        let in_place = buffers[0] < ends[1] && buffers[1] < ends[0];
        if in_place && !algorithm.lends_in_place(collective) {
            return;
        }
        let locate = |side: usize| match blocks[side] {
            0 => None,
            count => self.locate(buffers[side] as u64, count * block),
        };
        bound.loans = [locate(0), locate(1)];
    }
}
