//! One case of the matrix: a collective on blocks of values that any rank can compute, and what must come of it.

use maypole::perf::operation::{NamedOp, Operation};
use maypole::perf::values::Values;
use maypole::{Call, Collective, DataType, ReduceOp};

use crate::arena::Arena;
use crate::reference;
use crate::runner::checked;
use crate::world::Rank;

/// Bytes on either side of a buffer that must stay what they were.
const GUARD: usize = 64;
const UNTOUCHED: u8 = 0xa5;

/// A collective on even blocks.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub collective: Collective,
    pub dtype: DataType,
    pub op: Option<NamedOp>,
    pub root: usize,
    pub count: usize,
    pub in_place: bool,
    /// By how many bytes the buffers are off the alignment of a device allocation.
    pub shifts: [usize; 2],
    pub seed: u64,
}

/// Every collective with each operation that it takes on `dtype`.
pub fn calls(dtype: DataType) -> impl Iterator<Item = (Collective, Option<NamedOp>)> {
    Collective::ALL.into_iter().filter(|c| *c != Collective::Barrier).flat_map(move |collective| {
        let operation = Operation::Collective(collective);
        let reductions = NamedOp::ALL.into_iter().filter(move |op| operation.takes(*op, dtype)).map(Some);
        let moves = (!collective.reduces()).then_some(None);
        reductions.filter(move |_| collective.reduces()).chain(moves).map(move |op| (collective, op))
    })
}

impl Case {
    pub fn new(collective: Collective, dtype: DataType, op: Option<NamedOp>, count: usize) -> Case {
        Case { collective, dtype, op, root: 0, count, in_place: false, shifts: [0, 0], seed: 1 }
    }

    /// The same in place, where the collective can be called so.
    pub fn in_place(self) -> Case {
        Case { in_place: true, ..self }
    }

    fn call(&self, rank: usize) -> Call {
        let op = self.op.map_or(ReduceOp::Sum, |op| op.reduce_op(rank, self.dtype));
        Call { collective: self.collective, dtype: self.dtype, count: self.count, op, root: self.root }
    }

    /// What rank `rank` of `size` gives, and what it must get.
    fn expected(&self, rank: usize, size: usize) -> [Vec<u8>; 2] {
        let values = Values::new(self.seed, self.dtype, self.op, size);
        let inputs = self.collective.input_blocks(rank, size, self.root);
        let input = reference::input(&values, self.dtype, rank, 0, inputs * self.count);
        [input, reference::even(self.collective, &values, self.dtype, (rank, size, self.root), self.count)]
    }

    /// Queue it, wait for it and compare.
    pub fn check(&self, rank: &Rank, arena: &Arena) {
        self.queue(rank, arena).compare(rank, arena);
    }

    /// Queue it: the inputs' copies, the call, the outputs' copies.
    pub fn queue(&self, rank: &Rank, arena: &Arena) -> Queued {
        let (me, size) = (rank.comm.rank(), rank.comm.size());
        let [input, want] = self.expected(me, size);
        let on = rank.comm.on(&rank.stream);
        let half = arena.bytes() / 2;
        let what = format!("{self:?} on rank {me} of {size}");
        let queued = |at, want| Queued { what: what.clone(), at, want };
        let refused = |error| -> ! { panic!("{what}: {error}") };
        if self.in_place {
            let block = self.count * self.dtype.size();
            let inputs = self.collective.input_blocks(me, size, self.root);
            let outputs = self.collective.output_blocks(me, size, self.root);
            let own = self.collective.in_place_block(me).unwrap_or(0);
            let (at_in, at_out) = match (inputs, outputs) {
                (1, o) if o > 1 => (own, 0),
                (i, 1) if i > 1 => (0, own),
                _ => (0, 0),
            };
            let bytes = inputs.max(outputs) * block;
            let mut buffer = vec![UNTOUCHED; bytes + 2 * GUARD];
            buffer[GUARD + at_in * block..][..input.len()].copy_from_slice(&input);
            let at = self.shifts[0];
            arena.put(&rank.stream, at, &buffer);
            on.call_in_place(self.call(me), arena.output(at + GUARD, bytes)).unwrap_or_else(|error| refused(error));
            // Of what lies beside the output only the guards are fixed.
            let mut expected: Vec<Option<u8>> = vec![None; bytes + 2 * GUARD];
            expected[..GUARD].fill(Some(UNTOUCHED));
            expected[GUARD + bytes..].fill(Some(UNTOUCHED));
            let there = expected[GUARD + at_out * block..].iter_mut();
            there.zip(&want).for_each(|(slot, byte)| *slot = Some(*byte));
            arena.fetch(&rank.stream, at, expected.len());
            return queued(at, expected);
        }
        let (from, to) = (self.shifts[0], half + self.shifts[1]);
        arena.put(&rank.stream, from, &input);
        arena.put(&rank.stream, to, &vec![UNTOUCHED; want.len() + 2 * GUARD]);
        on.call(self.call(me), arena.input(from, input.len()), arena.output(to + GUARD, want.len()))
            .unwrap_or_else(|error| refused(error));
        let guard = [Some(UNTOUCHED); GUARD];
        let expected = [&guard[..], &want.into_iter().map(Some).collect::<Vec<_>>(), &guard].concat();
        arena.fetch(&rank.stream, to, expected.len());
        queued(to, expected)
    }
}

/// A case on its way.
pub struct Queued {
    what: String,
    at: usize,
    want: Vec<Option<u8>>,
}

impl Queued {
    /// Wait for it and compare.
    pub fn compare(&self, rank: &Rank, arena: &Arena) {
        rank.comm.on(&rank.stream).synchronize().unwrap_or_else(|error| panic!("{}: {error}", self.what));
        rank.stream.synchronize().expect("the stream has no error");
        let got = arena.fetched(self.at, self.want.len());
        let wrong = got.iter().zip(&self.want).position(|(got, want)| want.is_some_and(|want| want != *got));
        if let Some(at) = wrong {
            let last = self.want.len() - GUARD;
            let place = match at {
                _ if at < GUARD => format!("the guard, {} bytes before the output", GUARD - at),
                _ if at >= last => format!("the guard, {} bytes behind the output", at - last),
                _ => format!("byte {} of {}", at - GUARD, last - GUARD),
            };
            let wrongs =
                got.iter().zip(&self.want).filter(|(got, want)| want.is_some_and(|want| want != **got)).count();
            let want = self.want[at].expect("compared");
            panic!("{}: {place} is {:#04x}, not {want:#04x}; {wrongs} bytes are wrong", self.what, got[at]);
        }
        checked(1);
    }
}
