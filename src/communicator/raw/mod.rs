//! Calls on memory by address: what bindings to other languages stand on.
//!
//! The typed methods borrow slices, and asynchronous ones a [`scope`](crate::scope) that outlives them. A caller from
//! another language has addresses and promises; here they are taken as such, and the promises are the `# Safety` of each
//! call. Below that there is nothing new: both ways end in the same functions, and a rank that makes a call by address
//! and one that makes it by type make the same call.
//!
//! * This file: blocking and asynchronous collectives and messages.
//! * `request`: [`RawRequest`], what an asynchronous call returns. `group`: [`RawGroup`]. `persistent`:
//!   [`RawPersistent`]. `on_stream`: calls on a CUDA stream, on buffers in whichever memory.
//!
//! An asynchronous call gives a request that owns no buffer, so nothing ends when the request is forgotten: the
//! communicator and the buffers must then stay as long as the process.

mod group;
mod on_stream;
mod persistent;
mod request;

use maypole_collectives::DataType;
use maypole_collectives::schedule::Collective;

pub use self::group::RawGroup;
pub use self::persistent::RawPersistent;
pub use self::request::RawRequest;
use super::blocks::{Blocks, OwnedSides, Sides};
use super::call::{Buffers, Lengths};
use super::stream::Stream;
use super::{Call, Communicator, Inner};
use crate::engine::messages::Message;
use crate::error::{Error, Result};

/// What a [`UserFn`](maypole_collectives::UserFn) panics with (`std::panic::panic_any`, or `resume_unwind`, which prints
/// nothing) to say that it has failed, and why. The communicator is then aborted with these words on every rank.
#[derive(Clone, Debug)]
pub struct CallbackFailed(pub String);

impl Communicator {
    /// [`Communicator::call`] on memory by address. Blocks until this rank's part is done.
    ///
    /// `input` has as many blocks of `call.count` elements as the collective takes on this rank
    /// ([`Collective::input_blocks`]) and `output` as many as it gives ([`Collective::output_blocks`]). Where there are
    /// none, or `call.count` is 0, the address may be null. In place: the smaller buffer lies inside the larger at this
    /// rank's block ([`Collective::in_place_block`]), or both addresses are the same where they are equally long.
    ///
    /// # Errors
    /// As [`Communicator::call`]. [`Error::Argument`] also for an address that is null and for buffers that overlap in
    /// another way than in place.
    ///
    /// # Safety
    /// `input` is readable and `output` writable for these blocks, in host memory, and nobody else writes them or reads
    /// the output until this returns.
    #[inline]
    pub unsafe fn run_at(&self, call: Call, input: *const u8, output: *mut u8) -> Result<()> {
        let inner = &*self.inner;
        match inner.locate(&call, input, output) {
            Ok((buffers, lengths)) => {
                // SAFETY: the lengths are those that the caller promised.
                unsafe { inner.run(inner.number()?, call, buffers, lengths) }
            }
            Err(what) => inner.refuse_next(what),
        }
    }

    /// Start [`Communicator::run_at`] and return. It runs in the order of the calls, on `stream`, behind what is queued
    /// there, or else on the communicator's own stream.
    ///
    /// # Errors
    /// [`Error::Argument`] for addresses, as in [`Communicator::run_at`]: nothing was started. [`Error::System`] when
    /// the stream gets no thread. What else is wrong with the arguments, the request says.
    ///
    /// # Safety
    /// As for [`Communicator::run_at`], until the request is done.
    pub unsafe fn start_at(
        &self,
        call: Call,
        input: *const u8,
        output: *mut u8,
        stream: Option<&Stream>,
    ) -> Result<RawRequest> {
        let inner = &self.inner;
        match inner.locate(&call, input, output) {
            Ok((buffers, lengths)) => {
                // SAFETY: the lengths are those that the caller promised.
                let run = move |inner: &Inner, number| unsafe { inner.run(number, call, buffers, lengths) };
                inner.start(stream, 1, move |inner, numbers| run(inner, numbers.start)).map(RawRequest::new)
            }
            Err(what) => inner.refuse_in_turn(stream, what),
        }
    }

    /// [`Communicator::call_v`] on memory by address. Buffers reach to the end of their last block. In place, where both
    /// addresses are the same, both sides of an all-to-all must have the same blocks; in the other collectives the
    /// smaller buffer lies at this rank's block of the larger.
    ///
    /// # Errors
    /// As [`Communicator::call_v`] and [`Communicator::run_at`].
    ///
    /// # Safety
    /// As for [`Communicator::run_at`], for the blocks given.
    pub unsafe fn run_v_at(
        &self,
        call: Call,
        input: (*const u8, Blocks<'_>),
        output: (*mut u8, Blocks<'_>),
    ) -> Result<()> {
        let inner = &*self.inner;
        match inner.locate_v(&call, input, output) {
            Ok((buffers, lengths, sides)) => {
                // SAFETY: the lengths are those that the caller promised.
                unsafe { inner.run_v(inner.number()?, call, buffers, lengths, sides) }
            }
            Err(what) => inner.refuse_next(what),
        }
    }

    /// Start [`Communicator::run_v_at`], as [`Communicator::start_at`]. Counts and displacements are copied.
    ///
    /// # Errors
    /// As [`Communicator::start_at`].
    ///
    /// # Safety
    /// As for [`Communicator::run_v_at`], until the request is done.
    pub unsafe fn start_v_at(
        &self,
        call: Call,
        input: (*const u8, Blocks<'_>),
        output: (*mut u8, Blocks<'_>),
        stream: Option<&Stream>,
    ) -> Result<RawRequest> {
        let inner = &self.inner;
        match inner.locate_v(&call, input, output) {
            Ok((buffers, lengths, sides)) => {
                let sides = OwnedSides::new(sides);
                // SAFETY: the lengths are those that the caller promised.
                let run =
                    move |inner: &Inner, number| unsafe { inner.run_v(number, call, buffers, lengths, sides.sides()) };
                inner.start(stream, 1, move |inner, numbers| run(inner, numbers.start)).map(RawRequest::new)
            }
            Err(what) => inner.refuse_in_turn(stream, what),
        }
    }

    /// [`Communicator::send`] from memory by address: `count` elements at `data`, with a tag
    /// ([`Communicator::tag`]).
    ///
    /// # Errors
    /// As [`Communicator::send`], and [`Error::Argument`] for a null address.
    ///
    /// # Safety
    /// `data` is readable for the elements, in host memory, and nobody writes them, until this returns.
    pub unsafe fn send_at(&self, dtype: DataType, count: usize, data: *const u8, to: usize, tag: u32) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.run_message(Message::sent((dtype, count), data, to, tag)) }
    }

    /// [`Communicator::recv`] into memory by address.
    ///
    /// # Errors
    /// As [`Communicator::send_at`].
    ///
    /// # Safety
    /// `data` is writable for the elements, in host memory, and nobody else touches them, until this returns.
    pub unsafe fn recv_at(&self, dtype: DataType, count: usize, data: *mut u8, from: usize, tag: u32) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.run_message(Message::received((dtype, count), data, from, tag)) }
    }

    /// [`Communicator::recv_any`] into memory by address, of messages with a tag.
    ///
    /// # Errors
    /// As [`Communicator::recv_any`], and [`Error::Argument`] for a null address.
    ///
    /// # Safety
    /// As for [`Communicator::recv_at`].
    pub unsafe fn recv_any_at(&self, dtype: DataType, count: usize, data: *mut u8, tag: u32) -> Result<usize> {
        let message = Message::from_anyone((dtype, count), data, tag);
        self.inner.check_peers(&[message])?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.messages.run_from_anyone(message) }
    }

    /// Start [`Communicator::recv_any_at`]: the message is expected from now on.
    /// [`RawRequest::source`] says who has sent it.
    ///
    /// # Errors
    /// [`Error::Argument`] for a null address: nothing was started.
    ///
    /// # Safety
    /// As for [`Communicator::recv_at`], until the request is done.
    pub unsafe fn start_recv_any_at(
        &self,
        dtype: DataType,
        count: usize,
        data: *mut u8,
        tag: u32,
    ) -> Result<RawRequest> {
        // SAFETY: the caller's promise.
        unsafe { self.start_checked(Message::from_anyone((dtype, count), data, tag), None) }
    }

    /// Start [`Communicator::send_at`]: the message is posted at once, or queued on `stream`.
    ///
    /// # Errors
    /// As [`Communicator::send_at`]: nothing was started.
    ///
    /// # Safety
    /// As for [`Communicator::send_at`], until the request is done.
    pub unsafe fn start_send_at(
        &self,
        dtype: DataType,
        count: usize,
        data: *const u8,
        to: usize,
        tag: u32,
        stream: Option<&Stream>,
    ) -> Result<RawRequest> {
        // SAFETY: the caller's promise.
        unsafe { self.start_checked(Message::sent((dtype, count), data, to, tag), stream) }
    }

    /// Start [`Communicator::recv_at`]: the message is expected from now on, or from when `stream` comes to it.
    ///
    /// # Errors
    /// As [`Communicator::send_at`]: nothing was started.
    ///
    /// # Safety
    /// As for [`Communicator::recv_at`], until the request is done.
    pub unsafe fn start_recv_at(
        &self,
        dtype: DataType,
        count: usize,
        data: *mut u8,
        from: usize,
        tag: u32,
        stream: Option<&Stream>,
    ) -> Result<RawRequest> {
        // SAFETY: the caller's promise.
        unsafe { self.start_checked(Message::received((dtype, count), data, from, tag), stream) }
    }

    /// # Safety
    /// The message's buffer stays valid until the request is done.
    unsafe fn start_checked(&self, message: Message, stream: Option<&Stream>) -> Result<RawRequest> {
        let inner = &self.inner;
        inner.check_peers(&[message])?;
        // SAFETY: the caller's promise.
        Ok(RawRequest::new(unsafe { inner.start_message(message, stream, drop) }))
    }
}

impl Inner {
    /// Refuse the operation that this would be when its turn comes, so that ranks that wait for it are told; here now.
    #[cold]
    fn refuse_in_turn<T>(self: &std::sync::Arc<Self>, stream: Option<&Stream>, what: String) -> Result<T> {
        let error = Error::Argument { rank: self.rank, what: what.clone() };
        self.start(stream, 1, move |inner, numbers| inner.refuse_as(numbers.start, what))?;
        Err(error)
    }

    /// The buffers of a call and their lengths, which follow from it. The error says what is wrong with the addresses.
    #[inline]
    pub(super) fn locate(
        &self,
        call: &Call,
        input: *const u8,
        output: *mut u8,
    ) -> std::result::Result<(Buffers, Lengths), String> {
        let mut call = *call;
        call.clear_ignored();
        let Call { collective, dtype, count, root, .. } = call;
        let (rank, size) = (self.rank, self.size);
        // A root that is no rank is refused with the other arguments, later.
        let root = if collective.is_rooted() { root.min(size - 1) } else { 0 };
        let blocks = [collective.input_blocks(rank, size, root), collective.output_blocks(rank, size, root)];
        let (inputs, outputs) = (call.bytes(count, blocks[0])?, call.bytes(count, blocks[1])?);
        let block = collective.in_place_block(rank).unwrap_or(0) * count * dtype.size();
        let (from, to) = (input.addr(), output.addr());
        let in_place = match blocks[0].cmp(&blocks[1]) {
            std::cmp::Ordering::Greater => to == from + block,
            std::cmp::Ordering::Less => from == to + block,
            std::cmp::Ordering::Equal => from == to,
        };
        self.check_addresses(collective.name(), (from, inputs), (to, outputs), in_place)?;
        let buffers = Buffers::at(input, output);
        match in_place && collective == Collective::AllToAll {
            true => Ok((buffers, Lengths::InPlace { buffer: outputs })),
            false => Ok((buffers, Lengths::Apart { input: inputs, output: outputs })),
        }
    }

    /// The same for blocks with counts of their own.
    pub(super) fn locate_v<'b>(
        &self,
        call: &Call,
        (input, sent): (*const u8, Blocks<'b>),
        (output, received): (*mut u8, Blocks<'b>),
    ) -> std::result::Result<(Buffers, Lengths, Sides<'b>), String> {
        let (name, size) = (call.collective.name(), call.dtype.size());
        let length = |side: &str, blocks: Blocks<'_>| {
            let end = blocks.end().map_err(|what| format!("{name}_v: {side}: {what}"))?;
            let bytes = end.checked_mul(size).filter(|bytes| isize::try_from(*bytes).is_ok());
            bytes.ok_or_else(|| {
                format!("{name}_v: {side}: {end} elements of {} are more bytes than there are", call.dtype)
            })
        };
        let (inputs, outputs) = (length("input", sent)?, length("output", received)?);
        let same = input == output.cast_const() && inputs > 0 && outputs > 0;
        if same && call.collective == Collective::AllToAll {
            if sent.counts() != received.counts() || sent.displacements() != received.displacements() {
                return Err(format!("{name}_v: in place, the blocks of the input and of the output must be the same"));
            }
            let buffers = Buffers::at(input, output);
            return Ok((buffers, Lengths::InPlace { buffer: outputs }, Sides::InPlace(received)));
        }
        // Where the own block of the larger side begins. Whether there is one is checked with the blocks, later.
        let own = |blocks: Blocks<'_>| blocks.start(self.rank).unwrap_or(0) * size;
        let (from, to) = (input.addr(), output.addr());
        let in_place = match sent.counts().len().cmp(&received.counts().len()) {
            std::cmp::Ordering::Greater => to == from + own(sent),
            std::cmp::Ordering::Less => from == to + own(received),
            std::cmp::Ordering::Equal => from == to,
        };
        self.check_addresses(name, (from, inputs), (to, outputs), in_place)?;
        let lengths = Lengths::Apart { input: inputs, output: outputs };
        Ok((Buffers::at(input, output), lengths, Sides::Apart { input: sent, output: received }))
    }

    /// What is wrong with the addresses of two buffers of so many bytes, if anything.
    #[inline]
    fn check_addresses(
        &self,
        name: &str,
        (input, inputs): (usize, usize),
        (output, outputs): (usize, usize),
        in_place: bool,
    ) -> std::result::Result<(), String> {
        if input == 0 && inputs > 0 {
            return Err(format!("{name}: the input is NULL, but rank {} has {inputs} bytes there", self.rank));
        }
        if output == 0 && outputs > 0 {
            return Err(format!("{name}: the output is NULL, but rank {} has {outputs} bytes there", self.rank));
        }
        let apart = input.saturating_add(inputs) <= output || output.saturating_add(outputs) <= input;
        if inputs > 0 && outputs > 0 && !apart && !in_place {
            return Err(format!(
                "{name}: the input ({inputs} bytes at {input:#x}) and the output ({outputs} bytes at {output:#x}) \
                 overlap, but not as in place: then the smaller lies at this rank's block of the larger, and equal ones \
                 at the same address"
            ));
        }
        Ok(())
    }

    /// # Safety
    /// The message's buffer stays valid until this returns.
    unsafe fn run_message(&self, message: Message) -> Result<()> {
        self.check_peers(&[message])?;
        // SAFETY: the caller's promise.
        unsafe { self.messages.run(&[message]) }
    }
}
