//! Groups: many calls made together.
//!
//! The calls of a group are collected, checked all together, and only then run: all its messages at once, and its
//! collectives beside them, in order. So no pattern of messages can deadlock within the group, however they are ordered;
//! and small all-reduces that follow each other become one, since each would spend its time waiting for the same
//! ranks.
//!
//! # Fusing all-reduces
//!
//! The vectors are packed one behind the other, reduced by one call, and unpacked. The result is bit for bit that of
//! separate calls. For operations whose result does not depend on the order in which operands are combined (all but user
//! operations on integers, minimum and maximum on floats) that is no question. For the others it holds if every element
//! is combined in the same order whatever its place in the vector, and the longer vector takes the same order as the
//! shorter ones would have; [`Work::order`] knows. Ranks decide alike, because they decide from what their fingerprints
//! compare: type, operation and counts.

use std::marker::PhantomData;
use std::sync::Arc;

use maypole_collectives::algorithms::Algorithm;
use maypole_collectives::schedule::Collective;
use maypole_collectives::{DataType, Element, ReduceOp};

use super::blocks::{OwnedSides, Spread};
use super::call::{Buffers, Lengths};
use super::{Call, Communicator, Inner, Work};
use crate::engine::messages::{Count, Message};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;

/// The most bytes that an all-reduce may have to be fused with others, and that all of them together may have.
const SMALL: usize = 16 << 10;
const TOGETHER: usize = 64 << 10;

/// The calls of a group; see [`Communicator::group`]. `'env` is what their buffers are borrowed for.
pub struct Group<'env> {
    rank: usize,
    size: usize,
    tag: u32,
    items: Vec<Item>,
    _env: PhantomData<&'env mut &'env ()>,
}

/// One call of a group. A send_recv is two.
struct Item {
    /// The number of the call, from 1, and its name, for errors.
    call: (usize, &'static str),
    work: Task,
}

enum Task {
    Message(Message),
    Collective(Collected),
}

/// A collective with its buffers.
#[derive(Clone)]
pub(super) struct Collected {
    pub call: Call,
    pub buffers: Buffers,
    pub lengths: Lengths,
    /// Where blocks have counts of their own.
    pub sides: Option<Arc<OwnedSides>>,
}

impl Communicator {
    /// Make several calls at once: `f` says which, and they run when it has returned. Returns when all are done.
    ///
    /// All messages of the group go at the same time, so it does not matter in which order they are named: ranks that
    /// all send first and then receive do not deadlock. Collectives run beside them, in their order. Small all-reduces
    /// of one type and operation that follow each other are done as one, with the same result bit for bit; so every
    /// rank must make the same all-reduces in one group.
    ///
    /// If `f` returns an error or panics, nothing is run.
    ///
    /// ```
    /// # let comm = maypole::Communicator::threads(1)?.remove(0);
    /// let (left, right) = (comm.rank(), comm.rank()); // of a world of one
    /// let (halo, mut from_left, mut from_right) = ([1.0f32; 8], [0.0f32; 8], [0.0f32; 8]);
    /// let (mut norm, mut steps) = ([2.0f64], [3u64]);
    /// comm.group(|g| {
    ///     g.send(&halo, left);
    ///     g.send(&halo, right);
    ///     g.recv(&mut from_right, right);
    ///     g.recv(&mut from_left, left);
    ///     g.all_reduce_in_place(&mut norm, maypole::ReduceOp::Sum);
    ///     g.all_reduce_in_place(&mut steps, maypole::ReduceOp::Max);
    ///     Ok(())
    /// })?;
    /// # assert_eq!((from_left, from_right), (halo, halo));
    /// # Ok::<(), maypole::Error>(())
    /// ```
    ///
    /// # Errors
    /// The error of `f`. [`Error::Argument`] if a call is wrong, and which of them: then none is run.
    /// [`Error::Failed`] as everywhere.
    pub fn group<'env, R>(&self, f: impl FnOnce(&mut Group<'env>) -> Result<R>) -> Result<R> {
        let inner = &self.inner;
        let mut group = Group { rank: inner.rank, size: inner.size, tag: 0, items: Vec::new(), _env: PhantomData };
        let returned = f(&mut group)?;
        // SAFETY: the buffers are borrowed for 'env, which lasts longer than this call, and this returns only when
        // nothing uses them any more.
        unsafe { inner.run_group(&group.items) }?;
        Ok(returned)
    }
}

/// One method per call, each as the communicator's of the same name, whose arguments are checked when the group runs.
impl<'env> Group<'env> {
    /// See [`Communicator::send`].
    pub fn send<T: Element>(&mut self, buffer: &'env [T], to: usize) {
        let message = Message::to(buffer, to, self.tag);
        self.add("send", [Task::Message(message)]);
    }

    /// See [`Communicator::recv`].
    pub fn recv<T: Element>(&mut self, buffer: &'env mut [T], from: usize) {
        let message = Message::from(buffer, from, self.tag);
        self.add("recv", [Task::Message(message)]);
    }

    /// See [`Communicator::send_recv`].
    pub fn send_recv<T: Element>(&mut self, send: &'env [T], to: usize, recv: &'env mut [T], from: usize) {
        let (back, there) = (Message::from(recv, from, self.tag), Message::to(send, to, self.tag));
        self.add("send_recv", [Task::Message(back), Task::Message(there)]);
    }

    /// The messages that follow have this tag, until it is changed again; at first it is 0. See
    /// [`Communicator::tag`].
    pub fn tag(&mut self, tag: u32) -> &mut Self {
        self.tag = tag;
        self
    }

    /// See [`Communicator::all_reduce`].
    pub fn all_reduce<T: Element>(&mut self, input: &'env [T], output: &'env mut [T], op: ReduceOp) {
        self.apart(Call::of::<T>(Collective::AllReduce, input.len(), Some(op), 0), input, output);
    }

    /// See [`Communicator::all_reduce_in_place`].
    pub fn all_reduce_in_place<T: Element>(&mut self, buffer: &'env mut [T], op: ReduceOp) {
        self.in_place(Call::of::<T>(Collective::AllReduce, buffer.len(), Some(op), 0), buffer);
    }

    /// See [`Communicator::reduce`].
    pub fn reduce<T: Element>(&mut self, input: &'env [T], output: &'env mut [T], op: ReduceOp, root: usize) {
        self.apart(Call::of::<T>(Collective::Reduce, input.len(), Some(op), root), input, output);
    }

    /// See [`Communicator::reduce_in_place`].
    pub fn reduce_in_place<T: Element>(&mut self, buffer: &'env mut [T], op: ReduceOp, root: usize) {
        self.in_place(Call::of::<T>(Collective::Reduce, buffer.len(), Some(op), root), buffer);
    }

    /// See [`Communicator::broadcast`].
    pub fn broadcast<T: Element>(&mut self, buffer: &'env mut [T], root: usize) {
        self.in_place(Call::of::<T>(Collective::Broadcast, buffer.len(), None, root), buffer);
    }

    /// See [`Communicator::all_gather`].
    pub fn all_gather<T: Element>(&mut self, input: &'env [T], output: &'env mut [T]) {
        self.apart(Call::of::<T>(Collective::AllGather, input.len(), None, 0), input, output);
    }

    /// See [`Communicator::all_gather_in_place`].
    pub fn all_gather_in_place<T: Element>(&mut self, buffer: &'env mut [T]) {
        self.in_place(Call::of::<T>(Collective::AllGather, buffer.len() / self.size, None, 0), buffer);
    }

    /// See [`Communicator::reduce_scatter`].
    pub fn reduce_scatter<T: Element>(&mut self, input: &'env [T], output: &'env mut [T], op: ReduceOp) {
        self.apart(Call::of::<T>(Collective::ReduceScatter, output.len(), Some(op), 0), input, output);
    }

    /// See [`Communicator::reduce_scatter_in_place`].
    pub fn reduce_scatter_in_place<T: Element>(&mut self, buffer: &'env mut [T], op: ReduceOp) {
        self.in_place(Call::of::<T>(Collective::ReduceScatter, buffer.len() / self.size, Some(op), 0), buffer);
    }

    /// See [`Communicator::all_to_all`].
    pub fn all_to_all<T: Element>(&mut self, input: &'env [T], output: &'env mut [T]) {
        self.apart(Call::of::<T>(Collective::AllToAll, input.len() / self.size, None, 0), input, output);
    }

    /// See [`Communicator::all_to_all_in_place`].
    pub fn all_to_all_in_place<T: Element>(&mut self, buffer: &'env mut [T]) {
        self.in_place(Call::of::<T>(Collective::AllToAll, buffer.len() / self.size, None, 0), buffer);
    }

    /// See [`Communicator::gather`].
    pub fn gather<T: Element>(&mut self, input: &'env [T], output: &'env mut [T], root: usize) {
        self.apart(Call::of::<T>(Collective::Gather, input.len(), None, root), input, output);
    }

    /// See [`Communicator::gather_in_place`].
    pub fn gather_in_place<T: Element>(&mut self, buffer: &'env mut [T], root: usize) {
        let blocks = if self.rank == root { self.size } else { 1 };
        self.in_place(Call::of::<T>(Collective::Gather, buffer.len() / blocks, None, root), buffer);
    }

    /// See [`Communicator::scatter`].
    pub fn scatter<T: Element>(&mut self, input: &'env [T], output: &'env mut [T], root: usize) {
        self.apart(Call::of::<T>(Collective::Scatter, output.len(), None, root), input, output);
    }

    /// See [`Communicator::scatter_in_place`].
    pub fn scatter_in_place<T: Element>(&mut self, buffer: &'env mut [T], root: usize) {
        let blocks = if self.rank == root { self.size } else { 1 };
        self.in_place(Call::of::<T>(Collective::Scatter, buffer.len() / blocks, None, root), buffer);
    }

    /// See [`Communicator::scan`].
    pub fn scan<T: Element>(&mut self, input: &'env [T], output: &'env mut [T], op: ReduceOp) {
        self.apart(Call::of::<T>(Collective::Scan, input.len(), Some(op), 0), input, output);
    }

    /// See [`Communicator::scan_in_place`].
    pub fn scan_in_place<T: Element>(&mut self, buffer: &'env mut [T], op: ReduceOp) {
        self.in_place(Call::of::<T>(Collective::Scan, buffer.len(), Some(op), 0), buffer);
    }

    /// See [`Communicator::exclusive_scan`].
    pub fn exclusive_scan<T: Element>(&mut self, input: &'env [T], output: &'env mut [T], op: ReduceOp) {
        let output = if self.rank == 0 { &mut [] } else { output };
        self.apart(Call::of::<T>(Collective::ExclusiveScan, input.len(), Some(op), 0), input, output);
    }

    /// See [`Communicator::exclusive_scan_in_place`].
    pub fn exclusive_scan_in_place<T: Element>(&mut self, buffer: &'env mut [T], op: ReduceOp) {
        self.in_place(Call::of::<T>(Collective::ExclusiveScan, buffer.len(), Some(op), 0), buffer);
    }

    /// See [`Communicator::barrier`].
    pub fn barrier(&mut self) {
        let call = Call { collective: Collective::Barrier, dtype: DataType::U8, count: 0, op: ReduceOp::Sum, root: 0 };
        self.apart::<u8>(call, &[], &mut []);
    }

    fn apart<T: Element>(&mut self, call: Call, input: &'env [T], output: &'env mut [T]) {
        let lengths = Lengths::Apart { input: size_of_val(input), output: size_of_val(output) };
        let buffers = Buffers { input: input.as_ptr().cast(), output: output.as_mut_ptr().cast() };
        self.collect(Collected { call, buffers, lengths, sides: None });
    }

    fn in_place<T: Element>(&mut self, call: Call, buffer: &'env mut [T]) {
        let lengths = Lengths::InPlace { buffer: size_of_val(buffer) };
        let at = buffer.as_mut_ptr().cast::<u8>();
        let buffers = Buffers { input: at, output: at };
        self.collect(Collected { call, buffers, lengths, sides: None });
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn collect(&mut self, collected: Collected) {
        self.add(collected.call.collective.name(), [Task::Collective(collected)]);
    }

    fn add<const N: usize>(&mut self, name: &'static str, tasks: [Task; N]) {
        let number = self.items.last().map_or(1, |item| item.call.0 + 1);
        self.items.extend(tasks.map(|work| Item { call: (number, name), work }));
    }
}

/// Messages under way: they are waited for however their group ends.
struct UnderWay<'a>(&'a Inner, &'a Count);

impl UnderWay<'_> {
    fn wait(&self) -> Result<()> {
        self.0.messages.wait(self.1)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // An operation of the user's panicked. The others may wait for this rank, and it for them.
            self.0.panicked();
        }
        let _ = self.wait();
    }
}

impl Inner {
    /// # Safety
    /// The buffers of the calls are valid, and nobody else writes them or reads the outputs, until this returns.
    unsafe fn run_group(&self, items: &[Item]) -> Result<()> {
        let of = |item: &Item| match &item.work {
            Task::Message(message) => Some(*message),
            Task::Collective(_) => None,
        };
        // What is received is expected before anything is sent: it need not be stashed.
        let received = items.iter().filter_map(of).filter(|m| !m.is_sent());
        let messages: Vec<Message> = received.chain(items.iter().filter_map(of).filter(|m| m.is_sent())).collect();
        let collectives: Vec<(Collected, (usize, &str))> = items
            .iter()
            .filter_map(|item| match &item.work {
                Task::Collective(collected) => Some((collected.clone(), item.call)),
                Task::Message(_) => None,
            })
            .collect();
        if let Err(what) = self.check_group(items, &messages) {
            let what = format!("{what}; nothing of the group was run");
            self.refuse(collectives.len(), &what);
            return Err(Error::Argument { rank: self.rank, what });
        }
        let count = Count::of(messages.len());
        // SAFETY: the caller's promise; `UnderWay` waits for the count before anything is let go of.
        unsafe { self.messages.post(&messages, &count) };
        let under_way = UnderWay(self, &count);
        let mut rest = &collectives[..];
        while let [(first, named_call), ..] = rest {
            let together = self.fusible(rest);
            let (call, buffers, lengths) = (first.call, first.buffers, first.lengths);
            let done = match (together, &first.sides) {
                // SAFETY: the caller's promise.
                (1, None) => unsafe { self.run(self.turns.take(), call, buffers, lengths) },
                // SAFETY: the caller's promise.
                (1, Some(sides)) => unsafe { self.run_v(self.turns.take(), call, buffers, lengths, sides.sides()) },
                // SAFETY: the caller's promise.
                _ => unsafe { self.run_fused(&rest[..together]) },
            };
            done.map_err(|error| named(error, *named_call))?;
            rest = &rest[together..];
        }
        under_way.wait()
    }

    /// What is wrong with the calls of a group, if anything.
    fn check_group(&self, items: &[Item], messages: &[Message]) -> std::result::Result<(), String> {
        let what = |error| match error {
            Error::Argument { what, .. } => what,
            other => other.to_string(),
        };
        for item in items {
            let checked = match &item.work {
                Task::Message(message) => self.check_peers(&[*message]).map_err(what),
                Task::Collective(Collected { call, lengths, sides: Some(sides), .. }) => {
                    self.spread(call, sides.sides(), *lengths, &mut Spread::default())
                }
                Task::Collective(Collected { call, lengths, sides: None, .. }) => self.check(call, *lengths),
            };
            checked.map_err(|what: String| in_group(item.call, &what))?;
        }
        self.messages.check(messages).map_err(|error| format!("in the group, {}", what(error)))
    }

    /// Use up the numbers of `collectives` collectives, so that ranks that make the same mistake stay in step and those
    /// that do not learn of it.
    fn refuse(&self, collectives: usize, what: &str) {
        for _ in 0..collectives {
            let _ticket = self.turns.enter(self.turns.take());
            // SAFETY: this thread holds the ticket as long as it uses the work.
            let work = unsafe { self.work() };
            work.sequence += 1;
            self.watch.refuse(work.sequence, what.to_string());
        }
    }

    /// How many of these collectives, from the first, are done as one all-reduce.
    fn fusible(&self, collectives: &[(Collected, (usize, &str))]) -> usize {
        let [(Collected { call: first, .. }, _), (Collected { call: second, .. }, _), ..] = collectives else {
            return 1;
        };
        let bytes = |call: &Call| call.count * call.dtype.size();
        // None of them has variable counts: there is no such all-reduce.
        let kind = |call: &Call| {
            let fits = call.collective == Collective::AllReduce && bytes(call) <= SMALL;
            // Each rank has a factor of its own, so ranks would not know alike where it changes.
            let common = !matches!(call.op, ReduceOp::PreMulSum(_));
            (fits && common).then(|| Fingerprint::collective(0, call.collective, call.dtype, Some(call.op), 0, 0))
        };
        if kind(first).is_none() || kind(first) != kind(second) {
            return 1;
        }
        let _ticket = self.turns.enter(self.turns.take());
        // SAFETY: this thread holds the ticket to the end of the function.
        let work = unsafe { self.work() };
        let order = work.order(first, bytes(first));
        let mut total = 0;
        let fits = |(collected, _): &&(Collected, (usize, &str))| {
            let call = &collected.call;
            total += bytes(call);
            let mut same_order = |bytes| order.is_some() && work.order(call, bytes) == order;
            let same_result = is_exact(call) || same_order(bytes(call)) && same_order(total);
            kind(call) == kind(first) && total <= TOGETHER && same_result
        };
        collectives.iter().take_while(fits).count().max(1)
    }

    /// Run all-reduces of one type and operation as one.
    ///
    /// # Safety
    /// As for [`Inner::run_group`].
    unsafe fn run_fused(&self, collectives: &[(Collected, (usize, &str))]) -> Result<()> {
        let count: usize = collectives.iter().map(|(collected, _)| collected.call.count).sum();
        let call = Call { count, ..collectives[0].0.call };
        let bytes = count * call.dtype.size();
        // As words: aligned for every element type.
        let mut packed = vec![0u64; bytes.div_ceil(8)];
        let at = packed.as_mut_ptr().cast::<u8>();
        let each = || {
            collectives.iter().scan(0, |end, (collected, _)| {
                let (start, bytes) = (*end, collected.call.count * call.dtype.size());
                *end += bytes;
                Some((collected.buffers, start, bytes))
            })
        };
        for (buffers, start, bytes) in each() {
            // SAFETY: the input has as many bytes, by its check; the sum of all is the length of `packed`.
            unsafe { std::ptr::copy_nonoverlapping(buffers.input, at.add(start), bytes) };
        }
        let buffers = Buffers { input: at, output: at };
        // SAFETY: `packed` is this function's own.
        unsafe { self.run(self.turns.take(), call, buffers, Lengths::InPlace { buffer: bytes }) }?;
        for (buffers, start, bytes) in each() {
            // SAFETY: as above, for the output.
            unsafe { std::ptr::copy_nonoverlapping(at.add(start), buffers.output, bytes) };
        }
        Ok(())
    }
}

/// In which order an all-reduce combines the elements of the ranks, where it is the same for every element.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Combines {
    /// The left fold in rank order.
    InRankOrder,
    /// The tree of recursive doubling.
    Doubling,
}

impl Work {
    /// The order in which all elements of an all-reduce of `bytes` bytes are combined; `None` if it depends on an
    /// element's place in the vector.
    fn order(&mut self, call: &Call, bytes: usize) -> Option<Combines> {
        if self.fuses(call.collective, call.op, bytes) {
            return Some(Combines::InRankOrder);
        }
        match self.tuner.plan(call.collective, 0, bytes).ok()?.algorithm {
            algorithm if algorithm.is_canonical(call.collective) => Some(Combines::InRankOrder),
            Algorithm::RecursiveDoubling => Some(Combines::Doubling),
            _ => None,
        }
    }
}

/// Whether the result is the same in whatever order operands are combined.
fn is_exact(call: &Call) -> bool {
    match call.op {
        ReduceOp::User(_) => false,
        ReduceOp::Min | ReduceOp::Max => true,
        _ => call.dtype.is_integer(),
    }
}

/// `error`, saying which call of the group it is about.
fn named(error: Error, call: (usize, &str)) -> Error {
    match error {
        Error::Argument { rank, what } => Error::Argument { rank, what: in_group(call, &what) },
        other => other,
    }
}

fn in_group((number, name): (usize, &str), what: &str) -> String {
    format!("call {number} of the group ({name}): {what}")
}
