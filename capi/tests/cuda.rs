//! C programs on CUDA streams, with the emulated driver: every call in every kind of memory, and every misuse.

mod prefix;

use std::ffi::OsString;

use prefix::{compile, have, ranks_in, under_valgrind};

/// Every rank of a program with these arguments prints `fine`. `before` goes before the program, and `switches` are the
/// emulator's.
fn run(before: &[String], program: &str, size: usize, arguments: &[&str], switches: &[(&str, &str)]) {
    let program = compile(program, None);
    let mut environment = maypole_cuda_emulator::testing::environment();
    environment.extend(switches.iter().map(|(name, value)| (name.into(), OsString::from(value))));
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    let command = [&before[..], &[program.to_str().expect("UTF-8")], arguments].concat();
    let lines = ranks_in(&environment, size, &command);
    let fine = (0..size).all(|rank| lines.contains(&format!("[{rank}] fine")));
    assert!(fine, "{command:?}, {size} ranks: {lines:#?}");
}

#[test]
fn every_call_in_every_kind_of_memory() {
    (1..=4).for_each(|size| run(&[], "tests/programs/cuda.c", size, &[], &[]));
}

#[test]
fn every_call_with_streams_that_are_late() {
    run(&[], "tests/programs/cuda.c", 2, &[], &[("MAYPOLE_EMULATOR_CHAOS", "7")]);
}

#[test]
fn every_misuse_is_refused_and_every_failure_names_the_rank() {
    (1..=4).for_each(|size| run(&[], "tests/programs/cuda_misuse.c", size, &[], &[]));
}

#[test]
fn a_rank_that_ends_is_named() {
    run(&[], "tests/programs/cuda_misuse.c", 1, &["death"], &[]);
}

#[test]
fn without_a_device_streams_are_refused() {
    run(&[], "tests/programs/cuda_misuse.c", 1, &["without-device"], &[("MAYPOLE_EMULATOR_DEVICES", "0")]);
}

#[test]
fn no_error_and_no_leak_on_streams_under_valgrind() {
    if !have("no_error_and_no_leak_on_streams_under_valgrind", "valgrind") {
        return;
    }
    // The driver's threads and maps are there to the end of the process, and "possibly lost" then.
    let words = under_valgrind("definite,indirect");
    run(&words, "tests/programs/cuda.c", 1, &[], &[]);
    run(&words, "tests/programs/cuda_misuse.c", 2, &[], &[]);
}
