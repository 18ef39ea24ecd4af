//! What becomes of a collective call: run, queued on a stream, collected in a group, started with a request, or kept.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use maypole::cuda;
use maypole::{Blocks, Call, Collective, Communicator, RawPersistent, RawRequest, ReduceOp};

use crate::communicator::{comm_of, maypole_comm};
use crate::entry::{array_of, check_out, rank_of};
use crate::group;
use crate::operation::{MAYPOLE_SUM, Operation, maypole_op, op_of};
use crate::persistent::{give_persistent, maypole_persistent};
use crate::request::{give_request, maypole_request};
use crate::status::*;
use crate::stream::{Stream, host_stream_of, maypole_stream, queue, stream_of};
use crate::values::{MAYPOLE_U8, dtype_of, maypole_dtype};

/// A collective call, its arguments turned into the library's.
pub(crate) struct Work<'a> {
    pub call: Call,
    pub sides: Sides<'a>,
    /// The operation's own, if it is not a built-in one.
    pub operation: Option<Arc<Operation>>,
}

/// Where the data of a call lies.
#[derive(Clone, Copy)]
pub(crate) enum Sides<'a> {
    Even(*const u8, *mut u8),
    Variable((*const u8, Blocks<'a>), (*mut u8, Blocks<'a>)),
}

/// How many elements one side of a call with variable counts has.
#[derive(Clone, Copy)]
pub(crate) enum Counts<'a> {
    /// This rank's block alone.
    Own(&'a usize),
    /// A block for each rank: counts, and displacements or NULL.
    Each(*const usize, *const usize),
    /// [`Counts::Each`] on the root, nothing elsewhere.
    EachAtRoot(*const usize, *const usize),
}

fn call_of(
    collective: Collective,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    root: c_int,
) -> Outcome<(Call, Option<Arc<Operation>>)> {
    let (op, operation) = if collective.reduces() { op_of(op)? } else { (ReduceOp::Sum, None) };
    let root = if collective.is_rooted() { rank_of("root", root)? } else { 0 };
    Ok((Call { collective, dtype: dtype_of(dtype)?, count, op, root }, operation))
}

impl<'a> Work<'a> {
    /// A call on blocks of `count` elements each.
    #[inline]
    pub fn even(
        collective: Collective,
        (input, output): (*const c_void, *mut c_void),
        (count, dtype): (usize, maypole_dtype),
        op: maypole_op,
        root: c_int,
    ) -> Outcome<Work<'a>> {
        let (call, operation) = call_of(collective, count, dtype, op, root)?;
        Ok(Work { call, sides: Sides::Even(input.cast(), output.cast()), operation })
    }

    /// The call that moves nothing.
    pub fn barrier() -> Outcome<Work<'a>> {
        let nothing = (std::ptr::null(), std::ptr::null_mut());
        Work::even(Collective::Barrier, nothing, (0, MAYPOLE_U8), MAYPOLE_SUM, 0)
    }

    /// A call on blocks with counts of their own.
    ///
    /// # Safety
    /// Counts and displacements that are not NULL have an entry for each rank of `comm`.
    pub unsafe fn variable(
        comm: &Communicator,
        collective: Collective,
        ((input, sent), (output, received)): ((*const c_void, Counts<'a>), (*mut c_void, Counts<'a>)),
        dtype: maypole_dtype,
        (op, root): (maypole_op, c_int),
    ) -> Outcome<Work<'a>> {
        let (call, operation) = call_of(collective, 0, dtype, op, root)?;
        let at_root = comm.rank() == call.root;
        let blocks = |counts: Counts<'a>| -> Outcome<Blocks<'a>> {
            match counts {
                Counts::Own(own) => Ok(Blocks::packed(std::slice::from_ref(own))),
                Counts::EachAtRoot(..) if !at_root => Ok(Blocks::packed(&[])),
                Counts::Each(counts, displacements) | Counts::EachAtRoot(counts, displacements) => {
                    // SAFETY: the caller's promise, here and below.
                    let counts = unsafe { array_of("counts", counts, comm.size()) }?;
                    if displacements.is_null() {
                        return Ok(Blocks::packed(counts));
                    }
                    // SAFETY: as above.
                    Ok(Blocks::at(counts, unsafe { array_of("displacements", displacements, comm.size()) }?))
                }
            }
        };
        let sides = Sides::Variable((input.cast(), blocks(sent)?), (output.cast(), blocks(received)?));
        Ok(Work { call, sides, operation })
    }

    /// # Safety
    /// The buffers are as the header asks of a blocking call.
    #[inline]
    unsafe fn run(&self, comm: &Communicator) -> maypole::Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            match self.sides {
                Sides::Even(input, output) => comm.run_at(self.call, input, output),
                Sides::Variable(input, output) => comm.run_v_at(self.call, input, output),
            }
        }
    }

    /// # Safety
    /// The buffers are as the header asks of a call that is started.
    unsafe fn start(&self, comm: &Communicator, stream: Option<&maypole::Stream>) -> maypole::Result<RawRequest> {
        // SAFETY: the caller's promise.
        unsafe {
            match self.sides {
                Sides::Even(input, output) => comm.start_at(self.call, input, output, stream),
                Sides::Variable(input, output) => comm.start_v_at(self.call, input, output, stream),
            }
        }
    }

    /// # Safety
    /// The buffers are as the header asks of a persistent operation.
    unsafe fn keep(&self, comm: &Communicator) -> maypole::Result<RawPersistent> {
        // SAFETY: the caller's promise.
        unsafe {
            match self.sides {
                Sides::Even(input, output) => comm.persistent_at(self.call, input, output),
                Sides::Variable(input, output) => comm.persistent_v_at(self.call, input, output),
            }
        }
    }

    /// # Safety
    /// The buffers are as the header asks of a call on a CUDA stream.
    unsafe fn run_on(&self, comm: &Communicator, stream: &cuda::Stream) -> maypole::Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            match self.sides {
                Sides::Even(input, output) => comm.call_at(self.call, input, output, stream),
                Sides::Variable(input, output) => comm.call_v_at(self.call, input, output, stream),
            }
        }
    }
}

/// The form without a request: blocks, or queues on the stream, or is collected in the thread's open group.
///
/// # Safety
/// The buffers are as the header asks.
#[inline]
pub(crate) unsafe fn run<'a>(
    comm: maypole_comm,
    stream: maypole_stream,
    work: impl FnOnce(&Communicator) -> Outcome<Work<'a>>,
) -> Outcome {
    let found = comm_of(comm)?;
    let work = work(&found)?;
    if group::is_open(comm) {
        return group::collect(stream, work);
    }
    match stream_of(stream)?.as_deref() {
        // SAFETY: the caller's promise, here and below.
        None => unsafe { work.run(&found) }?,
        Some(Stream::Host(host)) => {
            // SAFETY: as above.
            let request = unsafe { work.start(&found, Some(&host.queue)) }?;
            host.keep(request, work.operation);
        }
        // SAFETY: as above.
        Some(Stream::Cuda(stream)) => unsafe { work.run_on(&found, stream) }?,
    }
    Ok(())
}

/// The form that gives a request.
///
/// # Safety
/// The buffers are as the header asks; `request` is NULL or valid.
pub(crate) unsafe fn start<'a>(
    comm: maypole_comm,
    stream: maypole_stream,
    request: *mut maypole_request,
    work: impl FnOnce(&Communicator) -> Outcome<Work<'a>>,
) -> Outcome {
    check_out("request", request)?;
    group::refuse_requests(comm)?;
    let found = comm_of(comm)?;
    let (work, stream) = (work(&found)?, host_stream_of(stream)?);
    // SAFETY: the caller's promise.
    let started = unsafe { work.start(&found, queue(&stream)) }?;
    // SAFETY: as above.
    unsafe { give_request(started, work.operation.into_iter().collect(), request) }
}

/// The form that is planned once.
///
/// # Safety
/// The buffers are as the header asks; `persistent` is NULL or valid.
pub(crate) unsafe fn keep<'a>(
    comm: maypole_comm,
    persistent: *mut maypole_persistent,
    work: impl FnOnce(&Communicator) -> Outcome<Work<'a>>,
) -> Outcome {
    check_out("persistent", persistent)?;
    let found = comm_of(comm)?;
    let work = work(&found)?;
    // SAFETY: the caller's promise.
    let kept = unsafe { work.keep(&found) }?;
    // SAFETY: as above.
    unsafe { give_persistent(kept, work.operation, persistent) }
}
