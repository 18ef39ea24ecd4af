//! C and C++ programs on the installed library: the examples, every function, every misuse; with 1 to 8 ranks, and under
//! valgrind.

#[path = "../../tests/ranks/port.rs"]
mod port;
mod prefix;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use port::free_port;
use prefix::{compile, folder, have, prefix, ranks, ranks_in, text, under_valgrind};

/// A program's path, as an argument.
fn path(program: &Path) -> &str {
    program.to_str().expect("UTF-8")
}

/// Every rank prints its line.
fn run(program: &str, most: &[usize], line: impl Fn(usize, usize) -> String) {
    let program = compile(program, None);
    for size in most.iter().copied() {
        let lines = ranks(size, &[path(&program)]);
        for rank in 0..size {
            let expected = format!("[{rank}] {}", line(rank, size));
            assert!(
                lines.contains(&expected),
                "{}, {size} ranks: no line {expected:?} in {lines:#?}",
                program.display()
            );
        }
    }
}

/// Two and three ranks that share no memory each print the line.
fn run_over_tcp(program: &str, line: &str) {
    let program = compile(program, None);
    for size in [2, 3] {
        let lines = ranks_in(&[("MAYPOLE_TRANSPORT".into(), "tcp".into())], size, &[path(&program)]);
        assert!((0..size).all(|rank| lines.contains(&format!("[{rank}] {line}"))), "{lines:#?}");
    }
}

fn sum(size: usize) -> usize {
    size * (size - 1) / 2
}

#[test]
fn the_c_example() {
    let all: Vec<usize> = (1..=8).collect();
    run("examples/all_reduce.c", &all, |rank, size| format!("rank {rank} of {size}: sum[0] is {}", sum(size)));
}

#[test]
fn the_cpp_example() {
    let all: Vec<usize> = (1..=8).collect();
    run("examples/ring.cpp", &all, |rank, size| {
        let token = if rank == 0 { sum(size) } else { rank * (rank + 1) / 2 };
        format!("rank {rank} of {size}: token {token}")
    });
}

#[test]
fn every_function_in_every_form() {
    run("tests/programs/everything.c", &[1, 2, 3, 8], |_, _| "fine".into());
}

#[test]
fn every_misuse_is_an_error_that_names_the_argument() {
    run("tests/programs/misuse.c", &[1, 2, 3], |_, _| "fine".into());
}

#[test]
fn keys_that_differ_are_an_error_on_both_ranks() {
    run("tests/programs/keys.c", &[2], |_, _| "fine".into());
}

#[test]
fn programs_that_destroy_nothing_leave_in_good_order() {
    let program = compile("tests/programs/ends.cpp", None);
    for transport in ["shm", "tcp"] {
        let environment = [("MAYPOLE_TRANSPORT".into(), transport.into())];
        for way in [
            "return",
            "exit",
            "quick_exit",
            "late static",
            "owned static",
            "request",
            "forgotten child",
            "pthread_exit",
        ] {
            for _ in 0..3 {
                let lines = ranks_in(&environment, 3, &[path(&program), way]);
                assert_eq!(lines.iter().filter(|line| line.ends_with("] fine")).count(), 3, "{way}: {lines:#?}");
            }
        }
    }
}

#[test]
fn a_callback_that_fails_in_any_form_of_a_call_is_everyone_s_error() {
    run("tests/programs/callbacks.c", &[2, 3], |_, _| "33 forms failed".into());
    run_over_tcp("tests/programs/callbacks.c", "33 forms failed");
}

#[test]
fn operands_of_several_elements_are_whole_and_ranks_in_order() {
    for program in ["tests/programs/operations.c", "tests/programs/operands.cpp"] {
        run(program, &[1, 2, 3, 5, 8], |_, _| "fine".into());
        run_over_tcp(program, "fine");
    }
}

#[test]
fn what_a_callback_throws_is_everyone_s_error() {
    run("tests/programs/throws.cpp", &[2, 3], |_, _| "fine".into());
}

#[test]
fn two_threads_wait_for_one_stream() {
    let program = compile("tests/programs/synchronize.c", None);
    let lines = ranks(2, &[path(&program)]);
    assert!(lines.contains(&"[0] fine".to_string()), "{lines:#?}");
}

#[test]
fn the_library_stays_when_it_is_closed() {
    run("tests/programs/unload.c", &[1], |_, _| "fine".into());
}

/// A program, and two copies of the library for it to open.
fn copies() -> (PathBuf, [PathBuf; 2]) {
    static OTHER: OnceLock<PathBuf> = OnceLock::new();
    let one = prefix().join("lib/libmaypole.so.0");
    // Once: tests run at the same time, and none may write what another has mapped.
    let other = OTHER.get_or_init(|| {
        let other = folder("copies").join("libother.so");
        std::fs::copy(&one, &other).expect("a copy in the target directory");
        other
    });
    (compile("tests/programs/copies.c", None), [one.clone(), other.clone()])
}

#[test]
fn copies_of_the_library_work_in_one_process_at_the_same_time() {
    let (program, [one, other]) = copies();
    for transport in ["shm", "tcp"] {
        let environment = [("MAYPOLE_TRANSPORT".into(), transport.into())];
        let lines = ranks_in(&environment, 2, &[path(&program), path(&one), path(&other), "together"]);
        assert!((0..2).all(|rank| lines.contains(&format!("[{rank}] fine"))), "{transport}: {lines:#?}");
    }
}

#[test]
fn copies_of_the_library_in_one_process_meet_at_one_address() {
    let (program, [one, other]) = copies();
    let free = free_port();
    let ranks: Vec<Child> = (0..2)
        .map(|rank| {
            let mut command = Command::new(&program);
            command.args([&one, &other]).env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", free.to_string());
            command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2").env("MAYPOLE_CONNECT_TIMEOUT", "60");
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process")
        })
        .collect();
    let outputs: Vec<Output> = ranks.into_iter().map(|rank| rank.wait_with_output().expect("its output")).collect();
    assert!(
        outputs.iter().all(|output| output.stdout == b"fine\n"),
        "{:#?}",
        outputs.iter().map(text).collect::<Vec<_>>()
    );
}

#[test]
fn nothing_may_be_at_no_address() {
    run("tests/programs/nothing.c", &[1, 2, 3], |_, _| "fine".into());
    run_over_tcp("tests/programs/nothing.c", "fine");
}

#[test]
fn no_error_and_no_leak_under_valgrind() {
    if !have("no_error_and_no_leak_under_valgrind", "valgrind") {
        return;
    }
    for (program, sizes) in [
        ("examples/all_reduce.c", &[1, 4][..]),
        ("examples/ring.cpp", &[3]),
        ("tests/programs/everything.c", &[1, 2]),
        ("tests/programs/misuse.c", &[2]),
    ] {
        let program = compile(program, None);
        for size in sizes {
            // Where ranks are processes, the job's hub is a thread of rank 0 that need not have ended when the program
            // does: what it holds is "possibly lost", since maps and thread handles are pointed to in their middle.
            let words = under_valgrind(if *size == 1 { "definite,indirect,possible" } else { "definite,indirect" });
            let command = [&words.iter().map(String::as_str).collect::<Vec<_>>()[..], &[path(&program)]].concat();
            let lines = ranks(*size, &command);
            assert!(lines.len() >= *size, "{lines:#?}");
        }
    }
}
