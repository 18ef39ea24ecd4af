//! `gpu_summary`: the files of one gpu-check run as one table and one JSON file.
//!
//! Figures stand beside what the device allows: a collective's time beside its [floor](crate::perf::Traffic) at the copy
//! rate that the same run measured, a small one's beside an empty launch between two waits. Where a target is set the
//! table says whether it was met; nothing is left out because it was not. Targets are shares of what the number of bytes
//! allows ([`Line::possible`]), which the table has too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::kernels::KernelReport;
use super::overlap::OverlapReport;
use crate::{Error, Result};

mod table;
#[cfg(test)]
mod tests;

/// Put the files of a gpu-check run together: a table on standard output, and one JSON file.
#[derive(Parser)]
#[command(version, max_term_width = 120)]
struct Args {
    /// The directory with the run's files: *.json of the perf programs, steps.tsv (name, outcome, seconds), run.tsv (name,
    /// value)
    directory: PathBuf,
    /// Write everything to this file
    #[arg(short = 'J', long = "json", value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One step of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// `ok`, `FAILED (status 1)`, `STOPPED after 60 s`, `skipped: why`.
    pub outcome: String,
    /// How long it took.
    pub seconds: u64,
}

/// One row of a perf report, with what it is held against.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Whose: `maypole`, or `nccl 2.30.1`.
    pub library: String,
    /// `processes` or `threads`, `registered`, and how long a publication's place is where that is not the default.
    pub ranks_are: String,
    /// Whether its buffers were read by the others where they lie: registered memory, or any where ranks are threads.
    pub lent: bool,
    /// Whether its settings were the defaults, for which targets are laid down.
    pub by_default: bool,
    /// Number of ranks.
    pub ranks: usize,
    /// Ranks on the device that has most of them.
    pub ranks_per_device: usize,
    /// Which collective.
    pub collective: String,
    /// `out of place` or `in place`.
    pub form: &'static str,
    /// Element type and operation.
    pub kind: String,
    /// Bytes of the larger buffer.
    pub size: usize,
    /// Microseconds per call, many queued in a row, by the host's clock.
    pub time: f64,
    /// The same by the stream's clock.
    pub time_stream: f64,
    /// Microseconds of a call that is waited for before the next; median.
    pub waited: f64,
    /// Wrong elements; null if unchecked.
    pub wrong: Option<u64>,
    /// Bytes that the busiest device must read and write, at least.
    pub floor_bytes: u64,
    /// Microseconds that those take at the copy rate; null where that was not measured.
    pub floor: Option<f64>,
    /// Floor over time.
    pub ratio: Option<f64>,
    /// What the ratio ought to be, where that is laid down.
    pub target: Option<f64>,
    /// NCCL's time over this one's, for the same row; null where NCCL was not measured.
    pub against_nccl: Option<f64>,
}

/// A whole run.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Revision, date, driver and so on, as the runner found them.
    pub run: BTreeMap<String, String>,
    /// What was run.
    pub steps: Vec<Step>,
    /// Floors and reduction kernels.
    pub kernels: Option<KernelReport>,
    /// Collectives.
    pub collectives: Vec<Line>,
    /// Collectives beside matrix products.
    pub overlap: Vec<OverlapReport>,
    /// Files that could not be read, and why.
    pub unread: Vec<String>,
}

/// Bytes that kernels of two ranks read and write beyond the floor, both together, for each byte of the larger buffer.
///
/// What is not lent is copied to be published, and read from there: read and written once more than the floor has it, by
/// the rank that gives. An all-reduce (two-shot: each rank adds up half a buffer and fetches the other half) publishes twice,
/// what it gives and half of the result: a half read and written, and a half written, by each rank. Its other half of the
/// result is read again and written by the fetch, where the floor has it written alone: half a byte by each rank, of lent
/// memory too, and the only thing there.
fn beyond_floor(collective: &str, lent: bool) -> Option<f64> {
    Some(match (collective, lent) {
        ("all_reduce", false) => 4.0,
        ("all_reduce", true) => 1.0,
        ("all_gather" | "broadcast" | "all_to_all" | "reduce_scatter", false) => 2.0,
        ("all_gather" | "broadcast" | "all_to_all" | "reduce_scatter", true) => 0.0,
        _ => return None,
    })
}

impl Line {
    /// The share of the floor's speed that is left if the bytes that this collective moves in this kind of memory move at
    /// the copy rate: what is possible, without waits. For two ranks on one device, where it has been counted.
    pub fn possible(&self) -> Option<f64> {
        let beyond = beyond_floor(&self.collective, self.lent)? * self.size as f64;
        let floor = self.floor_bytes as f64;
        (self.is_target() && floor > 0.0).then(|| floor / (floor + beyond))
    }

    /// Two ranks on one device, and enough bytes that their number decides.
    fn is_target(&self) -> bool {
        self.size >= 64 << 20 && (self.ranks, self.ranks_per_device) == (2, 2)
    }

    /// The share of the floor's speed that must be reached, where that is laid down: a share of what is
    /// [possible](Line::possible), of memory that is lent.
    fn wanted(&self) -> Option<f64> {
        let share = match self.collective.as_str() {
            "all_reduce" => 0.75,
            "all_gather" | "broadcast" | "all_to_all" => 0.90,
            _ => return None,
        };
        self.possible().filter(|_| self.lent).map(|possible| share * possible)
    }
}

/// What 8 bytes may cost over an empty launch and two waits, in microseconds.
pub const SMALL: f64 = 10.0;
/// The share of the copy rate that reduction kernels must reach.
pub const KERNELS: f64 = 0.90;
/// The share of the communication that must be hidden behind a product.
pub const HIDDEN: f64 = 0.90;

/// The `main` of `gpu_summary`.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let summary = Summary::read(&args.directory);
    let written = args.json.as_ref().map_or(Ok(()), |path| summary.write(path));
    let printed = crate::command::print(&table::table(&summary));
    match written {
        Ok(()) if !printed => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::command::say(format_args!("gpu_summary: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// A perf report, as far as it is needed here.
#[derive(Deserialize)]
struct Perf {
    library: String,
    collective: String,
    ranks: Vec<Rank>,
    config: Config,
    results: Vec<Row>,
}

#[derive(Deserialize)]
struct Rank {
    host: String,
    pid: u32,
    device: Option<String>,
}

#[derive(Deserialize)]
struct Config {
    registered: bool,
    device_window: Option<usize>,
}

#[derive(Deserialize)]
struct Row {
    size: usize,
    #[serde(rename = "type")]
    dtype: String,
    redop: String,
    out_of_place: Figures,
    in_place: Option<Figures>,
}

#[derive(Deserialize)]
struct Figures {
    time: f64,
    time_stream: Option<f64>,
    time_median: f64,
    nwrong: Option<u64>,
    traffic: Option<crate::perf::Traffic>,
}

impl Summary {
    /// Read what the run left in `directory`. What cannot be read is listed, never an error: a run may have been cut short.
    fn read(directory: &Path) -> Summary {
        let mut summary = Summary::default();
        let rows = |name: &str| -> Vec<Vec<String>> {
            let text = std::fs::read_to_string(directory.join(name)).unwrap_or_default();
            text.lines().map(|line| line.split('\t').map(str::to_string).collect()).collect()
        };
        for row in rows("run.tsv") {
            if let [name, value] = &row[..] {
                summary.run.insert(name.clone(), value.clone());
            }
        }
        for row in rows("steps.tsv") {
            if let [name, outcome, seconds] = &row[..] {
                let seconds = seconds.parse().unwrap_or(0);
                summary.steps.push(Step { name: name.clone(), outcome: outcome.clone(), seconds });
            }
        }
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "json")) {
            if let Err(why) = summary.take(file) {
                summary.unread.push(format!("{}: {why}", file.file_name().unwrap_or_default().display()));
            }
        }
        summary.hold_against();
        summary
    }

    fn take(&mut self, file: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let value: Value = serde_json::from_slice(&std::fs::read(file)?)?;
        match value["program"].as_str() {
            Some("kernel_perf") => self.kernels = Some(serde_json::from_value(value)?),
            Some("overlap_perf") => self.overlap.push(serde_json::from_value(value)?),
            _ => self.collectives.extend(lines(serde_json::from_value(value)?)),
        }
        Ok(())
    }

    /// Whether the driver was the emulator.
    fn emulated(&self) -> bool {
        self.kernels.as_ref().is_some_and(|kernels| kernels.device.name.contains("emulated"))
    }

    /// Floors, targets and NCCL's figures, once everything has been read.
    fn hold_against(&mut self) {
        let rate = self.kernels.as_ref().map(|kernels| kernels.copy.rate);
        let key = |line: &Line| (line.ranks, line.collective.clone(), line.form, line.kind.clone(), line.size);
        let nccl: BTreeMap<_, f64> =
            self.collectives.iter().filter(|l| l.library != "maypole").map(|l| (key(l), l.time)).collect();
        for line in &mut self.collectives {
            // Bytes over 10^9 bytes per second are nanoseconds.
            line.floor = rate.map(|rate| line.floor_bytes as f64 / rate / 1000.0);
            line.ratio = line.floor.filter(|_| line.time > 0.0 && line.floor_bytes > 0).map(|floor| floor / line.time);
            if !line.by_default {
                continue;
            }
            line.target = line.wanted();
            if line.library == "maypole" && line.time > 0.0 {
                line.against_nccl = nccl.get(&key(line)).map(|time| time / line.time);
            }
        }
    }

    fn write(&self, path: &Path) -> Result<()> {
        let failed = |e: &dyn std::fmt::Display| Error::system(format!("writing {}", path.display()), e);
        let text = serde_json::to_string_pretty(self).map_err(|e| failed(&e))?;
        std::fs::write(path, text + "\n").map_err(|e| failed(&e))
    }
}

/// A report's rows.
fn lines(perf: Perf) -> Vec<Line> {
    let threads =
        perf.ranks.len() > 1 && perf.ranks.iter().all(|r| (&r.host, r.pid) == (&perf.ranks[0].host, perf.ranks[0].pid));
    let mut per_device: BTreeMap<&str, usize> = BTreeMap::new();
    for device in perf.ranks.iter().filter_map(|rank| rank.device.as_deref()) {
        *per_device.entry(device).or_default() += 1;
    }
    let ranks_per_device = per_device.into_values().max().unwrap_or(0);
    let ranks_are = if threads { "threads" } else { "processes" };
    let registered = if perf.config.registered { ", registered" } else { "" };
    let places = perf.config.device_window.map_or(String::new(), |bytes| format!(", places of {} KiB", bytes >> 10));
    let ranks_are = format!("{ranks_are}{registered}{places}");
    let mut lines = Vec::new();
    for row in &perf.results {
        for (form, figures) in [("out of place", Some(&row.out_of_place)), ("in place", row.in_place.as_ref())] {
            let Some(figures) = figures else { continue };
            lines.push(Line {
                library: perf.library.clone(),
                ranks_are: ranks_are.clone(),
                lent: perf.config.registered || threads,
                by_default: perf.config.device_window.is_none(),
                ranks: perf.ranks.len(),
                ranks_per_device,
                collective: perf.collective.clone(),
                form,
                kind: if row.redop == "none" { row.dtype.clone() } else { format!("{} {}", row.dtype, row.redop) },
                size: row.size,
                time: figures.time,
                time_stream: figures.time_stream.unwrap_or(0.0),
                waited: figures.time_median,
                wrong: figures.nwrong,
                floor_bytes: figures.traffic.map_or(0, |traffic| traffic.total() as u64),
                floor: None,
                ratio: None,
                target: None,
                against_nccl: None,
            });
        }
    }
    lines
}
