//! One operation on blocks with counts of their own: as in `call`, but for how it is bound.

use maypole_collectives::schedule::Collective;
use maypole_collectives::{ReduceOp, reduce};

use super::blocks::{Blocks, Sides};
use super::call::{Buffers, LARGE, Lengths, bind_scratch};
use super::{Call, Communicator, Inner, Work};
use crate::engine::Part;
use crate::engine::bound::{Bound, Extent, Extents};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;

/// The collectives whose blocks may have counts of their own.
pub(crate) const VARIABLE: [Collective; 5] =
    [Collective::AllGather, Collective::ReduceScatter, Collective::AllToAll, Collective::Gather, Collective::Scatter];

impl Communicator {
    /// [`Communicator::call`] with blocks that have counts of their own: all_gather, reduce_scatter, all_to_all, gather
    /// and scatter. `call.count` is ignored. `input` and `output` say where each side's blocks lie within its buffer,
    /// as many as the collective has there on this rank; pass `Blocks::packed(&[])` for none.
    ///
    /// # Errors
    /// [`Error::Argument`] for blocks that do not fit the buffers, overflow, overlap in the output or are not as many
    /// as there should be; [`Error::Failed`] where ranks disagree about a count, as everywhere.
    pub fn call_v(&self, call: Call, input: (&[u8], Blocks<'_>), output: (&mut [u8], Blocks<'_>)) -> Result<()> {
        let number = self.inner.turns.take();
        let buffers = Buffers { input: input.0.as_ptr(), output: output.0.as_mut_ptr() };
        let lengths = Lengths::Apart { input: input.0.len(), output: output.0.len() };
        // SAFETY: the slices are borrowed until this returns, and the blocks are checked against their lengths.
        unsafe { self.inner.run_v(number, call, buffers, lengths, Sides::Apart { input: input.1, output: output.1 }) }
    }

    /// [`Communicator::call_v`] in place, as [`Communicator::call_in_place`]: `blocks` are those of the larger buffer;
    /// in all-to-all, of both.
    pub fn call_v_in_place(&self, call: Call, buffer: &mut [u8], blocks: Blocks<'_>) -> Result<()> {
        let number = self.inner.turns.take();
        let buffers = Buffers { input: buffer.as_ptr(), output: buffer.as_mut_ptr() };
        let lengths = Lengths::InPlace { buffer: buffer.len() };
        // SAFETY: as above.
        unsafe { self.inner.run_v(number, call, buffers, lengths, Sides::InPlace(blocks)) }
    }
}

impl Inner {
    /// Run operation `call` on blocks with counts of their own when ticket `number` comes up.
    ///
    /// # Safety
    /// The buffers are valid for the lengths given until this returns, and nobody else writes them or reads the output.
    pub(super) unsafe fn run_v(
        &self,
        number: u64,
        call: Call,
        buffers: Buffers,
        lengths: Lengths,
        sides: Sides<'_>,
    ) -> Result<()> {
        let _ticket = self.turns.enter(number);
        // SAFETY: this thread holds the ticket to the end of the function.
        let work = unsafe { self.work() };
        work.sequence += 1;
        let checked = match VARIABLE.contains(&call.collective) {
            true => self.check_root_and_op(&call).and_then(|()| work.spread.fill(self, &call, sides, lengths)),
            false => Err(format!("{} has no form with variable counts", call.collective.name())),
        };
        if let Err(what) = checked {
            self.watch.refuse(work.sequence, what.clone());
            return Err(Error::Argument { rank: self.rank, what });
        }
        // SAFETY: the blocks lie within the buffers, by the check; the rest is the caller's promise.
        unsafe { work.collective_v(self, call, buffers, matches!(lengths, Lengths::InPlace { .. })) }
    }
}

impl Work {
    /// # Safety
    /// The blocks in `spread` lie within the buffers, which are valid and unshared until this returns.
    unsafe fn collective_v(&mut self, inner: &Inner, call: Call, buffers: Buffers, in_place: bool) -> Result<()> {
        let Call { collective, dtype, op, .. } = call;
        let root = if collective.is_rooted() { call.root } else { 0 };
        let reduces = collective.reduces();
        let all = self.spread.all_counts(collective);
        let total = all.map(|blocks| blocks.iter().map(|block| block.count).sum::<usize>() * dtype.size());
        let plan = self.tuner.plan_v(collective, root, total.unwrap_or(0)).inspect_err(|error| {
            inner.watch.refuse(self.sequence, error.to_string());
        })?;
        let counts = all.map(|blocks| blocks.iter().map(|block| block.count));
        let operation = Fingerprint::variable(self.sequence, collective, dtype, reduces.then_some(op), root, counts)
            .run_as(plan.digest())
            .after(self.past);
        self.past = operation.digest();
        inner.watch.enter(&operation);
        if self.engine.court.watch.raised() {
            return Err(self.engine.court.failed());
        }
        let ends = |blocks: &[Extent]| blocks.iter().map(Extent::end).max().unwrap_or(0) * dtype.size();
        let own = self.spread.output.first().map_or(0, |block| block.count);
        let extents = Extents { input: &self.spread.input, output: &self.spread.output, own };
        let mut bound = Bound::variable(dtype, op, extents, plan.slice, (buffers.input, buffers.output));
        bound.counted_by_pair = total.is_none();
        bound.stream_from = inner.config.stream;
        bound.large = ends(&self.spread.output) >= LARGE;
        let copies = matches!(op, ReduceOp::PreMulSum(_)) && reduces || in_place && collective == Collective::AllToAll;
        let copied = if copies { ends(&self.spread.input) } else { 0 };
        // SAFETY: the input reaches to the end of its last block.
        unsafe { bind_scratch(&mut self.engine, &plan.schedule, &mut bound, reduces, copied) };
        let part = Part { schedule: &*plan.schedule, bound: &bound, operation: &operation };
        self.engine.execute(&[part])?;
        if reduces && matches!(op, ReduceOp::Avg) {
            let block = self.spread.output[0];
            let at = buffers.output.wrapping_add(block.start * dtype.size());
            // SAFETY: the block lies within the output.
            unsafe { reduce::divide(dtype, at, inner.size as u64, block.count) };
        }
        Ok(())
    }
}
