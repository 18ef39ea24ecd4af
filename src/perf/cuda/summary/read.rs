//! From the run's file to the summary. What cannot be read is listed, never an error: a run may have
//! been cut off in the middle of a line.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{Line, Step, Summary};
use crate::perf::cuda::DeviceInfo;
use crate::{Error, Result};

/// A line of the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Note { note: String, value: String },
    Step(Step),
    Report { report: Value },
}

/// A perf report, as far as it is needed here.
#[derive(Deserialize)]
struct Perf {
    library: String,
    collective: String,
    ranks: Vec<Rank>,
    config: Config,
    device: Option<DeviceInfo>,
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
    #[serde(default)]
    settings: BTreeMap<String, String>,
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
    /// Read what the run left.
    ///
    /// # Errors
    /// [`Error::System`] if there is no such file.
    pub(super) fn read(file: &Path) -> Result<Summary> {
        let bytes = std::fs::read(file);
        let bytes = bytes.map_err(|e| Error::system(format!("reading {}", file.display()), e))?;
        let mut summary = Summary::default();
        for (number, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
            if let Err(why) = summary.take(line) {
                summary.unread.push(format!("line {}: {why}", number + 1));
            }
        }
        summary.hold_against();
        Ok(summary)
    }

    fn take(&mut self, line: &str) -> serde_json::Result<()> {
        match serde_json::from_str(line)? {
            Entry::Note { note, value } => drop(self.run.insert(note, value)),
            Entry::Step(step) => self.steps.push(step),
            Entry::Report { report } => match report["program"].as_str() {
                Some("kernel_perf") => {
                    let report = serde_json::from_value(report)?;
                    // Of several the longest: the first is of one type, for the floors alone.
                    let known = self.kernels.as_ref().map_or(0, |known| known.kernels.len());
                    let new: crate::perf::cuda::kernels::KernelReport = report;
                    if new.kernels.len() >= known {
                        self.kernels = Some(new);
                    }
                }
                Some("overlap_perf") => self.overlap.push(serde_json::from_value(report)?),
                Some("primitives_perf") => self.primitives.push(serde_json::from_value(report)?),
                _ => self.collectives.extend(lines(&serde_json::from_value(report)?)),
            },
        }
        Ok(())
    }
}

/// A report's rows.
fn lines(perf: &Perf) -> Vec<Line> {
    let place = |rank: &Rank| (rank.host.clone(), rank.pid);
    let threads = perf.ranks.len() > 1 && perf.ranks.iter().all(|r| place(r) == place(&perf.ranks[0]));
    let mut per_device: BTreeMap<&str, usize> = BTreeMap::new();
    for device in perf.ranks.iter().filter_map(|rank| rank.device.as_deref()) {
        *per_device.entry(device).or_default() += 1;
    }
    let ranks_per_device = per_device.into_values().max().unwrap_or(0);
    let mode = perf.device.as_ref().map_or_else(|| DeviceInfo::default().mode(threads), |d| d.mode(threads));
    let setting = |(name, value): (&String, &String)| {
        format!("{}={value}", name.trim_start_matches("MAYPOLE_").trim_start_matches("DEVICE_"))
    };
    let settings: Vec<String> = perf.config.settings.iter().map(setting).collect();
    let mut lines = Vec::new();
    for row in &perf.results {
        for (form, figures) in [("out of place", Some(&row.out_of_place)), ("in place", row.in_place.as_ref())] {
            let Some(figures) = figures else { continue };
            lines.push(Line {
                library: perf.library.clone(),
                mode: mode.to_string(),
                registered: perf.config.registered,
                settings: settings.join(" "),
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
                reckoned: None,
                target: None,
                against_nccl: None,
            });
        }
    }
    lines
}
