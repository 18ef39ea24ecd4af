//! Atomics: the standard library's, or loom's when its model checker runs (`--cfg loom`).

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// The kernel's side of a futex as the model checker sees it: it compares the word and queues the sleeper under one
/// lock, and a waker takes that lock too. There is no timeout, so a lost wake-up is a deadlock, which loom reports.
#[cfg(loom)]
#[derive(Debug, Default)]
pub struct WaitQueue {
    lock: loom::sync::Mutex<()>,
    woken: loom::sync::Condvar,
}

#[cfg(loom)]
impl WaitQueue {
    pub fn wait(&self, word: &AtomicU32, while_it_is: u32) {
        let held = self.lock.lock().expect("no thread panics with the lock");
        if word.load(Ordering::Relaxed) == while_it_is {
            drop(self.woken.wait(held));
        }
    }

    pub fn wake(&self) {
        let _held = self.lock.lock().expect("no thread panics with the lock");
        self.woken.notify_all();
    }
}
