//! `primitives_perf`: what the few things cost of which every collective on a device is made, and
//! whether they keep their promise. The first program to run on a machine that is new.
//!
//! * One rank: what queuing waits and writes costs (`costs`), and what the driver says of itself.
//! * Two: how long a word takes from one rank's stream to the other's (`hops`), and whether what
//!   was stored before a word is there after the wait for it (`promise`).
//! * More: the others multiply matrices meanwhile, for a second time of the words.
//!
//! As Maypole does it, by [`Commands`](maypole_cuda::Commands) and kernels, but without any of its
//! protocols: where these figures are bad, no protocol makes up for it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde::{Deserialize, Serialize};

use super::words::Words;
use super::{DeviceInfo, Gpu};
use crate::perf::flags::size;
use crate::perf::{ranks, report};
use crate::{Communicator, Config, Error, Result};

mod attributes;
mod costs;
mod hops;
mod promise;

pub use attributes::Attribute;
pub use costs::{Batch, Costs};
pub use hops::Hops;
pub use promise::Promise;

/// What stream waits, stream writes and words between ranks cost on this device, and whether what is
/// stored before a word is there after it.
///
/// One rank measures the costs of its own stream; two the way between them; more keep the device
/// busy meanwhile.
#[derive(Parser, Clone, Debug)]
#[command(version, max_term_width = 100)]
struct Args {
    /// Start this many ranks here; without it, the launcher's, or one
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// With --ranks: run them as threads of one process
    #[arg(long, requires = "ranks")]
    threads: bool,
    /// How often the cheap things are done; the others less often in proportion
    #[arg(short = 'n', long, default_value_t = 1000, value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(10..=100_000))]
    count: u32,
    /// Bytes that one rank stores and another reads, in each round
    #[arg(short = 'b', long, default_value = "64M", value_parser = size, value_name = "SIZE")]
    bytes: usize,
    /// Rows and columns of the matrices, a multiple of 64
    #[arg(long, default_value_t = 4096, value_name = "COUNT")]
    matrix: u32,
    /// Write the results to this file, as JSON
    #[arg(short = 'J', long = "json", value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What `primitives_perf` found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PrimitiveReport {
    /// `primitives_perf`.
    pub program: String,
    /// Maypole's version.
    pub version: String,
    /// Seconds since 1970 at the start.
    pub start_time: u64,
    /// Rank 0's device.
    pub device: DeviceInfo,
    /// Number of ranks.
    pub ranks: usize,
    /// `processes` or `threads`.
    pub ranks_are: String,
    /// What the driver says of the device; one rank.
    pub attributes: Vec<Attribute>,
    /// One stream alone; one rank.
    pub costs: Option<Costs>,
    /// Words between two ranks; two ranks and more.
    pub hops: Option<Hops>,
    /// What was stored before a word; two ranks and more.
    pub promise: Option<Promise>,
}

/// The `main` of `primitives_perf`: exit status 0, 1 if something was not as stored or cannot be
/// measured, 2 for flags that make no sense.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = args.check().and_then(|()| {
        let config = Config::from_env()?;
        ranks::start(args.ranks, args.threads, &config, &|comm| {
            let outcome = run(&args, comm);
            if let Err(error) = &outcome {
                // The others would wait for this rank for ever: their hosts look at its words.
                comm.abort(&error.to_string());
            }
            outcome
        })
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            crate::command::say(format_args!("primitives_perf: {error}"));
            ExitCode::from(if matches!(error, Error::Setting { .. }) { 2 } else { 1 })
        }
    }
}

impl Args {
    fn check(&self) -> Result<()> {
        let refuse = |name: &str, value: String, expected: &str| {
            Err(Error::Setting { name: name.into(), value, expected: expected.into() })
        };
        match self {
            Args { matrix, .. } if *matrix == 0 || matrix % 64 != 0 => {
                refuse("--matrix", matrix.to_string(), "expected a multiple of 64")
            }
            Args { bytes, .. } if *bytes < 4096 => refuse("--bytes", bytes.to_string(), "expected 4096 at least"),
            _ => Ok(()),
        }
    }
}

/// A rank's whole run. Whether everything was as it had been stored.
fn run(args: &Args, comm: &Communicator) -> Result<bool> {
    let gpu = Gpu::of(comm, 0)?;
    let leads = comm.rank() == 0;
    let say = |text: String| {
        if leads {
            crate::command::print(&text);
        }
    };
    let mut report = PrimitiveReport {
        program: "primitives_perf".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        start_time: report::now(),
        device: gpu.info(),
        ranks: comm.size(),
        ranks_are: if args.threads { "threads" } else { "processes" }.into(),
        attributes: Vec::new(),
        costs: None,
        hops: None,
        promise: None,
    };
    let ranks = match report.ranks {
        1 => "one rank".to_string(),
        ranks => format!("{ranks} ranks ({})", report.device.mode(args.threads)),
    };
    say(format!("# {ranks} on {}", report.device.name));
    if comm.size() == 1 {
        report.attributes = attributes::of(gpu.context.ordinal())?;
        say(report.attributes.iter().map(|attribute| format!("{attribute}\n")).collect());
        let costs = costs::measure(&gpu, args.count)?;
        say(costs.to_string());
        report.costs = Some(costs);
    } else {
        let words = Words::shared(&gpu, comm)?;
        let hops = hops::measure(comm, &gpu, &words, args.count, args.matrix)?;
        say(hops.to_string());
        report.hops = Some(hops);
        let promise = promise::test(comm, &gpu, &words, args.threads, args.count, args.bytes)?;
        say(promise.to_string());
        report.promise = Some(promise);
        gpu.wait()?;
    }
    if let (true, Some(path)) = (leads, &args.json) {
        let failed = |e: &dyn std::fmt::Display| Error::system(format!("writing {} (--json)", path.display()), e);
        let text = serde_json::to_string_pretty(&report).map_err(|e| failed(&e))?;
        std::fs::write(path, text + "\n").map_err(|e| failed(&e))?;
    }
    // A launcher ends all ranks when one ends as a failure: not before the file is there.
    comm.barrier()?;
    Ok(report.promise.is_none_or(|promise| promise.wrong == 0))
}
