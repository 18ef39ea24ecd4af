//! Single faults, and what the verifier says about them.

use crate::planted::World;
use maypole_collectives::algorithms::Algorithm::{self, *};
use maypole_collectives::schedule::{Buffer, Collective, Operands, Region, Step};
use maypole_collectives::verify::{At, Fault, Folds, Wait, layouts, verify};

const INPUT: Region = Region::input(0, 1);
const OUTPUT: Region = Region::output(0, 1);
const SCRATCH: Region = Region::scratch(0, 1);

fn send(to: usize) -> Step {
    Step::Send { to, src: Region::EMPTY }
}
fn recv(from: usize) -> Step {
    Step::Recv { from, dst: Region::EMPTY }
}

#[test]
fn a_dropped_step_is_named_by_the_other_end() {
    let chain = World::of(Chain, Collective::Broadcast, 3, 0);
    // Rank 2 never looks, so rank 1 cannot get rid of its second message, and rank 0 not of its third.
    let fault = chain.with(|w| w.steps(2).clear()).fault();
    assert_eq!(fault.to_string(), "rank 1, lane 0, step 0 (round 0): rank 2 never receives this message");
    // Rank 1 keeps what it should pass on.
    let fault = chain.with(|w| w.steps(1)[0] = Step::Recv { from: 0, dst: OUTPUT }).fault();
    assert_eq!(
        fault.to_string(),
        "rank 2, lane 0, step 0 (round 0) waits for a message from rank 1, which has finished"
    );
}

#[test]
fn a_message_too_many_meets_the_next_round() {
    let world =
        World::by_hand(Collective::Barrier, 0, vec![vec![vec![send(1), recv(1)]], vec![vec![recv(0), send(0)]]]);
    world.verify(false).unwrap();
    let fault = world.with(|w| w.steps(1).push(send(0))).fault();
    assert!(
        matches!(fault, Fault::WrongRound { at, sender } if (at.rank, at.round, sender.round) == (0, 1, 0)),
        "{fault}"
    );
}

#[test]
fn swapped_steps() {
    // Each waits for its neighbour's first piece before it sends its own.
    let ring = World::of(Ring, Collective::AllReduce, 4, 0);
    let Fault::Deadlock(blocked) = ring.with(|w| (0..4).for_each(|r| w.steps(r).swap(0, 1))).fault() else { panic!() };
    assert_eq!(blocked.len(), 4);
    assert!(blocked.iter().all(|b| b.wait == Wait::Message((b.at.rank + 3) % 4)));
    // On one rank only: a piece arrives where another is expected.
    let fault = ring.with(|w| w.steps(2).swap(3, 4)).fault();
    assert!(matches!(fault, Fault::Mismatch { at, .. } if at.rank == 2), "{fault}");
    // The block that should go to the neighbour goes to the rank after it.
    let swap = |step: &mut Step, to: usize| *step = Step::Send { to, src: Region::input(3 - to, 1) };
    let fault = World::of(Pairwise, Collective::AllToAll, 3, 0)
        .with(|w| {
            swap(&mut w.steps(0)[0], 1);
            swap(&mut w.steps(0)[2], 2);
        })
        .fault();
    assert!(matches!(fault, Fault::Wrong { .. }), "{fault}");
    assert!(fault.to_string().contains("expected block 1 of rank 0"), "{fault}");
}

#[test]
fn a_wrong_peer() {
    let fault = World::of(RecursiveDoubling, Collective::AllReduce, 4, 0)
        .with(|w| w.steps(1)[2] = Step::Send { to: 2, src: OUTPUT })
        .fault();
    assert!(matches!(fault, Fault::Deadlock(_)), "{fault}");
    let of = |step| World::of(Chain, Collective::Broadcast, 3, 0).with(|w| w.steps(0)[0] = step).fault();
    assert!(matches!(of(Step::Send { to: 3, src: INPUT }), Fault::BadPeer { peer: 3, size: 3, .. }));
    assert!(matches!(of(Step::Send { to: 0, src: INPUT }), Fault::BadPeer { peer: 0, .. }));
}

#[test]
fn a_wrong_chunk() {
    let all_to_all = World::of(Pairwise, Collective::AllToAll, 4, 0);
    let fault = all_to_all.with(|w| w.steps(3)[0] = Step::Send { to: 0, src: Region::input(1, 1) }).fault();
    assert!(matches!(fault, Fault::Wrong { rank: 0, chunk: 3, .. }), "{fault}");
    let fault = all_to_all.with(|w| w.steps(3)[0] = Step::Send { to: 0, src: Region::input(4, 1) }).fault();
    assert!(matches!(fault, Fault::OutOfBounds { end: 5, have: 4, .. }), "{fault}");
    let fault = all_to_all.with(|w| w.steps(3)[0] = Step::Send { to: 0, src: Region::output(0, 1) }).fault();
    assert!(matches!(fault, Fault::Uninitialised { chunk: 0, .. }), "{fault}");
    let fault = World::of(Ring, Collective::ReduceScatter, 3, 0)
        .with(|w| w.steps(1)[0] = Step::Send { to: 2, src: Region::input(1, 1) })
        .fault();
    assert!(matches!(fault, Fault::Mixed { .. }), "{fault}");
    let fault = World::of(HalvingDoubling, Collective::AllReduce, 4, 0)
        .with(|w| w.steps(1)[0] = Step::Send { to: 0, src: Region::input(2, 2) })
        .fault();
    assert!(matches!(fault, Fault::Mismatch { expected_piece: 0, sent_piece: 2, .. }), "{fault}");
}

#[test]
fn a_contribution_counted_twice() {
    let again = Step::Reduce { a: OUTPUT, b: INPUT, dst: OUTPUT };
    for algorithm in [RecursiveDoubling, OneShot] {
        let world = World::of(algorithm, Collective::AllReduce, 4, 0).with(|w| w.steps(3).push(again));
        let fault = world.fault();
        assert!(matches!(fault, Fault::Duplicate { at, contributor: 3, .. } if at.rank == 3), "{fault}");
    }
}

#[test]
fn another_order_of_adding() {
    let flip = |step: &mut Step| {
        let (Step::RecvReduce { order, .. } | Step::FetchReduce { order, .. }) = step else { panic!("{step:?}") };
        *order = if *order == Operands::PeerFirst { Operands::LocalFirst } else { Operands::PeerFirst };
    };
    for (algorithm, step) in [(RecursiveDoubling, 3), (OneShot, 2)] {
        let fault = World::of(algorithm, Collective::AllReduce, 4, 0).with(|w| flip(&mut w.steps(2)[step])).fault();
        assert!(matches!(fault, Fault::Diverges { chunk: 0, .. }), "{algorithm}: {fault}");
    }
}

/// Every contribution is there once and all ranks get the same bits, but not those of the fold in rank order.
#[test]
fn another_order_than_that_of_the_ranks() {
    let flip = |step: &mut Step| {
        let (Step::RecvReduce { order, .. } | Step::RecvReduceSend { order, .. }) = step else { panic!("{step:?}") };
        *order = if *order == Operands::PeerFirst { Operands::LocalFirst } else { Operands::PeerFirst };
    };
    // Rank 1 of 4 has handed out 3 pieces; then it folds piece 1, starting with rank 0's.
    let direct = World::of(Direct, Collective::AllReduce, 4, 0).with(|w| flip(&mut w.steps(1)[3]));
    assert_eq!(direct.fault(), Fault::OutOfOrder { rank: 0, chunk: 1 });
    direct.with(|w| w.promise = Folds::InAnyOrder).verify(false).unwrap();
    let chain = World::of(Chain, Collective::Scan, 4, 0).with(|w| flip(&mut w.steps(2)[0]));
    assert_eq!(chain.fault(), Fault::OutOfOrder { rank: 2, chunk: 0 });
    // Ranks 2 and 3 folded in the other order.
    let blocks = World::of(Direct, Collective::ReduceScatter, 4, 0).with(|w| w.ranks[0].lanes[1].swap(1, 2));
    assert_eq!(blocks.fault(), Fault::OutOfOrder { rank: 0, chunk: 0 });
    // A tree is no fold from the left, but in order; until the two halves of a phase are confused.
    let tree = World::of(RecursiveDoubling, Collective::AllReduce, 4, 0);
    assert!(matches!(tree.with(|w| w.promise = Folds::FromTheLeft).fault(), Fault::NotCanonical { rank: 0, chunk: 0 }));
    let confused = tree.with(|w| (0..4).for_each(|rank| flip(&mut w.steps(rank)[3])));
    assert_eq!(confused.fault(), Fault::OutOfOrder { rank: 0, chunk: 0 });
    confused.with(|w| w.promise = Folds::InAnyOrder).verify(false).unwrap();
}

/// `is_canonical` and `keeps_rank_order` leave none out that folds so in every world.
#[test]
fn what_is_not_said_to_fold_in_an_order_does_not() {
    let folds = |algorithm: Algorithm, collective: Collective, promise: Folds| {
        let mut worlds = (2..=9).flat_map(|size| {
            let hosts = layouts(size).into_iter().take(if algorithm.minds_hosts() { usize::MAX } else { 1 });
            let roots = if collective.is_rooted() { size } else { 1 };
            hosts.flat_map(move |hosts| (0..roots).map(move |root| (hosts.clone(), root)))
        });
        worlds.all(|(hosts, root)| {
            let world = World::on(algorithm, collective, &hosts, root).with(|w| w.promise = promise);
            match world.verify(false) {
                Ok(_) => true,
                Err(Fault::NotCanonical { .. } | Fault::OutOfOrder { .. }) => false,
                Err(fault) => panic!("{algorithm} {}: {fault}", collective.name()),
            }
        })
    };
    for collective in Collective::ALL.into_iter().filter(|c| c.reduces()) {
        for algorithm in Algorithm::for_collective(collective) {
            let said = [algorithm.is_canonical(collective), algorithm.keeps_rank_order(collective)];
            let found = [Folds::FromTheLeft, Folds::InRankOrder].map(|promise| folds(algorithm, collective, promise));
            assert_eq!(found, said, "{algorithm} {}", collective.name());
        }
    }
}

/// A scan that counts its own rank where it should not, and one that forgets a rank.
#[test]
fn scans_that_take_a_rank_too_many_or_too_few() {
    let exclusive = World::of(Chain, Collective::ExclusiveScan, 3, 0);
    let fault = exclusive
        .with(|w| w.steps(2)[0] = Step::RecvReduce { from: 1, local: INPUT, order: Operands::PeerFirst, dst: OUTPUT })
        .fault();
    assert!(fault.to_string().contains("with block 0 of ranks 0, 1, 2 in chunk 0 of the output"), "{fault}");
    let fault = exclusive.with(|w| w.steps(0).push(Step::Copy { src: INPUT, dst: OUTPUT })).fault();
    assert!(matches!(fault, Fault::OutOfBounds { have: 0, .. }), "rank 0 has no output: {fault}");
    let scan = World::of(RecursiveDoubling, Collective::Scan, 4, 0);
    // The last rank hears from rank 2 and stops, and rank 1 does not send to it.
    let fault = scan
        .with(|w| {
            w.steps(1).retain(|step| !matches!(step, Step::Send { to: 3, .. }));
            w.steps(3).retain(|step| !matches!(step, Step::RecvReduce { from: 1, .. }));
        })
        .fault();
    assert!(matches!(fault, Fault::Wrong { rank: 3, .. }), "{fault}");
}

/// One-shot, but rank 2 takes its own operand from the input: right out of place, too late in place.
#[test]
fn reading_the_input_after_overwriting_it_in_place() {
    let world = World::of(OneShot, Collective::AllReduce, 3, 0).with(|w| {
        let last = w.steps(2).len() - 1;
        w.steps(2)[last] = Step::Reduce { a: OUTPUT, b: INPUT, dst: OUTPUT };
    });
    world.verify(false).unwrap();
    let fault = world.verify(true).unwrap_err();
    assert!(
        matches!(&fault, Fault::Overwritten { at, found, .. } if at.rank == 2 && found.contains("ranks 0, 1")),
        "{fault}"
    );
}

/// Lending in place works exactly where it is said to.
#[test]
fn what_is_lent_is_overwritten_where_algorithms_do_not_promise_otherwise() {
    let in_place = |c: &Collective| c.in_place_block(0).is_some() && *c != Collective::Barrier;
    let mut refused = Vec::new();
    for algorithm in [OneShot, TwoShot] {
        for collective in Collective::ALL.into_iter().filter(|c| algorithm.supports(*c)) {
            for size in 2..7 {
                World::of(algorithm, collective, size, size - 1).verify_lending(false).unwrap();
            }
            let worlds = (2..7).map(|size| World::of(algorithm, collective, size, size - 1));
            let faults: Vec<Fault> = worlds.filter_map(|world| world.verify_lending(true).err()).collect();
            if in_place(&collective) {
                assert_eq!(
                    faults.is_empty(),
                    algorithm.lends_in_place(collective),
                    "{algorithm} {}",
                    collective.name()
                );
            }
            refused.extend(faults);
        }
    }
    let lent = |fault: &Fault| matches!(fault, Fault::LentChanged { .. } | Fault::LentOverwritten { .. });
    assert!(refused.len() >= 3 * 4 && refused.iter().all(lent), "{refused:?}");
}

/// Whether the writer or the reader comes first in the verifier's run, it is noticed.
#[test]
fn lent_chunks_that_are_overwritten_too_soon() {
    // Out of place, but rank 0 publishes its result and goes on to change it.
    let world = World::of(TwoShot, Collective::AllReduce, 2, 0).with(|w| {
        w.steps(0).push(Step::Copy { src: INPUT, dst: OUTPUT });
        w.steps(0).push(Step::Fetch { from: 0, nth: 1, at: 0, dst: OUTPUT });
    });
    // By copies rank 0 may do so: its own publication still holds what it was.
    world.verify(false).unwrap();
    let fault = world.verify_lending(false).unwrap_err();
    assert!(
        matches!(&fault, Fault::LentOverwritten { at, reader, .. } if (at.rank, reader.rank) == (0, 1))
            || matches!(&fault, Fault::LentChanged { at, publisher, .. } if (at.rank, publisher.rank) == (1, 0)),
        "{fault}"
    );
}

#[test]
fn inputs_are_not_written() {
    let fault =
        World::of(Chain, Collective::Broadcast, 2, 0).with(|w| w.steps(0)[1] = Step::Copy { src: OUTPUT, dst: INPUT });
    assert!(matches!(fault.fault(), Fault::WritesInput { .. }));
    assert!(matches!(fault.verify(true), Err(Fault::WritesInput { .. })));
}

#[test]
fn publications_fetched_twice_or_never() {
    let world = World::of(OneShot, Collective::AllGather, 3, 0);
    let twice = world.with(|w| {
        let step = w.steps(1)[2];
        w.steps(1).insert(3, step);
    });
    assert!(matches!(twice.fault(), Fault::FetchedTwice { at, from: 2, nth: 0 } if at.rank == 1), "{}", twice.fault());
    // Gather: a rank that is not the root and forgets to let the others' publications go.
    let world = World::of(OneShot, Collective::Gather, 3, 0).with(|w| {
        w.steps(1).pop();
    });
    let Fault::NeverFetched { publisher, missing } = world.fault() else { panic!("{}", world.fault()) };
    assert_eq!((publisher.rank, missing), (2, vec![1]));
}

#[test]
fn fetching_what_is_not_there() {
    let world = World::of(OneShot, Collective::AllToAll, 3, 0);
    let wrong = |at| world.with(|w| w.steps(0)[2] = Step::Fetch { from: 1, nth: 0, at, dst: Region::output(1, 1) });
    assert!(matches!(wrong(3).fault(), Fault::FetchesBeyond { end: 4, have: 3, .. }));
    assert!(matches!(wrong(2).fault(), Fault::Wrong { rank: 0, chunk: 1, .. }));
    let late = world.with(|w| w.steps(0)[2] = Step::Fetch { from: 1, nth: 1, at: 0, dst: Region::output(1, 1) });
    assert!(late.fault().to_string().contains("rank 0 "), "{}", late.fault());
    let pieces = World::of(TwoShot, Collective::AllReduce, 3, 0).with(|w| {
        let Step::FetchReduce { at, .. } = &mut w.steps(0)[1] else { panic!() };
        *at = 1;
    });
    assert!(matches!(pieces.fault(), Fault::Mismatch { expected_piece: 0, sent_piece: 1, .. }));
}

#[test]
fn too_little_credit() {
    // Two messages to a peer that is doing the same: with room for one, neither ever receives.
    let (send, recv) = (|to| Step::Send { to, src: INPUT }, |from| Step::Recv { from, dst: OUTPUT });
    let both = |peer: usize| vec![vec![send(peer), send(peer), recv(peer), recv(peer)]];
    let fault = World::by_hand(Collective::AllReduce, 0, vec![both(1), both(0)]).fault();
    let Fault::Deadlock(blocked) = &fault else { panic!("{fault}") };
    assert!(blocked.iter().all(|b| b.wait == Wait::Room(1 - b.at.rank) && b.at.step == 1));
    // Two publications before anybody fetches.
    let world = World::of(TwoShot, Collective::AllReduce, 3, 0).with(|w| {
        (0..3).for_each(|r| w.steps(r).insert(1, Step::Publish { src: Region::input(0, 3) }));
    });
    let fault = world.fault();
    let Fault::Deadlock(blocked) = &fault else { panic!("{fault}") };
    assert!(matches!(&blocked[0].wait, Wait::Fetches(ranks) if ranks.len() == 2), "{fault}");
}

#[test]
fn lanes_that_race() {
    // Two lanes copy the same thing to the same place: right whoever comes first, and yet nobody may rely on it.
    let copy = Step::Copy { src: INPUT, dst: OUTPUT };
    let fault = World::by_hand(Collective::Broadcast, 0, vec![vec![vec![copy], vec![copy]]]).fault();
    assert!(matches!(fault, Fault::Race { first, second, .. } if first.lane != second.lane), "{fault}");
    // The down lane of a double tree's leaf writes the sum's place; if the up lane then reads it, only the network
    // decides which it gets.
    let tree = World::of(DoubleTree, Collective::AllReduce, 6, 0);
    let fault = tree.with(|w| w.ranks[1].lanes[0].push(Step::Copy { src: INPUT, dst: OUTPUT })).fault();
    assert!(matches!(fault, Fault::Race { first, .. } if first.rank == 1), "{fault}");
}

/// Lane 0 of rank 0 fills scratch and tells lane 1, through rank 1, to use it. Within a round that is in order; but
/// nothing keeps lane 0 from filling it again for the next.
#[test]
fn a_lane_that_overtakes_another_by_a_round() {
    let fill = vec![Step::Copy { src: INPUT, dst: SCRATCH }, send(1)];
    let drain = vec![recv(1), Step::Copy { src: SCRATCH, dst: OUTPUT }];
    let echo = vec![recv(0), send(0)];
    let fault = World::by_hand(Collective::Gather, 1, vec![vec![fill, drain], vec![echo, vec![]]]).fault();
    let Fault::Race { first, second, buffer: Buffer::Scratch, .. } = fault else { panic!("{fault}") };
    assert_ne!((first.lane, first.round), (second.lane, second.round));
    assert_ne!(first.round, second.round);
}

#[test]
fn scratch_that_only_another_round_has_written() {
    let (use_it, fill) = (Step::Copy { src: SCRATCH, dst: OUTPUT }, Step::Copy { src: INPUT, dst: SCRATCH });
    let fault = World::by_hand(Collective::Broadcast, 1, vec![vec![vec![use_it, fill]]]).fault();
    assert!(matches!(fault, Fault::Uninitialised { at, buffer: Buffer::Scratch, .. } if at.step == 0), "{fault}");
}

/// Ranks may have different numbers of lanes, but what one lane fetches the same lane of the other publishes.
#[test]
fn a_lane_that_the_other_rank_does_not_have() {
    let fetch = Step::Fetch { from: 1, nth: 0, at: 0, dst: Region::EMPTY };
    let publish = Step::Publish { src: Region::EMPTY };
    let fault = World::by_hand(Collective::Barrier, 0, vec![vec![vec![], vec![fetch]], vec![vec![publish]]]).fault();
    assert_eq!(fault, Fault::NoSuchLane { at: At { rank: 0, lane: 1, step: 0, round: 0 }, from: 1, lanes: 1 });
}

/// In place one lane of all-gather copies the own block onto itself while others send it, which is nothing; a lane that
/// writes what another sends is not.
#[test]
fn writing_what_another_lane_sends() {
    World::of(Direct, Collective::AllGather, 3, 0).verify(true).unwrap();
    // Of a reduce-scatter's two lanes one folds into the own block, in place; the other has no business there.
    let fold = World::of(Direct, Collective::ReduceScatter, 3, 0);
    let fault = fold.with(|w| w.ranks[0].lanes[0][0] = Step::Send { to: 1, src: INPUT }).verify(true).unwrap_err();
    assert!(matches!(fault, Fault::Race { first, second, .. } if first.lane != second.lane), "{fault}");
}

#[test]
fn lanes_that_share_a_link() {
    let fault = World::of(DoubleTree, Collective::Broadcast, 2, 0)
        .with(|w| w.ranks.iter_mut().for_each(|r| r.channels = vec![0, 0]))
        .fault();
    assert!(matches!(fault, Fault::SharedLink { rank: 0, lanes: (0, 1), from: 0, to: 1, .. }), "{fault}");
}

#[test]
fn a_barrier_that_lets_somebody_through() {
    let world = World::of(Dissemination, Collective::Barrier, 5, 0).with(|w| {
        (0..5).for_each(|r| w.steps(r).truncate(4));
    });
    assert_eq!(world.fault(), Fault::EarlyExit { rank: 0, other: 1, round: 0 });
}

#[test]
fn steps_that_make_no_sense_by_themselves() {
    let with = |step| World::of(Ring, Collective::AllReduce, 4, 0).with(|w| w.steps(0).push(step)).fault();
    let copy = |src, dst| with(Step::Copy { src, dst });
    assert!(matches!(copy(Region::output(0, 2), Region::output(1, 2)), Fault::Uneven { .. }));
    assert!(matches!(copy(Region::input(0, 2), Region::output(0, 1)), Fault::Uneven { a_len: 2, b_len: 1, .. }));
    assert!(matches!(with(Step::Send { to: 1, src: Region::input(0, 2) }), Fault::TooLong { chunks: 2, bound: 1, .. }));
    assert!(matches!(copy(Region::input(0, 1), Region::scratch(0, 1)), Fault::OutOfBounds { have: 0, .. }));
    let shift = Step::Copy { src: Region::output(0, 2), dst: Region::output(1, 2) };
    let gather = World::of(Ring, Collective::AllGather, 4, 0).with(|w| w.steps(0).push(shift));
    assert!(matches!(gather.fault(), Fault::Overlap { .. }));
}

#[test]
fn ranks_that_disagree() {
    let ring = World::of(Ring, Collective::AllReduce, 4, 0);
    let fault = ring.with(|w| w.ranks[2].pieces = 3).fault();
    assert_eq!(fault, Fault::Disagree { what: "pieces", rank: 2, value: 3, expected: 4 });
    assert!(matches!(ring.with(|w| w.ranks[3].message_chunks = 2).fault(), Fault::Disagree { rank: 3, .. }));
}

#[test]
fn questions_without_an_answer() {
    let fault = verify(Bruck, Collective::Broadcast, 4, 0, false).unwrap_err();
    assert!(fault.to_string().contains("bruck has no schedule for broadcast") && fault.to_string().contains("chain"));
    assert_eq!(verify(Ring, Collective::AllReduce, 4, 4, false), Err(Fault::NoWorld { size: 4, root: 4 }));
    assert_eq!(verify(Ring, Collective::AllReduce, 0, 0, false), Err(Fault::NoWorld { size: 0, root: 0 }));
}
