//! Communicators by number. A compiled program cannot hold a reference, but it can hold an integer.
//!
//! The numbers count from 1 in the order in which communicators were first used here, so ranks that do the same get the
//! same ones, and their programs are the same to the bit. Nothing here keeps a communicator open: the compiled program
//! does, through the Python object. A number whose communicator was closed gives an error.

use std::sync::{Arc, Weak};

use maypole::{Communicator, Error};
use maypole_transports::lock::{Mutex, RwLock};
use pyo3::PyErr;

use crate::process;

/// A communicator and the process that has it: a fork's copy of it is no rank.
struct Entry {
    comm: Weak<Communicator>,
    generation: u64,
}

/// Entry `n` is number `n + 1`. It grows by an entry for each communicator that was ever used under JAX.
static COMMUNICATORS: RwLock<Vec<Entry>> = RwLock::new(Vec::new());

/// Why a call failed.
pub enum Failure {
    /// As the library says.
    Own(Error),
    /// A signal's handler raised this, for which the communicator was aborted.
    Raised(PyErr),
}

/// The first failure since it was last taken: later ones are mostly its consequences.
static FAILURE: Mutex<Option<Failure>> = Mutex::new(None);

/// The number of `comm`.
pub fn number(comm: &Arc<Communicator>) -> i64 {
    let mut all = COMMUNICATORS.write();
    let found = all.iter().position(|entry| std::ptr::eq(entry.comm.as_ptr(), Arc::as_ptr(comm)));
    let index = found.unwrap_or_else(|| {
        all.push(Entry { comm: Arc::downgrade(comm), generation: process::generation() });
        all.len() - 1
    });
    index as i64 + 1
}

/// The communicator with this number, if it is this process's and still open.
pub fn find(number: i64) -> Option<Arc<Communicator>> {
    let index = usize::try_from(number).ok()?.checked_sub(1)?;
    let all = COMMUNICATORS.read();
    let entry = all.get(index)?;
    if entry.generation == process::generation() { entry.comm.upgrade() } else { None }
}

/// Keep the reason of an error that a handler returns to XLA, which only takes its text.
pub fn note_failure(failure: Failure) {
    FAILURE.lock().get_or_insert(failure);
}

/// Take the reason that was kept.
pub fn take_failure() -> Option<Failure> {
    FAILURE.lock().take()
}
