//! `maypole info --footprint`: what it costs to be a rank of this job, in time, memory, file descriptors and threads.

use std::fmt::Write as _;
use std::time::Instant;

use crate::descriptors;
use crate::error::Result;
use crate::{Communicator, ReduceOp};

/// What a process holds at a moment, and how long it took to come to it: microseconds, KiB of memory (pages that several
/// processes share are counted in parts), descriptors, threads.
type Figures = [u64; 4];

/// What this process holds; `since`: when the step began.
fn figures(since: Instant) -> Figures {
    let took = since.elapsed().as_micros() as u64;
    [took, number("smaps_rollup", "Pss:"), descriptors::open() as u64, number("status", "Threads:")]
}

/// The number after `name` in /proc/self/`file`.
fn number(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Take part in the job, step by step. The text is empty on all ranks but the first.
pub(super) fn measure() -> Result<(String, bool)> {
    let start = Instant::now();
    let before = figures(start);
    let start = Instant::now();
    let comm = Communicator::from_env()?;
    let mut steps = vec![("before", before), ("world made", figures(start))];
    let size = comm.size();
    let mut step = |name, work: &dyn Fn() -> Result<()>| {
        comm.barrier()?;
        let start = Instant::now();
        work()?;
        steps.push((name, figures(start)));
        // Nobody goes on, and makes connections to it, before a rank has looked.
        comm.barrier()
    };
    step("all_reduce of 8 B", &|| comm.all_reduce(&[1u64], &mut [0u64], ReduceOp::Sum))?;
    step("all_reduce of 1 MiB", &|| comm.all_reduce(&vec![1.0f32; 1 << 18], &mut vec![0.0; 1 << 18], ReduceOp::Sum))?;
    step("all_to_all of 1 KiB blocks", &|| comm.all_to_all(&vec![1u8; size << 10], &mut vec![0u8; size << 10]))?;
    step("all_to_all again", &|| comm.all_to_all(&vec![1u8; size << 10], &mut vec![0u8; size << 10]))?;
    let start = Instant::now();
    let child = comm.duplicate()?;
    steps.push(("duplicate", figures(start)));
    drop(child);

    let mine: Vec<u64> = steps.iter().flat_map(|(_, figures)| *figures).collect();
    let mut all = vec![0; mine.len() * size];
    comm.all_gather(&mine, &mut all)?;
    if comm.rank() != 0 {
        return Ok((String::new(), true));
    }
    let mut page = format!("{size} ranks, transport {:?}\n", comm.config().transport);
    let _ = writeln!(page, "{:<28}{:>9}{:>22}{:>22}{:>14}", "", "ms", "MiB a rank", "descriptors", "threads");
    let _ = writeln!(
        page,
        "{:<28}{:>9}{:>22}{:>22}{:>14}",
        "after", "at most", "half, at most", "half, at most", "at most"
    );
    for (at, (name, _)) in steps.iter().enumerate() {
        let column = |figure: usize| {
            let mut values: Vec<u64> = all.chunks(mine.len()).map(|of_rank| of_rank[4 * at + figure]).collect();
            values.sort_unstable();
            (values[size / 2], values[size - 1])
        };
        let ((_, time), (pss, most_pss), (fds, most_fds), (_, threads)) = (column(0), column(1), column(2), column(3));
        let mib = |kib: u64| kib as f64 / 1024.0;
        let _ = writeln!(
            page,
            "{name:<28}{:>9.1}{:>13.1}{:>9.1}{fds:>13}{most_fds:>9}{threads:>14}",
            time as f64 / 1e3,
            mib(pss),
            mib(most_pss)
        );
    }
    Ok((page.trim_end().to_string(), true))
}
