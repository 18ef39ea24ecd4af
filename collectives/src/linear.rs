//! A schedule's steps in one order, for executors that cannot wait for several things at once.
//!
//! The lanes of a schedule run concurrently: an executor on the host goes on with whichever lane can. A CUDA stream runs
//! its commands one after the other and stands still at the first that has to wait. So the steps of all lanes are put
//! into one order, and the orders of different ranks must fit together, or two ranks could each stand before a message
//! that the other has not come to.
//!
//! [`Linear::new`] runs one round of all ranks' schedules, with the smallest credit, and takes the order in which this
//! rank's steps came to an end. Every rank runs the same, so the orders are cut from one *global* order.
//!
//! # Why nobody stands still for ever
//!
//! Take the global order of that run. A link holds one message there, and a fused step takes its message out of one link
//! before it waits for room in the other. Now let each rank do its steps in its own order, on links that hold *two*
//! messages, a fused step taking and giving at the same time. Suppose everything that stands before some step in the global
//! order has been done. What the step receives had been sent before, and what it sends finds room: in the run the link was
//! empty but for a message that a fused step on the other side had taken and not yet passed on, so here it holds one at
//! most. Hence the step can be done, and by induction all can. It does not matter that ranks do not wait for each other
//! as in the global order: a message once sent stays until it is taken, and room stays until it is used, so a step that
//! could be done at its place in the global order can be done when its rank comes to it.
//!
//! After a round all links are empty, so rounds, and operations, can follow each other. A message of which both ends know
//! that it has nothing to move may be left out on both sides: nothing waits for it.
//!
//! One-lane schedules are in order already and cost nothing. The others cost one run of the whole world when they are
//! planned: time and memory in proportion to all ranks' steps together.

use std::collections::{HashMap, VecDeque};

use crate::schedule::{Rank, Schedule, Step};

/// One rank's steps in the order in which to do them, the same in each round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Lane and step; empty where the schedule has one lane.
    order: Box<[(u32, u32)]>,
    steps: usize,
}

/// Why a schedule has no order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLinear {
    /// Publications of different lanes have numbers of their own, and an order would mix them.
    #[error("lane {lane} of rank {rank} publishes or fetches beside other lanes")]
    Publishes {
        /// Whose.
        rank: Rank,
        /// Which.
        lane: usize,
    },
    /// The ranks come to stand still: the verifier says why.
    #[error("the schedules deadlock: rank {rank} does not come to its end")]
    Deadlock {
        /// One of those that wait.
        rank: Rank,
    },
}

impl Linear {
    /// The order of rank `rank`'s steps in a world of `size` ranks, whose schedules `schedule` makes.
    ///
    /// # Errors
    /// For schedules that have none; the library has no such schedule.
    pub fn new(
        rank: Rank,
        size: usize,
        schedule: &mut dyn FnMut(Rank) -> Box<dyn Schedule>,
    ) -> Result<Linear, NotLinear> {
        let own = schedule(rank);
        // Ranks may differ in how many lanes they have, but one with one lane is in order whatever the others do.
        if own.lanes() == 1 {
            return Ok(Linear { order: Box::default(), steps: own.steps(0) });
        }
        let order = Run::new((0..size).map(schedule).collect())?.run(rank)?.into_boxed_slice();
        Ok(Linear { steps: order.len(), order })
    }

    /// How many steps there are in a round.
    pub fn len(&self) -> usize {
        self.steps
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.steps == 0
    }

    /// Lane and number within it of the `i`-th step.
    pub fn at(&self, i: usize) -> (usize, usize) {
        match self.order.get(i) {
            Some((lane, step)) => (*lane as usize, *step as usize),
            None => (0, i),
        }
    }
}

/// A link between two ranks on one channel.
#[derive(Default)]
struct Link {
    full: bool,
    /// The lane that waits for it to change: (rank, lane).
    waiting: Option<(Rank, usize)>,
}

/// A lane as it runs.
#[derive(Clone, Default)]
struct Lane {
    step: usize,
    /// A fused step has taken its message and not passed it on yet.
    holds: bool,
}

/// One round of a world.
struct Run {
    schedules: Vec<Box<dyn Schedule>>,
    lanes: Vec<Vec<Lane>>,
    /// Lanes of each rank that may be able to go on. A rank takes one step at a time, from each in turn, so that the order
    /// has the lanes advance side by side.
    ready: Vec<VecDeque<usize>>,
    links: HashMap<(Rank, Rank, usize), Link>,
}

impl Run {
    fn new(schedules: Vec<Box<dyn Schedule>>) -> Result<Run, NotLinear> {
        for (rank, schedule) in schedules.iter().enumerate() {
            for lane in 0..schedule.lanes() {
                let one_sided = (0..schedule.steps(lane)).any(|i| is_one_sided(&schedule.step(lane, i)));
                if one_sided {
                    return Err(NotLinear::Publishes { rank, lane });
                }
            }
        }
        let lanes: Vec<_> = schedules.iter().map(|schedule| vec![Lane::default(); schedule.lanes()]).collect();
        let ready = lanes.iter().map(|lanes| (0..lanes.len()).collect()).collect();
        Ok(Run { schedules, lanes, ready, links: HashMap::new() })
    }

    /// Run to the end; in which order `this` rank's steps ended.
    fn run(&mut self, this: Rank) -> Result<Vec<(u32, u32)>, NotLinear> {
        let size = self.schedules.len();
        let mut order = Vec::new();
        loop {
            let mut moved = false;
            for rank in 0..size {
                if let Some((lane, step)) = self.turn(rank) {
                    moved = true;
                    if rank == this {
                        order.push((lane as u32, step as u32));
                    }
                }
            }
            if !moved {
                break;
            }
        }
        let unfinished = |rank: &Rank| {
            let schedule = &self.schedules[*rank];
            self.lanes[*rank].iter().enumerate().any(|(lane, at)| at.step < schedule.steps(lane))
        };
        match (0..size).find(unfinished) {
            Some(rank) => Err(NotLinear::Deadlock { rank }),
            None => Ok(order),
        }
    }

    /// Let a rank do one step, if it can; which.
    fn turn(&mut self, rank: Rank) -> Option<(usize, usize)> {
        while let Some(lane) = self.ready[rank].pop_front() {
            let step = self.lanes[rank][lane].step;
            if step < self.schedules[rank].steps(lane) && self.attempt(rank, lane) {
                self.lanes[rank][lane].step += 1;
                self.ready[rank].push_back(lane);
                return Some((lane, step));
            }
        }
        None
    }

    /// Try the step at which a lane stands. If it must wait, it is left with the link.
    fn attempt(&mut self, rank: Rank, lane: usize) -> bool {
        let schedule = &self.schedules[rank];
        let channel = schedule.channel(lane);
        let (from, to) = schedule.step(lane, self.lanes[rank][lane].step).peers();
        if let Some(from) = from
            && !self.lanes[rank][lane].holds
        {
            if !self.change((from, rank, channel), (rank, lane), false) {
                return false;
            }
            self.lanes[rank][lane].holds = true;
        }
        if let Some(to) = to
            && !self.change((rank, to, channel), (rank, lane), true)
        {
            return false;
        }
        self.lanes[rank][lane].holds = false;
        true
    }

    /// Fill an empty link or empty a full one, and wake the other end; or wait for it.
    fn change(&mut self, link: (Rank, Rank, usize), actor: (Rank, usize), fill: bool) -> bool {
        let link = self.links.entry(link).or_default();
        if link.full == fill {
            link.waiting = Some(actor);
            return false;
        }
        link.full = fill;
        if let Some((rank, lane)) = link.waiting.take() {
            self.ready[rank].push_back(lane);
        }
        true
    }
}

fn is_one_sided(step: &Step) -> bool {
    matches!(step, Step::Publish { .. } | Step::Fetch { .. } | Step::FetchReduce { .. })
}

#[cfg(test)]
mod tests;
