//! Groups: many calls made together.
//!
//! The calls of a group are collected, checked all together, and only then run: all its messages at once, and its
//! collectives beside them, in order. So no pattern of messages can deadlock within the group, however they are
//! ordered; and small all-reduces that follow each other become one, since each would spend its time waiting for the
//! same ranks.
//!
//! This file collects the calls; `group_run` checks and runs them.

use std::marker::PhantomData;

use maypole_collectives::Element;

use super::blocks::{Blocks, OwnedBlocks, OwnedSides};
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

impl std::fmt::Debug for Group<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("rank", &self.rank)
            .field("size", &self.size)
            .field("calls", &self.items.last().map_or(0, |item| item.call.0))
            .finish_non_exhaustive()
    }
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

/// Messages, each as the communicator's of the same name, whose arguments are checked when the group runs; the
/// collectives are in `src/forms`.
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

    pub(crate) fn apart<T: Element>(&mut self, call: Call, input: &'env [T], output: &'env mut [T]) {
        let lengths = Lengths::Apart { input: size_of_val(input), output: size_of_val(output) };
        let buffers = Buffers { input: input.as_ptr().cast(), output: output.as_mut_ptr().cast() };
        self.collect(Collected { call, buffers, lengths, sides: None });
    }

    pub(crate) fn in_place<T: Element>(&mut self, call: Call, buffer: &'env mut [T]) {
        let lengths = Lengths::InPlace { buffer: size_of_val(buffer) };
        let at = buffer.as_mut_ptr().cast::<u8>();
        let buffers = Buffers { input: at, output: at };
        self.collect(Collected { call, buffers, lengths, sides: None });
    }

    /// [`Group::apart`] on blocks with counts of their own.
    pub(crate) fn apart_v<T: Element>(
        &mut self,
        call: Call,
        (input, sent): (&'env [T], Blocks<'_>),
        (output, received): (&'env mut [T], Blocks<'_>),
    ) {
        let buffers = Buffers { input: input.as_ptr().cast(), output: output.as_mut_ptr().cast() };
        let lengths = Lengths::Apart { input: size_of_val(input), output: size_of_val(output) };
        let sides = OwnedSides::Apart { input: OwnedBlocks::new(sent), output: OwnedBlocks::new(received) };
        self.collect(Collected { call, buffers, lengths, sides: Some(sides) });
    }

    /// [`Group::in_place`] on blocks with counts of their own.
    pub(crate) fn in_place_v<T: Element>(&mut self, call: Call, buffer: &'env mut [T], blocks: Blocks<'_>) {
        let at = buffer.as_mut_ptr().cast::<u8>();
        let lengths = Lengths::InPlace { buffer: size_of_val(buffer) };
        let sides = OwnedSides::InPlace(OwnedBlocks::new(blocks));
        let buffers = Buffers { input: at, output: at };
        self.collect(Collected { call, buffers, lengths, sides: Some(sides) });
    }

    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    fn collect(&mut self, collected: Collected) {
        self.add(collected.call.collective.name(), [Task::Collective(collected)]);
    }

    fn add<const N: usize>(&mut self, name: &'static str, tasks: [Task; N]) {
        let number = self.items.last().map_or(1, |item| item.call.0 + 1);
        self.items.extend(tasks.map(|task| Item { call: (number, name), task }));
    }
}
