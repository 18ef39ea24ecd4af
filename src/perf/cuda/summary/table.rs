//! The summary as text: what a person reads first. What was to be reached, and whether it was, stands at the end, where a
//! terminal shows it.

use std::fmt::Write as _;

use super::{Line, Summary, targets};
use crate::perf::cuda::kernels::KernelRow;
use crate::perf::cuda::overlap::OverlapReport;

/// The whole table.
pub fn table(summary: &Summary) -> String {
    let mut text = String::new();
    run(summary, &mut text);
    steps(summary, &mut text);
    primitives(summary, &mut text);
    kernels(summary, &mut text);
    small(summary, &mut text);
    collectives(summary, &mut text);
    overlap(summary, &mut text);
    for file in &summary.unread {
        let _ = writeln!(text, "\nNOT READ: {file}");
    }
    targets::targets(summary, &mut text);
    text
}

fn run(summary: &Summary, text: &mut String) {
    let _ = writeln!(text, "== run");
    for (name, value) in &summary.run {
        let _ = writeln!(text, "{name:<18} {value}");
    }
    if let Some(kernels) = &summary.kernels {
        let d = &kernels.device;
        let _ = writeln!(
            text,
            "{:<18} {} (capability {}, {} multiprocessors, {:.1} GiB), driver {}, CUDA {}",
            "device",
            d.name,
            d.capability,
            d.multiprocessors,
            d.memory as f64 / (1u64 << 30) as f64,
            if d.driver.is_empty() { "?" } else { &d.driver },
            d.cuda
        );
    }
}

fn steps(summary: &Summary, text: &mut String) {
    let _ = writeln!(text, "\n== steps");
    for step in &summary.steps {
        let _ = writeln!(text, "{:<44} {:>4} s  {}", step.name, step.seconds, step.outcome);
    }
}

/// What a reading of manuals lets expect, for a word to another rank's stream.
fn hop_expected(mode: &str) -> &'static str {
    match mode {
        "processes" => "20 to 200; 1000 and more: streams that wait keep the device, so that processes need MPS",
        _ => "below 5",
    }
}

fn primitives(summary: &Summary, text: &mut String) {
    if summary.primitives.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n== primitives (in brackets what was expected of a large GPU)");
    for report in &summary.primitives {
        let mode = report.device.mode(report.ranks_are == "threads");
        let who = if report.ranks == 1 { String::new() } else { format!("{} ranks, {mode}: ", report.ranks) };
        if let Some(costs) = &report.costs {
            for batch in &costs.batches {
                let expected = if batch.writes == 8 { "below 10" } else { "1.5 to 2.5" };
                let _ = writeln!(
                    text,
                    "batch of {} writes: {:.2} us to queue ({expected}), {:.2} us each in all",
                    batch.writes, batch.queued, batch.done
                );
            }
            let (echo, p90) = (costs.echo, costs.echo_p90);
            let _ = writeln!(text, "host to stream to host: {echo:.2} us (4 to 8), nine of ten below {p90:.2} us");
        }
        if let Some(hops) = &report.hops {
            let _ = writeln!(text, "{who}a word to another rank's stream {:.1} us ({})", hops.idle, hop_expected(mode));
            if let Some(busy) = hops.busy {
                let _ = writeln!(text, "{who}the same beside matrix products {busy:.1} us (slices: 1000 to 4000)");
            }
        }
        if let Some(promise) = &report.promise {
            let _ = writeln!(text, "{who}{promise}");
        }
    }
}

fn kernels(summary: &Summary, text: &mut String) {
    let Some(report) = &summary.kernels else {
        let _ = writeln!(text, "\n== floors: not measured, so nothing below has a ratio");
        return;
    };
    let (copy, l) = (&report.copy, &report.launches);
    let _ = writeln!(text, "\n== floors");
    let _ = writeln!(
        text,
        "copy rate {:.1} GB/s, read and written ({} bytes device to device by the driver, {:.1} us)",
        copy.rate, copy.bytes, copy.time
    );
    let _ = writeln!(
        text,
        "empty launch {:.2} us queued, {:.2} us waited for; with two stream waits {:.2} us queued, {:.2} us waited for",
        l.launch, l.launch_waited, l.launch_and_waits, l.launch_and_waits_waited
    );
    let _ = writeln!(text, "\n== kernels: share of the copy rate");
    let mut line = String::new();
    let mut previous = "";
    for row in &report.kernels {
        if row.dtype != previous {
            flush(text, &mut line);
            let _ = write!(line, "{:<7}", row.dtype);
            previous = &row.dtype;
        }
        let _ = write!(line, "  {} {:.1}%", kernel(row), row.ratio * 100.0);
    }
    flush(text, &mut line);
}

/// `sum`, `sum of 4`, `copy`.
pub(super) fn kernel(row: &KernelRow) -> String {
    match (row.kernel.as_str(), row.sources) {
        ("reduce", 2) => row.op.clone(),
        ("reduce", n) => format!("{} of {n}", row.op),
        (kernel, _) => kernel.to_string(),
    }
}

fn flush(text: &mut String, line: &mut String) {
    if !line.is_empty() {
        let _ = writeln!(text, "{}", std::mem::take(line));
    }
}

/// The smallest rows, beside an empty launch between two waits.
fn small(summary: &Summary, text: &mut String) {
    let rows: Vec<&Line> = summary.collectives.iter().filter(|l| (1..=64).contains(&l.size)).collect();
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n== small: over an empty launch and two stream waits");
    for line in rows {
        let over = over_floor(summary, line);
        let over = over.map_or("-".to_string(), |(queued, waited)| format!("{queued:+.2} and {waited:+.2} us"));
        let _ = writeln!(
            text,
            "{} {:>9.2} us queued {:>9.2} us waited for, over the floor {over}{}{}",
            identity(line),
            line.time,
            line.waited,
            reckoned(line),
            nccl(line)
        );
    }
}

/// A call's microseconds less an empty launch and two waits: queued, and waited for.
pub(super) fn over_floor(summary: &Summary, line: &Line) -> Option<(f64, f64)> {
    let floors = summary.kernels.as_ref()?.launches;
    Some((line.time - floors.launch_and_waits, line.waited - floors.launch_and_waits_waited))
}

/// Who, how and what a row is, in columns.
pub(super) fn identity(line: &Line) -> String {
    format!(
        "{:<12} {:>2} ranks ({:<21}) {:<14} {:<12} {:<8} {:>11} B",
        line.library,
        line.ranks,
        how(line),
        line.collective,
        line.form,
        line.kind,
        line.size
    )
}

/// `threads, registered, WINDOW=4M`.
fn how(line: &Line) -> String {
    let parts = [&line.mode[..], if line.registered { "registered" } else { "" }, &line.settings];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

fn reckoned(line: &Line) -> String {
    line.reckoned.map_or(String::new(), |[from, to]| format!("  reckoned {from:.1} to {to:.1} us"))
}

fn nccl(line: &Line) -> String {
    line.against_nccl.map_or(String::new(), |ratio| {
        format!("  {ratio:.2} x NCCL's speed{}", if ratio >= 1.0 { "" } else { " (BEHIND)" })
    })
}

fn collectives(summary: &Summary, text: &mut String) {
    let rows: Vec<&Line> = summary.collectives.iter().filter(|l| l.size > 64 && l.floor_bytes > 0).collect();
    let wrong: u64 = summary.collectives.iter().filter_map(|l| l.wrong).sum();
    let unchecked = summary.collectives.iter().filter(|l| l.wrong.is_none()).count();
    if !summary.collectives.is_empty() {
        let _ = writeln!(
            text,
            "\n== collectives: {} rows, {wrong} wrong elements, {unchecked} unchecked; floor: bytes read and written at least, \
             at the copy rate",
            summary.collectives.len()
        );
    }
    for line in rows {
        let floor = line.floor.map_or("-".to_string(), |floor| format!("{floor:.1}"));
        let percent = |share: f64| format!("{:.1}%", share * 100.0);
        let ratio = line.ratio.map_or("-".to_string(), percent);
        let possible = line.possible().map_or(String::new(), |share| format!(" of {} possible", percent(share)));
        let wrong = line.wrong.filter(|&n| n > 0).map_or(String::new(), |n| format!("  {n} WRONG"));
        let _ = writeln!(
            text,
            "{} {:>10.1} us  floor {floor:>9} us of {:>12} B  {ratio:>6}{possible}{}{}{wrong}",
            identity(line),
            line.time,
            line.floor_bytes,
            reckoned(line),
            nccl(line)
        );
    }
}

fn overlap(summary: &Summary, text: &mut String) {
    if summary.overlap.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n== overlap: all-reduces beside matrix products");
    for o in &summary.overlap {
        let _ = writeln!(
            text,
            "{}: hidden {:.1}% (memory allows {:.1}%); products slowed {:.3} times (explained {:.3}); {}",
            bout(o),
            o.hidden * 100.0,
            o.allowed * 100.0,
            o.slowdown,
            o.explained,
            if o.right { "right" } else { "WRONG" }
        );
    }
}

pub(super) fn mode(o: &OverlapReport) -> &'static str {
    o.device.mode(o.ranks_are == "threads")
}

pub(super) fn bout(o: &OverlapReport) -> String {
    let registered = if o.registered { ", registered" } else { "" };
    let blocks = match o.blocks {
        0 => String::new(),
        blocks => format!(", blocks {blocks}"),
    };
    format!("{:<12} {:>2} ranks ({}{registered}{blocks}), {} B", o.library, o.ranks, mode(o), o.bytes)
}
