//! The collectives with variable counts as persistent operations.

use std::ffi::{c_int, c_void};

use crate::calls_v;
use crate::communicator::maypole_comm;
use crate::entry::enter;
use crate::operation::maypole_op;
use crate::persistent::maypole_persistent;
use crate::status::maypole_status;
use crate::values::maypole_dtype;
use crate::work;

/// Plan maypole_all_gather_v(), as maypole_persistent_all_reduce(). Counts and displacements are copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_all_gather_v(
    comm: maypole_comm,
    input: *const c_void,
    input_count: usize,
    output: *mut c_void,
    counts: *const usize,
    displacements: *const usize,
    dtype: maypole_dtype,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_all_gather_v", || unsafe {
        work::keep(comm, persistent, |comm| {
            calls_v::all_gather(comm, input, &input_count, output, counts, displacements, dtype)
        })
    })
}

/// Plan maypole_reduce_scatter_v(), as maypole_persistent_all_reduce(). Counts and displacements are copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_reduce_scatter_v(
    comm: maypole_comm,
    input: *const c_void,
    counts: *const usize,
    displacements: *const usize,
    output: *mut c_void,
    output_count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_reduce_scatter_v", || unsafe {
        work::keep(comm, persistent, |comm| {
            calls_v::reduce_scatter(comm, input, counts, displacements, output, &output_count, dtype, op)
        })
    })
}

/// Plan maypole_all_to_all_v(), as maypole_persistent_all_reduce(). Counts and displacements are copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_all_to_all_v(
    comm: maypole_comm,
    input: *const c_void,
    sent_counts: *const usize,
    sent_displacements: *const usize,
    output: *mut c_void,
    received_counts: *const usize,
    received_displacements: *const usize,
    dtype: maypole_dtype,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_all_to_all_v", || unsafe {
        work::keep(comm, persistent, |comm| {
            let (sent, received) = ((sent_counts, sent_displacements), (received_counts, received_displacements));
            calls_v::all_to_all(comm, (input, sent), (output, received), dtype)
        })
    })
}

/// Plan maypole_gather_v(), as maypole_persistent_all_reduce(). Counts and displacements are copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_gather_v(
    comm: maypole_comm,
    input: *const c_void,
    input_count: usize,
    output: *mut c_void,
    counts: *const usize,
    displacements: *const usize,
    dtype: maypole_dtype,
    root: c_int,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_gather_v", || unsafe {
        work::keep(comm, persistent, |comm| {
            calls_v::gather(comm, input, &input_count, output, counts, displacements, dtype, root)
        })
    })
}

/// Plan maypole_scatter_v(), as maypole_persistent_all_reduce(). Counts and displacements are copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_scatter_v(
    comm: maypole_comm,
    input: *const c_void,
    counts: *const usize,
    displacements: *const usize,
    output: *mut c_void,
    output_count: usize,
    dtype: maypole_dtype,
    root: c_int,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_scatter_v", || unsafe {
        work::keep(comm, persistent, |comm| {
            calls_v::scatter(comm, input, counts, displacements, output, &output_count, dtype, root)
        })
    })
}
