//! The sentry against words in plain memory, with threads in the place of streams.

use super::*;
use crate::watch::{Record, Stall, Watch};
use maypole_collectives::schedule::Collective;
use maypole_collectives::{DataType, ReduceOp};

/// Long enough for anything here, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The jury of a world of which only rank 0 is played; rank 1 is what `others` has called.
struct Bench {
    mine: Arc<Watch>,
    others: Watch,
    asked: Mutex<Vec<(usize, Fingerprint)>>,
}

impl Jury for Bench {
    fn report(&self, _: u64, verdict: Verdict) {
        self.mine.declare(verdict);
    }
    fn inquire(&self, _: u64, asker: usize, operation: Fingerprint, peer: usize) {
        self.asked.lock().push((peer, operation));
        if let Record::Called(theirs) = self.others.record(operation.sequence)
            && !theirs.same_call(&operation)
        {
            self.report(0, Verdict::Mismatch { one: (asker, operation), other: (peer, theirs) });
        }
    }
    fn stalled(&self, _: u64, reporter: usize, Stall { operation, after, .. }: Stall) {
        self.report(0, Verdict::Stalled { operation, reporter, after, culprits: Vec::new() });
    }
    fn leave(&self, _: u64, _: usize) {}
}

#[derive(Default)]
struct Words {
    started: AtomicU32,
    ended: AtomicU32,
    trouble: AtomicU32,
    released: AtomicU32,
    filled: [AtomicU32; 2],
    mark: AtomicU32,
    found: Mutex<Option<(u32, Fingerprint)>>,
    ailment: Mutex<Option<String>>,
    /// How often it was asked for.
    asked_how: AtomicU32,
    /// Milliseconds that the answer takes.
    answer_takes: AtomicU32,
    /// What people were told, and whether streams had been let go by then.
    told: Mutex<Vec<(String, bool)>>,
}

impl Words {
    fn ailment_takes(&self, time: Duration) {
        self.answer_takes.store(time.as_millis() as u32, Ordering::Relaxed);
    }
    fn flag(self: &Arc<Self>, of: impl Fn(&Words) -> &AtomicU32) -> Flag {
        // SAFETY: the word lies in what is passed along.
        unsafe { Flag::new(of(self), self.clone()) }
    }
    /// What a stream does: wait for `filled` to come to `value`, unless `None`, between the two numbers.
    fn play(&self, number: u32, wait: Option<u32>) {
        self.started.store(number, Ordering::Release);
        let until = Instant::now() + PATIENCE;
        while wait.is_some_and(|value| !has_come(self.filled[0].load(Ordering::Acquire), value)) {
            assert!(Instant::now() < until, "nobody let the stream go");
            std::thread::sleep(Duration::from_micros(100));
        }
        self.ended.store(number, Ordering::Release);
    }
}

fn post(timeout: Duration) -> (Sentry, Arc<Words>, Arc<Bench>) {
    post_beside(None, timeout)
}

/// [`post`] of a rank whose streams wait for the word in `shared`, for which others may wait too.
fn post_beside(shared: Option<Arc<Words>>, timeout: Duration) -> (Sentry, Arc<Words>, Arc<Bench>) {
    let watch = Arc::new(Watch::default());
    let bench = Arc::new(Bench { mine: watch.clone(), others: Watch::default(), asked: Mutex::default() });
    let court = Court {
        context: 0,
        me: 0,
        hosts: vec!["here".into(), "there".into(), "there".into()],
        watch,
        jury: bench.clone(),
        patience: Patience::for_host(4, 2),
        timeout,
        late: Duration::ZERO,
    };
    let words = Arc::new(Words::default());
    let (found, ailment, lost) = (words.clone(), words.clone(), words.clone());
    let posts = Posts {
        started: words.flag(|w| &w.started),
        ended: words.flag(|w| &w.ended),
        trouble: words.flag(|w| &w.trouble),
        released: words.flag(|w| &w.released),
        found: Box::new(move || *found.found.lock()),
        ailment: Box::new(move || {
            ailment.asked_how.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(ailment.answer_takes.load(Ordering::Relaxed).into()));
            ailment.ailment.lock().clone()
        }),
        lost: Box::new(move |what| {
            let let_go = lost.released.load(Ordering::SeqCst) != 0 || lost.filled[0].load(Ordering::SeqCst) != 0;
            lost.told.lock().push((what.to_string(), let_go));
        }),
    };
    let sentry = Sentry::new(court, 3, posts);
    let shared = shared.unwrap_or_else(|| words.clone());
    sentry.guard(shared.flag(|w| &w.filled[0]), shared.flag(|w| &w.mark));
    (sentry, words, bench)
}

fn call(sequence: u64, count: usize) -> Fingerprint {
    Fingerprint::collective(sequence, Collective::AllReduce, DataType::F32, Some(ReduceOp::Sum), 0, count)
}

/// An operation of which not all could be queued: before its stream says that it ended, all that look are warned.
#[test]
fn who_goes_on_without_the_others_says_so_first() {
    let (sentry, words, bench) = post(PATIENCE);
    let entry = sentry.begin(call(1, 10), 7).unwrap();
    sentry.renounce();
    words.play(entry.number(), None);
    drop(entry);
    std::thread::scope(|s| {
        // No verdict has come yet.
        let outcome = s.spawn(|| sentry.synchronize(7));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!outcome.is_finished(), "it takes what there is for a result");
        bench.mine.declare(Verdict::Aborted { rank: 1, why: "torn".into() });
        assert!(outcome.join().unwrap().unwrap_err().to_string().contains("torn"));
    });
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} does not happen");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn verdict(result: Result<()>) -> Verdict {
    match result {
        Err(Error::Failed { verdict, .. }) => verdict,
        other => panic!("not a verdict: {other:?}"),
    }
}

#[test]
fn who_has_left_keeps_no_hold_of_the_job() {
    let (sentry, words, bench) = post(PATIENCE);
    words.ailment_takes(Duration::from_secs(1));
    let entry = sentry.begin(call(1, 5), 7).unwrap();
    let number = entry.number();
    entry.queued(Vec::new());
    until("a question to the driver", || words.asked_how.load(Ordering::Relaxed) > 0);
    words.play(number, None);
    assert!(sentry.drain());
    // The patrol's thread is there, and that which asks the driver has no answer yet.
    sentry.adjourn();
    assert_eq!(Arc::strong_count(&bench), 1, "somebody else would be the last to leave the job");
}

#[test]
fn an_operation_that_ends_is_waited_for_and_nobody_is_asked() {
    let (sentry, words, bench) = post(PATIENCE);
    assert!(!sentry.shared.state.lock().thread, "it starts with the first operation");
    sentry.synchronize(7).unwrap();
    for number in 1..=1000 {
        let entry = sentry.begin(call(number, 4), 7).unwrap();
        assert_eq!(u64::from(entry.number()), number);
        entry.queued(Vec::new());
        words.play(number as u32, None);
        sentry.synchronize(7).unwrap();
    }
    assert!(sentry.drain() && bench.asked.lock().is_empty());
    assert!(sentry.shared.state.lock().recent.len() <= RECENT);
    until("sleep", || sentry.shared.state.lock().asleep);
    // And it wakes.
    let entry = sentry.begin(call(1001, 4), 7).unwrap();
    until("waking", || !sentry.shared.state.lock().asleep);
    words.play(entry.number(), None);
    entry.queued(Vec::new());
    sentry.synchronize(7).unwrap();
}

#[test]
fn the_deadline_counts_from_the_start_on_the_stream() {
    let timeout = Duration::from_millis(150);
    let (sentry, words, bench) = post(timeout);
    let operation = call(1, 4);
    let entry = sentry.begin(operation, 7).unwrap();
    entry.queued(Vec::new());
    // The stream has other things to do for longer than that.
    std::thread::sleep(2 * timeout);
    assert_eq!(bench.mine.verdict(), None);
    assert!(bench.asked.lock().is_empty());
    std::thread::scope(|s| {
        let start = Instant::now();
        s.spawn(|| words.play(1, Some(1)));
        let said = verdict(sentry.synchronize(7));
        assert_eq!(said, Verdict::Stalled { operation, reporter: 0, after: timeout, culprits: Vec::new() });
        assert!(start.elapsed() >= timeout);
    });
    // All others were asked after, by and by.
    let asked: Vec<usize> = bench.asked.lock().iter().map(|(peer, _)| *peer).collect();
    assert!(asked.contains(&1) && asked.contains(&2) && !asked.contains(&0), "{asked:?}");
    assert!(sentry.drain());
    assert!(matches!(sentry.begin(operation, 7), Err(Error::Failed { .. })));
}

/// Where operations take long, one that does is nothing to ask about, until it takes much longer than the one before.
#[test]
fn nobody_is_asked_after_before_an_operation_takes_longer_than_usual() {
    let (sentry, words, bench) = post(PATIENCE);
    let held = |number: u32, until: &mut dyn FnMut() -> bool| {
        sentry.begin(call(number.into(), 4), 7).unwrap().queued(Vec::new());
        let start = Instant::now();
        std::thread::scope(|s| {
            s.spawn(|| words.play(number, Some(number)));
            while !until() {
                assert!(start.elapsed() < PATIENCE, "operation {number} is not asked after");
                std::thread::sleep(Duration::from_micros(200));
            }
            let held = start.elapsed();
            words.filled[0].store(number, Ordering::Release);
            held
        })
    };
    let start = Instant::now();
    let before = held(1, &mut || start.elapsed() >= Duration::from_millis(300));
    assert!(sentry.drain());
    bench.asked.lock().clear();
    let asked = held(2, &mut || !bench.asked.lock().is_empty());
    // It is four times, of what the sentry has seen of it.
    assert!(asked >= before, "after {asked:?}, and the one before took {before:?}");
    assert!(sentry.drain());
}

#[test]
fn a_verdict_lets_the_stream_go_though_a_peer_still_writes() {
    let (sentry, words, bench) = post(PATIENCE);
    for number in 1..=3 {
        sentry.begin(call(number, 4), 7).unwrap().queued(Vec::new());
    }
    let aborted = Verdict::Aborted { rank: 2, why: "enough".into() };
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| (1..=3).for_each(|number| words.play(number, Some(100 * number))));
        // A peer that goes on counting, and overwrites what the sentry stores.
        s.spawn(|| {
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                count = (count + 1) % 50;
                words.filled[0].store(count, Ordering::Release);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        until("the start", || words.started.load(Ordering::Relaxed) == 1);
        bench.mine.declare(aborted.clone());
        assert_eq!(verdict(sentry.synchronize(7)), aborted);
        assert!(sentry.drain());
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(words.ended.load(Ordering::Relaxed), 3);
}

/// Nobody need be in a call that would return the verdict.
#[test]
fn people_are_told_what_is_lost_before_streams_go_on() {
    let (sentry, words, bench) = post(PATIENCE);
    // Where nothing is lost there is nothing to tell.
    sentry.begin(call(1, 4), 7).unwrap().queued(Vec::new());
    words.play(1, None);
    sentry.synchronize(7).unwrap();
    sentry.begin(call(2, 4), 7).unwrap().queued(Vec::new());
    sentry.begin(call(3, 4), 7).unwrap().queued(Vec::new());
    bench.mine.declare(Verdict::Aborted { rank: 2, why: "enough".into() });
    (2..=3).for_each(|number| words.play(number, Some(1)));
    assert!(sentry.drain());
    let told = words.told.lock().clone();
    let [(what, let_go)] = &told[..] else { panic!("{told:?}") };
    assert!(!let_go, "streams went on before");
    for word in ["rank 0", "all_reduce #2", "and 1 more", "enough"] {
        assert!(what.contains(word), "{word} is not in: {what}");
    }
}

#[test]
fn several_ranks_let_streams_go_that_wait_for_one_word() {
    // As many as may share a host, one after the other: what the last one stores is ahead of what any waits for.
    for standing in [0, 5, u32::MAX - 2, 3 << 30] {
        let shared = Arc::new(Words::default());
        shared.filled[0].store(standing, Ordering::Release);
        for rank in 0..8 {
            let (sentry, words, bench) = post_beside(Some(shared.clone()), PATIENCE);
            sentry.begin(call(1, 4), 7).unwrap().queued(Vec::new());
            bench.mine.declare(Verdict::Aborted { rank: 2, why: "enough".into() });
            until("the release", || words.released.load(Ordering::Relaxed) == 1);
            // After the word `released` the others are set, with the lock held.
            drop(sentry.shared.state.lock());
            let now = shared.filled[0].load(Ordering::Acquire);
            let behind = [0, 1, 1000].into_iter().find(|more| !has_come(now, standing.wrapping_add(*more)));
            assert_eq!(behind, None, "rank {rank}: {standing} became {now}");
            words.play(1, None);
            assert!(sentry.drain());
        }
    }
}

#[test]
fn what_a_release_let_through_is_no_result() {
    let (sentry, words, bench) = post(PATIENCE);
    sentry.begin(call(1, 4), 7).unwrap().queued(Vec::new());
    // Another rank of the host has the verdict already, and has released the word that both wait for.
    words.released.store(1, Ordering::Release);
    words.play(1, None);
    std::thread::scope(|s| {
        s.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            bench.mine.declare(Verdict::Aborted { rank: 2, why: "enough".into() });
        });
        assert_eq!(verdict(sentry.synchronize(7)), Verdict::Aborted { rank: 2, why: "enough".into() });
    });
}

#[test]
fn a_foreign_header_names_both_sides() {
    // With what the kernel found; and without, where the jury compares.
    for found in [true, false] {
        let (sentry, words, bench) = post(PATIENCE);
        let (ours, theirs) = (call(1, 4), call(1, 5));
        bench.mine.enter(&ours);
        bench.others.enter(&theirs);
        sentry.begin(ours, 7).unwrap().queued(Vec::new());
        sentry.begin(call(2, 4), 7).unwrap().queued(Vec::new());
        *words.found.lock() = found.then_some((ours.digest(), theirs));
        words.trouble.store(2, Ordering::Release);
        words.play(1, None);
        words.play(2, None);
        let said = verdict(sentry.synchronize(7));
        assert_eq!(said, Verdict::Mismatch { one: (0, ours), other: (1, theirs) }, "found: {found}");
    }
}

#[test]
fn a_message_is_asked_after_at_its_other_side_and_one_that_left_is_named() {
    let (sentry, words, bench) = post(PATIENCE);
    let message = |peer| Fingerprint::point_to_point(1, DataType::F32, 9, (peer, 0), 0);
    let awaited =
        |peer: usize| Awaited { peer, operation: message(peer), word: words.flag(|w| &w.filled[peer - 1]), value: 1 };
    // The one from rank 1 has come.
    words.filled[0].store(1, Ordering::Release);
    sentry.begin(message(1), 7).unwrap().queued(vec![awaited(1), awaited(2)]);
    words.started.store(1, Ordering::Release);
    until("a question", || !bench.asked.lock().is_empty());
    assert!(bench.asked.lock().iter().all(|asked| *asked == (2, message(2))));
    bench.mine.depart(2);
    until("a verdict", || bench.mine.raised());
    let Some(Verdict::Died { rank: 2, host, how }) = bench.mine.verdict() else { panic!("{:?}", bench.mine.verdict()) };
    assert!(host == "there" && how.contains("left") && how.contains("from rank 2 to rank 0"), "{how}");
    words.play(1, None);
    assert!(sentry.drain());
}

#[test]
fn only_so_many_are_outstanding() {
    let (sentry, words, _bench) = post(PATIENCE);
    for number in 1..=OUTSTANDING as u64 {
        sentry.begin(call(number, 4), 7).unwrap().queued(Vec::new());
    }
    std::thread::scope(|s| {
        let next = s.spawn(|| sentry.begin(call(257, 4), 7).unwrap().queued(Vec::new()));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!next.is_finished(), "one more than {OUTSTANDING}");
        words.play(1, None);
        next.join().unwrap();
    });
    words.play(257, None);
    assert!(sentry.drain());
}

#[test]
fn a_broken_device_and_a_torn_operation_do_not_hang() {
    let (sentry, words, bench) = post(PATIENCE);
    sentry.begin(call(1, 4), 7).unwrap().queued(Vec::new());
    *words.ailment.lock() = Some("an illegal address was accessed".into());
    let said = verdict(sentry.synchronize(7));
    let Verdict::Aborted { rank: 0, why } = &said else { panic!("{said}") };
    assert!(why.contains("illegal address") && why.contains("all_reduce #1"), "{why}");
    assert!(sentry.drain() && bench.mine.raised());

    let (sentry, words, bench) = post(PATIENCE);
    drop(sentry.begin(call(1, 4), 7).unwrap());
    let aborted = Verdict::Aborted { rank: 0, why: "queueing failed".into() };
    bench.mine.declare(aborted.clone());
    let start = Instant::now();
    assert_eq!(verdict(sentry.synchronize(7)), aborted);
    assert!(start.elapsed() < PATIENCE / 3);
    // What of it is in the queue has been let go.
    assert!(has_come(words.filled[0].load(Ordering::Relaxed), 1 << 20));
    assert!(sentry.drain());
}

#[test]
fn a_driver_that_does_not_answer_holds_nobody_up() {
    for aborted in [false, true] {
        let timeout = if aborted { PATIENCE } else { Duration::from_millis(400) };
        let (sentry, words, bench) = post(timeout);
        // The question of how the device is has no answer.
        let inside = words.ailment.lock();
        sentry.begin(call(1, 4), 7).unwrap().queued(Vec::new());
        std::thread::scope(|s| {
            s.spawn(|| words.play(1, Some(1)));
            until("a question", || words.asked_how.load(Ordering::Relaxed) > 0);
            let start = Instant::now();
            if aborted {
                bench.mine.declare(Verdict::Aborted { rank: 2, why: "enough".into() });
            }
            let said = verdict(sentry.synchronize(7));
            assert_eq!(matches!(said, Verdict::Stalled { .. }), !aborted, "{said}");
            assert_eq!(matches!(said, Verdict::Aborted { rank: 2, .. }), aborted, "{said}");
            assert!(start.elapsed() < PATIENCE / 3);
        });
        assert!(sentry.drain());
        assert_eq!(words.asked_how.load(Ordering::Relaxed), 1, "one question at a time");
        drop(inside);
    }
}
