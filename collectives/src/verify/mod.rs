//! The verifier: runs the schedules of a whole world on symbols in place of numbers, and says what is wrong with them.
//!
//! A chunk is either uninitialised or a set of contributions: "block 2 of ranks 0, 1 and 5". Sending and copying keep
//! the set, reducing joins two disjoint ones. A schedule that ends with the right sets moves and adds any numbers
//! rightly, whatever their type, count and operation, because the executor does the same steps on bytes. [`verify`]
//! checks that
//!
//! * every chunk of every output ends as exactly what the collective promises, each contribution counted once;
//! * all ranks of an all-reduce combine each element in the same order, and so end with the same bits;
//! * an algorithm that [keeps rank order](Algorithm::keeps_rank_order) combines every element in
//!   it, brackets left out, and one that is [canonical](Algorithm::is_canonical) from the left;
//! * nothing is read before it is written in the same round, nor an input after an output in place has overwritten it;
//! * inputs are never written, regions lie within their buffers, and chunks that are joined are the same piece;
//! * messages match in order, number of chunks, pieces and round on each link, none stays behind, and each end of a
//!   link belongs to one lane;
//! * each publication is fetched from exactly once by every other rank;
//! * nobody waits for ever with the smallest credit (see [`schedule`](crate::schedule#credit));
//! * lanes of one rank touch the same chunk only in an order that messages enforce;
//! * where publications are lent ([`Algorithm::lends_in_place`]), nobody overwrites what another rank may still read;
//! * nobody leaves a barrier before everybody has come;
//! * if a rank stops anywhere, all who then wait do so, directly or through others, for that rank.
//!
//! It runs two rounds, the second to see what the first leaves behind.
//!
//! ```
//! use maypole_collectives::{algorithms::Algorithm, schedule::Collective, verify};
//!
//! let report = verify::verify(Algorithm::Ring, Collective::AllReduce, 4, 0, false)?;
//! assert_eq!(report.messages, 4 * 2 * 3); // each of 4 ranks sends 2(n-1) messages
//! assert_eq!(report.depth, 7); // and the last chunk to arrive has seen as many steps
//! # Ok::<(), verify::Fault>(())
//! ```
//!
//! Hierarchical algorithms are verified for many placements of the ranks on hosts ([`layouts`]).
//!
//! Inside: `world` writes the programs out and checks each step by itself, `machine` runs them on `memory` that holds
//! `value`s, `outcome` checks what comes out, and `abort` stops ranks half way.

mod abort;
mod clock;
mod fault;
mod layouts;
mod machine;
mod memory;
mod outcome;
mod value;
mod world;

pub use fault::{At, Blocked, Fault, Wait};
pub use layouts::layouts;

pub use crate::algorithms::Folds;
use crate::algorithms::{Algorithm, schedule};
use crate::hosts::Hosts;
use crate::schedule::{Collective, Place, Rank, Schedule, Step};
use machine::Machine;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use world::World;

/// What schedules that passed look like, over all ranks, for one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Ranks in the world.
    pub size: usize,
    /// Pieces that each block is cut into.
    pub pieces: usize,
    /// The most lanes that any rank has.
    pub lanes: usize,
    /// Steps of all ranks.
    pub steps: usize,
    /// Messages sent.
    pub messages: usize,
    /// Publications made.
    pub publications: usize,
    /// Chunks that went from one rank to another: sent, or fetched from another rank's publication.
    pub chunks_moved: usize,
    /// Chunks in the largest message or publication.
    pub largest: usize,
    /// The longest chain of steps of which each had to wait for the one before: the time of the collective if each step
    /// takes one unit and credit never runs out.
    pub depth: usize,
    /// The most chunks of scratch that any rank needs.
    pub scratch: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { steps, messages, publications, chunks_moved, pieces, depth, .. } = self;
        write!(f, "{steps} steps, ")?;
        match publications {
            0 => write!(f, "{messages} messages, ")?,
            _ => write!(f, "{publications} publications, ")?,
        }
        write!(f, "{chunks_moved} chunks of 1/{pieces} block moved, longest chain {depth} steps")
    }
}

/// Builds the schedules of a world on one host and verifies them, out of place or in place (see [`Collective::in_place_block`];
/// all-to-all has no in-place form and is verified out of place). Who waits for whom is the same in place, so aborts
/// are looked at out of place only.
pub fn verify(
    algorithm: Algorithm,
    collective: Collective,
    size: usize,
    root: Rank,
    in_place: bool,
) -> Result<Report, Fault> {
    if root >= size {
        return Err(Fault::NoWorld { size, root });
    }
    verify_on(algorithm, collective, &Arc::new(Hosts::together(size)), root, in_place)
}

/// [`verify`] for the ranks of several hosts.
pub fn verify_on(
    algorithm: Algorithm,
    collective: Collective,
    hosts: &Arc<Hosts>,
    root: Rank,
    in_place: bool,
) -> Result<Report, Fault> {
    let size = hosts.size();
    if root >= size {
        return Err(Fault::NoWorld { size, root });
    }
    let place = |rank| Place { rank, size, root };
    let built: Option<Vec<_>> = (0..size).map(|rank| schedule(algorithm, collective, place(rank), hosts)).collect();
    let schedules = built.ok_or_else(|| Fault::Unsupported {
        algorithm: algorithm.name(),
        collective: collective.name(),
        known: Algorithm::for_collective(collective).map(Algorithm::name).collect(),
    })?;
    let promise = algorithm.folds(collective).unwrap_or(Folds::InAnyOrder);
    let lends = algorithm.one_sided() && (!in_place || algorithm.lends_in_place(collective));
    check(&schedules, collective, root, (in_place, lends), promise)
}

/// Verifies schedules from wherever they come, one for each rank of the world in order. `promise`:
/// in which order they combine.
pub fn verify_schedules(
    schedules: &[Box<dyn Schedule>],
    collective: Collective,
    root: Rank,
    in_place: bool,
    promise: Folds,
) -> Result<Report, Fault> {
    check(schedules, collective, root, (in_place, false), promise)
}

/// [`verify_schedules`] where what is published of inputs and outputs is not copied, but read by the others where it
/// lies. Each rank may do so or not, which makes no difference to the others.
pub fn verify_lending(
    schedules: &[Box<dyn Schedule>],
    collective: Collective,
    root: Rank,
    in_place: bool,
    promise: Folds,
) -> Result<Report, Fault> {
    check(schedules, collective, root, (in_place, true), promise)
}

fn check(
    schedules: &[Box<dyn Schedule>],
    collective: Collective,
    root: Rank,
    (in_place, lends): (bool, bool),
    promise: Folds,
) -> Result<Report, Fault> {
    let mut world = World::new(schedules, collective, root, in_place)?;
    world.lends = lends;
    let mut machine = Machine::new(&world);
    machine.run()?;
    machine.check_end()?;
    machine.check_outputs()?;
    machine.check_order(promise)?;
    machine.check_barrier()?;
    if !in_place {
        abort::check(&world)?;
    }
    Ok(report(&world, machine.depth))
}

fn report(world: &World, depth: usize) -> Report {
    let mut report = Report {
        size: world.size,
        pieces: world.pieces,
        lanes: (0..world.size).map(|rank| world.lanes(rank)).max().unwrap_or(0),
        steps: 0,
        messages: 0,
        publications: 0,
        chunks_moved: 0,
        largest: 0,
        depth,
        scratch: world.sizes.iter().map(|sizes| sizes.scratch).max().unwrap_or(0),
    };
    for (actor, program) in world.programs.iter().enumerate() {
        let (rank, _) = world.actors[actor];
        report.steps += program.len();
        for op in program {
            report.largest = report.largest.max(op.sent().len);
            match op.step {
                Step::Publish { .. } => report.publications += 1,
                Step::Fetch { from, dst, .. } | Step::FetchReduce { from, dst, .. } if from != rank => {
                    report.chunks_moved += dst.len;
                }
                Step::Send { .. } | Step::RecvCopySend { .. } | Step::RecvReduceSend { .. } => {
                    report.messages += 1;
                    report.chunks_moved += op.sent().len;
                }
                _ => {}
            }
        }
    }
    report
}

/// A collective, an algorithm and a world size of which every root has passed, out of place and in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The collective.
    pub collective: Collective,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// How many worlds were run: roots and placements on hosts, times two where there is an in-place form.
    pub worlds: usize,
    /// The report of root 0, out of place; with several placements, of the last.
    pub report: Report,
}

/// The world that did not pass, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} by {algorithm}, {hosts}, root {root}, {}: {fault}", .collective.name(), place_name(*.in_place))]
pub struct Failure {
    /// The collective.
    pub collective: Collective,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The world size.
    pub size: usize,
    /// Which rank is on which host.
    pub hosts: Arc<Hosts>,
    /// The root.
    pub root: Rank,
    /// Whether the call was in place.
    pub in_place: bool,
    /// What is wrong.
    #[source]
    pub fault: Fault,
}

fn place_name(in_place: bool) -> &'static str {
    if in_place { "in place" } else { "out of place" }
}

/// Verifies all collectives and algorithms, or those of the one `collective` or `algorithm` given, for each world size
/// in `sizes` from 1, every root, out of place and in place, algorithms that mind hosts on the [`layouts`] of the size.
/// Calls `on_done` after each (collective, algorithm, size),
/// sizes innermost. Returns how many worlds were run; 0 if the algorithm has no schedule for the collective. Stops at
/// the first failure.
///
/// It runs on the calling thread; sizes are independent of each other, so a caller with several cores can split them.
pub fn all(
    sizes: RangeInclusive<usize>,
    collective: Option<Collective>,
    algorithm: Option<Algorithm>,
    on_done: &mut dyn FnMut(&Verified),
) -> Result<usize, Box<Failure>> {
    let mut worlds = 0;
    for c in Collective::ALL.into_iter().filter(|&c| collective.is_none_or(|only| only == c)) {
        for a in Algorithm::for_collective(c).filter(|&a| algorithm.is_none_or(|only| only == a)) {
            for size in sizes.clone().filter(|&size| size > 0) {
                let verified = every_root(c, a, size)?;
                worlds += verified.worlds;
                on_done(&verified);
            }
        }
    }
    Ok(worlds)
}

/// Worlds up to this size are verified with every root on every layout; in larger ones, root 0 is tried on every layout
/// and each other root on one of them.
const SMALL: usize = 10;

/// Verifies every root of one collective, algorithm and size, out of place and in place.
fn every_root(collective: Collective, algorithm: Algorithm, size: usize) -> Result<Verified, Box<Failure>> {
    let layouts = if algorithm.minds_hosts() { layouts(size) } else { vec![Arc::new(Hosts::together(size))] };
    let run = |hosts: &Arc<Hosts>, root, in_place| {
        verify_on(algorithm, collective, hosts, root, in_place).map_err(|fault| {
            let hosts = hosts.clone();
            Box::new(Failure { collective, algorithm, size, hosts, root, in_place, fault })
        })
    };
    let has_in_place = collective.in_place_block(0).is_some() && !collective.is_barrier();
    let (mut worlds, mut report) = (0, None);
    for (i, hosts) in layouts.iter().enumerate() {
        for root in 0..if collective.is_rooted() { size } else { 1 } {
            if root > 0 && size > SMALL && root % layouts.len() != i {
                continue;
            }
            let done = run(hosts, root, false)?;
            worlds += 1;
            if root == 0 {
                report = Some(done);
            }
            if has_in_place {
                run(hosts, root, true)?;
                worlds += 1;
            }
        }
    }
    Ok(Verified { collective, algorithm, worlds, report: report.expect("root 0 of the first layout is always run") })
}
