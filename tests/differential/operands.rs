//! Steps of operations whose operands are several elements, and of such as do not commute.

use bytemuck::{cast_slice, cast_slice_mut};
use maypole::{Blocks, Call, Collective, DataType, ReduceOp, UserOp};

use crate::draws::Draws;
use crate::program::Program;

/// What an operation is on: so many elements at a time, in any order or in the order of the ranks.
#[derive(Clone, Copy, Debug)]
struct Shape {
    width: usize,
    commutes: bool,
}

impl Shape {
    /// One operand with another. If it commutes, polynomials modulo x^width - 1 times each other;
    /// otherwise the first element is the left's, the last the right's, and those in between are
    /// sums. Every element has its place.
    fn combine(self, a: &[u32], b: &[u32]) -> Vec<u32> {
        let width = self.width;
        if !self.commutes {
            let of = |k| match k {
                0 => a[0],
                k if k == width - 1 => b[k],
                k => a[k].wrapping_add(b[k]),
            };
            return (0..width).map(of).collect();
        }
        let mut product = vec![0u32; width];
        for (i, x) in a.iter().enumerate() {
            for (j, y) in b.iter().enumerate() {
                let to = &mut product[(i + j) % width];
                *to = to.wrapping_add(x.wrapping_mul(*y));
            }
        }
        product
    }

    fn op(&self) -> ReduceOp {
        /// # Safety
        /// As for [`maypole::UserFnWith`], with a context that is a [`Shape`].
        unsafe fn each(context: *const (), dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
            // SAFETY: the caller's promise.
            let shape = unsafe { *context.cast::<Shape>() };
            assert!(count.is_multiple_of(shape.width), "{count} elements for {shape:?}");
            // SAFETY: as above: `count` elements at each.
            let read = |at: *const u8, i: usize| unsafe { at.cast::<u32>().add(i).read_unaligned() };
            for first in (0..count).step_by(shape.width) {
                let [x, y] =
                    [a, b].map(|at| -> Vec<u32> { (first..first + shape.width).map(|i| read(at, i)).collect() });
                for (k, element) in shape.combine(&x, &y).into_iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { dst.cast::<u32>().add(first + k).write_unaligned(element) };
                }
            }
        }
        // SAFETY: `each` is as it should be, and the shape outlives the calls, which are blocking.
        let op = unsafe { UserOp::with_context(77, DataType::U32, each, std::ptr::from_ref(self).cast()) };
        let op = op.with_width(self.width as u16);
        ReduceOp::User(if self.commutes { op } else { op.not_commuting() })
    }
}

impl Program {
    /// A reduction by such an operation, on even blocks or on blocks with counts of their own.
    pub(crate) fn operands(&mut self, family: usize) {
        use Collective::*;
        let (size, order) = (self.families[family].members.len(), self.families[family].order);
        let shape = Shape { width: self.draws.one_of(&[2, 2, 3, 4, 7, 16, 50]), commutes: self.draws.chance(50) };
        let collective = self.draws.one_of(&[AllReduce, AllReduce, Reduce, ReduceScatter, Scan, ExclusiveScan]);
        let variable = collective == ReduceScatter && self.draws.chance(50);
        let (root, seed) = (self.draws.below(size), self.draws.next());
        // Of each block, in operands.
        let counts: Vec<usize> = match (collective, variable) {
            (ReduceScatter, true) => self.draws.counts(size, 100_000 / shape.width),
            (ReduceScatter, false) => vec![self.draws.count(100_000 / shape.width / size); size],
            _ => vec![self.draws.count(100_000 / shape.width)],
        };
        self.note((collective, shape, variable, root, &counts, order), family);
        let Some(comm) = &self.families[family].own else { return };
        let rank = comm.rank();
        let lengths: Vec<usize> = counts.iter().map(|count| count * shape.width).collect();
        let total: usize = lengths.iter().sum();
        let input = |r: usize| -> Vec<u32> {
            let mut draws = Draws(seed ^ (r as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            (0..total).map(|_| draws.next() as u32).collect()
        };
        let outputs = collective.output_blocks(rank, size, root);
        // This rank's part of what is reduced.
        let (start, length) = match collective {
            ReduceScatter => (lengths[..rank].iter().sum(), lengths[rank]),
            _ => (0, total * outputs),
        };
        let mut output = vec![0x5a5a_5a5a; length];
        let count = if variable { 0 } else { lengths[0] };
        let call = Call { collective, dtype: DataType::U32, count, op: shape.op(), root };
        let (mine, got) = (input(rank), cast_slice_mut(&mut output));
        let done = match variable {
            true => {
                let own = [length];
                let blocks = (Blocks::packed(&lengths), Blocks::packed(&own));
                comm.call_v(call, (cast_slice(&mine), blocks.0), (got, blocks.1))
            }
            false => comm.call(call, cast_slice(&mine), got),
        };
        done.unwrap_or_else(|e| panic!("{e}"));
        if outputs == 0 {
            return;
        }
        let of = match collective {
            Scan => rank + 1,
            ExclusiveScan => rank,
            _ => size,
        };
        let mut want = input(0)[start..][..length].to_vec();
        for r in 1..of {
            let other = &input(r)[start..][..length];
            let both = want.chunks(shape.width).zip(other.chunks(shape.width));
            want = both.flat_map(|(a, b)| shape.combine(a, b)).collect();
        }
        self.check(cast_slice(&output), cast_slice(&want), "reduction of operands");
    }
}
