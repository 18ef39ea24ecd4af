//! Processes leave in good order, whether or not they let go of what they have, and the one that holds the job together
//! leaves last.

mod ranks;

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use maypole::{Communicator, Operator, ReduceOp, UniqueId, UserOp};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use ranks::{Job, PATIENCE, role, say};

const TRANSPORTS: [&str; 2] = ["shm", "tcp"];

/// A sum that takes rank 0 its time.
struct SlowSum;

static IS_SLOW: AtomicBool = AtomicBool::new(false);

impl Operator for SlowSum {
    type Element = i32;
    const ID: u32 = 1;
    fn combine(a: i32, b: i32) -> i32 {
        if IS_SLOW.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        a + b
    }
}

static KEPT: std::sync::OnceLock<Communicator> = std::sync::OnceLock::new();

#[test]
fn a_process_that_lets_go_of_nothing_leaves_in_good_order() {
    role(|role| {
        let comm = Communicator::from_env().unwrap();
        IS_SLOW.store(comm.rank() == 0, Ordering::Relaxed);
        let mut sum = [1];
        comm.all_reduce_in_place(&mut sum, ReduceOp::User(UserOp::of::<SlowSum>())).unwrap();
        assert_eq!(sum, [3]);
        if comm.rank() == 0 {
            // The others end meanwhile: what is told is that nothing has happened.
            std::thread::sleep(Duration::from_millis(300));
            say(comm.verdict().map_or("fine".to_string(), |verdict| verdict.to_string()));
        }
        match role {
            "forgotten" => std::mem::forget(comm),
            "in a static" => drop(KEPT.set(comm)),
            _ => unreachable!("{role}"),
        }
        std::process::exit(0);
    });
    for transport in TRANSPORTS {
        for what in ["forgotten", "in a static"] {
            let test = "a_process_that_lets_go_of_nothing_leaves_in_good_order";
            let mut job = Job::start(test, what, 3, &[("MAYPOLE_TRANSPORT", transport)]);
            assert_eq!(job.hear(&[0])[0].1, "fine", "{transport}, {what}");
            job.end(&[0, 1, 2]);
        }
    }
}

/// How long ranks 1 and 2 work on: several times the deadline.
const ON: Duration = Duration::from_secs(4);

#[test]
fn the_process_that_holds_the_job_together_waits_for_those_at_work() {
    role(|role| {
        let comm = Communicator::from_env().unwrap();
        if comm.rank() == 0 {
            comm.barrier().unwrap();
            say("leaves");
            return;
        }
        let pair = comm.subset(&[1, 2]).unwrap();
        comm.barrier().unwrap();
        let start = Instant::now();
        loop {
            // They end together, when it is over for one.
            let mut over = [f32::from(u8::from(role == "for a while" && start.elapsed() >= ON)); 100];
            if let Err(error) = pair.all_reduce_in_place(&mut over, ReduceOp::Max) {
                return say(error);
            }
            if over[0] > 0.0 {
                return say("fine");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let test = "the_process_that_holds_the_job_together_waits_for_those_at_work";
    for transport in TRANSPORTS {
        let settings = [("MAYPOLE_TRANSPORT", transport), ("MAYPOLE_TIMEOUT", "1")];
        let mut job = Job::start(test, "for a while", 3, &settings);
        job.hear(&[0]);
        for (_, line) in job.hear(&[1, 2]) {
            assert_eq!(line, "fine", "{transport}");
        }
        job.end(&[0, 1, 2]);
    }
    // But a signal ends it at once, and the others hear of that.
    let mut job = Job::start(test, "for ever", 3, &[("MAYPOLE_TIMEOUT", "1")]);
    job.hear(&[0]);
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    job.signal(0, Signal::SIGTERM);
    assert!(!job.status(0).success());
    assert!(start.elapsed() < PATIENCE / 12, "{:?}", start.elapsed());
    job.signal(1, Signal::SIGKILL);
    let line = &job.hear(&[2])[0].1;
    assert!(line.contains("held the job together") && line.contains("ended"), "{line}");
    job.end(&[2]);
}

/// A world beside `comm`'s, held together by the process of rank `first`, in which it is rank 0.
fn beside(comm: &Communicator, first: usize) -> Communicator {
    let config = comm.config().clone();
    let mut bytes = [0u8; 128];
    let own = (comm.rank() == first).then(|| UniqueId::create(&config).unwrap());
    if let Some(id) = &own {
        bytes.copy_from_slice(id.as_bytes());
    }
    comm.broadcast(&mut bytes, first).unwrap();
    let id = own.unwrap_or_else(|| UniqueId::from_bytes(&bytes).unwrap());
    let rank = (comm.rank() + comm.size() - first) % comm.size();
    Communicator::from_id(&id, rank, comm.size(), config).unwrap()
}

#[test]
fn worlds_are_dropped_in_any_order() {
    role(|role| {
        let one = Communicator::from_env().unwrap();
        let other = beside(&one, 1);
        let start = Instant::now();
        // Each process lets go first of the world that it holds together.
        let (first, last) = if one.rank() == 0 { (one, other) } else { (other, one) };
        match role {
            "drop" => {
                drop(first);
                drop(last);
            }
            "drop and exit" => {
                drop(first);
                std::mem::forget(last);
            }
            "one waits for the other" => {
                // Rank 0 of either goes on with the other world while its peer is still in its own.
                drop(first);
                if last.rank() == 1 {
                    last.send(&[1u8], 0).unwrap();
                }
            }
            _ => unreachable!("{role}"),
        }
        say(start.elapsed().as_secs());
    });
    for what in ["drop", "drop and exit", "one waits for the other"] {
        let mut job = Job::start("worlds_are_dropped_in_any_order", what, 2, &[]);
        let start = Instant::now();
        job.hear(&[0, 1]);
        job.end(&[0, 1]);
        assert!(start.elapsed() < PATIENCE, "{what}: {:?}", start.elapsed());
    }
}

#[test]
fn letting_go_waits_for_nobody_and_the_end_of_the_process_does() {
    role(|_| {
        let comm = Communicator::from_env().unwrap();
        comm.barrier().unwrap();
        if comm.rank() == 0 {
            drop(comm);
            return say("goes on");
        }
        std::thread::sleep(ON);
        say(comm.verdict().map_or("fine".to_string(), |verdict| verdict.to_string()));
    });
    let mut job = Job::start("letting_go_waits_for_nobody_and_the_end_of_the_process_does", "", 2, &[]);
    let [(went_on, _), (done, said)] = &job.hear(&[0, 1])[..] else { unreachable!() };
    assert!(went_on < done, "rank 0 has been held up until rank 1 was done");
    assert_eq!(said, "fine");
    job.end(&[0, 1]);
}

/// Longer than a process waits at its end for those who have nothing healthy to do.
const LONG: Duration = Duration::from_secs(6);

#[test]
fn after_a_death_those_in_a_healthy_communicator_are_waited_for() {
    role(|role| {
        let comm = Communicator::from_env().unwrap();
        let pair = comm.subset(&[1, 2]);
        comm.barrier().unwrap();
        match comm.rank() {
            3 => std::process::abort(),
            0 => {
                // Not in a call, which would wait for those who compute.
                let verdict = loop {
                    match comm.verdict() {
                        Some(verdict) => break verdict,
                        None => std::thread::sleep(Duration::from_millis(1)),
                    }
                };
                return say(verdict);
            }
            _ if role == "nothing healthy" => {
                drop(pair);
                say("hangs");
                return std::thread::sleep(2 * PATIENCE);
            }
            _ => std::thread::sleep(LONG),
        }
        let pair = pair.unwrap();
        if let Some(verdict) = pair.verdict() {
            return say(verdict);
        }
        let mut sum = [1.0];
        pair.all_reduce_in_place(&mut sum, ReduceOp::Sum).unwrap();
        assert_eq!(sum, [2.0]);
        say("fine");
    });
    let test = "after_a_death_those_in_a_healthy_communicator_are_waited_for";
    let mut job = Job::start(test, "a healthy pair", 4, &[]);
    let death = &job.hear(&[0])[0].1;
    assert!(death.contains("rank 3 "), "{death}");
    for (_, line) in job.hear(&[1, 2]) {
        assert_eq!(line, "fine");
    }
    job.end(&[0, 1, 2]);
    // But those who may hang in what has failed hold nobody up.
    let mut job = Job::start(test, "nothing healthy", 4, &[]);
    job.hear(&[0, 1, 2]);
    let start = Instant::now();
    job.end(&[0]);
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
}

static ASKED_TO_END: AtomicBool = AtomicBool::new(false);

#[test]
fn a_process_at_its_end_is_ended_by_a_signal_whatever_its_handlers() {
    extern "C" fn note(_: i32) {
        ASKED_TO_END.store(true, Ordering::Relaxed);
    }
    role(|_| {
        let comm = Communicator::from_env().unwrap();
        if comm.rank() == 0 {
            let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
            // SAFETY: it only stores into an atomic.
            unsafe { sigaction(Signal::SIGTERM, &action) }.unwrap();
        }
        comm.barrier().unwrap();
        say("ready");
        while !ASKED_TO_END.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Returns from `main`, with a handler that would swallow what comes now.
        say("ends");
    });
    let test = "a_process_at_its_end_is_ended_by_a_signal_whatever_its_handlers";
    let mut job = Job::start(test, "", 2, &[]);
    job.hear(&[0, 1]);
    job.signal(0, Signal::SIGTERM);
    job.hear(&[0]);
    let start = Instant::now();
    let status = loop {
        // A launcher's second word, which comes soon, does not cut off those who heed the first as well.
        job.signal(0, Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(50));
        if let Some(status) = job.ended(0) {
            break status;
        }
        assert!(start.elapsed() < PATIENCE, "it swallows what is to end it");
    };
    assert_eq!(status.signal(), Some(Signal::SIGTERM as i32), "{status}");
    assert!(start.elapsed() > Duration::from_secs(3), "{:?}", start.elapsed());
}
