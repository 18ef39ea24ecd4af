//! Messages between two ranks, from device memory to device memory, queued on a stream.
//!
//! Unlike messages in host memory they have no engine of their own: they are operations on a stream like the collectives,
//! in one order with them, and go over links of their own (channel [`CHANNEL`]), slot by slot. A message's fingerprint
//! stands in the header of each of its slots, so a receiver that expects another count or type writes nothing and both
//! sides are named. [`order`] says how those of a group are interleaved.

mod order;

use std::marker::PhantomData;

use maypole_collectives::{DataType, Element};
use maypole_cuda::kernels::{Job, Kernel, Source};
use maypole_cuda::{Commands, CudaError, Stream, expect_device};

use self::order::Shape;
use super::buffer::{DeviceSlice, DeviceSliceMut};
use super::courier::{End, Passage};
use super::executor::{Executor, header, link};
use super::on::OnStream;
use super::pace::Halt;
use super::sentry::Awaited;
use super::state::{Device, State, name};
use crate::Communicator;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;

/// The links that messages take, beside those of collectives.
pub(crate) const CHANNEL: usize = 2;

/// One message, as the call says it.
#[derive(Clone, Copy)]
struct Message {
    peer: usize,
    is_sent: bool,
    dtype: DataType,
    count: usize,
    /// Where the elements lie, or shall lie.
    address: u64,
    /// The number of the call in its group, from 1, and its name.
    call: (usize, &'static str),
}

impl Message {
    fn to<T: Element>(buffer: DeviceSlice<'_, T>, peer: usize) -> Message {
        Message::sent((T::DTYPE, buffer.len()), buffer.address(), peer)
    }

    fn from<T: Element>(buffer: &DeviceSliceMut<'_, T>, peer: usize) -> Message {
        Message::received((T::DTYPE, buffer.len()), buffer.address(), peer)
    }

    fn sent((dtype, count): (DataType, usize), address: u64, peer: usize) -> Message {
        Message { peer, is_sent: true, dtype, count, address, call: (1, "send") }
    }

    fn received((dtype, count): (DataType, usize), address: u64, peer: usize) -> Message {
        Message { peer, is_sent: false, dtype, count, address, call: (1, "recv") }
    }

    fn bytes(&self) -> usize {
        self.count * self.dtype.size()
    }

    /// This rank's end of its link.
    fn end(&self) -> End {
        if self.is_sent { End::to(self.peer, CHANNEL) } else { End::from(self.peer, CHANNEL) }
    }
}

/// How many messages this rank has exchanged with each other one.
pub(crate) struct Numbers {
    sent: Vec<u64>,
    received: Vec<u64>,
}

impl Numbers {
    pub fn new(size: usize) -> Numbers {
        Numbers { sent: vec![0; size], received: vec![0; size] }
    }

    /// The fingerprint of the next message.
    fn next(&mut self, me: usize, message: &Message) -> Fingerprint {
        let (number, way) = match message.is_sent {
            true => (&mut self.sent[message.peer], (me, message.peer)),
            false => (&mut self.received[message.peer], (message.peer, me)),
        };
        *number += 1;
        Fingerprint::point_to_point(*number, message.dtype, message.count, way, 0).on_device()
    }
}

/// Messages between two ranks. The communicator must be [attached](Communicator::attach) before the first, by all ranks:
/// two ranks cannot do it by themselves.
///
/// Messages are queued in one order with everything else that this communicator queues on streams, and those from one
/// rank to another arrive in the order in which they were sent. There are no tags. What is sent from device memory
/// is received into device memory.
impl<'a> OnStream<'a> {
    /// Send `buffer` to rank `to`, which must receive as many elements of the same type on a stream of its own. On the
    /// device, what follows on the stream waits until the message is on its way, which for one that is longer than
    /// the link (`MAYPOLE_DEVICE_FIFO`) means until the receiver takes it.
    ///
    /// # Errors
    /// [`Error::Argument`] if `to` is no rank, or this one, or the communicator is not attached, or the buffer or the
    /// stream do not fit: nothing was queued. [`Error::Failed`] as everywhere.
    pub fn send<'b, T: Element>(&self, buffer: impl Into<DeviceSlice<'b, T>>, to: usize) -> Result<()> {
        self.comm.exchange(self.stream, &[Message::to(buffer.into(), to)])
    }

    /// Receive as many elements as `buffer` has from rank `from`, which must send as many. On the device, what follows on
    /// the stream waits until they are there.
    ///
    /// # Errors
    /// Those of [`OnStream::send`].
    pub fn recv<'b, T: Element>(&self, buffer: impl Into<DeviceSliceMut<'b, T>>, from: usize) -> Result<()> {
        self.comm.exchange(self.stream, &[Message::from(&buffer.into(), from)])
    }

    /// Send to one rank and receive from one (the same, or another) at the same time: a ring of ranks that all call this
    /// does not deadlock. `to` and `from` may both be this rank, which copies.
    ///
    /// # Errors
    /// Those of [`OnStream::send`].
    pub fn send_recv<'b, T: Element>(
        &self,
        send: impl Into<DeviceSlice<'b, T>>,
        to: usize,
        recv: impl Into<DeviceSliceMut<'b, T>>,
        from: usize,
    ) -> Result<()> {
        let messages = [Message::to(send.into(), to), Message::from(&recv.into(), from)];
        self.comm.exchange(self.stream, &messages)
    }

    /// Make several messages at once: `f` says which, and they are queued when it has returned, all or none. It does not
    /// matter in which order messages between different ranks are named.
    ///
    /// They are interleaved so that they do not wait for each other for ever wherever those who exchange messages in both
    /// directions do so in groups (or with [`OnStream::send_recv`]). A group whose messages are longer than the link and
    /// that is answered by a `recv` and then a `send` waits until the deadline.
    ///
    /// ```no_run
    /// # use maypole::cuda::{Context, DeviceBuffer, Stream};
    /// # let comm = maypole::Communicator::threads(1)?.remove(0);
    /// # let context = Context::primary(0)?;
    /// # let stream = Stream::new(&context)?;
    /// # let halo = DeviceBuffer::<f32>::new(&context, 8)?;
    /// # let (mut from_left, mut from_right) = (DeviceBuffer::<f32>::new(&context, 8)?, DeviceBuffer::<f32>::new(&context, 8)?);
    /// let (left, right) = ((comm.rank() + comm.size() - 1) % comm.size(), (comm.rank() + 1) % comm.size());
    /// comm.on(&stream).group(|g| {
    ///     g.send(&halo, left);
    ///     g.send(&halo, right);
    ///     g.recv(&mut from_right, right);
    ///     g.recv(&mut from_left, left);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The error of `f`; those of [`OnStream::send`], which say which call of the group is meant.
    pub fn group<'env, R>(&self, f: impl FnOnce(&mut StreamGroup<'env>) -> Result<R>) -> Result<R> {
        let mut group = StreamGroup { messages: Vec::new(), _env: PhantomData };
        let returned = f(&mut group)?;
        if !group.messages.is_empty() {
            self.comm.exchange(self.stream, &group.messages)?;
        }
        Ok(returned)
    }
}

/// The messages of a group on a stream; see [`OnStream::group`]. `'env` is what their buffers are borrowed for.
pub struct StreamGroup<'env> {
    messages: Vec<Message>,
    _env: PhantomData<&'env mut &'env ()>,
}

impl std::fmt::Debug for StreamGroup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamGroup").field("messages", &self.messages.len()).finish()
    }
}

impl<'env> StreamGroup<'env> {
    /// See [`OnStream::send`].
    pub fn send<T: Element>(&mut self, buffer: impl Into<DeviceSlice<'env, T>>, to: usize) {
        self.add("send", [Message::to(buffer.into(), to)]);
    }

    /// See [`OnStream::recv`].
    pub fn recv<T: Element>(&mut self, buffer: impl Into<DeviceSliceMut<'env, T>>, from: usize) {
        self.add("recv", [Message::from(&buffer.into(), from)]);
    }

    /// See [`OnStream::send_recv`].
    pub fn send_recv<T: Element>(
        &mut self,
        send: impl Into<DeviceSlice<'env, T>>,
        to: usize,
        recv: impl Into<DeviceSliceMut<'env, T>>,
        from: usize,
    ) {
        self.add("send_recv", [Message::to(send.into(), to), Message::from(&recv.into(), from)]);
    }

    fn add<const N: usize>(&mut self, name: &'static str, messages: [Message; N]) {
        let number = self.messages.last().map_or(1, |message| message.call.0 + 1);
        self.messages.extend(messages.map(|message| Message { call: (number, name), ..message }));
    }
}

impl Communicator {
    /// [`OnStream::send`] from memory by address.
    pub(crate) fn send_address(&self, stream: &Stream, of: (DataType, usize), address: u64, to: usize) -> Result<()> {
        self.exchange(stream, &[Message::sent(of, address, to)])
    }

    /// [`OnStream::recv`] into memory by address.
    pub(crate) fn recv_address(&self, stream: &Stream, of: (DataType, usize), address: u64, from: usize) -> Result<()> {
        self.exchange(stream, &[Message::received(of, address, from)])
    }

    /// [`OnStream::send_recv`] of memory by address: what is sent, what is received.
    pub(crate) fn exchange_addresses(
        &self,
        stream: &Stream,
        (sent, data, to): ((DataType, usize), u64, usize),
        (received, into, from): ((DataType, usize), u64, usize),
    ) -> Result<()> {
        self.exchange(stream, &[Message::sent(sent, data, to), Message::received(received, into, from)])
    }

    /// Queue messages.
    fn exchange(&self, stream: &Stream, messages: &[Message]) -> Result<()> {
        self.inner.check_process()?;
        let refused = |what: String| Error::Argument { rank: self.rank(), what };
        self.inner.in_turn(|device| {
            let Some(device) = device else {
                let name = messages[0].call.1;
                return Err(refused(format!(
                    "{name} on a stream: the communicator is not attached to a device yet; have all ranks call \
                     attach, or a collective on a stream (a barrier will do), first"
                )));
            };
            self.check_messages(device, stream, messages).map_err(refused)?;
            device.queue_messages((self.rank(), self.size()), stream, messages)
        })
    }

    /// What is wrong with messages, if anything.
    fn check_messages(
        &self,
        device: &Device,
        stream: &Stream,
        messages: &[Message],
    ) -> std::result::Result<(), String> {
        let (me, size) = (self.rank(), self.size());
        let named = |message: &Message, what: &dyn std::fmt::Display| match messages.len() {
            1 => format!("{} on a stream: {what}", message.call.1),
            _ => format!("call {} of the group ({} on a stream): {what}", message.call.0, message.call.1),
        };
        let cuda = |error: CudaError| named(&messages[0], &error);
        if !std::sync::Arc::ptr_eq(stream.context(), &device.context) {
            let (found, expected) = (stream.context().ordinal(), device.context.ordinal());
            return Err(cuda(CudaError::WrongContext { what: "the stream", found, expected }));
        }
        if stream.is_capturing().map_err(cuda)? {
            return Err(cuda(CudaError::Capturing));
        }
        for message in messages {
            if message.peer >= size {
                let what = format!("the peer is {}, but the ranks are 0 to {}", message.peer, size - 1);
                return Err(named(message, &what));
            }
            if message.count > 0 {
                let bytes = message.bytes() as u64;
                expect_device(&device.context, message.address, bytes).map_err(|error| named(message, &error))?;
            }
        }
        let own = |is_sent| messages.iter().filter(move |m| m.peer == me && m.is_sent == is_sent);
        if own(true).count() != own(false).count() {
            let lonely = own(true).chain(own(false)).next().expect("one side has one");
            let what = "a message of this rank to itself needs its other side in the same group, or send_recv";
            return Err(named(lonely, &what));
        }
        match own(true).zip(own(false)).find(|(sent, got)| (sent.dtype, sent.count) != (got.dtype, got.count)) {
            None => Ok(()),
            Some((sent, got)) => {
                let side = |m: &Message| format!("{} elements of {}", m.count, m.dtype);
                Err(named(got, &format!("to itself, this rank sends {}, but receives {}", side(sent), side(got))))
            }
        }
    }
}

impl Device {
    /// Queue messages that have been checked, as one operation. The caller has the turn.
    fn queue_messages(&self, (me, size): (usize, usize), stream: &Stream, messages: &[Message]) -> Result<()> {
        let state = &mut *self.state.lock();
        // Whatever can be refused is done before anything is queued.
        for message in messages.iter().filter(|message| message.peer != me) {
            let opened = match message.is_sent {
                true => state.open_to(self, message.peer, CHANNEL),
                false => state.open_from(self, message.peer, CHANNEL),
            };
            opened.map_err(|source| Error::Device { rank: me, source })?;
        }
        let _queueing = super::queueing();
        let operations: Vec<Fingerprint> = messages.iter().map(|m| state.numbers.next(me, m)).collect();
        let entry = self.sentry.begin(operations[0], name(stream))?;
        self.note(entry.number());
        let mut queue = || -> std::result::Result<_, Halt> {
            let mut commands = Commands::new(stream)?;
            self.begin(state, &mut commands, entry.number())?;
            let awaited = state.put_messages(self, (me, size), &mut commands, messages, &operations);
            state.carry();
            self.end(state, commands, entry.number())?;
            awaited
        };
        match queue() {
            Ok(awaited) => {
                entry.queued(awaited);
                Ok(())
            }
            Err(error) => Err(self.tear(entry, stream, &operations[0], error)),
        }
    }
}

impl State {
    /// Queue messages, in the order of their pieces. Returns what each link waits for at last.
    fn put_messages(
        &mut self,
        device: &Device,
        (me, size): (usize, usize),
        commands: &mut Commands<'_>,
        messages: &[Message],
        operations: &[Fingerprint],
    ) -> std::result::Result<Vec<Awaited>, Halt> {
        let own = |is_sent| messages.iter().filter(move |m| m.peer == me && m.is_sent == is_sent);
        for (sent, got) in own(true).zip(own(false)).filter(|(sent, got)| sent.address != got.address) {
            self.executor.copy(commands, (got.address, sent.address), sent.bytes())?;
        }
        let others: Vec<usize> = (0..messages.len()).filter(|i| messages[*i].peer != me).collect();
        let shapes: Vec<Shape> = others
            .iter()
            .map(|i| Shape { peer: messages[*i].peer, is_sent: messages[*i].is_sent, bytes: messages[*i].bytes() })
            .collect();
        for i in &others {
            let end = messages[*i].end();
            if self.executor.members[end.peer].is_none() {
                let passage = Passage { operation: operations[*i], bytes: messages[*i].bytes() };
                self.executor.passages.push((end, passage));
            }
        }
        let (slot, slots) = self.slots(CHANNEL);
        let mut awaited = Vec::with_capacity(others.len());
        for piece in order::pieces(&shapes, (me, size), slot, slots) {
            let i = others[piece.message];
            let (message, operation) = (&messages[i], &operations[i]);
            let address = message.address + piece.offset as u64;
            self.executor.pass(commands, message.end(), operation, (address, piece.bytes))?;
            if piece.offset + piece.bytes == message.bytes() {
                awaited.push(self.awaited(device, message.end(), *operation));
            }
        }
        Ok(awaited)
    }
}

impl Executor {
    /// Queue one slot of a message: `piece.1` bytes at address `piece.0`.
    fn pass(
        &mut self,
        commands: &mut Commands<'_>,
        end: End,
        operation: &Fingerprint,
        (address, bytes): (u64, usize),
    ) -> std::result::Result<(), Halt> {
        let (number, is_sent, peer) = (link(end.peer, end.channel), end.outward, end.peer as u32);
        let mut job = Job { count: bytes as u64, ..self.blank(operation.digest()) };
        if is_sent {
            let end = self.outgoing[number].as_mut().expect("links are opened before they are used");
            let place = end.begin(commands)?;
            (job.publish, job.head) = (place.header, header(operation));
            if bytes > 0 {
                (job.dst, job.sources, job.source[0]) = (place.data(), 1, Source::plain(address));
            }
        } else {
            let end = self.incoming[number].as_mut().expect("links are opened before they are used");
            let place = end.begin(commands)?;
            (job.dst, job.sources) = (address, 1);
            job.source[0] = Source { at: place.data(), header: place.header, peer, ..Source::default() };
        }
        self.submit(commands, Kernel::Copy, &job)?;
        match is_sent {
            true => self.outgoing[number].as_mut().expect("used above").end(commands)?,
            false => self.incoming[number].as_mut().expect("used above").end(commands)?,
        }
        Ok(())
    }
}
