//! A thread that listens for a bell on behalf of one that sleeps on sockets.
//!
//! No single system call waits for both a futex and sockets (short of io_uring, which many containers forbid). Where a
//! rank waits for both, it sleeps in epoll, and a listener sleeps on its bell: rung, it ends the sleep through the
//! poller's waker. That costs one more change of threads, and only where a rank that really sleeps is rung.
//!
//! # Why no ring is lost
//!
//! The sleeper arms the bell, polls once more, and calls [`Listener::cover`] before it enters epoll. From then until the
//! bell has been rung, the listener is *listening*: either in the kernel, which takes it in only while the bell is armed,
//! or on the way there; or it is about to look at the bell with the lock held. A ring takes the bell's 1 away before it
//! wakes; so the listener, whichever of these it is at, finds the bell disarmed, stops listening and uses the waker,
//! which also ends a sleep that is only about to begin.
//!
//! A sleeper whom a socket woke disarms the bell and leaves the listener where it is: the next sleep finds it listening
//! still, and need not wake it. If the listener looks meanwhile, it finds the bell disarmed, stops, and ends one sleep
//! too many, which does no harm. If it was rung for an earlier sleep but looks only after the bell was armed anew, it
//! goes on listening: what it was rung for was there before that arming, and was seen by the poll that follows it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use maypole_transports::lock::{Condvar, Mutex};
use maypole_transports::shm::Shared;
use maypole_transports::tcp::Waker;
use maypole_transports::wait::Bell;

/// How long the listener stays with a bell that nobody rings before it looks whether it is still armed.
const LOOK: Duration = Duration::from_secs(1);

/// The stack of a thread that does next to nothing.
const STACK: usize = 64 << 10;

struct Watched {
    bell: Shared<Bell>,
    waker: Waker,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    listening: bool,
    stop: bool,
}

/// Handle to the thread; dropping it ends it.
pub(crate) struct Listener {
    watched: Arc<Watched>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Start a thread that uses `waker` when `bell` is rung.
    ///
    /// # Errors
    /// What the system says where it has no thread to give.
    pub fn start(bell: Shared<Bell>, waker: Waker) -> std::io::Result<Listener> {
        let watched = Arc::new(Watched { bell, waker, state: Mutex::default(), changed: Condvar::new() });
        let thread = std::thread::Builder::new().name("maypole-listener".into()).stack_size(STACK).spawn({
            let watched = watched.clone();
            move || watched.run()
        })?;
        Ok(Listener { watched, thread: Some(thread) })
    }

    /// From now until the bell is rung or disarmed, a ring ends the poller's sleep. The caller has armed the bell, and
    /// then polled everything that it waits for once more.
    pub fn cover(&self) {
        let mut state = self.watched.state.lock();
        if !state.listening {
            state.listening = true;
            self.watched.changed.notify_one();
        }
    }
}

impl Watched {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            while !state.listening && !state.stop {
                self.changed.wait(&mut state);
            }
            if state.stop {
                return;
            }
            if self.bell.is_armed() {
                maypole_transports::lock::MutexGuard::unlocked(&mut state, || self.bell.sleep(LOOK));
            } else {
                state.listening = false;
                self.waker.wake();
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.watched.state.lock().stop = true;
        self.watched.changed.notify_one();
        // Nobody sleeps any more; this gets the thread out of the kernel, if it is there.
        self.watched.bell.arm();
        self.watched.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
