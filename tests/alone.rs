//! The process that holds the job together is stopped. Whoever waits for it gives the job up by itself, at its deadline,
//! and those who did not wait believe the same as soon as that process goes on: no two ranks have different verdicts on
//! one operation, and none goes on with a rank that has given up.

mod ranks;

use std::time::Duration;

use maypole::{Communicator, ReduceOp, Result};
use nix::sys::signal::Signal;
use ranks::{Job, role, say};

fn sum(comm: &Communicator) -> Result<()> {
    let mut buffer = vec![1.0f32; 5000];
    comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum)
}

/// Time in which a rank runs; while it is stopped none passes.
fn work(time: Duration) {
    let piece = Duration::from_millis(20);
    (0..time.as_millis() / piece.as_millis()).for_each(|_| std::thread::sleep(piece));
}

/// Rank 1 waits for the others at once; rank 0 is stopped meanwhile; rank 2 comes when rank 0 goes on.
fn rank() {
    let comm = Communicator::from_env().unwrap();
    let other = comm.duplicate().unwrap();
    sum(&comm).and_then(|()| sum(&other)).unwrap();
    say("ready");
    work(Duration::from_secs(match comm.rank() {
        0 => 1,
        1 => 0,
        _ => 5,
    }));
    let verdict = |comm: &Communicator| {
        let error = sum(comm).expect_err("a rank has given up").to_string();
        error.strip_prefix(&format!("rank {}: ", comm.rank())).expect("who speaks").to_string()
    };
    say(format!("{} | {}", verdict(&comm), verdict(&other)));
}

/// What a rank says of the communicator in which one waited, and of the other.
fn verdicts(job: &Job, ranks: &[usize]) -> Vec<(String, String)> {
    let both = |line: &str| line.split_once(" | ").map(|(one, other)| (one.into(), other.into()));
    job.hear(ranks).iter().map(|(_, line)| both(line).unwrap_or_else(|| panic!("no verdicts: {line}"))).collect()
}

#[test]
fn what_one_rank_declares_alone_all_believe() {
    role(|_| rank());
    // At the same time: they wait most of it.
    let check = |transport| {
        let settings = [("MAYPOLE_TRANSPORT", transport), ("MAYPOLE_TIMEOUT", "1")];
        let mut job = Job::start("what_one_rank_declares_alone_all_believe", "", 3, &settings);
        job.hear(&[0, 1, 2]);
        job.signal(0, Signal::SIGSTOP);
        let (alone, cut_off) = verdicts(&job, &[1]).remove(0);
        assert!(alone.starts_with("all_reduce #") && alone.contains("missing: rank 0 on host "), "{alone}");
        // Of everything else it knows only that nobody holds the job together for it.
        assert!(cut_off.starts_with("rank 0 on host ") && cut_off.contains("held the job together"), "{cut_off}");
        job.signal(0, Signal::SIGCONT);
        let others = verdicts(&job, &[0, 2]);
        for (said, of_other) in &others {
            assert_eq!(*said, alone, "{transport}");
            assert!(of_other.starts_with("rank 1 on host ") && of_other.contains("it gave the job up"), "{of_other}");
            assert_eq!(*of_other, others[0].1, "{transport}");
        }
        job.end(&[0, 1, 2]);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| check("shm"));
        check("tcp");
    });
}
