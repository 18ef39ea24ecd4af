//! How an operation on device buffers is run: its algorithm and slice, and its steps in one order.

use std::collections::BTreeMap;
use std::sync::Arc;

use maypole_collectives::algorithms::{self, Algorithm};
use maypole_collectives::linear::Linear;
use maypole_collectives::schedule::{Collective, Place, Schedule, Step};

use super::loans::loan_of;
use crate::engine::bound::Bound;
use crate::error::{Error, Result};
use crate::tuner::{Needs, Plan, Tuner};

/// How many orders are remembered at most; each is as long as its rank's program.
const ORDERS: usize = 256;

/// A plan, and the order of this rank's steps.
#[derive(Clone)]
pub(crate) struct Ordered {
    pub plan: Plan,
    pub order: Arc<Linear>,
    /// How its publications are counted.
    pub turns: Turns,
    /// It was not planned before: its links may have to be opened.
    pub fresh: bool,
}

/// How the publications of a schedule's round are counted, see [`Window`](maypole_cuda::peer::Window).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turns {
    /// Turns of a round; 0 where nobody publishes.
    pub of_round: u32,
    /// At which step this rank fetches the last of the others' publications of each turn, if it has one to fetch.
    last: [Option<usize>; Turns::MOST],
}

impl Turns {
    /// What the window's protocol allows.
    const MOST: usize = 2;

    /// Of the one-sided schedules, which have one lane, that `schedule` makes for each of `size` ranks; for rank `rank`.
    fn of(rank: usize, size: usize, schedule: &mut dyn FnMut(usize) -> Box<dyn Schedule>) -> Turns {
        let mut turns = Turns::default();
        for publisher in 0..size {
            let schedule = schedule(publisher);
            let steps = (0..schedule.steps(0)).map(|i| schedule.step(0, i));
            let made = steps.filter(|step| matches!(step, Step::Publish { .. })).count();
            assert!(made <= Turns::MOST, "rank {publisher} publishes {made} times in a round");
            turns.of_round = turns.of_round.max(made as u32);
        }
        let own = schedule(rank);
        for i in 0..own.steps(0) {
            if let Step::Fetch { from, nth, .. } | Step::FetchReduce { from, nth, .. } = own.step(0, i)
                && from != rank
            {
                turns.last[nth] = Some(i);
            }
        }
        turns
    }

    /// How many of a round's turns have been read, from the first on, when all fetches up to step `step` have been made.
    pub fn read_after(&self, step: usize) -> u32 {
        let last = &self.last[..self.of_round as usize];
        last.iter().take_while(|last| last.is_none_or(|last| last <= step)).count() as u32
    }
}

impl Ordered {
    /// Whether this rank lends all that it publishes of the buffers in `bound`.
    pub fn is_lent(&self, bound: &Bound<'_>) -> bool {
        let schedule = &self.plan.schedule;
        (0..schedule.steps(0)).all(|i| match schedule.step(0, i) {
            Step::Publish { src } => loan_of(bound, src).is_some(),
            _ => true,
        })
    }

    /// Whether sums become complete in one place, by adding up all ranks' contributions there at once.
    pub fn folds(&self, collective: Collective) -> bool {
        use Collective::*;
        self.plan.algorithm.one_sided() && matches!(collective, AllReduce | Reduce | ReduceScatter)
    }
}

/// Plans operations on device buffers, and remembers the orders.
pub(crate) struct Planner {
    pub tuner: Tuner,
    rank: usize,
    size: usize,
    orders: BTreeMap<(u8, Algorithm, usize), (Arc<Linear>, Turns)>,
}

impl Planner {
    pub fn new(tuner: Tuner, (rank, size): (usize, usize)) -> Planner {
        Planner { tuner, rank, size, orders: BTreeMap::new() }
    }

    /// The plan for an operation on blocks of `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::Argument`] where the settings ask for an algorithm that cannot run here.
    pub fn plan(&mut self, collective: Collective, root: usize, bytes: usize) -> Result<Ordered> {
        let plan = self.tuner.plan(collective, root, bytes, Needs::NOTHING)?;
        self.order(plan, collective, root)
    }

    /// The plan for an operation on blocks with counts of their own, see [`Tuner::plan_v`].
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn plan_v(&mut self, collective: Collective, root: usize, total: usize) -> Result<Ordered> {
        let plan = self.tuner.plan_v(collective, root, total, Needs::NOTHING)?;
        self.order(plan, collective, root)
    }

    fn order(&mut self, plan: Plan, collective: Collective, root: usize) -> Result<Ordered> {
        // Nobody makes links ahead here.
        self.tuner.fresh.clear();
        let key = (collective as u8, plan.algorithm, root);
        if let Some((order, turns)) = self.orders.get(&key) {
            return Ok(Ordered { plan, order: order.clone(), turns: *turns, fresh: false });
        }
        let (size, hosts) = (self.size, self.tuner.hosts());
        let mut schedule = |rank| -> Box<dyn Schedule> {
            let place = Place { rank, size, root };
            algorithms::schedule(plan.algorithm, collective, place, hosts).expect("this rank has one, so all have")
        };
        let order = Linear::new(self.rank, size, &mut schedule).map_err(|error| {
            let what = format!("{} by {} cannot be queued on a stream: {error}", collective.name(), plan.algorithm);
            Error::Argument { rank: self.rank, what }
        })?;
        let order = Arc::new(order);
        let turns = match plan.algorithm.one_sided() {
            true => Turns::of(self.rank, size, &mut schedule),
            false => Turns::default(),
        };
        if self.orders.len() == ORDERS {
            self.orders.clear();
        }
        self.orders.insert(key, (order.clone(), turns));
        Ok(Ordered { plan, order, turns, fresh: true })
    }
}

#[cfg(test)]
mod tests {
    use maypole_collectives::Hosts;

    use super::*;

    /// What the argument of [`maypole_cuda::peer::Window`] rests on, of every one-sided schedule: at most two publications
    /// of a rank in a round; every rank fetches every publication of every other, once and in their order; and when it has
    /// come to its end it has read all turns, but for those of which nobody else has published.
    #[test]
    fn every_publication_is_fetched_by_everybody() {
        let mut seen = 0;
        for algorithm in Algorithm::ALL.into_iter().filter(|algorithm| algorithm.one_sided()) {
            for collective in Collective::ALL.into_iter().filter(|c| algorithm.supports(*c)) {
                for size in 2..9 {
                    for root in 0..if collective.is_rooted() { size } else { 1 } {
                        let hosts = Arc::new(Hosts::together(size));
                        let mut schedule = |rank| {
                            let place = Place { rank, size, root };
                            algorithms::schedule(algorithm, collective, place, &hosts).unwrap()
                        };
                        let made: Vec<usize> = (0..size)
                            .map(|rank| {
                                let own = schedule(rank);
                                let steps = (0..own.steps(0)).map(|i| own.step(0, i));
                                steps.filter(|step| matches!(step, Step::Publish { .. })).count()
                            })
                            .collect();
                        for rank in 0..size {
                            let what = format!("{algorithm} {collective:?}, rank {rank} of {size}, root {root}");
                            let turns = Turns::of(rank, size, &mut schedule);
                            let own = schedule(rank);
                            assert_eq!(
                                (own.lanes(), turns.of_round),
                                (1, *made.iter().max().unwrap() as u32),
                                "{what}"
                            );
                            let mut fetched = vec![Vec::new(); size];
                            for i in 0..own.steps(0) {
                                if let Step::Fetch { from, nth, .. } | Step::FetchReduce { from, nth, .. } =
                                    own.step(0, i)
                                    && from != rank
                                {
                                    fetched[from].push(nth);
                                }
                            }
                            for other in (0..size).filter(|other| *other != rank) {
                                assert_eq!(fetched[other], (0..made[other]).collect::<Vec<_>>(), "{what}, of {other}");
                            }
                            assert_eq!(turns.read_after(own.steps(0)), turns.of_round, "{what}");
                            seen += 1;
                        }
                    }
                }
            }
        }
        assert!(seen > 100, "{seen}");
    }
}
