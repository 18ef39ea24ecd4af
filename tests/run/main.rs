//! What `maypole run` promises: every line prefixed and whole, signals passed on, the first failure named and the rest
//! ended, shells' exit statuses, and nothing left in the process table, even if it is killed itself.

mod blame;
mod meeting;
mod output;
#[path = "../ranks/mod.rs"]
mod ranks;
mod signals;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// `maypole run ARGS -- sh -c SCRIPT`.
fn command(args: &[&str], script: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_maypole"));
    command.arg("run").args(args).args(["--", "sh", "-c", script]).stdin(Stdio::null());
    for name in ["RANK", "WORLD_SIZE", "MAYPOLE_KEY"] {
        command.env_remove(name);
    }
    // Whoever runs the tests (nohup, a shell's background) may ignore signals that they are about.
    // SAFETY: between fork and exec only async-signal-safe calls are made.
    unsafe {
        command.pre_exec(|| {
            for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                libc::signal(number, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    command
}

fn run(args: &[&str], script: &str) -> Output {
    command(args, script).output().unwrap()
}

fn start(args: &[&str], script: &str) -> Child {
    command(args, script).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Read `n` lines from a running job: what its ranks say when they are ready.
fn lines(job: &mut Child, n: usize) -> Vec<String> {
    // One byte at a time, so that nothing is read beyond the n lines.
    let stdout = job.stdout.as_mut().unwrap();
    (0..n)
        .map(|_| {
            let mut line = Vec::new();
            let mut byte = [0];
            while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
                line.push(byte[0]);
            }
            text(&line)
        })
        .collect()
}

fn signal(job: &Child, signal: Signal) {
    kill(Pid::from_raw(job.id() as i32), signal).unwrap();
}

/// What follows "pid=" in a line.
fn pid(line: &str) -> Pid {
    let digits: String = line
        .split("pid=")
        .nth(1)
        .unwrap_or_else(|| panic!("{line}"))
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    Pid::from_raw(digits.parse().unwrap())
}

/// Whether a process is there and is not a zombie (whoever inherits an orphan reaps it when it likes).
fn runs(pid: Pid) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with(['Z', 'X']),
        Err(_) => false,
    }
}

/// How long what takes milliseconds may take on a machine with ten other things to do. What is not ended sleeps for a
/// minute.
const SOON: Duration = Duration::from_secs(30);

/// Whether they end soon.
fn are_gone(pids: &[Pid]) -> bool {
    let end = Instant::now() + SOON;
    while pids.iter().any(|&pid| runs(pid)) {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Files by which scripts tell each other how far they are.
struct Mark(std::path::PathBuf);

impl Mark {
    fn new(test: &str) -> Mark {
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Mark(path)
    }

    /// Says that `who` is so far.
    fn made(&self, who: impl std::fmt::Display) -> String {
        format!(": > {}/{who}", self.0.display())
    }

    /// Waits until `who` has said so.
    fn awaited(&self, who: impl std::fmt::Display) -> String {
        format!("until [ -e {}/{who} ]; do sleep 0.02; done", self.0.display())
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn ranks_know_who_they_are() {
    let out = run(
        &["-n", "3", "-x", "COLOUR=red and blue"],
        "echo $RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $MASTER_ADDR $COLOUR",
    );
    assert!(out.status.success(), "{}", text(&out.stderr));
    let mut lines: Vec<String> = text(&out.stdout).lines().map(str::to_string).collect();
    lines.sort();
    assert_eq!(lines, (0..3).map(|r| format!("[{r}] {r}/3 {r}/3 127.0.0.1 red and blue")).collect::<Vec<_>>());
}

#[test]
fn a_key_of_its_own() {
    let once = || {
        let out = run(&["-n", "2"], "echo $MAYPOLE_KEY");
        let keys: Vec<String> =
            text(&out.stdout).lines().map(|line| line.split_once(' ').unwrap().1.to_string()).collect();
        assert_eq!((keys.len(), keys[0].len()), (2, 64), "{keys:?}");
        assert_eq!(keys[0], keys[1]);
        keys[0].clone()
    };
    assert_ne!(once(), once(), "two jobs must not share a key");
}

#[test]
fn a_key_is_shown_nowhere() {
    const KEY: &str = "nobody shall see this anywhere";
    let out = run(&["-n", "2", "-x", &format!("MAYPOLE_KEY={KEY}")], "true");
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("export MAYPOLE_KEY") && !said.contains(KEY), "{said}");
    // By its name alone the environment's is passed on.
    let out =
        command(&["-n", "2", "-x", "MAYPOLE_KEY"], "echo ${#MAYPOLE_KEY}").env("MAYPOLE_KEY", KEY).output().unwrap();
    assert_eq!(text(&out.stdout).matches(&format!("] {}", KEY.len())).count(), 2, "{}", text(&out.stderr));
    assert_eq!(run(&["-n", "2", "-x", "MAYPOLE_KEY"], "true").status.code(), Some(2), "there is none to pass on");
    for (key, shown) in [(KEY, "MAYPOLE_KEY = (set)"), ("hunter2", "MAYPOLE_KEY WRONG: ")] {
        let out = Command::new(env!("CARGO_BIN_EXE_maypole")).arg("info").env("MAYPOLE_KEY", key).output().unwrap();
        let said = text(&out.stdout) + &text(&out.stderr);
        assert!(said.contains(shown) && !said.contains(key), "{said}");
    }
}

#[test]
fn streams_stay_apart_and_lines_stay_whole() {
    let out = run(
        &["-n", "4"],
        "i=0; while [ $i -lt 500 ]; do echo out-$RANK-$i; echo err-$RANK-$i >&2; i=$((i+1)); done; printf 'no end'",
    );
    assert!(out.status.success());
    for (stream, name, extra) in [(&out.stdout, "out", 4), (&out.stderr, "err", 0)] {
        let stream = text(stream);
        assert_eq!(stream.lines().count(), 2000 + extra, "{name}");
        for rank in 0..4 {
            let mut own = stream.lines().filter_map(|line| line.strip_prefix(&format!("[{rank}] ")));
            for i in 0..500 {
                assert_eq!(own.next(), Some(format!("{name}-{rank}-{i}").as_str()));
            }
            assert_eq!(own.next(), (extra > 0).then_some("no end"));
        }
    }
}

#[test]
fn any_bytes_pass() {
    let out = run(&["-n", "1"], "printf '\\000\\377\\r\\n\\376'");
    assert_eq!(out.stdout, b"[0] \x00\xff\r\n[0] \xfe\n");
    let out = run(&["-n", "1", "--no-prefix"], "printf '\\000\\377\\r\\n\\376'");
    assert_eq!(out.stdout, b"\x00\xff\r\n\xfe");
}

#[test]
fn rank_0_reads_a_pipe_and_the_others_nothing() {
    let mut job = command(&["-n", "2"], "cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    job.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    let out = job.wait_with_output().unwrap();
    assert_eq!(text(&out.stdout), "[0] typed\n");
}

#[test]
fn the_first_failure_is_named_and_ends_the_rest() {
    let began = Instant::now();
    let out = run(&["-n", "4", "--grace", "60"], "if [ $RANK = 2 ]; then sleep 0.2; exit 7; fi; sleep 60");
    assert_eq!(out.status.code(), Some(7));
    let said = text(&out.stderr);
    assert!(said.contains("rank 2 (pid ") && said.contains("exited with status 7; ending the other 3 ranks"), "{said}");
    assert!(began.elapsed() < SOON, "SIGTERM must have ended the others");
}

#[test]
fn a_signal_is_named_and_added_to_128() {
    let out = run(&["-n", "2"], "if [ $RANK = 1 ]; then kill -SEGV $$; fi; sleep 60");
    assert_eq!(out.status.code(), Some(128 + 11));
    assert!(
        text(&out.stderr).contains("rank 1 (pid ") && text(&out.stderr).contains("was ended by SIGSEGV"),
        "{}",
        text(&out.stderr)
    );
}

#[test]
fn who_ignores_sigterm_is_killed_after_the_grace_time() {
    let began = Instant::now();
    let ready = Mark::new("who_ignores_sigterm");
    let script = format!(
        "if [ $RANK = 0 ]; then {}; exit 3; fi; trap '' TERM; {}; while :; do sleep 0.1; done",
        ready.awaited(1),
        ready.made(1)
    );
    let out = run(&["-n", "2", "--grace", "0.3"], &script);
    assert_eq!(out.status.code(), Some(3));
    assert!(text(&out.stderr).contains("rank 1 did not end within 300ms of SIGTERM; killing"), "{}", text(&out.stderr));
    assert!(began.elapsed() < SOON);
}

#[test]
fn a_timeout_ends_the_job_with_124() {
    let out = run(&["-n", "2", "--timeout", "1.5"], "echo there; sleep 60");
    assert_eq!(out.status.code(), Some(124));
    assert!(text(&out.stderr).contains("--timeout 1.5: ranks 0, 1 still running"), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout).lines().count(), 2);
}

#[test]
fn signals_are_passed_on_to_every_rank() {
    for (sent, name) in [
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGTERM, "TERM"),
    ] {
        let script = format!("trap 'echo got {name}; exit 0' {name}; echo ready; while :; do sleep 0.05; done");
        let mut job = start(&["-n", "3"], &script);
        lines(&mut job, 3);
        signal(&job, sent);
        let out = job.wait_with_output().unwrap();
        assert!(out.status.success(), "{name}: {}", text(&out.stderr));
        assert_eq!(text(&out.stdout).matches(&format!("got {name}")).count(), 3, "{name}");
    }
}

#[test]
fn a_job_that_a_signal_ends_says_so_and_a_second_one_kills() {
    let mut job = start(&["-n", "2"], "echo ready; sleep 60");
    lines(&mut job, 2);
    signal(&job, Signal::SIGINT);
    let out = job.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(130));
    assert!(text(&out.stderr).contains("was ended by SIGINT, which was passed on"), "{}", text(&out.stderr));

    let mut job =
        start(&["-n", "2", "--grace", "60"], "trap 'echo again' INT; echo ready; while :; do sleep 0.05; done");
    lines(&mut job, 2);
    signal(&job, Signal::SIGINT);
    lines(&mut job, 2);
    signal(&job, Signal::SIGINT);
    let out = job.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(137), "{}", text(&out.stderr));
}

#[test]
fn what_ranks_leave_running_does_not_outlive_the_job() {
    // A grandchild that holds the output pipe open: the job must neither wait for it nor leave it.
    let began = Instant::now();
    let out = run(&["-n", "2"], "sleep 60 & echo pid=$!");
    assert!(out.status.success());
    assert!(began.elapsed() < SOON);
    let pids: Vec<Pid> = text(&out.stdout).lines().map(pid).collect();
    assert_eq!(pids.len(), 2);
    assert!(are_gone(&pids));
}

#[test]
fn failure_ends_grandchildren_too() {
    let said = Mark::new("failure_ends_grandchildren");
    let child = format!("sh -c \"echo pid=\\$\\$; {}; sleep 60\"", said.made("$RANK"));
    let both = format!("{}; {}", said.awaited(0), said.awaited(1));
    let out = run(&["-n", "2"], &format!("{child} & [ $RANK = 0 ] && {{ {both}; exit 5; }}; wait"));
    assert_eq!(out.status.code(), Some(5));
    let pids: Vec<Pid> = text(&out.stdout).lines().map(pid).collect();
    assert_eq!(pids.len(), 2);
    assert!(are_gone(&pids));
}

#[test]
fn nothing_is_left_when_the_launcher_is_killed() {
    // Rank 0 is the process itself, rank 1 a shell whose child ignores everything that can be ignored.
    let script = "trap '' TERM HUP INT; echo pid=$$; if [ $RANK = 1 ]; then sh -c 'echo pid=$$; while :; do sleep 0.1; done'; else echo pid=$$; exec sleep 60; fi";
    let mut job = start(&["-n", "2"], script);
    let pids: Vec<Pid> = lines(&mut job, 4).iter().map(|line| pid(line)).collect();
    assert!(pids.iter().all(|&pid| runs(pid)));
    let keeper = children(job.id());
    assert_eq!(keeper.len(), 3, "two ranks and the keeper: {keeper:?}");
    signal(&job, Signal::SIGKILL);
    job.wait().unwrap();
    assert!(are_gone(&pids), "ranks stay behind");
    assert!(are_gone(&keeper), "the keeper stays behind");
}

/// The children of a process.
fn children(of: u32) -> Vec<Pid> {
    let list = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap();
    list.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
}

#[test]
fn a_stopped_launcher_stops_its_ranks() {
    // No loop of short commands: a shell that is stopped while it starts one waits for it, and never shows as stopped.
    let mut job = start(&["-n", "1"], "echo pid=$$; exec sleep 60");
    let rank = pid(&lines(&mut job, 1)[0]);
    let becomes = |stopped: bool| {
        let end = Instant::now() + SOON;
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{rank}/stat")).unwrap();
            if stat.rsplit(')').next().unwrap().trim_start().starts_with('T') == stopped {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    signal(&job, Signal::SIGTSTP);
    assert!(becomes(true), "SIGTSTP must stop the rank");
    signal(&job, Signal::SIGCONT);
    assert!(becomes(false), "SIGCONT must continue it");
    signal(&job, Signal::SIGTERM);
    assert_eq!(job.wait_with_output().unwrap().status.code(), Some(143));
}

#[test]
fn a_reader_that_leaves_does_not_hang_the_job() {
    let mut job = start(&["-n", "2"], "while :; do echo y; done");
    let mut line = String::new();
    BufReader::new(job.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let out = job.wait_with_output().unwrap();
    assert!(!out.status.success() && text(&out.stderr).contains("SIGPIPE"), "{}", text(&out.stderr));
}

#[test]
fn nothing_starts_without_a_program() {
    let maypole = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_maypole")).arg("run").args(args).output().unwrap();
    let out = maypole(&["-n", "2", "--", "no-such-program-here"]);
    assert_eq!(out.status.code(), Some(127));
    assert!(text(&out.stderr).contains("no program no-such-program-here in PATH"), "{}", text(&out.stderr));
    let out = maypole(&["-n", "2", "--", "./no/such/file"]);
    assert_eq!(out.status.code(), Some(127));
    let out = maypole(&["-n", "2", "--", "./Cargo.toml"]);
    assert_eq!(out.status.code(), Some(126));
    assert!(text(&out.stderr).contains("not executable"), "{}", text(&out.stderr));
    let out = maypole(&["-n", "2", "--", "/tmp"]);
    assert_eq!(out.status.code(), Some(126));
    for wrong in [
        &["-n", "0", "--", "true"][..],
        &["-n", "x", "--", "true"],
        &["-n", "2"],
        &["-n", "2", "-x", "NAME", "--", "true"],
        &["-n", "2", "--stdin", "2", "--", "true"],
        &["-n", "2", "--stdin", "me", "--", "true"],
        &["-n", "2", "--bind", "socket", "--", "true"],
        &["-n", "2", "--pty", "--no-prefix", "--", "true"],
    ] {
        assert_eq!(maypole(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn two_hundred_ranks() {
    let out = run(&["-n", "200"], "echo $RANK");
    assert!(out.status.success(), "{}", text(&out.stderr));
    let mut ranks: Vec<usize> =
        text(&out.stdout).lines().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect();
    ranks.sort_unstable();
    assert_eq!(ranks, (0..200).collect::<Vec<_>>());
}
