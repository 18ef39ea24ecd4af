//! What ranks are told when one of them does not come, gives up, leaves or dies: all the same, soon, and who it was.
//!
//! `MAYPOLE_FAILURES_KILLS=200 cargo test --test failures a_killed -- --nocapture` kills as many, and says how long it
//! took until the others knew.

mod ranks;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::{Communicator, Error, ReduceOp, Result, Verdict};
use nix::sys::signal::Signal;
use ranks::{Job, PATIENCE, Path, Place, common_verdict, config, paths, role, say, threads, verdict};

fn sum(comm: &Communicator, count: usize) -> Result<()> {
    let mut buffer = vec![1.0f32; count];
    comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    assert!(buffer.iter().all(|x| *x == comm.size() as f32), "a wrong sum on rank {}", comm.rank());
    Ok(())
}

type Wait = fn(&Communicator, usize) -> Result<()>;

/// Every way in which a rank can wait for rank 0, which does not come.
fn waits() -> Vec<(&'static str, Wait)> {
    vec![
        ("all_reduce", sum),
        ("barrier", |c, _| c.barrier()),
        ("broadcast", |c, n| c.broadcast(&mut vec![0.0f32; n], 0)),
        ("recv", |c, n| c.recv(&mut vec![0.0f32; n], 0)),
        ("send", |c, _| c.send(&vec![0.0f32; 8 << 20], 0)),
        ("request", |c, n| {
            let (input, mut output) = (vec![0.0f32; n], vec![0.0f32; n]);
            maypole::scope(|s| c.start(s).all_reduce(&input, &mut output, ReduceOp::Sum)?.wait().map(|_| ()))
        }),
    ]
}

#[test]
fn a_rank_that_never_comes_is_named_at_the_deadline() {
    for Path { name, mut config, count } in paths() {
        config.timeout = Duration::from_millis(400);
        for (what, wait) in waits() {
            let others_done = Barrier::new(3);
            let results = threads(3, &config, |comm| {
                sum(&comm, count).unwrap();
                let start = Instant::now();
                if comm.rank() == 0 {
                    others_done.wait();
                    return (sum(&comm, count).expect_err("it comes too late"), start.elapsed());
                }
                let error = wait(&comm, count).expect_err("rank 0 does not come");
                let took = start.elapsed();
                others_done.wait();
                (error, took)
            });
            let (errors, times): (Vec<_>, Vec<_>) = results.into_iter().unzip();
            println!("{name}, {what}: {times:.1?}");
            let said = common_verdict(&errors);
            let Verdict::Stalled { culprits, after, .. } = &said else { panic!("{name}, {what}: {said}") };
            let [(0, host, state)] = &culprits[..] else { panic!("{name}, {what}: {said}") };
            assert!(!host.is_empty() && state.contains("its latest operation was all_reduce #1"), "{said}");
            assert_eq!(*after, config.timeout);
            // Whose deadline passes first reports; the others may have come a little later.
            assert!(times.iter().any(|t| *t >= config.timeout), "{name}, {what}: {times:?}");
            assert!(times.iter().all(|t| *t < PATIENCE / 4), "{name}, {what}: {times:?}");
        }
    }
}

#[test]
fn abort_ends_every_wait() {
    for Path { name, config, count } in paths() {
        for (what, wait) in waits() {
            let all_done = Barrier::new(3);
            let results = threads(3, &config, |comm| {
                sum(&comm, count).unwrap();
                all_done.wait();
                if comm.rank() == 0 {
                    std::thread::sleep(Duration::from_millis(60));
                    let at = Instant::now();
                    comm.abort("the loss is not a number");
                    return (sum(&comm, count).unwrap_err(), at);
                }
                let error = wait(&comm, count).expect_err("rank 0 does not come");
                let at = Instant::now();
                // And it stays so.
                assert_eq!(verdict(&comm.barrier().unwrap_err()), verdict(&error));
                assert_eq!(verdict(&comm.send(&[1u8], 0).unwrap_err()), verdict(&error));
                (error, at)
            });
            let took: Vec<Duration> =
                results.iter().map(|(_, at)| at.saturating_duration_since(results[0].1)).collect();
            println!("{name}, {what}: {took:.1?} after the abort");
            assert!(took.iter().all(|t| *t < PATIENCE / 4), "{name}, {what}: {took:?}");
            let errors: Vec<Error> = results.into_iter().map(|(e, _)| e).collect();
            let said = common_verdict(&errors);
            assert_eq!(said, Verdict::Aborted { rank: 0, why: "the loss is not a number".into() }, "{name}, {what}");
        }
    }
}

#[test]
fn a_thread_that_leaves_or_panics_is_named() {
    for Path { name, config, count } in paths() {
        for (what, wait) in waits() {
            for panics in [false, true] {
                let all_done = Barrier::new(3);
                let results = threads(3, &config, |comm| {
                    sum(&comm, count).unwrap();
                    all_done.wait();
                    if comm.rank() == 0 {
                        std::thread::sleep(Duration::from_millis(20));
                        let at = Instant::now();
                        if panics {
                            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                                let _held = comm;
                                std::panic::resume_unwind(Box::new("a test's panic"));
                            }));
                            panicked.expect_err("it panicked");
                        }
                        return (None, at);
                    }
                    let error = wait(&comm, count).expect_err("rank 0 is gone");
                    (Some(error), Instant::now())
                });
                let took: Vec<Duration> =
                    results.iter().map(|(_, at)| at.saturating_duration_since(results[0].1)).collect();
                println!("{name}, {what}, panics {panics}: {took:.1?}");
                assert!(took.iter().all(|t| *t < PATIENCE / 4), "{name}, {what}: {took:?}");
                let errors: Vec<Error> = results.into_iter().filter_map(|(e, _)| e).collect();
                let said = common_verdict(&errors);
                let Verdict::Died { rank: 0, host, how } = &said else { panic!("{name}, {what}: {said}") };
                assert!(!host.is_empty() && (!panics || how.contains("panic")), "{name}, {what}: {said}");
            }
        }
    }
}

#[test]
fn a_rank_that_has_done_its_part_may_leave() {
    type Operation = fn(&Communicator, usize) -> Result<()>;
    let operations: [(&str, Operation); 8] = [
        ("all_reduce", sum),
        ("barrier", |c, _| c.barrier()),
        ("broadcast", |c, n| c.broadcast(&mut vec![0.0f32; n], 0)),
        ("broadcast from 1", |c, n| c.broadcast(&mut vec![0.0f32; n], 1)),
        ("reduce", |c, n| c.reduce_in_place(&mut vec![0.0f32; n], ReduceOp::Sum, 2)),
        ("gather", |c, n| c.gather_in_place(&mut vec![0.0f32; if c.rank() == 2 { 3 * n } else { n }], 2)),
        ("scatter", |c, n| c.scatter_in_place(&mut vec![0.0f32; if c.rank() == 0 { 3 * n } else { n }], 0)),
        ("message", |c, n| match c.rank() {
            0 => c.send(&vec![0.0f32; n], 1),
            1 => c.recv(&mut vec![0.0f32; n], 0),
            _ => Ok(()),
        }),
    ];
    for Path { name, config, count } in paths() {
        for (what, operation) in operations {
            for late in 0..3 {
                threads(3, &config, |comm| {
                    if comm.rank() == late {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    // Dropped right after.
                    operation(&comm, count).unwrap_or_else(|e| panic!("{name}, {what}, rank {late} late: {e}"));
                });
            }
        }
    }
}

const TRANSPORTS: [&str; 2] = ["shm", "tcp"];

/// Say how `result` ended, as the test reads it.
fn say_outcome(result: &Result<()>) {
    match result {
        Ok(()) => say("fine"),
        Err(error) => say(format!("{} | {error}", kind(error))),
    }
}

fn kind(error: &Error) -> &'static str {
    match error {
        Error::Failed { verdict: Verdict::Died { .. }, .. } => "died",
        Error::Failed { verdict: Verdict::Stalled { .. }, .. } => "stalled",
        Error::Failed { .. } => "failed",
        Error::Bootstrap { .. } => "bootstrap",
        _ => "other",
    }
}

/// The texts without the rank that tells them: they must be equal.
fn told(lines: &[(Instant, String)]) -> &str {
    let without = |line: &'_ str| line.split_once(": ").map_or(line.to_string(), |(_, rest)| rest.to_string());
    let first = without(&lines[0].1);
    assert!(lines.iter().all(|(_, line)| without(line) == first), "different verdicts: {lines:#?}");
    &lines[0].1
}

#[test]
fn a_killed_process_is_named_within_a_second() {
    role(|role| {
        let comm = Communicator::from_env().unwrap();
        let count = if role == "large" { 1 << 20 } else { 4 };
        (0..10).for_each(|_| sum(&comm, count).unwrap());
        say("ready");
        if role == "idle" {
            while comm.verdict().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let error = loop {
            if let Err(error) = sum(&comm, count) {
                break Err(error);
            }
        };
        say_outcome(&error);
    });
    // MAYPOLE_FAILURES_KILLS: about so many deaths in place of one of each kind.
    let kills = std::env::var("MAYPOLE_FAILURES_KILLS").map_or(0, |kills| kills.parse().expect("a number"));
    let mut times: Vec<(Duration, String)> = Vec::new();
    let mut round = 0;
    while round == 0 || times.len() < kills {
        for transport in TRANSPORTS {
            for what in ["small", "large", "idle"] {
                for victim in [round % 2, 2 + round % 2] {
                    let took = a_death(transport, what, victim, Duration::from_millis(30 + 7 * round as u64 % 23));
                    times.push((took, format!("{transport}, {what}, rank {victim} killed")));
                }
            }
        }
        round += 1;
    }
    times.sort();
    let at = |part: f64| times[(part * (times.len() - 1) as f64) as usize].0;
    let [least, half, most] = [0.0, 0.5, 0.9].map(at);
    println!("{} deaths, all told within: least {least:.1?}, median {half:.1?}, nine of ten {most:.1?}", times.len());
    for (took, which) in times.iter().rev().take(12) {
        println!("{took:.1?}: {which}");
    }
}

/// Kill rank `victim` of four, so long after all are at work: how long until the others have been told.
fn a_death(transport: &str, what: &str, victim: usize, after: Duration) -> Duration {
    let variables = [("MAYPOLE_TRANSPORT", transport)];
    let mut job = Job::start("a_killed_process_is_named_within_a_second", what, 4, &variables);
    job.hear(&[0, 1, 2, 3]);
    std::thread::sleep(after);
    let survivors: Vec<usize> = (0..4).filter(|r| *r != victim).collect();
    let start = Instant::now();
    job.signal(victim, Signal::SIGKILL);
    let lines = job.hear(&survivors);
    let slowest = lines.iter().map(|(at, _)| *at - start).max().unwrap();
    let text = told(&lines);
    assert!(text.starts_with("died") && text.contains(&format!("rank {victim} on host ")), "{text}");
    assert!(slowest < PATIENCE / 6, "{transport}, {what}, rank {victim}: {slowest:?}");
    job.end(&survivors);
    slowest
}

#[test]
fn a_stopped_process_is_named_at_the_deadline() {
    role(|_| {
        let comm = Communicator::from_env().unwrap();
        (0..10).for_each(|_| sum(&comm, 5000).unwrap());
        say("ready");
        let outcome = loop {
            if let Err(error) = sum(&comm, 5000) {
                break Err(error);
            }
        };
        say_outcome(&outcome);
    });
    for transport in TRANSPORTS {
        let mut slowest = Vec::new();
        for victim in [0, 2] {
            // Patience is for those who answer.
            let variables = [("MAYPOLE_TRANSPORT", transport), ("MAYPOLE_TIMEOUT", "2"), ("MAYPOLE_LATE", "1800")];
            let mut job = Job::start("a_stopped_process_is_named_at_the_deadline", "", 4, &variables);
            job.hear(&[0, 1, 2, 3]);
            let others: Vec<usize> = (0..4).filter(|r| *r != victim).collect();
            let start = Instant::now();
            job.signal(victim, Signal::SIGSTOP);
            let lines = job.hear(&others);
            let times: Vec<Duration> = lines.iter().map(|(at, _)| *at - start).collect();
            println!("{transport}, rank {victim} stopped: told after {times:.1?}");
            for (at, line) in &lines {
                assert!(line.starts_with("stalled") && line.contains(&format!("rank {victim} on host ")), "{line}");
                assert!(*at - start >= Duration::from_millis(1900), "before the deadline: {line}");
                assert!(*at - start < PATIENCE / 4, "{transport}, {victim}: {:?}", *at - start);
            }
            slowest.extend(times.iter().max().copied());
            job.signal(victim, Signal::SIGCONT);
            // All say the same, the one that goes on too. Of a silent hub they speak by themselves, and one that the last
            // bytes of an operation have reached may be in the next; otherwise the operation is the same as well.
            let (mut all, mut numbers) = (Vec::new(), Vec::new());
            for (at, line) in lines.into_iter().chain(job.hear(&[victim])) {
                let (operation, what) = line.split_once(" did not end within ").expect("a stall");
                let number = operation.split(['#', ' ']).rev().find_map(|word| word.parse::<u64>().ok());
                numbers.push(number.unwrap_or_else(|| panic!("no number: {operation}")));
                all.push((at, format!("all: {what}")));
            }
            let apart = numbers.iter().max().expect("four") - numbers.iter().min().expect("four");
            assert!(apart <= u64::from(victim == 0), "{transport}, {victim}: operations {numbers:?}");
            println!("{}", told(&all));
            job.end(&[0, 1, 2, 3]);
        }
        // Where it holds the job together, nobody waits for it once more.
        assert!(slowest[0] < 2 * slowest[1], "{transport}: {slowest:?}");
    }
}

#[test]
fn worlds_that_cannot_be_made_say_why_on_every_rank() {
    role(|_| say_outcome(&Communicator::from_env().map(|_| ())));
    let plain = |rank, size| -> Place<'static> { (rank, size, Vec::new()) };
    let on = |rank, host: &str| -> Place<'static> { (rank, 2, vec![("MAYPOLE_HOST", host.to_string())]) };
    let nowhere = |rank| -> Place<'static> { (rank, 2, vec![("MASTER_ADDR", "198.51.100.7".to_string())]) };
    let shm = ("MAYPOLE_TRANSPORT", "shm");
    let short = ("MAYPOLE_CONNECT_TIMEOUT", "2");
    type Case = (&'static str, Vec<Place<'static>>, (&'static str, &'static str), &'static [&'static str]);
    let cases: [Case; 6] = [
        (
            "hosts apart",
            vec![on(0, "left"), on(1, "right")],
            shm,
            &["rank 0", "rank 1", "MAYPOLE_TRANSPORT=shm", "MAYPOLE_HOST"],
        ),
        ("a rank missing", vec![plain(0, 3), plain(2, 3)], short, &["1"]),
        ("a rank twice", vec![plain(0, 3), plain(1, 3), plain(1, 3)], short, &["two processes have rank 1"]),
        ("sizes differ", vec![plain(0, 2), plain(1, 3)], short, &["2", "3"]),
        ("out of range", vec![plain(0, 2), plain(2, 2)], short, &["2"]),
        ("wrong meeting point", vec![nowhere(0), nowhere(1)], short, &["198.51.100.7"]),
    ];
    for (what, places, setting, parts) in cases {
        let start = Instant::now();
        let mut job = Job::start_at("worlds_that_cannot_be_made_say_why_on_every_rank", "", &places, &[setting]);
        let all: Vec<usize> = (0..places.len()).collect();
        let lines = job.hear(&all);
        println!("{what}: after {:.1?}: {}", start.elapsed(), lines[0].1);
        for (_, line) in &lines {
            assert!(!line.starts_with("fine") && !line.starts_with("failed"), "{what}: {line}");
            // A rank that its launcher gives a number that cannot be does not get as far as meeting the others, and
            // whoever waits at another meeting point only sees that nobody comes.
            let apart = what == "out of range" || what == "wrong meeting point" && line.contains("rank 1 did not come");
            assert!(apart || parts.iter().all(|p| line.contains(p)), "{what}: {line}");
        }
        job.end(&all);
    }
}

/// CPU time of the calling thread, or of the process.
fn cpu_time(clock: nix::time::ClockId) -> Duration {
    nix::time::clock_gettime(clock).unwrap().into()
}

#[test]
fn a_rank_that_waits_for_a_late_one_leaves_the_core_alone() {
    role(|_| {
        let comm = Communicator::from_env().unwrap();
        sum(&comm, 5000).unwrap();
        for round in 0..2 {
            comm.barrier().unwrap();
            if comm.rank() == 1 {
                std::thread::sleep(Duration::from_secs(1));
            }
            let (start, before) = (Instant::now(), cpu_time(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID));
            sum(&comm, if round == 0 { 4 } else { 5000 }).unwrap();
            let (waited, used) = (start.elapsed(), cpu_time(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID) - before);
            say(format!("{} {}", waited.as_micros(), used.as_micros()));
        }
    });
    for transport in TRANSPORTS {
        let test = "a_rank_that_waits_for_a_late_one_leaves_the_core_alone";
        let mut job = Job::start(test, "", 2, &[("MAYPOLE_TRANSPORT", transport)]);
        for round in 0..2 {
            let line = job.hear(&[0]).remove(0).1;
            let (waited, used) = line.split_once(' ').unwrap();
            let (waited, used): (u64, u64) = (waited.parse().unwrap(), used.parse().unwrap());
            println!("{transport}, round {round}: {used} us of CPU time in {waited} us of waiting, all threads");
            // A busy machine may have kept rank 0 from beginning to wait.
            assert!(waited > 500_000, "rank 1 was late by a second, rank 0 waited {waited} us");
            assert!(used * 20 < waited, "{transport}: {used} us of CPU time in {waited} us");
        }
        job.end(&[0, 1]);
    }
}

extern "C" fn count_signal(_: i32) {
    SIGNALS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
}
static SIGNALS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

#[test]
fn signals_do_no_harm() {
    role(|_| {
        use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
        // No SA_RESTART: whatever waits in the kernel is interrupted.
        let action = SigAction::new(SigHandler::Handler(count_signal), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler only adds to an atomic.
        unsafe { sigaction(Signal::SIGALRM, &action) }.unwrap();
        let period = nix::libc::timeval { tv_sec: 0, tv_usec: 500 };
        let timer = nix::libc::itimerval { it_interval: period, it_value: period };
        // SAFETY: a plain system call on a local structure.
        assert_eq!(unsafe { nix::libc::setitimer(nix::libc::ITIMER_REAL, &timer, std::ptr::null_mut()) }, 0);
        let comm = Communicator::from_env().unwrap();
        for round in 0..60 {
            for count in [1, 500, 40_000, 300_000] {
                sum(&comm, count).unwrap();
            }
            let child = comm.split(Some(round % 2), 0).unwrap().unwrap();
            child.barrier().unwrap();
            if comm.rank() == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let signals = SIGNALS.load(std::sync::atomic::Ordering::Relaxed);
        assert!(signals > 20, "{signals} signals do not test much");
        say(format!("fine, {signals} signals"));
    });
    for transport in TRANSPORTS {
        let mut job = Job::start("signals_do_no_harm", "", 3, &[("MAYPOLE_TRANSPORT", transport)]);
        let lines = job.hear(&[0, 1, 2]);
        println!("{transport}: {lines:?}");
        job.end(&[0, 1, 2]);
    }
}

/// Open files, threads, mappings and resident KiB of this process.
fn holdings() -> [usize; 4] {
    let entries = |path: &str| std::fs::read_dir(path).unwrap().count();
    let resident: usize = std::fs::read_to_string("/proc/self/statm")
        .unwrap()
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    // Arenas of the allocator come and go; what is shared is ours.
    let shared = maps.lines().filter(|l| l.split(' ').nth(1).is_some_and(|p| p.ends_with('s'))).count();
    [entries("/proc/self/fd"), entries("/proc/self/task"), shared, resident * 4]
}

/// Whether the process listens for ranks of its host, at the abstract socket of `open_local` in src/node/meeting.rs.
fn has_a_door(pid: u32) -> bool {
    std::fs::read_to_string("/proc/net/unix").unwrap().contains(&format!("@maypole-{pid}-"))
}

#[test]
fn communicators_leave_nothing_behind() {
    role(|role| {
        let make_one = |comm: &Communicator| match role {
            "worlds" => {
                let mut config = config(TransportChoice::Auto);
                config.transport = comm.config().transport;
                threads(3, &config, |comm| sum(&comm, 2000).unwrap());
            }
            _ => {
                let child = comm.split(Some(0), -(comm.rank() as i64)).unwrap().unwrap();
                sum(&child, 4).unwrap();
                sum(&child, 30_000).unwrap();
                let next = (child.rank() + 1) % child.size();
                child.send_recv(&[1u8; 100], next, &mut [0u8; 100], (next + 1) % child.size()).unwrap();
            }
        };
        let comm = Communicator::from_env().unwrap();
        sum(&comm, 4).unwrap();
        // So many that the allocator has what it takes for threads at the same time.
        (0..40).for_each(|_| make_one(&comm));
        comm.barrier().unwrap();
        let before = holdings();
        (0..100).for_each(|_| make_one(&comm));
        comm.barrier().unwrap();
        // What others close is noticed a little later.
        let until = Instant::now() + PATIENCE / 4;
        let settled = |now: [usize; 4]| (0..3).all(|i| now[i] <= before[i]);
        while !settled(holdings()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let after = holdings();
        assert!(has_a_door(std::process::id()));
        say(format!("files, threads, shared mappings, KiB: {before:?}, and after 100 communicators {after:?}"));
        assert!(settled(after), "{before:?} became {after:?}");
        assert!(after[3] < before[3] + 16 * 1024, "{before:?} became {after:?}");
    });
    let names = |folder: &std::path::Path| {
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string());
        names.map(|name| name.unwrap_or_default()).collect::<Vec<_>>()
    };
    // Shared memory has no other place for names. Other programs on this machine have their own.
    let shared = || names("/dev/shm".as_ref()).into_iter().filter(|name| name.contains("maypole")).count();
    let before = shared();
    let own = std::env::temp_dir().join(format!("maypole-failures-{}", std::process::id()));
    std::fs::create_dir(&own).unwrap();
    for what in ["splits", "worlds"] {
        for transport in TRANSPORTS {
            let variables = [("MAYPOLE_TRANSPORT", transport), ("TMPDIR", own.to_str().unwrap())];
            let mut job = Job::start("communicators_leave_nothing_behind", what, 3, &variables);
            let lines = job.hear(&[0, 1, 2]);
            println!("{transport}, {what}: {}", lines[0].1);
            let ranks = [0, 1, 2].map(|rank| job.pid(rank).as_raw() as u32);
            job.end(&[0, 1, 2]);
            assert_eq!(ranks.map(has_a_door), [false; 3], "abstract sockets are left");
        }
    }
    assert_eq!((shared(), names(&own)), (before, Vec::new()), "files are left");
    std::fs::remove_dir(own).unwrap();
}

#[test]
fn a_failed_communicator_can_be_dropped_and_its_parent_goes_on() {
    for Path { name, config, count } in paths() {
        threads(3, &config, |comm| {
            let child = comm.split(Some(0), 0).unwrap().unwrap();
            if comm.rank() == 1 {
                child.abort("enough");
            }
            let error = sum(&child, count).and_then(|()| child.barrier()).unwrap_err();
            assert!(matches!(verdict(&error), Verdict::Aborted { rank: 1, .. }), "{name}: {error}");
            drop(child);
            sum(&comm, count).unwrap();
            assert_eq!(comm.verdict(), None);
        });
    }
    // A world of one can only fail by its own hand.
    let alone = Communicator::threads(1).unwrap().remove(0);
    alone.abort("done");
    assert!(alone.barrier().is_err());
}

/// Whoever reports expects a verdict of the hub's, and does not go on expecting it when it has come.
#[test]
fn a_report_that_was_answered_is_done_with() {
    let mut config = config(TransportChoice::Tcp);
    // The hub then has three seconds to answer.
    config.timeout = Duration::from_secs(2);
    threads(3, &config, |world| {
        let [kept, dropped] = [0, 1].map(|_| world.duplicate().unwrap());
        for child in [&kept, &dropped].into_iter().filter(|_| world.rank() > 0) {
            child.abort("given up, by two ranks");
        }
        drop(dropped);
        std::thread::sleep(Duration::from_secs(4));
        sum(&world, 4).unwrap();
        sum(&kept, 4).expect_err("it was aborted");
    });
}

#[test]
fn news_reach_ranks_in_different_operations() {
    // Rank 0 is done with the rooted operations long before the others, and waits in the barrier.
    for Path { name, config, count } in paths() {
        let errors = threads(3, &config, |comm| {
            let operations = || {
                comm.broadcast(&mut vec![0.0f32; count], 0)?;
                if comm.rank() == 2 {
                    std::thread::sleep(Duration::from_millis(20));
                    comm.abort("in the middle");
                }
                comm.broadcast(&mut [0.0f32; 3], 0)?;
                comm.barrier()
            };
            operations().expect_err(name)
        });
        assert!(matches!(common_verdict(&errors), Verdict::Aborted { rank: 2, .. }));
    }
}
