//! Groups of calls on memory by address; see [`Communicator::group`] for what a group is.

use super::RawRequest;
use crate::communicator::blocks::{Blocks, OwnedSides};
use crate::communicator::call::Buffers;
use crate::communicator::group::{Collected, Item, Task};
use crate::communicator::stream::Stream;
use crate::communicator::{Call, Communicator, Lengths};
use crate::engine::messages::Message;
use crate::error::Result;
use maypole_collectives::DataType;

/// The addresses and lengths of a call, or what is wrong with them.
type Located<Sides> = std::result::Result<(Buffers, Lengths, Sides), String>;

/// Calls that are collected, and then run or started together. Made by [`Communicator::raw_group`].
///
/// What is wrong with a call is said when the group runs, and then none of them is run. Dropping it runs nothing.
pub struct RawGroup<'c> {
    comm: &'c Communicator,
    items: Vec<Item>,
}

impl std::fmt::Debug for RawGroup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawGroup")
            .field("comm", &self.comm)
            .field("calls", &self.items.last().map_or(0, |item| item.call.0))
            .finish()
    }
}

impl Communicator {
    /// [`Communicator::group`] for memory by address.
    pub fn raw_group(&self) -> RawGroup<'_> {
        RawGroup { comm: self, items: Vec::new() }
    }
}

impl RawGroup<'_> {
    /// See [`Communicator::run_at`].
    ///
    /// # Safety
    /// The buffers are as for that, from now until the group has run, or its request is done.
    pub unsafe fn call_at(&mut self, mut call: Call, input: *const u8, output: *mut u8) {
        call.clear_ignored();
        let located = self.comm.inner.locate(&call, input, output);
        self.collect(call, located.map(|(buffers, lengths)| (buffers, lengths, None)));
    }

    /// See [`Communicator::run_v_at`]. Counts and displacements are copied.
    ///
    /// # Safety
    /// As for [`RawGroup::call_at`].
    pub unsafe fn call_v_at(&mut self, call: Call, input: (*const u8, Blocks<'_>), output: (*mut u8, Blocks<'_>)) {
        let located = self.comm.inner.locate_v(&call, input, output);
        self.collect(call, located.map(|(buffers, lengths, sides)| (buffers, lengths, Some(OwnedSides::new(sides)))));
    }

    /// See [`Communicator::send_at`].
    ///
    /// # Safety
    /// As for [`RawGroup::call_at`].
    pub unsafe fn send_at(&mut self, dtype: DataType, count: usize, data: *const u8, to: usize, tag: u32) {
        self.add("send", Task::Message(Message::sent((dtype, count), data, to, tag)));
    }

    /// See [`Communicator::recv_at`].
    ///
    /// # Safety
    /// As for [`RawGroup::call_at`].
    pub unsafe fn recv_at(&mut self, dtype: DataType, count: usize, data: *mut u8, from: usize, tag: u32) {
        self.add("recv", Task::Message(Message::received((dtype, count), data, from, tag)));
    }

    /// How many calls have been collected.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether no call has been collected.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Run the calls; returns when all are done.
    ///
    /// # Errors
    /// As [`Communicator::group`].
    pub fn run(self) -> Result<()> {
        let inner = &self.comm.inner;
        // SAFETY: whoever collected the calls promised that their buffers stay until this returns.
        unsafe { inner.run_group(&self.items) }
    }

    /// Start the calls. Collectives are queued on `stream`, or else on the communicator's own; messages are posted at
    /// once, or queued with the collectives where there is a stream.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) if a call is wrong, and which of them: then none is started.
    /// [`Error::System`](crate::Error::System) when the stream gets no thread.
    pub fn start(self, stream: Option<&Stream>) -> Result<RawRequest> {
        // SAFETY: whoever collected the calls promised that their buffers stay until the request is done.
        unsafe { self.comm.inner.start_group(self.items, stream) }.map(RawRequest::new)
    }

    fn collect(&mut self, call: Call, located: Located<Option<OwnedSides>>) {
        let name = call.collective.name();
        let task = match located {
            Ok((buffers, lengths, sides)) => Task::Collective(Collected { call, buffers, lengths, sides }),
            Err(what) => Task::Wrong(what),
        };
        self.add(name, task);
    }

    fn add(&mut self, name: &'static str, task: Task) {
        self.items.push(Item { call: (self.items.len() + 1, name), task });
    }
}
