//! What waits and writes of one stream cost.

use std::fmt;
use std::time::{Duration, Instant};

use maypole_cuda::Commands;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::perf::cuda::words::Words;
use crate::perf::cuda::{Gpu, cuda, microseconds};

/// Batches that are on their way together: a driver's queue holds about a thousand.
const UNDER_WAY: u32 = 200;

/// Writes that go to the driver in one call.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// How many writes.
    pub writes: usize,
    /// Microseconds until the call has returned.
    pub queued: f64,
    /// Microseconds for each batch of many, to the end of the last.
    pub done: f64,
}

/// One stream alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Costs {
    /// Batches of several lengths.
    pub batches: Vec<Batch>,
    /// Microseconds from a store of the host's, over a stream that waits for it and writes, to the
    /// host that sees that; median.
    pub echo: f64,
    /// The same; nine of ten are shorter.
    pub echo_p90: f64,
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Batch { writes, queued, done } in &self.batches {
            writeln!(f, "batch of {writes} writes: {queued:.2} us to queue, {done:.2} us each in all")?;
        }
        let Costs { echo, echo_p90, .. } = self;
        write!(f, "host to stream to host: {echo:.2} us, nine of ten below {echo_p90:.2} us")
    }
}

/// Measure, each `count` times.
///
/// # Errors
/// The driver's.
pub fn measure(gpu: &Gpu, count: u32) -> Result<Costs> {
    let words = Words::private(gpu)?;
    let doing = cuda("measuring waits and writes");
    let mut value = 0;
    let mut batch = |writes: usize| -> Result<Batch> {
        let rounds = (count / UNDER_WAY).max(1);
        let (mut queued, mut done) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..rounds {
            let start = Instant::now();
            for _ in 0..UNDER_WAY {
                value += 1;
                let mut commands = Commands::new(&gpu.stream).map_err(&doing)?;
                for number in 0..writes {
                    commands.write(&words.word(number), value).map_err(&doing)?;
                }
                commands.finish().map_err(&doing)?;
            }
            queued += start.elapsed();
            gpu.wait()?;
            done += start.elapsed();
        }
        let each = |time: Duration| microseconds(time) / f64::from(rounds * UNDER_WAY);
        Ok(Batch { writes, queued: each(queued), done: each(done) })
    };
    batch(1)?; // The first wakes what sleeps.
    let batches = [1, 2, 8].into_iter().map(&mut batch).collect::<Result<Vec<_>>>()?;

    let (asked, answered) = (words.word(20), words.word(21));
    let mut echoes = Vec::new();
    for number in 1..=(count / 4).max(1) {
        let queue = || {
            let mut commands = Commands::new(&gpu.stream)?;
            commands.wait(&asked, number)?;
            commands.write(&answered, number)?;
            commands.finish()
        };
        queue().map_err(&doing)?;
        // The stream has come to the wait by then.
        std::thread::sleep(Duration::from_micros(200));
        let start = Instant::now();
        asked.store(number);
        while !answered.is_at_least(number) {
            std::hint::spin_loop();
        }
        echoes.push(microseconds(start.elapsed()));
    }
    gpu.wait()?;
    echoes.sort_by(f64::total_cmp);
    let (echo, echo_p90) = (echoes[echoes.len() / 2], echoes[echoes.len() * 9 / 10]);
    Ok(Costs { batches, echo, echo_p90 })
}
