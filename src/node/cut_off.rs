//! How a node is cut off from the hub: at once, for good, and in one way, whatever the reason.
//!
//! From then on this rank hears nothing of the others, nor they of it. So all its communicators
//! fail, and those that it makes afterwards, with a verdict that gives the reason. Where the reason
//! is this rank's own, the hub is told, which tells the others. Then the connection is closed in
//! this direction: nobody is to believe that somebody still listens. A node that leaves in good
//! order is not cut off; see [`Membership::part`](crate::exit::Membership::part).
//!
//! All of it happens on the node's thread.

use std::net::Shutdown;
use std::sync::atomic::Ordering;

use super::frame::ToHub;
use super::shared::{Registered, Shared};
use crate::error::{Verdict, cut};

/// Why a node is cut off from the hub.
#[derive(Debug)]
pub(super) enum CutOff {
    /// The hub has ended or cannot be reached. What it said itself of why, if anything.
    HubGone(Option<String>),
    /// The hub does not answer, and this rank declares these verdicts alone, by communicator. So it
    /// may believe something that the others do not, and must be of this job no longer. A hub that
    /// was only stopped reads that when it goes on, and tells whoever is still there. Nobody that
    /// keeps its connection to the hub believes otherwise than the hub does, and no later
    /// communicator has this rank in it. What remains possible, since no protocol could exclude it:
    /// the hub had declared another verdict, and it was on its way.
    HubSilent(Vec<(u64, Verdict)>),
    /// This rank can go on no longer: its thread has failed, what comes to it is not to be
    /// trusted, or the hub has said so. How, for people.
    Own(String),
}

impl CutOff {
    /// What the hub is told, if it can be.
    fn words(&self) -> Vec<ToHub> {
        match self {
            CutOff::HubGone(_) => Vec::new(),
            CutOff::HubSilent(alone) => {
                let how = "the process that holds the job together did not answer it, and it gave \
                           the job up";
                let reports = alone.iter().cloned();
                let reports = reports.map(|(context, verdict)| ToHub::Report { context, verdict });
                reports.chain([ToHub::Fallen { how: how.to_string() }]).collect()
            }
            CutOff::Own(how) => vec![ToHub::Fallen { how: cut(how.clone()) }],
        }
    }
}

impl Shared {
    /// Whether this rank has been cut off. Then nothing that is posted goes anywhere.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off.get().is_some()
    }

    /// This rank is cut off from the hub. The first reason counts; returns whether this one does.
    pub fn be_cut_off(&self, why: CutOff) -> bool {
        if let CutOff::Own(how) = &why {
            tracing::error!("rank {}: {how}", self.rank);
        }
        if self.is_cut_off() {
            return false;
        }
        why.words().iter().for_each(|word| self.post(word));
        // Before a verdict is declared, after which this rank may make another communicator; and
        // before it is looked what communicators there are: who registers one looks afterwards.
        let _ = self.cut_off.set(why);
        let _ = self.control.shutdown(Shutdown::Write);
        if !self.leaving.load(Ordering::Acquire) {
            let contexts: Vec<u64> = self.contexts.lock().keys().copied().collect();
            contexts.into_iter().for_each(|context| self.declare_cut_off(context));
        }
        self.wake_listeners();
        true
    }

    /// Declare on `context` that this rank is cut off, if it is, and if `context` has other
    /// members.
    pub fn declare_cut_off(&self, context: u64) {
        let Some(why) = self.cut_off.get() else { return };
        let needs_others = |registered: &&Registered| registered.members.len() > 1;
        let me = self.contexts.lock().get(&context).filter(needs_others).map(|r| r.me);
        let Some(rank) = me else { return };
        let verdict = match why {
            CutOff::Own(how) => {
                let host = self.peers[self.rank].host.clone();
                Verdict::Died { rank, host, how: how.clone() }
            }
            CutOff::HubGone(why) => self.hub_is_gone(context, why.as_deref()),
            CutOff::HubSilent(alone) => match alone.iter().find(|(own, _)| *own == context) {
                Some((_, verdict)) => verdict.clone(),
                None => self.hub_is_gone(context, None),
            },
        };
        self.declare(context, verdict);
    }

    /// The verdict on `context` that the hub is gone. `why`: what the hub itself has said.
    fn hub_is_gone(&self, context: u64, why: Option<&str>) -> Verdict {
        let (member, host) = (self.hub_as_member(context), self.hub.host.clone());
        let who = match (member, self.hub.rank) {
            (Some(_), _) => "its process".to_string(),
            (None, Some(world)) => format!("process {}, rank {world} of the world", self.hub.pid),
            (None, None) => format!("process {}, which made the unique id", self.hub.pid),
        };
        let why = why.map_or(String::new(), |why| format!(": {why}"));
        let how = format!("{who}, which held the job together, ended or cannot be reached{why}");
        match member {
            Some(rank) => Verdict::Died { rank, host, how },
            None => Verdict::Outside { host, how },
        }
    }
}
