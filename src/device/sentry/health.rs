//! Whether the CUDA context still works, asked without waiting for the answer.
//!
//! Only the driver knows, and its functions block while another thread is inside it, for instance in a launch into a full
//! queue, or in one that gives memory back and waits for the device. Which may be just what the patrol has to end: so the
//! patrol never calls the driver. The question is put on a thread of its own, one at a time, and the patrol looks at what
//! it has brought to light.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use super::Shared;

/// Asks on behalf of one sentry. Its thread starts with the first question and ends after this is dropped.
#[derive(Default)]
pub(super) struct Health {
    questions: Option<SyncSender<()>>,
}

impl Health {
    /// Put the question, unless one that is not answered yet is on its way. Does not block.
    pub fn ask(&mut self, shared: &Arc<Shared>) {
        if self.questions.is_none() {
            let (questions, asked) = sync_channel(1);
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name("maypole-health".into()).spawn(move || {
                while asked.recv().is_ok() {
                    if let Some(what) = (shared.posts.ailment)() {
                        let _ = shared.ailment.set(what);
                        shared.wanted.notify_one();
                        return;
                    }
                }
            });
            // Without a thread, deadlines remain, and the next look tries again.
            self.questions = thread.ok().map(|_| questions);
        }
        if let Some(questions) = &self.questions {
            // Full where the one before is not answered; disconnected where there is an answer for good.
            let _ = questions.try_send(());
        }
    }
}
