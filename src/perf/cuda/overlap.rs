//! `overlap_perf`: collectives on one stream beside matrix products on another, as in training, where gradients travel
//! while the next ones are computed.
//!
//! Every rank times a loop of products alone, a loop of all-reduces alone, and both at once, started together. Three
//! questions are answered from the three times P, C and B (the median of several rounds, each the longest over ranks):
//!
//! * *How much of the communication was hidden?* (P + C - B) / C: 1 if both took no longer than the products alone.
//! * *How much could have been?* Products and collectives share the device's memory, so both cannot take less than their
//!   bytes take at its copy rate. The bytes of the collectives are the [floor](crate::perf::Traffic), of a product three
//!   matrices.
//! * *Was the product slowed by more than that explains?* By moving the collectives' bytes, the product may take longer
//!   by the time that the device needs to move them at its copy rate.
//!
//! Collectives are queued on a stream of the highest priority, and users should do the same: blocks of a product that is
//! already queued otherwise stand before theirs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use maypole_cuda::driver::{DeviceMemory, Event, Stream};
use maypole_cuda::kernels::bench::{BenchKernels, Product};
use serde::{Deserialize, Serialize};

use super::floors::copy_rate;
use super::nccl::Nccl;
use super::{DeviceInfo, Gpu, cuda, microseconds};
use crate::perf::buffer::Buffer;
use crate::perf::flags::size;
use crate::perf::measure::gather;
use crate::perf::operation::{NamedOp, Operation};
use crate::perf::ranks;
use crate::perf::row::{Form, Row};
use crate::{Collective, Communicator, Config, DataType, Error, Result};

/// How much of an all-reduce is hidden behind matrix products, and what it costs them.
#[derive(Parser, Clone, Debug)]
#[command(version, max_term_width = 120)]
pub struct Args {
    /// Start this many ranks here; without it, the launcher's (torchrun, mpirun, mpiexec, maypole run)
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// With --ranks: run them as threads of one process
    #[arg(long, requires = "ranks")]
    threads: bool,
    /// Bytes that each all-reduce combines, in f32
    #[arg(short = 'b', long, default_value = "64M", value_parser = size, value_name = "SIZE")]
    bytes: usize,
    /// Buffers in registered memory, which ranks of one host read where it lies
    #[arg(short = 'R', long)]
    registered: bool,
    /// Rows and columns of the products' matrices, in f32; a multiple of 64
    #[arg(long, default_value_t = 4096, value_name = "COUNT")]
    matrix: u32,
    /// How long the loop of products should take, in milliseconds
    #[arg(long, default_value_t = 200, value_name = "MS")]
    milliseconds: u32,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    rounds: usize,
    /// Use NCCL's all-reduce; with the path of its library, if the system does not find it by its name
    #[arg(long, value_name = "LIBRARY", num_args = 0..=1, default_missing_value = "libnccl.so.2")]
    nccl: Option<PathBuf>,
    /// Write the results to this file, as JSON
    #[arg(short = 'J', long = "json", value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What `overlap_perf` found. Times are microseconds of a whole loop.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OverlapReport {
    /// `overlap_perf`.
    pub program: String,
    /// Maypole's version.
    pub version: String,
    /// Whose all-reduce: `maypole`, or `nccl` and its version.
    pub library: String,
    /// Rank 0's device.
    pub device: DeviceInfo,
    /// Number of ranks.
    pub ranks: usize,
    /// `processes` or `threads`.
    pub ranks_are: String,
    /// Whether buffers were in registered memory.
    pub registered: bool,
    /// `MAYPOLE_DEVICE_BLOCKS`; 0 for NCCL, which has settings of its own.
    pub blocks: u32,
    /// Bytes of one all-reduce.
    pub bytes: usize,
    /// Rows and columns of the matrices.
    pub matrix: u32,
    /// Products and all-reduces in a loop.
    pub products: usize,
    /// See `products`.
    pub collectives: usize,
    /// The products alone.
    pub product_alone: f64,
    /// The all-reduces alone.
    pub collective_alone: f64,
    /// The products, while all-reduces run.
    pub product_together: f64,
    /// The all-reduces, while products run.
    pub collective_together: f64,
    /// Both, from the start of the first to the end of the last.
    pub together: f64,
    /// The copy rate of the busiest device, 10^9 bytes per second, read and written together.
    pub copy_rate: f64,
    /// Bytes that the all-reduces of a loop read and write at least, on the busiest device.
    pub collective_traffic: u64,
    /// Bytes that the products of a loop read and write at least, on that device.
    pub product_traffic: u64,
    /// Share of the all-reduces' time that was hidden.
    pub hidden: f64,
    /// Share that the memory's speed allows.
    pub allowed: f64,
    /// The products' time beside all-reduces over their time alone.
    pub slowdown: f64,
    /// What of it the all-reduces' bytes explain.
    pub explained: f64,
    /// Whether the last all-reduce's result was right.
    pub right: bool,
}

/// The `main` of `overlap_perf`: exit status 0, 1 if a result is wrong or something fails, 2 for flags that make no sense.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = args.check().and_then(|()| {
        let config = Config::from_env()?;
        ranks::start(args.ranks, args.threads, &config, &|comm| run(&args, comm))
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            crate::command::say(format_args!("overlap_perf: {error}"));
            ExitCode::from(if matches!(error, Error::Setting { .. }) { 2 } else { 1 })
        }
    }
}

impl Args {
    fn check(&self) -> Result<()> {
        let refuse = |name: &str, value: String, expected: &str| {
            Err(Error::Setting { name: name.to_string(), value, expected: expected.to_string() })
        };
        match self {
            Args { matrix, .. } if *matrix == 0 || matrix % 64 != 0 => {
                refuse("--matrix", matrix.to_string(), "expected a multiple of 64")
            }
            Args { bytes, .. } if *bytes < 4 => refuse("--bytes", bytes.to_string(), "expected one element at least"),
            Args { rounds: 0, .. } => refuse("--rounds", "0".into(), "expected one round at least"),
            _ => Ok(()),
        }
    }
}

/// One rank's two streams and what runs on them.
struct Bout<'a> {
    comm: &'a Communicator,
    gpu: &'a Gpu,
    nccl: Option<&'a Nccl>,
    row: Row,
    input: Buffer,
    output: Buffer,
    bench: BenchKernels,
    compute: Stream,
    matrices: [DeviceMemory; 3],
    matrix: u32,
    marks: [Event; 3],
}

/// The longest over ranks of each time, in microseconds.
#[derive(Clone, Copy, Default)]
struct Times {
    wall: f64,
    products: f64,
    collectives: f64,
}

impl Bout<'_> {
    fn collective(&mut self) -> Result<()> {
        if let Some(nccl) = self.nccl {
            let (from, to) = (self.input.device_bytes().address(), self.output.device_bytes_mut().address());
            // SAFETY: both have the row's length, and the stream is waited for before they go.
            return unsafe { nccl.call(&self.row, Form::OutOfPlace, from, to, self.gpu.stream.raw()) };
        }
        let call = self.row.call(Collective::AllReduce);
        self.comm.on(&self.gpu.stream).call(call, self.input.device_bytes(), self.output.device_bytes_mut())
    }

    /// Both loops, either of which may be empty, begun together on all ranks.
    fn together(&mut self, products: usize, collectives: usize) -> Result<Times> {
        let doing = cuda("running the loops");
        self.comm.barrier()?;
        let start = Instant::now();
        self.marks[0].record(&self.compute).map_err(&doing)?;
        self.gpu.stream.wait_event(&self.marks[0]).map_err(&doing)?;
        // All products first: queuing them takes microseconds each, and a collective may have to wait for room.
        for _ in 0..products {
            let [a, b, c] = self.matrices.each_ref().map(DeviceMemory::address);
            let product = Product { a, b, c, side: self.matrix.into() };
            // SAFETY: three square matrices of that size, which stay until the stream is waited for below.
            unsafe { self.bench.matmul(&self.compute, &product) }.map_err(&doing)?;
        }
        self.marks[1].record(&self.compute).map_err(&doing)?;
        for _ in 0..collectives {
            self.collective()?;
        }
        self.marks[2].record(&self.gpu.stream).map_err(&doing)?;
        self.compute.synchronize().map_err(&doing)?;
        self.gpu.wait()?;
        let wall = microseconds(start.elapsed());
        if let Some(verdict) = self.comm.verdict() {
            return Err(Error::Failed { rank: self.comm.rank(), verdict });
        }
        let since = |mark: &Event| mark.elapsed_us(&self.marks[0]).map_err(&doing);
        let mine = [wall, since(&self.marks[1])?, since(&self.marks[2])?].map(f64::to_bits);
        let all = gather(self.comm, &mine)?;
        let longest = |column: usize| all.iter().map(|row| f64::from_bits(row[column])).fold(0.0, f64::max);
        Ok(Times { wall: longest(0), products: longest(1), collectives: longest(2) })
    }

    /// The round with the median wall time.
    fn median(&mut self, rounds: usize, products: usize, collectives: usize) -> Result<Times> {
        let mut all = (0..rounds).map(|_| self.together(products, collectives)).collect::<Result<Vec<_>>>()?;
        all.sort_by(|a, b| a.wall.total_cmp(&b.wall));
        Ok(all[all.len() / 2])
    }
}

/// A rank's whole run. Whether the result was right.
fn run(args: &Args, comm: &Communicator) -> Result<bool> {
    let mut gpu = Gpu::of(comm, 0)?;
    // Nothing is beside it in the other programs, which measure on an ordinary stream.
    gpu.stream = Stream::urgent(&gpu.context).map_err(cuda("making a stream"))?;
    let gpu = gpu;
    let nccl = args.nccl.as_ref().map(|library| gpu.within(|| Nccl::new(library, comm))).transpose()?;
    if nccl.is_none() || args.registered {
        comm.attach(&gpu.context)?;
    }
    let count = args.bytes / 4;
    let (rank, ranks) = (comm.rank(), comm.size());
    let operation = Operation::Collective(Collective::AllReduce);
    let row = Row { operation, dtype: DataType::F32, op: Some(NamedOp::Sum), root: 0, count, rank, ranks };
    let buffer = || Buffer::on_device(comm, &gpu, count * 4, args.registered);
    let (mut input, mut output) = (buffer()?, buffer()?);
    for buffer in [&mut input, &mut output] {
        buffer.reset(count * 4);
    }
    for (index, element) in input.bytes_mut().chunks_exact_mut(4).enumerate() {
        element.copy_from_slice(&((index % 1000 + rank) as f32).to_ne_bytes());
    }
    input.upload(&gpu)?;
    output.upload(&gpu)?;

    let doing = cuda("preparing the products");
    let side = args.matrix as usize;
    let matrix = || -> Result<DeviceMemory> {
        let memory = DeviceMemory::new(&gpu.context, side * side * 4).map_err(&doing)?;
        let elements: Vec<u8> = (0..side * side).flat_map(|i| ((i % 17) as f32 / 17.0).to_ne_bytes()).collect();
        memory.copy_from_host(0, &elements).map_err(&doing)?;
        Ok(memory)
    };
    let event = || Event::new(&gpu.context, true).map_err(&doing);
    let mut bout = Bout {
        comm,
        gpu: &gpu,
        nccl: nccl.as_ref(),
        row,
        input,
        output,
        bench: BenchKernels::load(&gpu.context).map_err(&doing)?,
        compute: Stream::new(&gpu.context).map_err(&doing)?,
        matrices: [matrix()?, matrix()?, matrix()?],
        matrix: args.matrix,
        marks: [event()?, event()?, event()?],
    };
    // The first of each loads, connects and attaches; the second tells how many fit into the time. Counts stay far below
    // what a stream's queue holds, and all ranks come to the same, since all know the same times.
    bout.together(1, 1)?;
    let one = bout.together(1, 0)?.products.max(1.0);
    let products = ((f64::from(args.milliseconds) * 1000.0 / one) as usize).clamp(1, 400);
    let product_alone = bout.median(args.rounds, products, 0)?;
    let one = (bout.together(0, 4)?.collectives / 4.0).max(1.0);
    // Half as long as the products: what is not hidden then is not for want of products.
    let collectives = ((product_alone.products / 2.0 / one) as usize).clamp(1, 100);
    let collective_alone = bout.median(args.rounds, 0, collectives)?;
    let both = bout.median(args.rounds, products, collectives)?;
    bout.output.download(&gpu)?;
    let expected = |index: usize| (index % 1000 * ranks + ranks * (ranks - 1) / 2) as f32;
    let mut elements = bout.output.bytes().chunks_exact(4).enumerate();
    let right = elements.all(|(i, e)| f32::from_ne_bytes(e.try_into().expect("4 bytes")) == expected(i));
    let right = gather(comm, &[right as u64])?.iter().all(|row| row[0] == 1);

    // Ranks on this device, and what all of them move; the rank of the busiest device decides.
    let uuid = gpu.context.uuid();
    let halves = [
        u64::from_ne_bytes(uuid[..8].try_into().expect("8 bytes")),
        u64::from_ne_bytes(uuid[8..].try_into().expect("8 bytes")),
    ];
    let beside = gather(comm, &halves)?.iter().filter(|other| other[..] == halves).count();
    comm.barrier()?;
    // One rank per device measures, while the others rest.
    let rate = if rank == 0 { copy_rate(&gpu, args.bytes.max(64 << 10), args.rounds)?.rate } else { 0.0 };
    let busiest = gather(comm, &[beside as u64])?.iter().map(|row| row[0]).max().unwrap_or(1) as usize;
    if rank != 0 {
        return Ok(right);
    }
    let floor = row.traffic(Form::OutOfPlace).total() * busiest * collectives;
    let product = 3 * side * side * 4 * busiest * products;
    let mut report = OverlapReport {
        program: "overlap_perf".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        library: nccl.as_ref().map_or("maypole".into(), |nccl| format!("nccl {}", nccl.version())),
        device: gpu.info(),
        ranks,
        ranks_are: if args.threads { "threads" } else { "processes" }.into(),
        registered: args.registered,
        blocks: if nccl.is_some() { 0 } else { comm.config().device_blocks },
        bytes: count * 4,
        matrix: args.matrix,
        products,
        collectives,
        product_alone: product_alone.products,
        collective_alone: collective_alone.collectives,
        product_together: both.products,
        collective_together: both.collectives,
        together: both.products.max(both.collectives),
        copy_rate: rate,
        collective_traffic: floor as u64,
        product_traffic: product as u64,
        hidden: 0.0,
        allowed: 0.0,
        slowdown: 0.0,
        explained: 0.0,
        right,
    };
    report.conclude();
    crate::command::print(&report.text());
    if let Some(path) = &args.json {
        let failed = |e: &dyn std::fmt::Display| Error::system(format!("writing {} (--json)", path.display()), e);
        let text = serde_json::to_string_pretty(&report).map_err(|e| failed(&e))?;
        std::fs::write(path, text + "\n").map_err(|e| failed(&e))?;
    }
    Ok(right)
}

impl OverlapReport {
    /// The shares, from the times and bytes.
    fn conclude(&mut self) {
        let microseconds_of = |bytes: u64| bytes as f64 / self.copy_rate.max(1e-9) / 1000.0;
        let apart = self.product_alone + self.collective_alone;
        let least = microseconds_of(self.collective_traffic + self.product_traffic)
            .max(self.product_alone)
            .max(self.collective_alone);
        let share = |together: f64| ((apart - together) / self.collective_alone).clamp(0.0, 1.0);
        (self.hidden, self.allowed) = (share(self.together), share(least));
        self.slowdown = self.product_together / self.product_alone;
        self.explained = 1.0 + microseconds_of(self.collective_traffic) / self.product_alone;
    }

    fn text(&self) -> String {
        let (registered, side) = (if self.registered { ", registered" } else { "" }, self.matrix);
        format!(
            "# {} all-reduce of {} bytes{registered} on {} {} beside products of {side}x{side} matrices, {}\n\
             {} products alone {:.0} us, {} all-reduces alone {:.0} us; together {:.0} us (products {:.0}, all-reduces {:.0})\n\
             hidden {:.1}% (the memory allows {:.1}%); products slowed {:.3} times (the all-reduces' {} bytes explain {:.3})\n\
             result {}\n",
            self.library,
            self.bytes,
            self.ranks,
            self.ranks_are,
            self.device.name,
            self.products,
            self.product_alone,
            self.collectives,
            self.collective_alone,
            self.together,
            self.product_together,
            self.collective_together,
            self.hidden * 100.0,
            self.allowed * 100.0,
            self.slowdown,
            self.collective_traffic,
            self.explained,
            if self.right { "right" } else { "WRONG" },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(product: f64, collective: f64, together: [f64; 2], traffic: u64) -> OverlapReport {
        let mut report = OverlapReport {
            program: "overlap_perf".into(),
            version: String::new(),
            library: "maypole".into(),
            device: DeviceInfo::default(),
            ranks: 2,
            ranks_are: "threads".into(),
            registered: false,
            blocks: 0,
            bytes: 4,
            matrix: 64,
            products: 1,
            collectives: 1,
            product_alone: product,
            collective_alone: collective,
            product_together: together[0],
            collective_together: together[1],
            together: together[0].max(together[1]),
            copy_rate: 1000.0,
            collective_traffic: traffic,
            product_traffic: 0,
            hidden: 0.0,
            allowed: 0.0,
            slowdown: 0.0,
            explained: 0.0,
            right: true,
        };
        report.conclude();
        report
    }

    #[test]
    fn shares_are_of_the_shorter_loop() {
        // 1000 GB/s move a million bytes in a microsecond.
        let hidden = report(200.0, 100.0, [200.0, 150.0], 50_000_000);
        assert_eq!((hidden.hidden, hidden.allowed), (1.0, 1.0));
        assert_eq!((hidden.slowdown, hidden.explained), (1.0, 1.25));
        let serial = report(200.0, 100.0, [200.0, 300.0], 50_000_000);
        assert_eq!(serial.hidden, 0.0);
        let half = report(200.0, 100.0, [250.0, 240.0], 50_000_000);
        assert_eq!((half.hidden, half.slowdown), (0.5, 1.25));
        // What fills the memory's time leaves nothing to hide behind.
        let full = report(200.0, 200.0, [400.0, 400.0], 400_000_000);
        assert_eq!((full.hidden, full.allowed), (0.0, 0.0));
        assert!(full.text().contains("hidden 0.0%"), "{}", full.text());
    }
}
