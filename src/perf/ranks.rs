//! Where the ranks come from: the launcher's environment, threads of this process, or processes started here.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use super::flags::Plan;
use super::session;
use crate::command::run::ranks_of;
use crate::{Communicator, Config, Error, Result};

/// Variables by which launchers number the ranks they start.
const LAUNCHERS: [&str; 4] = ["RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"];

/// Run the plan with the ranks that it asks for. Success if everything that was checked was right, on all of them.
///
/// # Errors
/// [`Error::Setting`] if `--ranks` is given to a process that a launcher started as a rank; what [`session::run`]
/// returns.
pub fn run(plan: &Plan) -> Result<ExitCode> {
    let flags = &plan.flags;
    start(flags.ranks, flags.threads, &plan.config, &|comm| session::run(plan, comm, &mut io::stdout()))
}

/// Run `rank` on every rank: of `ranks` threads, of as many processes started here, or of those that a launcher started.
/// Success if it says that all was right on all of them.
///
/// # Errors
/// As [`run`].
pub fn start(
    ranks: Option<usize>,
    as_threads: bool,
    config: &Config,
    rank: &(dyn Fn(&Communicator) -> Result<bool> + Sync),
) -> Result<ExitCode> {
    let Some(ranks) = ranks else {
        let comm = Communicator::from_env_with(config.clone())?;
        return Ok(verdict(rank(&comm)?));
    };
    if let Some(variable) = LAUNCHERS.into_iter().find(|name| std::env::var_os(name).is_some()) {
        return Err(Error::Setting {
            name: "--ranks".to_string(),
            value: ranks.to_string(),
            expected: format!("a launcher has started this process as a rank ({variable} is set); leave --ranks out"),
        });
    }
    if as_threads { threads(ranks, config, rank).map(verdict) } else { processes(ranks) }
}

fn verdict(right: bool) -> ExitCode {
    if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ranks as threads; the first error wins.
fn threads(ranks: usize, config: &Config, rank: &(dyn Fn(&Communicator) -> Result<bool> + Sync)) -> Result<bool> {
    let comms = Communicator::threads_with(ranks, config.clone())?;
    std::thread::scope(|scope| {
        let workers: Vec<_> = comms.into_iter().map(|comm| scope.spawn(move || rank(&comm))).collect();
        let outcomes: Vec<Result<bool>> =
            workers.into_iter().map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect();
        outcomes.into_iter().try_fold(true, |okay, outcome| Ok(okay & outcome?))
    })
}

/// Ranks as processes, as `maypole run` starts them: this program again, with the same arguments less `--ranks`.
fn processes(ranks: usize) -> Result<ExitCode> {
    let program = crate::command::this_program().map_err(|e| Error::system("finding this program's own file", e))?;
    let arguments = without_ranks(std::env::args_os().skip(1));
    let ranks = u32::try_from(ranks).map_err(|e| Error::system("starting ranks", e))?;
    Ok(ranks_of([vec![program], arguments].concat(), ranks))
}

/// The arguments without `--ranks N` and `--ranks=N`.
fn without_ranks(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        if argument == "--ranks" {
            arguments.next();
        } else if !argument.to_string_lossy().starts_with("--ranks=") {
            kept.push(argument);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_is_taken_out_of_the_arguments() {
        let strip = |line: &str| -> Vec<String> {
            without_ranks(line.split(' ').map(OsString::from)).into_iter().map(|a| a.into_string().unwrap()).collect()
        };
        assert_eq!(strip("perf all_reduce --ranks 4 -b 8"), ["perf", "all_reduce", "-b", "8"]);
        assert_eq!(strip("--ranks=4 -J ranks.json"), ["-J", "ranks.json"]);
        assert_eq!(strip("-b 8 --ranks 2"), ["-b", "8"]);
    }
}
