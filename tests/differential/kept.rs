//! Steps with what outlives a call: persistent operations, registered memory, communicators made of others.

use bytemuck::{cast_slice, cast_slice_mut};
use maypole::perf::operation::NamedOp;
use maypole::perf::values::Values;
use maypole::{Collective, Communicator, DataType, Order, ReduceOp};

use crate::program::{COMMUNICATORS, Family, Program};
use crate::reference;

impl Program {
    /// A persistent all-reduce or all-gather, in ordinary or registered memory, started a few times, another call in
    /// between.
    pub(crate) fn persistent(&mut self, family: usize) {
        let size = self.families[family].members.len();
        let (registered, gathers) = (self.draws.chance(50), self.draws.chance(40));
        let (count, seed, starts) = (self.draws.count(200_000), self.draws.next(), 1 + self.draws.below(3));
        self.note(("persistent", registered, gathers, count, starts), family);
        let Some(comm) = &self.families[family].own else { return };
        let rank = comm.rank();
        let outputs = if gathers { count * size } else { count };
        let alloc = |len| comm.alloc::<f32>(len).unwrap_or_else(|e| panic!("{e}"));
        let made = match (gathers, registered) {
            (false, false) => comm.persistent().all_reduce(vec![0.0; count], vec![0.0; count], ReduceOp::Sum),
            (true, false) => comm.persistent().all_gather(vec![0.0; count], vec![0.0; outputs]),
            (false, true) => comm.persistent().all_reduce(alloc(count), alloc(count), ReduceOp::Sum),
            (true, true) => comm.persistent().all_gather(alloc(count), alloc(outputs)),
        };
        let mut operation = made.unwrap_or_else(|e| panic!("{e}"));
        let op = (!gathers).then_some(NamedOp::Sum);
        let collective = if gathers { Collective::AllGather } else { Collective::AllReduce };
        for start in 0..starts {
            let values = Values::new(seed + start as u64, DataType::F32, op, size);
            values.input(rank, 0, cast_slice_mut(operation.input_mut()));
            operation.start().unwrap_or_else(|e| panic!("{e}"));
            comm.barrier().unwrap_or_else(|e| panic!("{e}"));
            operation.wait().unwrap_or_else(|e| panic!("{e}"));
            let want = reference::even(collective, &values, DataType::F32, (rank, size, 0), count);
            self.check(cast_slice(operation.output()), &want, "persistent output");
        }
    }

    /// Collectives on registered memory, out of place and in place, on some ranks only, back to back.
    pub(crate) fn registered(&mut self, family: usize) {
        let size = self.families[family].members.len();
        let (count, seed, calls) = (self.draws.count(400_000), self.draws.next(), 1 + self.draws.below(4));
        let ordinary = self.draws.below(size + 1);
        self.note(("registered", count, calls, ordinary), family);
        let Some(comm) = &self.families[family].own else { return };
        let rank = comm.rank();
        let alloc = |len| comm.alloc::<i32>(len).unwrap_or_else(|e| panic!("{e}"));
        let (mut shared_input, mut shared_output) = (alloc(count), alloc(count));
        let (mut own_input, mut own_output) = (vec![0; count], vec![0; count]);
        let (input, output) = match rank == ordinary {
            true => (&mut own_input[..], &mut own_output[..]),
            false => (&mut shared_input[..], &mut shared_output[..]),
        };
        for call in 0..calls {
            let values = Values::new(seed + call as u64, DataType::I32, Some(NamedOp::Sum), size);
            let want = reference::even(Collective::AllReduce, &values, DataType::I32, (rank, size, 0), count);
            values.input(rank, 0, cast_slice_mut(input));
            comm.all_reduce(input, output, ReduceOp::Sum).unwrap_or_else(|e| panic!("{e}"));
            self.check(cast_slice(output), &want, "registered output");
            comm.all_reduce_in_place(input, ReduceOp::Sum).unwrap_or_else(|e| panic!("{e}"));
            self.check(cast_slice(input), &want, "registered buffer");
            // The root's memory is written again at once.
            let root = call % size;
            comm.broadcast(input, root).unwrap_or_else(|e| panic!("{e}"));
            self.check(cast_slice(input), &want, "registered broadcast");
            input.fill(call as i32);
        }
    }

    /// A duplicate, or a subset of the ranks in some order.
    pub(crate) fn child(&mut self, family: usize) {
        let members = self.families[family].members.clone();
        let ranks = match self.draws.chance(30) {
            true => (0..members.len()).collect(),
            false => {
                let mut ranks = self.draws.permutation(members.len());
                ranks.truncate(1 + self.draws.below(members.len()));
                ranks
            }
        };
        let duplicates = ranks.len() == members.len() && ranks.is_sorted();
        self.note(("child", &ranks), family);
        let make = |comm: &Communicator| match duplicates {
            true => comm.duplicate(),
            false => comm.subset(&ranks),
        };
        let parent = self.families[family].own.as_ref();
        let own = parent.filter(|comm| ranks.contains(&comm.rank())).map(|comm| {
            let child = make(comm).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!((child.size(), ranks[child.rank()]), (ranks.len(), comm.rank()), "the child's ranks");
            child
        });
        let members = ranks.iter().map(|rank| members[*rank]).collect();
        self.families.push(Family { members, own, order: Order::Free });
        self.thin();
    }

    /// Drop communicators while there are too many.
    pub(crate) fn thin(&mut self) {
        while self.families.len() > COMMUNICATORS {
            let victim = 1 + self.draws.below(self.families.len() - 1);
            self.families.remove(victim);
        }
    }
}
