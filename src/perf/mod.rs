//! `maypole perf` and the perf binaries: how long each collective takes on this machine or cluster, and whether every
//! element of its result is right.
//!
//! Flags, columns and bandwidth formulas are those of nccl-tests, so that its users and their scripts find what they
//! know. From the outside in:
//!
//! * [`flags`]: the command line, checked into a plan before anything starts;
//! * `ranks`: where ranks come from (a launcher, threads, or processes started here);
//! * `session`: one rank's way through all rows;
//! * `measure`: the timing loops of one row;
//! * `row`, `buffer`: what lies in memory before and after a call, and the check of it;
//! * [`values`], `minifloat`: inputs that make every reduction exact, and the expected results;
//! * [`operation`], [`report`]: sizes, bandwidths, the table and the JSON file.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::Error;

mod buffer;
pub mod flags;
mod measure;
mod minifloat;
pub mod operation;
mod ranks;
pub mod report;
mod row;
mod session;
pub mod values;

pub use flags::Flags;
pub use operation::Operation;

/// Arguments of `maypole perf`.
#[derive(clap::Args, Clone, Debug)]
pub struct PerfArgs {
    /// all_reduce, reduce, broadcast, all_gather, reduce_scatter, all_to_all, gather, scatter, scan, exclusive_scan,
    /// barrier or send_recv; all_gather_v, reduce_scatter_v, all_to_all_v, gather_v and scatter_v have uneven blocks
    #[arg(value_name = "COLLECTIVE")]
    pub operation: Operation,
    /// How.
    #[command(flatten)]
    pub flags: Flags,
}

/// Run `maypole perf`. Exit code 0 if everything that was checked was right, 1 if an element was wrong or the run
/// failed, 2 if the flags make no sense, in which case nothing was started.
pub fn run(args: PerfArgs) -> ExitCode {
    let outcome = flags::Plan::new(args.operation, args.flags).and_then(|plan| ranks::run(&plan));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("perf: {error}");
            ExitCode::from(if matches!(error, Error::Setting { .. }) { 2 } else { 1 })
        }
    }
}

/// A perf binary's command line.
#[derive(Parser)]
#[command(version)]
struct Binary {
    #[command(flatten)]
    flags: Flags,
}

/// The `main` of a perf binary, for one of [`Operation`]'s names.
pub fn main(operation: &str) -> ExitCode {
    let operation: Operation = operation.parse().expect("a perf binary names its collective");
    let about = format!("How long {} takes, and whether every element of its result is right", operation.name());
    let matches = Binary::command().about(about).get_matches();
    match Binary::from_arg_matches(&matches) {
        Ok(binary) => run(PerfArgs { operation, flags: binary.flags }),
        Err(error) => error.exit(),
    }
}
