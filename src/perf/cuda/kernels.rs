//! `kernel_perf`: the copy and reduction kernels against the device's own copy rate, and the launch floors.
//!
//! A kernel that is limited by memory alone moves its bytes as fast as the driver's copy does, whatever it computes on the
//! way. So each is timed on operands far larger than any cache, its bytes counted (every source read once, the result
//! written once), and shown as a share of the copy rate.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use maypole_cuda::driver::DeviceMemory;
use maypole_cuda::kernels::bench::BenchKernels;
use maypole_cuda::kernels::{Job, Kernel, Kernels, Source};
use serde::{Deserialize, Serialize};

use super::floors::{CopyRate, LaunchFloors, best, copy_rate, launches, rate};
use super::{DeviceInfo, Gpu, cuda};
use crate::perf::flags::{Choice, size};
use crate::perf::operation::NamedOp;
use crate::{DataType, Error, Result};

/// How fast the device copies, launches and waits, and how fast the copy and reduction kernels are beside that.
#[derive(Parser)]
#[command(version, max_term_width = 120)]
struct Args {
    /// Bytes of each operand; K, M and G are powers of 1024. Beyond the caches, or figures mean nothing
    #[arg(short = 'b', long, default_value = "256M", value_parser = size, value_name = "SIZE")]
    bytes: usize,
    /// f32, bf16 ..., or all
    #[arg(short = 'd', long = "datatype", default_value = "all", value_name = "TYPE")]
    datatype: Choice<DataType>,
    /// sum, prod, min, max, avg, mulsum, and, or, xor, or all
    #[arg(short = 'o', long = "op", default_value = "all", value_name = "OP")]
    op: Choice<NamedOp>,
    /// How many operands a sum has, beside the two of every operation
    #[arg(long, default_value = "4,8", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(2..=8))]
    sources: Vec<u8>,
    /// Rounds of ten calls; the best counts
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    rounds: usize,
    /// Number of the device
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    device: usize,
    /// Write the results to this file, as JSON
    #[arg(short = 'J', long = "json", value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One kernel's figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelRow {
    /// `copy`, `scale` or `reduce`.
    pub kernel: String,
    /// Element type; of a copy, `bytes`.
    #[serde(rename = "type")]
    pub dtype: String,
    /// Operation; `none` where there is none.
    pub op: String,
    /// How many sources it reads.
    pub sources: usize,
    /// Bytes of each operand.
    pub bytes: usize,
    /// Bytes read and written.
    pub traffic: usize,
    /// Microseconds; the best round.
    pub time: f64,
    /// 10^9 bytes per second, read and written together.
    pub rate: f64,
    /// Share of the copy rate.
    pub ratio: f64,
}

/// Everything that `kernel_perf` found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelReport {
    /// `kernel_perf`.
    pub program: String,
    /// Maypole's version.
    pub version: String,
    /// Seconds since 1970 at the start.
    pub start_time: u64,
    /// Where.
    pub device: DeviceInfo,
    /// The driver's copy.
    pub copy: CopyRate,
    /// Empty launches.
    pub launches: LaunchFloors,
    /// The kernels.
    pub kernels: Vec<KernelRow>,
}

/// The `main` of `kernel_perf`: exit status 0, or 1 where something cannot be measured.
pub fn main() -> ExitCode {
    match run(&Args::parse(), &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::command::say(format_args!("kernel_perf: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let gpu = Gpu::open(args.device)?;
    let mut print = |text: String| {
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Error::system("writing the table", e))
    };
    let bench = BenchKernels::load(&gpu.context).map_err(cuda("loading the kernels for measurements"))?;
    let copy = copy_rate(&gpu, args.bytes, args.rounds)?;
    let launches = launches(&gpu, || bench.empty(&gpu.stream))?;
    let mut report = KernelReport {
        program: "kernel_perf".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        start_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
        device: gpu.info(),
        copy,
        launches,
        kernels: Vec::new(),
    };
    print(header(&report))?;
    let mut operands = Operands::new(&gpu, args)?;
    for case in args.cases() {
        let row = operands.measure(&case, report.copy.rate)?;
        print(line(&row))?;
        report.kernels.push(row);
    }
    if let Some(path) = &args.json {
        let failed = |e: &dyn std::fmt::Display| Error::system(format!("writing {} (--json)", path.display()), e);
        let text = serde_json::to_string_pretty(&report).map_err(|e| failed(&e))?;
        std::fs::write(path, text + "\n").map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// One kernel to measure.
struct Case {
    kernel: Kernel,
    name: &'static str,
    dtype: Option<DataType>,
    op: Option<NamedOp>,
    sources: usize,
}

impl Args {
    /// The copy; per type a scaling and every operation on two operands; per type the sum of more.
    fn cases(&self) -> Vec<Case> {
        let dtypes = match self.datatype {
            Choice::All => DataType::ALL.to_vec(),
            Choice::One(dtype) => vec![dtype],
        };
        let ops = match self.op {
            Choice::All => NamedOp::ALL.to_vec(),
            Choice::One(op) => vec![op],
        };
        let mut cases = vec![Case { kernel: Kernel::Copy, name: "copy", dtype: None, op: None, sources: 1 }];
        for dtype in dtypes {
            let dtype_of = Some(dtype);
            let reduce = |op, sources| Case {
                kernel: Kernel::Reduce(dtype),
                name: "reduce",
                dtype: dtype_of,
                op: Some(op),
                sources,
            };
            cases.push(Case { kernel: Kernel::Scale(dtype), name: "scale", dtype: dtype_of, op: None, sources: 1 });
            // A pre-multiplied sum is a scaling and a sum, which are there already.
            cases.extend(
                ops.iter().filter(|op| op.supports(dtype) && **op != NamedOp::PreMulSum).map(|&op| reduce(op, 2)),
            );
            if ops.contains(&NamedOp::Sum) {
                cases.extend(self.sources.iter().filter(|&&n| n > 2).map(|&n| reduce(NamedOp::Sum, n as usize)));
            }
        }
        cases
    }
}

/// The memory that kernels run on.
struct Operands<'a> {
    gpu: &'a Gpu,
    kernels: std::sync::Arc<Kernels>,
    bytes: usize,
    rounds: usize,
    sources: Vec<DeviceMemory>,
    result: DeviceMemory,
}

impl<'a> Operands<'a> {
    fn new(gpu: &'a Gpu, args: &Args) -> Result<Operands<'a>> {
        let kernels = Kernels::load(&gpu.context).map_err(cuda("loading the kernels"))?;
        let allocate = || DeviceMemory::new(&gpu.context, args.bytes).map_err(cuda("allocating operands"));
        let most = args.sources.iter().copied().max().unwrap_or(2).max(2);
        let sources: Vec<DeviceMemory> = (0..most).map(|_| allocate()).collect::<Result<_>>()?;
        // Bytes that are neither equal nor zero, which some devices handle faster; small floats in every type.
        let pattern: Vec<u8> =
            (0..1usize << 20).map(|i| 0x30 | (i.wrapping_mul(0x9e37_79b1) >> 11) as u8 & 0x0f).collect();
        for source in &sources {
            for at in (0..args.bytes).step_by(pattern.len()) {
                let part = pattern.len().min(args.bytes - at);
                source.copy_from_host(at, &pattern[..part]).map_err(cuda("filling operands"))?;
            }
        }
        Ok(Operands { gpu, kernels, bytes: args.bytes, rounds: args.rounds, sources, result: allocate()? })
    }

    fn measure(&mut self, case: &Case, copy: f64) -> Result<KernelRow> {
        let element = case.dtype.map_or(1, DataType::size);
        let (to, count) = (self.result.address(), (self.bytes / element) as u64);
        let sources: Vec<Source> = self.sources[..case.sources].iter().map(|m| Source::plain(m.address())).collect();
        let job = match (case.dtype, case.op) {
            (Some(dtype), Some(op)) => {
                let job = Job::reduce(to, &sources, op.reduce_op(0, dtype), count);
                Job { divide: if op == NamedOp::Avg { case.sources as u64 } else { 0 }, ..job }
            }
            (Some(dtype), None) => Job::scale(to, sources[0], dtype, 2.0, count),
            (None, _) => Job::copy(to, sources[0], count),
        };
        let launch = || {
            // SAFETY: every operand has the job's length, and `best` waits for the stream before any is dropped.
            unsafe { self.kernels.launch(&self.gpu.stream, case.kernel, &job) }.map_err(cuda("launching a kernel"))
        };
        let time = best(self.gpu, self.rounds, launch)?;
        let traffic = (case.sources + 1) * (self.bytes / element * element);
        let rate = rate(traffic, time);
        Ok(KernelRow {
            kernel: case.name.into(),
            dtype: case.dtype.map_or("bytes", |dtype| dtype.name()).into(),
            op: case.op.map_or("none", NamedOp::name).into(),
            sources: case.sources,
            bytes: self.bytes,
            traffic,
            time,
            rate,
            ratio: if copy > 0.0 { rate / copy } else { 0.0 },
        })
    }
}

fn header(report: &KernelReport) -> String {
    let KernelReport { device, copy, launches, .. } = report;
    format!(
        "# Maypole {}: kernels on {} ({}), CUDA {}\n\
         # copy rate: {:.1} GB/s, read and written, of {} bytes device to device ({:.1} us)\n\
         # empty launch: {:.2} us queued, {:.2} us waited for; with two stream waits: {:.2} and {:.2} us\n\
         #\n\
         # {:>8}  {:>7}  {:>9}  {:>7}  {:>12}  {:>10}  {:>9}  {:>6}\n\
         # {:>8}  {:>7}  {:>9}  {:>7}  {:>12}  {:>10}  {:>9}  {:>6}\n",
        report.version,
        device.name,
        device.capability,
        device.cuda,
        copy.rate,
        copy.bytes,
        copy.time,
        launches.launch,
        launches.launch_waited,
        launches.launch_and_waits,
        launches.launch_and_waits_waited,
        "kernel",
        "type",
        "op",
        "sources",
        "traffic",
        "time",
        "rate",
        "ratio",
        "",
        "",
        "",
        "",
        "(B)",
        "(us)",
        "(GB/s)",
        "(copy)",
    )
}

fn line(row: &KernelRow) -> String {
    format!(
        "  {:>8}  {:>7}  {:>9}  {:>7}  {:>12}  {:>10.2}  {:>9.1}  {:>5.1}%\n",
        row.kernel,
        row.dtype,
        row.op,
        row.sources,
        row.traffic,
        row.time,
        row.rate,
        row.ratio * 100.0
    )
}
