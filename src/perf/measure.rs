//! Timing and checking one row in one form, on every rank at once.
//!
//! The mean comes from a tight loop between two clock readings, as in nccl-tests: reading the clock around every call
//! would cost a tenth of a small one. Median and 99th percentile come from a second loop that does read it around every
//! call. Neither loop has a barrier in it, and both use the same buffers in every iteration.
//!
//! On a device the first loop queues all its calls and waits once, at the end; events before and after give the stream's
//! own time. The second waits for each call, so it shows what a caller pays who needs the result at once.

use std::time::{Duration, Instant};

use super::cuda::nccl::Nccl;
use super::cuda::{Gpu, Lap};
use super::operation::Operation;
use super::row::{Buffers, Form, Row};
use super::values::Values;
use crate::cuda::{DeviceSlice, DeviceSliceMut};
use crate::{Call, Communicator, Error, Result};

/// Time that a row's tight loop should take where `-n` does not say how many iterations it has.
const BUDGET: Duration = Duration::from_millis(50);
/// Bounds on the iterations chosen so.
const ITERATIONS: (usize, usize) = (10, 20_000);
/// The most calls that are timed one by one.
const SAMPLES: usize = 10_000;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Timed iterations; `None` chooses by the time of one.
    pub iters: Option<usize>,
    /// Untimed iterations.
    pub warmup: usize,
    /// Calls per iteration.
    pub aggregate: usize,
    /// Checked iterations.
    pub check: usize,
    /// How ranks' times become one: nccl-tests' `-a`.
    pub average: u8,
}

/// Who carries calls out, and where the buffers are.
#[derive(Clone, Copy)]
pub enum Carrier<'a> {
    /// Maypole, in host memory.
    Host,
    /// Maypole, in the device's memory and on its stream. The second says whether all ranks lend their buffers, see
    /// [`OnStream::registered`](crate::cuda::OnStream::registered).
    Device(&'a Gpu, bool),
    /// NCCL, likewise.
    Nccl(&'a Gpu, &'a Nccl),
}

impl<'a> Carrier<'a> {
    /// The device, if there is one.
    pub fn gpu(self) -> Option<&'a Gpu> {
        match self {
            Carrier::Host => None,
            Carrier::Device(gpu, _) | Carrier::Nccl(gpu, _) => Some(gpu),
        }
    }
}

/// Times of one call in microseconds, over all ranks, and what was wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Mean.
    pub mean: f64,
    /// Mean between two events on the stream; `None` in host memory.
    pub stream: Option<f64>,
    /// Median; each rank's, then combined over ranks as the mean is.
    pub median: f64,
    /// 99th percentile; likewise.
    pub p99: f64,
    /// Wrong elements of all ranks and checked iterations; `None` if nothing was checked.
    pub wrong: Option<u64>,
}

/// Measure `row` in `form`. Every rank calls it with the same arguments but for the rank in `row`. `seed` must be new
/// for every call, so that what an earlier one left in memory is never right by chance.
///
/// # Errors
/// The communicator's; nothing is retried.
pub fn measure(
    comm: &Communicator,
    carrier: Carrier<'_>,
    row: &Row,
    form: Form,
    effort: Effort,
    seed: u64,
    buffers: &mut Buffers,
) -> Result<Measured> {
    let values = |iteration: usize| Values::new(seed + iteration as u64, row.dtype, row.op, row.ranks);
    row.prepare(form, &values(0), buffers);
    buffers.upload(carrier.gpu())?;
    let mut caller = Caller::new(comm, carrier, row, form, buffers);

    // The first call makes links; it is never timed, unless there is nothing else to go by.
    let first = caller.repeat(1)?;
    let warm = caller.repeat(effort.warmup)?;
    let iters = match effort.iters {
        Some(iters) => iters,
        None => {
            let one = if effort.warmup > 0 { warm.host / effort.warmup as f64 } else { first.host };
            let slowest = gather(comm, &[(one * 1e3) as u64])?.into_iter().flatten().max().unwrap_or(0).max(1);
            let fitting = BUDGET.as_nanos() as u64 / (slowest * effort.aggregate as u64);
            (fitting as usize).clamp(ITERATIONS.0, ITERATIONS.1)
        }
    };
    let calls = iters * effort.aggregate;
    comm.barrier()?;
    let lap = caller.repeat(calls)?;
    let (mean, stream) = (lap.host / calls as f64, lap.stream / calls as f64);
    comm.barrier()?;
    let mut samples = caller.sample(calls.min(SAMPLES))?;
    samples.sort_unstable();
    let (median, p99) = (percentile(&samples, 50), percentile(&samples, 99));

    let mut wrong = 0;
    for iteration in 0..effort.check {
        let values = values(1 + iteration);
        row.prepare(form, &values, buffers);
        buffers.upload(carrier.gpu())?;
        Caller::new(comm, carrier, row, form, buffers).call_and_wait()?;
        buffers.download(carrier.gpu())?;
        wrong += row.wrong(form, &values, buffers);
    }
    let ranks = gather(comm, &[mean.to_bits(), median.to_bits(), p99.to_bits(), stream.to_bits(), wrong])?;
    let times = |column: usize| {
        let times: Vec<f64> = ranks.iter().map(|row| f64::from_bits(row[column])).collect();
        combine(&times, effort.average)
    };
    Ok(Measured {
        mean: times(0),
        median: times(1),
        p99: times(2),
        stream: carrier.gpu().map(|_| times(3)),
        wrong: (effort.check > 0).then(|| ranks.iter().map(|row| row[4]).sum()),
    })
}

/// Every rank's `mine`, by rank.
pub fn gather(comm: &Communicator, mine: &[u64]) -> Result<Vec<Vec<u64>>> {
    let mut all = vec![0u64; mine.len() * comm.size()];
    comm.all_gather(mine, &mut all)?;
    Ok(all.chunks(mine.len()).map(<[u64]>::to_vec).collect())
}

/// One time from all ranks' times: rank 0's, the average, the shortest or the longest.
fn combine(times: &[f64], average: u8) -> f64 {
    match average {
        0 => times[0],
        1 => times.iter().sum::<f64>() / times.len() as f64,
        2 => times.iter().copied().fold(f64::INFINITY, f64::min),
        _ => times.iter().copied().fold(0.0, f64::max),
    }
}

/// The smallest sample that at least `percent` percent do not exceed, in microseconds.
fn percentile(sorted_nanoseconds: &[u64], percent: usize) -> f64 {
    let nth = (sorted_nanoseconds.len() * percent).div_ceil(100).max(1);
    sorted_nanoseconds[nth - 1] as f64 / 1e3
}

/// A row's call with everything bound, so that loops contain nothing else.
struct Caller<'a> {
    comm: &'a Communicator,
    carrier: Carrier<'a>,
    row: &'a Row,
    form: Form,
    kind: Kind,
    place: Place<'a>,
}

enum Kind {
    Barrier,
    SendRecv {
        to: usize,
        from: usize,
    },
    OutOfPlace(Call),
    InPlace(Call),
    /// With the counts of the input's and the output's blocks.
    OutOfPlaceV(Call, Vec<usize>, Vec<usize>),
    /// With the counts of the larger buffer's blocks.
    InPlaceV(Call, Vec<usize>),
}

/// Where input and output are.
enum Place<'a> {
    Host { input: &'a [u8], output: &'a mut [u8] },
    Device { input: DeviceSlice<'a, u8>, output: DeviceSliceMut<'a, u8> },
}

impl<'a> Caller<'a> {
    fn new(
        comm: &'a Communicator,
        carrier: Carrier<'a>,
        row: &'a Row,
        form: Form,
        buffers: &'a mut Buffers,
    ) -> Caller<'a> {
        let (rank, ranks) = (row.rank, row.ranks);
        let kind = match (row.operation, form) {
            (Operation::SendRecv, _) => Kind::SendRecv { to: (rank + 1) % ranks, from: (rank + ranks - 1) % ranks },
            (operation, _) if operation.is_barrier() => Kind::Barrier,
            (Operation::Collective(collective), Form::OutOfPlace) => Kind::OutOfPlace(row.call(collective)),
            (Operation::Collective(collective), Form::InPlace) => Kind::InPlace(row.call(collective)),
            (Operation::Variable(collective), form) => {
                let (input, output) = row.both_counts();
                match form {
                    Form::OutOfPlace => Kind::OutOfPlaceV(row.call(collective), input, output),
                    Form::InPlace if input.len() > output.len() => Kind::InPlaceV(row.call(collective), input),
                    Form::InPlace => Kind::InPlaceV(row.call(collective), output),
                }
            }
        };
        let place = match carrier {
            Carrier::Host => Place::Host { input: buffers.input.bytes(), output: buffers.output.bytes_mut() },
            _ => {
                let output = buffers.output.device_bytes_mut();
                Place::Device { input: buffers.input.device_bytes(), output }
            }
        };
        Caller { comm, carrier, row, form, kind, place }
    }

    /// Make the call. In host memory it is done then; on a device it is queued.
    #[inline]
    fn call(&mut self) -> Result<()> {
        let comm = self.comm;
        match (&self.kind, &mut self.place) {
            (kind, Place::Device { input, output }) => {
                Caller::queue(comm, self.carrier, self.row, self.form, kind, *input, output)
            }
            (Kind::OutOfPlace(call), Place::Host { input, output }) => comm.call(*call, input, output),
            (Kind::InPlace(call), Place::Host { output, .. }) => comm.call_in_place(*call, output),
            (Kind::SendRecv { to, from }, Place::Host { input, output }) => comm.send_recv(input, *to, output, *from),
            (Kind::OutOfPlaceV(call, ins, outs), Place::Host { input, output }) => {
                comm.call_v(*call, (input, ins.into()), (output, outs.into()))
            }
            (Kind::InPlaceV(call, blocks), Place::Host { output, .. }) => {
                comm.call_v_in_place(*call, output, blocks.into())
            }
            (Kind::Barrier, Place::Host { .. }) => comm.barrier(),
        }
    }

    /// The call on a device.
    #[inline]
    fn queue(
        comm: &Communicator,
        carrier: Carrier<'_>,
        row: &Row,
        form: Form,
        kind: &Kind,
        input: DeviceSlice<'_, u8>,
        output: &mut DeviceSliceMut<'_, u8>,
    ) -> Result<()> {
        let output = output.reborrow();
        let (gpu, registered) = match carrier {
            Carrier::Nccl(gpu, nccl) => {
                // In place the larger buffer is both; where the smaller one lies in it, `call` says.
                let from = if form == Form::InPlace { output.address() } else { input.address() };
                // SAFETY: the row has given the buffers their lengths, and they stay until the stream was waited for.
                return unsafe { nccl.call(row, form, from, output.address(), gpu.stream.raw()) };
            }
            Carrier::Device(gpu, registered) => (gpu, registered),
            Carrier::Host => unreachable!("buffers are on a device"),
        };
        let comm = comm.on(&gpu.stream);
        let comm = if registered { comm.registered() } else { comm };
        match kind {
            Kind::OutOfPlace(call) => comm.call(*call, input, output),
            Kind::InPlace(call) => comm.call_in_place(*call, output),
            Kind::SendRecv { to, from } => comm.send_recv(input, *to, output, *from),
            Kind::OutOfPlaceV(call, ins, outs) => comm.call_v(*call, (input, ins.into()), (output, outs.into())),
            Kind::InPlaceV(call, blocks) => comm.call_v_in_place(*call, output, blocks.into()),
            Kind::Barrier => comm.barrier(),
        }
    }

    /// Make the call and wait until it is done.
    #[inline]
    fn call_and_wait(&mut self) -> Result<()> {
        self.call()?;
        match self.carrier {
            Carrier::Host => Ok(()),
            Carrier::Device(gpu, _) => self.comm.on(&gpu.stream).synchronize(),
            Carrier::Nccl(gpu, _) => gpu.wait(),
        }
    }

    /// The time of `calls` calls.
    fn repeat(&mut self, calls: usize) -> Result<Lap> {
        if let Some(gpu) = self.carrier.gpu() {
            let lap = gpu.lap(|| (0..calls).try_for_each(|_| self.call()));
            // The stream may have come to its end because a verdict let it go.
            return self.comm.verdict().map_or(lap, |verdict| Err(Error::Failed { rank: self.comm.rank(), verdict }));
        }
        let start = Instant::now();
        for _ in 0..calls {
            self.call()?;
        }
        Ok(Lap { host: start.elapsed().as_secs_f64() * 1e6, stream: 0.0 })
    }

    /// The time of each of `calls` calls, in nanoseconds.
    fn sample(&mut self, calls: usize) -> Result<Vec<u64>> {
        let mut samples = Vec::with_capacity(calls);
        for _ in 0..calls {
            let start = Instant::now();
            self.call_and_wait()?;
            samples.push(start.elapsed().as_nanos() as u64);
        }
        Ok(samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<u64> = (1..=200).collect();
        assert_eq!(percentile(&samples, 50), 0.1);
        assert_eq!(percentile(&samples, 99), 0.198);
        assert_eq!(percentile(&[7], 99), 0.007);
        assert_eq!(percentile(&[7, 9], 50), 0.007);
    }

    #[test]
    fn ranks_times_combine_as_asked() {
        let times = [2.0, 1.0, 6.0];
        assert_eq!([0, 1, 2, 3].map(|average| combine(&times, average)), [2.0, 3.0, 1.0, 6.0]);
    }
}
