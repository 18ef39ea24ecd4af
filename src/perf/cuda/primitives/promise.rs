//! The sentence on which all protocols rest: what a kernel stored before a write of a word is seen by
//! every kernel after the wait for it. One rank stores bytes in its memory, another value in each
//! round, and the other reads them where they lie, as collectives do.

use std::fmt;
use std::sync::Arc;

use maypole_cuda::driver::{DeviceMemory, ImportedMemory, IpcHandle};
use maypole_cuda::kernels::{Job, Kernel, Kernels, Source};
use maypole_cuda::{Commands, CudaError};
use serde::{Deserialize, Serialize};

use crate::perf::cuda::words::Words;
use crate::perf::cuda::{Gpu, cuda};
use crate::perf::measure::gather;
use crate::{Communicator, Result};

/// Bytes that are looked at in each round, elsewhere each time: the host is not to be the slow part.
const LOOKED_AT: usize = 64 << 10;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// `one process`, or `IPC`.
    pub by: String,
    /// Bytes that were stored and read in each round.
    pub bytes: usize,
    /// Rounds.
    pub rounds: u32,
    /// Bytes that were not as stored, of those looked at.
    pub wrong: u64,
    /// Why the one cannot reach the other's memory; then nothing was tried.
    pub refused: Option<String>,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Promise { by, bytes, rounds, wrong, refused } = self;
        match refused {
            Some(why) => write!(f, "another rank's memory ({by}): REFUSED: {why}"),
            None if *wrong > 0 => {
                write!(f, "another rank's memory ({by}): {wrong} bytes WRONG in {rounds} rounds of {bytes} bytes")
            }
            None => write!(f, "another rank's memory ({by}): {rounds} rounds of {bytes} bytes, all as stored"),
        }
    }
}

/// The other rank's memory, as long as it is open.
enum Reached {
    Here(u64),
    Imported(ImportedMemory),
}

impl Reached {
    fn address(&self) -> u64 {
        match self {
            Reached::Here(address) => *address,
            Reached::Imported(memory) => memory.address(),
        }
    }
}

/// Try it, on all ranks; ranks 0 and 1 have a part in it. `threads`: they are of one process, and
/// share its addresses.
///
/// # Errors
/// The driver's, and the verdict if another rank fails. A refusal is no error.
pub fn test(comm: &Communicator, gpu: &Gpu, words: &Words, threads: bool, count: u32, bytes: usize) -> Result<Promise> {
    let doing = cuda("storing and reading");
    let (me, rounds) = (comm.rank(), (count / 3).max(4));
    let lends = || DeviceMemory::exportable(&gpu.context, 2 * bytes).map_err(&doing);
    let lent = (me == 0).then(lends).transpose()?;
    let mut address = [lent.as_ref().map_or(0, DeviceMemory::address)];
    comm.broadcast(&mut address, 0)?;
    let mut refused = None;
    let mut reached = Reached::Here(address[0]);
    if !threads {
        let handle = lent.as_ref().map(DeviceMemory::export);
        let mut name = handle.as_ref().and_then(|h| h.as_ref().ok()).map_or([0; 64], |handle| handle.0);
        refused = error_of(comm, handle.and_then(std::result::Result::err), 0)?;
        comm.broadcast(&mut name, 0)?;
        let opens = refused.is_none() && me == 1;
        let opened = opens.then(|| ImportedMemory::open(&gpu.context, IpcHandle(name)));
        let failed = match opened {
            Some(Ok(memory)) => {
                reached = Reached::Imported(memory);
                None
            }
            Some(Err(error)) => Some(error),
            None => None,
        };
        refused = refused.or(error_of(comm, failed, 1)?);
    }
    let by = if threads { "one process" } else { "IPC" }.to_string();
    let mut promise = Promise { by, bytes, rounds, wrong: 0, refused };
    if promise.refused.is_some() {
        return Ok(promise);
    }
    let kernels = Kernels::load(&gpu.context).map_err(&doing)?;
    let own = DeviceMemory::new(&gpu.context, bytes).map_err(&doing)?;
    let sides = Sides { gpu, words, kernels: &kernels, own: &own, rounds };
    // Nobody compiles or allocates, which may wait for the device, while another's stream waits.
    comm.barrier()?;
    let wrong = match me {
        0 => sides.store(reached.address()).map(|()| 0),
        1 => sides.read(reached.address()),
        _ => Ok(0),
    };
    // Closed before the first frees memory, which waits for this.
    drop(reached);
    promise.wrong = gather(comm, &[wrong?])?.iter().map(|row| row[0]).sum();
    Ok(promise)
}

/// The error of `rank`, if it has one, on all ranks: 200 bytes of what it says.
fn error_of(comm: &Communicator, error: Option<CudaError>, rank: usize) -> Result<Option<String>> {
    let what = error.map_or(String::new(), |error| error.to_string());
    let mut text = [0u8; 200];
    let length = what.len().min(text.len());
    text[..length].copy_from_slice(&what.as_bytes()[..length]);
    comm.broadcast(&mut text, rank)?;
    let what = String::from_utf8_lossy(&text).trim_end_matches('\0').to_string();
    Ok(Some(what).filter(|what| !what.is_empty()))
}

/// What both sides use.
struct Sides<'a> {
    gpu: &'a Gpu,
    words: &'a Words,
    kernels: &'a Arc<Kernels>,
    /// Of one round's length: what is stored next, or a copy of what was read.
    own: &'a DeviceMemory,
    rounds: u32,
}

impl Sides<'_> {
    /// Words that the bounce has not used: rounds that have been stored, and that have been read.
    const STORED: usize = 8;
    const READ: usize = 9;

    /// Where a round's bytes lie in memory that begins at `base`: rounds take turns.
    fn place(&self, base: u64, round: u32) -> u64 {
        base + u64::from(round & 1) * self.own.bytes() as u64
    }

    /// A copy between places of one round's length, queued between a wait and a write.
    fn copy(
        &self,
        (wait, at): (usize, u32),
        [to, from]: [u64; 2],
        (write, round): (usize, u32),
    ) -> maypole_cuda::Result<()> {
        let mut commands = Commands::new(&self.gpu.stream)?;
        commands.wait(&self.words.word(wait), at)?;
        let job = Job::copy(to, Source::plain(from), self.own.bytes() as u64);
        // SAFETY: both are as long; they stay until all ranks have waited for their streams, and the
        // words keep who stores from who reads.
        unsafe { commands.launch(self.kernels, Kernel::Copy, &job) }?;
        commands.write(&self.words.word(write), round)?;
        commands.finish()
    }

    /// Store all rounds in the memory at `base`, each when the one before the last has been read.
    fn store(&self, base: u64) -> Result<()> {
        let doing = cuda("storing what another rank reads");
        let all = (1..=self.rounds).try_for_each(|round| {
            // SAFETY: nobody else uses it, and it stays until the stream has been waited for.
            unsafe { self.own.queue_fill(0, self.own.bytes(), round as u8, &self.gpu.stream) }?;
            let places = [self.place(base, round), self.own.address()];
            self.copy((Self::READ, round.saturating_sub(2)), places, (Self::STORED, round))?;
            // A stream's queue holds about a thousand commands.
            if round % 64 == 0 { self.gpu.stream.synchronize() } else { Ok(()) }
        });
        if all.is_err() {
            // The other rank's stream must not wait for ever.
            self.words.word(Self::STORED).store(self.rounds);
        }
        all.and(self.gpu.stream.synchronize()).map_err(doing)
    }

    /// Read all rounds from the memory at `base`. How many bytes were not as stored.
    fn read(&self, base: u64) -> Result<u64> {
        let doing = cuda("reading what another rank has stored");
        let mut looked_at = vec![0u8; LOOKED_AT.min(self.own.bytes())];
        let places = self.own.bytes() - looked_at.len() + 1;
        let mut wrong = 0;
        let all = (1..=self.rounds).try_for_each(|round| {
            let places_of = [self.own.address(), self.place(base, round)];
            self.copy((Self::STORED, round), places_of, (Self::READ, round))?;
            self.gpu.stream.synchronize()?;
            let at = round as usize * 7919 * 4096 % places;
            self.own.copy_to_host(at, &mut looked_at)?;
            wrong += looked_at.iter().filter(|byte| **byte != round as u8).count() as u64;
            Ok(())
        });
        if all.is_err() {
            // As in `store`.
            self.words.word(Self::READ).store(self.rounds);
        }
        all.map_err(doing).map(|()| wrong)
    }
}
