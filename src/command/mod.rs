//! The `maypole` command: `run` starts ranks, `perf` measures, `verify` checks the schedules, `info` shows what there
//! is.
//!
//! Exit statuses: 0 for success, 2 for a command line that makes no sense, otherwise what each command's help says.

mod footprint;
mod info;
pub(crate) mod run;
mod verify;

use std::ffi::OsString;
use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{CommandFactory, Parser, Subcommand};

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
    run_command(read(std::env::args_os().collect()).command)
}

/// Read a command line; one that makes no sense ends the process.
fn read(arguments: Vec<OsString>) -> Cli {
    Cli::parse_from(run::with_np(arguments, &Cli::command()))
}

/// Say something to whoever runs the command: a line on standard error. Whoever has closed that does not want to know.
pub(crate) fn say(what: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// Print a page on standard output, with the end of its last line. Whether that could be done, as far as anybody wants
/// it: a reader that has left, as `head` does, has what it wanted. What else goes wrong is said.
pub(crate) fn print(page: &str) -> bool {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{}", page.trim_end()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            say(format_args!("maypole: standard output cannot be written: {error}"));
            false
        }
        _ => true,
    }
}

/// The command within a process of Python's (`python -m maypole`): `arguments` begin with what the command is called,
/// and a program that ends in `.py` is run by the interpreter `python`. Returns the exit status, except for a command
/// line that makes no sense: that ends the process.
pub fn within_python(arguments: Vec<OsString>, python: OsString) -> u8 {
    let mut command = read(arguments).command;
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
