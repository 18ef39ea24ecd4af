//! `maypole verify`: run schedules on symbols, and show that they are right for every rank, root and world size asked
//! for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use maypole_collectives::algorithms::Algorithm;
use maypole_collectives::schedule::Collective;
use maypole_collectives::verify::{self, Failure, Verified};
use maypole_transports::lock::Mutex;

/// Verify the schedules of collectives: every rank's program is run on symbols instead of numbers.
///
/// Checked are: each output holds every contribution exactly once; messages match in order; nothing is read before it
/// is written or overwritten while it is needed; no deadlock with the smallest credit; and if a rank stops anywhere,
/// whoever waits waits for it. For collectives with a root every root is tried; those with an in-place form are tried
/// both ways; algorithms that mind which ranks share a host are tried on several placements.
///
/// Exit status: 0 if everything passed, 1 at the first fault, 2 for a wrong command line.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["collective", "algorithm", "all"]))]
#[command(after_help = "Examples:
  maypole verify all_reduce --algorithm ring --ranks 2..64
  maypole verify broadcast --ranks 100
  maypole verify --all")]
pub struct Args {
    /// The collective; without it, every one that the algorithm has
    #[arg(value_parser = collective)]
    collective: Option<Collective>,
    /// The algorithm; without it, every one that the collective has
    #[arg(short, long, value_name = "NAME", value_parser = algorithm)]
    algorithm: Option<Algorithm>,
    /// World sizes: one number, or A..B with both ends included
    #[arg(short, long, value_name = "N | A..B", default_value = "1..64", value_parser = sizes)]
    ranks: RangeInclusive<usize>,
    /// Every collective by every algorithm
    #[arg(long, conflicts_with_all = ["collective", "algorithm"])]
    all: bool,
    /// Threads to verify with; default: the cores of this machine
    #[arg(short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
}

fn collective(name: &str) -> Result<Collective, String> {
    let names = || Collective::ALL.map(Collective::name).join(", ");
    Collective::ALL.into_iter().find(|c| c.name() == name).ok_or_else(|| format!("there are: {}", names()))
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    name.parse::<Algorithm>().map_err(|error| error.to_string())
}

/// World sizes beyond this take more memory than a machine has: the verifier holds all ranks' programs.
const MOST_RANKS: usize = 4096;

fn sizes(text: &str) -> Result<RangeInclusive<usize>, String> {
    let number = |text: &str| match text.trim().parse::<usize>() {
        Ok(n) if (1..=MOST_RANKS).contains(&n) => Ok(n),
        _ => Err(format!("expected a number of ranks from 1 to {MOST_RANKS}, or two as in 2..64")),
    };
    let (first, last) = match text.split_once("..") {
        None => (number(text)?, number(text)?),
        Some((first, last)) => (number(first)?, number(last.strip_prefix('=').unwrap_or(last))?),
    };
    if first > last {
        return Err(format!("{first} is more than {last}: nothing to verify"));
    }
    Ok(first..=last)
}

/// What one line of the table says.
#[derive(Default)]
struct Line {
    sizes: usize,
    worlds: usize,
    /// The report of the largest world.
    largest: Option<verify::Report>,
}

/// Run the command.
pub(super) fn run(args: &Args) -> ExitCode {
    if let (Some(c), Some(a)) = (args.collective, args.algorithm)
        && !a.supports(c)
    {
        let names: Vec<&str> = Algorithm::for_collective(c).map(Algorithm::name).collect();
        let names = names.join(", ");
        super::say(format_args!("maypole verify: {} has no schedule by {a}; it has: {names}", c.name()));
        return ExitCode::from(2);
    }
    let work = work(args);
    let started = Instant::now();
    let bar = ProgressBar::new(work.len() as u64);
    let style = "{elapsed_precise} {bar:40} {pos}/{len} {msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("a template that parses"));
    let outcome = verify_all(&work, args.jobs.map_or_else(cores, usize::from), &bar);
    bar.finish_and_clear();
    match outcome {
        Ok(lines) => {
            let mut page = table(&lines, &args.ranks);
            let worlds: usize = lines.values().map(|line| line.worlds).sum();
            let _ = writeln!(page, "{worlds} worlds verified in {:.1} s, no fault", started.elapsed().as_secs_f64());
            if super::print(&page) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(failure) => {
            super::say(format_args!("maypole verify: FAULT in {failure}"));
            ExitCode::FAILURE
        }
    }
}

type Work = Vec<(Collective, Algorithm, usize)>;

/// One entry per (collective, algorithm, world size), the largest worlds first: they take longest, so threads end
/// together.
fn work(args: &Args) -> Work {
    let mut work = Work::new();
    for c in Collective::ALL.into_iter().filter(|&c| args.collective.is_none_or(|only| only == c)) {
        for a in Algorithm::for_collective(c).filter(|&a| args.algorithm.is_none_or(|only| only == a)) {
            work.extend(args.ranks.clone().map(|size| (c, a, size)));
        }
    }
    work.sort_by_key(|&(_, _, size)| std::cmp::Reverse(size));
    work
}

/// Lines by position of the collective and the algorithm in their lists.
type Lines = BTreeMap<(usize, Algorithm), Line>;

fn verify_all(work: &Work, threads: usize, bar: &ProgressBar) -> Result<Lines, Box<Failure>> {
    let next = AtomicUsize::new(0);
    let lines = Mutex::new(Lines::new());
    let fault = Mutex::new(None::<Box<Failure>>);
    let worker = || {
        while let Some(&(c, a, size)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            bar.set_message(format!("{} {a} {size}", c.name()));
            let mut note = |done: &Verified| lines.lock().entry((position(c), a)).or_default().add(done);
            if let Err(failure) = verify::all(size..=size, Some(c), Some(a), &mut note) {
                // The smallest world with a fault says most; others may still be under way.
                let mut fault = fault.lock();
                if fault.as_ref().is_none_or(|other| failure.size < other.size) {
                    *fault = Some(failure);
                }
                next.store(work.len(), Ordering::Relaxed);
            }
            bar.inc(1);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(work.len()) {
            scope.spawn(worker);
        }
        worker();
    });
    match fault.into_inner() {
        Some(failure) => Err(failure),
        None => Ok(lines.into_inner()),
    }
}

impl Line {
    fn add(&mut self, done: &Verified) {
        self.sizes += 1;
        self.worlds += done.worlds;
        if self.largest.is_none_or(|report| report.size < done.report.size) {
            self.largest = Some(done.report);
        }
    }
}

fn position(collective: Collective) -> usize {
    Collective::ALL.into_iter().position(|c| c == collective).unwrap_or(usize::MAX)
}

fn table(lines: &Lines, ranks: &RangeInclusive<usize>) -> String {
    let mut page = String::new();
    let sizes = if ranks.start() == ranks.end() {
        format!("{} ranks", ranks.start())
    } else {
        format!("{} to {} ranks", ranks.start(), ranks.end())
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        page,
        "Verified with {sizes}; the last columns are those of root 0 with {} ranks, one round.",
        ranks.end()
    );
    let _ = writeln!(
        page,
        "{:<15} {:<19} {:>5} {:>7} {:>9} {:>9} {:>8} {:>6} {:>7}",
        "collective", "algorithm", "sizes", "worlds", "steps", "messages", "in place", "pieces", "longest"
    );
    for ((index, algorithm), line) in lines {
        let collective = Collective::ALL[*index];
        let Some(report) = line.largest else { continue };
        let in_place = collective.in_place_block(0).is_some() && collective != Collective::Barrier;
        let _ = writeln!(
            page,
            "{:<15} {:<19} {:>5} {:>7} {:>9} {:>9} {:>8} {:>6} {:>7}",
            collective.name(),
            algorithm,
            line.sizes,
            line.worlds,
            report.steps,
            report.messages + report.publications,
            if in_place { "yes" } else { "-" },
            report.pieces,
            report.depth,
        );
    }
    page + "sizes: world sizes; worlds: sizes x roots x (out of place, in place), and placements on hosts where they matter;\n\
            steps and messages are all ranks', publications counted with messages;\n\
            pieces: parts that each block is cut into; longest: steps in the longest chain that must run one after the other\n"
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_include_both_ends() {
        assert_eq!(sizes("2..64"), Ok(2..=64));
        assert_eq!(sizes("2..=64"), Ok(2..=64));
        assert_eq!(sizes("7"), Ok(7..=7));
        for wrong in ["", "0", "0..4", "5..4", "a", "1..", "..3", "1..9999999"] {
            assert!(sizes(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_are_listed_when_one_is_unknown() {
        assert!(collective("all_reduc").unwrap_err().contains("all_reduce, reduce"));
        assert!(algorithm("rings").unwrap_err().contains("ring, chain"));
    }
}
