//! Making [`persistent`](super::persistent) operations; its methods are in `src/forms`.

use maypole_collectives::Element;

use super::blocks::{Blocks, Sides};
use super::call::{Buffers, Lengths};
use super::persistent::{Memory, Persistent};
use super::{Call, Communicator};
use crate::error::Result;

/// Makes persistent operations; see [`Communicator::persistent`].
#[derive(Debug)]
pub struct Planner<'c> {
    pub(crate) comm: &'c Communicator,
}

impl Communicator {
    /// The persistent forms: `comm.persistent().all_reduce(input, output, op)` takes the buffers, checks and plans, and
    /// returns what can be started. That is local to this rank, but it waits for operations called before.
    pub fn persistent(&self) -> Planner<'_> {
        Planner { comm: self }
    }
}

impl Planner<'_> {
    /// The operation on two buffers, the second as if it had so many elements.
    pub(crate) fn apart<T: Element>(
        &self,
        call: Call,
        input: Memory<T>,
        (output, outputs): (Memory<T>, usize),
    ) -> Result<Persistent<T>> {
        let size = size_of::<T>();
        let lengths = Lengths::Apart { input: input.len() * size, output: outputs * size };
        self.make((call, lengths, None), Some(input), output)
    }

    pub(crate) fn in_place<T: Element>(&self, call: Call, buffer: Memory<T>) -> Result<Persistent<T>> {
        let lengths = Lengths::InPlace { buffer: buffer.len() * size_of::<T>() };
        self.make((call, lengths, None), None, buffer)
    }

    /// [`Planner::apart`] on blocks with counts of their own.
    pub(crate) fn apart_v<T: Element>(
        &self,
        call: Call,
        (input, sent): (Memory<T>, Blocks<'_>),
        (output, received): (Memory<T>, Blocks<'_>),
    ) -> Result<Persistent<T>> {
        let bytes = |memory: &Memory<T>| memory.len() * size_of::<T>();
        let lengths = Lengths::Apart { input: bytes(&input), output: bytes(&output) };
        let sides = Sides::Apart { input: sent, output: received };
        self.make((call, lengths, Some(sides)), Some(input), output)
    }

    /// [`Planner::in_place`] on blocks with counts of their own.
    pub(crate) fn in_place_v<T: Element>(
        &self,
        call: Call,
        buffer: Memory<T>,
        blocks: Blocks<'_>,
    ) -> Result<Persistent<T>> {
        let lengths = Lengths::InPlace { buffer: buffer.len() * size_of::<T>() };
        self.make((call, lengths, Some(Sides::InPlace(blocks))), None, buffer)
    }

    fn make<T: Element>(
        &self,
        (call, lengths, sides): (Call, Lengths, Option<Sides<'_>>),
        input: Option<Memory<T>>,
        output: Memory<T>,
    ) -> Result<Persistent<T>> {
        let inner = self.comm.inner.clone();
        let prepared = inner.prepare(call, lengths, sides)?;
        let buffers =
            Buffers { input: input.as_ref().unwrap_or(&output).address().cast_const(), output: output.address() };
        Ok(Persistent::new(inner, prepared, buffers, (input, output)))
    }
}
