use serde_json::{Value, json};

use super::*;
use crate::perf::cuda::DeviceInfo;
use crate::perf::cuda::floors::{CopyRate, LaunchFloors};
use crate::perf::cuda::kernels::KernelRow;

/// A perf report of two ranks on one device: 8 B and 64 MiB.
fn perf(library: &str, microseconds: f64) -> Value {
    let figures = |time: f64, bytes: usize| {
        json!({ "time": time, "alg_bw": 1.0, "bus_bw": 1.0, "nwrong": 0, "time_median": time + 2.0, "time_p99": time,
                "time_stream": time, "traffic": { "read": bytes, "written": bytes } })
    };
    let row = |size: usize, time: f64| {
        json!({ "size": size, "count": size / 4, "type": "f32", "redop": "sum", "root": -1,
                "out_of_place": figures(time, 2 * size), "in_place": null })
    };
    let rank = |rank: usize| json!({ "rank": rank, "host": "pole", "pid": 10 + rank, "device": "aa" });
    json!({ "library": library, "collective": "all_reduce", "ranks": [rank(0), rank(1)],
            "config": { "registered": true }, "results": [row(8, 12.0), row(64 << 20, microseconds)] })
}

fn kernels() -> KernelReport {
    KernelReport {
        program: "kernel_perf".into(),
        version: "0".into(),
        start_time: 0,
        device: DeviceInfo { name: "A device".into(), ..DeviceInfo::default() },
        // 2^28 bytes, as a 64 MiB all-reduce of two ranks needs, in 100 us.
        copy: CopyRate { bytes: 1 << 27, time: 100.0, rate: (1u64 << 28) as f64 / 1e5 },
        launches: LaunchFloors { launch: 2.0, launch_and_waits: 4.0, launch_waited: 5.0, launch_and_waits_waited: 7.0 },
        kernels: vec![KernelRow {
            kernel: "reduce".into(),
            dtype: "bf16".into(),
            op: "sum".into(),
            sources: 2,
            bytes: 1 << 28,
            traffic: 3 << 28,
            time: 1.0,
            rate: 1.0,
            ratio: 0.89,
        }],
    }
}

/// A report as a line of the run's file.
fn line(report: &Value) -> String {
    json!({ "of": "a step", "report": report }).to_string()
}

fn kernels_line(report: &KernelReport) -> String {
    line(&serde_json::to_value(report).unwrap())
}

/// A file with these lines, read as a run; the file is gone again.
fn read(name: &str, lines: &[String]) -> Summary {
    let path = std::env::temp_dir().join(format!("maypole-summary-{}-{name}", std::process::id()));
    std::fs::write(&path, lines.join("\n")).unwrap();
    let summary = Summary::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    summary
}

#[test]
fn a_run_is_held_against_its_floors() {
    let nccl = |threads: bool, time: f64| {
        let mut report = perf("nccl 2.30.1", time);
        report["config"]["registered"] = json!(false);
        if threads {
            report["ranks"][1]["pid"] = report["ranks"][0]["pid"].clone();
        }
        line(&report)
    };
    let lines = [
        json!({ "note": "revision", "value": "abc" }).to_string(),
        json!({ "step": "kernels", "outcome": "ok", "seconds": 12 }).to_string(),
        json!({ "step": "matrix", "outcome": "FAILED (status 1)", "seconds": 3 }).to_string(),
        kernels_line(&kernels()),
        line(&perf("maypole", 125.0)),
        nccl(false, 100.0),
        // Of threads: no measure for processes.
        nccl(true, 1.0),
        line(&primitives(1)),
        line(&primitives(2)),
        "{\"of\": \"what was cut off\", \"rep".to_string(),
    ];
    let summary = read("whole", &lines);
    assert_eq!(summary.run["revision"], "abc");
    assert_eq!(summary.steps.len(), 2);
    assert_eq!(summary.unread.len(), 1);
    let large = |library| {
        let all = summary.collectives.iter();
        all.clone().find(|l| l.size == 64 << 20 && l.library.starts_with(library)).unwrap()
    };
    let ours = large("maypole");
    assert_eq!((ours.floor_bytes, ours.ranks_per_device), (1 << 28, 2));
    assert!((ours.floor.unwrap() - 100.0).abs() < 1e-6 && (ours.ratio.unwrap() - 0.8).abs() < 1e-6);
    // 5 bytes for each one of the buffer, of which the floor has 4; three quarters of that.
    assert!((ours.possible().unwrap() - 0.8).abs() < 1e-9 && (ours.target.unwrap() - 0.6).abs() < 1e-9);
    assert_eq!(ours.against_nccl, Some(0.8));
    assert_eq!((large("nccl").against_nccl, ours.mode.as_str(), ours.registered), (None, "processes", true));
    // 125 us without waits, 5 to 25% more, and 2 to 4 hops of 50 us: what is lent goes in one round.
    let [from, to] = ours.reckoned.unwrap();
    assert!((from - 125.0 * 1.05 - 100.04).abs() < 1e-6 && (to - 125.0 * 1.25 - 200.08).abs() < 1e-6);

    let text = table::table(&summary);
    for wanted in [
        "FAILED (status 1)",
        "MISSED  slowest reduction: bf16 sum, 89.0% of the copy rate, of 90%",
        "67108864 B: 80.0% of the floor's speed, of 60.0% (possible: 80.0%)",
        "80.0% of 80.0% possible  reckoned 231.3 to 356.3 us  0.80 x NCCL's speed (BEHIND)",
        "over the floor +8.00 and +7.00 us  reckoned 100.0 to 300.1 us  1.00 x NCCL's speed",
        "MISSED  ahead of NCCL in 1 of 2 rows",
        "batch of 1 writes: 2.00 us to queue (1.5 to 2.5), 3.00 us each in all",
        "2 ranks, processes: a word to another rank's stream 50.0 us (20 to 200",
        "2 ranks, processes: another rank's memory (IPC): 7 bytes WRONG in 9 rounds",
        "NOT READ: line 10: ",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
    }
}

fn primitives(ranks: usize) -> Value {
    let mut report = json!({ "program": "primitives_perf", "version": "0", "start_time": 0,
        "device": DeviceInfo::default(), "ranks": ranks, "ranks_are": "processes", "attributes": [],
        "costs": null, "hops": null, "promise": null });
    if ranks == 1 {
        let batch = json!({ "writes": 1, "queued": 2.0, "done": 3.0 });
        report["costs"] = json!({ "batches": [batch], "echo": 5.0, "echo_p90": 6.0 });
    } else {
        report["hops"] = json!({ "idle": 50.02, "busy": null });
        report["promise"] = json!({ "by": "IPC", "bytes": 64, "rounds": 9, "wrong": 7, "refused": null });
    }
    report
}

/// What is small has a target among threads and under MPS, each its own; processes that take turns on the device have none.
#[test]
fn targets_are_of_a_mode() {
    let small = |threads: bool, mps: bool| {
        let mut report = perf("maypole", 125.0);
        report["device"] = serde_json::to_value(DeviceInfo { mps, ..DeviceInfo::default() }).unwrap();
        if threads {
            report["ranks"][1]["pid"] = report["ranks"][0]["pid"].clone();
        }
        let text = table::table(&read("mode", &[kernels_line(&kernels()), line(&report)]));
        let lines: Vec<String> =
            text.lines().filter(|l| l.contains("us over the floor, of")).map(String::from).collect();
        lines.join("\n")
    };
    assert!(small(true, false).contains("(threads, registered") && small(true, false).ends_with("of 20"));
    assert!(small(false, true).contains("(MPS, registered") && small(false, true).ends_with("of 10"));
    assert_eq!(small(false, false), "");
}

#[test]
fn a_run_without_floors_or_anything_else_is_a_table_too() {
    let summary = read("perf", &[line(&perf("maypole", 125.0))]);
    assert_eq!(summary.collectives[1].ratio, None);
    assert!(table::table(&summary).contains("not measured"));
    assert!(read("empty", &[]).collectives.is_empty());
}

#[test]
fn the_emulator_meets_no_target_and_misses_none() {
    let mut report = kernels();
    report.device.name = "Maypole emulated device".into();
    let text = table::table(&read("emulated", &[kernels_line(&report), line(&perf("maypole", 125.0))]));
    assert!(text.contains("none on the emulator") && !text.contains("MISSED"), "{text}");
}

/// The only line of 64 MiB in `report`.
fn large(report: &Value) -> Line {
    let all = read("large", &[kernels_line(&kernels()), line(report)]).collectives;
    all.into_iter().find(|line| line.size >= 1 << 20).unwrap()
}

#[test]
fn targets_are_for_two_ranks_on_one_device() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut report = perf("maypole", 125.0);
        // All of these read and write the larger buffer on both ranks.
        report["results"][1]["out_of_place"]["traffic"] = json!({ "read": 128 << 20, "written": 128 << 20 });
        change(&mut report);
        let line = large(&report);
        (line.possible().map(|share| (share * 100.0).round()), line.target.map(|share| (share * 1000.0).round()))
    };
    let named = |name: &'static str| move |report: &mut Value| report["collective"] = json!(name);
    assert_eq!(with(&named("all_reduce")), (Some(80.0), Some(600.0)));
    assert_eq!(with(&named("broadcast")), (Some(100.0), Some(900.0)));
    assert_eq!(with(&named("reduce_scatter")), (Some(100.0), None), "nothing is laid down");
    assert_eq!(with(&named("gather")), (None, None));
    // Plain memory is copied once more: shares that no code can exceed, and no targets.
    let plain = |name: &'static str| {
        move |report: &mut Value| {
            (report["collective"], report["config"]["registered"]) = (json!(name), json!(false));
        }
    };
    assert_eq!(with(&plain("all_reduce")), (Some(50.0), None));
    assert_eq!(with(&plain("all_to_all")), (Some(67.0), None));
    // Threads read each other's where it lies, too.
    let among_threads = |report: &mut Value| {
        plain("all_to_all")(report);
        report["ranks"][1]["pid"] = report["ranks"][0]["pid"].clone();
    };
    assert_eq!(with(&among_threads), (Some(100.0), Some(900.0)));
    assert_eq!(with(&|report| report["ranks"][1]["device"] = json!("bb")), (None, None));
    assert_eq!(with(&|report| report["results"][1]["size"] = json!(32 << 20)), (None, None));
}

/// What was tried with other settings stands in the table, and misses no target.
#[test]
fn targets_are_for_the_defaults() {
    let mut tried = perf("maypole", 1e6);
    tried["config"]["settings"] = json!({ "MAYPOLE_DEVICE_WINDOW": "4M", "MAYPOLE_ALGORITHM": "ring" });
    let summary = read("tried", &[kernels_line(&kernels()), line(&tried)]);
    assert_eq!(summary.unread, [""; 0]);
    let row = &summary.collectives[1];
    assert_eq!((row.settings.as_str(), row.target, row.reckoned), ("ALGORITHM=ring WINDOW=4M", None, None));
    assert!(row.ratio.is_some_and(|ratio| ratio < 0.001));
    assert!(table::table(&summary).contains("(processes, registered, ALGORITHM=ring WINDOW=4M)"));
}
