//! What figures are held against: floors, what is possible and wanted, NCCL in the same mode, and what
//! the run's own primitives let expect.
//!
//! **Reckoned.** A large collective takes as long as its kernels' bytes at the copy rate, and at each
//! exchange of words a hop there and a hop back, of which there are two a round. Kernels come to 80 to
//! 95% of the copy rate. What is lent goes in one round, of other memory up to 32 MiB of the buffer. A
//! small one takes two launches and a batch of words on each rank, or its hops, whichever is longer.
//! Ranks that are threads share a context, whose lock lets one of them queue at a time. All of it is
//! of the same run and mode.
//! Where a figure and this differ, one of both is wrong, and that is worth to know.

use std::collections::BTreeMap;

use super::{Line, Summary};

/// What 8 bytes may cost over an empty launch and two waits, in microseconds, by mode: the driver's calls
/// of threads wait for each other, and processes without MPS for switches of the device.
pub fn small(mode: &str) -> Option<f64> {
    match mode {
        "threads" => Some(20.0),
        "MPS" => Some(10.0),
        _ => None,
    }
}
/// The share of the copy rate that reduction kernels must reach.
pub const KERNELS: f64 = 0.90;
/// The share of the communication that must be hidden behind a product.
pub const HIDDEN: f64 = 0.90;

/// Bytes of a buffer that pass in one round at most, by default, where it is not lent.
const ROUND: f64 = (32 << 20) as f64;

/// Bytes that kernels of two ranks read and write beyond the floor, both together, for each byte of the larger buffer.
///
/// What is not lent is copied to be published, and read from there: read and written once more than the floor has it, by
/// the rank that gives. An all-reduce (two-shot: each rank adds up half a buffer and fetches the other half) publishes twice,
/// what it gives and half of the result: a half read and written, and a half written, by each rank. Its other half of the
/// result is read again and written by the fetch, where the floor has it written alone: half a byte by each rank, of lent
/// memory too, and the only thing there.
fn beyond_floor(collective: &str, lent: bool) -> Option<f64> {
    Some(match (collective, lent) {
        ("all_reduce", false) => 4.0,
        ("all_reduce", true) => 1.0,
        ("all_gather" | "broadcast" | "all_to_all" | "reduce_scatter", false) => 2.0,
        ("all_gather" | "broadcast" | "all_to_all" | "reduce_scatter", true) => 0.0,
        _ => return None,
    })
}

/// What the run measured of the device itself; microseconds, and 10^9 bytes per second.
#[derive(Clone, Default)]
struct Measured {
    rate: Option<f64>,
    /// An empty launch, queued.
    launch: Option<f64>,
    /// A batch of one word, queued.
    batch: Option<f64>,
    /// A word to another rank's stream, by mode.
    hops: BTreeMap<String, f64>,
}

impl Summary {
    fn measured(&self) -> Measured {
        let costs = self.primitives.iter().filter_map(|report| report.costs.as_ref());
        let one = costs.flat_map(|costs| &costs.batches).find(|batch| batch.writes == 1);
        let hops = self.primitives.iter().filter_map(|report| {
            let mode = report.device.mode(report.ranks_are == "threads");
            Some((mode.to_string(), report.hops?.idle))
        });
        Measured {
            rate: self.kernels.as_ref().map(|kernels| kernels.copy.rate),
            launch: self.kernels.as_ref().map(|kernels| kernels.launches.launch),
            batch: one.map(|batch| batch.queued),
            hops: hops.collect(),
        }
    }

    /// Floors, targets, NCCL's figures and what is reckoned, once everything has been read.
    pub(super) fn hold_against(&mut self) {
        let measured = self.measured();
        let key = |line: &Line| {
            let call = (line.collective.clone(), line.form, line.kind.clone(), line.size);
            (line.mode.clone(), line.ranks, line.ranks_per_device, call)
        };
        let others = self.collectives.iter().filter(|line| line.library != "maypole");
        let nccl: BTreeMap<_, f64> = others.map(|line| (key(line), line.time)).collect();
        for line in &mut self.collectives {
            // Bytes over 10^9 bytes per second are nanoseconds.
            line.floor = measured.rate.map(|rate| line.floor_bytes as f64 / rate / 1000.0);
            let floor = line.floor.filter(|_| line.time > 0.0 && line.floor_bytes > 0);
            line.ratio = floor.map(|floor| floor / line.time);
            if line.library != "maypole" || !line.settings.is_empty() {
                continue;
            }
            line.target = line.wanted();
            line.reckoned = line.reckon(&measured);
            if line.time > 0.0 {
                line.against_nccl = nccl.get(&key(line)).map(|time| time / line.time);
            }
        }
    }
}

impl Line {
    /// Whether its buffers were read by the others where they lie: registered memory, or any where ranks are threads.
    fn is_lent(&self) -> bool {
        self.registered || self.mode == "threads"
    }

    /// The share of the floor's speed that is left if the bytes that this collective moves in this kind of memory move at
    /// the copy rate: what is possible, without waits. For two ranks on one device, where it has been counted.
    pub fn possible(&self) -> Option<f64> {
        let beyond = beyond_floor(&self.collective, self.is_lent())? * self.size as f64;
        let floor = self.floor_bytes as f64;
        (self.is_large() && floor > 0.0).then(|| floor / (floor + beyond))
    }

    /// Two ranks on one device, which is what has been counted.
    fn is_pair(&self) -> bool {
        (self.ranks, self.ranks_per_device) == (2, 2)
    }

    /// Such, and enough bytes that their number decides.
    fn is_large(&self) -> bool {
        self.size >= 64 << 20 && self.is_pair()
    }

    /// The share of the floor's speed that must be reached, where that is laid down: a share of what is
    /// [possible](Line::possible), of memory that is lent.
    fn wanted(&self) -> Option<f64> {
        let share = match self.collective.as_str() {
            "all_reduce" => 0.75,
            "all_gather" | "broadcast" | "all_to_all" => 0.90,
            _ => return None,
        };
        self.possible().filter(|_| self.is_lent()).map(|possible| share * possible)
    }

    /// Microseconds from and to, as the module's documentation reckons them.
    fn reckon(&self, measured: &Measured) -> Option<[f64; 2]> {
        let hop = *measured.hops.get(&self.mode)?;
        if self.is_large() {
            let pure = self.floor? / self.possible()?;
            let rounds = if self.is_lent() { 1.0 } else { (self.size as f64 / ROUND).ceil() };
            return Some([pure * 1.05 + 2.0 * hop, pure * 1.25 + 4.0 * hop * rounds]);
        }
        if self.size > 64 || !self.is_pair() {
            return None;
        }
        let queuing = 2.0 * measured.launch? + measured.batch?;
        let queuing = if self.mode == "threads" { self.ranks as f64 * queuing } else { queuing };
        Some([queuing.max(2.0 * hop), 1.5 * queuing.max(4.0 * hop)])
    }
}
