//! Vector clocks: what a lane has seen of every lane of the world.
//!
//! Held as the lanes it has seen anything of, in order, each with a tick. A schedule may have a lane for every pair of
//! ranks, of which each sees hardly any other; a tick for every lane in every clock would then be most of the verifier's
//! memory and time.

use std::rc::Rc;

/// What has been seen: the latest tick of each lane of the world, 0 where nothing has been seen.
#[derive(Clone, Default)]
pub(super) struct Clock {
    /// Lanes of the world in ascending order, and their ticks. Shared with the messages that carry them.
    seen: Rc<Vec<(u32, u32)>>,
}

impl Clock {
    /// The latest tick seen of lane `actor` of the world.
    pub(super) fn of(&self, actor: usize) -> u32 {
        self.seen.binary_search_by_key(&(actor as u32), |&(actor, _)| actor).map_or(0, |i| self.seen[i].1)
    }

    /// Lane `actor` has come to `tick`.
    pub(super) fn set(&mut self, actor: usize, tick: u32) {
        let seen = Rc::make_mut(&mut self.seen);
        match seen.binary_search_by_key(&(actor as u32), |&(actor, _)| actor) {
            Ok(i) => seen[i].1 = tick,
            Err(i) => seen.insert(i, (actor as u32, tick)),
        }
    }

    /// Has now also seen what `other` had.
    pub(super) fn see(&mut self, other: &Clock) {
        if other.seen.is_empty() || Rc::ptr_eq(&self.seen, &other.seen) {
            return;
        }
        let same_lanes = self.seen.len() == other.seen.len()
            && self.seen.iter().zip(&*other.seen).all(|((mine, _), (theirs, _))| mine == theirs);
        if same_lanes {
            let mine = Rc::make_mut(&mut self.seen);
            mine.iter_mut().zip(&*other.seen).for_each(|(mine, theirs)| mine.1 = mine.1.max(theirs.1));
            return;
        }
        let mut both = Vec::with_capacity(self.seen.len() + other.seen.len());
        let (mut mine, mut theirs) = (self.seen.iter().copied().peekable(), other.seen.iter().copied().peekable());
        while let (Some(&(a, at)), Some(&(b, bt))) = (mine.peek(), theirs.peek()) {
            both.push((
                a.min(b),
                if a == b {
                    at.max(bt)
                } else if a < b {
                    at
                } else {
                    bt
                },
            ));
            mine.next_if(|_| a <= b);
            theirs.next_if(|_| b <= a);
        }
        both.extend(mine.chain(theirs));
        self.seen = Rc::new(both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against clocks with a place for every lane.
        #[test]
        fn merging_keeps_the_later_tick_of_every_lane(
            a in proptest::collection::vec(0u32..4, 12),
            b in proptest::collection::vec(0u32..4, 12),
        ) {
            let build = |dense: &[u32]| {
                let mut clock = Clock::default();
                // Backwards, so that places are made in front of others.
                for (actor, &tick) in dense.iter().enumerate().rev().filter(|(_, tick)| **tick > 0) {
                    clock.set(actor, 1);
                    clock.set(actor, tick);
                }
                clock
            };
            let mut merged = build(&a);
            let before = merged.clone();
            merged.see(&build(&b));
            for actor in 0..12 {
                prop_assert_eq!(merged.of(actor), a[actor].max(b[actor]));
                prop_assert_eq!(before.of(actor), a[actor], "what a message carries stays as it was");
            }
        }
    }
}
