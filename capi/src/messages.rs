//! Messages between two ranks.

use std::ffi::{c_int, c_void};

use maypole::cuda;
use maypole::{Communicator, RawRequest};

use crate::communicator::{comm_of, maypole_comm};
use crate::entry::{check_out, enter, give, rank_of};
use crate::group::{self, Message, Way};
use crate::request::{give_request, maypole_request};
use crate::status::*;
use crate::stream::{Stream, host_stream_of, maypole_stream, queue, stream_of};
use crate::values::{carried, maypole_dtype};

fn message(
    way: Way,
    (count, dtype): (usize, maypole_dtype),
    (name, peer): (&str, c_int),
    tag: u32,
) -> Outcome<Message> {
    let carried = carried(dtype)?;
    Ok(Message { way, dtype: carried.dtype, count: carried.times(count)?, peer: rank_of(name, peer)?, tag })
}

impl Message {
    /// # Safety
    /// The buffer is as the header asks of a blocking call.
    unsafe fn run(&self, comm: &Communicator) -> maypole::Result<()> {
        let Message { way, dtype, count, peer, tag } = *self;
        // SAFETY: the caller's promise.
        unsafe {
            match way {
                Way::To(data) => comm.send_at(dtype, count, data, peer, tag),
                Way::From(data) => comm.recv_at(dtype, count, data, peer, tag),
            }
        }
    }

    /// # Safety
    /// The buffer is as the header asks of a call that is started.
    unsafe fn start(&self, comm: &Communicator, stream: Option<&maypole::Stream>) -> maypole::Result<RawRequest> {
        let Message { way, dtype, count, peer, tag } = *self;
        // SAFETY: the caller's promise.
        unsafe {
            match way {
                Way::To(data) => comm.start_send_at(dtype, count, data, peer, tag, stream),
                Way::From(data) => comm.start_recv_at(dtype, count, data, peer, tag, stream),
            }
        }
    }

    /// # Safety
    /// The buffer is as the header asks of a call on a CUDA stream.
    unsafe fn run_on(&self, comm: &Communicator, stream: &cuda::Stream) -> maypole::Result<()> {
        let Message { way, dtype, count, peer, tag } = *self;
        // SAFETY: the caller's promise.
        unsafe {
            match way {
                Way::To(data) => comm.send_at_on((dtype, count), data, peer, tag, stream),
                Way::From(data) => comm.recv_at_on((dtype, count), data, peer, tag, stream),
            }
        }
    }
}

/// # Safety
/// The buffer is as the header asks.
unsafe fn run(comm: maypole_comm, stream: maypole_stream, message: Message) -> Outcome {
    let found = comm_of(comm)?;
    if group::is_open(comm) {
        return group::collect_message(stream, message);
    }
    match stream_of(stream)?.as_deref() {
        // SAFETY: the caller's promise, here and below.
        None => unsafe { message.run(&found) }?,
        // SAFETY: as above.
        Some(Stream::Host(host)) => host.keep(unsafe { message.start(&found, Some(&host.queue)) }?, None),
        // SAFETY: as above.
        Some(Stream::Cuda(stream)) => unsafe { message.run_on(&found, stream) }?,
    }
    Ok(())
}

/// # Safety
/// The buffer is as the header asks; `request` is NULL or valid.
unsafe fn start(
    comm: maypole_comm,
    stream: maypole_stream,
    request: *mut maypole_request,
    message: Message,
) -> Outcome {
    check_out("request", request)?;
    group::refuse_requests(comm)?;
    let (found, stream) = (comm_of(comm)?, host_stream_of(stream)?);
    // SAFETY: the caller's promise, here and below.
    let started = unsafe { message.start(&found, queue(&stream)) }?;
    // SAFETY: as above.
    unsafe { give_request(started, Vec::new(), request) }
}

/// Send `count` elements at `data` to rank `to`, which must receive as many of the same type with the same tag. Returns when
/// the buffer may be reused: small messages do not wait for the receiver. Messages with the same tag from one rank to
/// another arrive in the order in which they were sent.
///
/// @param comm the communicator.
/// @param data the elements.
/// @param count how many.
/// @param dtype their type.
/// @param to the receiver; not this rank itself, which does not receive meanwhile.
/// @param tag any number; 0 on CUDA streams.
/// @param stream NULL to block, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_send(
    comm: maypole_comm,
    data: *const c_void,
    count: usize,
    dtype: maypole_dtype,
    to: c_int,
    tag: u32,
    stream: maypole_stream,
) -> maypole_status {
    enter("maypole_send", || {
        let message = message(Way::To(data.cast()), (count, dtype), ("to", to), tag)?;
        // SAFETY: the caller's promise.
        unsafe { run(comm, stream, message) }
    })
}

/// Receive `count` elements from rank `from`, which must send as many of the same type with the same tag. Blocks until they
/// are there.
///
/// @param comm the communicator.
/// @param data where they go.
/// @param count how many.
/// @param dtype their type.
/// @param from the sender.
/// @param tag the sender's.
/// @param stream NULL to block, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_recv(
    comm: maypole_comm,
    data: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    from: c_int,
    tag: u32,
    stream: maypole_stream,
) -> maypole_status {
    enter("maypole_recv", || {
        let message = message(Way::From(data.cast()), (count, dtype), ("from", from), tag)?;
        // SAFETY: the caller's promise.
        unsafe { run(comm, stream, message) }
    })
}

/// Receive `count` elements from whichever rank sends as many of the same type with this tag first. Blocks until they are
/// there. A message goes to the earliest receive with its tag, be that one from its sender or from any rank; where
/// several have sent, the ranks take turns. In host memory; not within a group.
///
/// @param comm the communicator.
/// @param data where they go.
/// @param count how many.
/// @param dtype their type.
/// @param tag the sender's.
/// @param from gets the sender.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_recv_any(
    comm: maypole_comm,
    data: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    tag: u32,
    from: *mut c_int,
) -> maypole_status {
    enter("maypole_recv_any", || {
        check_out("from", from)?;
        let carried = carried(dtype)?;
        let (count, found) = (carried.times(count)?, comm_of(comm)?);
        if group::is_open(comm) {
            return Err(Fault::argument("a group is open, whose receives name their senders"));
        }
        // SAFETY: the caller's promise.
        let sender = unsafe { found.recv_any_at(carried.dtype, count, data.cast(), tag) }?;
        // SAFETY: as above.
        unsafe { give("from", from, sender as c_int) }
    })
}

/// Send to one rank and receive from one, the same or another, at the same time: a ring of ranks that all call this does not
/// deadlock. `to` and `from` may both be this rank, which copies. In host memory; blocks.
///
/// @param sent `send_count` elements for rank `to`.
/// @param received where `receive_count` elements from rank `from` go.
/// @param dtype the type of both.
/// @param tag of both messages.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_send_recv(
    comm: maypole_comm,
    sent: *const c_void,
    send_count: usize,
    to: c_int,
    received: *mut c_void,
    receive_count: usize,
    from: c_int,
    dtype: maypole_dtype,
    tag: u32,
) -> maypole_status {
    enter("maypole_send_recv", || {
        let there = message(Way::To(sent.cast()), (send_count, dtype), ("to", to), tag)?;
        let back = message(Way::From(received.cast()), (receive_count, dtype), ("from", from), tag)?;
        let found = comm_of(comm)?;
        if group::is_open(comm) {
            group::collect_message(std::ptr::null_mut(), back)?;
            return group::collect_message(std::ptr::null_mut(), there);
        }
        let mut both = found.raw_group();
        // SAFETY: the caller's promise: the buffers stay until this returns.
        unsafe {
            both.recv_at(back.dtype, receive_count, received.cast(), back.peer, tag);
            both.send_at(there.dtype, send_count, sent.cast(), there.peer, tag);
        }
        Ok(both.run()?)
    })
}

/// Start maypole_send(): the message is posted at once, or queued on a host stream.
///
/// @param request gets the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_send(
    comm: maypole_comm,
    data: *const c_void,
    count: usize,
    dtype: maypole_dtype,
    to: c_int,
    tag: u32,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    enter("maypole_start_send", || {
        let message = message(Way::To(data.cast()), (count, dtype), ("to", to), tag)?;
        // SAFETY: the caller's promise.
        unsafe { start(comm, stream, request, message) }
    })
}

/// Start maypole_recv(): the message is expected from now on, or from when a host stream comes to it. Its deadline counts
/// from the wait for it.
///
/// @param request gets the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_recv(
    comm: maypole_comm,
    data: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    from: c_int,
    tag: u32,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    enter("maypole_start_recv", || {
        let message = message(Way::From(data.cast()), (count, dtype), ("from", from), tag)?;
        // SAFETY: the caller's promise.
        unsafe { start(comm, stream, request, message) }
    })
}
