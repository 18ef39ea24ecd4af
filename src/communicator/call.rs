//! One operation: its arguments checked, its plan chosen, its schedule run.

use std::ptr::NonNull;
use std::sync::Arc;

use maypole_collectives::schedule::{Buffer, Collective, Schedule};
use maypole_collectives::{DataType, ReduceOp, reduce};

use super::{Communicator, Inner, Work};
use crate::engine::bound::Bound;
use crate::engine::{Engine, Part};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::tuner::{Needs, Plan};

/// What a dynamically typed call asks for; see [`Communicator::call`].
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Which collective.
    pub collective: Collective,
    /// Element type.
    pub dtype: DataType,
    /// Elements per block; ignored by a barrier, which has no blocks.
    pub count: usize,
    /// The operation, for collectives that reduce; ignored by the others.
    pub op: ReduceOp,
    /// The root, for collectives that have one; ignored by the others.
    pub root: usize,
}

/// The buffers of a call, as this rank's schedule sees them. Equal or one inside the other where the call is in place.
#[derive(Clone, Copy)]
pub(crate) struct Buffers {
    pub input: *const u8,
    pub output: *mut u8,
}

impl Buffers {
    /// Buffers at addresses that may be null where there is nothing: an empty slice, too, needs one that is not.
    pub fn at(input: *const u8, output: *mut u8) -> Buffers {
        let input = if input.is_null() { NonNull::<u64>::dangling().cast().as_ptr() } else { input.cast_mut() };
        let output = if output.is_null() { NonNull::<u64>::dangling().cast().as_ptr() } else { output };
        Buffers { input, output }
    }
}

impl Call {
    /// Forget what the collective ignores, though it would be multiplied, or say how blocks are
    /// cut.
    #[inline]
    pub(super) fn clear_ignored(&mut self) {
        if self.collective == Collective::Barrier {
            self.count = 0;
        }
        if !self.collective.reduces() {
            self.op = ReduceOp::Sum;
        }
    }

    /// What its operation asks of its plan. Of a call without what it ignores.
    #[inline]
    pub(super) fn needs(&self) -> Needs {
        Needs::of(self.op, self.dtype)
    }

    /// How many bytes `elements` elements in each of `blocks` blocks are. The error says that no memory is as large.
    #[inline]
    pub(super) fn bytes(&self, elements: usize, blocks: usize) -> std::result::Result<usize, String> {
        let bytes = elements.checked_mul(self.dtype.size()).and_then(|block| block.checked_mul(blocks));
        bytes.filter(|bytes| isize::try_from(*bytes).is_ok()).ok_or_else(|| {
            let (name, dtype) = (self.collective.name(), self.dtype);
            format!("{name}: {elements} elements of {dtype} are more bytes than there are")
        })
    }
}

// SAFETY: plain addresses. Whoever makes a `Buffers` sees to it that they stay valid, and unshared, until the operation
// is done.
unsafe impl Send for Buffers {}

impl Communicator {
    /// The collectives as one dynamically typed call; [`Communicator::all_reduce`] and the others are this with types.
    ///
    /// `input` has as many blocks of `call.count` elements as the collective takes on this rank
    /// ([`Collective::input_blocks`]) and `output` as many as it gives ([`Collective::output_blocks`]), as bytes;
    /// either is empty where there are none. Blocks until this rank's part is done.
    ///
    /// # Errors
    /// [`Error::Argument`] for buffers of other lengths, a root that is no rank, or an operation that the type does not
    /// have: nothing was started, and ranks that wait for this one are told. [`Error::Failed`] with the verdict that
    /// all ranks get.
    pub fn call(&self, call: Call, input: &[u8], output: &mut [u8]) -> Result<()> {
        let number = self.inner.number()?;
        let buffers = Buffers { input: input.as_ptr(), output: output.as_mut_ptr() };
        let lengths = Lengths::Apart { input: input.len(), output: output.len() };
        // SAFETY: the slices are borrowed until this returns, and their lengths are checked before they are used.
        unsafe { self.inner.run(number, call, buffers, lengths) }
    }

    /// [`Communicator::call`] in place: `buffer` is the larger of this rank's input and output, and the smaller lies
    /// inside it, at this rank's block ([`Collective::in_place_block`], as in NCCL). All-to-all replaces every block.
    pub fn call_in_place(&self, call: Call, buffer: &mut [u8]) -> Result<()> {
        let number = self.inner.number()?;
        let buffers = Buffers { input: buffer.as_ptr(), output: buffer.as_mut_ptr() };
        // SAFETY: as above.
        unsafe { self.inner.run(number, call, buffers, Lengths::InPlace { buffer: buffer.len() }) }
    }
}

impl Communicator {
    /// Refuse the operation that would come next, as [`Communicator::call`] does with arguments that make no sense: for
    /// callers that find fault with something before they can make a call of it. Ranks that wait for this one in that
    /// operation are told `what`; this rank's buffers are untouched. Returns the error. Waits for the operations before.
    pub fn refuse(&self, what: String) -> Error {
        match self.inner.refuse_next::<()>(what) {
            Err(error) => error,
            Ok(()) => unreachable!("a refusal is an error"),
        }
    }

    /// How `call` would be run, in words: the algorithm, the links, the longest slice. `variable`: elements of all
    /// blocks, where they have counts of their own.
    ///
    /// # Errors
    /// [`Error::Argument`] where the settings ask for an algorithm that cannot run here.
    pub fn describe(&self, call: &Call, variable: Option<usize>) -> Result<String> {
        let _ticket = self.inner.turn(self.inner.number()?)?;
        // SAFETY: this thread holds the ticket to the end of the function.
        let work = unsafe { self.inner.work() };
        let mut call = *call;
        call.clear_ignored();
        let root = if call.collective.is_rooted() { call.root } else { 0 };
        let bytes = call.bytes(variable.unwrap_or(call.count), 1);
        let bytes = bytes.map_err(|what| Error::Argument { rank: self.rank(), what })?;
        let plan = match variable {
            Some(_) => work.tuner.plan_v(call.collective, root, bytes, call.needs())?,
            None if work.fuses(call.collective, call.op, bytes) => return Ok("one exchange over shared memory".into()),
            None => work.tuner.plan(call.collective, root, bytes, call.needs())?,
        };
        Ok(format!("{} over {}, slices of up to {} bytes", plan.algorithm.name(), work.tuner.links(), plan.slice))
    }
}

/// Outputs from this many bytes are stored around the caches where they are only copied: fetching each of their lines
/// from memory first would cost more than the caches give.
pub(super) const LARGE: usize = 4 << 20;

/// The lengths of what the caller passed, in bytes.
#[derive(Clone, Copy)]
pub(crate) enum Lengths {
    Apart { input: usize, output: usize },
    InPlace { buffer: usize },
}

/// How a call is run.
pub(super) enum Way {
    /// By one exchange over shared memory.
    Fused,
    /// By a schedule.
    Planned(Plan),
}

impl Inner {
    /// What only the holder of the present ticket may touch.
    ///
    /// # Safety
    /// The caller holds the ticket for as long as it uses what this returns, and asks once.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn work(&self) -> &mut Work {
        // SAFETY: tickets are served one at a time, each after the one before was dropped, with release and acquire in
        // between.
        unsafe { &mut *self.work.get() }
    }

    /// Run operation `call` when ticket `number` comes up.
    ///
    /// # Safety
    /// The buffers are valid for the lengths given until this returns, and nobody else writes them or reads the output.
    pub(super) unsafe fn run(&self, number: u64, mut call: Call, buffers: Buffers, lengths: Lengths) -> Result<()> {
        call.clear_ignored();
        self.operation(number, &call, |work| {
            if let Err(what) = self.check(&call, lengths) {
                self.watch.refuse(work.sequence, what.clone());
                return Err(Error::Argument { rank: self.rank, what });
            }
            let way = work.way(&call).inspect_err(|error| self.watch.refuse(work.sequence, error.to_string()))?;
            // SAFETY: the lengths are right, by the check; the rest is the caller's promise.
            unsafe { work.collective(self, (call, &way), buffers, matches!(lengths, Lengths::InPlace { .. })) }
        })
    }

    /// Bytes of input that are copied before the operation starts: those that must be scaled, or that the operation
    /// would overwrite while they are needed.
    pub(super) fn copied(&self, call: &Call, root: usize, in_place: bool) -> usize {
        let Call { collective, dtype, count, op, .. } = *call;
        let copies = matches!(op, ReduceOp::PreMulSum(_)) && collective.reduces()
            || in_place && collective == Collective::AllToAll;
        if copies { collective.input_blocks(self.rank, self.size, root) * count * dtype.size() } else { 0 }
    }

    /// What is wrong with a call's root or operation, if anything.
    #[inline]
    pub(super) fn check_root_and_op(&self, call: &Call) -> std::result::Result<(), String> {
        let Call { collective, op, .. } = *call;
        let rootless = collective.is_rooted() && call.root >= self.size;
        let undefined = collective.reduces() && !op.supports(call.dtype);
        let unscannable = collective.is_scan() && matches!(op, ReduceOp::Avg);
        if rootless || undefined || unscannable {
            Err(self.wrong_root_or_op(call, rootless, undefined))
        } else {
            Ok(())
        }
    }

    #[cold]
    fn wrong_root_or_op(&self, call: &Call, rootless: bool, undefined: bool) -> String {
        let (name, size) = (call.collective.name(), self.size);
        if rootless {
            return format!("{name}: the root is {}, but the ranks are 0 to {}", call.root, size - 1);
        }
        if undefined {
            let why = match call.op {
                ReduceOp::User(op) => format!("it was made for {}", op.dtype()),
                ReduceOp::MinLoc(pair) | ReduceOp::MaxLoc(pair) => {
                    format!("pairs {pair} are two elements of {} each", pair.dtype())
                }
                _ => "bitwise operations need an integer type".to_string(),
            };
            return format!("{name}: {} is not defined on {}; {why}", call.op.name(), call.dtype);
        }
        format!("{name}: avg is not defined for it; take the sum and divide as you need")
    }

    /// What is wrong with a call's arguments, if anything.
    #[inline]
    pub(super) fn check(&self, call: &Call, lengths: Lengths) -> std::result::Result<(), String> {
        self.check_root_and_op(call)?;
        if !call.op.divides(call.count) && call.collective.reduces() {
            return Err(self.torn(call, call.count));
        }
        let root = if call.collective.is_rooted() { call.root } else { 0 };
        let inputs = call.collective.input_blocks(self.rank, self.size, root);
        let outputs = call.collective.output_blocks(self.rank, self.size, root);
        let block = call.count.checked_mul(call.dtype.size());
        let are = |bytes: usize, blocks: usize| block.and_then(|block| block.checked_mul(blocks)) == Some(bytes);
        match lengths {
            Lengths::Apart { input, output } if are(input, inputs) && are(output, outputs) => Ok(()),
            Lengths::InPlace { buffer } if are(buffer, inputs.max(outputs)) => Ok(()),
            _ => Err(self.wrong_lengths(call, lengths, inputs, outputs)),
        }
    }

    /// A block of `count` elements would end within an operand.
    #[cold]
    pub(super) fn torn(&self, call: &Call, count: usize) -> String {
        let Call { collective, dtype, op, .. } = *call;
        let (name, width) = (collective.name(), op.width());
        let what = match op {
            ReduceOp::MinLoc(pair) | ReduceOp::MaxLoc(pair) => format!("a pair {pair} is {width} of them"),
            _ => format!("the operation combines {width} at a time"),
        };
        format!("{name}: a block of {count} elements of {dtype} is not a whole number of operands: {what}")
    }

    #[cold]
    fn wrong_lengths(&self, call: &Call, lengths: Lengths, inputs: usize, outputs: usize) -> String {
        let Call { collective, dtype, count, .. } = *call;
        let expected = |blocks: usize| call.bytes(count, blocks).ok();
        let (what, got, blocks) = match lengths {
            Lengths::Apart { input, .. } if expected(inputs) != Some(input) => ("input", input, inputs),
            Lengths::Apart { output, .. } => ("output", output, outputs),
            Lengths::InPlace { buffer } => ("buffer", buffer, inputs.max(outputs)),
        };
        let want = expected(blocks).map_or("more bytes than there are".to_string(), |bytes| format!("{bytes} bytes"));
        let (name, rank, size) = (collective.name(), self.rank, self.size);
        format!(
            "{name}: the {what} has {got} bytes, but {blocks} x {count} elements of {dtype} on rank {rank} of {size} are {want}"
        )
    }

    /// Input and output within the one buffer of an in-place call.
    pub(super) fn in_place(&self, call: &Call, buffers: Buffers) -> Buffers {
        let (rank, size) = (self.rank, self.size);
        let offset = call.collective.in_place_block(rank).unwrap_or(0) * call.count * call.dtype.size();
        let inputs = call.collective.input_blocks(rank, size, call.root);
        let outputs = call.collective.output_blocks(rank, size, call.root);
        match (inputs, outputs) {
            (i, o) if i > 1 && o == 1 => Buffers { output: buffers.output.wrapping_add(offset), ..buffers },
            (i, o) if i == 1 && o > 1 => Buffers { input: buffers.input.wrapping_add(offset), ..buffers },
            _ => buffers,
        }
    }
}

impl Work {
    /// How a call that has been checked is run.
    ///
    /// # Errors
    /// [`Error::Argument`] where the settings ask for an algorithm that cannot run here.
    pub(super) fn way(&mut self, call: &Call) -> Result<Way> {
        let bytes = call.count * call.dtype.size();
        if self.fuses(call.collective, call.op, bytes) {
            return Ok(Way::Fused);
        }
        let root = if call.collective.is_rooted() { call.root } else { 0 };
        self.tuner.plan(call.collective, root, bytes, call.needs()).map(Way::Planned)
    }

    /// Run a call in the way that [`Work::way`] said, as operation number `sequence`.
    ///
    /// # Safety
    /// The buffers have the blocks that the collective asks for, and are valid and unshared until this returns.
    pub(super) unsafe fn collective(
        &mut self,
        inner: &Inner,
        (call, way): (Call, &Way),
        buffers: Buffers,
        in_place: bool,
    ) -> Result<()> {
        let Call { collective, dtype, count, op, .. } = call;
        let root = if collective.is_rooted() { call.root } else { 0 };
        let reduces = collective.reduces();
        let buffers = if in_place { inner.in_place(&call, buffers) } else { buffers };
        let plan = match way {
            Way::Fused => None,
            Way::Planned(plan) => Some(plan),
        };
        let operation = Fingerprint::collective(self.sequence, collective, dtype, reduces.then_some(op), root, count)
            .run_as(plan.map_or(0, Plan::digest))
            .after(self.past);
        let digest = operation.digest();
        self.past = digest;
        inner.watch.enter(&operation);
        let court = &self.engine.court;
        if court.watch.is_over() {
            return Err(court.failed());
        }
        let done = if let Some(plan) = plan {
            let copied = inner.copied(&call, root, in_place);
            // SAFETY: the caller's promise.
            unsafe { self.schedule(inner, (plan, &operation), call, root, buffers, copied) }
        } else {
            match collective {
                Collective::Barrier => self.engine.small_barrier((&operation, digest)),
                // SAFETY: the caller's promise; it fits, by `fuses`.
                _ => unsafe {
                    self.engine.small_all_reduce(
                        (&operation, digest),
                        (dtype, op),
                        count,
                        (buffers.input, buffers.output),
                    )
                },
            }
        };
        done?;
        if reduces && matches!(op, ReduceOp::Avg) {
            let outputs = collective.output_blocks(inner.rank, inner.size, root);
            // SAFETY: this rank's output has `outputs` blocks.
            unsafe { reduce::divide(dtype, buffers.output, inner.size as u64, outputs * count) };
        }
        Ok(())
    }

    /// Whether the operation takes the hand-fused path.
    pub(super) fn fuses(&self, collective: Collective, op: ReduceOp, bytes: usize) -> bool {
        match collective {
            Collective::AllReduce => {
                self.tuner.fits_exchange(bytes)
                    && !matches!(op, ReduceOp::PreMulSum(_))
                    && self.tuner.may_fuse(collective)
            }
            Collective::Barrier => self.tuner.may_fuse(collective),
            _ => false,
        }
    }

    /// Run the planned schedule. `copied`: bytes of input that are first copied (scaled, for a pre-multiplied sum) into
    /// scratch.
    ///
    /// # Safety
    /// As for [`Work::collective`].
    unsafe fn schedule(
        &mut self,
        inner: &Inner,
        (plan, operation): (&Plan, &Fingerprint),
        call: Call,
        root: usize,
        buffers: Buffers,
        copied: usize,
    ) -> Result<()> {
        let Call { collective, dtype, count, op, .. } = call;
        let outputs = collective.output_blocks(inner.rank, inner.size, root);
        let pieces = plan.schedule.pieces();
        let mut bound = Bound::new(dtype, op, count, pieces, plan.slice, (buffers.input, buffers.output));
        bound.stream_from = inner.config.stream;
        bound.large = outputs * count * dtype.size() >= LARGE;
        debug_assert!(bound.slice(Buffer::Input, 0, 0).1 <= bound.stride);
        // SAFETY: passed on to the caller.
        unsafe { bind_scratch(&mut self.engine, &plan.schedule, &mut bound, collective.reduces(), copied) };
        let inputs = collective.input_blocks(inner.rank, inner.size, root);
        self.engine.links.lend(&mut bound, plan.algorithm, collective, [inputs, outputs]);
        self.tuner.fresh.drain(..).for_each(|schedule| self.engine.links.expect(&*schedule));
        let part = Part { schedule: &*plan.schedule, bound: &bound, operation };
        let outcome = self.engine.execute(&part);
        if outcome.is_err() && bound.lends() {
            self.engine.links.loans.take_back(inner.rank);
        }
        outcome
    }
}

/// Give a bound call its scratch memory, and first copy there (scaled, for a pre-multiplied sum) the `copied` first
/// bytes of the input, which then stands in for it.
///
/// # Safety
/// The input is readable for `copied` bytes.
pub(super) unsafe fn bind_scratch(
    engine: &mut Engine,
    schedule: &Arc<dyn Schedule>,
    bound: &mut Bound<'_>,
    reduces: bool,
    copied: usize,
) {
    let steps = bound.scratch_of(&**schedule);
    if steps + copied > 0 {
        bound.use_scratch(&**schedule, engine.scratch(steps + copied));
    }
    if copied == 0 {
        return;
    }
    let copy = bound.scratch.wrapping_add(steps);
    // SAFETY: scratch has room for `copied` bytes after the steps'; the input has as many.
    unsafe {
        match bound.op {
            ReduceOp::PreMulSum(factor) if reduces => {
                reduce::scale(bound.dtype, copy, bound.input, factor, copied / bound.dtype.size());
            }
            _ => std::ptr::copy_nonoverlapping(bound.input, copy, copied),
        }
    }
    bound.input = copy;
}
