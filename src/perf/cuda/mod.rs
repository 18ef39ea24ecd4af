//! The perf runs on CUDA devices: buffers in device memory, calls queued on a stream, and what to hold the figures
//! against.
//!
//! * here: a rank's device, its stream, and the two clocks, the host's and the stream's events;
//! * [`nccl`]: NCCL's collectives in the same loops (`nccl_perf`);
//! * [`floors`]: what the device itself takes: its copy rate, an empty launch, a launch between two waits;
//! * [`kernels`]: `kernel_perf`, the reduction kernels against the copy rate;
//! * [`primitives`]: `primitives_perf`, what waits, writes and words between ranks cost, and whether they hold; `words`:
//!   the words of measurements;
//! * [`overlap`]: `overlap_perf`, collectives beside matrix products;
//! * [`summary`]: `gpu_summary`, all files of a run as one table and one file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_cuda::driver::{Context, CudaError, Event, Stream, probe};
use serde::{Deserialize, Serialize};

use crate::{Communicator, Error, Result};

pub mod floors;
pub mod kernels;
pub mod nccl;
pub mod overlap;
pub mod primitives;
pub mod summary;
mod words;

/// One rank's device and what it measures with.
pub struct Gpu {
    /// The device's primary context.
    pub context: Arc<Context>,
    /// The stream that calls are queued on.
    pub stream: Stream,
    begun: Event,
    ended: Event,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("context", &self.context).finish_non_exhaustive()
    }
}

/// What a report says about a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// What identifies it, in hexadecimal.
    pub uuid: String,
    /// Where it is plugged in.
    pub pci: String,
    /// Compute capability: `9.0`.
    pub capability: String,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// The newest CUDA that the driver supports: `13.0`.
    pub cuda: String,
    /// The driver's own version, where the system says it: `580.65.06`.
    pub driver: String,
    /// Whether streams can wait for and write words themselves.
    pub memory_operations: bool,
    /// Whether processes share it through NVIDIA's MPS.
    #[serde(default)]
    pub mps: bool,
}

/// How long something took by both clocks, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lap {
    /// From the first call to the end of the wait for the stream, by the host's clock.
    pub host: f64,
    /// Between events before and after, by the device's clock.
    pub stream: f64,
}

impl Gpu {
    /// The device of this rank: `first` and its number among the ranks of its host, modulo the devices there.
    ///
    /// # Errors
    /// [`Error::System`] where there is no driver or no device, with what was missing.
    pub fn of(comm: &Communicator, first: usize) -> Result<Gpu> {
        let devices = probe().map_err(cuda("using CUDA (--device cuda)"))?.device_count();
        Gpu::open(first.wrapping_add(comm.topology().placement().place(comm.rank())) % devices)
    }

    /// Device `ordinal` of this process.
    ///
    /// # Errors
    /// [`Error::System`] with what the driver refused.
    pub fn open(ordinal: usize) -> Result<Gpu> {
        let open = || -> std::result::Result<Gpu, CudaError> {
            let context = Context::primary(ordinal)?;
            let stream = Stream::new(&context)?;
            let (begun, ended) = (Event::new(&context, true)?, Event::new(&context, true)?);
            Ok(Gpu { context, stream, begun, ended })
        };
        open().map_err(cuda("using a CUDA device"))
    }

    /// Time what `work` queues on the stream, to its end.
    ///
    /// # Errors
    /// `work`'s, or the driver's.
    pub fn lap(&self, work: impl FnOnce() -> Result<()>) -> Result<Lap> {
        let start = Instant::now();
        self.begun.record(&self.stream).map_err(cuda("recording an event"))?;
        work()?;
        self.ended.record(&self.stream).map_err(cuda("recording an event"))?;
        self.stream.synchronize().map_err(cuda("waiting for the stream"))?;
        let host = start.elapsed();
        let stream = self.ended.elapsed_us(&self.begun).map_err(cuda("reading events"))?;
        Ok(Lap { host: microseconds(host), stream })
    }

    /// Do something with the device's context current on this thread, for libraries that go by that.
    ///
    /// # Errors
    /// `work`'s, or the driver's.
    pub fn within<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _entered = self.context.enter().map_err(cuda("making the device's context current"))?;
        work()
    }

    /// Wait until the stream is done.
    ///
    /// # Errors
    /// What went wrong on it.
    pub fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(cuda("waiting for the stream"))
    }

    /// What it is.
    pub fn info(&self) -> DeviceInfo {
        DeviceInfo::of(&self.context)
    }
}

impl DeviceInfo {
    /// Of the device that `context` belongs to.
    pub fn of(context: &Context) -> DeviceInfo {
        let version = probe().map_or(0, |driver| driver.version());
        let (major, minor) = context.capability();
        DeviceInfo {
            name: context.name().to_string(),
            uuid: context.uuid().iter().map(|byte| format!("{byte:02x}")).collect(),
            pci: context.pci().to_string(),
            capability: format!("{major}.{minor}"),
            multiprocessors: context.multiprocessors(),
            memory: context.memory().map_or(0, |(_, total)| total),
            cuda: format!("{}.{}", version / 1000, version % 1000 / 10),
            driver: kernel_driver().unwrap_or_default(),
            memory_operations: context.supports_memory_operations(),
            mps: crate::device::is_under_mps(),
        }
    }

    /// How its ranks stand on it: `threads` of one process, `processes`, or processes under `MPS`. Figures of different
    /// modes are not to be compared.
    pub fn mode(&self, threads: bool) -> &'static str {
        match (threads, self.mps) {
            (true, _) => "threads",
            (false, true) => "MPS",
            (false, false) => "processes",
        }
    }
}

/// The version of the kernel's driver, which CUDA itself does not tell.
pub fn kernel_driver() -> Option<String> {
    if let Ok(version) = std::fs::read_to_string("/sys/module/nvidia/version") {
        return Some(version.trim().to_string());
    }
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version =
        |word: &&str| word.split('.').count() >= 2 && word.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_string)
}

/// A driver's error as the library's, with what was being done.
pub fn cuda(doing: &'static str) -> impl Fn(CudaError) -> Error {
    move |error| Error::system(doing, error)
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
