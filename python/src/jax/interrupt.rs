//! Ctrl-C while a compiled program waits for other ranks.
//!
//! Python raises `KeyboardInterrupt` on its main thread, once that is back in the interpreter. XLA runs a program's
//! calls on that thread or on others, while the main thread waits for results inside JAX or does something else. So
//! what the interpreter knows does not reach a call that waits, and while the call waits the main thread may never be
//! back.
//!
//! Here Ctrl-C is counted as well: a handler of C's stands before Python's, and counts. A call that waits looks at the
//! count ten times a second ([`Presses`]); if it has grown, and Python would raise `KeyboardInterrupt`, the call aborts
//! its communicator, as a blocking call does. That ends the program with an error, the main thread comes back, and
//! Python raises what it meant to. Where the user has set a handler of his own for the signal, it is his to decide, and
//! nothing is aborted here.
//!
//! A call on the main thread can have handlers run, so it does that instead (`waiting`).

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;

use crate::process;

/// How often Ctrl-C was pressed.
static PRESSED: AtomicU64 = AtomicU64::new(0);
/// Python's own handler of C's, behind the one here; 0 where Python handles no Ctrl-C.
static PYTHONS: AtomicUsize = AtomicUsize::new(0);
/// Whether it takes three arguments.
static TAKES_INFO: AtomicBool = AtomicBool::new(false);
/// The process ends because of Ctrl-C: no call is worth waiting for.
static ENDING: AtomicBool = AtomicBool::new(false);

extern "C" fn press(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    PRESSED.fetch_add(1, Ordering::Relaxed);
    let python = PYTHONS.load(Ordering::Relaxed);
    if TAKES_INFO.load(Ordering::Relaxed) {
        // SAFETY: the address of such a function, as the system gave it.
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = unsafe { std::mem::transmute(python) };
        handler(signal, info, context);
    } else {
        // SAFETY: as above, of one with one argument.
        let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(python) };
        handler(signal);
    }
}

/// What handles Ctrl-C in this process.
fn installed() -> Option<libc::sigaction> {
    let mut found = MaybeUninit::uninit();
    // SAFETY: asks, and writes to `found`, unless it returns an error.
    let status = unsafe { libc::sigaction(libc::SIGINT, std::ptr::null(), found.as_mut_ptr()) };
    // SAFETY: as above.
    (status == 0).then(|| unsafe { found.assume_init() })
}

/// Stand before Python's handler, if that is the one that is installed: not before another's, which may have put itself
/// before this one.
fn stand() {
    let python = PYTHONS.load(Ordering::Relaxed);
    let Some(found) = installed().filter(|found| python != 0 && found.sa_sigaction == python) else { return };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = press;
    let before =
        libc::sigaction { sa_sigaction: handler as usize, sa_flags: found.sa_flags | libc::SA_SIGINFO, ..found };
    // SAFETY: `press` does what a handler may: it adds to an atomic and calls the handler that was there.
    unsafe { libc::sigaction(libc::SIGINT, &before, null_mut()) };
}

/// Ctrl-C since a wait began.
pub struct Presses {
    before: u64,
    /// How often the waiting thread has looked since.
    looks: Cell<u32>,
}

impl Default for Presses {
    fn default() -> Presses {
        Presses { before: PRESSED.load(Ordering::Relaxed), looks: Cell::new(0) }
    }
}

impl Presses {
    /// What Python raises, or has raised, for Ctrl-C since the wait began; asked ten times a second by the thread that
    /// waits, which does not hold the interpreter's lock.
    pub fn raised(&self) -> Option<String> {
        /// JAX's newer releases look after signals while they wait. They come first, and raise KeyboardInterrupt where
        /// they would otherwise raise the error of the call that failed.
        const PATIENCE: u32 = 2;
        if !ENDING.load(Ordering::Relaxed) {
            // Whoever sets a handler in Python puts Python's back.
            stand();
            if PRESSED.load(Ordering::Relaxed) == self.before {
                return None;
            }
            self.looks.set(self.looks.get() + 1);
            if self.looks.get() <= PATIENCE || !process::attached(is_pythons).unwrap_or(false) {
                return None;
            }
        }
        Some("KeyboardInterrupt".into())
    }
}

/// Whether Ctrl-C raises `KeyboardInterrupt`, as in a Python where nobody set anything else.
fn is_pythons(py: Python<'_>) -> bool {
    let ask = || {
        let signal = py.import("signal")?;
        let set = signal.call_method1("getsignal", (libc::SIGINT,))?;
        PyResult::Ok(set.is(signal.getattr("default_int_handler")?))
    };
    ask().unwrap_or(false)
}

/// A call on the main thread had `raised` raised, which XLA cannot pass on. If it is what Python raises for Ctrl-C,
/// have the main thread raise it again when it is back in the interpreter.
pub fn again(raised: PyErr) -> Option<PyErr> {
    let own = process::attached(|py| raised.is_instance_of::<PyKeyboardInterrupt>(py) && is_pythons(py));
    if own != Some(true) {
        return Some(raised);
    }
    // SAFETY: it may be called at any time, with or without the interpreter's lock.
    unsafe { pyo3::ffi::PyErr_SetInterrupt() };
    None
}

/// Count Ctrl-C from now on.
#[pyfunction]
#[pyo3(name = "_jax_watch_interrupts")]
pub fn watch(py: Python<'_>) -> PyResult<()> {
    let set = py.import("signal")?.call_method1("getsignal", (libc::SIGINT,))?;
    if set.is_callable()
        && PYTHONS.load(Ordering::Relaxed) == 0
        && let Some(found) = installed()
    {
        TAKES_INFO.store(found.sa_flags & libc::SA_SIGINFO != 0, Ordering::Relaxed);
        PYTHONS.store(found.sa_sigaction, Ordering::Relaxed);
    }
    stand();
    Ok(())
}

/// The process ends because of Ctrl-C: calls that still wait give up.
#[pyfunction]
#[pyo3(name = "_jax_give_up")]
pub fn give_up() {
    ENDING.store(true, Ordering::Relaxed);
}
