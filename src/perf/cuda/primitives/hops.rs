//! How long a word takes from the stream that writes it to the one that waits for it.
//!
//! Streams of two ranks wait for each other's words in turn. All of it is queued behind a closed gate,
//! so no host has a part in the time. Ranks that are processes without MPS share a device by slices of
//! time: then a hop is a switch, of microseconds if a stream that waits gives its slice away, and of
//! a slice if it does not, or if a third computes.

use std::fmt;
use std::time::{Duration, Instant};

use maypole_cuda::driver::DeviceMemory;
use maypole_cuda::kernels::bench::{BenchKernels, Product};
use maypole_cuda::{Commands, Word};
use serde::{Deserialize, Serialize};

use crate::perf::cuda::words::Words;
use crate::perf::cuda::{Gpu, cuda, microseconds};
use crate::{Communicator, Error, Result};

/// Hops of each rank in a row: their waits and writes fit into a stream's queue.
const EACH: u32 = 100;

/// Microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hops {
    /// From a stream to another, on a device with nothing else to do; the median of several rounds.
    pub idle: f64,
    /// While others multiply matrices on it; null without others.
    pub busy: Option<f64>,
}

impl fmt::Display for Hops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a word to another rank's stream: {:.1} us", self.idle)?;
        self.busy.map_or(Ok(()), |busy| write!(f, ", {busy:.1} us beside matrix products"))
    }
}

/// What ranks use of the words. Ranks 0 and 1 bounce.
struct Court<'a> {
    comm: &'a Communicator,
    gpu: &'a Gpu,
    /// Of each of both: how far the bounce is.
    sides: [Word; 2],
    /// Both streams begin when it has their turn.
    gate: Word,
    /// Rank 1 has queued.
    queued: Word,
    /// Others that are at work; when they may rest.
    working: Word,
    over: Word,
}

/// Measure, on all ranks.
///
/// # Errors
/// The driver's, and the verdict if another rank fails.
pub fn measure(comm: &Communicator, gpu: &Gpu, words: &Words, count: u32, matrix: u32) -> Result<Hops> {
    let [a, b, gate, queued, working, over] = [0, 1, 2, 3, 4, 5].map(|number| words.word(number));
    let court = Court { comm, gpu, sides: [a, b], gate, queued, working, over };
    let rounds = (count / EACH).clamp(1, 10) | 1;
    let mut turn = 0;
    let idle = court.rounds(rounds, &mut turn)?;
    // The products' first launch loads them, which is not to fall into the hops.
    let others = comm.size().saturating_sub(2);
    comm.barrier()?;
    let busy = match comm.rank() {
        _ if others == 0 => None,
        0 | 1 => {
            court.until(|| working.is_at_least(others as u32))?;
            let busy = court.rounds(rounds, &mut turn);
            over.store(1);
            Some(busy?)
        }
        _ => court.work(matrix).map(|()| None)?,
    };
    comm.barrier()?;
    Ok(Hops { idle, busy })
}

impl Court<'_> {
    /// The median of several; of ranks that do not bounce, 0.
    fn rounds(&self, rounds: u32, turn: &mut u32) -> Result<f64> {
        if self.comm.rank() > 1 {
            return Ok(0.0);
        }
        let mut times = (0..rounds).map(|_| self.bounce(turn)).collect::<Result<Vec<_>>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// Microseconds for each hop of one round.
    fn bounce(&self, turn: &mut u32) -> Result<f64> {
        let me = self.comm.rank();
        let (mine, theirs) = (self.sides[me], self.sides[1 - me]);
        let (first, last) = (*turn + 1, *turn + EACH);
        *turn = last;
        let one = |before: Option<(&Word, u32)>, hop: Option<u32>| {
            let mut commands = Commands::new(&self.gpu.stream)?;
            if let Some((word, value)) = before {
                commands.wait(word, value)?;
            }
            if let Some(hop) = hop {
                commands.write(&mine, hop)?;
            }
            commands.finish()
        };
        // Rank 0 begins, and answers what rank 1 has answered.
        let queue = || -> maypole_cuda::Result<()> {
            one(Some((&self.gate, last)), None)?;
            (first..=last).try_for_each(|hop| one(Some((&theirs, hop - u32::from(me == 0))), Some(hop)))
        };
        let all = queue().map_err(cuda("queuing waits and writes"));
        if me == 1 {
            self.queued.store(last);
        } else if all.is_ok() {
            self.until(|| self.queued.is_at_least(last))?;
        }
        let start = Instant::now();
        if me == 0 || all.is_err() {
            self.gate.store(last);
        }
        all?;
        self.gpu.wait()?;
        Ok(microseconds(start.elapsed()) / f64::from(2 * EACH))
    }

    /// Multiply until both have done.
    fn work(&self, side: u32) -> Result<()> {
        let doing = cuda("multiplying matrices");
        let bench = BenchKernels::load(&self.gpu.context).map_err(&doing)?;
        let bytes = side as usize * side as usize * 4;
        let matrix = || DeviceMemory::new(&self.gpu.context, bytes).map_err(&doing);
        let matrices = [matrix()?, matrix()?, matrix()?];
        for m in &matrices {
            m.fill(0, bytes, 0x3c).map_err(&doing)?;
        }
        let [a, b, c] = matrices.each_ref().map(DeviceMemory::address);
        let mut begun = false;
        while !self.over.is_at_least(1) {
            for _ in 0..4 {
                let product = Product { a, b, c, side: side.into() };
                // SAFETY: three square matrices of that size, which stay until the stream is
                // waited for below.
                unsafe { bench.matmul(&self.gpu.stream, &product) }.map_err(&doing)?;
            }
            self.gpu.wait()?;
            if !std::mem::replace(&mut begun, true) {
                self.working.atomic().fetch_add(1, std::sync::atomic::Ordering::AcqRel);
            }
            self.alive()?;
        }
        Ok(())
    }

    /// Wait on the host for what another rank does.
    fn until(&self, what: impl Fn() -> bool) -> Result<()> {
        while !what() {
            self.alive()?;
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// The verdict, if there is one, as an error.
    fn alive(&self) -> Result<()> {
        let verdict = self.comm.verdict();
        verdict.map_or(Ok(()), |verdict| Err(Error::Failed { rank: self.comm.rank(), verdict }))
    }
}
