//! The perf binaries, run as a user runs them: every collective, type, operation and root, on 1 to 4 ranks, with no
//! wrong element; and flags that make no sense, refused before anything starts.

#[path = "ranks/port.rs"]
mod port;
mod programs;

use port::free_port;
use programs::run;
use serde_json::Value;

/// Program, whether it reduces, whether it has a root.
const BINARIES: [(&str, bool, bool); 10] = [
    (env!("CARGO_BIN_EXE_all_reduce_perf"), true, false),
    (env!("CARGO_BIN_EXE_reduce_scatter_perf"), true, false),
    (env!("CARGO_BIN_EXE_reduce_perf"), true, true),
    (env!("CARGO_BIN_EXE_broadcast_perf"), false, true),
    (env!("CARGO_BIN_EXE_gather_perf"), false, true),
    (env!("CARGO_BIN_EXE_scatter_perf"), false, true),
    (env!("CARGO_BIN_EXE_all_gather_perf"), false, false),
    (env!("CARGO_BIN_EXE_alltoall_perf"), false, false),
    (env!("CARGO_BIN_EXE_sendrecv_perf"), false, false),
    (env!("CARGO_BIN_EXE_barrier_perf"), false, false),
];
const ALL_REDUCE: &str = env!("CARGO_BIN_EXE_all_reduce_perf");
const BROADCAST: &str = env!("CARGO_BIN_EXE_broadcast_perf");

/// Types times operations of `-d all -o all`: six integer types with nine, six floating-point types with six.
const TYPES_AND_OPERATIONS: usize = 6 * 9 + 6 * 6;

/// Run with a JSON file, demand success, and return the report.
fn report(program: &str, arguments: &str) -> Value {
    programs::report(program, arguments, &[])
}

/// Demand that every row of the report was checked and right.
fn assert_right(report: &Value, context: &str) {
    for row in report["results"].as_array().expect("rows") {
        for form in ["out_of_place", "in_place"] {
            let figures = &row[form];
            let absent = form == "in_place" && report["collective"] == "send_recv";
            assert_eq!(figures.is_null(), absent, "{context}: {row}");
            if !absent {
                assert_eq!(figures["nwrong"], 0, "{context}: {row}");
                assert!(figures["time"].as_f64().is_some_and(|t| t > 0.0), "{context}: {row}");
                assert!(figures["time_median"].as_f64() <= figures["time_p99"].as_f64(), "{context}: {row}");
            }
        }
    }
    assert_eq!(report["out_of_bounds"]["okay"], true, "{context}");
}

fn every_collective_on(ranks: usize) {
    for (program, reduces, rooted) in BINARIES {
        let arguments = format!("--ranks {ranks} -b 24 -e 13K -f 23 -n 2 -w 1 -d all -o all -r all");
        let report = report(program, &arguments);
        assert_eq!(report["ranks"].as_array().map(Vec::len), Some(ranks), "{program}");
        let rows = report["results"].as_array().expect("rows").len();
        if report["collective"] == "barrier" {
            assert_eq!(rows, 1);
            continue;
        }
        let sizes = 3; // 24, 552 and 12696 bytes
        let kinds = if reduces { TYPES_AND_OPERATIONS } else { 12 };
        let roots = if rooted { ranks } else { 1 };
        assert_eq!(rows, kinds * roots * sizes, "{program}");
        assert_right(&report, &format!("{program} {arguments}"));
    }
}

#[test]
fn every_collective_type_and_operation_on_1_rank() {
    every_collective_on(1);
}

#[test]
fn every_collective_type_and_operation_on_2_ranks() {
    every_collective_on(2);
}

#[test]
fn every_collective_type_and_operation_on_3_ranks() {
    every_collective_on(3);
}

#[test]
fn every_collective_type_and_operation_on_4_ranks() {
    every_collective_on(4);
}

#[test]
fn larger_sizes_on_both_transports() {
    for (transport, memory) in [("shm", ""), ("shm", "--registered"), ("tcp", "")] {
        for (program, _, _) in BINARIES {
            let arguments = format!("--ranks 3 -b 100000 -e 1600000 -f 16 -n 2 -w 1 --transport {transport} {memory}");
            let report = report(program, &arguments);
            if report["collective"] != "barrier" {
                assert_right(&report, &format!("{program} {arguments}"));
            }
            assert_eq!(report["config"]["transport"], transport);
        }
    }
}

#[test]
fn ranks_as_threads() {
    for (program, _, _) in BINARIES {
        let report = report(program, "--ranks 3 --threads -b 0 -e 5000 -i 1250 -n 2 -w 1");
        let pids: Vec<_> = report["ranks"].as_array().expect("ranks").iter().map(|rank| &rank["pid"]).collect();
        assert!(pids.len() == 3 && pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
        if report["collective"] != "barrier" {
            assert_right(&report, program);
        }
    }
}

#[test]
fn the_other_binaries_are_right() {
    for program in [
        env!("CARGO_BIN_EXE_alltoallv_perf"),
        env!("CARGO_BIN_EXE_hypercube_perf"),
        env!("CARGO_BIN_EXE_scan_perf"),
        env!("CARGO_BIN_EXE_exclusive_scan_perf"),
        env!("CARGO_BIN_EXE_all_gather_v_perf"),
        env!("CARGO_BIN_EXE_reduce_scatter_v_perf"),
        env!("CARGO_BIN_EXE_gather_v_perf"),
        env!("CARGO_BIN_EXE_scatter_v_perf"),
    ] {
        let report = report(program, "--ranks 4 -b 24 -e 13K -f 23 -n 2 -w 1");
        assert_eq!(report["results"].as_array().map(Vec::len), Some(3), "{program}");
        assert_right(&report, program);
        let name = program.rsplit('/').next().unwrap().trim_end_matches("_perf");
        let measured = match name {
            "alltoallv" => "all_to_all_v",
            "hypercube" => "all_gather",
            name => name,
        };
        assert_eq!(report["collective"], measured, "{program}");
        let chosen = if name == "hypercube" { "all_gather=bruck" } else { "" };
        assert_eq!(report["config"]["algorithm"], chosen, "{program}");
    }
}

#[test]
fn nccl_tests_environment_counts() {
    let run = |variable: (&str, &str), ranks: usize| {
        let out = run(ALL_REDUCE, &format!("--ranks {ranks} -b 64K -e 64K -n 3 -w 1 -S 1 -G 2"), &[variable]);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        (out.status.code(), said + &String::from_utf8_lossy(&out.stderr))
    };
    let (code, said) = run(("NCCL_TESTS_MIN_BW", "0.000001"), 2);
    assert!(code == Some(0) && said.contains(" OK\n#"), "{said}");
    assert!(said.contains("timestamp") && said.contains("-G 2 (--cudagraph) is ignored"), "{said}");
    let (code, said) = run(("NCCL_TESTS_MIN_BW", "1000000"), 2);
    assert!(code == Some(1) && said.contains(" FAILED\n#"), "{said}");
    let (code, said) = run(("NCCL_TESTS_SPLIT", "MOD 2"), 4);
    assert!(code == Some(0) && said.contains("all_reduce on 2 ranks"), "{said}");
    assert_eq!(said.matches("all_reduce on").count(), 1, "the table is that of rank 0's part: {said}");
    let (code, said) = run(("NCCL_TESTS_SPLIT", "MOD zero"), 2);
    assert!(code == Some(2) && said.contains("NCCL_TESTS_SPLIT=MOD zero"), "{said}");
}

#[test]
fn the_table_is_nccl_tests() {
    let output = run(ALL_REDUCE, "--ranks 2 -b 1K -e 4K -f 2 -n 3 -N 2", &[]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{text}");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows.len(), 6, "{text}");
    assert_eq!(rows[0][..5], ["1024", "256", "f32", "sum", "-1"], "{text}");
    for row in &rows {
        assert_eq!(row.len(), 13, "{text}");
        let numbers: Vec<f64> = [5, 6, 7, 9, 10, 11].iter().map(|&i| row[i].parse().expect("a number")).collect();
        assert!(numbers.iter().all(|&x| x >= 0.0) && numbers[0] > 0.0, "{text}");
        assert_eq!((row[8], row[12]), ("0", "0"), "{text}");
    }
    for line in ["# Rank", "# Cycle 2", "# Out of bounds values : 0 OK", "# Avg bus bandwidth"] {
        assert!(text.contains(line) || text.contains(&line.replace("# ", "#  ")), "{line} is missing:\n{text}");
    }
}

#[test]
fn unchecked_rows_say_so() {
    let output = run(ALL_REDUCE, "--ranks 2 -b 64 -e 64 -n 3 -c 0", &[]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && text.contains("N/A") && text.contains("not checked"), "{text}");
}

#[test]
fn nonsense_is_refused_before_anything_starts() {
    for (program, arguments, environment, reason) in [
        (ALL_REDUCE, "--ranks 2 -b 1M -e 8", &[] as &[(&str, &str)], "--maxbytes"),
        (ALL_REDUCE, "--ranks 0", &[], "at least one rank"),
        (ALL_REDUCE, "--ranks 2 -f 0", &[], "--stepfactor"),
        (ALL_REDUCE, "--ranks 2 -d quad", &[], "no such type"),
        (ALL_REDUCE, "--ranks 2 -o xor -d float", &[], "not defined on f32"),
        (ALL_REDUCE, "--ranks 2 -t 4", &[], "--threads"),
        (ALL_REDUCE, "--ranks 2 --no-such-flag", &[], "--no-such-flag"),
        (ALL_REDUCE, "--ranks 2 --transport pigeon", &[], "auto, shm or tcp"),
        (ALL_REDUCE, "--ranks 2", &[("MAYPOLE_TIMEOUT", "soon")], "MAYPOLE_TIMEOUT"),
        (ALL_REDUCE, "--ranks 2", &[("RANK", "0")], "RANK is set"),
        (ALL_REDUCE, "--ranks 2 -J /no/such/directory/file", &[], "no directory"),
        (BROADCAST, "--ranks 2 -r 2", &[], "0 to 1"),
    ] {
        let output = run(program, arguments, environment);
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(2), "{arguments}: {stdout}{stderr}");
        assert!(stdout.is_empty(), "{arguments}: {stdout}");
        assert!(stderr.contains(reason), "{arguments}: {stderr}");
    }
}

#[test]
fn a_report_that_cannot_be_written_fails_the_run() {
    // A directory exists, but is no file.
    let output = run(ALL_REDUCE, &format!("--ranks 2 -b 8 -e 8 -n 2 -J {}", std::env::temp_dir().display()), &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("--json"), "{stderr}");
}

#[test]
fn the_command_does_what_the_binaries_do() {
    let maypole = env!("CARGO_BIN_EXE_maypole");
    for name in [
        "all_reduce",
        "reduce",
        "broadcast",
        "all_gather",
        "reduce_scatter",
        "all_to_all",
        "gather",
        "scatter",
        "barrier",
        "send_recv",
    ] {
        let output = run(maypole, &format!("perf {name} --ranks 2 -b 64 -e 4K -f 8 -n 3"), &[]);
        let text = String::from_utf8_lossy(&output.stdout);
        let first = text.lines().next().unwrap_or_default();
        assert!(output.status.success(), "{name}: {text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(first.contains(name) && first.contains("2 ranks"), "{text}");
    }
    let output = run(maypole, &format!("run -n 3 --no-prefix -- {ALL_REDUCE} -b 64 -e 64 -n 3"), &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("0 OK") && text.contains("on 3 ranks"), "{text}");
}

/// A reader that leaves, as `head` does, has what it wanted: the run ends, on all ranks, and nothing is wrong.
#[test]
fn a_reader_that_leaves_ends_the_run_quietly() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};
    let port = free_port();
    let mut ranks: Vec<_> = (0..2)
        .map(|rank| {
            // Until interrupted, if nobody leaves.
            let mut command = Command::new(ALL_REDUCE);
            command.args(["-b", "8", "-e", "64", "-n", "3", "-w", "0", "-N", "0"]);
            command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2");
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
        })
        .collect();
    let head: Vec<String> = BufReader::new(ranks[0].stdout.take().expect("piped"))
        .lines()
        .take(3)
        .map(|line| line.expect("text"))
        .collect();
    assert!(head[0].contains("all_reduce on 2 ranks"), "{head:?}");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    for (rank, child) in ranks.iter_mut().enumerate() {
        let status = loop {
            match child.try_wait().expect("a child") {
                Some(status) => break status,
                None if std::time::Instant::now() > until => {
                    let _ = child.kill();
                    panic!("rank {rank} goes on although nobody reads");
                }
                None => std::thread::sleep(std::time::Duration::from_millis(20)),
            }
        };
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        assert!(status.success() && said.is_empty(), "rank {rank}: {status}: {said}");
    }
}
