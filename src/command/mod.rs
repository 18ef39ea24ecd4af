//! The `maypole` command: `run` starts ranks, `perf` measures, `verify` checks the schedules, `info` shows what there
//! is.
//!
//! Exit statuses: 0 for success, 2 for a command line that makes no sense, otherwise what each command's help says.

mod footprint;
mod info;
pub(crate) mod run;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Parser, Subcommand};

/// Collective communication for training code: start ranks, measure collectives, verify their schedules.
#[derive(Parser)]
#[command(name = "maypole", version, max_term_width = 120, propagate_version = true)]
#[command(
    after_help = "Each command has its own --help. Settings are environment variables; `maypole info` lists them."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    /// Measure a collective and check every element of its results; nccl-tests' flags and table.
    Perf(Box<crate::perf::PerfArgs>),
    Verify(verify::Args),
    Info(info::Args),
}

/// The `main` of the `maypole` command.
pub fn main() -> ExitCode {
    run_command(Cli::parse().command)
}

/// The command within a process of Python's (`python -m maypole`): `arguments` begin with what the command is called,
/// and a program that ends in `.py` is run by the interpreter `python`. Returns the exit status, except for a command
/// line that makes no sense: that ends the process.
pub fn within_python(arguments: Vec<OsString>, python: OsString) -> u8 {
    let mut command = Cli::parse_from(arguments).command;
    let _ = PYTHON.set(python.clone());
    if let Command::Run(args) = &mut command {
        args.interpret(python);
    }
    let code = run_command(command);
    // The number in an `ExitCode` cannot be asked for.
    (0..=u8::MAX).find(|status| ExitCode::from(*status) == code).unwrap_or(1)
}

/// The interpreter, where the command runs within one. A virtual environment's does not know itself by its own file.
static PYTHON: OnceLock<OsString> = OnceLock::new();

/// What to start to have this program once more.
pub(crate) fn this_program() -> std::io::Result<OsString> {
    PYTHON.get().cloned().map_or_else(|| std::env::current_exe().map(PathBuf::into_os_string), Ok)
}

fn run_command(command: Command) -> ExitCode {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Perf(args) => crate::perf::run(*args),
        Command::Verify(args) => verify::run(&args),
        Command::Info(args) => info::run(&args),
    }
}
