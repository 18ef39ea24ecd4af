//! Calls by address on a CUDA stream, in whichever memory the buffers lie.
//!
//! A caller from another language has a pointer and a stream, and often does not know itself whether a tensor lies on the
//! device. The driver does: what is device memory goes to the executor on the device and is queued; what is host memory
//! goes where [`Communicator::run_at`] goes, once the stream is empty. Addresses are checked as there, for both.

use maypole_collectives::DataType;
use maypole_cuda::{CudaError, Stream, Where, locate};

use crate::communicator::blocks::Blocks;
use crate::communicator::on_stream::Queue;
use crate::communicator::{Buffers, Call, Communicator, Inner, Lengths};
use crate::error::{Error, Result};

/// Where the buffers of a call lie. Managed memory counts as the device's, pinned memory as the host's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    Host,
    Device,
}

impl Communicator {
    /// [`Communicator::run_at`] on buffers of which it is not known where they lie: in the memory of the stream's device,
    /// then the call is queued on `stream`, or in host memory, then the call waits for the stream first and blocks until
    /// it is done. Ranks must not differ in that. A call without a single element counts as one on the device.
    ///
    /// # Errors
    /// As [`Communicator::run_at`] and [`Communicator::on`]; [`Error::Argument`] if one buffer is device memory and the
    /// other is not.
    ///
    /// # Safety
    /// `input` and `output` are valid for the blocks that the call takes and gives on this rank (equal, or one inside the
    /// other at this rank's block, where it is in place), and stay so, untouched by others, until the stream has got past
    /// the call.
    pub unsafe fn call_at(&self, call: Call, input: *const u8, output: *mut u8, stream: &Stream) -> Result<()> {
        let inner = &*self.inner;
        let (buffers, lengths) = match inner.locate(&call, input, output) {
            Ok(located) => located,
            Err(what) => return inner.refuse_next(what),
        };
        match inner.memory(call.collective.name(), filled(buffers, lengths))? {
            None | Some(Memory::Device) => self.run_on(Queue::on(stream), call, buffers, lengths),
            Some(Memory::Host) => {
                stream.synchronize().map_err(|source| inner.refused_by_driver(source))?;
                // SAFETY: the lengths are those that the caller promised.
                unsafe { inner.run(inner.number()?, call, buffers, lengths) }
            }
        }
    }

    /// [`Communicator::run_v_at`] as [`Communicator::call_at`]. Where this rank has no element on either side, what its
    /// addresses point to decides; two that are null count as device memory.
    ///
    /// # Errors
    /// As [`Communicator::run_v_at`] and [`Communicator::call_at`].
    ///
    /// # Safety
    /// As for [`Communicator::call_at`], for the blocks given.
    pub unsafe fn call_v_at(
        &self,
        call: Call,
        input: (*const u8, Blocks<'_>),
        output: (*mut u8, Blocks<'_>),
        stream: &Stream,
    ) -> Result<()> {
        let inner = &*self.inner;
        let (buffers, lengths, sides) = match inner.locate_v(&call, input, output) {
            Ok(located) => located,
            Err(what) => return inner.refuse_next(what),
        };
        let name = call.collective.name();
        let memory = match inner.memory(name, filled(buffers, lengths))? {
            None => inner.memory(name, pointed_to(input.0, output.0))?,
            known => known,
        };
        match memory {
            None | Some(Memory::Device) => self.run_v_on(Queue::on(stream), call, buffers, lengths, sides),
            Some(Memory::Host) => {
                stream.synchronize().map_err(|source| inner.refused_by_driver(source))?;
                // SAFETY: the lengths are those that the caller promised.
                unsafe { inner.run_v(inner.number()?, call, buffers, lengths, sides) }
            }
        }
    }

    /// [`Communicator::send_at`] as [`Communicator::call_at`]: from device memory it is queued on `stream`, as
    /// [`OnStream::send`](crate::cuda::OnStream::send), for which all ranks must have [attached](Communicator::attach) the
    /// communicator, and without tags. What is sent from device memory must be received into device memory.
    ///
    /// # Errors
    /// As for these two; [`Error::Argument`] for a tag other than 0 with device memory.
    ///
    /// # Safety
    /// `data` is readable for the elements, and nobody writes them, until the stream has got past the message.
    pub unsafe fn send_at_on(
        &self,
        (dtype, count): (DataType, usize),
        data: *const u8,
        to: usize,
        tag: u32,
        stream: &Stream,
    ) -> Result<()> {
        let inner = &*self.inner;
        match inner.message_memory("send", data.addr(), (dtype, count))? {
            Memory::Device => {
                self.refuse_tag("send", tag)?;
                self.send_address(stream, (dtype, count), data.addr() as u64, to)
            }
            Memory::Host => {
                stream.synchronize().map_err(|source| Error::Device { rank: inner.rank, source })?;
                // SAFETY: the caller's promise.
                unsafe { self.send_at(dtype, count, data, to, tag) }
            }
        }
    }

    /// [`Communicator::recv_at`], as [`Communicator::send_at_on`].
    ///
    /// # Errors
    /// As for that.
    ///
    /// # Safety
    /// `data` is writable for the elements, and nobody else touches them, until the stream has got past the message.
    pub unsafe fn recv_at_on(
        &self,
        (dtype, count): (DataType, usize),
        data: *mut u8,
        from: usize,
        tag: u32,
        stream: &Stream,
    ) -> Result<()> {
        let inner = &*self.inner;
        match inner.message_memory("recv", data.addr(), (dtype, count))? {
            Memory::Device => {
                self.refuse_tag("recv", tag)?;
                self.recv_address(stream, (dtype, count), data.addr() as u64, from)
            }
            Memory::Host => {
                stream.synchronize().map_err(|source| Error::Device { rank: inner.rank, source })?;
                // SAFETY: the caller's promise.
                unsafe { self.recv_at(dtype, count, data, from, tag) }
            }
        }
    }

    /// [`Communicator::send_at_on`] and [`Communicator::recv_at_on`] at the same time, as
    /// [`OnStream::send_recv`](crate::cuda::OnStream::send_recv): what is sent, to whom; what is received, from whom.
    ///
    /// # Errors
    /// As for these; [`Error::Argument`] if one buffer is device memory and the other is not.
    ///
    /// # Safety
    /// As for these.
    pub unsafe fn send_recv_at_on(
        &self,
        (sent, data, to): ((DataType, usize), *const u8, usize),
        (received, into, from): ((DataType, usize), *mut u8, usize),
        tag: u32,
        stream: &Stream,
    ) -> Result<()> {
        let inner = &*self.inner;
        let memory = |at: usize, of| inner.message_memory("send_recv", at, of);
        match (memory(data.addr(), sent)?, memory(into.addr(), received)?) {
            (Memory::Device, Memory::Device) => {
                self.refuse_tag("send_recv", tag)?;
                self.exchange_addresses(stream, (sent, data.addr() as u64, to), (received, into.addr() as u64, from))
            }
            (Memory::Host, Memory::Host) => {
                stream.synchronize().map_err(|source| Error::Device { rank: inner.rank, source })?;
                let mut both = self.raw_group();
                // SAFETY: the caller's promise.
                unsafe {
                    both.recv_at(received.0, received.1, into, from, tag);
                    both.send_at(sent.0, sent.1, data, to, tag);
                }
                both.run()
            }
            _ => {
                let what = "send_recv on a stream: one buffer is device memory and the other is not".into();
                Err(Error::Argument { rank: inner.rank, what })
            }
        }
    }

    fn refuse_tag(&self, name: &str, tag: u32) -> Result<()> {
        if tag == 0 {
            return Ok(());
        }
        let what = format!("{name} on a stream: the tag is {tag}, but messages in device memory have none; pass 0");
        Err(Error::Argument { rank: self.rank(), what })
    }
}

/// The addresses of the buffers of a call that have bytes in them.
fn filled(buffers: Buffers, lengths: Lengths) -> [Option<usize>; 2] {
    let (input, output) = match lengths {
        Lengths::Apart { input, output } => (input, output),
        Lengths::InPlace { buffer } => (0, buffer),
    };
    [(buffers.input.addr(), input), (buffers.output.addr(), output)].map(|(at, bytes)| (bytes > 0).then_some(at))
}

/// The addresses of the buffers of a call, whether there are bytes or not.
fn pointed_to(input: *const u8, output: *mut u8) -> [Option<usize>; 2] {
    [input.addr(), output.addr()].map(|at| Some(at).filter(|at| *at != 0))
}

impl Inner {
    /// In which memory the buffers at these addresses lie; `None` if there are none.
    ///
    /// # Errors
    /// One lies here and the other there, or the driver does not say: ranks that wait for this one in the call are told.
    fn memory(&self, name: &str, [input, output]: [Option<usize>; 2]) -> Result<Option<Memory>> {
        let of = |at: Option<usize>| at.map(memory_at).transpose().map_err(|source| self.refused_by_driver(source));
        match (of(input)?, of(output)?) {
            (Some(one), Some(other)) if one != other => {
                self.refuse_next(format!("{name}: one buffer is device memory and the other is not"))
            }
            (input, output) => Ok(input.or(output)),
        }
    }

    /// In which memory a message lies. An empty one at no address counts as device memory.
    fn message_memory(&self, name: &str, at: usize, (dtype, count): (DataType, usize)) -> Result<Memory> {
        if at != 0 {
            return memory_at(at).map_err(|source| Error::Device { rank: self.rank, source });
        }
        if count == 0 {
            return Ok(Memory::Device);
        }
        let what = format!("{name} on a stream: the buffer is NULL, but {count} elements of {dtype} are needed");
        Err(Error::Argument { rank: self.rank, what })
    }

    /// Refuse the operation that this would be, for a reason of the driver's.
    #[cold]
    fn refused_by_driver(&self, source: CudaError) -> Error {
        let _refusal = self.refuse_next::<()>(source.to_string());
        Error::Device { rank: self.rank, source }
    }
}

fn memory_at(address: usize) -> std::result::Result<Memory, CudaError> {
    Ok(match locate(address as u64, 1)? {
        Where::Device { .. } | Where::Managed => Memory::Device,
        Where::Host | Where::Pinned { .. } => Memory::Host,
    })
}
