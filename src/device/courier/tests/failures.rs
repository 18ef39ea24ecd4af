//! What couriers do when something goes wrong: on the link, at the other end, or on the device.

use super::*;
use crate::error::Verdict;

/// The verdict that comes on a rank.
fn verdict(rank: &Rank) -> Verdict {
    let begun = Instant::now();
    while !rank.court.watch.raised() {
        assert!(begun.elapsed() < LONG, "no verdict came");
        std::thread::sleep(Duration::from_millis(1));
    }
    rank.court.watch.verdict().expect("raised")
}

const SLOT: usize = 4096;

/// Ranks that announce different operations both learn what each of them called.
#[test]
fn a_mismatch_shows_both_sides() {
    world(
        2,
        |_| (),
        |rank| {
            let me = rank.comm.rank();
            let [ours, theirs] = [me, 1 - me].map(|r| operation(1).of_pair(5 + r));
            let [out, into] = [(); 2].map(|()| Slots::new(4, SLOT));
            let (to, from) = (End::to(1 - me, 0), End::from(1 - me, 0));
            rank.courier.open(to, out.ring());
            rank.courier.open(from, into.ring());
            let passage = Passage { operation: ours, bytes: SLOT };
            rank.courier.carry(&[(to, passage), (from, passage)]);
            out.put(0, ours.digest(), &[1; SLOT], &rank.court.watch);
            let verdict = verdict(&rank);
            let Verdict::Mismatch { one, other } = verdict else { panic!("{verdict:?}") };
            let mut sides = [one, other];
            sides.sort_by_key(|side| side.0 != me);
            assert_eq!(sides, [(me, ours), (1 - me, theirs)]);
            assert_eq!(into.filled.load(Ordering::Acquire), 0, "nothing of another operation is handed on");
            assert!(rank.courier.finish(LONG), "nothing is left to wait for");
        },
    );
}

/// A rank that goes away in the middle is named with the operation, on the sending and on the receiving side.
#[test]
fn a_peer_that_goes_away_is_named() {
    for sends in [true, false] {
        world(
            2,
            |_| (),
            |rank| {
                let me = rank.comm.rank();
                let slots = Slots::new(4, SLOT);
                let end = if sends == (me == 0) { End::to(1 - me, 1) } else { End::from(1 - me, 1) };
                rank.courier.open(end, slots.ring());
                // More than the network takes in.
                let bytes = 4000 * SLOT;
                rank.courier.carry(&[(end, Passage { operation: operation(3), bytes })]);
                if sends == (me == 0) {
                    let more = |number| slots.put(number, operation(3).digest(), &[1; SLOT], &rank.court.watch);
                    let most = if me == 0 { u32::MAX } else { 10 };
                    let _ = (0..most).take_while(|number| more(*number)).count();
                } else {
                    let more = |number| slots.take(number, &operation(3), &mut [0; SLOT], &rank.court.watch);
                    let most = if me == 0 { u32::MAX } else { 10 };
                    let _ = (0..most).take_while(|number| more(*number)).count();
                }
                if me == 1 {
                    drop(rank.courier);
                    while !rank.court.watch.raised() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    return;
                }
                let verdict = verdict(&rank);
                let Verdict::Died { rank: 1, host, how } = &verdict else { panic!("{verdict:?}") };
                assert!(*host == rank.court.hosts[1] && how.contains(&operation(3).to_string()), "{verdict}");
            },
        );
    }
}

/// A courier that waits, for its device or for the network, stands by as soon as there is a verdict: it touches no word
/// any more, whatever the device does.
#[test]
fn a_verdict_ends_the_waiting() {
    world(
        2,
        |_| (),
        |rank| {
            let me = rank.comm.rank();
            let [out, into] = [(); 2].map(|()| Slots::new(4, SLOT));
            let (to, from) = (End::to(1 - me, 0), End::from(1 - me, 0));
            rank.courier.open(to, out.ring());
            rank.courier.open(from, into.ring());
            let passage = Passage { operation: operation(1), bytes: SLOT };
            rank.courier.carry(&[(to, passage), (from, passage)]);
            rank.comm.barrier().unwrap();
            std::thread::sleep(Duration::from_millis(50));
            if me == 1 {
                rank.comm.abort("enough");
            }
            let verdict = verdict(&rank);
            assert!(matches!(&verdict, Verdict::Aborted { rank: 1, .. }), "{verdict:?}");
            // What a released stream does.
            assert!(out.put(0, operation(1).digest(), &[1; SLOT], &Default::default()));
            assert!(rank.courier.finish(LONG));
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!([&out.freed, &into.filled].map(|word| word.load(Ordering::Acquire)), [0, 0]);
        },
    );
}

/// A job that finds trouble writes nothing into the slot that its stream then passes on, and what jobs after it make of
/// that is worth nothing. Neither what the slot held one lap earlier in the same operation, nor what is filled after
/// trouble, gets to another host.
#[test]
fn what_is_void_is_not_sent() {
    for has_trouble in [false, true] {
        world(
            2,
            |_| (),
            |rank| {
                let (me, watch, digest) = (rank.comm.rank(), &*rank.court.watch, operation(1).digest());
                let slots = Slots::new(2, SLOT);
                let end = if me == 0 { End::to(1, 0) } else { End::from(0, 0) };
                rank.courier.open(end, slots.ring());
                rank.courier.carry(&[(end, Passage { operation: operation(1), bytes: 6 * SLOT })]);
                if me == 0 {
                    for number in 0..3 {
                        assert!(slots.put(number, digest, &[number as u8; SLOT], watch));
                    }
                    assert!(Slots::wait(&slots.freed, 3, watch));
                    if has_trouble {
                        rank.trouble.store(1, Ordering::Release);
                        assert!(slots.put(3, digest, &[4; SLOT], watch));
                    } else {
                        slots.filled.store(4, Ordering::Release);
                    }
                    rank.comm.barrier().unwrap();
                    assert_eq!(slots.freed.load(Ordering::Acquire), 3);
                    rank.comm.abort("trouble");
                } else {
                    for number in 0..3 {
                        let mut data = [9; SLOT];
                        assert!(slots.take(number, &operation(1), &mut data, watch) && data == [number as u8; SLOT]);
                    }
                    std::thread::sleep(Duration::from_millis(50));
                    rank.comm.barrier().unwrap();
                    verdict(&rank);
                    assert_eq!(slots.filled.load(Ordering::Acquire), 3);
                }
            },
        );
    }
}

/// What cannot be carried yet does not keep a rank for ever, and what can be is sent before it leaves.
#[test]
fn finishing_waits_for_what_is_under_way() {
    world(
        2,
        |_| (),
        |rank| {
            let (me, watch, digest) = (rank.comm.rank(), &*rank.court.watch, operation(1).digest());
            let slots = Slots::new(2, SLOT);
            let end = if me == 0 { End::to(1, 0) } else { End::from(0, 0) };
            rank.courier.open(end, slots.ring());
            rank.courier.carry(&[(end, Passage { operation: operation(1), bytes: SLOT })]);
            let (begun, moment) = (Instant::now(), Duration::from_millis(30));
            assert!(!rank.courier.finish(moment) && begun.elapsed() >= moment);
            rank.comm.barrier().unwrap();
            if me == 0 {
                assert!(slots.put(0, digest, &[3; SLOT], watch));
                assert!(rank.courier.finish(LONG));
                drop(rank.courier);
                rank.comm.barrier().unwrap();
            } else {
                rank.comm.barrier().unwrap();
                let mut data = [0; SLOT];
                assert!(slots.take(0, &operation(1), &mut data, watch) && data == [3; SLOT]);
            }
        },
    );
}
