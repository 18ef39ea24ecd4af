//! Ranks meet through the launcher's board, whatever is wrapped around them, and as often as they like.

use super::ranks::port::free_port;
use super::*;

const LAUNCH: &str = concat!(env!("CARGO_BIN_EXE_maypole"), " info --launch");

/// Ranks of `script` meet: `times` lines, each of a program that makes two worlds, of `ranks` ranks.
fn meet(ranks: usize, times: usize, script: &str) {
    let out = run(&["-n", &ranks.to_string()], script);
    let said = text(&out.stdout);
    assert!(out.status.success(), "{script}: {said}{}", text(&out.stderr));
    assert_eq!(said.matches(&format!("met {ranks} ranks of ")).count(), 2 * times * ranks, "{script}: {said}");
}

#[test]
fn a_program_may_create_a_second_world() {
    for _ in 0..5 {
        meet(4, 1, &format!("exec {LAUNCH}"));
    }
}

#[test]
fn wrappers_may_close_descriptors_or_keep_them() {
    // As conda run, sudo and Python's subprocess do.
    meet(2, 1, &format!("exec bash -c 'for fd in {{3..255}}; do eval \"exec $fd>&-\"; done; {LAUNCH}; exit $?'"));
    // As a shell does that does not turn into the program.
    meet(2, 1, &format!("{LAUNCH}; rc=$?; exit $rc"));
    // Whoever starts from nothing but the environment, several shells deep, in another session.
    meet(2, 1, &format!("setsid --wait sh -c 'sh -c \"{LAUNCH}; true\"; true'"));
}

#[test]
fn several_programs_in_a_row_may_meet() {
    meet(3, 4, &format!("for i in 1 2 3 4; do {LAUNCH} || exit 1; done"));
}

#[test]
fn an_attempt_that_failed_is_not_found_by_late_ranks() {
    // Rank 0 tries three times, and gives up before rank 1 comes; then they meet.
    let script = format!(
        "if [ $RANK = 0 ]; then for i in 1 2 3; do MAYPOLE_CONNECT_TIMEOUT=0.3 {LAUNCH} > /dev/null 2>&1; done; else sleep 3; fi; \
         exec {LAUNCH}"
    );
    meet(2, 1, &script);
}

#[test]
fn meeting_needs_no_port_and_no_descriptor() {
    let out = run(&["-n", "1"], "env | grep '^MAYPOLE_'; ls -l /proc/self/fd");
    let said = text(&out.stdout);
    let names = said.lines().filter_map(|line| line.strip_prefix("[0] MAYPOLE_")?.split('=').next());
    let mut names: Vec<&str> = names.filter(|name| !name.starts_with("TEST_")).collect();
    names.sort_unstable();
    assert_eq!(names, ["BOARD", "KEY"], "{said}");
    assert!(!said.contains("socket:"), "{said}");
}

/// Whoever is inside counts: a rank that starts others by hand, and an outer launcher's numbers.
#[test]
fn ranks_by_hand_within_a_rank_and_a_rank_within_others() {
    let port = free_port();
    let inner = format!(
        "for r in 0 1; do RANK=$((2 * RANK + r)) WORLD_SIZE=4 LOCAL_WORLD_SIZE= LOCAL_RANK= MASTER_PORT={port} {LAUNCH} & done; wait"
    );
    let out = run(&["-n", "2"], &inner);
    assert_eq!(text(&out.stdout).matches("launcher environment: met 4 ranks").count(), 4, "{}", text(&out.stderr));
    // PMI's numbers of an mpiexec around it.
    let mut command = command(&["-n", "2"], &format!("exec {LAUNCH}"));
    let out = command.envs([("PMI_RANK", "0"), ("PMI_SIZE", "1"), ("PMI_FD", "99")]).output().unwrap();
    assert_eq!(text(&out.stdout).matches("launcher maypole run: met 2 ranks").count(), 2, "{}", text(&out.stderr));
}
