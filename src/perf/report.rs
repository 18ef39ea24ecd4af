//! What a run prints, in nccl-tests' columns, and what it writes as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::cuda::DeviceInfo;
use super::flags::{Choice, Plan, StepBy};
use super::measure::Measured;
use super::operation::NamedOp;
use super::row::{Row, Traffic};
use crate::DataType;
use crate::config::KNOBS;

/// One rank's place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RankInfo {
    /// Its number.
    pub rank: usize,
    /// Its host's name.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// What identifies its device, where buffers are in a device's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// One row in one form. Times are microseconds per call, bandwidths 10^9 bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Mean time.
    pub time: f64,
    /// Algorithm bandwidth, of the mean.
    pub alg_bw: f64,
    /// Bus bandwidth, of the mean.
    pub bus_bw: f64,
    /// Wrong elements; null if nothing was checked.
    pub nwrong: Option<u64>,
    /// Median time.
    pub time_median: f64,
    /// 99th percentile of the time.
    pub time_p99: f64,
    /// On a device: mean time by the stream's clock. (The others are the host's: the mean of calls queued in a row, median
    /// and percentile of calls that are waited for.)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_stream: Option<f64>,
    /// On a device: what the device with most to do must read and write, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

impl Figures {
    /// The figures of a measured row that moves `size` shown bytes.
    pub fn new(row: &Row, size: usize, measured: Measured, traffic: Option<Traffic>) -> Figures {
        let (alg_bw, bus_bw) = row.operation.bandwidths(size, measured.mean * 1e-6, row.ranks);
        Figures {
            time: measured.mean,
            alg_bw,
            bus_bw,
            nwrong: measured.wrong,
            time_median: measured.median,
            time_p99: measured.p99,
            time_stream: measured.stream,
            traffic,
        }
    }
}

/// One row of the results.
#[derive(Clone, Debug, Serialize)]
pub struct ResultRow {
    /// Bytes of the larger buffer.
    pub size: usize,
    /// Elements per block.
    pub count: usize,
    /// Element type.
    #[serde(rename = "type")]
    pub dtype: &'static str,
    /// Reduction operation, or `none`.
    pub redop: &'static str,
    /// The root, or -1.
    pub root: i64,
    /// With two buffers.
    pub out_of_place: Figures,
    /// With one; null where the operation has no such form.
    pub in_place: Option<Figures>,
}

/// Everything a run found: the JSON file's content.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Maypole's version.
    pub version: &'static str,
    /// Whose collectives: `maypole`, or `nccl` and its version.
    pub library: String,
    /// What was measured.
    pub collective: &'static str,
    /// Seconds since 1970 at the start.
    pub start_time: u64,
    /// Seconds since 1970 at the end.
    pub end_time: u64,
    /// How it was run.
    pub config: ConfigInfo,
    /// Rank 0's machine.
    pub host: HostInfo,
    /// Rank 0's device, where buffers are in a device's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceInfo>,
    /// Where the ranks ran.
    pub ranks: Vec<RankInfo>,
    /// The table.
    pub results: Vec<ResultRow>,
    /// Wrong elements of all rows.
    pub out_of_bounds: OutOfBounds,
    /// Mean of every bus bandwidth in the table.
    pub average_bus_bandwidth: f64,
}

/// The verdict on the data.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OutOfBounds {
    /// Wrong elements of all rows.
    pub count: u64,
    /// Whether there was none.
    pub okay: bool,
}

/// How a run was made: the flags that shape its figures.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigInfo {
    /// World size.
    pub ranks: usize,
    /// `MAYPOLE_TRANSPORT` or `--transport`.
    pub transport: String,
    /// `MAYPOLE_ALGORITHM` or `--algorithm`; empty if the tuner chose.
    pub algorithm: String,
    /// Smallest size, bytes.
    pub minbytes: usize,
    /// Largest size, bytes.
    pub maxbytes: usize,
    /// Factor or bytes between sizes.
    pub step: String,
    /// Timed iterations; null if chosen row by row.
    pub iters: Option<usize>,
    /// Untimed iterations.
    pub warmup_iters: usize,
    /// Calls per iteration.
    pub agg_iters: usize,
    /// Checked iterations.
    pub check: usize,
    /// How ranks' times became one.
    pub average: &'static str,
    /// Whether buffers were in registered memory.
    pub registered: bool,
    /// Settings of collectives on devices that somebody has chosen: variables and their values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<&'static str, String>,
}

/// The machine on which the figures were taken.
#[derive(Clone, Debug, Serialize)]
pub struct HostInfo {
    /// Cores that this process may use.
    pub cores: usize,
    /// The processor's name; empty if the system does not say.
    pub processor: String,
    /// Operating system and its release.
    pub system: String,
}

impl HostInfo {
    fn here() -> HostInfo {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        HostInfo {
            cores: std::thread::available_parallelism().map_or(0, |n| n.get()),
            processor: model.map_or(String::new(), |(_, name)| name.trim().to_string()),
            system: format!("{} {}", std::env::consts::OS, release.trim()),
        }
    }
}

/// Settings that shape a device's figures and are not left to Maypole.
fn chosen(algorithm: &str) -> BTreeMap<&'static str, String> {
    let value = |name: &str| match name {
        "MAYPOLE_ALGORITHM" => Some(algorithm.to_string()),
        _ if name.starts_with("MAYPOLE_DEVICE_") => std::env::var(name).ok(),
        _ => None,
    };
    let set = KNOBS.iter().filter_map(|knob| Some((knob.name, value(knob.name)?)));
    set.filter(|(_, value)| !value.is_empty()).collect()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

impl Report {
    /// A report without rows.
    pub fn new(plan: &Plan, library: String, ranks: Vec<RankInfo>, device: Option<DeviceInfo>) -> Report {
        let flags = &plan.flags;
        Report {
            version: env!("CARGO_PKG_VERSION"),
            library,
            collective: plan.operation.name(),
            start_time: now(),
            end_time: now(),
            config: ConfigInfo {
                ranks: ranks.len(),
                transport: format!("{:?}", plan.config.transport).to_lowercase(),
                algorithm: plan.config.algorithm.clone(),
                minbytes: flags.min_bytes,
                maxbytes: flags.max_bytes,
                step: match plan.step {
                    StepBy::Factor(factor) => format!("x{factor}"),
                    StepBy::Bytes(bytes) => format!("+{bytes}"),
                },
                iters: flags.iters,
                warmup_iters: flags.warmup_iters,
                agg_iters: flags.agg_iters,
                check: flags.check,
                average: ["rank 0", "average", "min", "max"][flags.average as usize],
                registered: flags.registered > 0,
                settings: chosen(&plan.config.algorithm),
            },
            host: HostInfo::here(),
            device,
            ranks,
            results: Vec::new(),
            out_of_bounds: OutOfBounds { count: 0, okay: true },
            average_bus_bandwidth: 0.0,
        }
    }

    /// Add a row and bring the totals up to date.
    pub fn push(&mut self, row: ResultRow) {
        for figures in [Some(row.out_of_place), row.in_place].into_iter().flatten() {
            self.out_of_bounds.count += figures.nwrong.unwrap_or(0);
        }
        self.out_of_bounds.okay = self.out_of_bounds.count == 0;
        self.results.push(row);
        let figures = self.results.iter().flat_map(|row| [Some(row.out_of_place), row.in_place]).flatten();
        let (sum, count) = figures.fold((0.0, 0), |(sum, count), f| (sum + f.bus_bw, count + 1));
        self.average_bus_bandwidth = sum / count as f64;
        self.end_time = now();
    }

    /// The lines before the table.
    pub fn header(&self, plan: &Plan) -> String {
        let c = &self.config;
        let mut text = String::new();
        let iters = c.iters.map_or("by time".to_string(), |n| n.to_string());
        let types = match plan.flags.datatype {
            Choice::All => "all".to_string(),
            Choice::One(dtype) => dtype.name().to_string(),
        };
        let algorithm = if c.algorithm.is_empty() { "chosen by size" } else { &c.algorithm };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# Maypole {}: {} on {} ranks", self.version, self.collective, c.ranks);
        let _ = writeln!(
            text,
            "# minbytes {} maxbytes {} step {} type {types} warmup {} iters {iters} agg iters {} check {} time {}",
            c.minbytes, c.maxbytes, c.step, c.warmup_iters, c.agg_iters, c.check, c.average
        );
        let _ = writeln!(text, "# transport {} algorithm {algorithm}", c.transport);
        if let Some(device) = &self.device {
            let registered = if c.registered { ", registered" } else { "" };
            let _ = writeln!(text, "# buffers on {}{registered}; collectives of {}", device.name, self.library);
        }
        for word in plan.flags.ignored.words() {
            let _ = writeln!(text, "# {word}");
        }
        let _ = writeln!(text, "#");
        for rank in &self.ranks {
            let device = rank.device.as_ref().map_or(String::new(), |uuid| format!("  device {uuid}"));
            let _ = writeln!(text, "#  Rank {:3}  Pid {:7}  on {}{device}", rank.rank, rank.pid, rank.host);
        }
        let _ = writeln!(text, "#");
        let form = |name: &str| format!("{name:^39}");
        let _ = writeln!(text, "# {:50}{}{}", "", form("out-of-place"), form("in-place").trim_end());
        let columns = |time: &str, bandwidth: [&str; 2], wrong: &str| {
            format!("  {time:>9}  {:>8}  {:>8}  {wrong:>6}", bandwidth[0], bandwidth[1])
        };
        let stamp = if plan.flags.timestamps > 0 { "            timestamp" } else { "" };
        let names = columns("time", ["algbw", "busbw"], "#wrong");
        let units = columns("(us)", ["(GB/s)", "(GB/s)"], "");
        let last = units.trim_end();
        let _ = writeln!(
            text,
            "#{:>11}  {:>12}  {:>7}  {:>9}  {:>4}{names}{names}{stamp}",
            "size", "count", "type", "redop", "root"
        );
        let _ = writeln!(text, "#{:>11}  {:>12}  {:7}  {:9}  {:4}{units}{last}", "(B)", "(elements)", "", "", "");
        text
    }

    /// Whether the average bus bandwidth is what `NCCL_TESTS_MIN_BW` asks for, within a tenth; `None` if it asks nothing.
    pub fn is_fast_enough(&self, plan: &Plan) -> Option<bool> {
        let least = plan.environment.least_bandwidth?;
        Some(self.average_bus_bandwidth >= 0.9 * least)
    }

    /// The lines after the table.
    pub fn footer(&self, plan: &Plan) -> String {
        let OutOfBounds { count, okay } = self.out_of_bounds;
        let checked = self.config.check > 0 && !self.results.is_empty() && self.collective != "barrier";
        let verdict = match (checked, okay) {
            (false, _) => "not checked",
            (true, true) => "OK",
            (true, false) => "FAILED",
        };
        let speed = match self.is_fast_enough(plan) {
            None => "",
            Some(true) => " OK",
            Some(false) => " FAILED",
        };
        format!(
            "# Out of bounds values : {count} {verdict}\n# Avg bus bandwidth    : {:.4}{speed}\n#\n",
            self.average_bus_bandwidth
        )
    }
}

/// The first columns of a row.
pub fn parameters(size: usize, count: usize, dtype: DataType, op: Option<NamedOp>, root: i64) -> String {
    let redop = op.map_or("none", NamedOp::name);
    format!("{size:>12}  {count:>12}  {:>7}  {redop:>9}  {root:>4}", dtype.name())
}

/// One form's columns.
pub fn figures(figures: Option<&Figures>) -> String {
    let Some(f) = figures else {
        return format!("  {:>9}  {:>8}  {:>8}  {:>6}", "-", "-", "-", "-");
    };
    let wrong = f.nwrong.map_or("N/A".to_string(), |n| n.to_string());
    format!("  {:>9}  {:>8}  {:>8}  {wrong:>6}", digits(f.time), digits(f.alg_bw), digits(f.bus_bw))
}

/// The last column where rows have timestamps: UTC, as nccl-tests writes it.
pub fn timestamp(seconds_since_1970: u64) -> String {
    let (days, second) = (seconds_since_1970 / 86_400, seconds_since_1970 % 86_400);
    // Years that begin in March end with the day that some of them lack. 146,097 days are 400 years; 1970 is the year
    // 1970 of a calendar that began 719,468 days before it.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    format!("  {year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// About four significant digits.
fn digits(x: f64) -> String {
    match x {
        _ if x >= 10_000.0 => format!("{x:.0}"),
        _ if x >= 1000.0 => format!("{x:.1}"),
        _ if x >= 10.0 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    }
}

#[cfg(test)]
mod tests;
