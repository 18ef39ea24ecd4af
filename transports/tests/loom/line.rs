//! Small exchanges: payload and flag in one line, two sets of lines in turn, and no credit that comes back.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use maypole_transports::shm::line::{Line, Seen, publish, read};
use maypole_transports::wait::Bell;

use crate::{check, poll, poll_at_most, sleep};

/// What an exchange is for, in the upper half of the flag.
const DIGEST: u64 = 0x5eed << 32;

/// The bytes that `rank` publishes in exchange `number`.
fn payload<const BYTES: usize>(rank: usize, number: u64) -> [u8; BYTES] {
    std::array::from_fn(|i| (100 * (rank + 1)) as u8 + 10 * number as u8 + i as u8 / 8)
}

/// Each rank's two sets of lines.
type Sets<const LINES: usize> = Arc<Vec<[[Line; LINES]; 2]>>;

fn sets<const LINES: usize>(ranks: usize) -> Sets<LINES> {
    Arc::new((0..ranks).map(|_| [0, 1].map(|_| std::array::from_fn(|_| Line::default()))).collect())
}

/// Rank `me`'s part of exchange `number`: publish, and copy what the others publish. `wait` waits until its argument
/// finds something, or gives up; then so does this, and returns false. Of the last exchange a rank only publishes: that
/// is what may disturb earlier ones.
fn exchange<const LINES: usize, const BYTES: usize>(
    sets: &Sets<LINES>,
    me: usize,
    (number, last): (u64, u64),
    wait: impl Fn(&mut dyn FnMut() -> Option<()>) -> Option<()>,
) -> bool {
    let flag = DIGEST | number;
    let set = number as usize % 2;
    publish(&sets[me][set], flag, &payload::<BYTES>(me, number));
    if number == last {
        return true;
    }
    (0..sets.len()).filter(|r| *r != me).all(|from| {
        let mut got = [0; BYTES];
        let found = wait(&mut || match read(&sets[from][set], flag, &mut got) {
            Seen::All => Some(()),
            Seen::NotYet => None,
            Seen::Other => panic!("rank {from} publishes for the same thing"),
        });
        if found.is_some() {
            assert_eq!(got, payload(from, number), "exchange {number} of rank {from}");
        }
        found.is_some()
    })
}

/// All ranks do so many exchanges, each in a thread of its own, looking at most `looks` times for each payload.
fn exchanges<const LINES: usize, const BYTES: usize>(preemptions: usize, ranks: usize, numbers: u64, looks: usize) {
    let completed = Arc::new(AtomicUsize::new(0));
    let count = completed.clone();
    check(preemptions, move || {
        let sets = sets::<LINES>(ranks);
        let rank = |me: usize| {
            let sets = sets.clone();
            move || {
                (1..=numbers)
                    .all(|n| exchange::<LINES, BYTES>(&sets, me, (n, numbers), |look| poll_at_most(looks, look)))
            }
        };
        let others: Vec<_> = (1..ranks).map(|me| thread::spawn(rank(me))).collect();
        let mine = rank(0)();
        let all = others.into_iter().fold(mine, |all, other| other.join().unwrap() && all);
        count.fetch_add(all.into(), std::sync::atomic::Ordering::Relaxed);
    });
    assert!(completed.load(std::sync::atomic::Ordering::Relaxed) > 0, "no run came to its end");
}

/// Exchanges over two sets: each read returns the payload of its own exchange, though a set is written again without
/// any word from its readers.
#[test]
fn two_ranks() {
    exchanges::<1, 16>(3, 2, 5, usize::MAX);
}

/// Three ranks: one may begin the third exchange, into the set of the first, while another has not heard of the second.
#[test]
fn three_ranks() {
    exchanges::<1, 8>(1, 3, 3, 2);
}

/// Payloads of two lines: a reader may find the first and not yet the second.
#[test]
fn two_lines() {
    exchanges::<2, 64>(2, 2, 4, usize::MAX);
}

/// Ranks that sleep while they wait, and ring the other (settle) before they wait and before they leave.
fn asleep(settle: fn(&Bell)) {
    check(3, move || {
        let sets = sets::<1>(2);
        let bells: Arc<[Bell; 2]> = Arc::default();
        let rank = |me: usize| {
            let (sets, bells) = (sets.clone(), bells.clone());
            move || {
                for number in 1..=2 {
                    exchange::<1, 8>(&sets, me, (number, 0), |look| {
                        settle(&bells[1 - me]);
                        sleep(&bells[me], look);
                        Some(())
                    });
                }
            }
        };
        let other = thread::spawn(rank(1));
        rank(0)();
        other.join().unwrap();
    });
}

/// Settling after publishing is enough to wake a reader that has fallen asleep.
#[test]
fn settling_wakes_the_sleepers() {
    asleep(Bell::ring);
}

/// Negative control: ranks that do not settle.
#[test]
#[should_panic(expected = "deadlock")]
fn caught_not_settling() {
    asleep(|_| ());
}

/// A rank that does something else is recognised by its digest, and never takes the other's payload for its own.
#[test]
fn another_digest_is_seen() {
    check(3, || {
        let set: Arc<[Line; 1]> = Arc::default();
        let other = thread::spawn({
            let set = set.clone();
            move || publish(&*set, 7 << 32 | 1, &[1; 8])
        });
        let mut got = [0; 8];
        let seen = poll(|| Some(read(&*set, 8 << 32 | 1, &mut got)).filter(|seen| *seen != Seen::NotYet));
        assert_eq!((seen, got), (Seen::Other, [0; 8]));
        other.join().unwrap();
    });
}

/// The orderings of the flag, and how many sets each rank has.
#[derive(Clone, Copy)]
struct Rules {
    store: Ordering,
    load: Ordering,
    sets: usize,
}

const RULES: Rules = Rules { store: Ordering::Release, load: Ordering::Acquire, sets: 2 };

/// Two ranks, three exchanges, lines of one payload word and a flag.
fn copy_of_the_lines(rules: Rules) {
    check(3, move || {
        let lines: Arc<[[[AtomicU64; 2]; 2]; 2]> = Arc::default();
        let rank = |me: usize| {
            let lines = lines.clone();
            move || {
                for number in 1..=3 {
                    let set = number as usize % rules.sets;
                    let [word, flag] = &lines[me][set];
                    word.store(number, Ordering::Relaxed);
                    flag.store(number, rules.store);
                    let [word, flag] = &lines[1 - me][set];
                    poll(|| (flag.load(rules.load) == number).then_some(()));
                    assert_eq!(word.load(Ordering::Relaxed), number, "another exchange's payload");
                }
            }
        };
        let other = thread::spawn(rank(1));
        rank(0)();
        other.join().unwrap();
    });
}

/// The copy as the lines are.
#[test]
fn the_copy_is_faithful() {
    copy_of_the_lines(RULES);
}

/// Negative control: the flag stored without release; it may be seen before the payload.
#[test]
#[should_panic(expected = "another exchange's payload")]
fn caught_publishing_without_release() {
    copy_of_the_lines(Rules { store: Ordering::Relaxed, ..RULES });
}

/// Negative control: the flag loaded without acquire.
#[test]
#[should_panic(expected = "another exchange's payload")]
fn caught_reading_without_acquire() {
    copy_of_the_lines(Rules { load: Ordering::Relaxed, ..RULES });
}

/// Negative control: one set of lines, so that the next exchange overwrites what is still read. The reader takes the
/// next payload or waits for a flag that has gone by.
#[test]
#[should_panic]
fn caught_with_a_single_set() {
    copy_of_the_lines(Rules { sets: 1, ..RULES });
}
