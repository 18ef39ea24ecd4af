//! Processes leave in good order, whether or not they let go of what they have, and the one that holds the job together
//! leaves last.

mod ranks;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use maypole::{Communicator, Operator, ReduceOp, UserOp};
use nix::sys::signal::Signal;
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
