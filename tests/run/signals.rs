//! Signals that were ignored where the launcher was started, and what stops ranks.

use super::*;

/// `maypole run` with this signal ignored, as a shell's background and careless parents leave it.
fn with_ignored(number: i32, args: &[&str], script: &str) -> Command {
    let mut command = command(args, script);
    // SAFETY: between fork and exec only async-signal-safe calls are made.
    unsafe {
        command.pre_exec(move || {
            libc::signal(number, libc::SIG_IGN);
            Ok(())
        });
    }
    command
}

#[test]
fn a_parent_that_ignores_its_children_does_not_hang_the_job() {
    let out = with_ignored(libc::SIGCHLD, &["-n", "2"], "exit $RANK").output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    // Nor do the ranks inherit it: their own children have statuses.
    let mut job = with_ignored(libc::SIGCHLD, &["-n", "1"], "grep SigIgn /proc/self/status");
    let said = text(&job.output().unwrap().stdout);
    let mask = u64::from_str_radix(said.split_whitespace().last().unwrap(), 16).unwrap();
    assert_eq!(mask >> (libc::SIGCHLD - 1) & 1, 0, "{said}");
}

#[test]
fn a_first_interrupt_works_in_a_shells_background() {
    let mut job = with_ignored(libc::SIGINT, &["-n", "2"], "echo ready; exec sleep 60");
    let mut job = job.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    lines(&mut job, 2);
    signal(&job, Signal::SIGINT);
    assert_eq!(job.wait_with_output().unwrap().status.code(), Some(130));
}

#[test]
fn ranks_that_ignore_a_sigterm_from_outside_are_killed_after_the_grace_time() {
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let mut job = start(&["-n", "2", "--grace", "0.3"], script);
    lines(&mut job, 2);
    signal(&job, Signal::SIGTERM);
    let out = job.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(137), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("did not end within 300ms of SIGTERM; killing"), "{}", text(&out.stderr));
}

#[test]
fn a_rank_that_something_stops_is_named() {
    let mut job = start(&["-n", "2"], "[ $RANK = 1 ] && kill -STOP $$; exec sleep 60");
    let mut stderr = BufReader::new(job.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("rank 1 (pid ") && line.contains("was stopped by SIGSTOP"), "{line}");
    // It could not act on SIGTERM, if it were not continued.
    signal(&job, Signal::SIGTERM);
    assert_eq!(job.wait().unwrap().code(), Some(143));
}
