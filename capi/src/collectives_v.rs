//! The collectives whose blocks have counts of their own. Counts and displacements are elements, one for each rank.

use std::ffi::{c_int, c_void};

use crate::calls_v;
use crate::communicator::maypole_comm;
use crate::entry::enter;
use crate::operation::maypole_op;
use crate::status::maypole_status;
use crate::stream::maypole_stream;
use crate::values::maypole_dtype;
use crate::work;

/// Block r of every rank's output becomes rank r's input. All ranks pass the same counts; where blocks lie is each
/// rank's own affair.
///
/// @param comm the communicator.
/// @param input this rank's block.
/// @param input_count its elements.
/// @param output gets the blocks.
/// @param counts elements of each rank's block.
/// @param displacements the element at which each block begins; NULL: they follow each other.
/// @param dtype the type of the elements.
/// @param stream NULL to block, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_all_gather_v(
    comm: maypole_comm,
    input: *const c_void,
    input_count: usize,
    output: *mut c_void,
    counts: *const usize,
    displacements: *const usize,
    dtype: maypole_dtype,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_all_gather_v", || unsafe {
        work::run(comm, stream, |comm| {
            calls_v::all_gather(comm, input, &input_count, output, counts, displacements, dtype)
        })
    })
}

/// The output becomes the reduction of all ranks' blocks for this rank. All ranks pass the same counts.
///
/// @param comm the communicator.
/// @param input the blocks.
/// @param counts elements of each rank's block.
/// @param displacements the element at which each block begins; NULL: they follow each other.
/// @param output gets this rank's block.
/// @param output_count its elements.
/// @param dtype the type of the elements.
/// @param op how they are combined.
/// @param stream NULL to block, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_reduce_scatter_v(
    comm: maypole_comm,
    input: *const c_void,
    counts: *const usize,
    displacements: *const usize,
    output: *mut c_void,
    output_count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_reduce_scatter_v", || unsafe {
        work::run(comm, stream, |comm| {
            calls_v::reduce_scatter(comm, input, counts, displacements, output, &output_count, dtype, op)
        })
    })
}

/// Block s of the output becomes rank s's block for this rank, whose counts must agree at both ends.
///
/// @param comm the communicator.
/// @param input the blocks.
/// @param sent_counts elements of each rank's block.
/// @param sent_displacements the element at which each block begins; NULL: they follow each other.
/// @param output gets the blocks.
/// @param received_counts elements of each rank's block.
/// @param received_displacements the element at which each block begins; NULL: they follow each other.
/// @param dtype the type of the elements.
/// @param stream NULL to block, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_all_to_all_v(
    comm: maypole_comm,
    input: *const c_void,
    sent_counts: *const usize,
    sent_displacements: *const usize,
    output: *mut c_void,
    received_counts: *const usize,
    received_displacements: *const usize,
    dtype: maypole_dtype,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_all_to_all_v", || unsafe {
        work::run(comm, stream, |comm| {
            let (sent, received) = ((sent_counts, sent_displacements), (received_counts, received_displacements));
            calls_v::all_to_all(comm, (input, sent), (output, received), dtype)
        })
    })
}

/// Block r of rank `root`'s output becomes rank r's input.
///
/// @param comm the communicator.
/// @param input this rank's block.
/// @param input_count its elements.
/// @param output on rank `root`, gets the blocks. Not looked at on the others.
/// @param counts on rank `root`, elements of each rank's block.
/// @param displacements on rank `root`, the element at which each block begins; NULL: they follow each other.
/// @param dtype the type of the elements.
/// @param root the root; the same on every rank.
/// @param stream NULL to block, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_gather_v(
    comm: maypole_comm,
    input: *const c_void,
    input_count: usize,
    output: *mut c_void,
    counts: *const usize,
    displacements: *const usize,
    dtype: maypole_dtype,
    root: c_int,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_gather_v", || unsafe {
        work::run(comm, stream, |comm| {
            calls_v::gather(comm, input, &input_count, output, counts, displacements, dtype, root)
        })
    })
}

/// The output becomes rank `root`'s block for this rank.
///
/// @param comm the communicator.
/// @param input on rank `root`, the blocks. Not looked at on the others.
/// @param counts on rank `root`, elements of each rank's block.
/// @param displacements on rank `root`, the element at which each block begins; NULL: they follow each other.
/// @param output gets this rank's block.
/// @param output_count its elements.
/// @param dtype the type of the elements.
/// @param root the root; the same on every rank.
/// @param stream NULL to block, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_scatter_v(
    comm: maypole_comm,
    input: *const c_void,
    counts: *const usize,
    displacements: *const usize,
    output: *mut c_void,
    output_count: usize,
    dtype: maypole_dtype,
    root: c_int,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_scatter_v", || unsafe {
        work::run(comm, stream, |comm| {
            calls_v::scatter(comm, input, counts, displacements, output, &output_count, dtype, root)
        })
    })
}
