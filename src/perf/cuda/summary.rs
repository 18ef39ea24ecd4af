//! `gpu_summary`: what one run of gpu-check found, as one table.
//!
//! The run leaves one file, a JSON value on each line, written as things come: notes about the
//! machine, steps and how they ended, and the perf programs' reports. A run that was cut off leaves
//! the beginning of that file, which is as good as far as it goes.
//!
//! Figures stand beside what the device allows: a collective's time beside its
//! [floor](crate::perf::Traffic) at the copy rate that the same run measured, a small one's beside an
//! empty launch between two waits. They stand also beside what the run's own primitives let expect
//! (`held`) and beside NCCL's in the same mode: threads, processes, or processes under MPS.
//! Where a target is set the table says whether it was met; nothing is left out because it was not.
//! Targets are shares of what the number of bytes allows ([`Line::possible`]), which the table has too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde::{Deserialize, Serialize};

use super::kernels::KernelReport;
use super::overlap::OverlapReport;
use super::primitives::PrimitiveReport;
use crate::{Error, Result};

mod held;
mod read;
mod table;
mod targets;
#[cfg(test)]
mod tests;

/// What a run of gpu-check found, as a table on standard output and, if asked for, as one JSON file.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    /// The run's gpu-check.jsonl: one JSON value on each line, {"note", "value"}, {"step", "outcome",
    /// "seconds"} or {"of", "report"}
    file: PathBuf,
    /// Write everything to this file, with what it was held against
    #[arg(short = 'J', long = "json", value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One step of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    #[serde(rename = "step")]
    pub name: String,
    /// `ok`, `FAILED (status 1)`, `HUNG: killed after 60 s`, `skipped: why`.
    pub outcome: String,
    /// How long it took.
    pub seconds: u64,
}

/// One row of a perf report, with what it is held against.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Whose: `maypole`, or `nccl 2.30.1`.
    pub library: String,
    /// How ranks stand on the device: `threads`, `processes` or `MPS`.
    pub mode: String,
    /// Whether its buffers were registered: read by the others where they lie.
    pub registered: bool,
    /// Settings that were not the defaults, for which targets are laid down.
    pub settings: String,
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
    /// Microseconds that the run's primitives let expect, from and to; null where nothing is reckoned.
    pub reckoned: Option<[f64; 2]>,
    /// What the ratio ought to be, where that is laid down.
    pub target: Option<f64>,
    /// NCCL's time over this one's, for the same row in the same mode; null without NCCL.
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
    /// Waits, writes and words.
    pub primitives: Vec<PrimitiveReport>,
    /// Collectives.
    pub collectives: Vec<Line>,
    /// Collectives beside matrix products.
    pub overlap: Vec<OverlapReport>,
    /// Lines that could not be read, and why.
    pub unread: Vec<String>,
}

/// The `main` of `gpu_summary`.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let summary = match Summary::read(&args.file) {
        Ok(summary) => summary,
        Err(error) => {
            crate::command::say(format_args!("gpu_summary: {error}"));
            return ExitCode::FAILURE;
        }
    };
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

impl Summary {
    /// Whether the driver was the emulator.
    fn emulated(&self) -> bool {
        self.kernels.as_ref().is_some_and(|kernels| kernels.device.name.contains("emulated"))
    }

    fn write(&self, path: &Path) -> Result<()> {
        let failed = |e: &dyn std::fmt::Display| Error::system(format!("writing {}", path.display()), e);
        let text = serde_json::to_string_pretty(self).map_err(|e| failed(&e))?;
        std::fs::write(path, text + "\n").map_err(|e| failed(&e))
    }
}
