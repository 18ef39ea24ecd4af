//! Timing and checking one row in one form, on every rank at once.
//!
//! The mean comes from a tight loop between two clock readings, as in nccl-tests: reading the clock around every call
//! would cost a tenth of a small one. Median and 99th percentile come from a second loop that does read it around every
//! call. Neither loop has a barrier in it, and both use the same buffers in every iteration.

use std::time::{Duration, Instant};

use super::operation::Operation;
use super::row::{Buffers, Form, Row};
use super::values::Values;
use crate::{Call, Communicator, Result};

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

/// Times of one call in microseconds, over all ranks, and what was wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Mean.
    pub mean: f64,
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
    row: &Row,
    form: Form,
    effort: Effort,
    seed: u64,
    buffers: &mut Buffers,
) -> Result<Measured> {
    let values = |iteration: usize| Values::new(seed + iteration as u64, row.dtype, row.op, row.ranks);
    row.prepare(form, &values(0), buffers);
    let mut caller = Caller::new(comm, row, form, buffers);

    // The first call makes links; it is never timed, unless there is nothing else to go by.
    let first = caller.repeat(1)?;
    let warm = caller.repeat(effort.warmup)?;
    let iters = match effort.iters {
        Some(iters) => iters,
        None => {
            let one = if effort.warmup > 0 { warm / effort.warmup as u32 } else { first };
            let slowest = gather(comm, &[one.as_nanos() as u64])?.into_iter().flatten().max().unwrap_or(0).max(1);
            let fitting = BUDGET.as_nanos() as u64 / (slowest * effort.aggregate as u64);
            (fitting as usize).clamp(ITERATIONS.0, ITERATIONS.1)
        }
    };
    let calls = iters * effort.aggregate;
    comm.barrier()?;
    let mean = caller.repeat(calls)?.as_secs_f64() / calls as f64;
    comm.barrier()?;
    let mut samples = caller.sample(calls.min(SAMPLES))?;
    samples.sort_unstable();
    let (median, p99) = (percentile(&samples, 50), percentile(&samples, 99));

    let mut wrong = 0;
    for iteration in 0..effort.check {
        let values = values(1 + iteration);
        row.prepare(form, &values, buffers);
        Caller::new(comm, row, form, buffers).call()?;
        wrong += row.wrong(form, &values, buffers);
    }
    let ranks = gather(comm, &[mean.to_bits(), median.to_bits(), p99.to_bits(), wrong])?;
    let times = |column: usize| {
        let seconds: Vec<f64> = ranks.iter().map(|row| f64::from_bits(row[column])).collect();
        combine(&seconds, effort.average) * 1e6
    };
    Ok(Measured {
        mean: times(0),
        median: times(1),
        p99: times(2),
        wrong: (effort.check > 0).then(|| ranks.iter().map(|row| row[3]).sum()),
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

/// The smallest sample that at least `percent` percent do not exceed, in seconds.
fn percentile(sorted_nanoseconds: &[u64], percent: usize) -> f64 {
    let nth = (sorted_nanoseconds.len() * percent).div_ceil(100).max(1);
    sorted_nanoseconds[nth - 1] as f64 / 1e9
}

/// A row's call with everything bound, so that loops contain nothing else.
struct Caller<'a> {
    comm: &'a Communicator,
    kind: Kind,
    input: &'a [u8],
    output: &'a mut [u8],
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

impl<'a> Caller<'a> {
    fn new(comm: &'a Communicator, row: &Row, form: Form, buffers: &'a mut Buffers) -> Caller<'a> {
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
        Caller { comm, kind, input: buffers.input.bytes(), output: buffers.output.bytes_mut() }
    }

    #[inline]
    fn call(&mut self) -> Result<()> {
        match &self.kind {
            Kind::OutOfPlace(call) => self.comm.call(*call, self.input, self.output),
            Kind::InPlace(call) => self.comm.call_in_place(*call, self.output),
            Kind::SendRecv { to, from } => self.comm.send_recv(self.input, *to, self.output, *from),
            Kind::OutOfPlaceV(call, input, output) => {
                self.comm.call_v(*call, (self.input, input.into()), (self.output, output.into()))
            }
            Kind::InPlaceV(call, blocks) => self.comm.call_v_in_place(*call, self.output, blocks.into()),
            Kind::Barrier => self.comm.barrier(),
        }
    }

    /// The time of `calls` calls.
    fn repeat(&mut self, calls: usize) -> Result<Duration> {
        let start = Instant::now();
        for _ in 0..calls {
            self.call()?;
        }
        Ok(start.elapsed())
    }

    /// The time of each of `calls` calls, in nanoseconds.
    fn sample(&mut self, calls: usize) -> Result<Vec<u64>> {
        let mut samples = Vec::with_capacity(calls);
        for _ in 0..calls {
            let start = Instant::now();
            self.call()?;
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
        assert_eq!(percentile(&samples, 50), 100e-9);
        assert_eq!(percentile(&samples, 99), 198e-9);
        assert_eq!(percentile(&[7], 99), 7e-9);
        assert_eq!(percentile(&[7, 9], 50), 7e-9);
    }

    #[test]
    fn ranks_times_combine_as_asked() {
        let times = [2.0, 1.0, 6.0];
        assert_eq!([0, 1, 2, 3].map(|average| combine(&times, average)), [2.0, 3.0, 1.0, 6.0]);
    }
}
