//! Persistent operations: planned once, started many times. The collectives in this form, and what is done with them.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use maypole::{Collective, RawPersistent};

use crate::communicator::maypole_comm;
use crate::entry::{enter, give};
use crate::operation::{MAYPOLE_SUM, Operation, maypole_op};
use crate::status::{Outcome, maypole_status};
use crate::stream::{host_stream_of, maypole_stream, queue};
use crate::table::{Kind, Table};
use crate::values::maypole_dtype;
use crate::work::{self, Work};

/// What maypole_persistent points to: nothing that C could look at.
pub struct maypole_persistent_s {
    _opaque: [u8; 0],
}

/// A collective on fixed buffers that was checked and planned when it was made. Every rank makes it and starts it in the
/// same order as its other calls; each start is one operation of the communicator, which it keeps. Its buffers must stay
/// until it is destroyed, and be left alone from each start to the wait for it.
pub type maypole_persistent = *mut maypole_persistent_s;

/// What a handle stands for.
pub(crate) struct Persistent {
    raw: RawPersistent,
    /// What the operation calls.
    _operation: Option<Arc<Operation>>,
}

static PERSISTENT: Table<Persistent> = Table::new(Kind::Persistent);

fn persistent_of(persistent: maypole_persistent) -> Outcome<Arc<Persistent>> {
    PERSISTENT.get("persistent", persistent.addr() as u64)
}

/// # Safety
/// `to` is NULL or valid for writes.
pub(crate) unsafe fn give_persistent(
    raw: RawPersistent,
    operation: Option<Arc<Operation>>,
    to: *mut maypole_persistent,
) -> Outcome {
    let handle = PERSISTENT.insert(Persistent { raw, _operation: operation });
    // SAFETY: the caller's promise.
    unsafe { give("persistent", to, std::ptr::without_provenance_mut(handle as usize)) }
}

/// Start the operation and return: on a host stream, or on the communicator's own where `stream` is NULL. Refused if it was
/// started before and not waited for since.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_persistent_start(persistent: maypole_persistent, stream: maypole_stream) -> maypole_status {
    enter("maypole_persistent_start", || {
        let (persistent, stream) = (persistent_of(persistent)?, host_stream_of(stream)?);
        Ok(queue(&stream).map_or_else(|| persistent.raw.start(), |stream| persistent.raw.start_on(stream))?)
    })
}

/// Start the operation and wait for it, on this thread: what costs least.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_persistent_run(persistent: maypole_persistent) -> maypole_status {
    enter("maypole_persistent_run", || Ok(persistent_of(persistent)?.raw.run()?))
}

/// Wait for the run that was started, and return its outcome. Returns at once if none was.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_persistent_wait(persistent: maypole_persistent) -> maypole_status {
    enter("maypole_persistent_wait", || Ok(persistent_of(persistent)?.raw.wait()?))
}

/// Whether it is not running: 1 or 0 into `done`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_test(persistent: maypole_persistent, done: *mut c_int) -> maypole_status {
    enter("maypole_persistent_test", || {
        let done_now = c_int::from(persistent_of(persistent)?.raw.test());
        // SAFETY: the caller's promise.
        unsafe { give("done", done, done_now) }
    })
}

/// Give up the operation. Waits for a run that is under way, and drops its error.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_persistent_destroy(persistent: maypole_persistent) -> maypole_status {
    enter("maypole_persistent_destroy", || PERSISTENT.remove("persistent", persistent.addr() as u64).map(drop))
}

/// Plan maypole_all_reduce() to be started any number of times; `persistent` gets the operation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_all_reduce(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_all_reduce", || unsafe {
        work::keep(comm, persistent, |_| Work::even(Collective::AllReduce, (input, output), (count, dtype), op, 0))
    })
}

/// Plan maypole_reduce() to be started any number of times; `persistent` gets the operation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_reduce(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    root: c_int,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_reduce", || unsafe {
        work::keep(comm, persistent, |_| Work::even(Collective::Reduce, (input, output), (count, dtype), op, root))
    })
}

/// Plan maypole_broadcast() to be started any number of times; `persistent` gets the operation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_broadcast(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    root: c_int,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_broadcast", || unsafe {
        work::keep(comm, persistent, |_| {
            Work::even(Collective::Broadcast, (input, output), (count, dtype), MAYPOLE_SUM, root)
        })
    })
}

/// Plan maypole_all_gather() to be started any number of times; `persistent` gets the operation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_all_gather(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_all_gather", || unsafe {
        work::keep(comm, persistent, |_| {
            Work::even(Collective::AllGather, (input, output), (count, dtype), MAYPOLE_SUM, 0)
        })
    })
}

/// Plan maypole_reduce_scatter() to be started any number of times; `persistent` gets the operation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_reduce_scatter(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_reduce_scatter", || unsafe {
        work::keep(comm, persistent, |_| Work::even(Collective::ReduceScatter, (input, output), (count, dtype), op, 0))
    })
}

/// Plan maypole_all_to_all() to be started any number of times; `persistent` gets the operation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_all_to_all(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_all_to_all", || unsafe {
        work::keep(comm, persistent, |_| {
            Work::even(Collective::AllToAll, (input, output), (count, dtype), MAYPOLE_SUM, 0)
        })
    })
}

/// Plan maypole_gather() to be started any number of times; `persistent` gets the operation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_gather(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    root: c_int,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_gather", || unsafe {
        work::keep(comm, persistent, |_| {
            Work::even(Collective::Gather, (input, output), (count, dtype), MAYPOLE_SUM, root)
        })
    })
}

/// Plan maypole_scatter() to be started any number of times; `persistent` gets the operation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_scatter(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    root: c_int,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_scatter", || unsafe {
        work::keep(comm, persistent, |_| {
            Work::even(Collective::Scatter, (input, output), (count, dtype), MAYPOLE_SUM, root)
        })
    })
}

/// Plan maypole_scan() to be started any number of times; `persistent` gets the operation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_scan(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_scan", || unsafe {
        work::keep(comm, persistent, |_| Work::even(Collective::Scan, (input, output), (count, dtype), op, 0))
    })
}

/// Plan maypole_exclusive_scan() to be started any number of times; `persistent` gets the operation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_exclusive_scan(
    comm: maypole_comm,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    dtype: maypole_dtype,
    op: maypole_op,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_exclusive_scan", || unsafe {
        work::keep(comm, persistent, |_| Work::even(Collective::ExclusiveScan, (input, output), (count, dtype), op, 0))
    })
}

/// Plan maypole_barrier().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_persistent_barrier(
    comm: maypole_comm,
    persistent: *mut maypole_persistent,
) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_persistent_barrier", || unsafe { work::keep(comm, persistent, |_| Work::barrier()) })
}
