//! Members that do nothing in a communicator any more: they have left it, have failed in it, or
//! their processes are gone.

use std::collections::VecDeque;

use super::comparison::latest;
use super::{Case, Court};
use crate::error::Verdict;
use crate::fingerprint::Fingerprint;
use crate::node::frame::ToNode;
use crate::watch::Record;

/// What became of a world rank's process.
#[derive(Clone, Debug)]
pub(super) enum Gone {
    /// It said goodbye.
    InOrder,
    /// It did not.
    Died(String),
}

impl Case {
    /// How `rank` left, for people.
    pub(super) fn departure(&self, rank: usize) -> String {
        match self.left.get(&rank).and_then(|records| latest(records)) {
            Some(last) => format!("it left the communicator after {last}"),
            None => "it left the communicator without calling anything".to_string(),
        }
    }
}

impl Court {
    /// World rank `from` has failed in `context`, and does nothing there any more.
    pub fn give_up(&mut self, from: usize, context: u64) {
        let Some(case) = self.cases.get_mut(&context) else { return };
        if !case.is_of_a_death() {
            return;
        }
        let Some(&rank) = case.places.get(&from) else { return };
        case.given_up.insert(rank);
        self.tell_waiters(context, rank);
    }

    /// After a death: `rank` does nothing any more.
    fn tell_waiters(&mut self, context: u64, rank: usize) {
        let case = &self.cases[&context];
        let waiters = case.waiting.keys().filter(|(_, peer)| *peer == rank);
        let waiters: Vec<usize> = waiters.map(|(asker, _)| case.members[*asker]).collect();
        if !waiters.is_empty() {
            self.letters.push((waiters, ToNode::Left { context, rank }));
        }
    }

    /// World rank `from` has left `context`.
    pub fn leave(&mut self, from: usize, context: u64, records: Vec<(u64, Record)>) {
        let Some(case) = self.cases.get_mut(&context) else { return };
        let Some(&rank) = case.places.get(&from) else { return };
        if case.left.contains_key(&rank) {
            return;
        }
        case.left.insert(rank, records);
        if case.left.len() == case.members.len() {
            self.decided -= usize::from(case.verdict.is_some());
            self.cases.remove(&context);
            return;
        }
        case.inquests.values_mut().for_each(|inquest| {
            inquest.awaited.remove(&rank);
        });
        if case.verdict.is_some() {
            return self.tell_waiters(context, rank);
        }
        if matches!(&case.suspicion, Some((_, Verdict::Link { peer, .. })) if *peer == rank) {
            let how = case.departure(rank);
            return self.declare_died(context, rank, how);
        }
        let asked = case.waiting.iter().filter(|((_, peer), _)| *peer == rank);
        let waiters = asked.flat_map(|((asker, _), list)| list.iter().map(|op| (*asker, *op)));
        for (asker, operation) in waiters.collect::<Vec<_>>() {
            if operation.is_point_to_point() {
                let to = vec![self.cases[&context].members[asker]];
                self.letters.push((to, ToNode::Left { context, rank }));
                continue;
            }
            self.judge(context, (asker, operation), (rank, None));
        }
        let Some(case) = self.cases.get(&context) else { return };
        let reporters: Vec<usize> = case.inquests.keys().copied().collect();
        reporters.into_iter().for_each(|reporter| self.conclude_if_complete(context, reporter));
    }

    /// World rank `rank`'s process has gone: in good order, or `how`.
    pub fn departed(&mut self, rank: usize, how: Option<String>) {
        if self.gone[rank].is_some() {
            return;
        }
        self.there -= 1;
        self.died += usize::from(how.is_some());
        self.gone[rank] = Some(how.clone().map_or(Gone::InOrder, Gone::Died));
        let concerned: Vec<u64> = self
            .cases
            .iter()
            .filter(|(_, case)| case.places.contains_key(&rank))
            .map(|(context, _)| *context)
            .collect();
        for context in concerned {
            let case = &self.cases[&context];
            let place = case.places[&rank];
            if let Some(how) = how.clone().filter(|_| !case.left.contains_key(&place)) {
                self.declare_died(context, place, how);
            }
            self.leave(rank, context, Vec::new());
        }
    }

    /// As [`Court::inquire`], where a member's death is the verdict: `from` only wants to know when
    /// `peer` has done all that it will do.
    pub(super) fn inquire_after_death(&mut self, from: usize, context: u64, operation: Fingerprint, peer: usize) {
        let case = self.cases.get_mut(&context).expect("seen by the caller");
        let Some(&asker) = case.places.get(&from) else { return };
        let Some(&world) = case.members.get(peer) else { return };
        let idle = case.left.contains_key(&peer) || case.given_up.contains(&peer);
        if idle || self.gone[world].is_some() {
            self.letters.push((vec![from], ToNode::Left { context, rank: peer }));
        } else if !case.left.contains_key(&asker) {
            case.waiting.insert((asker, peer), VecDeque::from([operation]));
        }
    }
}
