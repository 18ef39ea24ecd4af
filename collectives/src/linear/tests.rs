use std::collections::HashMap;
use std::sync::Arc;

use super::*;
use crate::algorithms::{self, Algorithm};
use crate::hosts::Hosts;
use crate::schedule::{Collective, Place};
use crate::verify::layouts;

/// What ranks that wait for one thing at a time come to, on links that hold `credit` messages: the step before which
/// somebody stands for ever.
fn replay(
    schedules: &[Box<dyn Schedule>],
    orders: &[Linear],
    (rounds, credit): (usize, usize),
    kept: &dyn Fn(Rank, &Step) -> bool,
) -> Option<(Rank, usize)> {
    let size = schedules.len();
    let mut links: HashMap<(Rank, Rank, usize), usize> = HashMap::new();
    // Publications that each rank has made, and what each has fetched of each other: two places a rank.
    let mut published = vec![0usize; size];
    let mut fetched = vec![vec![0usize; size]; size];
    let mut at = vec![0usize; size];
    // One rank after the other as far as it comes, from the last: not at all the order in which the orders were found.
    loop {
        let before = at.clone();
        for rank in (0..size).rev() {
            while at[rank] < rounds * orders[rank].len() {
                let (lane, step) = orders[rank].at(at[rank] % orders[rank].len());
                let step = schedules[rank].step(lane, step);
                let channel = schedules[rank].channel(lane);
                let (from, to) = step.peers();
                let incoming = from.map(|from| (from, rank, channel));
                let outgoing = to.map(|to| (rank, to, channel));
                let can = match step {
                    _ if !kept(rank, &step) => {
                        at[rank] += 1;
                        continue;
                    }
                    Step::Publish { .. } => {
                        (0..size).all(|reader| reader == rank || fetched[reader][rank] + 2 > published[rank])
                    }
                    Step::Fetch { from, .. } | Step::FetchReduce { from, .. } => {
                        from == rank || fetched[rank][from] < published[from]
                    }
                    _ => {
                        incoming.is_none_or(|link| links.get(&link).is_some_and(|held| *held > 0))
                            && outgoing.is_none_or(|link| *links.entry(link).or_default() < credit)
                    }
                };
                if !can {
                    break;
                }
                match step {
                    Step::Publish { .. } => published[rank] += 1,
                    Step::Fetch { from, .. } | Step::FetchReduce { from, .. } if from != rank => {
                        fetched[rank][from] += 1;
                    }
                    _ => {
                        incoming.into_iter().for_each(|link| *links.get_mut(&link).expect("held") -= 1);
                        outgoing.into_iter().for_each(|link| *links.entry(link).or_default() += 1);
                    }
                }
                at[rank] += 1;
            }
        }
        if at == before {
            let stands = (0..size).find(|rank| at[*rank] < rounds * orders[*rank].len());
            return stands.map(|rank| (rank, at[rank]));
        }
    }
}

fn world(algorithm: Algorithm, collective: Collective, root: Rank, hosts: &Arc<Hosts>) -> Vec<Box<dyn Schedule>> {
    let size = hosts.size();
    let one = |rank| algorithms::schedule(algorithm, collective, Place { rank, size, root }, hosts);
    (0..size).map(|rank| one(rank).expect("supported")).collect()
}

fn orders(algorithm: Algorithm, collective: Collective, root: Rank, hosts: &Arc<Hosts>) -> Vec<Linear> {
    let size = hosts.size();
    let mut one =
        |rank| algorithms::schedule(algorithm, collective, Place { rank, size, root }, hosts).expect("supported");
    (0..size).map(|rank| Linear::new(rank, size, &mut one).expect("every algorithm has an order")).collect()
}

/// Calls `check` for every algorithm, collective, world of up to 17 ranks, placement, and a few roots.
fn everything(mut check: impl FnMut(Algorithm, Collective, Rank, &Arc<Hosts>)) {
    for algorithm in Algorithm::ALL {
        for collective in Collective::ALL.into_iter().filter(|c| algorithm.supports(*c)) {
            for size in (1..=9).chain([12, 13, 16, 17]) {
                let placements =
                    if algorithm.minds_hosts() { layouts(size) } else { vec![Arc::new(Hosts::together(size))] };
                for hosts in placements {
                    let roots = if collective.is_rooted() { vec![0, size / 2, size - 1] } else { vec![0] };
                    roots.into_iter().for_each(|root| check(algorithm, collective, root, &hosts));
                }
            }
        }
    }
}

#[test]
fn every_step_has_its_place_once_and_lanes_keep_their_order() {
    everything(|algorithm, collective, root, hosts| {
        let schedules = world(algorithm, collective, root, hosts);
        for (rank, order) in orders(algorithm, collective, root, hosts).iter().enumerate() {
            let mut next = vec![0; schedules[rank].lanes()];
            for i in 0..order.len() {
                let (lane, step) = order.at(i);
                assert_eq!(next[lane], step, "{algorithm} {} rank {rank} of {hosts}", collective.name());
                next[lane] += 1;
            }
            let whole: Vec<usize> = (0..next.len()).map(|lane| schedules[rank].steps(lane)).collect();
            assert_eq!(next, whole, "{algorithm} {} rank {rank} of {hosts}", collective.name());
        }
    });
}

#[test]
fn ranks_that_follow_their_orders_never_stand_still() {
    everything(|algorithm, collective, root, hosts| {
        let schedules = world(algorithm, collective, root, hosts);
        let orders = orders(algorithm, collective, root, hosts);
        let stands = replay(&schedules, &orders, (3, 2), &|_, _| true);
        assert_eq!(stands, None, "{algorithm} {}, root {root}, {hosts}", collective.name());
    });
}

#[test]
fn messages_may_be_left_out_on_both_sides() {
    everything(|algorithm, collective, root, hosts| {
        let schedules = world(algorithm, collective, root, hosts);
        let orders = orders(algorithm, collective, root, hosts);
        let pieces = schedules[0].pieces();
        for cut in 0..3.min(pieces) {
            // As where the last pieces of a block are shorter than the others: from `cut` on they have nothing to move.
            let kept = |_: Rank, step: &Step| {
                let Some(message) = step.message() else { return true };
                message.len == 0 || message.chunks().any(|chunk| chunk % pieces <= cut)
            };
            let stands = replay(&schedules, &orders, (2, 2), &kept);
            assert_eq!(stands, None, "{algorithm} {}, root {root}, {hosts}, cut {cut}", collective.name());
        }
        if algorithm == Algorithm::Direct && collective == Collective::AllToAll {
            // As where some pairs of ranks have nothing for each other.
            let kept = |rank: Rank, step: &Step| match step.peers() {
                (Some(from), None) => !(from * 5 + rank * 3).is_multiple_of(4),
                (None, Some(to)) => !(rank * 5 + to * 3).is_multiple_of(4),
                _ => true,
            };
            assert_eq!(replay(&schedules, &orders, (2, 2), &kept), None, "{hosts}");
        }
    });
}

/// Two ranks each of which has one lane that sends to the other and one that receives.
struct Crossed;

impl Schedule for Crossed {
    fn pieces(&self) -> usize {
        1
    }
    fn lanes(&self) -> usize {
        2
    }
    fn steps(&self, _lane: usize) -> usize {
        3
    }
    fn step(&self, lane: usize, _i: usize) -> Step {
        use crate::schedule::Region;
        if lane == 0 { Step::Send { to: 1, src: Region::EMPTY } } else { Step::Recv { from: 1, dst: Region::EMPTY } }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// The other side of [`Crossed`], of `messages` messages.
struct Other(usize);

impl Schedule for Other {
    fn pieces(&self) -> usize {
        1
    }
    fn lanes(&self) -> usize {
        2
    }
    fn steps(&self, _lane: usize) -> usize {
        self.0
    }
    fn step(&self, lane: usize, _i: usize) -> Step {
        use crate::schedule::Region;
        if lane == 0 { Step::Send { to: 0, src: Region::EMPTY } } else { Step::Recv { from: 0, dst: Region::EMPTY } }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

#[test]
fn lanes_one_after_the_other_would_stand_still_where_the_order_does_not() {
    let mut make = |rank| -> Box<dyn Schedule> { if rank == 0 { Box::new(Crossed) } else { Box::new(Other(3)) } };
    let schedules = [make(0), make(1)];
    let good: Vec<_> = (0..2).map(|rank| Linear::new(rank, 2, &mut make).unwrap()).collect();
    assert_eq!(replay(&schedules, &good, (2, 2), &|_, _| true), None);
    let order: Box<[_]> = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)].into();
    let bad = vec![Linear { order, steps: 6 }; 2];
    assert_eq!(replay(&schedules, &bad, (2, 2), &|_, _| true), Some((0, 2)));
}

#[test]
fn schedules_without_an_end_are_told() {
    let mut make = |rank| -> Box<dyn Schedule> { if rank == 0 { Box::new(Crossed) } else { Box::new(Other(2)) } };
    let error = Linear::new(0, 2, &mut make).unwrap_err();
    assert_eq!(error, NotLinear::Deadlock { rank: 0 });
}
