//! What a communicator costs to make and to keep. The ranks are processes started by `maypole run`; each is this test
//! binary again, told by a variable to run only [`rank`].

use std::process::Command;
use std::time::{Duration, Instant};

use maypole::{Communicator, ReduceOp};

/// Resident memory of this process, bytes, shared pages included.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = statm.split_whitespace().nth(1).expect("its second field").parse().expect("a number");
    pages * 4096
}

/// How long this process has been at work, on all its threads.
fn worked() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("Linux");
    let micros = |time: nix::sys::time::TimeVal| (time.tv_sec() * 1_000_000 + time.tv_usec()) as u64;
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

/// How long threads of this process and of the launcher's have waited for a core, all added up.
fn held_up() -> Duration {
    let of = |process: String| -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
        let text = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
        text.filter_map(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    };
    Duration::from_nanos(of("self".into()) + of(nix::unistd::getppid().to_string()))
}

/// One rank: prints how long the communicator took to make, and by how much it made the process grow once every
/// collective has run.
#[test]
fn rank() {
    if std::env::var_os("MAYPOLE_TEST_RANK").is_none() {
        return; // the parent tests below start it
    }
    const COUNT: usize = 1 << 18;
    let size: usize = std::env::var("WORLD_SIZE").expect("set by maypole run").parse().expect("a number");
    let input = vec![1.0f32; COUNT * size];
    let mut output = vec![0.0f32; COUNT * size];
    output.fill(1.0);
    let before = resident();
    let worked_before = worked();
    let start = Instant::now();
    let comm = Communicator::from_env().expect("a world");
    let made = start.elapsed();
    let (worked, held_up) = (worked() - worked_before, held_up());
    let mine = comm.rank() * COUNT..(comm.rank() + 1) * COUNT;
    if size <= 4 {
        let (one, all) = (&input[..COUNT], &mut output[..]);
        comm.all_reduce(one, &mut all[..COUNT], ReduceOp::Sum).unwrap();
        comm.all_gather(one, all).unwrap();
        comm.reduce_scatter(&input, &mut all[mine], ReduceOp::Sum).unwrap();
        comm.all_to_all(&input, all).unwrap();
        comm.broadcast(&mut all[..COUNT], 0).unwrap();
        comm.reduce_in_place(&mut all[..COUNT], ReduceOp::Sum, 0).unwrap();
    }
    comm.barrier().unwrap();
    let figures = [made, worked, held_up].map(|time| time.as_micros());
    println!(
        "made {} us, worked {} us, held up {} us, grew {} bytes",
        figures[0],
        figures[1],
        figures[2],
        resident().saturating_sub(before)
    );
}

/// What ranks have cost.
struct Cost {
    /// The longest time to make the communicator, less the time in which somebody waited for a core.
    made: Duration,
    /// What all ranks together have worked for it.
    worked: Duration,
    /// The most memory, bytes.
    grew: usize,
}

/// Start `ranks` ranks.
fn measure(ranks: usize) -> Cost {
    let output = Command::new(env!("CARGO_BIN_EXE_maypole"))
        .args(["run", "-n", &ranks.to_string(), "--"])
        .arg(std::env::current_exe().expect("this binary"))
        .args(["--exact", "rank", "--nocapture"])
        .env("MAYPOLE_TEST_RANK", "1")
        .output()
        .expect("maypole run starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let numbers = |line: &str| -> Vec<u64> {
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    let lines = text.lines().filter_map(|line| line.split_once("made ").map(|(_, rest)| numbers(rest)));
    let figures: Vec<Vec<u64>> = lines.collect();
    assert!(figures.len() == ranks && figures.iter().all(|line| line.len() == 4), "{text}");
    let most = |which: usize| figures.iter().map(|line| line[which]).max().expect("at least one rank");
    let all = |which: usize| figures.iter().map(|line| line[which]).sum::<u64>();
    println!(
        "{ranks} ranks: made within {} us, of which {} us at most waiting for a core; {} us of work; {:.1} MiB a rank",
        most(0),
        all(2),
        all(1),
        most(3) as f64 / (1 << 20) as f64
    );
    Cost {
        made: Duration::from_micros(most(0).saturating_sub(all(2))),
        worked: Duration::from_micros(all(1)),
        grew: most(3) as usize,
    }
}

/// However busy the machine is: what others take of its cores does not count. The best of five, since ranks start one
/// after the other and the first waits for the last.
#[test]
fn two_ranks_meet_within_20_ms_in_which_they_may_run() {
    let best = (0..5).map(|_| measure(2).made).min().expect("five");
    assert!(best < Duration::from_millis(20), "{best:?}");
}

/// So many that they are in each other's way: their work counts, not how long it takes.
#[test]
fn thirty_two_ranks_meet_with_little_work() {
    let best = (0..3).map(|_| measure(32).worked).min().expect("three");
    assert!(best < Duration::from_secs(1), "{best:?}");
}

#[test]
fn four_ranks_take_less_than_16_mib_each() {
    let grew = measure(4).grew;
    assert!(grew < 16 << 20, "{grew} bytes");
}
