//! What a deadline counts: time without progress in which the ranks run; and what becomes of ranks that are late.

mod ranks;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::{Communicator, ReduceOp, Result, scope};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ranks::{Job, PATIENCE, Path, ROLE, paths, role, say, threads};

/// Run a test's worlds of processes, one for each transport, at the same time: they wait most of it.
fn on_both(world: impl Fn(&'static str) + Sync) {
    let world = &world;
    std::thread::scope(|scope| {
        for transport in ["shm", "tcp"] {
            scope.spawn(move || world(transport));
        }
    });
}

fn sum(comm: &Communicator, count: usize) -> Result<()> {
    let mut buffer = vec![1.0f32; count];
    comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    assert!(buffer.iter().all(|x| *x == comm.size() as f32), "a wrong sum on rank {}", comm.rank());
    Ok(())
}

/// A collective, a message, and a request, in all of which the others wait for rank 0.
fn everything(comm: &Communicator, count: usize, pause: Duration) -> Result<()> {
    let late = || {
        if comm.rank() == 0 {
            std::thread::sleep(pause);
        }
    };
    late();
    sum(comm, count)?;
    late();
    let mut got = vec![0.0f32; count];
    match comm.rank() {
        0 => (1..comm.size()).try_for_each(|to| comm.send(&vec![1.0f32; count], to))?,
        _ => comm.recv(&mut got, 0)?,
    }
    late();
    let input = vec![1.0f32; count];
    scope(|s| comm.start(s).all_reduce(&input, &mut got, ReduceOp::Sum)?.wait().map(|_| ()))?;
    assert!(got.iter().all(|x| *x == comm.size() as f32));
    Ok(())
}

#[test]
fn threads_that_are_late_are_waited_for() {
    for Path { name, mut config, count } in paths() {
        (config.timeout, config.late) = (Duration::from_millis(200), PATIENCE);
        for result in threads(3, &config, |comm| everything(&comm, count, 4 * comm.config().timeout)) {
            result.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

/// The ranks' standard error, kept in files that nobody else sees.
fn with_errors(test: &str, role: &str, size: usize, extra: &[(&str, &str)]) -> (Job, impl Fn() -> String) {
    let mut files: Vec<std::fs::File> = Vec::new();
    let places: Vec<_> = (0..size).map(|rank| (rank, size, Vec::new())).collect();
    static FILES: AtomicUsize = AtomicUsize::new(0);
    for _ in 0..size {
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("maypole-{test}-{}-{number}", std::process::id()));
        let file = std::fs::File::options().read(true).append(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        files.push(file);
    }
    let job = Job::start_by(test, role, &places, extra, |rank, command| {
        command.stderr(files[rank].try_clone().unwrap()).spawn().unwrap()
    });
    let read = move || {
        let mut text = String::new();
        for mut file in &files {
            std::io::Seek::rewind(&mut file).unwrap();
            file.read_to_string(&mut text).unwrap();
        }
        text
    };
    (job, read)
}

#[test]
fn late_processes_are_warned_about_and_waited_for_so_long() {
    role(|role| {
        let comm = Communicator::from_env().unwrap();
        sum(&comm, 5000).unwrap();
        if comm.rank() == 2 {
            std::thread::sleep(Duration::from_secs(if role == "comes" { 3 } else { 9 }));
        }
        let begun = Instant::now();
        match sum(&comm, 5000) {
            Ok(()) => say("fine"),
            Err(error) => say(format!("after {:?}: {error}", begun.elapsed())),
        }
    });
    const TEST: &str = "late_processes_are_warned_about_and_waited_for_so_long";
    let check = |transport, comes| {
        let settings = [("MAYPOLE_TRANSPORT", transport), ("MAYPOLE_TIMEOUT", "1"), ("MAYPOLE_LATE", "5")];
        let (mut job, errors) = with_errors(TEST, if comes { "comes" } else { "stays" }, 4, &settings);
        let lines = job.hear(&[0, 1, 2, 3]);
        job.end(&[0, 1, 2, 3]);
        let warnings = errors();
        println!("{transport}: {}\n{warnings}", lines[0].1);
        let warnings: Vec<&str> = warnings.lines().filter(|line| line.contains("has waited for")).collect();
        let after = if comes { &["1s", "2s"][..] } else { &["1s", "2s", "4s"] };
        assert_eq!(warnings.len(), after.len(), "one for each time, by one rank: {warnings:#?}");
        for (line, after) in warnings.iter().zip(after) {
            let parts = ["maypole: rank ", "in all_reduce #2", "late: rank 2 on host", "its latest operation was"];
            assert!(parts.iter().all(|part| line.contains(part)), "{line}");
            assert!(warnings.iter().any(|line| line.contains(&format!("waited for {after} "))), "{warnings:#?}");
        }
        for (_, line) in &lines {
            let said = ["did not end within 5s", "missing: rank 2 on host", "it answers"];
            assert!(if comes { line == "fine" } else { said.iter().all(|part| line.contains(part)) }, "{line}");
        }
    };
    on_both(|transport| [true, false].into_iter().for_each(|comes| check(transport, comes)));
}

/// What rank 0 waits for comes after so many other operations, one after the other.
const STEPS: usize = 24;

/// Rank 1 comes late to what rank 0 waits for, and moves bytes all the time on its way there: those of messages where
/// rank 0 waits in a collective, and those of collectives, in which rank 0 has done its part, where it waits in a message.
fn on_the_way(comm: &Communicator) -> Result<()> {
    let slowly = || {
        if comm.rank() == 2 {
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    for _ in 0..STEPS {
        slowly();
        match comm.rank() {
            1 => comm.recv(&mut [0u8], 2)?,
            2 => comm.send(&[1u8], 1)?,
            _ => break,
        }
    }
    comm.barrier()?;
    for _ in 0..STEPS {
        slowly();
        comm.reduce_in_place(&mut [1.0f32; 500], ReduceOp::Sum, 1)?;
    }
    // More than links and sockets hold.
    let mut message = vec![0u8; 32 << 20];
    match comm.rank() {
        0 => comm.send(&message, 1),
        1 => comm.recv(&mut message, 0),
        _ => Ok(()),
    }
}

/// Also where nobody is waited for who is merely late.
#[test]
fn who_is_on_the_way_to_an_operation_moves_whatever_it_moves() {
    role(|_| match on_the_way(&Communicator::from_env().unwrap()) {
        Ok(()) => say("fine"),
        Err(error) => say(error),
    });
    const TEST: &str = "who_is_on_the_way_to_an_operation_moves_whatever_it_moves";
    let processes = |transport| {
        let mut settings = vec![("MAYPOLE_TRANSPORT", transport), ("MAYPOLE_ALGORITHM", "reduce=binomial")];
        settings.extend([("MAYPOLE_TIMEOUT", "2"), ("MAYPOLE_LATE", "0")]);
        let mut job = Job::start(TEST, "", 3, &settings);
        let heard = job.hear(&[0, 1, 2]);
        assert!(heard.iter().all(|(_, line)| line == "fine"), "{transport}: {heard:#?}");
        job.end(&[0, 1, 2]);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| on_both(processes));
        let mut config = ranks::config(TransportChoice::Auto);
        (config.timeout, config.algorithm) = (Duration::from_secs(2), "reduce=binomial".into());
        for result in threads(3, &config, |comm| on_the_way(&comm)) {
            result.unwrap_or_else(|error| panic!("threads: {error}"));
        }
    });
}

/// The part of ranks that are stopped: so many sums for which the others wait for rank 0, half a second each, so that
/// they are stopped while they wait.
fn sum_and_wait(sums: usize) {
    let comm = Communicator::from_env().unwrap();
    sum(&comm, 5000).unwrap();
    say("ready");
    for _ in 0..sums {
        if comm.rank() == 0 {
            // In pieces: one that is stopped meanwhile is as late after the stop as it was before.
            (0..25).for_each(|_| std::thread::sleep(Duration::from_millis(20)));
        }
        if let Err(error) = sum(&comm, 5000) {
            return say(error);
        }
    }
    say("fine");
}

#[test]
fn time_in_which_all_ranks_are_stopped_does_not_count() {
    // On for longer than the deadline.
    role(|_| sum_and_wait(16));
    on_both(|transport| {
        let settings = [("MAYPOLE_TRANSPORT", transport), ("MAYPOLE_TIMEOUT", "2")];
        let mut job = Job::start("time_in_which_all_ranks_are_stopped_does_not_count", "", 3, &settings);
        job.hear(&[0, 1, 2]);
        std::thread::sleep(Duration::from_millis(700));
        (0..3).for_each(|rank| job.signal(rank, Signal::SIGSTOP));
        std::thread::sleep(Duration::from_secs(5));
        // The one that holds the job together last, and not at once: whoever wakes first convicts nobody.
        for rank in [2, 1, 0] {
            job.signal(rank, Signal::SIGCONT);
            std::thread::sleep(Duration::from_millis(150));
        }
        assert!(job.hear(&[0, 1, 2]).iter().all(|(_, line)| line == "fine"), "{transport}");
        job.end(&[0, 1, 2]);
    });
}

#[test]
fn ranks_that_are_stopped_while_they_gather_meet_all_the_same() {
    role(|_| match Communicator::from_env().and_then(|comm| comm.barrier()) {
        Ok(()) => say("met"),
        Err(error) => say(error),
    });
    const TEST: &str = "ranks_that_are_stopped_while_they_gather_meet_all_the_same";
    let port = ranks::port::free_port().to_string();
    let place = |rank| (rank, 3, vec![("MASTER_PORT", port.clone())]);
    let settings = [("MAYPOLE_CONNECT_TIMEOUT", "4")];
    let mut first = Job::start_at(TEST, "", &[place(0), place(1)], &settings);
    std::thread::sleep(Duration::from_millis(1500));
    (0..2).for_each(|rank| first.signal(rank, Signal::SIGSTOP));
    std::thread::sleep(Duration::from_secs(6));
    (0..2).for_each(|rank| first.signal(rank, Signal::SIGCONT));
    let mut last = Job::start_at(TEST, "", &[place(2)], &settings);
    assert!(first.hear(&[0, 1]).iter().chain(&last.hear(&[0])).all(|(_, line)| line == "met"));
    first.end(&[0, 1]);
    last.end(&[0]);
}

#[test]
fn a_job_under_the_launcher_outlasts_ctrl_z() {
    role(|_| sum_and_wait(4));
    let mut job = Command::new(env!("CARGO_BIN_EXE_maypole"))
        // It runs for 2 s, or some more where the machine is busy, and takes 12 with the stop.
        .args(["run", "-n", "3", "--timeout", "11", "--no-prefix", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_job_under_the_launcher_outlasts_ctrl_z", "--nocapture", "--test-threads=1"])
        .envs([(ROLE, ""), ("MAYPOLE_TIMEOUT", "2"), ("MAYPOLE_LATE", "0")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let said = BufReader::new(job.stdout.take().unwrap()).lines().map_while(std::io::Result::ok);
    let mut said = said.filter_map(|line| Some(line.strip_prefix('@')?.to_string()));
    assert!((0..3).all(|_| said.next().as_deref() == Some("ready")));
    std::thread::sleep(Duration::from_millis(700));
    kill(Pid::from_raw(job.id() as i32), Signal::SIGTSTP).unwrap();
    std::thread::sleep(Duration::from_secs(10));
    kill(Pid::from_raw(job.id() as i32), Signal::SIGCONT).unwrap();
    assert_eq!(said.collect::<Vec<_>>(), ["fine"; 3]);
    assert!(job.wait().unwrap().success());
}
