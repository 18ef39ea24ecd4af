//! Groups: many calls made together.
//!
//! The calls of a group are collected, checked all together, and only then run: all its messages at once, and its
//! collectives beside them, in order. So no pattern of messages can deadlock within the group, however they are
//! ordered; and small all-reduces that follow each other become one, since each would spend its time waiting for the
//! same ranks.
//!
//! This file collects the calls, `group_v` those with variable counts; `group_run` checks and runs them.

use std::marker::PhantomData;

use maypole_collectives::schedule::Collective;
use maypole_collectives::{DataType, Element, ReduceOp};

use super::blocks::OwnedSides;
use super::call::{Buffers, Lengths};
use super::{Call, Communicator};
use crate::engine::messages::Message;
use crate::error::Result;

/// The calls of a group; see [`Communicator::group`]. `'env` is what their buffers are borrowed for.
pub struct Group<'env> {
    rank: usize,
    size: usize,
    tag: u32,
    items: Vec<Item>,
    _env: PhantomData<&'env mut &'env ()>,
}

/// One call of a group. A send_recv is two.
pub(super) struct Item {
    /// The number of the call, from 1, and its name, for errors.
    pub call: (usize, &'static str),
    pub task: Task,
}

pub(super) enum Task {
    Message(Message),
    Collective(Collected),
    /// A collective whose addresses are wrong, and how.
    Wrong(String),
}

/// A collective with its buffers.
pub(super) struct Collected {
    pub call: Call,
    pub buffers: Buffers,
    pub lengths: Lengths,
    /// Where blocks have counts of their own.
    pub sides: Option<OwnedSides>,
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
    /// The error of `f`. [`Error::Argument`](crate::Error::Argument) if a call is wrong, and which of them: then none
    /// is run. [`Error::Failed`](crate::Error::Failed) as everywhere.
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
        self.items.extend(tasks.map(|task| Item { call: (number, name), task }));
    }
}
