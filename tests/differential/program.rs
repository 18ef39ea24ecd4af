//! One rank's part of a run: the same random steps on every rank, each checked against the reference.

use bytemuck::{cast_slice, cast_slice_mut};
use half::bf16;
use maypole::perf::operation::NamedOp;
use maypole::perf::values::Values;
use maypole::{Blocks, Call, Collective, Communicator, DataType, Order, ReduceOp, Stream};

use crate::draws::Draws;
use crate::reference::{self, Float};

/// The longest buffer of a call, bytes.
const LONGEST: usize = 8 << 20;
/// The most communicators at a time.
pub(crate) const COMMUNICATORS: usize = 5;

/// A communicator as all ranks know it, members of it or not.
pub(crate) struct Family {
    /// World ranks, in the order of the communicator.
    pub members: Vec<usize>,
    /// This rank's handle.
    pub own: Option<Communicator>,
    pub order: Order,
}

/// One rank in the middle of a run.
pub struct Program {
    me: usize,
    pub(crate) draws: Draws,
    pub(crate) families: Vec<Family>,
    streams: [Stream; 2],
    /// Steps done.
    pub steps: u64,
    /// What the present step is, for messages.
    pub step: String,
}

/// A call drawn for a communicator of `size` ranks.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    collective: Collective,
    dtype: DataType,
    op: Option<NamedOp>,
    count: usize,
    root: usize,
    seed: u64,
    in_place: bool,
}

impl Drawn {
    fn new(draws: &mut Draws, size: usize, longest: usize) -> Drawn {
        let collective = draws.collective();
        let (dtype, op) = draws.type_and_op(collective);
        let blocks = (0..size).map(|r| collective.input_blocks(r, size, 0).max(collective.output_blocks(r, size, 0)));
        let count = draws.count(longest / blocks.max().unwrap_or(1).max(1) / dtype.size());
        let (root, seed, in_place) = (draws.below(size), draws.next(), draws.chance(30));
        Drawn { collective, dtype, op, count, root, seed, in_place }
    }

    fn call(&self, rank: usize) -> Call {
        let op = self.op.map_or(ReduceOp::Sum, |op| op.reduce_op(rank, self.dtype));
        Call { collective: self.collective, dtype: self.dtype, count: self.count, op, root: self.root }
    }

    fn values(&self, size: usize) -> Values {
        Values::new(self.seed, self.dtype, self.op, size)
    }
}

impl Program {
    pub fn new(world: Communicator, seed: u64) -> Program {
        let me = world.rank();
        let members = (0..world.size()).collect();
        Program {
            me,
            draws: Draws(seed),
            families: vec![Family { members, own: Some(world), order: Order::Free }],
            streams: [(); 2].map(|()| Stream::new().expect("a stream")),
            steps: 0,
            step: String::new(),
        }
    }

    /// One random step, of this rank too if it takes part.
    pub fn step(&mut self) {
        self.steps += 1;
        let family = self.draws.below(self.families.len());
        match self.draws.below(100) {
            0..30 => self.even(family),
            30..42 => self.variable(family),
            42..50 => self.outstanding(family),
            50..58 => self.messages(family),
            58..66 => self.group(family),
            66..70 => self.persistent(family),
            70..74 => self.registered(family),
            74..80 => self.fold(family),
            80..84 => self.operands(family),
            84..88 => self.order(family),
            88..91 => self.split(family),
            91..95 => self.child(family),
            _ => self.drop_one(family),
        }
    }

    pub(crate) fn note(&mut self, what: impl std::fmt::Debug, family: usize) {
        self.step = format!("step {}: {what:?} among {:?}", self.steps, self.families[family].members);
    }

    pub(crate) fn check(&self, got: &[u8], want: &[u8], what: &str) {
        if got != want {
            let at = got.iter().zip(want).position(|(a, b)| a != b);
            panic!("{what}: {} bytes, expected {}, first difference at byte {at:?}", got.len(), want.len());
        }
    }

    /// A collective on even blocks, blocking.
    fn even(&mut self, family: usize) {
        let size = self.families[family].members.len();
        let drawn = Drawn::new(&mut self.draws, size, LONGEST);
        self.note(drawn, family);
        let Some(comm) = &self.families[family].own else { return };
        let (rank, values) = (comm.rank(), drawn.values(size));
        let Drawn { collective, dtype, count, root, .. } = drawn;
        let block = count * dtype.size();
        let inputs = collective.input_blocks(rank, size, root);
        let outputs = collective.output_blocks(rank, size, root);
        let input = reference::input(&values, dtype, rank, 0, inputs * count);
        let want = reference::even(collective, &values, dtype, (rank, size, root), count);
        if !drawn.in_place {
            let mut output = vec![0x5a; outputs * block];
            comm.call(drawn.call(rank), &input, &mut output).unwrap_or_else(|e| panic!("{e}"));
            return self.check(&output, &want, "output");
        }
        let mut buffer = vec![0x5a; inputs.max(outputs) * block];
        let inner = collective.in_place_block(rank).unwrap_or(0) * block;
        let (input_at, output_at) = match (inputs, outputs) {
            (1, o) if o > 1 => (inner, 0),
            (i, 1) if i > 1 => (0, inner),
            _ => (0, 0),
        };
        buffer[input_at..][..input.len()].copy_from_slice(&input);
        comm.call_in_place(drawn.call(rank), &mut buffer).unwrap_or_else(|e| panic!("{e}"));
        self.check(&buffer[output_at..][..want.len()], &want, "buffer");
    }

    /// A collective on blocks with counts of their own.
    fn variable(&mut self, family: usize) {
        use Collective::*;
        let size = self.families[family].members.len();
        let collective = self.draws.one_of(&[AllGather, ReduceScatter, AllToAll, Gather, Scatter]);
        let (dtype, op) = self.draws.type_and_op(collective);
        let (root, seed, longest) = (self.draws.below(size), self.draws.next(), LONGEST / 2 / dtype.size());
        // Row s: the blocks that rank s has, or that everybody has.
        let row = self.draws.counts(size, longest);
        let matrix: Vec<Vec<usize>> = match collective {
            AllToAll => (0..size).map(|_| self.draws.counts(size, longest / size)).collect(),
            _ => vec![row; size],
        };
        self.note((collective, "_v", dtype, op, root, &matrix), family);
        // Where blocks lie is each rank's own affair: from here on its own numbers.
        let own_draws = Draws(self.draws.next() ^ self.me as u64);
        let Some(comm) = &self.families[family].own else { return };
        let mut draws = own_draws;
        let rank = comm.rank();
        let values = Values::new(seed, dtype, op, size);
        let (mine, element) = (matrix[rank][rank], dtype.size());
        let every: Vec<usize> = matrix.iter().map(|row| row[rank]).collect();
        let (sent, received) = match collective {
            AllGather => (vec![mine], matrix[rank].clone()),
            ReduceScatter => (matrix[rank].clone(), vec![mine]),
            AllToAll => (matrix[rank].clone(), every),
            Gather => (vec![mine], if rank == root { matrix[rank].clone() } else { vec![] }),
            _ => (if rank == root { matrix[rank].clone() } else { vec![] }, vec![mine]),
        };
        let (sent_at, input_length) = draws.displacements(&sent);
        let (received_at, output_length) = draws.displacements(&received);
        let starts = |counts: &[usize]| -> Vec<usize> {
            counts.iter().scan(0, |next, n| Some(std::mem::replace(next, *next + n))).collect()
        };
        let mut input = vec![0x77; input_length * element];
        let whole = reference::input(&values, dtype, rank, 0, sent.iter().sum());
        for ((count, at), from) in sent.iter().zip(&sent_at).zip(starts(&sent)) {
            input[at * element..][..count * element].copy_from_slice(&whole[from * element..][..count * element]);
        }
        let mut want = vec![0x5a; output_length * element];
        for (from, (count, at)) in received.iter().zip(&received_at).enumerate() {
            // Scatter's one block is the root's.
            let from = if collective == Scatter { root } else { from };
            let first = starts(&matrix[from])[rank];
            let block = reference::block(collective, &values, dtype, (size, from), first, *count);
            want[at * element..][..count * element].copy_from_slice(&block);
        }
        let mut output = vec![0x5a; output_length * element];
        let call = Call {
            op: op.map_or(ReduceOp::Sum, |op| op.reduce_op(rank, dtype)),
            root,
            ..Call { collective, dtype, count: 0, op: ReduceOp::Sum, root }
        };
        let there = Blocks::at(&sent, &sent_at);
        let back = Blocks::at(&received, &received_at);
        comm.call_v(call, (&input, there), (&mut output, back)).unwrap_or_else(|e| panic!("{e}"));
        self.check(&output, &want, "output");
    }

    /// Several all-reduces and all-gathers outstanding, on streams, waited for in any order, a blocking call in between.
    fn outstanding(&mut self, family: usize) {
        let size = self.families[family].members.len();
        let calls: Vec<(bool, usize, u64, usize)> = (0..1 + self.draws.below(8))
            .map(|_| (self.draws.chance(50), self.draws.count(20_000), self.draws.next(), self.draws.below(3)))
            .collect();
        let order = self.draws.permutation(calls.len());
        self.note(("outstanding", &calls), family);
        let Some(comm) = &self.families[family].own else { return };
        let rank = comm.rank();
        let sum = Some(NamedOp::Sum);
        let values = |reduces: bool, seed| Values::new(seed, DataType::F32, sum.filter(|_| reduces), size);
        let inputs: Vec<Vec<f32>> = calls
            .iter()
            .map(|(reduces, count, seed, _)| {
                let mut floats = vec![0f32; *count];
                values(*reduces, *seed).input(rank, 0, cast_slice_mut(&mut floats));
                floats
            })
            .collect();
        let mut outputs: Vec<Vec<f32>> =
            calls.iter().map(|(reduces, count, ..)| vec![0.5; if *reduces { *count } else { count * size }]).collect();
        maypole::scope(|scope| {
            let mut requests: Vec<_> = calls
                .iter()
                .zip(inputs.iter().zip(&mut outputs))
                .map(|((reduces, _, _, stream), (input, output))| {
                    let start = match stream {
                        2 => comm.start(scope),
                        n => comm.start_on(&self.streams[*n], scope),
                    };
                    let request = match reduces {
                        true => start.all_reduce(input, output, ReduceOp::Sum),
                        false => start.all_gather(input, output),
                    };
                    Some(request.unwrap_or_else(|e| panic!("{e}")))
                })
                .collect();
            comm.barrier().unwrap_or_else(|e| panic!("{e}"));
            for next in order {
                let request = requests[next].take().expect("each once");
                request.wait().unwrap_or_else(|e| panic!("{e}"));
            }
        });
        for ((reduces, count, seed, _), output) in calls.iter().zip(&outputs) {
            let collective = if *reduces { Collective::AllReduce } else { Collective::AllGather };
            let values = values(*reduces, *seed);
            let want = reference::even(collective, &values, DataType::F32, (rank, size, 0), *count);
            self.check(cast_slice(output), &want, "output");
        }
    }

    /// A reduction of floats for which order matters: in canonical order exactly the fold; otherwise the same bits on
    /// all ranks.
    fn fold(&mut self, family: usize) {
        match self.draws.below(3) {
            0 => self.fold_of::<f32>(family),
            1 => self.fold_of::<f64>(family),
            _ => self.fold_of::<bf16>(family),
        }
    }

    fn fold_of<T: Float>(&mut self, family: usize) {
        use Collective::*;
        let Family { members, order, .. } = &self.families[family];
        let (size, order) = (members.len(), *order);
        let collective = self.draws.one_of(&[AllReduce, AllReduce, Reduce, ReduceScatter, Scan, ExclusiveScan]);
        let op = self.draws.one_of(&[ReduceOp::Sum, ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max]);
        let (count, root, seed) = (self.draws.count(100_000), self.draws.below(size), self.draws.next());
        self.note((collective, T::DTYPE, op, count, root, order), family);
        let Some(comm) = &self.families[family].own else { return };
        let rank = comm.rank();
        let length = if collective == ReduceScatter { count * size } else { count };
        let inputs: Vec<Vec<T>> = (0..size as u64)
            .map(|r| {
                let mut draws = Draws(seed ^ r.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                (0..length).map(|_| T::from_f64(reference::adversarial(draws.next()))).collect()
            })
            .collect();
        let outputs = collective.output_blocks(rank, size, root);
        let mut output = vec![T::from_f64(0.5); outputs * count];
        let call = Call { collective, dtype: T::DTYPE, count, op, root };
        comm.call(call, cast_slice(&inputs[rank]), cast_slice_mut(&mut output)).unwrap_or_else(|e| panic!("{e}"));
        let bits = |all: &[T]| -> Vec<u64> { all.iter().map(|x| x.bits()).collect() };
        if order == Order::Canonical && outputs > 0 {
            let of = match collective {
                Scan => rank + 1,
                ExclusiveScan => rank,
                _ => size,
            };
            let want = bits(&reference::fold(&inputs, of, op));
            let want = if collective == ReduceScatter { &want[rank * count..][..count] } else { &want };
            self.check(cast_slice(&bits(&output)), cast_slice(want), "canonical fold");
        }
        if collective == AllReduce {
            let mine = bits(&output).into_iter().fold(7, |h, x| Draws(h ^ x).next());
            let mut all = vec![0u64; size];
            comm.all_gather(&[mine], &mut all).unwrap_or_else(|e| panic!("{e}"));
            assert!(all.iter().all(|x| *x == mine), "ranks have different bits");
        }
    }

    fn order(&mut self, family: usize) {
        let order = if self.draws.chance(50) { Order::Canonical } else { Order::Free };
        self.families[family].order = order;
        if let Some(comm) = &self.families[family].own {
            comm.set_order(order);
        }
    }

    /// Divide a communicator; all parts are kept, up to a number.
    fn split(&mut self, family: usize) {
        let members = self.families[family].members.clone();
        let colors: Vec<Option<u32>> =
            members.iter().map(|_| self.draws.chance(90).then(|| self.draws.below(2) as u32)).collect();
        let keys: Vec<i64> = members.iter().map(|_| self.draws.below(3) as i64 - 1).collect();
        self.note(("split", &colors, &keys), family);
        let mine = self.families[family].own.as_ref().map(|comm| {
            let rank = comm.rank();
            comm.split(colors[rank], keys[rank]).unwrap_or_else(|e| panic!("{e}"))
        });
        let mut mine = mine.flatten();
        for color in 0..2 {
            let mut ranks: Vec<usize> = (0..members.len()).filter(|r| colors[*r] == Some(color)).collect();
            ranks.sort_by_key(|r| (keys[*r], *r));
            let members: Vec<usize> = ranks.iter().map(|r| members[*r]).collect();
            if members.is_empty() {
                continue;
            }
            let own = if members.contains(&self.me) { mine.take() } else { None };
            if let Some(comm) = &own {
                assert_eq!((comm.size(), members[comm.rank()]), (members.len(), self.me), "the child's ranks");
            }
            // A child starts with its parent's settings, not with what was set on the parent later.
            self.families.push(Family { members, own, order: Order::Free });
        }
        self.thin();
    }

    /// Leave a communicator, while others may still be at work in it.
    fn drop_one(&mut self, family: usize) {
        if family > 0 {
            self.families.remove(family);
        }
    }
}
