//! What happens to the process: it may fork, and the interpreter may shut down, while there are communicators.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once, Weak};
use std::time::{Duration, Instant};

use maypole::Communicator;
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::communicator::Slot;

/// How often this process is a fork of a process that had this module.
static FORKS: AtomicU64 = AtomicU64::new(0);
/// The interpreter is about to go: threads of ours must not ask for it any more.
static LEAVING: AtomicBool = AtomicBool::new(false);
/// Threads of ours that are in the interpreter.
static INSIDE: AtomicU64 = AtomicU64::new(0);
/// Threads of ours that leave a communicator.
static PARTING: AtomicU64 = AtomicU64::new(0);
/// Every communicator that Python has.
static OPEN: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());

extern "C" fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    // Of the threads there is one left.
    INSIDE.store(0, Ordering::SeqCst);
    PARTING.store(0, Ordering::SeqCst);
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
    struct Parting(Option<Arc<Communicator>>);
    impl Drop for Parting {
        fn drop(&mut self) {
            drop(self.0.take());
            PARTING.fetch_sub(1, Ordering::SeqCst);
        }
    }
    PARTING.fetch_add(1, Ordering::SeqCst);
    let parting = Parting(Some(comm));
    // Without a thread it is left here, where the closure is dropped.
    let _ = std::thread::Builder::new().name("maypole-leave".into()).spawn(move || drop(parting));
}

/// Wait until those that [`leave`] was told of have been left: a process that ends before counts as dead to the others.
pub fn wait_until_left(at_most: Duration) {
    let start = Instant::now();
    while PARTING.load(Ordering::SeqCst) > 0 && start.elapsed() < at_most {
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// The interpreter is about to exit: leave every communicator as `close` does. Operations under way are cut off when
/// the process ends, and other ranks that need them are told that this one is gone.
#[pyfunction]
pub fn _leave(py: Python<'_>) {
    LEAVING.store(true, Ordering::SeqCst);
    let open = std::mem::take(&mut *OPEN.lock());
    py.detach(|| {
        for slot in open.iter().filter_map(Weak::upgrade) {
            slot.close();
        }
        // Those inside wait for the interpreter, which this thread has just let go, and are out again soon.
        let until = Instant::now() + Duration::from_secs(5);
        while INSIDE.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(100));
        }
    });
}
