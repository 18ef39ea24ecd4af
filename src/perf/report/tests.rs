use clap::Parser;

use super::*;
use crate::perf::flags::Flags;
use crate::perf::operation::Operation;

#[derive(Parser)]
#[command(version)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

fn report() -> (Plan, Report) {
    let operation: Operation = "all_reduce".parse().unwrap();
    let flags = Line::parse_from(["all_reduce_perf", "-b", "1M", "-e", "1M", "-n", "20"]).flags;
    let plan = Plan::new(operation, flags).unwrap();
    let ranks =
        (0..4).map(|rank| RankInfo { rank, host: "pole".into(), pid: 100 + rank as u32, device: None }).collect();
    let report = Report::new(&plan, "maypole".into(), ranks, None);
    (plan, report)
}

fn row(wrong: Option<u64>) -> ResultRow {
    let dtype = DataType::F32;
    let row = Row {
        operation: "all_reduce".parse().unwrap(),
        dtype,
        op: Some(NamedOp::Sum),
        root: 0,
        count: 1 << 18,
        rank: 0,
        ranks: 4,
    };
    let measured = |mean, wrong| Measured { mean, median: mean - 1.0, p99: mean + 1.0, stream: None, wrong };
    ResultRow {
        size: 1 << 20,
        count: 1 << 18,
        dtype: dtype.name(),
        redop: "sum",
        root: -1,
        out_of_place: Figures::new(&row, 1 << 20, measured(500.0, wrong), None),
        in_place: Some(Figures::new(&row, 1 << 20, measured(1000.0, wrong), None)),
    }
}

#[test]
fn json_has_the_promised_keys() {
    let (_, mut report) = report();
    report.push(row(Some(0)));
    let json = serde_json::to_value(&report).unwrap();
    let result = &json["results"][0];
    assert_eq!(result["size"], 1 << 20);
    assert_eq!(result["count"], 1 << 18);
    assert_eq!((result["type"].as_str(), result["redop"].as_str()), (Some("f32"), Some("sum")));
    assert_eq!(result["root"], -1);
    for (form, time, bandwidth) in [("out_of_place", 500.0, 2.097152), ("in_place", 1000.0, 1.048576)] {
        let figures = &result[form];
        assert_eq!(figures["time"], time);
        assert!((figures["alg_bw"].as_f64().unwrap() - bandwidth).abs() < 1e-9);
        assert!((figures["bus_bw"].as_f64().unwrap() - 1.5 * bandwidth).abs() < 1e-9);
        assert_eq!(figures["nwrong"], 0);
        assert_eq!(figures["time_median"], time - 1.0);
        assert_eq!(figures["time_p99"], time + 1.0);
    }
    assert_eq!(json["ranks"][3]["pid"], 103);
    assert_eq!(json["config"]["ranks"], 4);
    assert_eq!(json["config"]["iters"], 20);
    assert_eq!(json["out_of_bounds"]["okay"], true);
    assert!((json["average_bus_bandwidth"].as_f64().unwrap() - 1.5 * 1.572864).abs() < 1e-9);
}

#[test]
fn one_wrong_element_fails_the_run() {
    let (plan, mut report) = report();
    report.push(row(Some(0)));
    assert!(report.out_of_bounds.okay && report.footer(&plan).contains("0 OK"));
    report.push(row(Some(1)));
    report.push(row(Some(0)));
    assert_eq!(report.out_of_bounds.count, 2);
    assert!(!report.out_of_bounds.okay && report.footer(&plan).contains("2 FAILED"), "{}", report.footer(&plan));
}

#[test]
fn the_table_lines_up() {
    let (plan, mut report) = report();
    report.push(row(Some(0)));
    let header = report.header(&plan);
    let result = &report.results[0];
    let line = parameters(result.size, result.count, DataType::F32, Some(NamedOp::Sum), -1)
        + &figures(Some(&result.out_of_place))
        + &figures(result.in_place.as_ref());
    let names = header.lines().rev().nth(1).unwrap();
    assert_eq!(names.len(), line.len(), "\n{names}\n{line}");
    // Numbers end where their titles end.
    for title in ["size", "count", "type", "redop", "root", "time", "algbw", "busbw", "#wrong"] {
        let end = names.find(title).unwrap() + title.len();
        assert!(
            line.as_bytes()[end - 1] != b' ' && line.as_bytes().get(end).is_none_or(|&b| b == b' '),
            "{title}\n{line}"
        );
    }
    let columns: Vec<_> = line.split_whitespace().collect();
    assert_eq!(
        columns,
        "1048576 262144 f32 sum -1 500.00 2.097 3.146 0 1000.0 1.049 1.573 0".split(' ').collect::<Vec<_>>()
    );
    assert_eq!(figures(None).len(), figures(result.in_place.as_ref()).len());
    assert!(figures(Some(&row(None).out_of_place)).ends_with("N/A"));
    assert!(header.contains("Rank   3  Pid     103  on pole"), "{header}");
}

#[test]
fn a_slow_run_fails_where_a_bandwidth_was_asked_for() {
    let (mut plan, mut report) = report();
    report.push(row(Some(0)));
    assert_eq!(report.is_fast_enough(&plan), None);
    for (least, fast, word) in [(2.5, true, " OK\n"), (2.7, false, " FAILED\n")] {
        // The average is 2.359.
        plan.environment.least_bandwidth = Some(least);
        assert_eq!(report.is_fast_enough(&plan), Some(fast));
        assert!(report.footer(&plan).lines().nth(1).unwrap().ends_with(word.trim_end()), "{}", report.footer(&plan));
    }
}

#[test]
fn timestamps_are_dates() {
    for (seconds, date) in [
        (0, "1970-01-01 00:00:00"),
        (951_782_399, "2000-02-28 23:59:59"),
        (951_782_400, "2000-02-29 00:00:00"),
        (951_868_800, "2000-03-01 00:00:00"),
        (1_795_868_225, "2026-11-28 12:17:05"),
        (4_107_542_400, "2100-03-01 00:00:00"),
    ] {
        assert_eq!(timestamp(seconds).trim(), date);
    }
}
