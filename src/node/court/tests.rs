//! The court by itself, in made-up time.

use maypole_collectives::schedule::Collective;
use maypole_collectives::{DataType, ReduceOp};

use super::comparison::{AUDITED, INQUIRY};
use super::*;
use crate::engine::wait::{until_first_question, until_next_question};
use crate::watch::Stall;

const WORLD: u64 = 1;
const SECOND: Duration = Duration::from_secs(1);
/// World ranks 4, 2, 0 as ranks 0, 1, 2.
const PART: u64 = 2;

fn court() -> Court {
    let mut court = Court::new((0..5).map(|r| format!("host{r}")).collect());
    for rank in 0..5 {
        court.register(rank, WORLD, &Runs::new(&[0, 1, 2, 3, 4]));
    }
    for rank in [0, 2, 4] {
        court.register(rank, PART, &Runs::new(&[4, 2, 0]));
    }
    assert!(court.letters().is_empty());
    court
}

fn op(sequence: u64, count: usize) -> Fingerprint {
    Fingerprint::collective(sequence, Collective::AllReduce, DataType::F32, Some(ReduceOp::Sum), 0, count)
}

/// The letters, one for each who gets it.
fn letters(court: &mut Court) -> Vec<(usize, ToNode)> {
    let each = |(to, letter): Letter| to.into_iter().map(move |rank| (rank, letter.clone()));
    court.letters().into_iter().flat_map(each).collect()
}

/// Those who were told a verdict, in order, and the verdict, which must be one.
fn told(court: &mut Court, context: u64) -> (Vec<usize>, Verdict) {
    let mut letters: Vec<(usize, Verdict)> = letters(court)
        .into_iter()
        .filter_map(|(to, letter)| match letter {
            ToNode::Declare { context: c, verdict } if c == context => Some((to, verdict)),
            _ => None,
        })
        .collect();
    letters.sort_by_key(|(to, _)| *to);
    assert!(letters.windows(2).all(|w| w[0].1 == w[1].1), "{letters:?}");
    (letters.iter().map(|(to, _)| *to).collect(), letters.first().expect("a verdict").1.clone())
}

fn asks(court: &mut Court) -> Vec<(usize, u64, u64)> {
    let ask = |(to, letter)| match letter {
        ToNode::Ask { sequence, question, .. } => (to, sequence, question),
        other => panic!("{other:?}"),
    };
    letters(court).into_iter().map(ask).collect()
}

fn says(record: Record, unheard: Option<usize>) -> Answer {
    Answer { record, unheard, moved: None }
}

fn abort(why: &str) -> Verdict {
    Verdict::Aborted { rank: 0, why: why.into() }
}

#[test]
fn the_first_report_stands() {
    let (mut court, now) = (court(), Moment::default());
    court.report(2, PART, abort("one"), now);
    court.report(0, PART, abort("two"), now);
    assert_eq!(told(&mut court, PART), (vec![0, 2, 4], abort("one")));
    court.report(1, PART, abort("no member"), now);
    court.report(1, 99, abort("no such communicator"), now);
    assert!(court.letters().is_empty());
}

#[test]
fn a_death_is_told_in_each_communicators_own_ranks() {
    let mut court = court();
    court.departed(2, Some("gone".into()));
    let letters = letters(&mut court);
    let verdict_of = |context| {
        letters.iter().find_map(|(_, l)| match l {
            ToNode::Declare { context: c, verdict: Verdict::Died { rank, host, .. } } if *c == context => {
                Some((*rank, host.clone()))
            }
            _ => None,
        })
    };
    assert_eq!(verdict_of(WORLD), Some((2, "host2".into())));
    assert_eq!(verdict_of(PART), Some((1, "host2".into())));
    assert!(letters.iter().all(|(to, _)| *to != 2), "the dead get no letters");
    assert_eq!(letters.len(), 4 + 2);
}

#[test]
fn who_left_a_communicator_may_die_and_who_left_the_job_is_missed_later() {
    let mut court = court();
    court.leave(2, PART, vec![]);
    court.departed(2, Some("gone".into()));
    assert!(court.letters().iter().all(|(_, l)| matches!(l, ToNode::Declare { context: WORLD, .. })));
    court.departed(3, None);
    court.register(1, 9, &Runs::new(&[1, 3]));
    let (to, verdict) = told(&mut court, 9);
    assert_eq!(to, [1]);
    assert!(matches!(verdict, Verdict::Died { rank: 1, .. }));
}

#[test]
fn different_calls_and_refusals_are_found_by_inquiry() {
    for (record, expected) in [
        (Record::Called(op(3, 8)), Verdict::Mismatch { one: (2, op(3, 4)), other: (1, op(3, 8)) }),
        (Record::Refused("no".into()), Verdict::Refused { rank: 1, sequence: 3, why: "no".into() }),
    ] {
        let mut court = court();
        court.inquire(0, PART, op(3, 4), 1, Moment::default());
        assert_eq!(asks(&mut court), [(2, 3, INQUIRY)]);
        court.answer(2, PART, (3, INQUIRY), says(record, None));
        assert_eq!(told(&mut court, PART), (vec![0, 2, 4], expected));
    }
    let mut court = court();
    court.inquire(0, PART, op(3, 4), 1, Moment::default());
    for harmless in [Record::Called(op(3, 4)), Record::NotYet(Some(op(2, 9))), Record::NotYet(None), Record::Forgotten]
    {
        court.letters();
        court.answer(2, PART, (3, INQUIRY), says(harmless, None));
        assert!(court.letters().is_empty());
    }
}

#[test]
fn waiting_for_a_rank_that_has_left_ends() {
    // It leaves after the question, or before it.
    for before in [true, false] {
        let mut court = court();
        let history = vec![(1, Record::Called(op(1, 1))), (2, Record::Called(op(2, 2)))];
        if before {
            court.leave(2, PART, history.clone());
        }
        court.inquire(0, PART, op(2, 2), 1, Moment::default());
        assert!(before == court.letters().is_empty());
        court.inquire(0, PART, op(3, 4), 1, Moment::default());
        if !before {
            court.answer(2, PART, (3, INQUIRY), says(Record::NotYet(Some(op(2, 2))), None));
            court.leave(2, PART, history);
        }
        let (to, verdict) = told(&mut court, PART);
        assert_eq!(to, [0, 4]);
        let Verdict::Died { rank: 1, how, .. } = verdict else { panic!("{verdict:?}") };
        assert!(how.contains("left the communicator after all_reduce #2") && how.contains("all_reduce #3"), "{how}");
    }
}

#[test]
fn an_inquest_names_who_is_missing() {
    let (mut court, now) = (court(), Moment::default());
    court.leave(4, WORLD, vec![(5, Record::Called(op(5, 1)))]);
    court.stalled(0, WORLD, Stall::at_last(op(7, 4), SECOND * 9), None, now);
    assert_eq!(asks(&mut court), [(1, 7, INQUEST), (2, 7, INQUEST), (3, 7, INQUEST)]);
    court.stalled(1, WORLD, Stall::at_last(op(7, 4), SECOND * 9), None, now);
    assert!(court.letters().is_empty(), "one inquest is enough");
    court.answer(1, WORLD, (7, INQUEST), says(Record::Called(op(7, 4)), None));
    court.answer(2, WORLD, (7, INQUEST), says(Record::NotYet(Some(op(6, 3))), None));
    // An eighth of the deadline, so that a thread on a busy host gets its turn.
    let until = now + SECOND * 9 / 8;
    assert_eq!(court.deadline(), Some(until));
    court.tick(until - Duration::from_millis(1));
    assert!(court.letters().is_empty());
    court.tick(until);
    let (to, verdict) = told(&mut court, WORLD);
    assert_eq!(to, [0, 1, 2, 3]);
    let Verdict::Stalled { reporter: 0, culprits, .. } = &verdict else { panic!("{verdict:?}") };
    assert_eq!(culprits.iter().map(|c| c.0).collect::<Vec<_>>(), [2, 3, 4]);
    let text = verdict.to_string();
    for part in [
        "rank 2 on host host2 (it answers; its latest operation was all_reduce #6",
        "rank 3",
        "does not answer",
        "left the communicator after all_reduce #5",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(court.deadline(), None);
}

fn waits(operation: Fingerprint, after: Duration) -> Stall {
    Stall { operation, after, deadline: SECOND * 8, late: SECOND * 50 }
}

/// Who is told to go on, with what has moved how long ago, and whether it is to warn.
fn go_on(court: &mut Court) -> Vec<(usize, Option<Duration>, bool)> {
    let told = |(to, letter)| match letter {
        ToNode::GoOn { moved, late, .. } => (to, moved, late.is_some()),
        other => panic!("{other:?}"),
    };
    letters(court).into_iter().map(told).collect()
}

#[test]
fn who_waits_goes_on_while_anything_moves_or_all_answer() {
    let (mut court, now) = (court(), Moment::default());
    let answer = |court: &mut Court, from, record, moved| {
        let answer = Answer { record, unheard: None, moved };
        court.answer(from, PART, (7, INQUEST), answer);
    };
    let come = || Record::Called(op(7, 4));
    // What moved last counts, also on one that is still in an earlier operation.
    court.stalled(4, PART, waits(op(7, 4), SECOND * 8), None, now);
    court.letters();
    answer(&mut court, 2, come(), Some(SECOND * 4));
    answer(&mut court, 0, Record::NotYet(None), Some(SECOND * 3));
    assert_eq!(go_on(&mut court), [4, 2, 0].map(|to| (to, Some(SECOND * 3), false)));
    // Nothing has moved for the whole of the deadline, and all answer: people are told, after it,
    // twice, four times.
    for (deadlines, warned) in [(1, true), (2, true), (3, false), (4, true), (5, false), (6, false)] {
        let now = now + SECOND * 8 * deadlines;
        court.stalled(4, PART, waits(op(7, 4), SECOND * 8 * deadlines), None, now);
        court.letters();
        answer(&mut court, 2, come(), Some(SECOND * 8));
        answer(&mut court, 0, Record::NotYet(Some(op(6, 4))), Some(SECOND * 9));
        assert_eq!(go_on(&mut court), [(4, None, warned), (2, None, false), (0, None, false)]);
        // Another that waits in it is content with that, and so is one that asks at the same time.
        court.stalled(2, PART, waits(op(7, 4), SECOND * 8), None, now + SECOND);
        assert_eq!(go_on(&mut court), [(2, None, false)]);
    }
    // At last it ends.
    court.stalled(4, PART, waits(op(7, 4), SECOND * 50), None, now + SECOND * 56);
    court.letters();
    answer(&mut court, 2, come(), None);
    answer(&mut court, 0, Record::NotYet(Some(op(6, 4))), None);
    let text = told(&mut court, PART).1.to_string();
    assert!(
        text.contains("within 50s") && text.contains("(it answers; its latest operation was all_reduce #6"),
        "{text}"
    );
}

#[test]
fn one_that_does_not_answer_is_convicted_though_others_move_or_are_late() {
    let (mut court, now) = (court(), Moment::default());
    let message = Fingerprint::point_to_point(2, DataType::F32, 4, (0, 2), 0);
    // Two inquests at a time: of a message whose other side answers, and of a collective.
    court.stalled(0, PART, waits(message, SECOND * 8), None, now);
    assert_eq!(asks(&mut court), [(4, u64::MAX, INQUEST + 2)], "only the other side");
    court.stalled(4, PART, waits(op(7, 4), SECOND * 8), None, now);
    assert_eq!(asks(&mut court), [(2, 7, INQUEST), (0, 7, INQUEST)]);
    court.answer(4, PART, (u64::MAX, INQUEST + 2), says(Record::NotYet(None), None));
    assert_eq!(go_on(&mut court), [(0, None, true)]);
    let answer = Answer { record: Record::Called(op(7, 4)), unheard: None, moved: Some(SECOND / 2) };
    court.answer(2, PART, (7, INQUEST), answer);
    court.tick(now + SECOND);
    let text = told(&mut court, PART).1.to_string();
    assert!(text.contains("within 8s") && text.contains("rank 2 on host host0 (it does not answer"), "{text}");
}

/// Frames at the hub while all ranks of a world of `size` wait for 50 ms in one operation: for rank
/// 0, which comes so late, or each for the one before it.
fn frames_for_a_straggler(size: usize, in_a_ring: bool) -> usize {
    let mut court = Court::new(vec!["host".to_string(); size]);
    (0..size).for_each(|rank| court.register(rank, WORLD, &Runs::new(&(0..size).collect::<Vec<_>>())));
    let mut next: Vec<Duration> = (0..size).map(|rank| until_first_question(rank, size)).collect();
    let mut frames = 0;
    for tick in 0..500 {
        let waited = Duration::from_micros(100) * tick;
        for (rank, next) in next.iter_mut().enumerate().skip(1).filter(|(_, next)| waited >= **next) {
            let peer = if in_a_ring { rank - 1 } else { 0 };
            court.inquire(rank, WORLD, op(1, 4), peer, Moment::default() + waited);
            *next = waited + until_next_question(size, waited);
            frames += 1;
        }
        for (to, sequence, question) in asks(&mut court) {
            let record = if to == 0 { Record::NotYet(None) } else { Record::Called(op(1, 4)) };
            court.answer(to, WORLD, (sequence, question), says(record, None));
            frames += 2;
        }
        assert!(court.letters().is_empty());
    }
    frames
}

#[test]
fn questions_to_a_straggler_do_not_grow_with_the_world() {
    for size in [4, 64, 1024] {
        let frames = [false, true].map(|in_a_ring| frames_for_a_straggler(size, in_a_ring));
        println!("{size} ranks: {frames:?} frames, of {} if all asked at 2, 4, 8, 16 and 32 ms", size * 5 * 3);
        assert!(frames.iter().all(|frames| *frames < 500), "{frames:?}");
        // And ranks that disagree know within a second: the one that is asked may have gone wrong
        // just after a question.
        let most = (0..size).map(|rank| until_first_question(rank, size)).max().unwrap();
        let pause = until_next_question(size, Duration::from_secs(3600));
        assert!(most < SECOND && pause <= SECOND, "{most:?} {pause:?}");
    }
}

#[test]
fn one_answer_serves_all_who_ask() {
    let (mut court, now) = (court(), Moment::default());
    court.inquire(1, WORLD, op(3, 4), 0, now);
    assert_eq!(asks(&mut court), [(0, 3, INQUIRY)]);
    court.inquire(2, WORLD, op(3, 5), 0, now + Duration::from_millis(5));
    assert!(court.letters().is_empty());
    // It does what the first does, and not what the second does.
    court.answer(0, WORLD, (3, INQUIRY), says(Record::Called(op(3, 4)), None));
    assert_eq!(told(&mut court, WORLD).1, Verdict::Mismatch { one: (2, op(3, 5)), other: (0, op(3, 4)) });
}

#[test]
fn an_inquest_ends_early_and_prefers_a_contradiction() {
    let (mut court, now) = (court(), Moment::default());
    court.stalled(4, PART, Stall::at_last(op(7, 4), SECOND * 9), None, now);
    court.answer(2, PART, (7, INQUEST), says(Record::NotYet(None), None));
    court.letters();
    court.answer(0, PART, (7, INQUEST), says(Record::Called(op(7, 5)), None));
    assert_eq!(told(&mut court, PART).1, Verdict::Mismatch { one: (0, op(7, 4)), other: (2, op(7, 5)) });
}

#[test]
fn messages_between_two_are_not_looked_up_by_number() {
    let (mut court, now) = (court(), Moment::default());
    court.register(0, 9, &Runs::new(&[0, 1]));
    court.register(1, 9, &Runs::new(&[0, 1]));
    let message = Fingerprint::point_to_point(2, DataType::F32, 4, (1, 0), 0);
    court.stalled(0, 9, Stall::at_last(message, SECOND), None, now);
    assert_eq!(asks(&mut court), [(1, u64::MAX, INQUEST)]);
    court.answer(1, 9, (u64::MAX, INQUEST), says(Record::NotYet(Some(op(2, 9))), None));
    let text = told(&mut court, 9).1.to_string();
    assert!(text.contains("rank 1") && text.contains("its latest operation was all_reduce #2"), "{text}");

    court.stalled(4, PART, Stall::at_last(message, SECOND), None, now);
    court.answer(2, PART, (u64::MAX, INQUEST), says(Record::NotYet(None), None));
    court.answer(0, PART, (u64::MAX, INQUEST), says(Record::NotYet(None), None));
    let Verdict::Stalled { culprits, .. } = told(&mut court, PART).1 else { panic!("not a stall") };
    assert_eq!(culprits.iter().map(|c| c.0).collect::<Vec<_>>(), [1], "the other side of the message");
}

#[test]
fn where_all_have_come_the_network_is_named() {
    for reporter_knows in [false, true] {
        let (mut court, now) = (court(), Moment::default());
        let (first, second) = if reporter_knows { (Some(2), None) } else { (None, Some(2)) };
        court.stalled(4, PART, Stall::at_last(op(7, 4), SECOND * 9), first, now);
        court.answer(2, PART, (7, INQUEST), says(Record::Called(op(7, 4)), second));
        court.letters();
        court.answer(0, PART, (7, INQUEST), says(Record::Called(op(7, 4)), None));
        let (rank, said) = (if reporter_knows { 0 } else { 1 }, told(&mut court, PART).1);
        let Verdict::Link { rank: r, peer: 2, host, what } = &said else { panic!("{said:?}") };
        assert!(*r == rank && host == "host0" && what.contains("within 9s"), "{said}");
    }
    // One that has not come and that is cut off from another waits for it in an operation before.
    for (one, other) in [(1, 2), (2, 1)] {
        let (mut court, now) = (court(), Moment::default());
        court.stalled(4, PART, Stall::at_last(op(7, 4), SECOND * 9), None, now);
        let unheard = |rank: usize| Some(other).filter(|_| rank == one);
        court.answer(2, PART, (7, INQUEST), says(Record::NotYet(None), unheard(1)));
        court.letters();
        court.answer(0, PART, (7, INQUEST), says(Record::Called(op(7, 4)), unheard(2)));
        let said = told(&mut court, PART).1;
        assert!(matches!(said, Verdict::Link { rank, peer, .. } if (rank, peer) == (one, other)), "{said}");
    }
    // Otherwise who has not come is the better explanation.
    let (mut court, now) = (court(), Moment::default());
    court.stalled(4, PART, Stall::at_last(op(7, 4), SECOND * 9), Some(2), now);
    court.answer(2, PART, (7, INQUEST), says(Record::NotYet(None), None));
    court.letters();
    court.answer(0, PART, (7, INQUEST), says(Record::Called(op(7, 4)), None));
    assert!(matches!(told(&mut court, PART).1, Verdict::Stalled { .. }));
}

#[test]
fn the_audit_finds_ranks_that_never_wait_for_each_other() {
    let mut court = court();
    court.audit(4, PART, vec![(1, Record::Called(op(1, 1))), (2, Record::Called(op(2, 1)))]);
    court.audit(0, PART, vec![(1, Record::Called(op(1, 1)))]);
    court.audit(2, PART, vec![(3, Record::Called(op(3, 1)))]);
    assert!(court.letters().is_empty());
    court.audit(0, PART, vec![(1, Record::Called(op(1, 1))), (2, Record::Called(op(2, 6)))]);
    assert_eq!(told(&mut court, PART).1, Verdict::Mismatch { one: (0, op(2, 1)), other: (2, op(2, 6)) });
}

#[test]
fn a_refusal_concerns_those_who_called_and_only_them() {
    let refused = |why: &str| Record::Refused(why.into());
    for first in [0, 1] {
        let mut court = court();
        court.audit(4, WORLD, vec![(1, refused("bad"))]);
        court.audit(3, WORLD, vec![(1, refused("bad too"))]);
        assert!(court.letters().is_empty(), "all refused the same: nothing was started");
        let mut news = [(2, Record::Called(op(2, 1))), (2, refused("no"))];
        news.rotate_left(first);
        let [a, b] = news;
        court.audit(3, WORLD, vec![a]);
        assert!(court.letters().is_empty());
        court.audit(4, WORLD, vec![b]);
        let rank = if first == 0 { 4 } else { 3 };
        assert_eq!(told(&mut court, WORLD).1, Verdict::Refused { rank, sequence: 2, why: "no".into() });
    }
}

#[test]
fn what_the_audit_keeps_is_bounded() {
    let mut court = court();
    for sequence in 1..5000 {
        court.audit(1, WORLD, vec![(sequence, Record::Called(op(sequence, 1)))]);
    }
    assert_eq!(court.cases[&WORLD].audit.len(), AUDITED);
    court.audit(2, WORLD, vec![(4999, Record::Called(op(4999, 2)))]);
    assert!(matches!(told(&mut court, WORLD).1, Verdict::Mismatch { .. }));
}

/// What says nothing of an operation takes no place either, however many numbers it is said of.
#[test]
fn the_audit_keeps_nothing_of_what_nobody_called() {
    let mut court = court();
    for start in 0..10 {
        let records =
            (0..1000).map(|i| (start * 1000 + i, [Record::Forgotten, Record::NotYet(None)][i as usize % 2].clone()));
        court.audit(1, WORLD, records.collect());
    }
    assert_eq!(court.cases[&WORLD].audit.len(), 0);
}

#[test]
fn a_lost_link_is_explained_by_a_death_if_there_is_one() {
    let lost = Verdict::Link { rank: 2, peer: 1, host: "host2".into(), what: "reset".into() };
    let now = Moment::default();
    let mut one = court();
    one.report(0, PART, lost.clone(), now);
    assert!(one.letters().is_empty());
    one.departed(2, Some("its process ended".into()));
    assert!(matches!(told(&mut one, PART).1, Verdict::Died { rank: 1, .. }));

    let mut two = court();
    two.report(0, PART, lost.clone(), now);
    two.leave(2, PART, vec![(1, Record::Called(op(1, 1)))]);
    assert!(
        matches!(told(&mut two, PART).1, Verdict::Died { rank: 1, how, .. } if how.contains("after all_reduce #1"))
    );

    let mut three = court();
    three.report(0, PART, lost.clone(), now);
    three.tick(three.deadline().unwrap());
    assert_eq!(told(&mut three, PART).1, lost);
}

/// After a death, who waits for whom hears when that rank gives up, leaves or dies, too, and nobody
/// else does.
#[test]
fn after_a_death_those_who_wait_hear_of_those_who_do_nothing_more() {
    let ends: [fn(&mut Court, usize); 3] = [
        |court, rank| court.give_up(rank, WORLD),
        |court, rank| court.leave(rank, WORLD, Vec::new()),
        |court, rank| court.departed(rank, Some("it was killed".into())),
    ];
    for end in ends {
        let mut court = court();
        // Rank 1 has asked before the death, rank 3 asks after it.
        court.inquire(1, WORLD, op(1, 1), 2, Moment::default());
        assert_eq!(asks(&mut court).len(), 1);
        court.departed(4, Some("its process ended".into()));
        assert_eq!(told(&mut court, WORLD).0, [0, 1, 2, 3]);
        court.inquire(3, WORLD, op(1, 1), 2, Moment::default());
        assert!(letters(&mut court).is_empty(), "rank 2 lives");
        end(&mut court, 2);
        let left = |to| (to, ToNode::Left { context: WORLD, rank: 2 });
        let mut heard = letters(&mut court);
        heard.retain(|(_, letter)| matches!(letter, ToNode::Left { context: WORLD, .. }));
        heard.sort_by_key(|(to, _)| *to);
        assert_eq!(heard, [left(1), left(3)]);
        // Who asks later hears at once, of the dead as well.
        court.inquire(0, WORLD, op(1, 1), 2, Moment::default());
        court.inquire(0, WORLD, op(1, 1), 4, Moment::default());
        assert_eq!(letters(&mut court), [left(0), (0, ToNode::Left { context: WORLD, rank: 4 })]);
    }
    // A verdict of another kind is the end, and nobody asks any more.
    let mut court = court();
    court.report(0, WORLD, abort("enough"), Moment::default());
    told(&mut court, WORLD);
    court.inquire(1, WORLD, op(1, 1), 2, Moment::default());
    court.give_up(2, WORLD);
    assert!(letters(&mut court).is_empty());
}

#[test]
fn members_must_agree_on_who_they_are() {
    let mut court = court();
    court.register(0, 9, &Runs::new(&[0, 1]));
    court.register(1, 9, &Runs::new(&[1, 0]));
    assert!(matches!(told(&mut court, 9).1, Verdict::Aborted { rank: 1, .. }));
    court.register(3, 10, &Runs::new(&[0, 1]));
    assert!(!court.cases.contains_key(&10), "a rank that is no member");
    // One that only its own list has is no member of what the others have registered, so no member
    // is to blame.
    court.register(0, 11, &Runs::new(&[0, 1]));
    court.register(3, 11, &Runs::new(&[3, 0]));
    let said = told(&mut court, 11).1;
    assert!(
        matches!(&said, Verdict::Outside { host, how } if host == "host3" && how.contains("world rank 3")),
        "{said}"
    );
}

#[test]
fn those_at_work_are_those_in_whole_communicators() {
    let mut court = court();
    assert!(court.is_at_work() && !court.disturbed());
    // The world fails; world ranks 4, 2 and 0 have one of their own.
    court.departed(3, Some("gone".into()));
    assert!(court.disturbed() && court.is_at_work());
    // One of them leaves it: what the others still do there ends soon.
    court.leave(4, PART, vec![]);
    assert!(!court.is_at_work());
    court.register(1, 9, &Runs::new(&[1, 2]));
    assert!(court.is_at_work());
    court.report(2, 9, abort("enough"), Moment::default());
    assert!(!court.is_at_work());
}

#[test]
fn nothing_is_kept_of_communicators_that_all_have_left() {
    let mut court = court();
    for rank in [0, 2, 4] {
        court.leave(rank, PART, vec![]);
    }
    assert!(!court.cases.contains_key(&PART));
    for rank in 0..5 {
        assert!(!court.over());
        court.departed(rank, None);
    }
    assert!(court.over() && court.cases.is_empty() && !court.disturbed());
}

#[test]
fn who_waits_for_a_message_hears_that_its_other_side_left() {
    let mut court = court();
    let message = Fingerprint::point_to_point(1, DataType::F32, 4, (2, 0), 0);
    court.inquire(0, WORLD, message, 2, Moment::default());
    assert!(court.letters().is_empty(), "messages are not looked up");
    // An answer about the collective of the same number is none about the message.
    court.answer(2, WORLD, (1, INQUIRY), says(Record::Called(op(1, 5)), None));
    court.leave(2, WORLD, Vec::new());
    assert_eq!(letters(&mut court), [(0, ToNode::Left { context: WORLD, rank: 2 })]);
    court.inquire(1, WORLD, message, 2, Moment::default());
    assert_eq!(letters(&mut court), [(1, ToNode::Left { context: WORLD, rank: 2 })]);
}

#[test]
fn a_difference_in_the_past_is_no_verdict_but_its_cause_is() {
    let mut court = court();
    let ours = op(8, 4).after(77);
    court.inquire(0, WORLD, op(7, 4), 2, Moment::default());
    court.inquire(0, WORLD, ours, 2, Moment::default());
    assert_eq!(asks(&mut court), [(2, 7, INQUIRY), (2, 8, INQUIRY)]);
    court.answer(2, WORLD, (8, INQUIRY), says(Record::Called(op(8, 4).after(78)), None));
    assert!(court.letters().is_empty());
    court.answer(2, WORLD, (7, INQUIRY), says(Record::Called(op(7, 5)), None));
    assert_eq!(told(&mut court, WORLD).1, Verdict::Mismatch { one: (0, op(7, 4)), other: (2, op(7, 5)) });
}

#[test]
fn who_has_been_waited_for_is_forgotten() {
    let mut court = court();
    let waiting = |court: &Court| court.cases[&WORLD].waiting.len();
    for sequence in 1..=100 {
        for (asker, peer) in (0..5).flat_map(|asker| (0..5).map(move |peer| (asker, peer))) {
            court.inquire(asker, WORLD, op(sequence, 8), peer, Moment::default());
        }
        assert!(waiting(&court) <= 25);
        // Who is in the operation still waits in it; who has come to the next waits for nobody
        // there.
        court.audit(1, WORLD, vec![(sequence, Record::Called(op(sequence, 8)))]);
        assert_eq!(waiting(&court), 25);
        (0..5).for_each(|rank| court.audit(rank, WORLD, vec![(sequence + 1, Record::Called(op(sequence + 1, 8)))]));
        assert_eq!(waiting(&court), 0, "after operation {sequence}");
    }
    letters(&mut court);
    // So one that leaves afterwards has done nothing wrong.
    court.leave(3, WORLD, vec![(101, Record::Called(op(101, 8)))]);
    assert!(letters(&mut court).is_empty());
}

#[test]
fn all_members_have_made_a_communicator_or_none() {
    let (mut court, now) = (court(), Moment::default());
    // Only once the last has made its part is anybody told, and who cannot share memory.
    court.made(4, PART, false);
    court.made(0, PART, true);
    court.made(0, PART, true);
    assert!(court.letters().is_empty());
    court.who_made(4, PART);
    assert_eq!(letters(&mut court), [(4, ToNode::Unmade { context: PART, ranks: vec![1] })]);
    court.made(2, PART, false);
    let all = |apart: &[usize]| [4, 2, 0].map(|to| (to, ToNode::Made { context: PART, apart: apart.to_vec() }));
    assert_eq!(letters(&mut court), all(&[2]));
    // They may have to agree once more.
    for rank in [2, 0, 4] {
        court.made(rank, PART, false);
    }
    assert_eq!(letters(&mut court), all(&[]));
    // A verdict is the end of it.
    court.made(4, PART, false);
    court.report(2, PART, abort("no memory"), now);
    assert_eq!(told(&mut court, PART), (vec![0, 2, 4], abort("no memory")));
    court.made(0, PART, false);
    court.who_made(0, PART);
    court.made(1, PART, false);
    assert!(court.letters().is_empty(), "nor has rank 1 a say in it");
}
