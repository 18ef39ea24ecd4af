use serde_json::json;

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

/// A directory with these files, read as a run; the directory is gone again.
fn read(name: &str, files: &[(&str, String)]) -> Summary {
    let directory = std::env::temp_dir().join(format!("maypole-summary-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for (name, text) in files {
        std::fs::write(directory.join(name), text).unwrap();
    }
    let summary = Summary::read(&directory);
    std::fs::remove_dir_all(&directory).unwrap();
    summary
}

#[test]
fn a_run_is_held_against_its_floors() {
    let files = [
        ("run.tsv", "revision\tabc\n".to_string()),
        ("steps.tsv", "kernels\tok\t12\nmatrix\tFAILED (status 1)\t3\n".to_string()),
        ("kernels.json", serde_json::to_string(&kernels()).unwrap()),
        ("all_reduce.json", perf("maypole", 125.0).to_string()),
        ("nccl.json", perf("nccl 2.30.1", 100.0).to_string()),
        ("cut.json", "{".to_string()),
    ];
    let summary = read("whole", &files);
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
    assert_eq!((large("nccl").against_nccl, ours.ranks_are.as_str()), (None, "processes, registered"));

    let text = table::table(&summary);
    for wanted in [
        "FAILED (status 1)",
        "MISSED  slowest reduction: bf16 sum, 89.0% of the copy rate, of 90%",
        "67108864 B: 80.0% of the floor's speed, of 60.0% (possible: 80.0%)",
        "80.0% of 80.0% possible  0.80 x NCCL's speed (BEHIND)",
        "over the floor +8.00 and +7.00 us  1.00 x NCCL's speed",
        "8 B: +7.00 us over the floor, of 10",
        "MISSED  ahead of NCCL in 1 of 2 rows",
        "NOT READ: cut.json",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
    }
}

#[test]
fn a_run_without_floors_or_anything_else_is_a_table_too() {
    let summary = read("perf", &[("all_reduce.json", perf("maypole", 125.0).to_string())]);
    assert_eq!(summary.collectives[1].ratio, None);
    assert!(table::table(&summary).contains("not measured"));
    assert!(read("empty", &[]).collectives.is_empty());
}

#[test]
fn the_emulator_meets_no_target_and_misses_none() {
    let mut report = kernels();
    report.device.name = "Maypole emulated device".into();
    let files = [
        ("kernels.json", serde_json::to_string(&report).unwrap()),
        ("all_reduce.json", perf("maypole", 125.0).to_string()),
    ];
    let text = table::table(&read("emulated", &files));
    assert!(text.contains("none on the emulator") && !text.contains("MISSED"), "{text}");
}

/// The only line of 64 MiB in `report`.
fn large(report: &Value) -> Line {
    let files = [("kernels.json", serde_json::to_string(&kernels()).unwrap()), ("perf.json", report.to_string())];
    let all = read("large", &files).collectives;
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
    tried["config"]["device_window"] = json!(4 << 20);
    let files = [("kernels.json", serde_json::to_string(&kernels()).unwrap()), ("tried.json", tried.to_string())];
    let summary = read("tried", &files);
    assert_eq!(summary.unread, [""; 0]);
    let line = &summary.collectives[1];
    assert_eq!((line.ranks_are.as_str(), line.target), ("processes, registered, places of 4096 KiB", None));
    assert!(line.ratio.is_some_and(|ratio| ratio < 0.001));
}
