//! Where device memory waits until it may be given back.
//!
//! The driver's functions that give memory back wait for everything on the device. If another rank of this process has
//! an operation queued there that waits for this one, and this thread is to queue it next, that would be for ever. So what
//! was dropped lies here until no operation of any communicator of this process is outstanding; no new one begins
//! while memory is given back.
//!
//! Where each rank is a process of its own there is nothing to fear: operations that are outstanding wait for other
//! processes, which go on meanwhile. There memory is given back at once, even in a pipeline that always has something
//! outstanding, which would never give any back otherwise.

use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

/// Something of which operations may be outstanding.
pub(super) trait Busy: Send + Sync {
    /// Whether some are.
    fn is_busy(&self) -> bool;
    /// Whether several of its ranks are threads of this process.
    fn is_crowded(&self) -> bool;
}

/// What is given back in several steps, some of which wait for other ranks.
pub(super) trait Parting: Send {
    /// Go as far as it goes now, while no operation of this process is outstanding that waits for this thread. Returns
    /// whether that was the end.
    fn go_on(&mut self) -> bool;
}

/// What is given back at once.
struct Whole<T>(Option<T>);

impl<T: Send> Parting for Whole<T> {
    fn go_on(&mut self) -> bool {
        drop(self.0.take());
        true
    }
}

/// Held for reading while an operation is queued.
static QUEUEING: RwLock<()> = RwLock::new(());
static COMMUNICATORS: Mutex<Vec<Weak<dyn Busy>>> = Mutex::new(Vec::new());
static PARTING: Mutex<Vec<Box<dyn Parting>>> = Mutex::new(Vec::new());

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
pub(super) fn give_back(memory: impl Send + 'static) {
    part(Box::new(Whole(Some(memory))));
}

/// Let go of `shared`. If nobody else has it any more, it goes as with [`give_back`].
pub(super) fn let_go<T: Send + Sync + 'static>(shared: Arc<T>) {
    if let Some(last) = Arc::into_inner(shared) {
        give_back(last);
    }
}

/// Give back `parting` as soon as that waits for nobody.
pub(super) fn part(parting: Box<dyn Parting>) {
    PARTING.lock().push(parting);
    sweep();
}

/// Give back what can be.
pub(super) fn sweep() {
    if PARTING.lock().is_empty() {
        return;
    }
    // Whoever is queueing, or sweeps, will come by again.
    let Some(_nobody_queues) = QUEUEING.try_write() else { return };
    let communicators: Vec<Arc<dyn Busy>> = COMMUNICATORS.lock().iter().filter_map(Weak::upgrade).collect();
    let crowded = communicators.iter().any(|communicator| communicator.is_crowded());
    if crowded && communicators.iter().any(|communicator| communicator.is_busy()) {
        return;
    }
    // Taken out meanwhile: what is dropped may drop more.
    let mut parting = std::mem::take(&mut *PARTING.lock());
    parting.retain_mut(|parting| !parting.go_on());
    PARTING.lock().append(&mut parting);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Ranks that are threads of this process, with something outstanding for as long as it says so.
    struct Threads(AtomicBool);

    impl Busy for Threads {
        fn is_busy(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }

        fn is_crowded(&self) -> bool {
            true
        }
    }

    /// Something that must not be given back while they are busy.
    struct Memory(Arc<Threads>, Arc<AtomicBool>);

    impl Drop for Memory {
        fn drop(&mut self) {
            assert!(!self.0.is_busy(), "given back while an operation is outstanding");
            self.1.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_the_last_of_several_lets_go_of_waits_for_the_end_of_operations() {
        let threads = Arc::new(Threads(AtomicBool::new(true)));
        let known: Weak<dyn Busy> = Arc::downgrade(&(threads.clone() as Arc<dyn Busy>));
        watch(known);
        let gone = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Memory(threads.clone(), gone.clone()));
        // A registered buffer and a communicator that leaves: whoever of them comes last.
        let other = shared.clone();
        let_go(shared);
        let_go(other);
        sweep();
        assert!(!gone.load(Ordering::Relaxed));
        threads.0.store(false, Ordering::Relaxed);
        // Another test's communicators may be busy, or queueing, for a moment.
        let start = std::time::Instant::now();
        while !gone.load(Ordering::Relaxed) {
            assert!(start.elapsed().as_secs() < 30, "it is never given back");
            sweep();
            std::thread::yield_now();
        }
    }
}
