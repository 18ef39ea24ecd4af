//! The thread that moves posted messages on while no caller does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use super::held::Held;
use super::lead::Leader;
use super::{CALLER, GRACE, Messages};
use crate::communicator::stream::is_this_thread;

/// How many naps in a row that found nothing to do the attendant takes before it sleeps until it is called. Calling it
/// costs the caller a system call, napping costs the host a wake-up.
const NAPS: u32 = 25;

/// The attendant as others see it.
#[derive(Default)]
pub(super) struct Attendant {
    thread: Option<JoinHandle<()>>,
    /// It sleeps until it is called.
    asleep: bool,
    /// It is to end.
    pub stop: bool,
}

impl Messages {
    /// Messages are under way that nobody waits for: see to it that there is an attendant, awake.
    pub(super) fn engage_attendant(self: &Arc<Self>, held: &mut Held<'_>) {
        if held.attendant.thread.is_some() {
            return self.call_attendant(held);
        }
        let messages = self.clone();
        let name = "maypole-messages".to_string();
        match std::thread::Builder::new().name(name).spawn(move || messages.attend()) {
            Ok(thread) => held.attendant.thread = Some(thread),
            // Messages then move only while somebody waits for one, which is all that most programs need.
            Err(error) => tracing::warn!("no thread for messages that nobody waits for: {error}"),
        }
    }

    /// Wake the attendant, if there is one and it is not only napping.
    pub(super) fn call_attendant(&self, held: &Held<'_>) {
        if held.attendant.asleep {
            self.wanted.notify_one();
        }
    }

    /// End the attendant. Nothing is under way any more.
    pub fn stop(&self) {
        let mut held = self.hold();
        let Some(thread) = held.attendant.thread.take() else { return };
        held.attendant.stop = true;
        self.wanted.notify_one();
        if held.asleep {
            self.rest.wake();
        }
        drop(held);
        // The last owner of a communicator may be what is done on this very thread when a message has ended.
        if !is_this_thread(&thread) {
            // It ends soon: nothing that it waits for now lasts. It panics only where everything has been failed.
            let _ = thread.join();
        }
    }

    fn attend(&self) {
        let mut held = self.hold();
        let (mut seen, mut naps) = (u64::MAX, 0);
        while !held.attendant.stop {
            let visited = std::mem::replace(&mut seen, held.visits) != held.visits;
            let idle = held.traffic.is_idle() || self.lead.load(Ordering::Relaxed) == CALLER;
            naps = if visited { 0 } else { naps + 1 };
            if !idle && !visited {
                held = self.lead(held, Leader::Attendant);
            } else if idle && naps > NAPS {
                held.attendant.asleep = true;
                self.wanted.wait(&mut held.state);
                held.attendant.asleep = false;
                // Whoever called has only just posted something.
                seen = u64::MAX;
            } else {
                self.wanted.wait_for(&mut held.state, GRACE);
            }
        }
    }
}
