//! How an operation on device buffers is run: its algorithm and slice, and its steps in one order.

use std::collections::BTreeMap;
use std::sync::Arc;

use maypole_collectives::algorithms::{self, Algorithm};
use maypole_collectives::linear::Linear;
use maypole_collectives::schedule::{Collective, Place, Schedule};

use crate::error::{Error, Result};
use crate::tuner::{Needs, Plan, Tuner};

/// How many orders are remembered at most; each is as long as its rank's program.
const ORDERS: usize = 256;

/// A plan, and the order of this rank's steps.
#[derive(Clone)]
pub(crate) struct Ordered {
    pub plan: Plan,
    pub order: Arc<Linear>,
    /// It was not planned before: its links may have to be opened.
    pub fresh: bool,
}

impl Ordered {
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
    orders: BTreeMap<(u8, Algorithm, usize), Arc<Linear>>,
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
        if let Some(order) = self.orders.get(&key) {
            return Ok(Ordered { plan, order: order.clone(), fresh: false });
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
        if self.orders.len() == ORDERS {
            self.orders.clear();
        }
        self.orders.insert(key, order.clone());
        Ok(Ordered { plan, order, fresh: true })
    }
}
