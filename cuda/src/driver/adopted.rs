//! What this thread knows of streams that it has adopted before.
//!
//! A framework passes its stream with every call, as a handle, and to ask the driver for everything about it takes some nine
//! calls, one of which takes a lock of the whole process. Handles are given again when streams are destroyed, so what is
//! known counts only while the stream's number is the same, which no other stream of the process ever has: one call.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use cudarc::driver::sys::CUstream;

use super::{Context, Result};

/// How many streams a thread remembers; those that it uses in turns.
const REMEMBERED: usize = 8;

/// What never changes about a stream.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub number: u64,
    pub priority: i32,
    pub context: Arc<Context>,
}

impl Facts {
    /// Asks for them.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Safety
    /// `raw` is a living stream of `context`.
    pub unsafe fn of(raw: CUstream, context: Arc<Context>) -> Result<Facts> {
        let mut priority = 0;
        // SAFETY: passed on to the caller.
        let number = unsafe { number(&context, raw) }?;
        let entered = context.enter()?;
        // SAFETY: the stream is alive, its context current, and the pointer valid.
        unsafe { context.driver().cuStreamGetPriority(raw, &mut priority) }?;
        drop(entered);
        Ok(Facts { number, priority, context })
    }
}

struct Known {
    raw: CUstream,
    number: u64,
    priority: i32,
    /// Not kept: nobody is to have a context only because a thread once adopted a stream of it.
    context: Weak<Context>,
}

thread_local! {
    /// The streams, and which of them makes room for the next.
    static KNOWN: RefCell<([Option<Known>; REMEMBERED], usize)> =
        const { RefCell::new(([const { None }; REMEMBERED], 0)) };
}

/// What is known of the stream that has this handle now.
///
/// # Safety
/// `raw` is a living stream.
pub(super) unsafe fn recall(raw: CUstream) -> Option<Facts> {
    KNOWN.with_borrow(|(known, _)| {
        let known = known.iter().flatten().find(|known| known.raw == raw)?;
        let facts = Facts { number: known.number, priority: known.priority, context: known.context.upgrade()? };
        // SAFETY: passed on to the caller.
        let number = unsafe { number(&facts.context, raw) };
        number.is_ok_and(|number| number == facts.number).then_some(facts)
    })
}

/// From now on this is known of it.
pub(super) fn remember(raw: CUstream, facts: &Facts) {
    KNOWN.with_borrow_mut(|(known, next)| {
        let at = known.iter().position(|known| known.as_ref().is_some_and(|known| known.raw == raw)).unwrap_or(*next);
        if at == *next {
            *next = (*next + 1) % REMEMBERED;
        }
        let Facts { number, priority, context } = facts;
        known[at] = Some(Known { raw, number: *number, priority: *priority, context: Arc::downgrade(context) });
    });
}

/// The stream's number.
///
/// # Safety
/// As for [`recall`].
pub(super) unsafe fn number(context: &Context, raw: CUstream) -> Result<u64> {
    let _entered = context.enter()?;
    let mut number = 0;
    // SAFETY: the stream is alive, a context is current, and the pointer is valid.
    unsafe { context.driver().cuStreamGetId(raw, &mut number) }?;
    Ok(number)
}
