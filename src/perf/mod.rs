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
//! * [`operation`], [`report`]: sizes, bandwidths, the table and the JSON file;
//! * [`cuda`]: the same on CUDA devices, and programs that measure what only those have.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::Error;

mod buffer;
pub mod cuda;
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
pub use row::Traffic;

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
/// Where the table's reader leaves and nobody asked for the JSON file, the run ends there.
pub fn run(args: PerfArgs) -> ExitCode {
    finish(flags::Plan::new(args.operation, args.flags).and_then(|plan| ranks::run(&plan)))
}

fn finish(outcome: crate::Result<ExitCode>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        Err(error) => {
            crate::command::say(format_args!("perf: {error}"));
            ExitCode::from(if matches!(error, Error::Setting { .. }) { 2 } else { 1 })
        }
    }
}

/// NCCL's collectives by the same loops, in the same table: how long each takes on devices, every element checked.
///
/// The ranks meet as Maypole's do, by --ranks or a launcher, and NCCL's id comes to them through Maypole. Several ranks on
/// one device need NCCL 2.30 or later and NCCL_MULTI_RANK_GPU_ENABLE=1.
#[derive(Parser)]
#[command(name = "nccl_perf", version, max_term_width = 120)]
struct NcclBinary {
    /// NCCL's library
    #[arg(long, default_value = "libnccl.so.2", value_name = "FILE")]
    library: PathBuf,
    #[command(flatten)]
    args: PerfArgs,
}

/// The `main` of `nccl_perf`.
pub fn nccl_main() -> ExitCode {
    let NcclBinary { library, args } = NcclBinary::parse();
    let plan = || -> crate::Result<flags::Plan> {
        let flags = Flags { device: flags::Device::Cuda, ..args.flags };
        let plan = flags::Plan { nccl: Some(library), ..flags::Plan::new(args.operation, flags)? };
        let refused = plan.combinations().into_iter().find(|(_, op)| !cuda::nccl::takes(plan.operation, *op));
        let expected = "NCCL has no such operation; it has all_reduce, reduce, broadcast, all_gather, reduce_scatter, \
                        all_to_all, gather, scatter and send_recv, with sum, prod, min, max and avg";
        let (name, expected) = (plan.operation.name(), expected.to_string());
        let value = |op: Option<operation::NamedOp>| op.map_or(String::new(), |op| format!(" {}", op.name()));
        match refused {
            Some((_, op)) => Err(Error::Setting { name: name.to_string(), value: value(op), expected }),
            None => Ok(plan),
        }
    };
    finish(plan().and_then(|plan| ranks::run(&plan)))
}

/// A perf binary's command line.
#[derive(Parser)]
#[command(version)]
struct Binary {
    #[command(flatten)]
    flags: Flags,
}

/// The `main` of a perf binary, for one of [`Operation`]'s names or `hypercube`: nccl-tests' all-gather in as many
/// steps as the number of ranks has bits.
pub fn main(operation: &str) -> ExitCode {
    let (operation, algorithm) = match operation {
        "hypercube" => ("all_gather", Some("all_gather=bruck")),
        other => (other, None),
    };
    let operation: Operation = operation.parse().expect("a perf binary names its collective");
    let about = format!("How long {} takes, and whether every element of its result is right", operation.name());
    let matches = Binary::command().about(about).get_matches();
    match Binary::from_arg_matches(&matches) {
        Ok(Binary { mut flags }) => {
            flags.algorithm = flags.algorithm.or(algorithm.map(str::to_string));
            run(PerfArgs { operation, flags })
        }
        Err(error) => error.exit(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_binary() {
        let manifest = include_str!("../../Cargo.toml");
        let names = manifest.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix("_perf\""));
        let named: Vec<Operation> = names.filter_map(|name| name.parse().ok()).collect();
        for operation in Operation::all() {
            assert!(named.contains(&operation), "{}_perf is missing in Cargo.toml", operation.name());
        }
    }
}
