//! A node is the jury of its communicators: it has the hub's court decide, and does so alone where
//! the hub does not answer.

use super::Node;
use super::frame::ToHub;
use crate::error::Verdict;
use crate::fingerprint::Fingerprint;
use crate::launch::run_board;
use crate::watch::{Jury, Stall};

impl Jury for Node {
    fn report(&self, context: u64, verdict: Verdict) {
        if matches!(verdict, Verdict::Aborted { .. }) && self.shared.is_fine(context) {
            run_board::say_that_this_rank_aborts();
        }
        self.shared.report(context, verdict);
    }

    fn hears(&self) -> bool {
        !self.shared.is_cut_off()
    }

    fn inquire(&self, context: u64, _asker: usize, operation: Fingerprint, peer: usize) {
        self.shared.post(&ToHub::Inquire { context, operation, peer });
    }

    fn stalled(&self, context: u64, reporter: usize, stall: Stall) {
        let (shared, Stall { operation, after, .. }) = (&self.shared, stall);
        let watch = shared.contexts.lock().get(&context).map(|r| r.watch.clone());
        let unheard = watch.and_then(|watch| watch.unheard());
        let hub = shared.hub_as_member(context);
        let culprits = hub.map_or_else(Vec::new, |rank| {
            vec![(
                rank,
                shared.hub.host.clone(),
                "its process, which holds the job together, does not answer".to_string(),
            )]
        });
        let alone = match unheard {
            Some(peer) if culprits.is_empty() => {
                let host = shared.host_of_member(context, peer);
                Verdict::unheard(operation, (reporter, peer), host, after)
            }
            // Where the hub does not answer, each rank says so by itself, and all are to say the
            // same: in the name of the first that can.
            _ => {
                let reporter = hub.map_or(reporter, |hub| usize::from(hub == 0));
                Verdict::Stalled { operation, reporter, after, culprits }
            }
        };
        shared.post_or_else(context, &ToHub::Stalled { context, stall, unheard }, alone);
    }

    fn doubt(&self, context: u64) {
        self.shared.doubt(context);
    }

    fn give_up(&self, context: u64, _rank: usize) {
        self.shared.post(&ToHub::GiveUp { context });
    }

    fn leave(&self, context: u64, _rank: usize) {
        self.shared.leave(context);
    }
}
