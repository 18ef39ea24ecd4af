//! A world of one rank: its input is everybody's, so every collective is a copy. The barrier is nothing, and so is
//! the exclusive scan, which has no output on rank 0.

use crate::schedule::{Collective, Region, Schedule, Step};

/// The schedule of the only rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alone {
    collective: Collective,
}

impl Alone {
    pub(super) const fn new(collective: Collective) -> Alone {
        Alone { collective }
    }
}

impl Schedule for Alone {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        self.collective.output_blocks(0, 1, 0)
    }
    fn step(&self, _lane: usize, _i: usize) -> Step {
        Step::Copy { src: Region::input(0, 1), dst: Region::output(0, 1) }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
