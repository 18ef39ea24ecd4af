//! A look around while a thread waits: for programs in a language whose runtime must have its say now and then.
//!
//! Python, for one, runs what its user set for a signal only on its main thread, and only when that thread asks. A
//! thread that waits here for other ranks would not ask for as long as the deadline lasts, so Ctrl-C would do nothing.

use std::sync::OnceLock;

static LOOK: OnceLock<fn() -> bool> = OnceLock::new();

/// Have every thread that waits in a blocking call run `look` about ten times a second, once the wait has become long
/// (some milliseconds). It is run on the waiting thread, which holds none of this crate's locks meanwhile. It returns
/// whether to stop waiting. That ends a wait for a request, which goes on
/// ([`RawRequest::wait_for`](crate::RawRequest::wait_for)); a rank inside an operation cannot leave it, and for that
/// `look` calls [`Communicator::abort`](crate::Communicator::abort). A call that waits for operations of the same
/// communicator would wait for itself.
///
/// Once per process: `false` if it was set before.
pub fn look_with(look: fn() -> bool) -> bool {
    LOOK.set(look).is_ok()
}

/// Look around: whether to stop waiting, where that is possible.
#[cold]
pub(crate) fn look() -> bool {
    LOOK.get().is_some_and(|look| look())
}
