//! Where device memory waits until it may be given back.
//!
//! The driver's functions that give memory back wait for everything on the device. If another rank of this process has
//! an operation queued there that waits for this one, and this thread is to queue it next, that would be for ever. So what
//! was dropped lies here until no operation of any communicator of this process is outstanding; no new one begins
//! while memory is given back.

use std::any::Any;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

/// Something of which operations may be outstanding.
pub(super) trait Busy: Send + Sync {
    /// Whether some are.
    fn is_busy(&self) -> bool;
}

/// Held for reading while an operation is queued.
static QUEUEING: RwLock<()> = RwLock::new(());
static COMMUNICATORS: Mutex<Vec<Weak<dyn Busy>>> = Mutex::new(Vec::new());
static DROPPED: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());

/// From now on nothing is given back while `communicator` is busy.
pub(super) fn watch(communicator: Weak<dyn Busy>) {
    let mut all = COMMUNICATORS.lock();
    all.retain(|known| known.strong_count() > 0);
    all.push(communicator);
}

/// An operation is about to be queued: nothing is given back before the result is dropped.
pub(crate) fn queueing() -> RwLockReadGuard<'static, ()> {
    // Recursive: a new reader must not wait behind a writer that waits for an older reader of the same thread.
    QUEUEING.read_recursive()
}

/// Drop `memory` as soon as that waits for nobody.
pub(super) fn give_back(memory: impl Any + Send) {
    DROPPED.lock().push(Box::new(memory));
    sweep();
}

/// Give back what can be.
pub(super) fn sweep() {
    if DROPPED.lock().is_empty() {
        return;
    }
    // Whoever is queueing will come by again.
    let Some(_nobody_queues) = QUEUEING.try_write() else { return };
    let communicators: Vec<Arc<dyn Busy>> = COMMUNICATORS.lock().iter().filter_map(Weak::upgrade).collect();
    if communicators.iter().any(|communicator| communicator.is_busy()) {
        return;
    }
    let dropped = std::mem::take(&mut *DROPPED.lock());
    drop(dropped);
}
