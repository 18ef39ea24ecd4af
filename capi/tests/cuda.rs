//! C programs on CUDA streams, with the emulated driver: every call in every kind of memory, and every misuse.

mod prefix;

use std::ffi::OsString;

use prefix::{compile, ranks_in};

/// Every rank of a program with these arguments prints `fine`. `switches`: of the emulator.
fn fine(program: &str, sizes: impl IntoIterator<Item = usize>, arguments: &[&str], switches: &[(&str, &str)]) {
    let program = compile(program, None);
    let mut environment = maypole_cuda_emulator::testing::environment();
    environment.extend(switches.iter().map(|(name, value)| (name.into(), OsString::from(value))));
    for size in sizes {
        let command = [&[program.to_str().expect("UTF-8")], arguments].concat();
        let lines = ranks_in(&environment, size, &command);
        let fine = (0..size).all(|rank| lines.contains(&format!("[{rank}] fine")));
        assert!(fine, "{command:?}, {size} ranks: {lines:#?}");
    }
}

#[test]
fn every_call_in_every_kind_of_memory() {
    fine("tests/programs/cuda.c", 1..=4, &[], &[]);
}

#[test]
fn every_call_with_streams_that_are_late() {
    fine("tests/programs/cuda.c", [2], &[], &[("MAYPOLE_EMULATOR_CHAOS", "7")]);
}

#[test]
fn every_misuse_is_refused_and_every_failure_names_the_rank() {
    fine("tests/programs/cuda_misuse.c", 1..=4, &[], &[]);
}

#[test]
fn a_rank_that_ends_is_named() {
    fine("tests/programs/cuda_misuse.c", [1], &["death"], &[]);
}

#[test]
fn without_a_device_streams_are_refused() {
    fine("tests/programs/cuda_misuse.c", [1], &["without-device"], &[("MAYPOLE_EMULATOR_DEVICES", "0")]);
}
