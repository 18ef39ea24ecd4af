//! Every wait that the executor makes is needed: with any one of them lost, on an emulator that obliges, ranks get wrong
//! data, or find headers of other operations. So the tests of order would notice if one were forgotten.
//!
//! One rank, the victim, queues everything while the others have not begun, and one of its waits is lost. Its stream
//! runs on to where it should not be. Then the others come, one of them later than the rest and step by step, since what
//! the wait for one reader protects shows only if that reader is the slowest. A wait that nobody misses, whoever is
//! late, fails the test. The waits are those of the protocols in `maypole_cuda::peer`, those between one communicator's
//! calls on two streams, and the caller's own for events.

use std::sync::{Barrier, Mutex};
use std::time::Duration;

use maypole::cuda::{DeviceBuffer, Event, Stream};
use maypole::{Communicator, ReduceOp};

use crate::arena::Arena;
use crate::ranks::threads;
use crate::runner::{On, Test, checked};
use crate::streams::Gate;
use crate::world::{Rank, a_context_for_each, config, emulator};

pub const TESTS: &[Test] = &[
    Test { name: "planted: a publication is read before it is there", on: On::Emulator, run: publication },
    Test { name: "planted: a place is written while it is read", on: On::Emulator, run: place },
    Test { name: "planted: a place is written within one operation", on: On::Emulator, run: place_in_rounds },
    Test { name: "planted: a slot is read before it is filled", on: On::Emulator, run: filled },
    Test { name: "planted: a slot is written before it is freed", on: On::Emulator, run: freed },
    Test { name: "planted: a lender does not wait for its readers", on: On::Emulator, run: lender },
    Test { name: "planted: calls on two streams without order", on: On::Emulator, run: two_streams },
    Test { name: "planted: an event is not waited for", on: On::Emulator, run: event },
    Test { name: "planted: stores of kernels are seen late", on: On::Emulator, run: late_stores },
    Test { name: "planted: a write is lost", on: On::Emulator, run: write },
];

/// How long streams are given to run to where they should not be.
const HEAD_START: Duration = Duration::from_millis(20);
/// How often the loss of a wait is tried with each rank late, until it shows.
const ROUNDS: usize = 8;
/// Bytes of a call.
const N: usize = 3000;
/// Bytes of a registered buffer: enough to be lent.
const LENT: usize = 40_000;
/// Bytes of an arena: results lie in the first half, what is given in the second.
const BYTES: usize = 256 << 10;

/// A rank and what calls may use.
struct Actor<'a> {
    rank: &'a Rank,
    arena: Arena,
    /// Others read it where it lies.
    lent: DeviceBuffer<u8>,
    /// A communicator of this rank alone: its calls are copies on the stream.
    alone: Communicator,
    other: Stream,
    event: Event,
}

/// What ranks do.
struct Trial<'a> {
    size: usize,
    knobs: &'a [(&'a str, &'a str)],
    victim: usize,
    steps: usize,
    /// Queues one step's calls.
    call: &'a (dyn Fn(&Actor<'_>, usize) + Sync),
    /// What lies at the arena's beginning in the end, by rank.
    want: &'a (dyn Fn(usize) -> Vec<u8> + Sync),
}

/// What rank `rank` gives.
fn given(rank: usize) -> Vec<u8> {
    (0..BYTES / 2).map(|i| ((i * i / 7 + i) % 50 + 60 * rank) as u8).collect()
}

/// What a rank got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Got {
    Right,
    Wrong,
    Error,
}

/// Run it once, with the victim's loss as the switch `DROP` names it, and with rank `late` last. Whether all ranks got
/// what they should, and whether anything was lost.
fn attempt(trial: &Trial<'_>, lost: &str, late: usize) -> (bool, bool) {
    let (got, lost) = outcomes(trial, lost, late);
    (got.iter().all(|got| *got == Got::Right), lost)
}

/// [`attempt`], rank by rank.
fn outcomes(trial: &Trial<'_>, lost: &str, late: usize) -> (Vec<Got>, bool) {
    let mut config = config(trial.knobs);
    config.timeout = Duration::from_secs(4);
    let turn = Barrier::new(trial.size);
    let losses = Mutex::new(0);
    let got = threads(trial.size, &config, |comm| {
        let rank = Rank::new(comm);
        let me = rank.comm.rank();
        rank.comm.attach(&rank.context).unwrap();
        let alone = rank.comm.split(Some(me as u32), 0).unwrap().expect("every rank has a color");
        alone.attach(&rank.context).unwrap();
        let mut lent = rank.comm.alloc_device::<u8>(LENT).unwrap();
        lent.copy_from(&given(me)[..LENT], &rank.stream).unwrap();
        let (other, event) = (Stream::new(&rank.context).unwrap(), Event::new(&rank.context, false).unwrap());
        let actor = Actor { rank: &rank, arena: Arena::new(&rank, BYTES), lent, alone, other, event };
        actor.arena.fill(&rank.stream, 0, BYTES / 2, 0xee);
        actor.arena.put(&rank.stream, BYTES / 2, &given(me));
        rank.settle();
        let queue = || (0..trial.steps).for_each(|step| (trial.call)(&actor, step));
        turn.wait();
        if me == trial.victim {
            let before = emulator().counters().dropped;
            emulator().set("DROP", lost);
            queue();
            emulator().set("DROP", "");
            *losses.lock().unwrap() = emulator().counters().dropped - before;
            std::thread::sleep(HEAD_START);
        }
        turn.wait();
        if me != trial.victim && me != late {
            queue();
        }
        turn.wait();
        if me == late && me != trial.victim {
            for step in 0..trial.steps {
                // Whoever may run ahead of this rank has done so.
                std::thread::sleep(HEAD_START / 4);
                (trial.call)(&actor, step);
                let _ = rank.stream.synchronize();
            }
        }
        let on = rank.comm.on(&rank.stream);
        let streams = [&rank.stream, &actor.other];
        let ended = on.synchronize().is_ok() && streams.iter().all(|stream| stream.synchronize().is_ok());
        let want = (trial.want)(me);
        let got = match ended && on.synchronize().is_ok() {
            false => Got::Error,
            true if actor.arena.read(&rank.stream, 0, want.len()) == want => Got::Right,
            true => Got::Wrong,
        };
        // Nobody frees memory before all streams have ended.
        turn.wait();
        got
    });
    (got, losses.into_inner().unwrap() > 0)
}

/// Lose each of the victim's waits in turn; there are at least so many.
fn each_is_needed(trial: &Trial<'_>, at_least: u64) {
    let others: Vec<usize> = (0..trial.size).filter(|rank| *rank != trial.victim).collect();
    for late in &others {
        let (right, _) = attempt(trial, "", *late);
        assert!(right, "wrong with nothing lost, rank {late} late");
    }
    for nth in 1.. {
        let mut shows = false;
        // A loss shows only if somebody does run ahead, for which a busy machine may leave no time.
        for late in others.iter().cycle().take(others.len() * ROUNDS) {
            let (right, lost) = attempt(trial, &format!("wait:{nth}"), *late);
            if !lost {
                let waits = nth - 1;
                assert!(waits >= at_least, "only {waits} waits, expected {at_least}");
                println!("each of {waits} waits is needed");
                return;
            }
            if !right {
                shows = true;
                break;
            }
        }
        assert!(shows, "wait {nth} can be left out, and all ranks get what they should");
        checked(1);
    }
}

/// The first `bytes` of what each of `ranks` gives, one after the other.
fn gathered(ranks: usize, bytes: usize) -> Vec<u8> {
    (0..ranks).flat_map(|rank| given(rank)[..bytes].to_vec()).collect()
}

fn publication() {
    let call = |actor: &Actor<'_>, step: usize| {
        let on = actor.rank.comm.on(&actor.rank.stream);
        let at = step * 3 * N;
        on.all_gather(actor.arena.input(BYTES / 2, N), actor.arena.output(at, 3 * N)).unwrap();
    };
    let want = |_| [gathered(3, N), gathered(3, N)].concat();
    let trial = Trial { size: 3, knobs: &[], victim: 0, steps: 2, call: &call, want: &want };
    each_is_needed(&trial, 4);
}

/// Broadcasts of the victim, so that nothing but the waits for its readers holds it back; `bytes` each.
fn broadcasts(actor: &Actor<'_>, step: usize, root: usize, bytes: usize) {
    let on = actor.rank.comm.on(&actor.rank.stream);
    let from = BYTES / 2 + step * bytes;
    let input = if actor.rank.comm.rank() == root { actor.arena.input(from, bytes) } else { actor.arena.input(0, 0) };
    on.broadcast_from(input, actor.arena.output(step * bytes, bytes), root).unwrap();
}

fn place() {
    const STEPS: usize = 5;
    let call = |actor: &Actor<'_>, step: usize| broadcasts(actor, step, 1, N);
    let want = |_| given(1)[..STEPS * N].to_vec();
    let knobs = [("MAYPOLE_ALGORITHM", "one_shot")];
    let trial = Trial { size: 3, knobs: &knobs, victim: 1, steps: STEPS, call: &call, want: &want };
    each_is_needed(&trial, 2 * (STEPS as u64 - 2));
}

/// In the rounds of one operation all headers are alike: only the waits stand between readers and wrong data.
fn place_in_rounds() {
    const LONG: usize = 40_000;
    a_context_for_each();
    let call = |actor: &Actor<'_>, step: usize| broadcasts(actor, step, 0, LONG);
    let want = |_| given(0)[..LONG].to_vec();
    let knobs = [("MAYPOLE_ALGORITHM", "one_shot"), ("MAYPOLE_DEVICE_WINDOW", "4096")];
    let trial = Trial { size: 2, knobs: &knobs, victim: 0, steps: 1, call: &call, want: &want };
    assert!(attempt(&trial, "", 1).0, "wrong with nothing lost");
    // At the first wait the reader has surely not begun.
    let (right, lost) = attempt(&trial, "wait:1", 1);
    assert!(lost && !right, "lost: {lost}, right: {right}");
    checked(1);
}

/// Messages of one slot each, from rank 0 to rank 1.
fn messages(victim: usize, at_least: u64) {
    const STEPS: usize = 8;
    let call = |actor: &Actor<'_>, step: usize| broadcasts(actor, step, 0, 1000);
    let want = |_| given(0)[..STEPS * 1000].to_vec();
    let knobs = [("MAYPOLE_ALGORITHM", "chain"), ("MAYPOLE_DEVICE_FIFO", "8192")];
    let trial = Trial { size: 2, knobs: &knobs, victim, steps: STEPS, call: &call, want: &want };
    each_is_needed(&trial, at_least);
}

fn filled() {
    messages(1, 8);
}

fn freed() {
    messages(0, 2);
}

fn lender() {
    let call = |actor: &Actor<'_>, _| {
        let (rank, arena) = (actor.rank, &actor.arena);
        let on = rank.comm.on(&rank.stream);
        if rank.comm.rank() == 0 {
            on.broadcast_from(&actor.lent, arena.output(0, LENT), 0).unwrap();
            // What was lent is overwritten once the call has ended.
            let lent = actor.lent.address();
            // SAFETY: it outlives what is queued.
            let lent = unsafe { maypole::cuda::DeviceSliceMut::<u8>::from_raw(lent, LENT) };
            actor.alone.on(&rank.stream).broadcast_from(arena.input(BYTES / 2 + N, LENT), lent, 0).unwrap();
        } else {
            on.broadcast_from(arena.input(0, 0), arena.output(0, LENT), 0).unwrap();
        }
    };
    let want = |_| given(0)[..LENT].to_vec();
    let trial = Trial { size: 3, knobs: &[], victim: 0, steps: 1, call: &call, want: &want };
    each_is_needed(&trial, 2);
}

fn two_streams() {
    let call = |actor: &Actor<'_>, step: usize| {
        let stream = if step == 0 { &actor.other } else { &actor.rank.stream };
        let on = actor.rank.comm.on(stream);
        // The second call goes on with the first one's result.
        match step {
            0 => on.all_reduce(actor.arena.input(BYTES / 2, N), actor.arena.output(0, N), ReduceOp::Sum).unwrap(),
            _ => on.all_reduce_in_place(actor.arena.output(0, N), ReduceOp::Sum).unwrap(),
        }
    };
    let want = |_| {
        let all: Vec<_> = (0..3).map(given).collect();
        (0..N).map(|i| all.iter().fold(0u8, |sum, of| sum.wrapping_add(of[i])).wrapping_mul(3)).collect()
    };
    let trial = Trial { size: 3, knobs: &[], victim: 2, steps: 2, call: &call, want: &want };
    each_is_needed(&trial, 5);
}

fn event() {
    let call = |actor: &Actor<'_>, _| {
        let (rank, arena) = (actor.rank, &actor.arena);
        let gate = (rank.comm.rank() == 0).then(|| Gate::on(&actor.other));
        arena.fill(&actor.other, BYTES / 2, N, 7 + rank.comm.rank() as u8);
        actor.event.record(&actor.other).unwrap();
        rank.stream.wait_event(&actor.event).unwrap();
        rank.comm.on(&rank.stream).all_reduce(arena.input(BYTES / 2, N), arena.output(0, N), ReduceOp::Sum).unwrap();
        std::thread::sleep(HEAD_START);
        gate.inspect(Gate::open);
    };
    let want = |_| vec![15; N];
    let trial = Trial { size: 2, knobs: &[], victim: 0, steps: 1, call: &call, want: &want };
    assert!(attempt(&trial, "", 1).0, "wrong with nothing lost");
    let (right, lost) = attempt(&trial, "event:1", 1);
    assert!(lost && !right, "lost: {lost}, right: {right}");
    checked(1);
}

/// Kernels of one block write words themselves, and whoever sees one reads what its kernel has stored. Without a fence in
/// front of the word it would not be there yet, since it comes long after the word here.
fn late_stores() {
    const CALLS: usize = 20;
    emulator().set("LATE_STORES", "2000");
    crate::world::world(3, &config(&[]), |rank| {
        let arena = Arena::new(rank, 4096);
        for call in 0..CALLS {
            let mine = (call * 3 + rank.comm.rank()) as u8;
            arena.fill(&rank.stream, 0, 200, mine);
            rank.comm.on(&rank.stream).all_reduce_in_place(arena.output(0, 200), ReduceOp::Max).unwrap();
            assert_eq!(arena.read(&rank.stream, 0, 200), vec![(call * 3 + 2) as u8; 200], "call {call}");
            checked(1);
        }
        rank.settle();
    });
    emulator().set("LATE_STORES", "0");
}

/// A write that never comes is found at the deadline: an error, on every rank, and no stream that hangs. (Nobody waits
/// for the word `started`, which is for those who ask where a rank is.)
fn write() {
    let call = |actor: &Actor<'_>, _| {
        let on = actor.rank.comm.on(&actor.rank.stream);
        on.all_gather(actor.arena.input(BYTES / 2, N), actor.arena.output(0, 2 * N)).unwrap();
    };
    let want = |_| gathered(2, N);
    let trial = Trial { size: 2, knobs: &[], victim: 0, steps: 1, call: &call, want: &want };
    let mut failures = 0;
    for nth in 1.. {
        let (got, lost) = outcomes(&trial, &format!("write:{nth}"), 1);
        if !lost {
            break;
        }
        println!("write {nth} lost: {got:?}");
        assert!(!got.contains(&Got::Wrong), "write {nth} lost, and nobody notices wrong data: {got:?}");
        failures += got.contains(&Got::Error) as u64;
    }
    // That of the publication, and that of the operation's end.
    assert!(failures >= 2, "{failures} writes were missed");
    checked(failures);
}
