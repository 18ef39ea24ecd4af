//! What becomes of the ranks' output: readers that are slow, leave or are full, bars and prompts, terminals.

use std::fs::File;
use std::os::fd::OwnedFd;

use super::*;

/// The job's status, if it ends soon.
fn ends_soon(job: &mut Child) -> Option<i32> {
    let end = Instant::now() + SOON;
    loop {
        if let Some(status) = job.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > end {
            let _ = job.kill();
            let _ = job.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_reader_that_sleeps_holds_up_neither_the_timeout_nor_signals() {
    // More than any pipe holds, and nobody reads it.
    let mut job = start(&["-n", "2", "--timeout", "0.5"], "yes");
    assert_eq!(ends_soon(&mut job), Some(124));
    let mut job = start(&["-n", "2"], "echo begins >&2; exec yes");
    let mut errors = BufReader::new(job.stderr.take().unwrap());
    (0..2).for_each(|_| assert!(errors.read_line(&mut String::new()).unwrap() > 0));
    std::thread::sleep(Duration::from_millis(300));
    signal(&job, Signal::SIGTERM);
    assert_eq!(ends_soon(&mut job), Some(143));
    // A rank that has ended is named although its output stands still.
    let mut job = start(&["-n", "2"], "if [ $RANK = 1 ]; then sleep 0.3; exit 9; fi; yes");
    std::thread::sleep(Duration::from_millis(200));
    let mut line = String::new();
    BufReader::new(job.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("rank 1") && line.contains("status 9"), "{line}");
    let out = job.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(9));
}

#[test]
fn a_slow_reader_gets_everything_in_the_end() {
    let mut job = start(&["-n", "1"], "i=0; while [ $i -lt 40000 ]; do echo line $i of many; i=$((i+1)); done");
    std::thread::sleep(Duration::from_secs(1));
    let mut stdout = BufReader::new(job.stdout.take().unwrap());
    let mut lines = 0;
    let mut line = String::new();
    while stdout.read_line(&mut line).unwrap() > 0 {
        assert_eq!(line, format!("[0] line {lines} of many\n"));
        lines += 1;
        line.clear();
    }
    assert_eq!((lines, job.wait().unwrap().code()), (40_000, Some(0)));
}

#[test]
fn a_full_disk_is_told_and_the_status_is_the_ranks() {
    for (script, status) in [("echo text; exit 0", 0), ("echo text; sleep 0.2; exit 5", 5)] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let out = command(&["-n", "2"], script).stdout(full).output().unwrap();
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(status), "{said}");
        assert!(said.contains("standard output cannot be written: No space left on device"), "{said}");
        assert!(said.contains("bytes for standard output are lost"), "{said}");
    }
}

#[test]
fn readers_that_leave_change_no_status_and_panic_nowhere() {
    // Standard error's reader leaves before there is anything on it.
    let closed = || -> OwnedFd {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        writer
    };
    let mut job = command(&["-n", "2"], "[ $RANK = 1 ] && exit 7; sleep 60");
    assert_eq!(job.stdout(closed()).stderr(closed()).status().unwrap().code(), Some(7));
    let maypole = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_maypole"));
        command.args(args).stdin(Stdio::null()).stdout(closed()).stderr(closed()).status().unwrap().code()
    };
    for (args, status) in [
        (&["info"][..], 0),
        (&["verify", "all_reduce", "--algorithm", "ring", "--ranks", "2"], 0),
        (&["verify", "barrier", "--algorithm", "ring", "--ranks", "2"], 2),
        (&["run", "--help"], 0),
        (&["run", "-n", "2", "--", "no-such-program"], 127),
        (&["perf", "all_reduce", "-b", "8", "-e", "8", "-f", "0"], 2),
        // Nobody wants to know, and nothing that was checked until then was wrong.
        (&["perf", "all_reduce", "-b", "8", "-e", "8", "--ranks", "2"], 0),
    ] {
        assert_eq!(maypole(args), Some(status), "{args:?}");
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_maypole")).arg("info").stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("standard output cannot be written: No space left"), "{}", text(&out.stderr));
}

#[test]
fn progress_bars_and_prompts_come_before_their_lines_end() {
    let mut job = command(&["-n", "1"], "printf '10%%\\r'; read go; printf 'go on? '; read go; echo $go")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut hear = |expected: &str| {
        let mut said = vec![0; expected.len()];
        job.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(text(&said), expected);
        job.stdin.as_mut().unwrap().write_all(b"yes\n").unwrap();
    };
    hear("[0] 10%\r");
    hear("[0] go on? ");
    assert_eq!(text(&job.wait_with_output().unwrap().stdout), "yes\n");
}

#[test]
fn ranks_may_have_terminals() {
    let script = "[ -t 1 ] && [ -t 2 ] && printf 'one\\ntwo\\n' && echo three >&2";
    let out = run(&["-n", "2", "--pty"], script);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout).matches("] one\n").count(), 2, "{:?}", text(&out.stdout));
    assert_eq!((text(&out.stdout).lines().count(), text(&out.stderr).matches("] three\n").count()), (4, 2));
    assert!(!run(&["-n", "1"], script).status.success(), "pipes without it");
    // A great deal, and nothing is lost at the end.
    let out = run(&["-n", "1", "--pty"], "seq 1 50000");
    assert_eq!(text(&out.stdout).lines().last(), Some("[0] 50000"));
    assert_eq!(text(&out.stdout).lines().count(), 50_000);
}

#[test]
fn python_prints_at_once_unless_told_otherwise() {
    let script = "echo ${PYTHONUNBUFFERED-unset}";
    assert_eq!(text(&run(&["-n", "1"], script).stdout), "[0] 1\n");
    assert_eq!(text(&run(&["-n", "1", "-x", "PYTHONUNBUFFERED="], script).stdout), "[0] \n");
}

#[test]
fn standard_input_goes_where_it_is_asked_to() {
    for (who, readers) in [("0", &[0][..]), ("2", &[2]), ("all", &[0, 1, 2]), ("none", &[])] {
        let mut job =
            command(&["-n", "3", "--stdin", who], "cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        job.stdin.take().unwrap().write_all(b"typed\n").unwrap();
        let out = job.wait_with_output().unwrap();
        let mut lines: Vec<String> = text(&out.stdout).lines().map(str::to_string).collect();
        lines.sort();
        assert_eq!(lines, readers.iter().map(|r| format!("[{r}] typed")).collect::<Vec<_>>(), "--stdin {who}");
    }
    // One that does not read all of it holds up nobody for ever.
    let mut job = command(&["-n", "2", "--stdin", "all"], "if [ $RANK = 0 ]; then exec <&-; sleep 0.2; else wc -c; fi")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    job.stdin.take().unwrap().write_all(&vec![b'x'; 1 << 20]).unwrap();
    assert_eq!(text(&job.wait_with_output().unwrap().stdout).trim(), "[1] 1048576");
}

#[test]
fn ranks_are_bound_to_cores() {
    let cores = |bind: &str, ranks: &str| -> Vec<String> {
        let out = run(&["-n", ranks, "--bind", bind], "grep Cpus_allowed_list /proc/self/status");
        assert!(out.status.success(), "{}", text(&out.stderr));
        let mut lines: Vec<String> = text(&out.stdout).lines().map(str::to_string).collect();
        lines.sort();
        lines.iter().map(|line| line.split_whitespace().last().unwrap().to_string()).collect()
    };
    let free = cores("none", "1");
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    assert_eq!(free, [own]);
    let bound = cores("core", "2");
    if std::thread::available_parallelism().unwrap().get() > 2 {
        assert!(bound[0] != bound[1] && bound[0] != own, "{bound:?} of {own}");
    }
    // More ranks than places share them, in order.
    let many = cores("core", "64");
    assert!(many.len() == 64 && many[0] == bound[0], "{many:?}");
    assert_eq!(cores("numa", "2").len(), 2);
}
