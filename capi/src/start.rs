//! The collectives as asynchronous operations. The buffers must stay, and be left alone, until the request has been waited
//! for.

use std::ffi::{c_int, c_void};

use maypole::Collective;

use crate::communicator::maypole_comm;
use crate::entry::enter;
use crate::operation::{MAYPOLE_SUM, maypole_op};
use crate::request::maypole_request;
use crate::status::maypole_status;
use crate::stream::maypole_stream;
use crate::values::maypole_dtype;
use crate::work::{self, Work};

/// Start maypole_all_reduce() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
/// request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_all_reduce(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_all_reduce", || unsafe {
        work::start(comm, stream, request, |_| {
            Work::even(Collective::AllReduce, (input, output), (count, dtype), op, 0)
        })
    })
}

/// Start maypole_reduce() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
/// request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_reduce(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    root: c_int,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_reduce", || unsafe {
        work::start(comm, stream, request, |_| {
            Work::even(Collective::Reduce, (input, output), (count, dtype), op, root)
        })
    })
}

/// Start maypole_broadcast() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
/// request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_broadcast(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    root: c_int,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_broadcast", || unsafe {
        work::start(comm, stream, request, |_| {
            Work::even(Collective::Broadcast, (input, output), (count, dtype), MAYPOLE_SUM, root)
        })
    })
}

/// Start maypole_all_gather() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
/// request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_all_gather(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_all_gather", || unsafe {
        work::start(comm, stream, request, |_| {
            Work::even(Collective::AllGather, (input, output), (count, dtype), MAYPOLE_SUM, 0)
        })
    })
}

/// Start maypole_reduce_scatter() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets
/// the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_reduce_scatter(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_reduce_scatter", || unsafe {
        work::start(comm, stream, request, |_| {
            Work::even(Collective::ReduceScatter, (input, output), (count, dtype), op, 0)
        })
    })
}

/// Start maypole_all_to_all() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
/// request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_all_to_all(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_all_to_all", || unsafe {
        work::start(comm, stream, request, |_| {
            Work::even(Collective::AllToAll, (input, output), (count, dtype), MAYPOLE_SUM, 0)
        })
    })
}

/// Start maypole_gather() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
/// request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_gather(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    root: c_int,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_gather", || unsafe {
        work::start(comm, stream, request, |_| {
            Work::even(Collective::Gather, (input, output), (count, dtype), MAYPOLE_SUM, root)
        })
    })
}

/// Start maypole_scatter() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
/// request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_scatter(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    root: c_int,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_scatter", || unsafe {
        work::start(comm, stream, request, |_| {
            Work::even(Collective::Scatter, (input, output), (count, dtype), MAYPOLE_SUM, root)
        })
    })
}

/// Start maypole_scan() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets the
/// request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_scan(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_scan", || unsafe {
        work::start(comm, stream, request, |_| Work::even(Collective::Scan, (input, output), (count, dtype), op, 0))
    })
}

/// Start maypole_exclusive_scan() on a host stream, or on the communicator's own where `stream` is NULL; `request` gets
/// the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_exclusive_scan(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_exclusive_scan", || unsafe {
        work::start(comm, stream, request, |_| {
            Work::even(Collective::ExclusiveScan, (input, output), (count, dtype), op, 0)
        })
    })
}

/// Start maypole_barrier().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_barrier(
    comm: maypole_comm,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_barrier", || unsafe { work::start(comm, stream, request, |_| Work::barrier()) })
}
