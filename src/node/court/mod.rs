//! One verdict per communicator: the hub's side of the [`Jury`](crate::watch::Jury). No I/O and no
//! clock: [`super::hub`] feeds it frames and times, and sends the letters it writes.
//!
//! The first verdict that reaches the court stands, and every member is told that one and no other.
//! Four things lead to one: a member reports; a member's process ends or leaves while others need
//! it; a comparison shows that members called different things (an *inquiry* of one member about
//! one other, or the *audit* of what all have called lately); or an *inquest* finds out who is
//! missing after a deadline.
//!
//! Inside, ranks are a communicator's own unless the name says `world`.

mod comparison;
mod departure;
mod inquest;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use self::comparison::Audited;
use self::departure::Gone;
pub(super) use self::inquest::inquest_lasts;
use self::inquest::{INQUEST, Inquest};
use super::frame::{Answer, Runs, ToNode};
use crate::error::Verdict;
use crate::fingerprint::Fingerprint;
use crate::running::Moment;
use crate::watch::Record;

/// How long a lost link waits for news of the peer's death, which explains it better.
const LINK_GRACE: Duration = Duration::from_millis(150);

/// A letter, to world ranks.
pub(super) type Letter = (Vec<usize>, ToNode);

/// One communicator.
#[derive(Default)]
struct Case {
    /// World ranks in the communicator's order, as they were registered: every member registers the
    /// same.
    runs: Runs,
    /// The same, one by one.
    members: Vec<usize>,
    /// The other way round.
    places: HashMap<usize, usize>,
    /// Members that have left, with their latest operations.
    left: HashMap<usize, Vec<(u64, Record)>>,
    /// Members that have made their parts, until all have; and whether each of them cannot share
    /// memory.
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
    /// When an inquest or a suspicion may end, and in which case: what has ended otherwise stays
    /// listed until then.
    due: BTreeSet<(Moment, u64)>,
    letters: Vec<Letter>,
}

impl Case {
    /// Whether the verdict is that a member has died or left.
    fn is_of_a_death(&self) -> bool {
        self.verdict.as_ref().is_some_and(Verdict::is_of_a_death)
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

    /// Whether ranks may be at work in a communicator in which nothing has gone wrong, and which
    /// none of its members has left: there they would go on for as long as they like.
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
                let how = format!(
                    "world rank {from} has another list of this communicator's members than the \
                     others"
                );
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
            tracing::warn!(
                "rank {from} registered communicator {context:#x} with a list of ranks that makes \
                 no sense"
            );
            return;
        };
        let places = members.iter().enumerate().map(|(place, world)| (*world, place)).collect();
        let gone = members.iter().map(|world| self.gone[*world].clone());
        let absent: Vec<(usize, Option<Gone>)> = gone.enumerate().collect();
        let case = Case { runs, members, places, ..Case::default() };
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

    /// World rank `from` has made its part; `apart`: it cannot share memory. Once all have, all are
    /// told; and may say so once more, if they have to change something.
    pub fn made(&mut self, from: usize, context: u64, apart: bool) {
        let Some((case, rank)) = self.case(from, context) else { return };
        case.made.insert(rank, apart);
        if case.made.len() == case.members.len() {
            let made = std::mem::take(&mut case.made);
            let apart = made.into_iter().filter_map(|(rank, apart)| apart.then_some(rank));
            let apart = apart.collect();
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

    /// World rank `from` answers.
    pub fn answer(&mut self, from: usize, context: u64, (sequence, question): (u64, u64), answer: Answer) {
        let Some((_, rank)) = self.case(from, context) else { return };
        match question.checked_sub(INQUEST) {
            Some(reporter) => self.answer_inquest(context, reporter as usize, rank, answer),
            None => self.answer_inquiry(context, sequence, rank, answer.record),
        }
    }

    /// How many operation numbers of a communicator are kept for comparison; `None` if it is not
    /// known.
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
        let is_due = |(until, _): &&(Moment, u64)| *until <= now;
        while let Some(&(_, context)) = self.due.first().filter(is_due) {
            self.due.pop_first();
            let Some(case) = self.cases.get_mut(&context) else { continue };
            if let Some((_, verdict)) = case.suspicion.take_if(|s| s.0 <= now) {
                self.declare(context, verdict);
                continue;
            }
            let over = case.inquests.iter().filter(|(_, inquest)| inquest.until() <= now);
            let over: Vec<usize> = over.map(|(reporter, _)| *reporter).collect();
            over.into_iter().for_each(|reporter| self.conclude(context, reporter));
        }
    }

    /// The case of `context` and `world`'s rank in it, if there is one, no verdict stands and the
    /// rank has not left.
    fn case(&mut self, world: usize, context: u64) -> Option<(&mut Case, usize)> {
        let case = self.cases.get_mut(&context)?;
        let rank = *case.places.get(&world)?;
        (case.verdict.is_none() && !case.left.contains_key(&rank)).then_some((case, rank))
    }

    fn declare_died(&mut self, context: u64, rank: usize, how: String) {
        let case = self.cases.get(&context);
        let host = case.map(|case| self.hosts[case.members[rank]].clone()).unwrap_or_default();
        self.declare(context, Verdict::Died { rank, host, how });
    }

    /// Let `verdict` stand, unless one does, and tell every member that is still there.
    fn declare(&mut self, context: u64, verdict: Verdict) {
        let Some(case) = self.cases.get_mut(&context) else { return };
        if case.verdict.is_some() {
            return;
        }
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
        let members = case.members.iter().enumerate();
        let stayed = members.filter(|(rank, _)| !case.left.contains_key(rank));
        let to = stayed.map(|(_, world)| *world).filter(|world| self.gone[*world].is_none());
        let to = to.collect();
        self.write(to, ToNode::Declare { context, verdict });
    }

    fn write(&mut self, to: Vec<usize>, letter: ToNode) {
        if !to.is_empty() {
            self.letters.push((to, letter));
        }
    }
}

#[cfg(test)]
mod tests;
