//! A rank that dies after its last contribution harms nobody: what can be completed with what it left is completed, and
//! its death is told at the next thing that needs it.

mod ranks;

use std::time::Duration;

use maypole::{Communicator, ReduceOp, Result};
use nix::sys::signal::{Signal, kill};
use ranks::{Job, role, say, verdict};

/// Ranks of every job here.
const SIZE: usize = 4;

/// An operation that the rank `of` ends before the others need have come. It checks what it gives.
type Operation = fn(&Communicator, of: usize, count: usize) -> Result<()>;

/// Those that `of` ends with nobody else's help: the others come when they know that it is dead. Where one rank collects,
/// it is the one after `of`.
const ALONE: [(&str, Operation); 8] = [
    ("gather", |c, of, n| {
        let (root, input) = ((of + 1) % SIZE, vec![c.rank() as f32; n]);
        let mut all = vec![0.0; if c.rank() == root { SIZE * n } else { 0 }];
        c.gather(&input, &mut all, root)?;
        all.chunks(n).enumerate().for_each(|(rank, part)| assert!(part.iter().all(|x| *x == rank as f32)));
        Ok(())
    }),
    ("gather_v", |c, of, n| {
        let (root, counts) = ((of + 1) % SIZE, [n, 1, n / 2, n]);
        let input = vec![c.rank() as f32; counts[c.rank()]];
        let mut all = vec![0.0; if c.rank() == root { counts.iter().sum() } else { 0 }];
        c.gather_v(&input, &mut all, &counts[..], root)?;
        assert!(all.last().is_none_or(|last| *last == 3.0), "{:?}", all.last());
        Ok(())
    }),
    ("reduce", |c, of, n| {
        // In a large one, others would send to the rank that dies what it passes on.
        let (root, mut buffer) = ((of + 1) % SIZE, vec![1.0f32; n.min(4)]);
        c.reduce_in_place(&mut buffer, ReduceOp::Sum, root)?;
        assert!(c.rank() != root || buffer.iter().all(|x| *x == SIZE as f32));
        Ok(())
    }),
    ("broadcast", |c, of, n| {
        let mut buffer = vec![if c.rank() == of { 7.0f32 } else { 0.0 }; n];
        c.broadcast(&mut buffer, of)?;
        assert!(buffer.iter().all(|x| *x == 7.0));
        Ok(())
    }),
    ("scatter", |c, of, n| {
        let parts: Vec<f32> = (0..if c.rank() == of { SIZE * n } else { 0 }).map(|i| (i / n) as f32).collect();
        let mut part = vec![0.0; n];
        c.scatter(&parts, &mut part, of)?;
        assert!(part.iter().all(|x| *x == c.rank() as f32));
        Ok(())
    }),
    ("message", |c, of, n| {
        let to = (of + 1) % SIZE;
        let mut buffer = vec![if c.rank() == of { 5.0f32 } else { 0.0 }; n];
        match c.rank() {
            rank if rank == of => c.send(&buffer, to)?,
            rank if rank == to => c.recv(&mut buffer, of)?,
            _ => return Ok(()),
        }
        assert!(buffer.iter().all(|x| *x == 5.0));
        Ok(())
    }),
    ("request", |c, of, n| {
        let (root, input) = ((of + 1) % SIZE, vec![c.rank() as f32; n]);
        let mut all = vec![0.0; if c.rank() == root { SIZE * n } else { 0 }];
        maypole::scope(|s| c.start(s).gather(&input, &mut all, root)?.wait().map(|_| ()))?;
        all.chunks(n).enumerate().for_each(|(rank, part)| assert!(part.iter().all(|x| *x == rank as f32)));
        Ok(())
    }),
    ("group", |c, of, n| {
        let to = (of + 1) % SIZE;
        let (one, two) = (vec![1.0f32; n], vec![2.0f32; 3]);
        let (mut first, mut second) = (vec![0.0f32; n], vec![0.0f32; 3]);
        c.group(|g| {
            if c.rank() == of {
                g.send(&one, to);
                g.send(&two, to);
            } else if c.rank() == to {
                g.recv(&mut first, of);
                g.recv(&mut second, of);
            }
            Ok(())
        })?;
        assert!(c.rank() != to || first == one && second == two);
        Ok(())
    }),
];

/// Those that need everybody: `of` dies when it has ended them, which the others may not have.
const TOGETHER: [(&str, Operation); 3] = [
    ("all_reduce", |c, _, n| {
        let mut buffer = vec![1.0f32; n];
        c.all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
        assert!(buffer.iter().all(|x| *x == SIZE as f32));
        Ok(())
    }),
    ("all_gather", |c, _, n| {
        let mut all = vec![0.0f32; SIZE * n];
        c.all_gather(&vec![c.rank() as f32; n], &mut all)?;
        all.chunks(n).enumerate().for_each(|(rank, part)| assert!(part.iter().all(|x| *x == rank as f32)));
        Ok(())
    }),
    ("barrier", |c, _, _| c.barrier()),
];

/// A rank: `operation` by place in `operations`, the rank that dies after it, elements, whether the others come late.
fn play(operations: &[(&str, Operation)], role: &str, late: bool) {
    let numbers: Vec<usize> = role.split(' ').map(|number| number.parse().unwrap()).collect();
    let [which, victim, count] = numbers[..] else { panic!("{role}") };
    let comm = Communicator::from_env().unwrap();
    let operation = operations[which].1;
    // Connections are made when both ends first use them.
    operation(&comm, victim, count).unwrap();
    comm.barrier().unwrap();
    if comm.rank() == victim {
        operation(&comm, victim, count).unwrap();
        kill(nix::unistd::getpid(), Signal::SIGKILL).unwrap();
    }
    while late && comm.verdict().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let ended = operation(&comm, victim, count);
    let next = comm.barrier().expect_err("it needs the dead");
    match ended {
        Ok(()) => say(format!("fine, then {}", verdict(&next))),
        Err(error) => say(format!("not fine: {error}")),
    }
}

/// `rounds` jobs over each transport, in which `operations` and the rank that dies take turns.
fn try_all(test: &str, operations: &[(&str, Operation)], counts: [usize; 2], rounds: usize) {
    for transport in ["shm", "tcp"] {
        let mut failures = Vec::new();
        for round in 0..rounds {
            let (which, victim) = (round % operations.len(), [3, 0, 1][round % 3]);
            let count = counts[round / operations.len() % 2];
            let role = format!("{which} {victim} {count}");
            let mut job = Job::start(test, &role, SIZE, &[("MAYPOLE_TRANSPORT", transport)]);
            let others: Vec<usize> = (0..SIZE).filter(|rank| *rank != victim).collect();
            for (rank, (_, line)) in others.iter().zip(job.hear(&others)) {
                if !line.starts_with(&format!("fine, then rank {victim} on host ")) {
                    let name = operations[which].0;
                    failures.push(format!("{transport}, {name} of {count}, {victim} dead: rank {rank}: {line}"));
                }
            }
            job.end(&others);
        }
        assert!(failures.is_empty(), "{} of {rounds} rounds: {failures:#?}", failures.len());
    }
}

#[test]
fn what_the_dead_have_sent_arrives_at_those_who_come_later() {
    role(|role| play(&ALONE, role, true));
    try_all("what_the_dead_have_sent_arrives_at_those_who_come_later", &ALONE, [4, 9_000], 24);
}

#[test]
fn an_operation_that_the_dead_had_ended_ends_on_every_rank() {
    role(|role| play(&TOGETHER, role, false));
    try_all("an_operation_that_the_dead_had_ended_ends_on_every_rank", &TOGETHER, [4, 300_000], 24);
}

/// How long the rank that sends takes, and the processes are stopped: longer than the least that is waited after a death.
const PAUSE: Duration = Duration::from_secs(3);

#[test]
fn after_a_death_those_who_live_may_be_slow() {
    role(|role| {
        let comm = Communicator::from_env().unwrap();
        let mut word = [0u8];
        match comm.rank() {
            0 => comm.recv(&mut word, 1).unwrap(),
            1 => comm.send(&[1u8], 0).unwrap(),
            _ => {}
        }
        comm.barrier().unwrap();
        if comm.rank() == 2 {
            kill(nix::unistd::getpid(), Signal::SIGKILL).unwrap();
        }
        while comm.verdict().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if comm.rank() == 1 {
            say("knows");
            std::thread::sleep(if role == "slow" { PAUSE } else { Duration::from_millis(700) });
            comm.send(&[2u8], 0).unwrap();
        } else {
            say("waits");
            match comm.recv(&mut word, 1) {
                Ok(()) => say(word[0]),
                Err(error) => say(error),
            }
        }
    });
    let test = "after_a_death_those_who_live_may_be_slow";
    for transport in ["shm", "tcp"] {
        let job = Job::start(test, "slow", 3, &[("MAYPOLE_TRANSPORT", transport)]);
        job.hear(&[0, 1]);
        assert_eq!(job.hear(&[0])[0].1, "2", "{transport}");
        // Time in which nobody runs is not waited.
        let job = Job::start(test, "stopped", 3, &[("MAYPOLE_TRANSPORT", transport), ("MAYPOLE_TIMEOUT", "8")]);
        job.hear(&[0, 1]);
        std::thread::sleep(Duration::from_millis(100));
        [1, 0].into_iter().for_each(|rank| job.signal(rank, Signal::SIGSTOP));
        std::thread::sleep(PAUSE);
        [0, 1].into_iter().for_each(|rank| job.signal(rank, Signal::SIGCONT));
        assert_eq!(job.hear(&[0])[0].1, "2", "{transport}, stopped");
    }
}
