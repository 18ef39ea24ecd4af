//! One verdict per communicator: the hub's side of the [`Jury`](crate::watch::Jury). No I/O and no clock:
//! [`super::hub`] feeds it frames and times, and sends the letters it writes.
//!
//! The first verdict that reaches the court stands, and every member is told that one and no other. Four things lead to
//! one: a member reports; a member's process ends or leaves while others need it; a comparison shows that members
//! called different things (an *inquiry* of one member about one other, or the *audit* of what all have called lately);
//! or an *inquest* finds out who is missing after a deadline.
//!
//! Inside, ranks are a communicator's own unless the name says `world`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::frame::{Answer, Late, Runs, ToNode};
use crate::error::Verdict;
use crate::fingerprint::Fingerprint;
use crate::running::Moment;
use crate::watch::{Record, Stall, answering};

/// How long a lost link waits for news of the peer's death, which explains it better.
const LINK_GRACE: Duration = Duration::from_millis(150);
/// How many operation numbers the audit of a communicator keeps.
const AUDITED: usize = 256;
/// How many operations of one rank about one other are remembered as asked after.
const ASKED: usize = 20;
/// How long a question about a rank and an operation serves others that ask the same.
const FOLD: Duration = Duration::from_millis(20);
/// `question` of an inquiry.
const INQUIRY: u64 = 0;
/// `question` of an inquest, plus its reporter's rank.
const INQUEST: u64 = 1;

/// How long members have to answer an inquest: an eighth of the deadline, at least 0.3 s and at most ten. All ranks
/// have failed to move anything for the whole of the deadline by then, and a node's thread that lives answers at once;
/// but on a host that swaps, or with more work than cores, it may have to wait for its turn.
pub(super) fn inquest_lasts(deadline: Duration) -> Duration {
    (deadline / 8).clamp(Duration::from_millis(300), Duration::from_secs(10))
}

/// A letter, to world ranks.
pub(super) type Letter = (Vec<usize>, ToNode);

/// What became of a world rank's process.
#[derive(Clone, Debug)]
enum Gone {
    /// It said goodbye.
    InOrder,
    /// It did not.
    Died(String),
}

/// What the audit knows of one operation number.
#[derive(Default)]
struct Audited {
    called: Option<(usize, Fingerprint)>,
    refused: Option<(usize, String)>,
}

/// A search for those who are missing.
struct Inquest {
    since: Moment,
    stall: Stall,
    answers: HashMap<usize, Answer>,
    /// Who has been asked and has neither answered nor left.
    awaited: BTreeSet<usize>,
    /// A member to which nothing that the reporter sends gets through.
    unheard: Option<usize>,
}

impl Inquest {
    fn until(&self) -> Moment {
        self.since + inquest_lasts(self.stall.deadline)
    }
}

/// One communicator.
struct Case {
    /// World ranks in the communicator's order, as they were registered: every member registers the same.
    runs: Runs,
    /// The same, one by one.
    members: Vec<usize>,
    /// The other way round.
    places: HashMap<usize, usize>,
    /// Members that have left, with their latest operations.
    left: HashMap<usize, Vec<(u64, Record)>>,
    /// Members that have made their parts, until all have; and whether each of them cannot share memory.
    made: BTreeMap<usize, bool>,
    /// Members that have failed in it, where a death is the verdict.
    given_up: HashSet<usize>,
    verdict: Option<Verdict>,
    /// By reporter.
    inquests: BTreeMap<usize, Inquest>,
    /// The latest collective in which all members answered an inquest, and when.
    heard: Option<(u64, Moment)>,
    /// A lost link that waits for a better explanation.
    suspicion: Option<(Moment, Verdict)>,
    /// Who asked after whom, (asker, peer), and in which operations: the latest few.
    waiting: HashMap<(usize, usize), VecDeque<Fingerprint>>,
    /// Which operation a member was asked about last, and when.
    asked: HashMap<usize, (u64, Moment)>,
    audit: BTreeMap<u64, Audited>,
}

/// See the [module](self).
pub(super) struct Court {
    /// Host of each world rank, for people.
    hosts: Vec<String>,
    gone: Vec<Option<Gone>>,
    /// How many have not.
    there: usize,
    /// How many have died, and on how many cases a verdict stands.
    died: usize,
    decided: usize,
    cases: HashMap<u64, Case>,
    /// When an inquest or a suspicion may end, and in which case: what has ended otherwise stays listed until then.
    due: BTreeSet<(Moment, u64)>,
    letters: Vec<Letter>,
}

impl Case {
    /// What `rank`, which has left, did as operation `sequence`.
    fn left_record(&self, rank: usize, sequence: u64) -> Record {
        let Some(records) = self.left.get(&rank) else { return Record::Forgotten };
        match records.iter().find(|(s, _)| *s == sequence) {
            Some((_, record)) => record.clone(),
            None if records.iter().all(|(s, _)| *s < sequence) => Record::NotYet(latest(records)),
            None => Record::Forgotten,
        }
    }

    /// Whether the verdict is that a member has died or left.
    fn is_of_a_death(&self) -> bool {
        self.verdict.as_ref().is_some_and(Verdict::is_of_a_death)
    }

    /// The members that an inquest of `reporter` about `stall` asks.
    fn concerned(&self, reporter: usize, stall: &Stall) -> impl Iterator<Item = usize> {
        // A message is between two. Where its deadline is the end, the cause may lie behind the other side, which itself
        // waits for a rank that does not answer.
        let other_side = stall.operation.other_side(reporter).filter(|_| stall.is_patient());
        let there = move |rank: &usize| *rank != reporter && !self.left.contains_key(rank);
        (0..self.members.len()).filter(there).filter(move |rank| other_side.is_none_or(|other| other == *rank))
    }

    /// How `rank` left, for people.
    fn departure(&self, rank: usize) -> String {
        match self.left.get(&rank).and_then(|records| latest(records)) {
            Some(last) => format!("it left the communicator after {last}"),
            None => "it left the communicator without calling anything".to_string(),
        }
    }
}

fn latest(records: &[(u64, Record)]) -> Option<Fingerprint> {
    let called = records.iter().filter_map(|(s, r)| if let Record::Called(f) = r { Some((s, f)) } else { None });
    called.max_by_key(|(s, _)| **s).map(|(_, f)| *f)
}

/// What follows when `asker` is in `operation` and `peer`'s history has `record` in its place.
fn compare(asker: usize, operation: Fingerprint, peer: usize, record: &Record) -> Option<Verdict> {
    match record {
        // Where only the past differs, another operation explains it.
        Record::Called(theirs) if !theirs.same_call(&operation) => {
            Some(Verdict::Mismatch { one: (asker, operation), other: (peer, *theirs) })
        }
        Record::Refused(why) => Some(Verdict::Refused { rank: peer, sequence: operation.sequence, why: why.clone() }),
        _ => None,
    }
}

impl Court {
    /// A court for a world whose ranks are on `hosts`.
    pub fn new(hosts: Vec<String>) -> Court {
        Court {
            gone: vec![None; hosts.len()],
            there: hosts.len(),
            died: 0,
            decided: 0,
            hosts,
            cases: HashMap::new(),
            due: BTreeSet::new(),
            letters: Vec::new(),
        }
    }

    /// The letters written since the last call.
    pub fn letters(&mut self) -> Vec<Letter> {
        std::mem::take(&mut self.letters)
    }

    /// Whether all ranks have gone.
    pub fn over(&self) -> bool {
        self.there == 0
    }

    /// Whether something has gone wrong in the job.
    pub fn disturbed(&self) -> bool {
        self.died > 0 || self.decided > 0
    }

    /// Whether ranks may be at work in a communicator in which nothing has gone wrong, and which none of its members has
    /// left: there they would go on for as long as they like.
    pub fn is_at_work(&self) -> bool {
        self.cases.values().any(|case| case.verdict.is_none() && case.left.is_empty())
    }

    /// World ranks that have not gone.
    pub fn remaining(&self) -> Vec<usize> {
        (0..self.gone.len()).filter(|rank| self.gone[*rank].is_none()).collect()
    }

    /// World rank `from` belongs to `context`.
    pub fn register(&mut self, from: usize, context: u64, members: &Runs) {
        // Each member registers: what follows happens once, and here its list is only compared.
        if let Some(case) = self.cases.get(&context) {
            if case.runs != *members {
                let how = format!("world rank {from} has another list of this communicator's members than the others");
                let verdict = match case.places.get(&from) {
                    Some(&rank) => Verdict::Aborted { rank, why: how },
                    None => Verdict::Outside { host: self.hosts[from].clone(), how },
                };
                self.declare(context, verdict);
            }
            return;
        }
        let runs = members.clone();
        let Some(members) = members.ranks(self.hosts.len()).filter(|m| m.contains(&from)) else {
            tracing::warn!("rank {from} registered communicator {context:#x} with a list of ranks that makes no sense");
            return;
        };
        let places = members.iter().enumerate().map(|(place, world)| (*world, place)).collect();
        let absent: Vec<(usize, Option<Gone>)> =
            members.iter().enumerate().map(|(place, world)| (place, self.gone[*world].clone())).collect();
        let case = Case {
            runs,
            members,
            places,
            left: HashMap::new(),
            made: BTreeMap::new(),
            given_up: HashSet::new(),
            verdict: None,
            inquests: BTreeMap::new(),
            heard: None,
            suspicion: None,
            waiting: HashMap::new(),
            asked: HashMap::new(),
            audit: BTreeMap::new(),
        };
        self.cases.insert(context, case);
        for (place, gone) in absent {
            let how = match gone {
                None => continue,
                Some(Gone::Died(how)) => how,
                Some(Gone::InOrder) => "it left the job before this communicator was made".to_string(),
            };
            self.declare_died(context, place, how);
            self.cases.get_mut(&context).expect("inserted above").left.insert(place, Vec::new());
        }
    }

    /// World rank `from` has made its part; `apart`: it cannot share memory. Once all have, all are told; and may say so
    /// once more, if they have to change something.
    pub fn made(&mut self, from: usize, context: u64, apart: bool) {
        let Some((case, rank)) = self.case(from, context) else { return };
        case.made.insert(rank, apart);
        if case.made.len() == case.members.len() {
            let made = std::mem::take(&mut case.made);
            let apart = made.into_iter().filter_map(|(rank, apart)| apart.then_some(rank)).collect();
            let to = case.members.clone();
            self.write(to, ToNode::Made { context, apart });
        }
    }

    /// World rank `from` wants to know who has not made its part.
    pub fn who_made(&mut self, from: usize, context: u64) {
        let Some((case, _)) = self.case(from, context) else { return };
        let ranks = (0..case.members.len()).filter(|rank| !case.made.contains_key(rank)).collect();
        self.write(vec![from], ToNode::Unmade { context, ranks });
    }

    /// World rank `from` reports.
    pub fn report(&mut self, from: usize, context: u64, verdict: Verdict, now: Moment) {
        let Some((case, _)) = self.case(from, context) else { return };
        if let Verdict::Link { peer, .. } = &verdict {
            if case.left.contains_key(peer) {
                let (peer, how) = (*peer, case.departure(*peer));
                return self.declare_died(context, peer, how);
            }
            let until = case.suspicion.get_or_insert((now + LINK_GRACE, verdict)).0;
            self.due.insert((until, context));
            return;
        }
        self.declare(context, verdict);
    }

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
            return self.judge(context, asker, operation, peer, None);
        }
        let asked = case.waiting.entry((asker, peer)).or_default();
        asked.retain(|earlier| (earlier.sequence, earlier.is_point_to_point()) != (operation.sequence, message));
        if asked.len() == ASKED {
            asked.pop_front();
        }
        asked.push_back(operation);
        if message {
            return;
        }
        // Others may have asked the same just now: one answer serves them all.
        let sequence = operation.sequence;
        let asked = case.asked.get(&peer).is_some_and(|(last, at)| *last == sequence && now - *at < FOLD);
        if !asked {
            case.asked.insert(peer, (sequence, now));
            self.letters.push((vec![world], ToNode::Ask { context, sequence, question: INQUIRY, message }));
        }
    }

    /// As [`Court::inquire`], where a member's death is the verdict: `from` only wants to know when `peer` has done all
    /// that it will do.
    fn inquire_after_death(&mut self, from: usize, context: u64, operation: Fingerprint, peer: usize) {
        let case = self.cases.get_mut(&context).expect("seen by the caller");
        let (Some(&asker), Some(&world)) = (case.places.get(&from), case.members.get(peer)) else { return };
        if case.left.contains_key(&peer) || case.given_up.contains(&peer) || self.gone[world].is_some() {
            self.letters.push((vec![from], ToNode::Left { context, rank: peer }));
        } else if !case.left.contains_key(&asker) {
            case.waiting.insert((asker, peer), VecDeque::from([operation]));
        }
    }

    /// World rank `from`'s deadline has passed. `unheard`: a rank to which nothing that it sends gets through.
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
            let heard = |(sequence, at)| sequence == operation.sequence && now - at < stall.deadline / 2;
            if stall.is_patient() && case.heard.is_some_and(heard) {
                return self.letters.push((vec![from], ToNode::GoOn { context, message, moved: None, late: None }));
            }
        }
        // Messages between two ranks have their own numbers: there the question is only whether a process answers, and
        // how far it is.
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

    /// World rank `from` answers.
    pub fn answer(&mut self, from: usize, context: u64, (sequence, question): (u64, u64), answer: Answer) {
        let Some((case, rank)) = self.case(from, context) else { return };
        if question >= INQUEST {
            let reporter = (question - INQUEST) as usize;
            if let Some(inquest) = case.inquests.get_mut(&reporter) {
                inquest.answers.insert(rank, answer);
                inquest.awaited.remove(&rank);
                self.conclude_if_complete(context, reporter);
            }
            return;
        }
        let about = |operation: &&Fingerprint| operation.sequence == sequence && !operation.is_point_to_point();
        let asked = case.waiting.iter().filter(|((_, peer), _)| *peer == rank);
        let askers: Vec<(usize, Fingerprint)> =
            asked.filter_map(|((asker, _), list)| Some((*asker, *list.iter().find(about)?))).collect();
        for (asker, operation) in askers {
            self.judge(context, asker, operation, rank, Some(answer.record.clone()));
        }
    }

    /// What world rank `from` has called lately.
    pub fn audit(&mut self, from: usize, context: u64, records: Vec<(u64, Record)>) {
        let Some((case, rank)) = self.case(from, context) else { return };
        // Where it is past an operation, it waits for nobody there any more.
        let latest = records.iter().map(|(sequence, _)| *sequence).max().unwrap_or(0);
        case.waiting.retain(|(asker, _), asked| {
            if *asker == rank {
                asked.retain(|operation| operation.is_point_to_point() || operation.sequence >= latest);
            }
            !asked.is_empty()
        });
        for (sequence, record) in records {
            // A refusal by itself concerns nobody: only when others called something as that operation.
            match &record {
                Record::Called(_) | Record::Refused(_) => {}
                Record::NotYet(_) | Record::Forgotten => continue,
            }
            let known = case.audit.entry(sequence).or_default();
            let contradiction = match (&known.called, &known.refused, &record) {
                (Some((other, theirs)), _, record) => compare(*other, *theirs, rank, record),
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

    /// World rank `from` has failed in `context`, and does nothing there any more.
    pub fn give_up(&mut self, from: usize, context: u64) {
        let Some(case) = self.cases.get_mut(&context).filter(|case| case.is_of_a_death()) else { return };
        let Some(&rank) = case.places.get(&from) else { return };
        case.given_up.insert(rank);
        self.tell_waiters(context, rank);
    }

    /// After a death: `rank` does nothing any more.
    fn tell_waiters(&mut self, context: u64, rank: usize) {
        let case = &self.cases[&context];
        let waiters = case.waiting.keys().filter(|(_, peer)| *peer == rank).map(|(asker, _)| case.members[*asker]);
        let waiters: Vec<usize> = waiters.collect();
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
        let waiters: Vec<(usize, Fingerprint)> =
            asked.flat_map(|((asker, _), list)| list.iter().map(|operation| (*asker, *operation))).collect();
        for (asker, operation) in waiters {
            if operation.is_point_to_point() {
                let to = vec![self.cases[&context].members[asker]];
                self.letters.push((to, ToNode::Left { context, rank }));
                continue;
            }
            self.judge(context, asker, operation, rank, None);
        }
        let reporters: Vec<usize> =
            self.cases.get(&context).into_iter().flat_map(|case| case.inquests.keys().copied()).collect();
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

    /// How many operation numbers of a communicator are kept for comparison; `None` if it is not known.
    #[cfg(any(test, fuzzing))]
    pub fn remembers(&self, context: u64) -> Option<usize> {
        self.cases.get(&context).map(|case| case.audit.len())
    }

    /// When [`Court::tick`] has something to do.
    pub fn deadline(&self) -> Option<Moment> {
        self.due.first().map(|(until, _)| *until)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment) {
        while let Some((_, context)) = self.due.first().copied().filter(|(until, _)| *until <= now) {
            self.due.pop_first();
            let Some(case) = self.cases.get_mut(&context) else { continue };
            if let Some((_, verdict)) = case.suspicion.take_if(|s| s.0 <= now) {
                self.declare(context, verdict);
                continue;
            }
            let over: Vec<usize> = case.inquests.iter().filter(|(_, i)| i.until() <= now).map(|(r, _)| *r).collect();
            over.into_iter().for_each(|reporter| self.conclude(context, reporter));
        }
    }

    /// The case of `context` and `world`'s rank in it, if there is one, no verdict stands and the rank has not left.
    fn case(&mut self, world: usize, context: u64) -> Option<(&mut Case, usize)> {
        let case = self.cases.get_mut(&context)?;
        let rank = *case.places.get(&world)?;
        (case.verdict.is_none() && !case.left.contains_key(&rank)).then_some((case, rank))
    }

    /// `asker` waits in `operation` for `peer`, whose history says `record`, or has left.
    fn judge(&mut self, context: u64, asker: usize, operation: Fingerprint, peer: usize, record: Option<Record>) {
        let case = &self.cases[&context];
        let record = record.unwrap_or_else(|| case.left_record(peer, operation.sequence));
        if let Some(verdict) = compare(asker, operation, peer, &record) {
            self.declare(context, verdict);
        } else if case.left.contains_key(&peer) && matches!(record, Record::NotYet(_)) {
            let how = format!("{}, while rank {asker} waits for it in {operation}", case.departure(peer));
            self.declare_died(context, peer, how);
        }
    }

    fn conclude_if_complete(&mut self, context: u64, reporter: usize) {
        let Some(case) = self.cases.get(&context) else { return };
        let Some(inquest) = case.inquests.get(&reporter) else { return };
        if inquest.awaited.is_empty() {
            self.conclude(context, reporter);
        }
    }

    /// The inquest of `reporter` ends with what is known.
    fn conclude(&mut self, context: u64, reporter: usize) {
        let Some(case) = self.cases.get_mut(&context) else { return };
        let Some(Inquest { since, stall, answers, unheard, .. }) = case.inquests.remove(&reporter) else { return };
        let operation = stall.operation;
        let message = operation.is_point_to_point();
        let (mut culprits, mut hopeless, mut moved) = (Vec::new(), false, None);
        let other_side = operation.other_side(reporter);
        for rank in (0..case.members.len()).filter(|rank| *rank != reporter) {
            let left = case.left.contains_key(&rank);
            let answer = answers.get(&rank);
            // Of those behind the other side of a message only who does not answer is of interest, if they were asked.
            let behind = other_side.is_some_and(|other| other != rank);
            if behind && (answer.is_some() || left || stall.is_patient()) {
                continue;
            }
            let record = match answer {
                Some(answer) => Some(answer.record.clone()),
                None if left => Some(case.left_record(rank, operation.sequence)),
                None => None,
            };
            if let Some(verdict) =
                record.as_ref().filter(|_| !message).and_then(|r| compare(reporter, operation, rank, r))
            {
                return self.declare(context, verdict);
            }
            let has_come = record.as_ref().is_some_and(|record| !matches!(record, Record::NotYet(_)));
            // Also on one that has not come: it may be in an earlier operation, whose last bytes come slowly.
            moved = moved.into_iter().chain(answer.and_then(|answer| answer.moved)).min();
            // What any rank may send is in vain once all have left.
            let matters = other_side.is_some() || !message || case.left.len() + 1 >= case.members.len();
            hopeless |= !behind && (record.is_none() || left && !has_come && matters);
            let state = match record {
                None => "it does not answer: its process is stopped, or its host is down or cut off".to_string(),
                Some(_) if left && (message || !has_come) => case.departure(rank),
                Some(Record::NotYet(last)) => answering(last),
                Some(_) => continue,
            };
            culprits.push((rank, self.hosts[case.members[rank]].clone(), state));
        }
        if let Some(ago) = moved.filter(|ago| *ago < stall.deadline && !hopeless) {
            return self.go_on(context, reporter, &stall, Some(ago), None);
        }
        // Where everybody is there and has come, the network between two of them may not be. It may be also where one of
        // the two has not come: it waits for the other in an operation before.
        let unheard = unheard.map(|peer| (reporter, peer));
        let cut_off = unheard.into_iter().chain(answers.iter().filter_map(|(r, a)| Some((*r, a.unheard?))));
        let waits = |rank| !hopeless && culprits.iter().any(|(culprit, ..)| *culprit == rank);
        if let Some((rank, peer)) = cut_off
            .filter(|(_, peer)| *peer < case.members.len())
            .find(|(rank, peer)| culprits.is_empty() || message || waits(*rank) || waits(*peer))
        {
            let host = self.hosts[case.members[peer]].clone();
            return self.declare(context, Verdict::unheard(operation, (rank, peer), host, stall.after));
        }
        if hopeless || !stall.is_patient() {
            return self.declare(context, Verdict::Stalled { operation, reporter, after: stall.after, culprits });
        }
        if !message {
            case.heard = Some((operation.sequence, since));
        }
        let late = stall.is_time_to_warn().then_some(Late { stall, culprits });
        self.go_on(context, reporter, &stall, None, late);
    }

    /// All members answer: whoever waits goes on.
    fn go_on(&mut self, context: u64, reporter: usize, stall: &Stall, moved: Option<Duration>, late: Option<Late>) {
        let (case, message) = (&self.cases[&context], stall.operation.is_point_to_point());
        let reporters = vec![case.members[reporter]];
        // Those who wait in the same operation have told, or are about to.
        let others = case.concerned(reporter, stall).filter(|_| !message);
        let others = others.map(|rank| case.members[rank]).collect();
        self.write(reporters, ToNode::GoOn { context, message, moved, late });
        self.write(others, ToNode::GoOn { context, message, moved, late: None });
    }

    fn declare_died(&mut self, context: u64, rank: usize, how: String) {
        let host = self.cases.get(&context).map(|case| self.hosts[case.members[rank]].clone()).unwrap_or_default();
        self.declare(context, Verdict::Died { rank, host, how });
    }

    /// Let `verdict` stand, unless one does, and tell every member that is still there.
    fn declare(&mut self, context: u64, verdict: Verdict) {
        let Some(case) = self.cases.get_mut(&context).filter(|case| case.verdict.is_none()) else { return };
        tracing::debug!("communicator {context:#x}: {verdict}");
        case.verdict = Some(verdict.clone());
        self.decided += 1;
        case.inquests.clear();
        case.suspicion = None;
        // After a death operations go on, and those that wait hear whose part in them is over.
        if !case.is_of_a_death() {
            case.waiting.clear();
        }
        case.audit.clear();
        let there =
            case.members.iter().enumerate().filter(|(r, w)| !case.left.contains_key(r) && self.gone[**w].is_none());
        let to = there.map(|(_, world)| *world).collect();
        self.write(to, ToNode::Declare { context, verdict });
    }

    fn write(&mut self, to: Vec<usize>, letter: ToNode) {
        if !to.is_empty() {
            self.letters.push((to, letter));
        }
    }
}

#[cfg(test)]
#[path = "court_tests.rs"]
mod tests;
