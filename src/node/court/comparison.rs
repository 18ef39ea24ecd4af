//! Comparing what members have called: by an *inquiry* after one member that another waits for, or
//! by the *audit* of what all have called lately.

use std::time::Duration;

use super::{Case, Court};
use crate::error::Verdict;
use crate::fingerprint::Fingerprint;
use crate::node::frame::ToNode;
use crate::running::Moment;
use crate::watch::Record;

/// How many operation numbers the audit of a communicator keeps.
pub(super) const AUDITED: usize = 256;
/// How many operations of one rank about one other are remembered as asked after.
const ASKED: usize = 20;
/// How long a question about a rank and an operation serves others that ask the same.
const FOLD: Duration = Duration::from_millis(20);
/// `question` of an inquiry.
pub(super) const INQUIRY: u64 = 0;

/// What the audit knows of one operation number.
#[derive(Default)]
pub(super) struct Audited {
    called: Option<(usize, Fingerprint)>,
    refused: Option<(usize, String)>,
}

impl Case {
    /// What `rank`, which has left, did as operation `sequence`.
    pub(super) fn left_record(&self, rank: usize, sequence: u64) -> Record {
        let Some(records) = self.left.get(&rank) else { return Record::Forgotten };
        match records.iter().find(|(s, _)| *s == sequence) {
            Some((_, record)) => record.clone(),
            None if records.iter().all(|(s, _)| *s < sequence) => Record::NotYet(latest(records)),
            None => Record::Forgotten,
        }
    }
}

pub(super) fn latest(records: &[(u64, Record)]) -> Option<Fingerprint> {
    let called = records.iter().filter_map(|(sequence, record)| match record {
        Record::Called(operation) => Some((*sequence, *operation)),
        _ => None,
    });
    called.max_by_key(|(sequence, _)| *sequence).map(|(_, operation)| operation)
}

/// What follows when `asker` is in `operation` and `peer`'s history has `record` in its place.
pub(super) fn compare((asker, operation): (usize, Fingerprint), (peer, record): (usize, &Record)) -> Option<Verdict> {
    match record {
        // Where only the past differs, another operation explains it.
        Record::Called(theirs) if !theirs.same_call(&operation) => {
            Some(Verdict::Mismatch { one: (asker, operation), other: (peer, *theirs) })
        }
        Record::Refused(why) => {
            let (sequence, why) = (operation.sequence, why.clone());
            Some(Verdict::Refused { rank: peer, sequence, why })
        }
        _ => None,
    }
}

impl Court {
    /// World rank `from` waits in `operation` for rank `peer`.
    pub fn inquire(&mut self, from: usize, context: u64, operation: Fingerprint, peer: usize, now: Moment) {
        if self.cases.get(&context).is_some_and(Case::is_of_a_death) {
            return self.inquire_after_death(from, context, operation, peer);
        }
        let Some((case, asker)) = self.case(from, context) else { return };
        let Some(&world) = case.members.get(peer) else { return };
        let message = operation.is_point_to_point();
        if case.left.contains_key(&peer) && message {
            return self.letters.push((vec![from], ToNode::Left { context, rank: peer }));
        }
        if case.left.contains_key(&peer) {
            return self.judge(context, (asker, operation), (peer, None));
        }
        let asked = case.waiting.entry((asker, peer)).or_default();
        let place = |operation: &Fingerprint| (operation.sequence, operation.is_point_to_point());
        asked.retain(|earlier| place(earlier) != place(&operation));
        if asked.len() == ASKED {
            asked.pop_front();
        }
        asked.push_back(operation);
        if message {
            return;
        }
        // Others may have asked the same just now: one answer serves them all.
        let sequence = operation.sequence;
        let just_now = |(last, at): &(u64, Moment)| *last == sequence && now - *at < FOLD;
        if !case.asked.get(&peer).is_some_and(just_now) {
            case.asked.insert(peer, (sequence, now));
            let ask = ToNode::Ask { context, sequence, question: INQUIRY, message };
            self.letters.push((vec![world], ask));
        }
    }

    /// The answer of `rank` to an inquiry about operation `sequence`.
    pub(super) fn answer_inquiry(&mut self, context: u64, sequence: u64, rank: usize, record: Record) {
        let Some(case) = self.cases.get(&context) else { return };
        let about = |op: &&Fingerprint| op.sequence == sequence && !op.is_point_to_point();
        let asked = case.waiting.iter().filter(|((_, peer), _)| *peer == rank);
        let asked = asked.filter_map(|((asker, _), operations)| Some((*asker, *operations.iter().find(about)?)));
        for (asker, operation) in asked.collect::<Vec<_>>() {
            self.judge(context, (asker, operation), (rank, Some(record.clone())));
        }
    }

    /// What world rank `from` has called lately.
    pub fn audit(&mut self, from: usize, context: u64, records: Vec<(u64, Record)>) {
        let Some((case, rank)) = self.case(from, context) else { return };
        // Where it is past an operation, it waits for nobody there any more.
        let latest = records.iter().map(|(sequence, _)| *sequence).max().unwrap_or(0);
        case.waiting.retain(|(asker, _), asked| {
            if *asker == rank {
                asked.retain(|op| op.is_point_to_point() || op.sequence >= latest);
            }
            !asked.is_empty()
        });
        for (sequence, record) in records {
            // A refusal by itself concerns nobody: only when others called something as that
            // operation.
            match &record {
                Record::Called(_) | Record::Refused(_) => {}
                Record::NotYet(_) | Record::Forgotten => continue,
            }
            let known = case.audit.entry(sequence).or_default();
            let contradiction = match (&known.called, &known.refused, &record) {
                (Some(called), _, record) => compare(*called, (rank, record)),
                (_, Some((other, why)), Record::Called(_)) => {
                    Some(Verdict::Refused { rank: *other, sequence, why: why.clone() })
                }
                _ => None,
            };
            if let Some(verdict) = contradiction {
                return self.declare(context, verdict);
            }
            match record {
                Record::Called(operation) => known.called = Some((rank, operation)),
                Record::Refused(why) => known.refused = Some((rank, why)),
                Record::NotYet(_) | Record::Forgotten => {}
            }
            if case.audit.len() > AUDITED {
                case.audit.pop_first();
            }
        }
    }

    /// `asker` waits in `operation` for `peer`, whose history says `record`, or has left.
    pub(super) fn judge(
        &mut self,
        context: u64,
        (asker, operation): (usize, Fingerprint),
        (peer, record): (usize, Option<Record>),
    ) {
        let case = &self.cases[&context];
        let record = record.unwrap_or_else(|| case.left_record(peer, operation.sequence));
        if let Some(verdict) = compare((asker, operation), (peer, &record)) {
            self.declare(context, verdict);
        } else if case.left.contains_key(&peer) && matches!(record, Record::NotYet(_)) {
            let left = case.departure(peer);
            let how = format!("{left}, while rank {asker} waits for it in {operation}");
            self.declare_died(context, peer, how);
        }
    }
}
