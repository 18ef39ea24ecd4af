//! The arguments of collectives with variable counts, in C's order, turned into calls: once for each collective, whichever
//! form it is called in.
//!
//! # Safety
//! of all of them: counts and displacements that are not NULL have an entry for each rank of `comm`.

use std::ffi::{c_int, c_void};

use maypole::{Collective, Communicator};

use crate::operation::{MAYPOLE_SUM, maypole_op};
use crate::status::Outcome;
use crate::values::maypole_dtype;
use crate::work::{Counts, Work};

/// Where a call reads, and where it writes.
type Input = *const c_void;
type Output = *mut c_void;
/// One number for each rank, or NULL.
type PerRank = *const usize;

pub(crate) unsafe fn all_gather<'a>(
    comm: &Communicator,
    input: Input,
    input_count: &'a usize,
    output: Output,
    counts: PerRank,
    displacements: PerRank,
    dtype: maypole_dtype,
) -> Outcome<Work<'a>> {
    let sides = ((input, Counts::Own(input_count)), (output, Counts::Each(counts, displacements)));
    // SAFETY: the caller's promise.
    unsafe { Work::variable(comm, Collective::AllGather, sides, dtype, (MAYPOLE_SUM, 0)) }
}

pub(crate) unsafe fn reduce_scatter<'a>(
    comm: &Communicator,
    input: Input,
    counts: PerRank,
    displacements: PerRank,
    output: Output,
    output_count: &'a usize,
    dtype: maypole_dtype,
    op: maypole_op,
) -> Outcome<Work<'a>> {
    let sides = ((input, Counts::Each(counts, displacements)), (output, Counts::Own(output_count)));
    // SAFETY: the caller's promise.
    unsafe { Work::variable(comm, Collective::ReduceScatter, sides, dtype, (op, 0)) }
}

pub(crate) unsafe fn all_to_all<'a>(
    comm: &Communicator,
    (input, sent): (Input, (PerRank, PerRank)),
    (output, received): (Output, (PerRank, PerRank)),
    dtype: maypole_dtype,
) -> Outcome<Work<'a>> {
    let sides = ((input, Counts::Each(sent.0, sent.1)), (output, Counts::Each(received.0, received.1)));
    // SAFETY: the caller's promise.
    unsafe { Work::variable(comm, Collective::AllToAll, sides, dtype, (MAYPOLE_SUM, 0)) }
}

pub(crate) unsafe fn gather<'a>(
    comm: &Communicator,
    input: Input,
    input_count: &'a usize,
    output: Output,
    counts: PerRank,
    displacements: PerRank,
    dtype: maypole_dtype,
    root: c_int,
) -> Outcome<Work<'a>> {
    let sides = ((input, Counts::Own(input_count)), (output, Counts::EachAtRoot(counts, displacements)));
    // SAFETY: the caller's promise.
    unsafe { Work::variable(comm, Collective::Gather, sides, dtype, (MAYPOLE_SUM, root)) }
}

pub(crate) unsafe fn scatter<'a>(
    comm: &Communicator,
    input: Input,
    counts: PerRank,
    displacements: PerRank,
    output: Output,
    output_count: &'a usize,
    dtype: maypole_dtype,
    root: c_int,
) -> Outcome<Work<'a>> {
    let sides = ((input, Counts::EachAtRoot(counts, displacements)), (output, Counts::Own(output_count)));
    // SAFETY: the caller's promise.
    unsafe { Work::variable(comm, Collective::Scatter, sides, dtype, (MAYPOLE_SUM, root)) }
}
