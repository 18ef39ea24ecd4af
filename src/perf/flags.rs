//! The command line of a perf run, with nccl-tests' flags and their meaning, and the plan that it is checked into
//! before anything starts.

use std::path::PathBuf;
use std::str::FromStr;

use nccl_tests::{Environment, Ignored};

use super::operation::{NamedOp, Operation, parse_dtype};
use crate::config::parse_size;
use crate::{Config, DataType, Error, Result};

pub mod nccl_tests;

/// The most ranks that one machine is asked to start, as in `maypole run`.
const MOST_RANKS: usize = 4096;

/// Flags of `maypole perf` and of the perf binaries.
#[derive(clap::Args, Clone, Debug)]
pub struct Flags {
    /// Start this many ranks here; without it, the launcher's (torchrun, mpirun, mpiexec, maypole run)
    #[arg(long, value_name = "N")]
    pub ranks: Option<usize>,
    /// With --ranks: run them as threads of one process
    #[arg(long, requires = "ranks")]
    pub threads: bool,

    /// Smallest size in bytes; K, M and G are powers of 1024
    #[arg(short = 'b', long = "minbytes", alias = "min-bytes", default_value = "8")]
    #[arg(value_parser = size, value_name = "SIZE")]
    pub min_bytes: usize,
    /// Largest size in bytes
    #[arg(short = 'e', long = "maxbytes", alias = "max-bytes", default_value = "16M")]
    #[arg(value_parser = size, value_name = "SIZE")]
    pub max_bytes: usize,
    /// Fixed step between sizes [default: 1M, with a step factor of 1]
    #[arg(short = 'i', long = "stepbytes", alias = "step-bytes", value_parser = size, value_name = "SIZE")]
    pub step_bytes: Option<usize>,
    /// Factor between sizes; 1 steps by --stepbytes [default: 2, or 1 if --stepbytes is given]
    #[arg(short = 'f', long = "stepfactor", alias = "step-factor", value_name = "FACTOR")]
    pub step_factor: Option<usize>,

    /// Timed iterations of each row [default: what fits into 50 ms, 10 to 20000]
    #[arg(short = 'n', long = "iters", value_name = "COUNT")]
    pub iters: Option<usize>,
    /// Untimed iterations before them
    #[arg(short = 'w', long = "warmup_iters", alias = "warmup-iters", default_value_t = 5, value_name = "COUNT")]
    pub warmup_iters: usize,
    /// Calls per iteration
    #[arg(short = 'm', long = "agg_iters", alias = "agg-iters", default_value_t = 1, value_name = "COUNT")]
    pub agg_iters: usize,
    /// Iterations whose every element is checked; 0 checks nothing
    #[arg(short = 'c', long = "check", default_value_t = 1, value_name = "COUNT")]
    pub check: usize,
    /// Whose time a row shows: 0 rank 0's, 1 the average over ranks, 2 the shortest, 3 the longest
    #[arg(short = 'a', long = "average", default_value_t = 1, value_name = "0-3")]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=3))]
    pub average: u8,
    /// How often the whole table is run; 0 until interrupted
    #[arg(short = 'N', long = "run_cycles", alias = "run-cycles", default_value_t = 1, value_name = "COUNT")]
    pub run_cycles: usize,

    /// sum, prod, min, max, avg, mulsum, and, or, xor, or all; only collectives that reduce look at it
    #[arg(short = 'o', long = "op", default_value = "sum", value_name = "OP")]
    pub op: Choice<NamedOp>,
    /// f32, bf16 ... or nccl-tests' names (float, bfloat16 ...), or all
    #[arg(short = 'd', long = "datatype", default_value = "f32", value_name = "TYPE")]
    pub datatype: Choice<DataType>,
    /// The root, or all (-1); only collectives with a root look at it
    #[arg(short = 'r', long = "root", default_value = "0", allow_negative_numbers = true, value_name = "RANK")]
    pub root: Choice<usize>,

    /// Where the buffers lie: host, or cuda, the device whose number is the rank's on its host modulo the devices there
    #[arg(long, value_enum, default_value_t = Device::Host, value_name = "WHERE", hide_possible_values = true)]
    pub device: Device,
    /// Buffers in registered memory, which ranks of one host read where it lies; 1 and 2 mean the same
    #[arg(short = 'R', long = "registered", alias = "local_register", value_name = "0-2", num_args = 0..=1)]
    #[arg(default_value = "0", default_missing_value = "1", value_parser = clap::value_parser!(u8).range(0..=2))]
    #[arg(hide_default_value = true)]
    pub registered: u8,
    /// Deadline of an operation, seconds; the same as MAYPOLE_TIMEOUT, 0 leaves that as it is
    #[arg(short = 'T', long = "timeout", value_name = "SECONDS")]
    pub timeout: Option<String>,

    /// Write the results to this file, as JSON
    #[arg(short = 'J', long = "json", alias = "output_file", value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// 1: show when each row was measured (UTC)
    #[arg(short = 'S', long = "report_timestamps", default_value_t = 0, value_name = "0-1", hide_default_value = true)]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=1))]
    pub timestamps: u8,
    /// auto, shm or tcp; the same as MAYPOLE_TRANSPORT
    #[arg(long, value_name = "NAME")]
    pub transport: Option<String>,
    /// Algorithm, or entries like all_reduce=ring; the same as MAYPOLE_ALGORITHM
    #[arg(long, value_name = "NAME")]
    pub algorithm: Option<String>,

    /// Threads per process, for nccl-tests' command lines: always 1 (see --threads)
    #[arg(short = 't', long = "nthreads", default_value_t = 1, value_name = "1", hide = true)]
    pub nthreads: usize,
    /// GPUs per thread, for nccl-tests' command lines: always 1
    #[arg(short = 'g', long = "ngpus", default_value_t = 1, value_name = "1", hide = true)]
    pub ngpus: usize,
    /// What else nccl-tests has.
    #[command(flatten)]
    pub ignored: Ignored,
}

/// Where the buffers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    /// In host memory; calls block.
    Host,
    /// In a CUDA device's memory; calls are queued on a stream.
    Cuda,
}

/// One value, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice<T> {
    /// `all`.
    All,
    /// This one.
    One(T),
}

impl FromStr for Choice<NamedOp> {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "all" { Ok(Choice::All) } else { text.parse().map(Choice::One) }
    }
}

impl FromStr for Choice<DataType> {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "all" { Ok(Choice::All) } else { parse_dtype(text).map(Choice::One) }
    }
}

impl FromStr for Choice<usize> {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "all" | "-1" => Ok(Choice::All),
            _ => {
                text.parse().map(Choice::One).map_err(|_| "expected a rank, or all (-1) for every rank in turn".into())
            }
        }
    }
}

/// A size in bytes, for clap.
pub fn size(text: &str) -> std::result::Result<usize, String> {
    parse_size(text).ok_or_else(|| "expected a size in bytes, such as 8, 4K or 64M".to_string())
}

/// How one size leads to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepBy {
    /// Multiplied by this, at least 2.
    Factor(usize),
    /// This many bytes more, at least 1.
    Bytes(usize),
}

/// Flags that make sense.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is measured.
    pub operation: Operation,
    /// The flags.
    pub flags: Flags,
    /// How sizes follow each other.
    pub step: StepBy,
    /// Settings of the communicator.
    pub config: Config,
    /// NCCL's library, where its collectives are measured in place of Maypole's.
    pub nccl: Option<PathBuf>,
    /// nccl-tests' variables.
    pub environment: Environment,
}

impl Plan {
    /// Check the flags together. What depends on the number of ranks is checked by [`Plan::roots`] if no `--ranks` says
    /// it.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the flag, its value and what was expected.
    pub fn new(operation: Operation, flags: Flags) -> Result<Plan> {
        let refuse = |name: &str, value: &dyn std::fmt::Display, expected: String| {
            Err(Error::Setting { name: name.to_string(), value: value.to_string(), expected })
        };
        if let Some(ranks) = flags.ranks
            && !(1..=MOST_RANKS).contains(&ranks)
        {
            return refuse("--ranks", &ranks, format!("expected at least one rank and at most {MOST_RANKS}"));
        }
        if flags.nthreads != 1 {
            return refuse(
                "--nthreads",
                &flags.nthreads,
                "a process is one rank here; use --ranks N --threads for threads".into(),
            );
        }
        if flags.ngpus != 1 {
            return refuse("--ngpus", &flags.ngpus, "a rank has one device here; use --ranks N for more ranks".into());
        }
        if flags.min_bytes > flags.max_bytes {
            return refuse(
                "--minbytes",
                &flags.min_bytes,
                format!("larger than --maxbytes, which is {}", flags.max_bytes),
            );
        }
        let step = match (flags.step_factor, flags.step_bytes) {
            (Some(0), _) => return refuse("--stepfactor", &0, "expected 1 (step by --stepbytes) or more".into()),
            (_, Some(0)) => return refuse("--stepbytes", &0, "expected at least one byte".into()),
            // As in nccl-tests, a factor wins where both are given.
            (Some(factor), _) if factor > 1 => StepBy::Factor(factor),
            (Some(_), None) => StepBy::Bytes(1 << 20),
            (_, Some(bytes)) => StepBy::Bytes(bytes),
            (None, None) => StepBy::Factor(2),
        };
        if flags.min_bytes == 0 && flags.max_bytes > 0 && matches!(step, StepBy::Factor(_)) {
            return refuse(
                "--minbytes",
                &0,
                "no factor leads from 0 to a larger size; start at 1, or use --stepbytes".into(),
            );
        }
        for (name, value) in [("--iters", flags.iters), ("--agg_iters", Some(flags.agg_iters))] {
            if value == Some(0) {
                return refuse(name, &0, "expected at least one iteration".into());
            }
        }
        if let (true, Choice::One(op), Choice::One(dtype)) = (operation.reduces(), flags.op, flags.datatype)
            && !operation.takes(op, dtype)
        {
            let why = match op.supports(dtype) {
                false => format!("not defined on {dtype}; and, or and xor need an integer type"),
                true => format!("not defined for {}", operation.name()),
            };
            return refuse("--op", &op.name(), why);
        }
        if let Some(file) = &flags.json
            && let Some(directory) = file.parent()
            && !directory.as_os_str().is_empty()
            && !directory.is_dir()
        {
            return refuse("--json", &file.display(), format!("there is no directory {}", directory.display()));
        }
        let mut config = Config::from_env()?;
        let timeout = flags.timeout.clone().filter(|seconds| seconds.parse() != Ok(0.0));
        for (name, flag) in [
            ("MAYPOLE_TRANSPORT", &flags.transport),
            ("MAYPOLE_ALGORITHM", &flags.algorithm),
            ("MAYPOLE_TIMEOUT", &timeout),
        ] {
            if let Some(value) = flag {
                config.set(name, value)?;
            }
        }
        let environment = Environment::read(&|name| std::env::var(name).ok())?;
        let plan = Plan { operation, flags, step, config, nccl: None, environment };
        if let Some(ranks) = plan.flags.ranks {
            plan.roots(ranks)?;
        }
        Ok(plan)
    }

    /// The roots to run, of `ranks` ranks; a single 0 where the operation has no root.
    ///
    /// # Errors
    /// [`Error::Setting`] if the root is out of range.
    pub fn roots(&self, ranks: usize) -> Result<Vec<usize>> {
        match self.flags.root {
            _ if !self.operation.is_rooted() => Ok(vec![0]),
            Choice::All => Ok((0..ranks).collect()),
            Choice::One(root) if root < ranks => Ok(vec![root]),
            Choice::One(root) => Err(Error::Setting {
                name: "--root".to_string(),
                value: root.to_string(),
                expected: format!("expected a rank from 0 to {}, or all", ranks - 1),
            }),
        }
    }

    /// Sizes in bytes, in the order of the rows.
    pub fn sizes(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, last, step) = (self.flags.min_bytes, self.flags.max_bytes, self.step);
        let barrier = self.operation.is_barrier();
        std::iter::successors(Some(if barrier { 0 } else { first }), move |&size| {
            let next = match step {
                StepBy::Factor(factor) => size.checked_mul(factor)?,
                StepBy::Bytes(bytes) => size.checked_add(bytes)?,
            };
            (!barrier && size < next && next <= last).then_some(next)
        })
    }

    /// Types and operations, in the order of the tables. Operations that a type lacks are left out.
    pub fn combinations(&self) -> Vec<(DataType, Option<NamedOp>)> {
        if self.operation.is_barrier() {
            return vec![(DataType::U8, None)];
        }
        let dtypes = match self.flags.datatype {
            Choice::All => DataType::ALL.to_vec(),
            Choice::One(dtype) => vec![dtype],
        };
        let ops: Vec<Option<NamedOp>> = match self.flags.op {
            _ if !self.operation.reduces() => vec![None],
            Choice::All => NamedOp::ALL.into_iter().map(Some).collect(),
            Choice::One(op) => vec![Some(op)],
        };
        let all = dtypes.into_iter().flat_map(|dtype| ops.iter().map(move |&op| (dtype, op)));
        all.filter(|(dtype, op)| op.is_none_or(|op| self.operation.takes(op, *dtype))).collect()
    }
}

#[cfg(test)]
mod tests;
