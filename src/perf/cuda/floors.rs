//! What the device itself takes, measured in the same run as the figures that are held against it.
//!
//! * The **copy rate**: the driver's own copy from device memory to device memory, bytes read and written counted.
//! * An **empty launch**, and an **empty launch with a stream wait before and after it**: what a device operation that
//!   needs one word from a peer and gives one cannot do without. Each twice: *queued*, many in a row, by the stream's clock;
//!   and *waited for*, from the call to the end of the host's wait, as a caller sees it who needs the result.

use std::time::Instant;

use maypole_cuda::Commands;
use maypole_cuda::driver::DeviceMemory;
use serde::{Deserialize, Serialize};

use super::words::Words;
use super::{Gpu, cuda, microseconds};
use crate::Result;

/// Launches in a row. They are queued behind a closed gate, and a driver's queue holds about a thousand commands.
const QUEUED: u32 = 100;
/// Launches that are each waited for.
const WAITED: usize = 500;

/// The driver's copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyRate {
    /// Bytes copied at a time; as many are read as are written.
    pub bytes: usize,
    /// Microseconds; the best of several rounds.
    pub time: f64,
    /// 10^9 bytes per second, read and written together.
    pub rate: f64,
}

/// Microseconds of an empty launch, alone and between two waits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LaunchFloors {
    /// Empty launch, queued.
    pub launch: f64,
    /// Empty launch and two waits, queued.
    pub launch_and_waits: f64,
    /// Empty launch, waited for; median.
    pub launch_waited: f64,
    /// Empty launch and two waits, waited for; median. The host stores both words as soon as everything is queued.
    pub launch_and_waits_waited: f64,
}

/// Measure the copy of `bytes` bytes.
///
/// # Errors
/// The driver's; [`crate::Error::System`] if the device has no room for twice as much.
pub fn copy_rate(gpu: &Gpu, bytes: usize, rounds: usize) -> Result<CopyRate> {
    let allocate = || DeviceMemory::new(&gpu.context, bytes).map_err(cuda("allocating for the copy rate"));
    let (from, to) = (allocate()?, allocate()?);
    from.fill(0, bytes, 0x5a).map_err(cuda("filling device memory"))?;
    // SAFETY: `lap` waits for the stream before either is dropped.
    let copy = || unsafe { to.queue_copy(0, &from, 0, bytes, &gpu.stream) }.map_err(cuda("copying"));
    let time = best(gpu, rounds, copy)?;
    Ok(CopyRate { bytes, time, rate: rate(2 * bytes, time) })
}

/// 10^9 bytes per second, of bytes and microseconds.
pub fn rate(bytes: usize, microseconds: f64) -> f64 {
    if microseconds > 0.0 { bytes as f64 / microseconds / 1000.0 } else { 0.0 }
}

/// The shortest of `rounds` rounds of ten calls by the stream's clock, per call in microseconds. The first, untimed, warms.
pub fn best(gpu: &Gpu, rounds: usize, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    const CALLS: usize = 10;
    gpu.lap(&mut call)?;
    let mut best = f64::INFINITY;
    for _ in 0..rounds.max(1) {
        let lap = gpu.lap(|| (0..CALLS).try_for_each(|_| call()))?;
        best = best.min(lap.stream / CALLS as f64);
    }
    Ok(best)
}

/// Measure launches of `launch`, which queues an empty kernel.
///
/// # Errors
/// The driver's.
pub fn launches(gpu: &Gpu, launch: impl Fn() -> maypole_cuda::Result<()>) -> Result<LaunchFloors> {
    let words = Words::private(gpu)?;
    let [closed, before, after] = [0, 1, 2].map(|number| words.word(number));
    let doing = cuda("measuring launches");
    let one = |number: u32, waits: bool| -> maypole_cuda::Result<()> {
        let mut commands = Commands::new(&gpu.stream)?;
        if waits {
            commands.wait(&before, number)?;
        }
        commands.then(|_| launch())?;
        if waits {
            commands.wait(&after, number)?;
        }
        commands.finish()
    };
    let mut number = 0;
    // Commands leave out waits for what is there already, so the words get their value when everything is queued.
    let mut queued = |waits: bool| -> Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            number += 1;
            let gate = || {
                let mut commands = Commands::new(&gpu.stream)?;
                commands.wait(&closed, number)?;
                commands.finish()
            };
            gate().map_err(&doing)?;
            let lap = gpu.lap(|| {
                let queued = (0..QUEUED).try_for_each(|_| one(number, waits));
                // Open also after an error: the stream must not stay closed.
                for word in [before, after, closed] {
                    word.store(number);
                }
                queued.map_err(&doing)
            })?;
            best = best.min(lap.stream / QUEUED as f64);
        }
        Ok(best)
    };
    let (launch_queued, both_queued) = (queued(false)?, queued(true)?);
    let mut waited = |waits: bool| -> Result<f64> {
        let mut samples = Vec::with_capacity(WAITED);
        for _ in 0..WAITED {
            number += 1;
            let start = Instant::now();
            let queued = one(number, waits);
            before.store(number);
            after.store(number);
            queued.and_then(|()| gpu.stream.synchronize()).map_err(&doing)?;
            samples.push(microseconds(start.elapsed()));
        }
        samples.sort_by(f64::total_cmp);
        Ok(samples[WAITED / 2])
    };
    Ok(LaunchFloors {
        launch: launch_queued,
        launch_and_waits: both_queued,
        launch_waited: waited(false)?,
        launch_and_waits_waited: waited(true)?,
    })
}
