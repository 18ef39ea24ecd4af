//! Recursive doubling: all-reduce and the scans in log2 n exchanges of the whole vector.
//!
//! Source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication operations in MPICH", Int.
//! J. High Perform. Comput. Appl. 19 (2005). In phase k each rank exchanges all it has summed with the rank at distance
//! 2^k. Few hops, but each carries everything: for small messages. Worlds that are no power of two: see `pairs`.
//!
//! ```text
//!   4 ranks:   0 <-> 1, 2 <-> 3      then      0 <-> 2, 1 <-> 3
//!              x0+x1     x2+x3                 (x0+x1) + (x2+x3) on all four
//! ```
//!
//! Every rank computes the whole sum itself; all use the same tree of additions with the lower ranks' operand first,
//! and so end with the same bits.
//!
//! Scans: W. D. Hillis, G. L. Steele, "Data parallel algorithms", Commun. ACM 29 (1986). There is no exchange: in phase k
//! each rank sends the sum of the last 2^k ranks up to itself to the rank 2^k above, and so gets the sum of the 2^k ranks
//! before those it has. Any n will do.
//!
//! ```text
//!   5 ranks, what each has summed:   x0  x1   x2    x3     x4
//!                                    x0  x01  x12   x23    x34
//!                                    x0  x01  x012  x0123  x1234
//!                                    x0  x01  x012  x0123  x01234
//! ```

use super::entry::{Entry, Sides, serves};
use super::pairs::{Part, Player};
use crate::schedule::{Collective, Operands, Place, Rank, Region, Schedule, Step};

pub(super) const ENTRY: Entry = Entry {
    name: "recursive_doubling",
    sides: Sides::Two,
    minds_hosts: false,
    serves: &[
        serves(Collective::AllReduce).in_rank_order(),
        serves(Collective::Scan).in_rank_order(),
        serves(Collective::ExclusiveScan).in_rank_order(),
    ],
    schedule: |collective, place, _| schedule(collective, place),
};

pub(super) fn schedule(collective: Collective, place: Place) -> Option<Box<dyn Schedule>> {
    let Place { rank, size, .. } = place;
    match collective {
        Collective::AllReduce => Some(Box::new(AllReduce { part: Part::new(place) })),
        Collective::Scan => Some(Box::new(Scan { rank, size })),
        Collective::ExclusiveScan => Some(Box::new(ExclusiveScan { rank, size })),
        _ => None,
    }
}

const INPUT: Region = Region::input(0, 1);
const OUTPUT: Region = Region::output(0, 1);

#[derive(Clone, Copy, Debug)]
struct AllReduce {
    part: Part,
}

impl Schedule for AllReduce {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        match self.part {
            Part::Folded { .. } => 2,
            Part::Player(Player { phases, folded, .. }) => 2 * phases + 2 * folded.is_some() as usize,
        }
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let player = match self.part {
            Part::Folded { keeper } if i == 0 => return Step::Send { to: keeper, src: INPUT },
            Part::Folded { keeper } => return Step::Recv { from: keeper, dst: OUTPUT },
            Part::Player(player) => player,
        };
        let i = match player.folded {
            Some(from) if i == 0 => {
                return Step::RecvReduce { from, local: INPUT, order: Operands::LocalFirst, dst: OUTPUT };
            }
            Some(to) if i == 2 * player.phases + 1 => return Step::Send { to, src: OUTPUT },
            Some(_) => i - 1,
            None => i,
        };
        let phase = i / 2;
        let (number, peer) = player.partner(phase);
        // Until the first reduction has filled the output, what this rank has is its input.
        let sum = if phase == 0 && player.folded.is_none() { INPUT } else { OUTPUT };
        if i.is_multiple_of(2) {
            Step::Send { to: peer, src: sum }
        } else {
            let order = if number < player.number { Operands::PeerFirst } else { Operands::LocalFirst };
            Step::RecvReduce { from: peer, local: sum, order, dst: OUTPUT }
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// The distances of a scan's phases: 1, 2, 4, ... as long as anybody is that far from anybody.
fn distances(size: usize) -> impl Iterator<Item = usize> {
    (0..).map(|phase| 1 << phase).take_while(move |&distance| distance < size)
}

#[derive(Clone, Copy, Debug)]
struct Scan {
    rank: Rank,
    size: usize,
}

impl Scan {
    fn program(self) -> impl Iterator<Item = Step> {
        let Scan { rank, size } = self;
        let phases = distances(size).flat_map(move |distance| {
            // Every rank but 0, whose sum is its input, has received in the first phase.
            let sum = if rank == 0 || distance == 1 { INPUT } else { OUTPUT };
            let send = (rank + distance < size).then_some(Step::Send { to: rank + distance, src: sum });
            let add = rank.checked_sub(distance);
            let add = add.map(|from| Step::RecvReduce { from, local: sum, order: Operands::PeerFirst, dst: OUTPUT });
            send.into_iter().chain(add)
        });
        phases.chain((rank == 0).then_some(Step::Copy { src: INPUT, dst: OUTPUT }))
    }
}

impl Schedule for Scan {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        self.program().count()
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        self.program().nth(i).expect("a step of the program")
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// The output gathers the sum of the ranks before; what is sent on has this rank's own operand added to that. The operand
/// is copied, since in place the output takes its memory.
#[derive(Clone, Copy, Debug)]
struct ExclusiveScan {
    rank: Rank,
    size: usize,
}

impl ExclusiveScan {
    /// Whether it sends more than its input: only that is certain to be complete from the start.
    fn sends_sums(self) -> bool {
        self.rank > 0 && self.rank + 2 < self.size
    }

    fn program(self) -> impl Iterator<Item = Step> {
        let ExclusiveScan { rank, size } = self;
        let (own, sum) = (Region::scratch(0, 1), Region::scratch(1, 1));
        distances(size).flat_map(move |distance| {
            let sends = rank + distance < size;
            let src = if rank == 0 || distance == 1 { INPUT } else { sum };
            // The sum of the phase before still stands where nothing was received in it.
            let changed = rank > 0 && distance > 1 && rank >= distance / 2;
            let add = (sends && changed).then_some(Step::Reduce { a: OUTPUT, b: own, dst: sum });
            let send = sends.then_some(Step::Send { to: rank + distance, src });
            let copy = (distance == 1 && self.sends_sums()).then_some(Step::Copy { src: INPUT, dst: own });
            let recv = rank.checked_sub(distance).map(|from| match distance {
                1 => Step::Recv { from, dst: OUTPUT },
                _ => Step::RecvReduce { from, local: OUTPUT, order: Operands::PeerFirst, dst: OUTPUT },
            });
            [add, send, copy, recv].into_iter().flatten()
        })
    }
}

impl Schedule for ExclusiveScan {
    fn pieces(&self) -> usize {
        1
    }
    fn scratch(&self) -> usize {
        if self.sends_sums() { 2 } else { 0 }
    }
    fn steps(&self, _lane: usize) -> usize {
        self.program().count()
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        self.program().nth(i).expect("a step of the program")
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
