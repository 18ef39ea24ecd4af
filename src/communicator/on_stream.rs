//! One operation on device buffers: as in `call`, but queued on a CUDA stream.

use std::sync::Arc;

use maypole_collectives::{Element, Order, ReduceOp};
use maypole_cuda::{Commands, Context, CudaError, Stream, expect_device};
use maypole_transports::LinkError;
use maypole_transports::shm::Allocation;

use super::blocks::{Sides, Spread};
use super::build::World;
use super::{Buffers, Call, Communicator, Inner, Lengths, Work};
use crate::cuda::DeviceBuffer;
use crate::device::buffer::Home;
use crate::device::executor::Task;
use crate::device::pace::Halt;
use crate::device::plan::Ordered;
use crate::device::state::{Device, State, name};
use crate::engine::bound::Bound;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::tuner::{Needs, UNCUT};

/// How a call is queued.
#[derive(Clone, Copy)]
pub(crate) struct Queue<'a> {
    pub stream: &'a Stream,
    /// All ranks promise that their buffers are registered, see
    /// [`OnStream::registered`](crate::cuda::OnStream::registered).
    pub registered: bool,
    /// Where the input and the output, or only buffer, are known to lie.
    pub homes: [Home; 2],
}

impl<'a> Queue<'a> {
    /// On `stream`, for buffers of which only the addresses are known.
    pub fn on(stream: &'a Stream) -> Queue<'a> {
        Queue { stream, registered: false, homes: [Home::UNKNOWN; 2] }
    }
}

impl Communicator {
    /// Have this communicator work on buffers in the memory of `context`'s device. Every rank must call it, each with the
    /// context of its own device; the first call on a stream does it as well, but messages between two ranks need it
    /// before the first. Blocks until all have. A communicator is attached once; its children attach on their own.
    ///
    /// # Errors
    /// [`Error::Device`] or [`Error::System`] where some rank has no device, no memory, or cannot share it, on every rank
    /// and with the reason that this rank has; the communicator stays usable for buffers in host memory.
    /// [`Error::Argument`] if it is attached to another context already. [`Error::Failed`] as everywhere.
    pub fn attach(&self, context: &Arc<Context>) -> Result<()> {
        self.attached(Ok(context)).map(|_| ())
    }

    /// [`Communicator::attach`] to what looking for a context came to: a rank that found none tells the others why, where
    /// they would wait for it otherwise.
    ///
    /// ```no_run
    /// # let comm = maypole::Communicator::from_env()?;
    /// let context = maypole::cuda::Context::primary(0);
    /// if let Err(why) = comm.attach_found(&context) {
    ///     eprintln!("in host memory, then: {why}"); // on every rank
    /// }
    /// # Ok::<(), maypole::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Communicator::attach`].
    pub fn attach_found(&self, context: &std::result::Result<Arc<Context>, CudaError>) -> Result<()> {
        self.attached(context.as_ref().map_err(CudaError::clone)).map(|_| ())
    }

    /// A buffer of `len` elements of device memory, all zero, that the other ranks of this host can read where it lies:
    /// where an operation would copy it into staging memory it does not, if its blocks have 32 KiB or more. Every rank
    /// must call it, after [`attach`](Communicator::attach); lengths and types may differ, 0 too. Blocks until all have.
    ///
    /// # Errors
    /// As [`Communicator::alloc`], and [`Error::Argument`] if the communicator is not attached to a device.
    pub fn alloc_device<T: Element>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        self.inner.owner.check()?;
        let device = self.inner.device.get().ok_or_else(|| Error::Argument {
            rank: self.rank(),
            what: "alloc_device: the communicator is not attached to a device yet; call attach first".into(),
        })?;
        self.alloc_on(device, len)
    }

    /// The context to which this communicator is attached, if it is to one.
    pub fn attached_to(&self) -> Option<Arc<Context>> {
        self.inner.device.get().map(|device| device.context.clone())
    }

    /// This communicator's device, brought together with the others' now if it was not.
    pub(crate) fn attached(&self, context: std::result::Result<&Arc<Context>, CudaError>) -> Result<Arc<Device>> {
        let inner = &*self.inner;
        inner.owner.check()?;
        let other = |device: &Device, context: &Arc<Context>| Error::Argument {
            rank: inner.rank,
            what: format!("the communicator is attached to {:?}, but this is for {context:?}", device.context),
        };
        let known = || match (inner.device.get(), &context) {
            (Some(device), Ok(context)) if Arc::ptr_eq(&device.context, context) => Some(Ok(device.clone())),
            (Some(device), Ok(context)) => Some(Err(other(device, context))),
            (Some(_), Err(source)) => Some(Err(Error::Device { rank: inner.rank, source: source.clone() })),
            (None, _) => None,
        };
        if let Some(known) = known() {
            return known;
        }
        let _one_at_a_time = inner.attaching.lock();
        if let Some(known) = known() {
            return known;
        }
        let device = self.bring_together(context.clone())?;
        Ok(inner.device.get_or_init(|| device).clone())
    }

    /// Queue operation `call`. The buffers are addresses of device memory.
    pub(crate) fn run_on(&self, queue: Queue<'_>, mut call: Call, buffers: Buffers, lengths: Lengths) -> Result<()> {
        let Queue { stream, registered, .. } = queue;
        let device = self.attached(Ok(stream.context()))?;
        call.clear_ignored();
        let inner = &*self.inner;
        let _ticket = inner.turn(inner.number()?)?;
        // SAFETY: this thread holds the ticket to the end of the function.
        let work = unsafe { inner.work() };
        work.sequence += 1;
        let checked = inner.check(&call, lengths).and_then(|()| on_device(&device, queue, &call, buffers, lengths));
        if let Err(what) = checked {
            return inner.refused(work.sequence, what);
        }
        let state = &mut *device.state.lock();
        let Call { collective, dtype, count, op, .. } = call;
        let root = if collective.is_rooted() { call.root } else { 0 };
        state.planner.tuner.order = work.tuner.order;
        let block = count * dtype.size();
        let mut ordered = state
            .planner
            .plan(collective, root, block)
            .inspect_err(|error| inner.watch.refuse(work.sequence, error.to_string()))?;
        let uncut = device.loans.lock().all_lend(ordered.plan.algorithm, &call, block, registered);
        if uncut {
            ordered.plan = state.planner.tuner.uncut(ordered.plan);
        }
        let in_place = matches!(lengths, Lengths::InPlace { .. });
        let buffers = if in_place { inner.in_place(&call, buffers) } else { buffers };
        let alias = in_place || buffers.input == buffers.output.cast_const();
        let reduces = collective.reduces();
        let operation = Fingerprint::collective(work.sequence, collective, dtype, reduces.then_some(op), root, count)
            .run_as(ordered.plan.digest())
            .on_device()
            .in_one_round(uncut)
            .after(work.past);
        let plan = &ordered.plan;
        let bound = Bound::new(dtype, op, count, plan.schedule.pieces(), plan.slice, (buffers.input, buffers.output));
        let blocks = [
            collective.input_blocks(inner.rank, inner.size, root),
            collective.output_blocks(inner.rank, inner.size, root),
        ];
        let copied = inner.copied(&call, root, alias);
        let given = buffers.input.addr() as u64;
        let divided = (buffers.output.addr() as u64, blocks[1] * count);
        let queued = Queued { call, ordered: &ordered, bound, copied, given, blocks: Some(blocks), uncut, divided };
        inner.put_on(work, (&device, state), stream, operation, queued)
    }

    /// The same for blocks with counts of their own.
    pub(crate) fn run_v_on(
        &self,
        queue: Queue<'_>,
        mut call: Call,
        buffers: Buffers,
        lengths: Lengths,
        sides: Sides<'_>,
    ) -> Result<()> {
        let device = self.attached(Ok(queue.stream.context()))?;
        call.clear_ignored();
        let inner = &*self.inner;
        let _ticket = inner.turn(inner.number()?)?;
        // SAFETY: this thread holds the ticket to the end of the function.
        let work = unsafe { inner.work() };
        work.sequence += 1;
        let mut spread = std::mem::take(&mut work.spread);
        let outcome = self.spread_on(work, (&device, queue), call, buffers, (lengths, sides), &mut spread);
        if let Err(Error::Argument { what, .. }) = &outcome {
            inner.watch.refuse(work.sequence, what.clone());
        }
        work.spread = spread;
        outcome
    }

    fn spread_on(
        &self,
        work: &mut Work,
        (device, queue): (&Device, Queue<'_>),
        call: Call,
        buffers: Buffers,
        (lengths, sides): (Lengths, Sides<'_>),
        spread: &mut Spread,
    ) -> Result<()> {
        let inner = &*self.inner;
        inner
            .spread(&call, sides, lengths, spread)
            .and_then(|()| on_device(device, queue, &call, buffers, lengths))
            .map_err(|what| Error::Argument { rank: inner.rank, what })?;
        let state = &mut *device.state.lock();
        let Call { collective, dtype, op, .. } = call;
        let root = if collective.is_rooted() { call.root } else { 0 };
        state.planner.tuner.order = work.tuner.order;
        let all = spread.all_counts(collective);
        let total = all.map_or(0, |blocks| blocks.iter().map(|block| block.count).sum::<usize>() * dtype.size());
        let ordered = state.planner.plan_v(collective, root, total)?;
        let reduces = collective.reduces();
        let counts = all.map(|blocks| blocks.iter().map(|block| block.count));
        let operation = Fingerprint::variable(work.sequence, collective, dtype, reduces.then_some(op), root, counts)
            .run_as(ordered.plan.digest())
            .on_device()
            .after(work.past);
        let in_place = matches!(lengths, Lengths::InPlace { .. });
        let bound = spread.bind(&call, &ordered.plan, buffers);
        let (copied, given) = (spread.copied(&call, in_place), buffers.input.addr() as u64);
        let divided = match (reduces, spread.output.first()) {
            (true, Some(block)) => ((buffers.output.addr() + block.start * dtype.size()) as u64, block.count),
            _ => (0, 0),
        };
        let queued = Queued { call, ordered: &ordered, bound, copied, given, blocks: None, uncut: false, divided };
        inner.put_on(work, (device, state), queue.stream, operation, queued)
    }

    /// How a call would be run, in words.
    pub(crate) fn describe_on(&self, stream: &Stream, call: &Call, variable: Option<usize>) -> Result<String> {
        let device = self.attached(Ok(stream.context()))?;
        let inner = &*self.inner;
        let _ticket = inner.turn(inner.number()?)?;
        // SAFETY: this thread holds the ticket to the end of the function.
        let order = unsafe { inner.work() }.tuner.order;
        let state = &mut *device.state.lock();
        state.planner.tuner.order = order;
        let mut call = *call;
        call.clear_ignored();
        let root = if call.collective.is_rooted() { call.root } else { 0 };
        let bytes = call.bytes(variable.unwrap_or(call.count), 1);
        let bytes = bytes.map_err(|what| Error::Argument { rank: inner.rank, what })?;
        let mut plan = match variable {
            Some(_) => state.planner.tuner.plan_v(call.collective, root, bytes, Needs::NOTHING)?,
            None => state.planner.tuner.plan(call.collective, root, bytes, Needs::NOTHING)?,
        };
        let block = if variable.is_some() { 0 } else { bytes };
        if device.loans.lock().all_lend(plan.algorithm, &call, block, false) {
            plan = state.planner.tuner.uncut(plan);
        }
        let cut = match plan.slice {
            UNCUT => "in one round".to_string(),
            slice => format!("slices of up to {slice} bytes"),
        };
        let links = state.planner.tuner.links();
        let staging = if state.is_staged_on_device() { "device" } else { "pinned host" };
        let between = if state.courier.is_some() { ", between hosts in pinned host memory" } else { "" };
        let algorithm = plan.algorithm.name();
        Ok(format!("{algorithm} over {links}, staging in {staging} memory{between}, {cut}"))
    }

    /// Wait for what was queued on `stream`.
    pub(crate) fn synchronize_on(&self, stream: &Stream) -> Result<()> {
        self.inner.owner.check()?;
        match self.inner.device.get() {
            Some(device) => device.sentry.synchronize(name(stream)),
            None => stream.synchronize().map_err(|source| Error::Device { rank: self.rank(), source }),
        }
    }

    /// What has become of this communicator's calls on streams that have ended, without a wait for those that have not:
    /// whoever finds that a stream has passed one (by an event, say) has no result before this has returned. Blocks only
    /// where streams have been let go and the verdict is on its way.
    ///
    /// # Errors
    /// [`Error::Failed`] if the communicator has failed.
    pub fn outcome_on_streams(&self) -> Result<()> {
        self.inner.owner.check()?;
        match self.inner.device.get() {
            Some(device) => device.sentry.outcome(),
            None => match self.verdict() {
                Some(verdict) => Err(Error::Failed { rank: self.rank(), verdict }),
                None => Ok(()),
            },
        }
    }

    /// Memory of `bytes` bytes that the ranks `near` this one, on its host, share, all zero. `None` if it is alone there.
    /// Every rank of the communicator calls it.
    pub(crate) fn share_among(&self, near: &[usize], bytes: usize) -> Result<Option<Arc<Allocation>>> {
        const DOING: &str = "sharing memory for device operations";
        let inner = &*self.inner;
        let system = |e: LinkError| Error::system(format!("rank {}: {DOING}", inner.rank), e);
        let mut number = inner.allocations.lock();
        *number += 1;
        let number = *number;
        let mut lengths = vec![0; near.len()];
        lengths[0] = bytes;
        let alone = near.len() == 1;
        match &inner.world {
            World::Alone => Ok(None),
            World::Threads(threads) => {
                let memory = threads.allocation(inner.context, number, &lengths).map_err(system);
                let shared = self.unanimous(DOING, memory);
                if shared.is_err() {
                    threads.forget_allocation(inner.context, number);
                }
                shared.map(Some)
            }
            World::Processes(node) => {
                let make = || {
                    if alone || near[0] != inner.rank {
                        return Ok(None);
                    }
                    let (memory, fd) = Allocation::create(&lengths, false).map_err(system)?;
                    memory.commit(0, std::os::fd::AsFd::as_fd(&fd)).map_err(system)?;
                    node.share_fd(inner.context, number as u32, fd);
                    Ok(Some(memory))
                };
                let made = self.unanimous(DOING, make())?;
                let fetch = || match made {
                    None if !alone => {
                        let within = inner.config.connect_timeout;
                        let fd = node.fetch_fd(inner.members[near[0]], inner.context, number as u32, within)?;
                        Allocation::open(&lengths, &fd).map(Some).map_err(system)
                    }
                    made => Ok(made),
                };
                let shared = self.unanimous(DOING, fetch());
                node.unshare_fd(inner.context, number as u32);
                shared
            }
        }
    }
}

/// What is wrong with the stream, the operation or the buffers of a call on device memory, if anything.
fn on_device(
    device: &Device,
    queue: Queue<'_>,
    call: &Call,
    buffers: Buffers,
    lengths: Lengths,
) -> std::result::Result<(), String> {
    let name = call.collective.name();
    let wrong = |error: CudaError| format!("{name} on a stream: {error}");
    match call.op {
        ReduceOp::User(_) => return Err(format!("{name}: an operation of the user's own runs on host memory only")),
        ReduceOp::MinLoc(_) | ReduceOp::MaxLoc(_) => {
            return Err(format!("{name}: {} runs on host memory only", call.op.name()));
        }
        _ => {}
    }
    if queue.stream.is_capturing().map_err(wrong)? {
        return Err(wrong(CudaError::Capturing));
    }
    let (input, output) = match lengths {
        Lengths::Apart { input, output } => (input, output),
        Lengths::InPlace { buffer } => (0, buffer),
    };
    let sides = [("input", buffers.input.addr(), input), ("output", buffers.output.addr(), output)];
    for ((side, at, bytes), home) in sides.into_iter().zip(queue.homes) {
        if bytes > 0 && !home.is(&device.context) {
            let found = expect_device(&device.context, at as u64, bytes as u64);
            found.map_err(|error| format!("{name} on a stream: the {side}: {error}"))?;
        }
    }
    Ok(())
}

/// An operation that is ready to be queued.
struct Queued<'a> {
    call: Call,
    ordered: &'a Ordered,
    bound: Bound<'a>,
    /// Bytes of input that are first copied (scaled, for a pre-multiplied sum) into scratch, and where they lie before.
    copied: usize,
    given: u64,
    /// How many blocks the input and the output have, where all are of one length.
    blocks: Option<[usize; 2]>,
    /// No window has room for what it publishes: all of it must be lent.
    uncut: bool,
    /// Where the sums lie that an average divides, and how many elements they are.
    divided: (u64, usize),
}

impl Inner {
    /// Do something with the device, in this communicator's turn; `None`: it is attached to none.
    pub(crate) fn in_turn<T>(&self, with: impl FnOnce(Option<&Device>) -> Result<T>) -> Result<T> {
        self.between(|_| with(self.device.get().map(|device| &**device)))?
    }

    /// Refuse operation `sequence`.
    pub(super) fn refused<T>(&self, sequence: u64, what: String) -> Result<T> {
        self.watch.refuse(sequence, what.clone());
        Err(Error::Argument { rank: self.rank, what })
    }

    /// Refuse the operation that this would be.
    pub(super) fn refuse_next<T>(&self, what: String) -> Result<T> {
        self.refuse_as(self.number()?, what)
    }

    /// Refuse the operation that has ticket `number`.
    pub(super) fn refuse_as<T>(&self, number: u64, what: String) -> Result<T> {
        let _ticket = self.turn(number)?;
        // SAFETY: this thread holds the ticket to the end of the function.
        let work = unsafe { self.work() };
        work.sequence += 1;
        self.refused(work.sequence, what)
    }

    /// Queue an operation on a stream.
    fn put_on(
        &self,
        work: &mut Work,
        (device, state): (&Device, &mut State),
        stream: &Stream,
        operation: Fingerprint,
        mut queued: Queued<'_>,
    ) -> Result<()> {
        let refused = |source: CudaError| {
            // The others have begun it, perhaps: they are told.
            self.watch.refuse(operation.sequence, source.to_string());
            Error::Device { rank: self.rank, source }
        };
        // Whatever can be refused is done before anything is queued, and nothing is allocated while queueing.
        let steps = queued.ordered.plan.schedule.scratch() * queued.bound.stride;
        let scratch = state.scratch(device, stream, steps + queued.copied).map_err(refused)?;
        queued.bound.scratch = std::ptr::without_provenance_mut(scratch as usize);
        if queued.copied > 0 {
            queued.bound.input = std::ptr::without_provenance(scratch as usize + steps);
        }
        if let Some(blocks) = queued.blocks {
            let (algorithm, collective) = (queued.ordered.plan.algorithm, queued.call.collective);
            device.loans.lock().lend(&mut queued.bound, algorithm, collective, blocks);
        }
        if queued.uncut && !queued.ordered.is_lent(&queued.bound) {
            let what = format!(
                "{} of registered buffers: what this rank gives is not all in memory of alloc_device, or lies where the \
                 result does",
                queued.call.collective.name()
            );
            return self.refused(operation.sequence, what);
        }
        if queued.ordered.fresh {
            state.open(device, &*queued.ordered.plan.schedule).map_err(refused)?;
        }
        let _queueing = device.enter(operation.sequence);
        work.past = operation.digest();
        self.watch.enter(&operation);
        let entry = device.sentry.begin(operation, name(stream))?;
        device.note(entry.number());
        let outcome = commands_of(device, state, stream, entry.number(), &operation, queued, self.size);
        match outcome {
            Ok(()) => {
                entry.queued(Vec::new());
                Ok(())
            }
            Err(error) => Err(device.tear(entry, stream, &operation, error)),
        }
    }
}

/// Everything that an operation puts on its stream.
fn commands_of(
    device: &Device,
    state: &mut State,
    stream: &Stream,
    number: u32,
    operation: &Fingerprint,
    queued: Queued<'_>,
    size: usize,
) -> std::result::Result<(), Halt> {
    let Queued { call, ordered, bound, copied, given, divided, .. } = queued;
    let Call { collective, dtype, op, .. } = call;
    let mut commands = Commands::new(stream)?;
    device.begin(state, &mut commands, number)?;
    let reduces = collective.reduces();
    if copied > 0 {
        let copy = bound.input.addr() as u64;
        match op {
            ReduceOp::PreMulSum(factor) if reduces => {
                let count = copied / dtype.size();
                state.executor.scale(&mut commands, dtype, (copy, given), factor, count)?;
            }
            _ => state.executor.copy(&mut commands, (copy, given), copied)?,
        }
    }
    let averages = reduces && matches!(op, ReduceOp::Avg) && size > 1;
    let folds = ordered.folds(collective);
    let task = Task {
        schedule: &*ordered.plan.schedule,
        order: &ordered.order,
        turns: ordered.turns,
        bound: &bound,
        operation,
        divisor: if averages && folds { size as u64 } else { 0 },
        pairwise: state.planner.tuner.order == Order::Canonical && dtype.size() <= 2 && !dtype.is_integer(),
    };
    let done = state.executor.queue(&mut commands, &task);
    state.carry();
    done?;
    if averages && !folds && divided.1 > 0 {
        state.executor.divide(&mut commands, dtype, divided.0, (size as u64, divided.1))?;
    }
    Ok(device.end(state, commands, number)?)
}
