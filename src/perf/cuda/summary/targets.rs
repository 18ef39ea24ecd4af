//! The last part of the table: what was to be reached on one device, and whether it was.

use std::fmt::Write as _;

use super::Summary;
use super::held::{HIDDEN, KERNELS, small};
use super::table::{bout, identity, kernel, mode, over_floor};

/// One line for each target.
pub fn targets(summary: &Summary, text: &mut String) {
    if summary.emulated() {
        let _ = writeln!(text, "\n== targets: none on the emulator, whose times mean nothing");
        return;
    }
    let _ = writeln!(text, "\n== targets");
    let mut line = |met: bool, what: String| {
        let _ = writeln!(text, "{}  {what}", if met { "met   " } else { "MISSED" });
    };
    let ours = || summary.collectives.iter().filter(|l| l.library == "maypole");
    let mut any = false;
    for l in ours() {
        if let (Some(target), Some(ratio)) = (l.target, l.ratio) {
            any = true;
            let what = format!(
                "{}: {:.1}% of the floor's speed, of {:.1}% (possible: {:.1}%)",
                identity(l),
                ratio * 100.0,
                target * 100.0,
                l.possible().unwrap_or(1.0) * 100.0
            );
            line(ratio >= target, what);
        }
    }
    if !any {
        line(false, "two ranks on one device, 64 MiB and above: not measured".to_string());
    }
    for l in ours().filter(|l| l.size == 8 && l.ranks == 2 && l.settings.is_empty()) {
        if let (Some((_, over)), Some(most)) = (over_floor(summary, l), small(&l.mode)) {
            line(over <= most, format!("{}: {over:+.2} us over the floor, of {most:.0}", identity(l)));
        }
    }
    let reductions = summary.kernels.iter().flat_map(|k| &k.kernels).filter(|row| row.kernel == "reduce");
    match reductions.min_by(|a, b| a.ratio.total_cmp(&b.ratio)) {
        Some(row) => line(
            row.ratio >= KERNELS,
            format!(
                "slowest reduction: {} {}, {:.1}% of the copy rate, of {:.0}%",
                row.dtype,
                kernel(row),
                row.ratio * 100.0,
                KERNELS * 100.0
            ),
        ),
        None => line(false, "reduction kernels: not measured".to_string()),
    }
    // Processes without MPS give the device up in slices: nothing is laid down for them.
    let bouts = summary.overlap.iter().filter(|o| o.library == "maypole" && o.blocks == 0);
    for o in bouts.filter(|o| mode(o) != "processes") {
        let (hidden, wanted) = (o.hidden * 100.0, HIDDEN.min(o.allowed) * 100.0);
        line(hidden >= wanted, format!("{}: {hidden:.1}% hidden, of {wanted:.1}%", bout(o)));
        // Two runs of the same loop differ by as much.
        let explained = o.explained * 1.02;
        line(
            o.slowdown <= explained,
            format!("{}: products slowed {:.3} times, of {explained:.3}", bout(o), o.slowdown),
        );
    }
    let against: Vec<f64> = ours().filter_map(|l| l.against_nccl).collect();
    let behind = against.iter().filter(|ratio| **ratio < 1.0).count();
    match against.len() {
        0 => line(false, "ahead of NCCL: not measured".to_string()),
        all => line(behind == 0, format!("ahead of NCCL in {} of {all} rows", all - behind)),
    }
}
