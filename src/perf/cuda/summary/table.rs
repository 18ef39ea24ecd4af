//! The summary as text: what a person reads first.

use std::fmt::Write as _;

use super::{HIDDEN, KERNELS, Line, SMALL, Summary};

/// The whole table.
pub fn table(summary: &Summary) -> String {
    let mut text = String::new();
    run(summary, &mut text);
    steps(summary, &mut text);
    kernels(summary, &mut text);
    small(summary, &mut text);
    collectives(summary, &mut text);
    overlap(summary, &mut text);
    for file in &summary.unread {
        let _ = writeln!(text, "\nNOT READ: {file}");
    }
    text
}

/// Whether a target was met, in words.
fn met(value: f64, target: f64) -> &'static str {
    if value >= target { "met" } else { "MISSED" }
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
    let _ = writeln!(text, "\n== kernels: share of the copy rate; target {:.0}% of every reduction", KERNELS * 100.0);
    let mut worst: Option<(&str, &str, usize, f64)> = None;
    let mut line = String::new();
    let mut previous = "";
    for row in &report.kernels {
        if row.dtype != previous {
            flush(text, &mut line);
            let _ = write!(line, "{:<7}", row.dtype);
            previous = &row.dtype;
        }
        let name = match (row.kernel.as_str(), row.sources) {
            ("reduce", 2) => row.op.clone(),
            ("reduce", n) => format!("{} of {n}", row.op),
            (kernel, _) => kernel.to_string(),
        };
        let _ = write!(line, "  {name} {:.1}%", row.ratio * 100.0);
        if row.kernel == "reduce" && worst.is_none_or(|(.., ratio)| row.ratio < ratio) {
            worst = Some((&row.dtype, &row.op, row.sources, row.ratio));
        }
    }
    flush(text, &mut line);
    if let Some((dtype, op, sources, ratio)) = worst {
        let verdict = met(ratio, KERNELS);
        let _ = writeln!(text, "slowest reduction: {dtype} {op} of {sources}, {:.1}%: {verdict}", ratio * 100.0);
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
    let floors = summary.kernels.as_ref().map(|k| k.launches);
    let _ = writeln!(
        text,
        "\n== small: over an empty launch and two stream waits; target for 8 bytes: {SMALL:.0} us waited for"
    );
    for line in rows {
        let over = floors.map(|f| (line.time - f.launch_and_waits, line.waited - f.launch_and_waits_waited));
        let over_text = over.map_or("-".to_string(), |(queued, waited)| format!("{queued:+.2} and {waited:+.2} us"));
        let verdict = match over {
            Some((_, waited)) if line.library == "maypole" && line.size == 8 => met(SMALL, waited),
            _ => "",
        };
        let _ = writeln!(
            text,
            "{} {:>9.2} us queued {:>9.2} us waited for, over the floor {over_text}{}  {verdict}",
            identity(line),
            line.time,
            line.waited,
            nccl(line)
        );
    }
}

/// Who, how and what a row is, in columns.
fn identity(line: &Line) -> String {
    format!(
        "{:<12} {:>2} ranks ({:<21}) {:<14} {:<12} {:<8} {:>11} B",
        line.library, line.ranks, line.ranks_are, line.collective, line.form, line.kind, line.size
    )
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
        let ratio = line.ratio.map_or("-".to_string(), |ratio| format!("{:.1}%", ratio * 100.0));
        let verdict = match (line.library.as_str(), line.target, line.ratio) {
            ("maypole", Some(target), Some(ratio)) => {
                format!("  target {:.0}%: {}", target * 100.0, met(ratio, target))
            }
            _ => String::new(),
        };
        let wrong = line.wrong.filter(|&n| n > 0).map_or(String::new(), |n| format!("  {n} WRONG"));
        let _ = writeln!(
            text,
            "{} {:>10.1} us  floor {floor:>9} us of {:>12} B  {ratio:>6}{verdict}{}{wrong}",
            identity(line),
            line.time,
            line.floor_bytes,
            nccl(line)
        );
    }
}

fn overlap(summary: &Summary, text: &mut String) {
    if summary.overlap.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n== overlap: all-reduces beside matrix products; target {:.0}% hidden", HIDDEN * 100.0);
    for o in &summary.overlap {
        let registered = if o.registered { ", registered" } else { "" };
        let _ = writeln!(
            text,
            "{:<12} {:>2} ranks ({}{registered}) {} B: hidden {:.1}% (memory allows {:.1}%): {}; products slowed {:.3} times \
             (explained {:.3}): {}; {}",
            o.library,
            o.ranks,
            o.ranks_are,
            o.bytes,
            o.hidden * 100.0,
            o.allowed * 100.0,
            met(o.hidden, HIDDEN.min(o.allowed)),
            o.slowdown,
            o.explained,
            met(o.explained * 1.02, o.slowdown),
            if o.right { "right" } else { "WRONG" }
        );
    }
}
