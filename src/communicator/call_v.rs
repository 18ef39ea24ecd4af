//! One operation on blocks with counts of their own: as in `call`, but for how it is bound.

use maypole_collectives::schedule::Collective;
use maypole_collectives::{ReduceOp, reduce};

use super::blocks::{Blocks, Sides, Spread};
use super::call::{Buffers, LARGE, Lengths, bind_scratch};
use super::{Call, Communicator, Inner, Work};
use crate::engine::Part;
use crate::engine::bound::{Bound, Extent, Extents};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::tuner::Plan;

impl Communicator {
    /// [`Communicator::call`] with blocks that have counts of their own: all_gather, reduce_scatter, all_to_all, gather
    /// and scatter. `call.count` is ignored. `input` and `output` say where each side's blocks lie within its buffer,
    /// as many as the collective has there on this rank; pass `Blocks::packed(&[])` for none.
    ///
    /// # Errors
    /// [`Error::Argument`] for blocks that do not fit the buffers, overflow, overlap in the output or are not as many
    /// as there should be; [`Error::Failed`] where ranks disagree about a count, as everywhere.
    pub fn call_v(&self, call: Call, input: (&[u8], Blocks<'_>), output: (&mut [u8], Blocks<'_>)) -> Result<()> {
        let number = self.inner.number()?;
        let buffers = Buffers { input: input.0.as_ptr(), output: output.0.as_mut_ptr() };
        let lengths = Lengths::Apart { input: input.0.len(), output: output.0.len() };
        // SAFETY: the slices are borrowed until this returns, and the blocks are checked against their lengths.
        unsafe { self.inner.run_v(number, call, buffers, lengths, Sides::Apart { input: input.1, output: output.1 }) }
    }

    /// [`Communicator::call_v`] in place, as [`Communicator::call_in_place`]: `blocks` are those of the larger buffer;
    /// in all-to-all, of both.
    pub fn call_v_in_place(&self, call: Call, buffer: &mut [u8], blocks: Blocks<'_>) -> Result<()> {
        let number = self.inner.number()?;
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
        mut call: Call,
        buffers: Buffers,
        lengths: Lengths,
        sides: Sides<'_>,
    ) -> Result<()> {
        call.clear_ignored();
        self.operation(number, &call, |work| {
            let mut spread = std::mem::take(&mut work.spread);
            let outcome = match self.spread(&call, sides, lengths, &mut spread) {
                Ok(()) => work.plan_v(&call, &spread).and_then(|plan| {
                    let in_place = matches!(lengths, Lengths::InPlace { .. });
                    // SAFETY: the blocks lie within the buffers, by the check; the rest is the caller's promise.
                    unsafe { work.collective_v(self, (call, &plan, &spread), buffers, in_place) }
                }),
                Err(what) => Err(Error::Argument { rank: self.rank, what }),
            };
            if let Err(Error::Argument { what, .. }) = &outcome {
                self.watch.refuse(work.sequence, what.clone());
            }
            work.spread = spread;
            outcome
        })
    }

    /// Check a call with variable counts and write its blocks out.
    pub(super) fn spread(
        &self,
        call: &Call,
        sides: Sides<'_>,
        lengths: Lengths,
        spread: &mut Spread,
    ) -> std::result::Result<(), String> {
        if !call.collective.has_counts() {
            return Err(format!("{} has no form with variable counts", call.collective.name()));
        }
        self.check_root_and_op(call)?;
        spread.fill(self, call, sides, lengths)?;
        let mut counts = spread.input.iter().map(|block| block.count);
        match counts.find(|count| !call.op.divides(*count)) {
            Some(count) if call.collective.reduces() => Err(self.torn(call, count)),
            _ => Ok(()),
        }
    }
}

impl Work {
    /// The plan of a call with variable counts that has been checked.
    ///
    /// # Errors
    /// As [`Work::way`].
    pub(super) fn plan_v(&mut self, call: &Call, spread: &Spread) -> Result<Plan> {
        let root = if call.collective.is_rooted() { call.root } else { 0 };
        let all = spread.all_counts(call.collective);
        let total = all.map_or(0, |blocks| blocks.iter().map(|block| block.count).sum::<usize>() * call.dtype.size());
        self.tuner.plan_v(call.collective, root, total, call.needs())
    }

    /// # Safety
    /// The blocks in `spread` lie within the buffers, which are valid and unshared until this returns.
    pub(super) unsafe fn collective_v(
        &mut self,
        inner: &Inner,
        (call, plan, spread): (Call, &Plan, &Spread),
        buffers: Buffers,
        in_place: bool,
    ) -> Result<()> {
        let Call { collective, dtype, op, .. } = call;
        let root = if collective.is_rooted() { call.root } else { 0 };
        let reduces = collective.reduces();
        let counts = spread.all_counts(collective).map(|blocks| blocks.iter().map(|block| block.count));
        let operation = Fingerprint::variable(self.sequence, collective, dtype, reduces.then_some(op), root, counts)
            .run_as(plan.digest())
            .after(self.past);
        self.past = operation.digest();
        inner.watch.enter(&operation);
        if self.engine.court.watch.is_over() {
            return Err(self.engine.court.failed());
        }
        let mut bound = spread.bind(&call, plan, buffers);
        bound.stream_from = inner.config.stream;
        // SAFETY: the input reaches to the end of its last block.
        unsafe {
            let copied = spread.copied(&call, in_place);
            bind_scratch(&mut self.engine, &plan.schedule, &mut bound, reduces, copied);
        }
        self.tuner.fresh.drain(..).for_each(|schedule| self.engine.links.expect(&*schedule));
        let part = Part { schedule: &*plan.schedule, bound: &bound, operation: &operation };
        self.engine.execute(&part)?;
        if reduces && matches!(op, ReduceOp::Avg) {
            let block = spread.output[0];
            let at = buffers.output.wrapping_add(block.start * dtype.size());
            // SAFETY: the block lies within the output.
            unsafe { reduce::divide(dtype, at, inner.size as u64, block.count) };
        }
        Ok(())
    }
}

impl Spread {
    /// The blocks of a call bound to its buffers, but for scratch.
    pub(super) fn bind(&self, call: &Call, plan: &Plan, buffers: Buffers) -> Bound<'_> {
        let own = self.output.first().map_or(0, |block| block.count);
        let extents = Extents { input: &self.input, output: &self.output, own };
        let mut bound = Bound::variable(call.dtype, call.op, extents, plan.slice, (buffers.input, buffers.output));
        bound.counted_by_pair = self.all_counts(call.collective).is_none();
        bound.large = end(&self.output) * call.dtype.size() >= LARGE;
        bound
    }

    /// Bytes of input that are copied before the operation starts, as [`Inner::copied`].
    pub(super) fn copied(&self, call: &Call, in_place: bool) -> usize {
        let copies = matches!(call.op, ReduceOp::PreMulSum(_)) && call.collective.reduces()
            || in_place && call.collective == Collective::AllToAll;
        if copies { end(&self.input) * call.dtype.size() } else { 0 }
    }
}

/// Elements up to the end of the last block.
fn end(blocks: &[Extent]) -> usize {
    blocks.iter().map(Extent::end).max().unwrap_or(0)
}
