//! Where the ranks come from: the launcher's environment, threads of this process, or processes started here.

use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::time::Duration;

use super::flags::Plan;
use super::session;
use crate::{Communicator, Error, Result};

/// Variables by which launchers number the ranks they start.
const LAUNCHERS: [&str; 4] = ["RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"];

/// Run the plan with the ranks that it asks for. Returns whether everything that was checked was right.
///
/// # Errors
/// [`Error::Setting`] if `--ranks` is given to a process that a launcher started as a rank; what [`session::run`] returns.
pub fn run(plan: &Plan) -> Result<bool> {
    let Some(ranks) = plan.flags.ranks else {
        let comm = Communicator::from_env_with(plan.config.clone())?;
        return session::run(plan, &comm, &mut io::stdout());
    };
    if let Some(variable) = LAUNCHERS.into_iter().find(|name| std::env::var_os(name).is_some()) {
        return Err(Error::Setting {
            name: "--ranks".to_string(),
            value: ranks.to_string(),
            expected: format!("a launcher has started this process as a rank ({variable} is set); leave --ranks out"),
        });
    }
    if plan.flags.threads { threads(plan, ranks) } else { processes(ranks) }
}

/// Ranks as threads; the first error wins.
fn threads(plan: &Plan, ranks: usize) -> Result<bool> {
    let comms = Communicator::threads_with(ranks, plan.config.clone())?;
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            comms.into_iter().map(|comm| scope.spawn(move || session::run(plan, &comm, &mut io::stdout()))).collect();
        let outcomes: Vec<Result<bool>> =
            workers.into_iter().map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect();
        outcomes.into_iter().try_fold(true, |okay, outcome| Ok(okay & outcome?))
    })
}

/// Ranks as processes: this program again, with the same arguments less `--ranks`, and the variables by which torchrun
/// numbers ranks. When one fails the others are ended.
fn processes(ranks: usize) -> Result<bool> {
    let program = std::env::current_exe().map_err(|e| Error::system("finding this program's own file", e))?;
    let arguments = without_ranks(std::env::args_os().skip(1));
    let port = free_port().map_err(|e| Error::system("finding a free TCP port on 127.0.0.1", e))?;
    let mut started = Started(Vec::with_capacity(ranks));
    for rank in 0..ranks {
        let child = Command::new(&program)
            .args(&arguments)
            .env("RANK", rank.to_string())
            .env("LOCAL_RANK", rank.to_string())
            .env("WORLD_SIZE", ranks.to_string())
            .env("LOCAL_WORLD_SIZE", ranks.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .spawn()
            .map_err(|e| Error::system(format!("starting rank {rank}"), e))?;
        started.0.push(child);
    }
    started.wait()
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

/// A port that was free a moment ago.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Processes that do not outlive this value.
struct Started(Vec<Child>);

impl Started {
    /// Wait until all have ended, or one has failed; whether all ended well.
    fn wait(mut self) -> Result<bool> {
        loop {
            let mut running = false;
            for child in &mut self.0 {
                match child.try_wait().map_err(|e| Error::system("waiting for a rank", e))? {
                    None => running = true,
                    Some(status) if status.success() => {}
                    Some(_) => {
                        // The others hear of it through their communicators, and have this long to say so.
                        std::thread::sleep(Duration::from_millis(500));
                        return Ok(false);
                    }
                }
            }
            if !running {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Either fails only for a process that has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
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
