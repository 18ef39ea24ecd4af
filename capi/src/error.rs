//! The latest error of each thread, in full.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};

use crate::status::*;

/// A thread's latest error, as C strings that stay until the next one.
struct Last {
    text: CString,
    host: CString,
    operation: CString,
    kind: maypole_kind,
    rank: c_int,
}

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// A C string of `text`, without the zero bytes that it might have.
fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// Remember an error as this thread's latest; gives its status.
pub(crate) fn remember(function: &str, fault: Fault) -> maypole_status {
    let operation = if fault.operation.is_empty() { function } else { &fault.operation };
    let last = Last {
        text: c_string(&format!("{function}: {}", fault.text)),
        host: c_string(&fault.host),
        operation: c_string(operation),
        kind: fault.kind,
        rank: fault.rank.and_then(|rank| c_int::try_from(rank).ok()).unwrap_or(-1),
    };
    // A thread that is ending has nobody left who would ask.
    let _ = LAST.try_with(|slot| *slot.borrow_mut() = Some(last));
    fault.status
}

/// Something of the latest error. The pointer is into this thread's memory.
fn latest<T>(of: impl FnOnce(&Last) -> T) -> Option<T> {
    LAST.try_with(|slot| slot.borrow().as_ref().map(of)).ok().flatten()
}

const EMPTY: &CStr = c"";

/// What the latest call on this thread that returned an error had to say: what happened, on which rank, what was expected
/// and what to do. Empty if there was none. Never NULL; valid until this thread's next error. Calls that succeed leave it.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_last_error() -> *const c_char {
    latest(|last| last.text.as_ptr()).unwrap_or(EMPTY.as_ptr())
}

/// Why the communicator has failed, if the latest error on this thread was MAYPOLE_ERROR_FAILED; otherwise
/// MAYPOLE_KIND_NONE.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_last_error_kind() -> maypole_kind {
    latest(|last| last.kind).unwrap_or(MAYPOLE_KIND_NONE)
}

/// The rank that is to blame for the latest error on this thread: the one that died, did not come, refused or aborted, or
/// this one if it passed a wrong argument. -1 if no rank is.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_last_error_rank() -> c_int {
    latest(|last| last.rank).unwrap_or(-1)
}

/// The host of that rank; empty if the error does not tell. Valid until this thread's next error.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_last_error_host() -> *const c_char {
    latest(|last| last.host.as_ptr()).unwrap_or(EMPTY.as_ptr())
}

/// The operation in which the latest error on this thread arose, as the ranks know it ("all_reduce #7 (8 x f32, sum)"), or
/// the name of the function that returned it. Valid until this thread's next error.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_last_error_operation() -> *const c_char {
    latest(|last| last.operation.as_ptr()).unwrap_or(EMPTY.as_ptr())
}

/// The name of a status: "MAYPOLE_OK" and so on. Never NULL; static.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_status_name(status: maypole_status) -> *const c_char {
    let name = match status {
        MAYPOLE_OK => c"MAYPOLE_OK",
        MAYPOLE_ERROR_ARGUMENT => c"MAYPOLE_ERROR_ARGUMENT",
        MAYPOLE_ERROR_HANDLE => c"MAYPOLE_ERROR_HANDLE",
        MAYPOLE_ERROR_FAILED => c"MAYPOLE_ERROR_FAILED",
        MAYPOLE_ERROR_BOOTSTRAP => c"MAYPOLE_ERROR_BOOTSTRAP",
        MAYPOLE_ERROR_SETTING => c"MAYPOLE_ERROR_SETTING",
        MAYPOLE_ERROR_DEVICE => c"MAYPOLE_ERROR_DEVICE",
        MAYPOLE_ERROR_SYSTEM => c"MAYPOLE_ERROR_SYSTEM",
        MAYPOLE_ERROR_PANIC => c"MAYPOLE_ERROR_PANIC",
        MAYPOLE_ERROR_FORKED => c"MAYPOLE_ERROR_FORKED",
        MAYPOLE_PENDING => c"MAYPOLE_PENDING",
        _ => c"no status of Maypole's",
    };
    name.as_ptr()
}
