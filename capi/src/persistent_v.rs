//! The collectives with variable counts as persistent operations.

use std::ffi::{c_int, c_void};

use maypole::Collective;

use crate::communicator::maypole_comm;
use crate::entry::enter;
use crate::operation::{MAYPOLE_SUM, maypole_op};
use crate::persistent::maypole_persistent;
use crate::status::maypole_status;
use crate::values::maypole_dtype;
use crate::work::{self, Counts, Work};

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
    let own = [input_count];
    // SAFETY: the caller's promise.
    enter("maypole_persistent_all_gather_v", || unsafe {
        work::keep(comm, persistent, |comm| {
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
    let own = [output_count];
    // SAFETY: the caller's promise.
    enter("maypole_persistent_reduce_scatter_v", || unsafe {
        work::keep(comm, persistent, |comm| {
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
    let own = [input_count];
    // SAFETY: the caller's promise.
    enter("maypole_persistent_gather_v", || unsafe {
        work::keep(comm, persistent, |comm| {
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
    let own = [output_count];
    // SAFETY: the caller's promise.
    enter("maypole_persistent_scatter_v", || unsafe {
        work::keep(comm, persistent, |comm| {
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
