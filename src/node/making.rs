//! Whether all members of a communicator have made it.
//!
//! A communicator is there on all of its ranks or on none. Each member says to the hub that it has
//! made its part, which may be that it waits for nothing more than this; when all have, the hub
//! tells each, and only then does the call return that makes it. A member that cannot make its part
//! declares why, and that verdict is what the others get in place of the hub's word. Where a rank's
//! time is up, the hub says who is missing.
//!
//! What the hub has told one member it tells all, so no two believe otherwise; but for a rank that
//! the hub does not answer any more, which gives up alone, as everywhere (`service`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use maypole_transports::lock::MutexGuard;

use super::Node;
use super::frame::ToHub;
use crate::error::{Error, Result};
use crate::running::{LOOK, Limit};

/// How long the hub has to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// How many missing ranks an error names one by one.
const NAMED: usize = 16;

/// What the hub says of a communicator that is being made.
pub(super) enum Word {
    /// All have made it; `apart`: those that cannot share memory.
    Made { apart: Vec<usize> },
    /// These have not.
    Unmade { ranks: Vec<usize> },
}

impl Node {
    /// Say that this rank has made its part of `context`, and wait until all members have said so:
    /// at most so long, in which the process ran. `apart`: this rank was to share memory with
    /// members of its host, and cannot. Returns the members that said that. All members call it
    /// equally often.
    ///
    /// # Errors
    /// [`Error::Failed`] if there is a verdict; [`Error::Bootstrap`] naming those that have not
    /// said it in that time, or if this process has no descriptors to let them in with.
    ///
    /// # Panics
    /// If `context` is not registered here.
    pub fn all_make(&self, context: u64, apart: bool, within: Duration) -> Result<Vec<usize>> {
        let shared = &self.shared;
        let mut contexts = shared.contexts.lock();
        let registered = contexts.get(&context).expect("a rank registers what it makes");
        let (watch, rank, size) = (registered.watch.clone(), registered.me, registered.members.len());
        if size == 1 {
            return Ok(Vec::new());
        }
        MutexGuard::unlocked(&mut contexts, || shared.post(&ToHub::Made { context, apart }));
        let (limit, mut asked) = (Limit::after(within), None::<Limit>);
        loop {
            if let Some(verdict) = watch.verdict() {
                return Err(Error::Failed { rank, verdict });
            }
            match contexts.get_mut(&context).and_then(|registered| registered.word.take()) {
                Some(Word::Made { apart }) => return Ok(apart),
                Some(Word::Unmade { ranks }) if !ranks.is_empty() => {
                    drop(contexts);
                    return Err(self.unmade(context, (rank, &ranks), within));
                }
                Some(Word::Unmade { .. }) | None => {}
            }
            if let Some(what) = self.starved() {
                return Err(Error::bootstrap(format!("rank {rank} cannot let the others in: {what}")));
            }
            match &asked {
                None if limit.has_passed() => {
                    MutexGuard::unlocked(&mut contexts, || shared.post(&ToHub::WhoMade { context }));
                    asked = Some(Limit::after(ANSWER));
                }
                Some(answer) if answer.has_passed() => {
                    return Err(Error::bootstrap(format!(
                        "rank {rank} waited for {within:?} until all had made the communicator, \
                         and process {} on host {}, which holds the job together, does not say \
                         who has not",
                        shared.hub.pid, shared.hub.host
                    )));
                }
                _ => {}
            }
            shared.spoken.wait_for(&mut contexts, LOOK);
        }
    }

    /// Wait until there is a verdict on `context`, a second at most: one is on its way, since this
    /// rank has reported it, or another that has said so by other ways. From then on the hub knows
    /// it, and whoever learns from this rank that it failed finds it with [`Node::catch_up`].
    pub fn see_verdict(&self, context: u64) {
        let mut contexts = self.shared.contexts.lock();
        if let Some(watch) = contexts.get(&context).map(|registered| registered.watch.clone()) {
            self.shared.spoken.wait_while_for(&mut contexts, |_| !watch.raised(), ANSWER);
        }
    }

    /// What the hub knew before this call is known here when it returns, unless the hub has not
    /// answered for a second. Ranks tell each other things by ways that are faster than the hub's.
    pub fn catch_up(&self) {
        let shared = &self.shared;
        let number = shared.ping();
        let behind = || shared.here.load(Ordering::Acquire) < number && !shared.is_cut_off();
        shared.spoken.wait_while_for(&mut shared.contexts.lock(), |_| behind(), ANSWER);
    }

    /// These ranks have not made their parts of `context`.
    fn unmade(&self, context: u64, (rank, ranks): (usize, &[usize]), within: Duration) -> Error {
        let named = ranks.iter().take(NAMED);
        let named = named.map(|rank| format!("{rank} on host {}", self.shared.host_of_member(context, *rank)));
        let mut list = named.collect::<Vec<_>>().join(", ");
        if ranks.len() > NAMED {
            list += &format!(" and {} more", ranks.len() - NAMED);
        }
        Error::bootstrap(format!(
            "rank {rank} waited in vain for others to make the communicator: rank{} {list} did not \
             within {within:?}; see whether {} it too, and their own output",
            if ranks.len() == 1 { "" } else { "s" },
            if ranks.len() == 1 { "that one makes" } else { "those make" },
        ))
    }
}
