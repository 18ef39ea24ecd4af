//! Waking a thread that waits for any of several operations.

use std::time::Duration;

use maypole_transports::lock::{Condvar, Mutex};

/// Rung by whoever may have ended one of the operations. It stays rung until the next wait.
#[derive(Default)]
pub(crate) struct Alarm {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Alarm {
    /// Something may have ended.
    pub fn ring(&self) {
        *self.rung.lock() = true;
        self.changed.notify_all();
    }

    /// Wait until it has been rung since the last wait, at most for so long.
    pub fn wait(&self, at_most: Duration) {
        let mut rung = self.rung.lock();
        if !*rung {
            self.changed.wait_for(&mut rung, at_most);
        }
        *rung = false;
    }
}
