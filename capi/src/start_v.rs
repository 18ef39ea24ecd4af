//! The collectives with variable counts as asynchronous operations.

use std::ffi::{c_int, c_void};

use crate::calls_v;
use crate::communicator::maypole_comm;
use crate::entry::enter;
use crate::operation::maypole_op;
use crate::request::maypole_request;
use crate::status::maypole_status;
use crate::stream::maypole_stream;
use crate::values::maypole_dtype;
use crate::work;

/// Start maypole_all_gather_v(), as maypole_start_all_reduce(). Counts and displacements are copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_all_gather_v(
    comm: maypole_comm,
    input: *const c_void,
    input_count: usize,
    output: *mut c_void,
    counts: *const usize,
    displacements: *const usize,
    dtype: maypole_dtype,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_all_gather_v", || unsafe {
        work::start(comm, stream, request, |comm| {
            calls_v::all_gather(comm, input, &input_count, output, counts, displacements, dtype)
        })
    })
}

/// Start maypole_reduce_scatter_v(), as maypole_start_all_reduce(). Counts and displacements are copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_reduce_scatter_v(
    comm: maypole_comm,
    input: *const c_void,
    counts: *const usize,
    displacements: *const usize,
    output: *mut c_void,
    output_count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_reduce_scatter_v", || unsafe {
        work::start(comm, stream, request, |comm| {
            calls_v::reduce_scatter(comm, input, counts, displacements, output, &output_count, dtype, op)
        })
    })
}

/// Start maypole_all_to_all_v(), as maypole_start_all_reduce(). Counts and displacements are copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_all_to_all_v(
    comm: maypole_comm,
    input: *const c_void,
    sent_counts: *const usize,
    sent_displacements: *const usize,
    output: *mut c_void,
    received_counts: *const usize,
    received_displacements: *const usize,
    dtype: maypole_dtype,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_all_to_all_v", || unsafe {
        work::start(comm, stream, request, |comm| {
            let (sent, received) = ((sent_counts, sent_displacements), (received_counts, received_displacements));
            calls_v::all_to_all(comm, (input, sent), (output, received), dtype)
        })
    })
}

/// Start maypole_gather_v(), as maypole_start_all_reduce(). Counts and displacements are copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_gather_v(
    comm: maypole_comm,
    input: *const c_void,
    input_count: usize,
    output: *mut c_void,
    counts: *const usize,
    displacements: *const usize,
    dtype: maypole_dtype,
    root: c_int,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_gather_v", || unsafe {
        work::start(comm, stream, request, |comm| {
            calls_v::gather(comm, input, &input_count, output, counts, displacements, dtype, root)
        })
    })
}

/// Start maypole_scatter_v(), as maypole_start_all_reduce(). Counts and displacements are copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_start_scatter_v(
    comm: maypole_comm,
    input: *const c_void,
    counts: *const usize,
    displacements: *const usize,
    output: *mut c_void,
    output_count: usize,
    dtype: maypole_dtype,
    root: c_int,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_start_scatter_v", || unsafe {
        work::start(comm, stream, request, |comm| {
            calls_v::scatter(comm, input, counts, displacements, output, &output_count, dtype, root)
        })
    })
}
