//! What an algorithm's file says of it, beside its schedules: its [`Entry`].

use std::sync::Arc;

use crate::hosts::Hosts;
use crate::schedule::{Collective, Place, Schedule};

/// What an algorithm is called, what it serves, and how to build its schedules.
pub(super) struct Entry {
    /// The name used everywhere.
    pub name: &'static str,
    /// What ranks must share.
    pub sides: Sides,
    /// Whether its schedules depend on which ranks share a host.
    pub minds_hosts: bool,
    /// The collectives that it has schedules for.
    pub serves: &'static [Service],
    /// How to build them.
    pub schedule: Build,
}

/// Gives the schedule of a rank of at least two; `None` for a collective that is not served.
pub(super) type Build = fn(Collective, Place, &Arc<Hosts>) -> Option<Box<dyn Schedule>>;

/// Which of the two families of [steps](crate::schedule#two-families-of-steps) its schedules use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sides {
    /// Send and receive: any transport.
    Two,
    /// Publish and fetch: ranks share memory.
    One,
}

/// A collective that an algorithm serves, and what it promises there.
#[derive(Clone, Copy)]
pub(super) struct Service {
    pub collective: Collective,
    pub folds: Folds,
    pub lends_in_place: bool,
}

/// What schedules promise about the order in which they combine the ranks' elements. Each promise
/// holds those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folds {
    /// Nothing, but that all ranks of an all-reduce do it alike.
    InAnyOrder,
    /// Rank 0, 1, 2, ..., however bracketed: what operations need that do not commute.
    InRankOrder,
    /// ((x0 ⊕ x1) ⊕ x2) ⊕ ..., which is [`Order::Canonical`](crate::Order). Also where nothing is combined.
    FromTheLeft,
}

/// It serves `collective`; where that combines elements, in any order.
pub(super) const fn serves(collective: Collective) -> Service {
    let folds = if collective.reduces() { Folds::InAnyOrder } else { Folds::FromTheLeft };
    Service { collective, folds, lends_in_place: false }
}

impl Service {
    /// It keeps rank order, in worlds of every size, to every root and wherever the ranks are.
    pub(super) const fn in_rank_order(self) -> Service {
        Service { folds: Folds::InRankOrder, ..self }
    }

    /// Its results are canonical.
    pub(super) const fn left_to_right(self) -> Service {
        Service { folds: Folds::FromTheLeft, ..self }
    }

    /// See [`Algorithm::lends_in_place`](super::Algorithm::lends_in_place).
    pub(super) const fn lends_in_place(self) -> Service {
        Service { lends_in_place: true, ..self }
    }
}

impl Entry {
    /// What it promises for `collective`, if it serves it.
    pub(super) const fn service(&self, collective: Collective) -> Option<Service> {
        let mut i = 0;
        while i < self.serves.len() {
            if self.serves[i].collective as usize == collective as usize {
                return Some(self.serves[i]);
            }
            i += 1;
        }
        None
    }
}
