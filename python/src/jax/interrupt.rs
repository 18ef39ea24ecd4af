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
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;

use crate::process;

/// How often Ctrl-C was pressed.
static PRESSED: AtomicU64 = AtomicU64::new(0);
/// How many of these Python's main thread has raised.
static RAISED: AtomicU64 = AtomicU64::new(0);
/// Wakes the thread that sees to that.
static EVENT: AtomicI32 = AtomicI32::new(-1);
static ONE: u64 = 1;
/// Python's own handler of C's, behind the one here; 0 where Python handles no Ctrl-C.
static PYTHONS: AtomicUsize = AtomicUsize::new(0);
/// Whether it takes three arguments.
static TAKES_INFO: AtomicBool = AtomicBool::new(false);
/// The process ends because of Ctrl-C: no call is worth waiting for.
static ENDING: AtomicBool = AtomicBool::new(false);

extern "C" fn press(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    PRESSED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: a handler may write; the number wakes `follow`. What errors there are, the interrupted code must not see.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(EVENT.load(Ordering::Relaxed), (&raw const ONE).cast(), size_of::<u64>());
        *libc::__errno_location() = errno;
    }
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

/// Ctrl-C since a wait began, or shortly before it.
pub struct Presses {
    before: u64,
    /// When the waiting thread first saw that Ctrl-C had been pressed.
    seen: Cell<Option<Instant>>,
}

impl Default for Presses {
    fn default() -> Presses {
        Presses { before: PRESSED.load(Ordering::Relaxed), seen: Cell::new(None) }
    }
}

impl Presses {
    /// What Python raises, or has raised, for Ctrl-C; asked ten times a second by the thread that waits, which does not
    /// hold the interpreter's lock.
    pub fn raised(&self) -> Option<String> {
        /// JAX's newer releases look after signals five times a second while they wait. They come first, and raise
        /// KeyboardInterrupt where they would otherwise raise the error of the call that failed.
        const PATIENCE: Duration = Duration::from_millis(450);
        if !ENDING.load(Ordering::Relaxed) {
            // Whoever sets a handler in Python puts Python's back.
            stand();
            let pressed = PRESSED.load(Ordering::Relaxed);
            // Before this wait is before it for good only if the main thread has raised it: it may be in JAX, and wait
            // for what this call is a part of.
            if pressed == self.before && pressed == RAISED.load(Ordering::Relaxed) {
                self.seen.set(None);
                return None;
            }
            let seen = self.seen.get().unwrap_or_else(Instant::now);
            self.seen.set(Some(seen));
            if seen.elapsed() < PATIENCE || !process::attached(is_pythons).unwrap_or(false) {
                return None;
            }
        }
        Some("KeyboardInterrupt".into())
    }
}

/// Python's main thread runs this after the handlers of signals that have come, as soon as it is in the interpreter.
extern "C" fn note_raised(pressed: *mut c_void) -> c_int {
    RAISED.fetch_max(pressed.addr() as u64, Ordering::Relaxed);
    0
}

/// For each time that Ctrl-C is pressed, have the main thread say when it has raised it. On a thread of its own, since
/// a handler may not ask for this.
fn follow(event: c_int) {
    let mut presses = 0u64;
    // SAFETY: reads the eight bytes of the number.
    while unsafe { libc::read(event, (&raw mut presses).cast(), size_of::<u64>()) } == size_of::<u64>() as isize {
        let pressed = std::ptr::without_provenance_mut(PRESSED.load(Ordering::Relaxed) as usize);
        // SAFETY: the function may be called on the main thread at any time. If there is no room for it, the next call
        // that waits takes the main thread for one that is not in the interpreter.
        process::attached(|_| unsafe { pyo3::ffi::Py_AddPendingCall(Some(note_raised), pressed) });
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
        // SAFETY: makes a descriptor, or returns -1, to which nothing can be written or read.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        EVENT.store(event, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("maypole-ctrl-c".into());
        thread.spawn(move || follow(event))?;
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
