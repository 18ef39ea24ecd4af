//! The perf programs on device memory, on the emulated driver: every collective checked, what the reports say about devices,
//! the programs that only devices have, and a machine without a driver.

mod programs;

use std::path::PathBuf;
use std::process::Output;

use maypole_cuda_emulator::testing;
use programs::{report, run};
use serde_json::Value;

const MAYPOLE: &str = env!("CARGO_BIN_EXE_maypole");
const KERNEL_PERF: &str = env!("CARGO_BIN_EXE_kernel_perf");
const OVERLAP_PERF: &str = env!("CARGO_BIN_EXE_overlap_perf");
const PRIMITIVES_PERF: &str = env!("CARGO_BIN_EXE_primitives_perf");
const NCCL_PERF: &str = env!("CARGO_BIN_EXE_nccl_perf");
const GPU_SUMMARY: &str = env!("CARGO_BIN_EXE_gpu_summary");

/// Calls `run` with the variables by which a child process finds the emulated driver, and its switches beside them.
fn with_emulator<T>(switches: &[(&str, &str)], run: impl FnOnce(&[(&str, &str)]) -> T) -> T {
    let text = |s: std::ffi::OsString| s.into_string().expect("paths here are text");
    let driver: Vec<_> = testing::environment().into_iter().map(|(name, value)| (text(name), text(value))).collect();
    let mut all: Vec<(&str, &str)> = driver.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    all.extend(switches);
    run(&all)
}

/// Run on the emulated driver, and return the report.
fn on_devices(program: &str, arguments: &str, switches: &[(&str, &str)]) -> Value {
    with_emulator(switches, |environment| report(program, arguments, environment))
}

/// Run on the emulated driver, and return what was said and how it ended.
fn say_on_devices(program: &str, arguments: &str, switches: &[(&str, &str)]) -> Output {
    with_emulator(switches, |environment| run(program, arguments, environment))
}

/// Demand that every row was checked and right, and has what only devices have.
fn assert_right(report: &Value, context: &str) {
    let rows = report["results"].as_array().expect("rows");
    assert!(!rows.is_empty(), "{context}");
    for row in rows {
        for figures in [&row["out_of_place"], &row["in_place"]].into_iter().filter(|figures| !figures.is_null()) {
            assert_eq!(figures["nwrong"], 0, "{context}: {row}");
            assert!(figures["time_stream"].as_f64().is_some_and(|t| t > 0.0), "{context}: {row}");
            assert!(figures["traffic"]["written"].is_u64(), "{context}: {row}");
        }
    }
    assert!(report["device"]["name"].as_str().is_some_and(|name| !name.is_empty()), "{context}");
}

const COLLECTIVES: [&str; 16] = [
    "send_recv",
    "all_reduce",
    "reduce",
    "broadcast",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "gather",
    "scatter",
    "scan",
    "exclusive_scan",
    "all_gather_v",
    "reduce_scatter_v",
    "all_to_all_v",
    "gather_v",
    "scatter_v",
];

fn every_collective(how: &str) {
    for collective in COLLECTIVES {
        let arguments =
            format!("perf {collective} --device cuda {how} -b 40 -e 40000 -f 1000 -n 2 -w 1 -d bf16 -r all");
        assert_right(&on_devices(MAYPOLE, &arguments, &[]), &arguments);
    }
}

#[test]
fn every_collective_between_processes() {
    every_collective("--ranks 2");
}

#[test]
fn every_collective_between_threads_in_registered_memory() {
    every_collective("--ranks 3 --threads --registered");
}

#[test]
fn ranks_are_spread_over_devices() {
    let arguments = "perf all_reduce --device cuda --ranks 4 -b 4096 -e 4096 -n 2 -w 1";
    let one = on_devices(MAYPOLE, arguments, &[]);
    let two = on_devices(MAYPOLE, arguments, &[("MAYPOLE_EMULATOR_DEVICES", "2")]);
    let device = |report: &Value, rank: usize| report["ranks"][rank]["device"].as_str().expect("a device").to_string();
    assert_eq!(device(&one, 0), device(&one, 1));
    assert_eq!((device(&two, 0), device(&two, 1)), (device(&two, 2), device(&two, 3)));
    assert_ne!(device(&two, 0), device(&two, 1));
    // Each rank reads and writes its 4096 bytes, and there are twice as many ranks on the busiest device.
    let written = |report: &Value| report["results"][0]["out_of_place"]["traffic"]["written"].as_u64();
    assert_eq!((written(&one), written(&two)), (Some(4 * 4096), Some(2 * 4096)));
    assert_right(&two, arguments);
}

#[test]
fn rows_say_how_they_are_run() {
    let arguments = "perf all_gather --device cuda --ranks 2 -b 8 -e 8 -n 2 -w 1";
    for (staging, expected) in [("auto", "staging in device memory"), ("host", "staging in pinned host memory")] {
        let output = say_on_devices(MAYPOLE, arguments, &[("MAYPOLE_DEVICE_STAGING", staging)]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let how = said.lines().find(|line| line.starts_with("# ") && line.contains("staging in"));
        assert!(how.is_some_and(|how| how.contains(expected) && how.contains(" over shared memory")), "{said}");
    }
}

#[test]
fn a_barrier_has_a_row_too() {
    let report = on_devices(MAYPOLE, "perf barrier --device cuda --ranks 2 -n 5", &[]);
    assert_eq!(report["results"].as_array().map(Vec::len), Some(1));
}

#[test]
fn kernels_stand_beside_the_copy_rate() {
    let report = on_devices(KERNEL_PERF, "-b 64K --rounds 1", &[]);
    assert!(report["copy"]["rate"].as_f64().is_some_and(|rate| rate > 0.0), "{report}");
    for floor in ["launch", "launch_and_waits", "launch_waited", "launch_and_waits_waited"] {
        assert!(report["launches"][floor].as_f64().is_some_and(|us| us > 0.0), "{floor}: {report}");
    }
    let rows = report["kernels"].as_array().expect("rows");
    // A copy; on six integer types a scaling, eight operations and two longer sums; on six floating-point types three fewer.
    assert_eq!(rows.len(), 1 + 6 * 11 + 6 * 8);
    for row in rows {
        let (sources, bytes) = (row["sources"].as_u64().expect("a number"), row["bytes"].as_u64().expect("a number"));
        assert_eq!(row["traffic"], (sources + 1) * bytes, "{row}");
        assert!(row["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0), "{row}");
    }
}

#[test]
fn primitives_are_measured_and_keep_their_promise() {
    let small = "-n 10 --bytes 64K --matrix 64";
    let alone = on_devices(PRIMITIVES_PERF, small, &[]);
    let writes: Vec<&Value> =
        alone["costs"]["batches"].as_array().expect("rows").iter().map(|b| &b["writes"]).collect();
    assert_eq!(writes, [1, 2, 8]);
    assert!(alone["costs"]["echo"].as_f64().is_some_and(|us| us > 0.0), "{alone}");
    let attribute = |number: i32| {
        let all = alone["attributes"].as_array().expect("a list");
        all.iter().find(|a| a["number"] == number).map(|a| a["value"].clone())
    };
    assert_eq!(attribute(122), Some(Value::from(1)), "the emulator has stream memory operations");
    for (how, by, busy) in [("2", "IPC", false), ("3", "IPC", true), ("3 --threads", "one process", true)] {
        let report = on_devices(PRIMITIVES_PERF, &format!("{small} --ranks {how}"), &[]);
        assert!(report["hops"]["idle"].as_f64().is_some_and(|us| us > 0.0), "{how}: {report}");
        assert_eq!(report["hops"]["busy"].as_f64().is_some_and(|us| us > 0.0), busy, "{how}: {report}");
        let promise = &report["promise"];
        assert_eq!((&promise["by"], &promise["wrong"]), (&Value::from(by), &Value::from(0)), "{how}: {report}");
        assert_eq!(promise["refused"], Value::Null, "{how}: {report}");
    }
    // What cannot be shared is a finding, not an end.
    let refused = on_devices(PRIMITIVES_PERF, &format!("{small} --ranks 2"), &[("MAYPOLE_EMULATOR_IPC", "0")]);
    assert!(refused["promise"]["refused"].as_str().is_some_and(|why| !why.is_empty()), "{refused}");
    // And where the promise is not kept, that is seen: no wait holds a stream back.
    let broken = "-n 300 --bytes 64K --ranks 2";
    let output = say_on_devices(PRIMITIVES_PERF, broken, &[("MAYPOLE_EMULATOR_DROP", "wait:all")]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && said.contains(" bytes WRONG in 100 rounds"), "{said}");
}

#[test]
fn overlap_is_measured_and_its_result_checked() {
    for how in ["--ranks 2", "--ranks 2 --threads --registered"] {
        let arguments = format!("{how} --bytes 64K --matrix 64 --milliseconds 2 --rounds 1");
        let report = on_devices(OVERLAP_PERF, &arguments, &[]);
        assert_eq!(report["right"], true, "{how}: {report}");
        for share in ["hidden", "allowed"] {
            assert!(report[share].as_f64().is_some_and(|x| (0.0..=1.0).contains(&x)), "{how}: {report}");
        }
        // Two ranks on the one device: each reads and writes its 64 KiB.
        let loops = report["collectives"].as_u64().expect("a number");
        assert_eq!(report["collective_traffic"], loops * 4 * (64 << 10), "{how}");
    }
}

#[test]
fn without_a_driver_programs_say_so() {
    // The child does not get the emulator; this machine may have a real driver, though.
    let text = |output: std::process::Output| {
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let page = text(run(MAYPOLE, "info", &[]));
    if page.lines().any(|line| line.contains(" device 0: ")) {
        println!("skipped: without_a_driver_programs_say_so: there is a device here");
        return;
    }
    assert!(page.lines().any(|line| line.starts_with("cuda ") && line.contains("CUDA driver")), "{page}");
    for (program, arguments) in [
        (MAYPOLE, "perf all_reduce --device cuda --ranks 2 -b 8 -e 8"),
        (KERNEL_PERF, ""),
        (PRIMITIVES_PERF, ""),
        (OVERLAP_PERF, "--ranks 2 --threads"),
        (NCCL_PERF, "all_reduce --ranks 1"),
    ] {
        let output = run(program, arguments, &[]);
        let code = output.status.code();
        let said = text(output);
        assert!(code == Some(1) && said.contains("CUDA driver"), "{program} {arguments}: {code:?}: {said}");
    }
}

#[test]
fn a_page_of_information_lists_devices() {
    let output = say_on_devices(MAYPOLE, "info", &[("MAYPOLE_EMULATOR_DEVICES", "2")]);
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    let devices: Vec<&str> = page.lines().filter(|line| line.contains(", capability ")).collect();
    assert_eq!(devices.len(), 2, "{page}");
    assert!(devices[0].contains("capability") && devices[0].contains("reaches the memory of 1"), "{page}");
}

#[test]
fn nccl_is_not_needed_and_its_absence_is_named() {
    let output = say_on_devices(NCCL_PERF, "all_reduce --ranks 2 --library /no/such/libnccl.so.2 -b 8 -e 8", &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("/no/such/libnccl.so.2"), "{said}");
    let output = say_on_devices(NCCL_PERF, "scan --ranks 2", &[]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    let output = say_on_devices(NCCL_PERF, "all_reduce -o xor -d i32 --ranks 2", &[]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn nccl_is_called_as_its_header_says() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let library = directory.join(format!("nccl-{}.so", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/nccl_of_one_rank.c");
    let compiled = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", source, "-ldl", "-o"])
        .arg(&library)
        .status();
    match compiled {
        Err(error) => return println!("skipped: nccl_is_called_as_its_header_says: no C compiler: {error}"),
        Ok(status) => assert!(status.success(), "{source} does not compile"),
    }
    let mut reduces = 0;
    for collective in [
        "all_reduce",
        "reduce",
        "broadcast",
        "all_gather",
        "reduce_scatter",
        "all_to_all",
        "gather",
        "scatter",
        "send_recv",
    ] {
        let op = if collective.contains("reduce") { "-o avg" } else { "" };
        reduces += usize::from(!op.is_empty());
        let arguments = format!(
            "{collective} --library {} --ranks 1 {op} -d f64 -b 16 -e 16000 -f 1000 -n 2 -w 1",
            library.display()
        );
        let report = on_devices(NCCL_PERF, &arguments, &[]);
        assert_right(&report, &arguments);
        assert_eq!(report["library"], "nccl 2.30.1");
    }
    assert_eq!(reduces, 3);
    let overlap = format!("--ranks 1 --nccl {} --bytes 4K --matrix 64 --milliseconds 1 --rounds 1", library.display());
    assert_eq!(on_devices(OVERLAP_PERF, &overlap, &[])["right"], true);

    let arguments = format!("all_reduce --library {} --ranks 1 -b 1000 -e 1000 -n 1", library.display());
    let output = say_on_devices(NCCL_PERF, &arguments, &[("NCCL_STAND_IN_WRONG", "1")]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    std::fs::remove_file(&library).expect("the library is ours");
}

#[test]
fn a_summary_is_made_of_real_reports() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("summary-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for reports");
    let perf = "perf all_reduce --device cuda --ranks 2 -b 8 -e 64K -f 8192 -n 2 -w 1";
    let small = "-n 10 --bytes 4K --matrix 64";
    let reports = [
        on_devices(KERNEL_PERF, "-b 64K --rounds 1 -d f32 -o sum", &[]),
        on_devices(PRIMITIVES_PERF, small, &[]),
        on_devices(PRIMITIVES_PERF, &format!("{small} --ranks 2"), &[]),
        on_devices(MAYPOLE, perf, &[]),
        on_devices(OVERLAP_PERF, "--ranks 1 --bytes 4K --matrix 64 --milliseconds 1 --rounds 1", &[]),
    ];
    let line = |report: Value| serde_json::json!({ "of": "a step", "report": report }).to_string() + "\n";
    std::fs::write(directory.join("run.jsonl"), reports.map(line).concat()).expect("written");
    let output = run(GPU_SUMMARY, &format!("{0}/run.jsonl -J {0}/all.out", directory.display()), &[]);
    let (text, json) = (String::from_utf8_lossy(&output.stdout), std::fs::read(directory.join("all.out")));
    let json: Value = serde_json::from_slice(&json.expect("the file was written")).expect("it is JSON");
    std::fs::remove_dir_all(&directory).expect("the directory is ours");
    assert!(output.status.success() && !text.contains("NOT READ"), "{text}");
    for part in
        ["== primitives", "== floors", "== targets: none on the emulator", "== small", "== collectives", "== overlap"]
    {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    let lines = json["collectives"].as_array().expect("lines");
    assert_eq!(lines.len(), 4, "two sizes, two forms");
    let reckoned = |line: &&Value| line["size"] == 8 && line["reckoned"][0].as_f64().is_some_and(|us| us > 0.0);
    assert_eq!(lines.iter().filter(reckoned).count(), 2, "{json}");
    assert!(lines.iter().all(|line| line["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0)), "{json}");
    assert_eq!(json["overlap"].as_array().map(Vec::len), Some(1));
}
