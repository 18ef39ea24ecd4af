//! Calls that are checked and planned before they run, and run any number of times: what is behind
//! [`persistent`](super::persistent) operations.

use super::blocks::{Sides, Spread};
use super::call::{Buffers, Lengths, Way};
use super::{Call, Inner};
use crate::engine::bound::Bound;
use crate::error::{Error, Result};
use crate::tuner::Plan;

/// A call whose arguments are right and whose plan is made.
pub(super) struct Prepared {
    pub call: Call,
    in_place: bool,
    how: How,
}

enum How {
    Even(Way),
    /// On blocks with counts of their own.
    Variable(Spread, Plan),
}

impl Inner {
    /// Check a call, make its plan and find its scratch memory, so that running it does neither. `sides`: where blocks
    /// lie that have counts of their own. Waits until the calls before are done.
    ///
    /// # Errors
    /// [`Error::Argument`], without a trace: no operation was called.
    pub(super) fn prepare(&self, mut call: Call, lengths: Lengths, sides: Option<Sides<'_>>) -> Result<Prepared> {
        call.clear_ignored();
        let refuse = |what| Error::Argument { rank: self.rank, what };
        let in_place = matches!(lengths, Lengths::InPlace { .. });
        let mut spread = Spread::default();
        match sides {
            None => self.check(&call, lengths),
            Some(sides) => self.spread(&call, sides, lengths, &mut spread),
        }
        .map_err(refuse)?;
        let _ticket = self.turn(self.number()?)?;
        // SAFETY: this thread holds the ticket to the end of the function.
        let work = unsafe { self.work() };
        let (scratch, how) = match sides {
            None => {
                let way = work.way(&call)?;
                let steps = match &way {
                    Way::Fused => 0,
                    Way::Planned(plan) => {
                        let nowhere = (std::ptr::null(), std::ptr::null_mut());
                        let pieces = plan.schedule.pieces();
                        let bound = Bound::new(call.dtype, call.op, call.count, pieces, plan.slice, nowhere);
                        bound.scratch_of(&*plan.schedule)
                    }
                };
                let root = if call.collective.is_rooted() { call.root } else { 0 };
                (steps + self.copied(&call, root, in_place), How::Even(way))
            }
            Some(_) => {
                let plan = work.plan_v(&call, &spread)?;
                let nowhere = Buffers { input: std::ptr::null(), output: std::ptr::null_mut() };
                let steps = spread.bind(&call, &plan, nowhere).scratch_of(&*plan.schedule);
                (steps + spread.copied(&call, in_place), How::Variable(spread, plan))
            }
        };
        work.engine.provide_scratch(scratch);
        Ok(Prepared { call, in_place, how })
    }

    /// Run a prepared call when ticket `number` comes up.
    ///
    /// # Safety
    /// The buffers have the lengths that it was prepared for, are valid until this returns, and nobody else writes them
    /// or reads the output.
    pub(super) unsafe fn run_prepared(&self, number: u64, prepared: &Prepared, buffers: Buffers) -> Result<()> {
        let Prepared { call, in_place, how } = prepared;
        // SAFETY: the lengths were checked when the call was prepared; the rest is the caller's promise.
        self.operation(number, call, |work| unsafe {
            match how {
                How::Even(way) => work.collective(self, (*call, way), buffers, *in_place),
                How::Variable(spread, plan) => work.collective_v(self, (*call, plan, spread), buffers, *in_place),
            }
        })
    }
}
