//! What is remembered of communicators that this rank has not registered, or no longer: the latest of it.
//!
//! Others may speak of a communicator before this rank makes it, and after this rank has left it. Neither need ever
//! end: a rank that is asked for may not come, and a program may make and leave communicators for weeks. So only so many
//! are remembered, [`Recent::MOST`], and what came first is forgotten first.

use std::collections::{HashMap, VecDeque};

/// Something about each of the latest communicators, by context.
pub(super) struct Recent<T> {
    known: HashMap<u64, T>,
    /// Their contexts, oldest first.
    order: VecDeque<u64>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Recent { known: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Recent<T> {
    /// Far more than ranks make while a message of the hub's, or a connection, is on its way.
    pub const MOST: usize = 4096;

    /// Remember `what` of `context`, unless something is known already.
    pub fn insert(&mut self, context: u64, what: T) {
        if self.known.contains_key(&context) {
            return;
        }
        if self.order.len() == Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(context);
        self.known.insert(context, what);
    }

    pub fn contains(&self, context: u64) -> bool {
        self.known.contains_key(&context)
    }

    pub fn remove(&mut self, context: u64) -> Option<T> {
        let what = self.known.remove(&context)?;
        self.order.retain(|other| *other != context);
        Some(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered_and_no_more() {
        let most = Recent::<u64>::MOST as u64;
        let mut recent = Recent::default();
        for context in 0..3 * most {
            recent.insert(context, context + 1);
            recent.insert(context, 0);
            assert!(recent.known.len() <= most as usize && recent.order.len() == recent.known.len());
        }
        assert!(!recent.contains(2 * most - 1) && recent.contains(2 * most));
        assert_eq!(recent.remove(2 * most), Some(2 * most + 1), "what was known first counts");
        assert_eq!(recent.remove(2 * most), None);
        recent.insert(7, 7);
        assert!(recent.contains(2 * most + 1), "there was a place left");
    }
}
