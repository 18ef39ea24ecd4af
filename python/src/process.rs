//! What happens to the process: it may fork, and the interpreter may shut down, while there are communicators.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once, Weak};
use std::time::{Duration, Instant};

use maypole::Communicator;
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::communicator::Slot;
use crate::waiting;

/// How often this process is a fork of a process that had this module.
static FORKS: AtomicU64 = AtomicU64::new(0);
/// The interpreter is about to go: threads of ours must not ask for it any more.
static LEAVING: AtomicBool = AtomicBool::new(false);
/// Threads of ours that are in the interpreter.
static INSIDE: AtomicU64 = AtomicU64::new(0);
/// Every communicator that Python has.
static OPEN: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());

extern "C" fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    // Of the threads there is one left.
    INSIDE.store(0, Ordering::SeqCst);
}

/// Watch for forks from now on.
pub fn watch_forks() {
    static ONCE: Once = Once::new();
    // SAFETY: the handler does nothing but set two atomics, which a child of a process with threads may do.
    ONCE.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(forked));
    });
}

/// Which of a line of forks this process is: what was made under another number belongs to a parent.
pub fn generation() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// Have a communicator closed at the interpreter's exit.
pub fn remember(slot: &Arc<Slot>) {
    let mut open = OPEN.lock();
    open.retain(|slot| slot.strong_count() > 0);
    open.push(Arc::downgrade(slot));
}

/// Run `f` in the interpreter, on a thread that is not Python's. `None` if it is shutting down.
pub fn attached<R>(f: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    struct Inside;
    impl Drop for Inside {
        fn drop(&mut self) {
            INSIDE.fetch_sub(1, Ordering::SeqCst);
        }
    }
    INSIDE.fetch_add(1, Ordering::SeqCst);
    let _inside = Inside;
    if LEAVING.load(Ordering::SeqCst) { None } else { Python::try_attach(f) }
}

/// Leave a communicator on a thread of its own: that may wait for other ranks, which must not happen with the GIL held.
pub fn leave(comm: Arc<Communicator>) {
    // Without a thread it is left here, where the closure is dropped.
    let _ = std::thread::Builder::new().name("maypole-leave".into()).spawn(move || drop(comm));
}

/// The interpreter is about to exit: leave what this process is in, as the library does when a process ends. What is
/// under way has a second to end. A signal's handler that raises ends the wait for others.
#[pyfunction]
pub fn _leave(py: Python<'_>) -> PyResult<()> {
    let left = waiting::leaving(py, maypole::exit::leave);
    LEAVING.store(true, Ordering::SeqCst);
    let open = std::mem::take(&mut *OPEN.lock());
    py.detach(|| {
        // They refuse calls from now on.
        for slot in open.iter().filter_map(Weak::upgrade) {
            slot.close();
        }
        // Those inside wait for the interpreter, which this thread has just let go, and are out again soon.
        let until = Instant::now() + Duration::from_secs(5);
        while INSIDE.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    left
}
