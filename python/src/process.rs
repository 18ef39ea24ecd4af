//! What happens to the process: it may fork, and the interpreter may shut down, while there are communicators.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use maypole::Communicator;
use maypole::fork::PerProcess;
use maypole_transports::lock::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::communicator::Slot;
use crate::waiting;

/// The interpreter is about to go: threads of ours must not ask for it any more.
static LEAVING: AtomicBool = AtomicBool::new(false);
/// Threads of ours that are in the interpreter.
static INSIDE: Threads = Threads(AtomicU64::new(0));
/// Every communicator that Python has.
static OPEN: PerProcess<Mutex<Vec<Weak<Slot>>>> = PerProcess::new();

/// How many threads are somewhere. Those of a parent are not in its fork, and do not count there: beside their number it
/// has the generation's.
struct Threads(AtomicU64);

impl Threads {
    fn count(word: u64) -> u64 {
        if word >> 32 == generation() & u64::from(u32::MAX) { word & u64::from(u32::MAX) } else { 0 }
    }

    fn change(&self, change: impl Fn(u64) -> u64) {
        let changed = |word| Some(generation() << 32 | change(Self::count(word)));
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, changed);
    }

    fn come(&self) {
        self.change(|count| count + 1);
    }

    fn go(&self) {
        self.change(|count| count.saturating_sub(1));
    }

    fn are_there(&self) -> bool {
        Self::count(self.0.load(Ordering::SeqCst)) > 0
    }
}

/// Which of a line of forks this process is: what was made under another number belongs to a parent.
pub fn generation() -> u64 {
    maypole::fork::generation()
}

/// Have a communicator closed at the interpreter's exit.
pub fn remember(slot: &Arc<Slot>) {
    static SEEN_TO: PerProcess<AtomicBool> = PerProcess::new();
    if !SEEN_TO.get().swap(true, Ordering::Relaxed) {
        Python::attach(|py| {
            let seen = py.import("maypole._leaving").and_then(|leaving| leaving.call_method0("see_to"));
            if let Err(error) = seen {
                error.write_unraisable(py, None);
            }
        });
    }
    let mut open = OPEN.get().lock();
    open.retain(|slot| slot.strong_count() > 0);
    open.push(Arc::downgrade(slot));
}

/// Run `f` in the interpreter, on a thread that is not Python's. `None` if it is shutting down.
pub fn attached<R>(f: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    struct Inside;
    impl Drop for Inside {
        fn drop(&mut self) {
            INSIDE.go();
        }
    }
    INSIDE.come();
    let _inside = Inside;
    if LEAVING.load(Ordering::SeqCst) { None } else { Python::try_attach(f) }
}

/// Drop something on a thread of its own: that may wait for other ranks, where the interpreter's
/// lock is held and Ctrl-C could not end it. Without a thread it is never dropped.
pub fn drop_apart<T: Send + 'static>(name: &str, what: T) {
    let what = ManuallyDrop::new(what);
    let _ = std::thread::Builder::new().name(name.into()).spawn(move || drop(ManuallyDrop::into_inner(what)));
}

/// Leave a communicator on a thread of its own: that may wait for other ranks, which must not happen with the GIL held.
pub fn leave(comm: Arc<Communicator>) {
    // Without a thread it is left here, where the closure is dropped.
    let _ = std::thread::Builder::new().name("maypole-leave".into()).spawn(move || drop(comm));
}

/// Children that multiprocessing forks run none of their parent's exit functions, but finalizers of multiprocessing's: one
/// of these leaves. To be called where this process has become a rank.
pub fn see_to_leaving(py: Python<'_>) {
    /// One more than the generation of the process that was seen to last.
    static SEEN_TO: AtomicU64 = AtomicU64::new(0);
    let register = || -> PyResult<()> {
        let modules = py.import("sys")?.getattr("modules")?;
        // A child of its has it.
        let Ok(multiprocessing) = modules.get_item("multiprocessing") else { return Ok(()) };
        if !multiprocessing.call_method0("parent_process")?.is_none() {
            let leave = py.import("maypole._maypole")?.getattr("_leave")?;
            let last = PyDict::new(py);
            last.set_item("exitpriority", 0)?;
            py.import("multiprocessing.util")?.getattr("Finalize")?.call((py.None(), leave), Some(&last))?;
        }
        Ok(())
    };
    let process = generation() + 1;
    if SEEN_TO.swap(process, Ordering::Relaxed) != process {
        // Without it the child ends as one that calls `_exit`.
        let _ = register();
    }
}

/// How long a process that raised waits for others at its end.
const FAILED: Duration = Duration::from_secs(1);

/// The interpreter is about to exit: leave what this process is in, as the library does when a process ends. What is
/// under way has a second to end. A signal's handler that raises ends the wait for others. `raised`: the process ends by
/// an exception, so whoever started it waits to see that, and others are not waited for.
#[pyfunction]
#[pyo3(signature = (raised=false))]
pub fn _leave(py: Python<'_>, raised: bool) -> PyResult<()> {
    let left = waiting::leaving(py, || match raised {
        true => maypole::exit::leave_within(FAILED),
        false => maypole::exit::leave(),
    });
    LEAVING.store(true, Ordering::SeqCst);
    let open = std::mem::take(&mut *OPEN.get().lock());
    py.detach(|| {
        // They refuse calls from now on.
        for slot in open.iter().filter_map(Weak::upgrade) {
            slot.close();
        }
        // Those inside wait for the interpreter, which this thread has just let go, and are out again soon.
        let until = Instant::now() + Duration::from_secs(5);
        while INSIDE.are_there() && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    left
}
