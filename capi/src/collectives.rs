//! The collectives, blocking or queued on a stream. The other forms are in [`start`](crate::start) and
//! [`persistent`](crate::persistent).
//!
//! What they have in common: without a stream they block until this rank's part is done, and the buffers are then the
//! caller's again; inside a group they are collected. Counts are elements. Buffers do not overlap, except as said.

use std::ffi::{c_int, c_void};

use maypole::Collective;

use crate::communicator::maypole_comm;
use crate::entry::enter;
use crate::operation::{MAYPOLE_SUM, maypole_op};
use crate::status::maypole_status;
use crate::stream::maypole_stream;
use crate::values::maypole_dtype;
use crate::work::{self, Work};

/// Every rank's output becomes the reduction of all ranks' inputs. Bit-identical on all ranks.
///
/// @param comm the communicator.
/// @param input `count` elements.
/// @param output gets `count` elements; may be `input`.
/// @param count elements of a rank.
/// @param dtype their type.
/// @param op how they are combined.
/// @param stream NULL to block until this rank's part is done, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_all_reduce(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_all_reduce", || unsafe {
        work::run(comm, stream, |_| Work::even(Collective::AllReduce, (input, output), (count, dtype), op, 0))
    })
}

/// Rank `root`'s output becomes the reduction of all ranks' inputs.
///
/// @param comm the communicator.
/// @param input `count` elements.
/// @param output gets `count` elements on rank `root`; may be `input`. Not looked at on the others.
/// @param count elements of a rank.
/// @param dtype their type.
/// @param op how they are combined.
/// @param root the root; the same on every rank.
/// @param stream NULL to block until this rank's part is done, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_reduce(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    root: c_int,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_reduce", || unsafe {
        work::run(comm, stream, |_| Work::even(Collective::Reduce, (input, output), (count, dtype), op, root))
    })
}

/// Every rank's output becomes rank `root`'s input.
///
/// @param comm the communicator.
/// @param input on rank `root`, `count` elements. Not looked at on the others.
/// @param output gets `count` elements; may be `input`.
/// @param count elements.
/// @param dtype their type.
/// @param root the root; the same on every rank.
/// @param stream NULL to block until this rank's part is done, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_broadcast(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    root: c_int,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_broadcast", || unsafe {
        work::run(comm, stream, |_| {
            Work::even(Collective::Broadcast, (input, output), (count, dtype), MAYPOLE_SUM, root)
        })
    })
}

/// Every rank's output becomes all ranks' inputs, one after the other.
///
/// @param comm the communicator.
/// @param input `count` elements.
/// @param output gets `count` elements of each rank, in the order of the ranks. In place: `input` is this rank's place
/// in it.
/// @param count elements of a rank.
/// @param dtype their type.
/// @param stream NULL to block until this rank's part is done, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_all_gather(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_all_gather", || unsafe {
        work::run(comm, stream, |_| Work::even(Collective::AllGather, (input, output), (count, dtype), MAYPOLE_SUM, 0))
    })
}

/// The output becomes the reduction of all ranks' blocks for this rank.
///
/// @param comm the communicator.
/// @param input a block of `count` elements for each rank.
/// @param output gets `count` elements. In place: it is this rank's block of `input`, and the others are undefined
/// afterwards.
/// @param count elements of a block.
/// @param dtype their type.
/// @param op how they are combined.
/// @param stream NULL to block until this rank's part is done, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_reduce_scatter(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_reduce_scatter", || unsafe {
        work::run(comm, stream, |_| Work::even(Collective::ReduceScatter, (input, output), (count, dtype), op, 0))
    })
}

/// Block s of the output becomes rank s's block for this rank.
///
/// @param comm the communicator.
/// @param input a block of `count` elements for each rank.
/// @param output gets a block of `count` elements from each rank; may be `input`.
/// @param count elements of a block.
/// @param dtype their type.
/// @param stream NULL to block until this rank's part is done, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_all_to_all(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_all_to_all", || unsafe {
        work::run(comm, stream, |_| Work::even(Collective::AllToAll, (input, output), (count, dtype), MAYPOLE_SUM, 0))
    })
}

/// Rank `root`'s output becomes all ranks' inputs, one after the other.
///
/// @param comm the communicator.
/// @param input `count` elements.
/// @param output on rank `root`, gets `count` elements of each rank, in the order of the ranks; in place, `input` is
/// the root's place in it. Not looked at on the others.
/// @param count elements of a rank.
/// @param dtype their type.
/// @param root the root; the same on every rank.
/// @param stream NULL to block until this rank's part is done, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_gather(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    root: c_int,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_gather", || unsafe {
        work::run(comm, stream, |_| Work::even(Collective::Gather, (input, output), (count, dtype), MAYPOLE_SUM, root))
    })
}

/// The output becomes rank `root`'s block for this rank.
///
/// @param comm the communicator.
/// @param input on rank `root`, a block of `count` elements for each rank. Not looked at on the others.
/// @param output gets `count` elements; in place on the root, it is its block of `input`.
/// @param count elements of a block.
/// @param dtype their type.
/// @param root the root; the same on every rank.
/// @param stream NULL to block until this rank's part is done, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_scatter(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    root: c_int,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_scatter", || unsafe {
        work::run(comm, stream, |_| Work::even(Collective::Scatter, (input, output), (count, dtype), MAYPOLE_SUM, root))
    })
}

/// The output becomes the reduction of the inputs of ranks 0 up to this one, this one included. Not for MAYPOLE_AVG.
///
/// @param comm the communicator.
/// @param input `count` elements.
/// @param output gets `count` elements; may be `input`.
/// @param count elements of a rank.
/// @param dtype their type.
/// @param op how they are combined.
/// @param stream NULL to block until this rank's part is done, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_scan(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_scan", || unsafe {
        work::run(comm, stream, |_| Work::even(Collective::Scan, (input, output), (count, dtype), op, 0))
    })
}

/// The output becomes the reduction of the inputs of the ranks before this one. Not for MAYPOLE_AVG.
///
/// @param comm the communicator.
/// @param input `count` elements.
/// @param output gets `count` elements; may be `input`. On rank 0 it stays as it was.
/// @param count elements of a rank.
/// @param dtype their type.
/// @param op how they are combined.
/// @param stream NULL to block until this rank's part is done, or a stream to queue it on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_exclusive_scan(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    stream: maypole_stream,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_exclusive_scan", || unsafe {
        work::run(comm, stream, |_| Work::even(Collective::ExclusiveScan, (input, output), (count, dtype), op, 0))
    })
}

/// Returns once every rank has called it; on a stream, what is queued behind it waits for that.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_barrier(comm: maypole_comm, stream: maypole_stream) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_barrier", || unsafe { work::run(comm, stream, |_| Work::barrier()) })
}
