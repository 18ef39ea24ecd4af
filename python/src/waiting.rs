//! Waiting without the interpreter's lock, and Ctrl-C meanwhile.
//!
//! Every call that may wait lets other threads of Python run (`detach`), with one exception to the silence that
//! follows: the library has the waiting thread look around ([`look`]) about ten times a second, and if that is Python's
//! main thread it runs the handlers of signals that have come. A handler that raises (the one of SIGINT does) ends the
//! wait: of a request, which goes on without being waited for, or of a blocking call, which nobody can leave half done,
//! so the communicator is aborted on all ranks and says why. A call in a program that JAX compiled may wait on any
//! thread, which has no handler to run; it is told of Ctrl-C by [`interrupt`](crate::jax::interrupt).
//!
//! No lock of the library's is ever asked for while the interpreter's is held, since whoever looks around may hold
//! locks of the library's that are not known here.

use std::cell::{Cell, RefCell};

use maypole::{Communicator, Error, Result};
use pyo3::prelude::*;

use crate::jax::interrupt::{self, Presses};
use crate::{error, process};

/// A wait of this thread.
struct Frame {
    /// The communicator that is in a blocking call; null for a request.
    comm: *const Communicator,
    /// In a call of a program that JAX compiled: Ctrl-C meanwhile.
    presses: Option<Presses>,
    /// What a signal's handler raised.
    raised: RefCell<Option<PyErr>>,
    outer: *const Frame,
}

impl Frame {
    fn new(comm: *const Communicator, presses: Option<Presses>) -> Frame {
        Frame { comm, presses, raised: RefCell::new(None), outer: CURRENT.get() }
    }

    /// Run `f` as this wait.
    fn within<R>(self, f: impl FnOnce() -> R) -> (R, Option<PyErr>) {
        /// Puts the outer one back, panic or not.
        struct Leave(*const Frame);
        impl Drop for Leave {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        CURRENT.set(&self);
        let leave = Leave(self.outer);
        let outcome = f();
        drop(leave);
        (outcome, self.raised.into_inner())
    }
}

thread_local! {
    static CURRENT: Cell<*const Frame> = const { Cell::new(std::ptr::null()) };
    /// Whether this thread runs an operation of the user's.
    static COMBINING: Cell<bool> = const { Cell::new(false) };
    /// Whether this is the process's first thread, as [`is_main`] found in the process of this
    /// generation.
    static IS_MAIN: Cell<Option<(u64, bool)>> = const { Cell::new(None) };
}

/// Whether this is the process's first thread, on which Python runs handlers. In a child by fork it
/// is the one that forked, whatever it was before.
fn is_main() -> bool {
    let process = process::generation();
    let found = IS_MAIN.get().filter(|(when, _)| *when == process);
    let (_, is_main) = found.unwrap_or_else(|| {
        // SAFETY: two calls that ask for numbers.
        (process, unsafe { libc::syscall(libc::SYS_gettid) == libc::c_long::from(libc::getpid()) })
    });
    IS_MAIN.set(Some((process, is_main)));
    is_main
}

/// A value that goes where the waiting thread goes: which is nowhere, it stays on its thread.
struct Here<T>(T);

// SAFETY: `detach` runs its closure on this thread; it asks for `Send` to keep out what needs the interpreter, and what
// is moved in here are addresses of arrays.
unsafe impl<T> Send for Here<T> {}

impl<T> Here<T> {
    fn get(self) -> T {
        self.0
    }
}

/// Run `f` without the interpreter's lock.
pub fn detached<R>(py: Python<'_>, f: impl FnOnce() -> R) -> R {
    let f = Here(f);
    py.detach(move || Here(f.get()())).get()
}

/// Make a blocking call of `comm`.
///
/// # Errors
/// The call's, or what a signal's handler raised; then `comm` was aborted.
pub fn blocking<R>(py: Python<'_>, comm: &Communicator, call: impl FnOnce() -> Result<R>) -> PyResult<R> {
    match interruptible(py, comm, call)? {
        (outcome, None) => outcome.map_err(|e| error::to_py(py, e)),
        (_, Some(raised)) => Err(raised),
    }
}

/// Make a blocking call of `comm`: what came of it, and what a signal's handler raised, for which
/// `comm` was aborted.
///
/// # Errors
/// The call cannot be made here.
pub fn interruptible<R>(
    py: Python<'_>,
    comm: &Communicator,
    call: impl FnOnce() -> Result<R>,
) -> PyResult<(Result<R>, Option<PyErr>)> {
    if COMBINING.get() || is_busy(|busy| std::ptr::eq(busy, comm)) {
        return Err(error::argument(py, BUSY));
    }
    Ok(in_frame(py, comm, call))
}

/// Wait for something that goes on if the wait ends early. `None`: it was not there in time.
///
/// # Errors
/// What a signal's handler raised.
pub fn request<R>(py: Python<'_>, wait: impl FnOnce() -> R) -> PyResult<R> {
    if COMBINING.get() || is_busy(|_| true) {
        return Err(error::argument(py, BUSY));
    }
    match in_frame(py, std::ptr::null(), wait) {
        (outcome, None) => Ok(outcome),
        (_, Some(raised)) => Err(raised),
    }
}

/// Leave communicators, which may wait for other ranks to do so; a signal's handler that raises ends the wait.
///
/// # Errors
/// What the handler raised.
pub fn leaving(py: Python<'_>, leave: impl FnOnce()) -> PyResult<()> {
    match in_frame(py, std::ptr::null(), leave) {
        ((), None) => Ok(()),
        ((), Some(raised)) => Err(raised),
    }
}

fn in_frame<R>(py: Python<'_>, comm: *const Communicator, f: impl FnOnce() -> R) -> (R, Option<PyErr>) {
    Frame::new(comm, None).within(|| detached(py, f))
}

/// Make a call of a program that JAX compiled, on whatever thread and without the interpreter. If a handler of the
/// user's raised something meanwhile, for which `comm` was aborted, that too.
pub fn in_program<R>(comm: &Communicator, call: impl FnOnce() -> R) -> (R, Option<PyErr>) {
    let (outcome, raised) = Frame::new(comm, Some(Presses::default())).within(call);
    (outcome, raised.and_then(interrupt::again))
}

const BUSY: &str = "the communicator is in a call already, which has called a signal handler or an operation of yours: there \
                    nothing but abort is possible; have it raise, or set a flag";

/// Whether this thread is in a blocking call of such a communicator already: then it is in a signal's handler.
fn is_busy(which: impl Fn(*const Communicator) -> bool) -> bool {
    let mut frame = CURRENT.get();
    while !frame.is_null() {
        // SAFETY: frames are on this thread's stack, below, and outer ones outlive inner ones.
        let at = unsafe { &*frame };
        if !at.comm.is_null() && which(at.comm) {
            return true;
        }
        frame = at.outer;
    }
    false
}

/// Run an operation of the user's, which must not wait for others.
pub fn combining<R>(f: impl FnOnce() -> R) -> R {
    let outer = COMBINING.replace(true);
    let result = f();
    COMBINING.set(outer);
    result
}

/// Have this thread, which waits without the interpreter's lock, run the handlers of signals that have come. Whether to
/// stop waiting.
fn look() -> bool {
    let frame = CURRENT.get();
    if frame.is_null() {
        return false;
    }
    // SAFETY: as in `is_busy`.
    let frame = unsafe { &*frame };
    if frame.raised.borrow().is_some() {
        return true;
    }
    let what = match &frame.presses {
        _ if is_main() => raised(frame),
        Some(presses) => presses.raised(),
        None => None,
    };
    let Some(what) = what else { return false };
    if !frame.comm.is_null() {
        let place = if frame.presses.is_some() { "compiled program" } else { "blocking call" };
        // SAFETY: borrowed by `blocking` or `in_program`, which has this frame.
        let comm = unsafe { &*frame.comm };
        comm.abort(&format!("{what} in a {place}"));
    }
    true
}

/// What the handlers of signals that have come raise, by name; kept in the frame.
fn raised(frame: &Frame) -> Option<String> {
    let what = Python::try_attach(|py| {
        let error = py.check_signals().err()?;
        let what = error.get_type(py).name().map_or_else(|_| "an exception".into(), |name| name.to_string());
        *frame.raised.borrow_mut() = Some(error);
        Some(what)
    });
    what.flatten()
}

/// Have waiting threads look around.
pub fn register() {
    maypole::interrupt::look_with(look);
}

/// Run `make`, which may wait for other ranks for long and cannot be ended, on a thread of its own; a signal's handler
/// that raises ends only the wait for it.
///
/// # Errors
/// Those of `make`, or what a signal's handler raised.
pub fn apart<R: Send + 'static>(py: Python<'_>, make: impl FnOnce() -> Result<R> + Send + 'static) -> PyResult<R> {
    let (give, take) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("maypole-joining".into());
    // Nobody may be there any more to take it.
    let spawned = thread.spawn(move || drop(give.send(make())));
    spawned.map_err(|e| {
        let error = Error::System { doing: "starting a thread".into(), what: e.to_string() };
        error::to_py(py, error)
    })?;
    loop {
        let slice = std::time::Duration::from_millis(50);
        match detached(py, || take.recv_timeout(slice)) {
            Ok(made) => return made.map_err(|e| error::to_py(py, e)),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                let error = Error::System { doing: "joining".into(), what: "its thread panicked".into() };
                return Err(error::to_py(py, error));
            }
        }
    }
}
