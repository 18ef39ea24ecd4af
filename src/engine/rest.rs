//! Where a waiting thread sleeps until the links that it waits for have news.
//!
//! Links in shared memory ring a [`Bell`], sockets report to a [`Poller`]. Each engine has a bell and a poller of its
//! own (collectives the first bell of the rank, messages the second), so neither wakes for the other's news. One thread
//! sleeps here at a time: whoever waits for that engine.

use std::sync::Arc;
use std::time::Duration;

use maypole_transports::shm::{Group, Shared};
use maypole_transports::tcp::Poller;
use maypole_transports::wait::Bell;

/// The longest sleep where both shared memory and sockets are waited for: no single system call waits for both.
const MIXED_NAP: Duration = Duration::from_micros(200);

/// See the [module](self). Clones are the same place.
#[derive(Clone)]
pub(crate) struct Rest {
    bell: Option<Shared<Bell>>,
    poller: Option<Arc<Poller>>,
}

impl Rest {
    /// For the links of `group` on `channel`, and the sockets of `poller`.
    pub fn new(group: Option<&Group>, channel: usize, poller: Option<Arc<Poller>>) -> Rest {
        let bell = group.map(|group| group.bell(channel));
        // A rank without links has its own threads to wait for.
        let own = || Shared::from_arc(Arc::new(Bell::default()));
        Rest { bell: if poller.is_none() { bell.or_else(|| Some(own())) } else { bell }, poller }
    }

    /// The caller is about to sleep: it polls once more everything that it waits for, and then calls [`Rest::sleep`].
    pub fn arm(&self) {
        if let Some(bell) = &self.bell {
            bell.arm();
        }
    }

    /// The caller sleeps no more.
    pub fn disarm(&self) {
        if let Some(bell) = &self.bell {
            bell.disarm();
        }
    }

    /// Sleep until there is news since [`Rest::arm`], [`Rest::wake`] is called, or `at_most` has passed. It may return
    /// without a reason.
    pub fn sleep(&self, at_most: Duration) {
        match (&self.bell, &self.poller) {
            (Some(bell), None) => bell.sleep(at_most),
            (bell, Some(poller)) => {
                let nap = if bell.is_some() { at_most.min(MIXED_NAP) } else { at_most };
                // Whatever ends it, the caller polls again.
                let _ = poller.sleep(nap);
            }
            (None, None) => std::thread::sleep(at_most),
        }
    }

    /// End the sleep under way, or the one that is about to begin; from any thread.
    pub fn wake(&self) {
        if let Some(bell) = &self.bell {
            bell.ring();
        }
        if let Some(poller) = &self.poller {
            poller.waker().wake();
        }
    }
}
