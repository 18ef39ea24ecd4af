//! What becomes of a collective call: run, queued on a stream, collected in a group, started with a request, or kept.

use std::borrow::Cow;
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
use crate::values::{Carried, MAYPOLE_U8, carried, maypole_dtype};

/// A collective call, its arguments turned into the library's.
pub(crate) struct Work<'a> {
    pub call: Call,
    pub sides: Sides<'a>,
    /// The operation's own, if it is not a built-in one.
    pub operation: Option<Arc<Operation>>,
}

/// Where the data of a call lies.
pub(crate) enum Sides<'a> {
    Even(*const u8, *mut u8),
    Variable((*const u8, Lengths<'a>), (*mut u8, Lengths<'a>)),
}

/// Counts and displacements in what is moved: the caller's own, or made of them.
pub(crate) struct Lengths<'a> {
    counts: Cow<'a, [usize]>,
    displacements: Option<Cow<'a, [usize]>>,
}

impl<'a> Lengths<'a> {
    fn new(counts: &'a [usize], displacements: Option<&'a [usize]>, carried: Carried) -> Outcome<Lengths<'a>> {
        let moved = |numbers: &'a [usize]| -> Outcome<Cow<'a, [usize]>> {
            match carried.unit {
                1 => Ok(Cow::Borrowed(numbers)),
                _ => numbers.iter().map(|number| carried.times(*number)).collect::<Outcome<Vec<_>>>().map(Cow::Owned),
            }
        };
        Ok(Lengths { counts: moved(counts)?, displacements: displacements.map(moved).transpose()? })
    }

    /// The same, to outlive the call.
    pub fn owned(self) -> Lengths<'static> {
        let owned = |numbers: Cow<'a, [usize]>| Cow::Owned(numbers.into_owned());
        Lengths { counts: owned(self.counts), displacements: self.displacements.map(owned) }
    }

    pub fn blocks(&self) -> Blocks<'_> {
        match &self.displacements {
            Some(displacements) => Blocks::at(&self.counts, displacements),
            None => Blocks::packed(&self.counts),
        }
    }
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
) -> Outcome<(Call, Option<Arc<Operation>>, Carried)> {
    let carried = carried(dtype)?;
    let (op, operation) = if collective.reduces() { op_of(op, carried.pair)? } else { (ReduceOp::Sum, None) };
    let root = if collective.is_rooted() { rank_of("root", root)? } else { 0 };
    Ok((Call { collective, dtype: carried.dtype, count: carried.times(count)?, op, root }, operation, carried))
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
        let (call, operation, _) = call_of(collective, count, dtype, op, root)?;
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
        let (call, operation, carried) = call_of(collective, 0, dtype, op, root)?;
        let at_root = comm.rank() == call.root;
        let lengths = |counts: Counts<'a>| -> Outcome<Lengths<'a>> {
            match counts {
                Counts::Own(own) => Lengths::new(std::slice::from_ref(own), None, carried),
                Counts::EachAtRoot(..) if !at_root => Lengths::new(&[], None, carried),
                Counts::Each(counts, displacements) | Counts::EachAtRoot(counts, displacements) => {
                    // SAFETY: the caller's promise, here and below.
                    let counts = unsafe { array_of("counts", counts, comm.size()) }?;
                    if displacements.is_null() {
                        return Lengths::new(counts, None, carried);
                    }
                    // SAFETY: as above.
                    let displacements = unsafe { array_of("displacements", displacements, comm.size()) }?;
                    Lengths::new(counts, Some(displacements), carried)
                }
            }
        };
        let sides = Sides::Variable((input.cast(), lengths(sent)?), (output.cast(), lengths(received)?));
        Ok(Work { call, sides, operation })
    }

    /// # Safety
    /// The buffers are as the header asks of a blocking call.
    #[inline]
    unsafe fn run(&self, comm: &Communicator) -> maypole::Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.sides {
                Sides::Even(input, output) => comm.run_at(self.call, *input, *output),
                Sides::Variable((input, sent), (output, received)) => {
                    comm.run_v_at(self.call, (*input, sent.blocks()), (*output, received.blocks()))
                }
            }
        }
    }

    /// # Safety
    /// The buffers are as the header asks of a call that is started.
    unsafe fn start(&self, comm: &Communicator, stream: Option<&maypole::Stream>) -> maypole::Result<RawRequest> {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.sides {
                Sides::Even(input, output) => comm.start_at(self.call, *input, *output, stream),
                Sides::Variable((input, sent), (output, received)) => {
                    comm.start_v_at(self.call, (*input, sent.blocks()), (*output, received.blocks()), stream)
                }
            }
        }
    }

    /// # Safety
    /// The buffers are as the header asks of a persistent operation.
    unsafe fn keep(&self, comm: &Communicator) -> maypole::Result<RawPersistent> {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.sides {
                Sides::Even(input, output) => comm.persistent_at(self.call, *input, *output),
                Sides::Variable((input, sent), (output, received)) => {
                    comm.persistent_v_at(self.call, (*input, sent.blocks()), (*output, received.blocks()))
                }
            }
        }
    }

    /// # Safety
    /// The buffers are as the header asks of a call on a CUDA stream.
    unsafe fn run_on(&self, comm: &Communicator, stream: &cuda::Stream) -> maypole::Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.sides {
                Sides::Even(input, output) => comm.call_at(self.call, *input, *output, stream),
                Sides::Variable((input, sent), (output, received)) => {
                    comm.call_v_at(self.call, (*input, sent.blocks()), (*output, received.blocks()), stream)
                }
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
