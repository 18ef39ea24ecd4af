//! What every call goes through on its way in and out.

use std::any::Any;
use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use maypole::fork;

use crate::error::remember;
use crate::status::*;

/// Run a call's body: its error becomes this thread's latest, and nothing unwinds.
#[inline]
pub(crate) fn enter(function: &'static str, body: impl FnOnce() -> Outcome) -> maypole_status {
    if fork::generation() != 0 {
        return forked(function);
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => MAYPOLE_OK,
        Ok(Err(fault)) => failed(function, fault),
        Err(payload) => panicked(function, &*payload),
    }
}

#[cold]
fn failed(function: &str, fault: Fault) -> maypole_status {
    // Not finding the time is no error, and must not hide the one before.
    if fault.status == MAYPOLE_PENDING { MAYPOLE_PENDING } else { remember(function, fault) }
}

#[cold]
fn forked(function: &str) -> maypole_status {
    let pid = std::process::id();
    let text = format!(
        "process {pid} is a child by fork() of one that had used Maypole: its threads and connections stayed with the \
         parent; fork before the first call of Maypole, or exec in the child"
    );
    remember(function, Fault::new(MAYPOLE_ERROR_FORKED, text))
}

#[cold]
fn panicked(function: &str, payload: &(dyn Any + Send)) -> maypole_status {
    let words = payload.downcast_ref::<&str>().copied();
    let words = words.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given");
    remember(function, Fault::new(MAYPOLE_ERROR_PANIC, format!("a defect in Maypole: {words}")))
}

/// Write a result where the caller wants it.
///
/// # Safety
/// `to` is NULL or valid for writes.
pub(crate) unsafe fn give<T>(name: &str, to: *mut T, value: T) -> Outcome {
    check_out(name, to)?;
    // SAFETY: not NULL, and so valid by the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

/// Refuse to give a result nowhere, before anything is done for it.
pub(crate) fn check_out<T>(name: &str, to: *mut T) -> Outcome {
    match to.is_null() {
        true => Err(Fault::argument(format!("{name} is NULL, but the result goes there"))),
        false => Ok(()),
    }
}

/// A rank that C gave.
pub(crate) fn rank_of(name: &str, rank: c_int) -> Outcome<usize> {
    usize::try_from(rank).map_err(|_| Fault::argument(format!("{name} is {rank}, but ranks count from 0")))
}

/// Text that C gave; `None` for NULL.
///
/// # Safety
/// `text` is NULL or a string that ends with a zero byte.
pub(crate) unsafe fn text_of<'a>(name: &str, text: *const c_char) -> Outcome<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|_| Fault::argument(format!("{name} is not UTF-8: {text:?}")))
}

/// An array that C gave; empty for NULL with no elements.
///
/// # Safety
/// `at` is NULL or valid for `count` elements.
pub(crate) unsafe fn array_of<'a, T>(name: &str, at: *const T, count: usize) -> Outcome<&'a [T]> {
    match (at.is_null(), count) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Fault::argument(format!("{name} is NULL, but {count} elements are needed"))),
        // SAFETY: the caller's promise.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(at, count) }),
    }
}
