//! Collectives on device buffers, whole: every collective, type, operation, algorithm and layout of ranks gives what
//! plain loops and the host give; the order on streams holds, and each wait that makes it is shown to be needed; memory
//! that ranks share lives long enough and no longer; and what the driver refuses becomes an error, never wrong data.
//!
//! It runs on the emulated driver, or, with `MAYPOLE_TEST_CUDA=device`, on the one that is installed. There is no
//! harness: each test is a process of its own, since the emulator's switches and a device's errors are a process's.
//!
//! ```text
//! device [FILTER...]        the tests whose names contain a filter, or all; a line for each
//! device --list             their names
//! device --exact NAME       one test, in this process
//! device --jobs N           so many at a time (default: half of the cores)
//! ```
//! Other options, which `cargo test` passes to every test binary, are ignored. Exit status 0: none failed.

#[path = "../ranks/mod.rs"]
mod ranks;
#[path = "../differential/reference.rs"]
#[allow(dead_code, reason = "the differential test uses the rest")]
mod reference;

mod absent;
mod algorithms;
mod arena;
mod case;
mod chaos;
mod cut_short;
mod faults;
mod gpu_check;
mod hosts;
mod lifetime;
mod matrix;
mod memory;
mod mixed;
mod planted;
mod processes;
mod queue;
mod registered;
mod runner;
mod streams;
mod typed;
mod variable;
mod world;

use runner::Test;

/// Every test, in the order of the table.
fn tests() -> Vec<Test> {
    [
        absent::TESTS,
        matrix::TESTS,
        algorithms::TESTS,
        typed::TESTS,
        variable::TESTS,
        mixed::TESTS,
        hosts::TESTS,
        streams::TESTS,
        queue::TESTS,
        planted::TESTS,
        registered::TESTS,
        lifetime::TESTS,
        memory::TESTS,
        processes::TESTS,
        chaos::TESTS,
        faults::TESTS,
        gpu_check::TESTS,
        cut_short::TESTS,
    ]
    .concat()
}

fn main() -> std::process::ExitCode {
    runner::main(&tests())
}
