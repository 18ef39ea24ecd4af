//! Requests: asynchronous operations under way.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use maypole::RawRequest;

use crate::config::seconds;
use crate::entry::{check_out, enter, give};
use crate::error::remember;
use crate::operation::Operation;
use crate::status::*;
use crate::table::{Kind, Table};

/// What maypole_request points to: nothing that C could look at.
pub struct maypole_request_s {
    _opaque: [u8; 0],
}

/// An asynchronous operation, made by the maypole_start_... functions. Its buffers must stay, and be left alone, until it
/// has been waited for. It keeps its communicator.
pub type maypole_request = *mut maypole_request_s;

/// What a handle stands for.
pub(crate) struct Request {
    raw: RawRequest,
    /// What the operation may still call.
    _operations: Vec<Arc<Operation>>,
}

static REQUESTS: Table<Request> = Table::new(Kind::Request);

fn request_of(request: maypole_request) -> Outcome<Arc<Request>> {
    REQUESTS.get("request", request.addr() as u64)
}

/// # Safety
/// `to` is NULL or valid for writes.
pub(crate) unsafe fn give_request(
    raw: RawRequest,
    operations: Vec<Arc<Operation>>,
    to: *mut maypole_request,
) -> Outcome {
    let handle = REQUESTS.insert(Request { raw, _operations: operations });
    // SAFETY: the caller's promise.
    unsafe { give("request", to, std::ptr::without_provenance_mut(handle as usize)) }
}

/// Take the request at `at` out of use.
///
/// # Safety
/// `at` is valid for reads and writes.
unsafe fn take(at: *mut maypole_request) -> Outcome<Arc<Request>> {
    // SAFETY: the caller's promise, here and below.
    let taken = REQUESTS.remove("request", unsafe { *at }.addr() as u64)?;
    // SAFETY: as above.
    unsafe { *at = std::ptr::null_mut() };
    Ok(taken)
}

/// Wait until the operation is done. The request is then gone, and *request NULL, whether there was
/// an error or not. One thread waits for a request: to another that does so meanwhile it is gone
/// already, which is MAYPOLE_ERROR_HANDLE.
///
/// @return the operation's outcome.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_wait(request: *mut maypole_request) -> maypole_status {
    enter("maypole_wait", || {
        check_out("request", request)?;
        // SAFETY: the caller's promise.
        Ok(unsafe { take(request) }?.raw.wait()?)
    })
}

/// maypole_wait(), but only for so long.
///
/// @param seconds how long to wait.
/// @return MAYPOLE_PENDING if the operation is not done by then: it goes on, and the request stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_wait_for(request: *mut maypole_request, seconds: f64) -> maypole_status {
    enter("maypole_wait_for", || {
        check_out("request", request)?;
        // SAFETY: the caller's promise, here and below.
        let found = request_of(unsafe { *request })?;
        let limit = self::seconds("seconds", seconds)?.unwrap_or_default();
        match found.raw.wait_for(limit) {
            None => Err(Fault::new(MAYPOLE_PENDING, "not done yet")),
            Some(result) => {
                // SAFETY: as above.
                drop(unsafe { take(request) }?);
                Ok(result?)
            }
        }
    })
}

/// Whether the operation is done, with or without an error: 1 or 0 into `done`. Moves messages on. The request stays, and
/// must be waited for, which does not block then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_test(request: maypole_request, done: *mut c_int) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_test", || unsafe { give("done", done, c_int::from(request_of(request)?.raw.test())) })
}

/// Wait until all of these requests are done. They are then gone, and all entries NULL; entries that were NULL before are
/// skipped.
///
/// @param requests the requests.
/// @param count how many entries.
/// @return the first error in the order of the entries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_wait_all(requests: *mut maypole_request, count: usize) -> maypole_status {
    enter("maypole_wait_all", || {
        if count == 0 {
            return Ok(());
        }
        check_out("requests", requests)?;
        let mut first = Ok(());
        for at in (0..count).map(|index| requests.wrapping_add(index)) {
            // SAFETY: the caller's promise, here and below: there are `count` entries.
            if unsafe { *at }.is_null() {
                continue;
            }
            // SAFETY: as above.
            let outcome = unsafe { take(at) }.and_then(|request| Ok(request.raw.wait()?));
            first = first.and(outcome);
        }
        first
    })
}

/// Wait until one of these requests is done. It is then gone, and its entry NULL.
///
/// @param requests the requests; entries that are NULL are skipped.
/// @param count how many entries.
/// @param index gets the place of the one that is done: the first, if there are several. `count` if all entries were NULL.
/// @return the outcome of that one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_wait_any(
    requests: *mut maypole_request,
    count: usize,
    index: *mut usize,
) -> maypole_status {
    enter("maypole_wait_any", || {
        check_out("index", index)?;
        let mut living = Vec::with_capacity(count);
        if count > 0 {
            check_out("requests", requests)?;
        }
        for place in 0..count {
            // SAFETY: the caller's promise, here and below: there are `count` entries.
            let request = unsafe { *requests.wrapping_add(place) };
            if !request.is_null() {
                living.push((place, request_of(request)?));
            }
        }
        let Some(done) = RawRequest::wait_any(living.iter().map(|(_, request)| &request.raw)) else {
            // SAFETY: as above.
            return unsafe { give("index", index, count) };
        };
        let place = living[done].0;
        // SAFETY: as above.
        let request = unsafe {
            give("index", index, place)?;
            take(requests.wrapping_add(place))?
        };
        Ok(request.raw.wait()?)
    })
}

/// What maypole_when_done() calls: `status` is the operation's outcome, and on an error maypole_last_error() has its text
/// during the call. It must not block, and not throw: an exception that leaves it ends the process.
pub type maypole_done_callback = Option<unsafe extern "C-unwind" fn(context: *mut c_void, status: maypole_status)>;

/// Have a function called once when an operation is done: at once if it is, otherwise on the thread that ends it. The
/// request must be waited for all the same, and may be before the function has been called. Like a
/// wait it has a deadline: for a message that does not come the function is called with the error
/// of maypole_wait().
///
/// @param request the operation.
/// @param callback the function.
/// @param context handed to it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_when_done(
    request: maypole_request,
    callback: maypole_done_callback,
    context: *mut c_void,
) -> maypole_status {
    enter("maypole_when_done", || {
        /// The caller's, who has promised that any thread may hand it over.
        struct Context(*mut c_void);
        // SAFETY: as said.
        unsafe impl Send for Context {}
        let callback = callback.ok_or_else(|| Fault::argument("callback is NULL"))?;
        let context = Context(context);
        request_of(request)?.raw.when_done(move |result| {
            let Context(context) = { context };
            let status = result.map_or_else(|error| remember("maypole_when_done", error.into()), |()| MAYPOLE_OK);
            // SAFETY: the caller's promise.
            unsafe { callback(context, status) };
        });
        Ok(())
    })
}
