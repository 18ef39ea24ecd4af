//! The collectives with variable counts as asynchronous operations.

use std::ffi::{c_int, c_void};

use maypole::Collective;

use crate::communicator::maypole_comm;
use crate::entry::enter;
use crate::operation::{MAYPOLE_SUM, maypole_op};
use crate::request::maypole_request;
use crate::status::maypole_status;
use crate::stream::maypole_stream;
use crate::values::maypole_dtype;
use crate::work::{self, Counts, Work};

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
    let own = [input_count];
    // SAFETY: the caller's promise.
    enter("maypole_start_all_gather_v", || unsafe {
        work::start(comm, stream, request, |comm| {
            Work::variable(
                comm,
                Collective::AllGather,
                (input, Counts::Own(&own)),
                (output, Counts::Each(counts, displacements)),
                dtype,
                (MAYPOLE_SUM, 0),
            )
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
    let own = [output_count];
    // SAFETY: the caller's promise.
    enter("maypole_start_reduce_scatter_v", || unsafe {
        work::start(comm, stream, request, |comm| {
            Work::variable(
                comm,
                Collective::ReduceScatter,
                (input, Counts::Each(counts, displacements)),
                (output, Counts::Own(&own)),
                dtype,
                (op, 0),
            )
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
            Work::variable(
                comm,
                Collective::AllToAll,
                (input, Counts::Each(sent_counts, sent_displacements)),
                (output, Counts::Each(received_counts, received_displacements)),
                dtype,
                (MAYPOLE_SUM, 0),
            )
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
    let own = [input_count];
    // SAFETY: the caller's promise.
    enter("maypole_start_gather_v", || unsafe {
        work::start(comm, stream, request, |comm| {
            Work::variable(
                comm,
                Collective::Gather,
                (input, Counts::Own(&own)),
                (output, Counts::EachAtRoot(counts, displacements)),
                dtype,
                (MAYPOLE_SUM, root),
            )
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
    let own = [output_count];
    // SAFETY: the caller's promise.
    enter("maypole_start_scatter_v", || unsafe {
        work::start(comm, stream, request, |comm| {
            Work::variable(
                comm,
                Collective::Scatter,
                (input, Counts::EachAtRoot(counts, displacements)),
                (output, Counts::Own(&own)),
                dtype,
                (MAYPOLE_SUM, root),
            )
        })
    })
}
