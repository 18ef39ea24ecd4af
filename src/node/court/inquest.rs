//! The *inquest*: who is missing, once a rank's deadline has passed without any progress.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::comparison::compare;
use super::{Case, Court};
use crate::error::Verdict;
use crate::node::frame::{Answer, Late, ToNode};
use crate::running::Moment;
use crate::watch::{Record, Stall, answering};

/// `question` of an inquest, plus its reporter's rank.
pub(super) const INQUEST: u64 = 1;

/// How long members have to answer an inquest: an eighth of the deadline, at least 0.3 s and at
/// most ten. All ranks have failed to move anything for the whole of the deadline by then, and a
/// node's thread that lives answers at once; but on a host that swaps, or with more work than
/// cores, it may have to wait for its turn.
pub(in crate::node) fn inquest_lasts(deadline: Duration) -> Duration {
    (deadline / 8).clamp(Duration::from_millis(300), Duration::from_secs(10))
}

/// What is known of a rank that does not answer, for people.
const NO_ANSWER: &str = "it does not answer: its process is stopped, or its host is down or cut \
                         off";

/// A search for those who are missing.
pub(super) struct Inquest {
    since: Moment,
    stall: Stall,
    answers: HashMap<usize, Answer>,
    /// Who has been asked and has neither answered nor left.
    pub awaited: BTreeSet<usize>,
    /// A member to which nothing that the reporter sends gets through.
    unheard: Option<usize>,
}

impl Inquest {
    pub fn until(&self) -> Moment {
        self.since + inquest_lasts(self.stall.deadline)
    }
}

impl Case {
    /// The members that an inquest of `reporter` about `stall` asks.
    fn concerned(&self, reporter: usize, stall: &Stall) -> impl Iterator<Item = usize> {
        // A message is between two. Where its deadline is the end, the cause may lie behind the
        // other side, which itself waits for a rank that does not answer.
        let other_side = stall.operation.other_side(reporter).filter(|_| stall.is_patient());
        let there = move |rank: &usize| *rank != reporter && !self.left.contains_key(rank);
        let asked = move |rank: &usize| other_side.is_none_or(|other| other == *rank);
        (0..self.members.len()).filter(there).filter(asked)
    }
}

impl Court {
    /// World rank `from`'s deadline has passed. `unheard`: a rank to which nothing that it sends
    /// gets through.
    pub fn stalled(&mut self, from: usize, context: u64, stall: Stall, unheard: Option<usize>, now: Moment) {
        let Some((case, reporter)) = self.case(from, context) else { return };
        let operation = stall.operation;
        let message = operation.is_point_to_point();
        if !message {
            // All who wait in it say so at about the same time. One inquest serves them all.
            let alike = |inquest: &&mut Inquest| inquest.stall.operation.same_call(&operation);
            if let Some(inquest) = case.inquests.values_mut().find(alike) {
                if !stall.is_patient() {
                    inquest.stall = stall;
                }
                return;
            }
            let lately = |at| now - at < stall.deadline / 2;
            let heard = |(sequence, at)| sequence == operation.sequence && lately(at);
            if stall.is_patient() && case.heard.is_some_and(heard) {
                let go_on = ToNode::GoOn { context, message, moved: None, late: None };
                return self.letters.push((vec![from], go_on));
            }
        }
        // Messages between two ranks have their own numbers: there the question is only whether a
        // process answers, and how far it is.
        let sequence = if message { u64::MAX } else { operation.sequence };
        let ask = ToNode::Ask { context, sequence, question: INQUEST + reporter as u64, message };
        let awaited: BTreeSet<usize> = case.concerned(reporter, &stall).collect();
        let asked = awaited.iter().map(|rank| case.members[*rank]).collect();
        let inquest = Inquest { since: now, stall, answers: HashMap::new(), awaited, unheard };
        let until = inquest.until();
        case.inquests.insert(reporter, inquest);
        self.due.insert((until, context));
        self.write(asked, ask);
        self.conclude_if_complete(context, reporter);
    }

    /// The answer of `rank` to the inquest of `reporter`.
    pub(super) fn answer_inquest(&mut self, context: u64, reporter: usize, rank: usize, answer: Answer) {
        let Some(case) = self.cases.get_mut(&context) else { return };
        if let Some(inquest) = case.inquests.get_mut(&reporter) {
            inquest.answers.insert(rank, answer);
            inquest.awaited.remove(&rank);
            self.conclude_if_complete(context, reporter);
        }
    }

    pub(super) fn conclude_if_complete(&mut self, context: u64, reporter: usize) {
        let Some(case) = self.cases.get(&context) else { return };
        let Some(inquest) = case.inquests.get(&reporter) else { return };
        if inquest.awaited.is_empty() {
            self.conclude(context, reporter);
        }
    }

    /// The inquest of `reporter` ends with what is known.
    pub(super) fn conclude(&mut self, context: u64, reporter: usize) {
        let Some(case) = self.cases.get_mut(&context) else { return };
        let Some(inquest) = case.inquests.remove(&reporter) else { return };
        let Inquest { since, stall, answers, unheard, .. } = inquest;
        let operation = stall.operation;
        let message = operation.is_point_to_point();
        let (mut culprits, mut hopeless, mut moved) = (Vec::new(), false, None);
        let other_side = operation.other_side(reporter);
        for rank in (0..case.members.len()).filter(|rank| *rank != reporter) {
            let left = case.left.contains_key(&rank);
            let answer = answers.get(&rank);
            // Of those behind the other side of a message only who does not answer is of interest,
            // if they were asked.
            let behind = other_side.is_some_and(|other| other != rank);
            if behind && (answer.is_some() || left || stall.is_patient()) {
                continue;
            }
            let record = match answer {
                Some(answer) => Some(answer.record.clone()),
                None if left => Some(case.left_record(rank, operation.sequence)),
                None => None,
            };
            let called = record.as_ref().filter(|_| !message);
            let differs = |theirs| compare((reporter, operation), (rank, theirs));
            if let Some(verdict) = called.and_then(differs) {
                return self.declare(context, verdict);
            }
            let has_come = record.as_ref().is_some_and(|r| !matches!(r, Record::NotYet(_)));
            // Also on one that has not come: it may be in an earlier operation, whose last bytes
            // come slowly.
            moved = moved.into_iter().chain(answer.and_then(|answer| answer.moved)).min();
            // What any rank may send is in vain once all have left.
            let all_left = case.left.len() + 1 >= case.members.len();
            let matters = other_side.is_some() || !message || all_left;
            hopeless |= !behind && (record.is_none() || left && !has_come && matters);
            let state = match record {
                None => NO_ANSWER.to_string(),
                Some(_) if left && (message || !has_come) => case.departure(rank),
                Some(Record::NotYet(last)) => answering(last),
                Some(_) => continue,
            };
            culprits.push((rank, self.hosts[case.members[rank]].clone(), state));
        }
        if let Some(ago) = moved.filter(|ago| *ago < stall.deadline && !hopeless) {
            return self.go_on(context, (reporter, &stall), Some(ago), None);
        }
        // Where everybody is there and has come, the network between two of them may not be. It may
        // be also where one of the two has not come: it waits for the other in an operation before.
        let unheard = unheard.map(|peer| (reporter, peer));
        let of_others = answers.iter().filter_map(|(rank, answer)| Some((*rank, answer.unheard?)));
        let cut_off = unheard.into_iter().chain(of_others);
        let waits = |rank| !hopeless && culprits.iter().any(|(culprit, ..)| *culprit == rank);
        if let Some((rank, peer)) = cut_off
            .filter(|(_, peer)| *peer < case.members.len())
            .find(|(rank, peer)| culprits.is_empty() || message || waits(*rank) || waits(*peer))
        {
            let host = self.hosts[case.members[peer]].clone();
            let verdict = Verdict::unheard(operation, (rank, peer), host, stall.after);
            return self.declare(context, verdict);
        }
        if hopeless || !stall.is_patient() {
            let verdict = Verdict::Stalled { operation, reporter, after: stall.after, culprits };
            return self.declare(context, verdict);
        }
        if !message {
            case.heard = Some((operation.sequence, since));
        }
        let late = stall.is_time_to_warn().then_some(Late { stall, culprits });
        self.go_on(context, (reporter, &stall), None, late);
    }

    /// All members answer: whoever waits goes on.
    fn go_on(&mut self, context: u64, (reporter, stall): (usize, &Stall), moved: Option<Duration>, late: Option<Late>) {
        let (case, message) = (&self.cases[&context], stall.operation.is_point_to_point());
        let reporters = vec![case.members[reporter]];
        // Those who wait in the same operation have told, or are about to.
        let others = case.concerned(reporter, stall).filter(|_| !message);
        let others = others.map(|rank| case.members[rank]).collect();
        self.write(reporters, ToNode::GoOn { context, message, moved, late });
        self.write(others, ToNode::GoOn { context, message, moved, late: None });
    }
}
