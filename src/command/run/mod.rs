//! `maypole run`: start N ranks of a program on this machine, and see them to their end.
//!
//! One thread and one `poll`: it watches a signal descriptor, the ranks' output pipes and, through SIGCHLD, the ranks.
//! Every rank is the leader of its own process group, so a signal reaches whatever the rank itself has started (a shell
//! that runs a program, say). [`ranks`] starts and ends them, [`output`] prefixes what they print, [`keeper`] ends them
//! if this process is killed.

mod keeper;
mod output;
mod ranks;

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::running::{Clock, LOOK, Moment};
use output::Output;
use ranks::{Ending, Ranks};

/// Start N ranks of PROGRAM on this machine, prefix their output, pass signals on, and end all when one fails.
///
/// Each rank gets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT and a fresh MAYPOLE_KEY, so
/// a program that calls Communicator::from_env() finds its peers, and so does one that uses torch.distributed.
///
/// Lines are printed whole, as "[rank] line", standard output to standard output and standard error to standard error.
/// Rank 0 reads standard input if that is a file or a pipe; the others, and rank 0 at a terminal, read nothing.
///
/// SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to every rank; Ctrl-Z stops and fg continues
/// them; a second SIGINT or SIGTERM kills.
///
/// Exit status: 0 if every rank returned 0; otherwise that of the rank that failed first, 128 + N if signal N ended it;
/// 124 after --timeout; 126 or 127 if PROGRAM cannot be run or found; 2 for a wrong command line.
#[derive(clap::Args)]
#[command(after_help = "Example: maypole run -n 4 -x MAYPOLE_LOG=info -- ./train --epochs 3")]
pub struct Args {
    /// Number of ranks
    #[arg(short = 'n', long = "ranks", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    ranks: u32,
    /// End the ranks after so many seconds, of which none pass while this command is stopped; the exit status is then 124
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// How long ranks may take to end after SIGTERM before they get SIGKILL
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    grace: Duration,
    /// Prefix each line with its rank (the default)
    #[arg(long, overrides_with = "no_prefix")]
    tag_output: bool,
    /// Leave the output as it comes: the ranks write to this terminal or file themselves
    #[arg(long)]
    no_prefix: bool,
    /// Set an environment variable for all ranks. NAME alone passes on this environment's, as ranks inherit it anyway;
    /// MAYPOLE_KEY can only be passed on like that, since command lines are for all to see. Repeatable
    #[arg(short = 'x', value_name = "NAME[=VALUE]", value_parser = assignment)]
    set: Vec<(String, Option<String>)>,
    /// The program and its arguments; write -- before it
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    program: Vec<std::ffi::OsString>,
}

impl Args {
    /// The settings that the ranks will have.
    fn config(&self) -> Result<Config> {
        Config::from_lookup(&|name| match self.set.iter().rev().find(|(set, _)| set == name) {
            Some((_, Some(value))) => Some(value.clone()),
            _ => std::env::var(name).ok().filter(|value| name != "MAYPOLE_KEY" || !value.is_empty()),
        })
    }

    /// Have a script of Python's run by `python`.
    pub(super) fn interpret(&mut self, python: std::ffi::OsString) {
        if Path::new(&self.program[0]).extension().is_some_and(|extension| extension == "py") {
            self.program.insert(0, python);
        }
    }
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..1e9).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("expected a number of seconds".to_string()),
    }
}

fn assignment(text: &str) -> std::result::Result<(String, Option<String>), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("expected NAME=VALUE or NAME".to_string()),
        Some((name, value)) => Ok((name.to_string(), Some(value.to_string()))),
        None if text.is_empty() => Err("expected NAME=VALUE or NAME".to_string()),
        None => Ok((text.to_string(), None)),
    }
}

/// What is wrong with the variables that are to be set or passed on. (Not found while the command line is parsed: errors
/// there show the value.)
fn check_assignments(set: &[(String, Option<String>)]) -> std::result::Result<(), String> {
    for (name, value) in set {
        if value.is_some() && name == "MAYPOLE_KEY" {
            return Err(
                "-x MAYPOLE_KEY=...: everybody on this host can read command lines; export MAYPOLE_KEY before \
                        and write -x MAYPOLE_KEY, or leave it out: then a fresh key is made"
                    .to_string(),
            );
        }
        if value.is_none() && std::env::var_os(name).is_none() {
            return Err(format!(
                "-x {name}: there is no such variable in the environment; export it, or write {name}=VALUE"
            ));
        }
    }
    Ok(())
}

/// Signals that are passed on as they are.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Run the command.
pub(super) fn run(args: &Args) -> ExitCode {
    if let Err(why) = check_assignments(&args.set) {
        eprintln!("maypole run: {why}");
        return ExitCode::from(2);
    }
    let program = match ranks::find_program(&args.program[0]) {
        Ok(program) => program,
        Err((why, status)) => {
            eprintln!("maypole run: {why}");
            return ExitCode::from(status);
        }
    };
    match Job::start(args, &program).and_then(|mut job| job.watch()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("maypole run: {error}");
            ExitCode::from(126)
        }
    }
}

/// Start `ranks` ranks of `program` (with its arguments) that write to this process's own output, and see them to their
/// end: how `maypole perf --ranks` gets its ranks. The calling process must have one thread.
pub(crate) fn ranks_of(program: Vec<std::ffi::OsString>, ranks: u32) -> ExitCode {
    let grace = Duration::from_secs(5);
    run(&Args { ranks, timeout: None, grace, tag_output: false, no_prefix: true, set: Vec::new(), program })
}

/// What has been done to end the job.
#[derive(Clone, Copy, PartialEq)]
enum Ended {
    /// Nothing: it runs.
    Not,
    /// SIGTERM was sent; SIGKILL follows then.
    Asked(Moment),
    /// SIGKILL was sent.
    Killed,
}

struct Job {
    ranks: Ranks,
    output: Output,
    signals: SignalFd,
    deadline: Option<(Moment, Duration)>,
    /// Ctrl-Z stops it.
    clock: Clock,
    grace: Duration,
    ended: Ended,
    status: Option<u8>,
    /// The last signal that was passed on, to say so if a rank dies of it.
    passed_on: Option<Signal>,
}

impl Job {
    fn start(args: &Args, program: &Path) -> Result<Job> {
        let mut watched = SigSet::empty();
        for signal in PASSED_ON.into_iter().chain([Signal::SIGCHLD, Signal::SIGTSTP, Signal::SIGCONT]) {
            watched.add(signal);
        }
        watched.thread_block().map_err(|error| Error::system("blocking signals", error))?;
        let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|error| Error::system("signalfd", error))?;
        let mut output = Output::new();
        let ranks = Ranks::start(args, program, &mut output)?;
        let clock = Clock::start();
        Ok(Job {
            ranks,
            output,
            signals,
            deadline: args.timeout.map(|timeout| (clock.shown() + timeout, timeout)),
            clock,
            grace: args.grace,
            ended: Ended::Not,
            status: None,
            passed_on: None,
        })
    }

    /// Until the last rank has ended and its output is out. The exit status.
    fn watch(&mut self) -> Result<u8> {
        while self.ranks.alive() > 0 {
            self.wait()?;
            self.take_signals();
            self.take_endings();
            self.take_time();
        }
        // What the ranks started in their groups and left running must not outlive the job, nor keep the pipes open.
        self.ranks.signal(Signal::SIGKILL);
        self.output.drain();
        self.ranks.reap();
        Ok(self.status.unwrap_or(0))
    }

    /// Sleep until something happens, and copy output.
    fn wait(&mut self) -> Result<()> {
        let wake = match self.ended {
            Ended::Asked(kill) => Some(kill),
            Ended::Not => self.deadline.map(|(deadline, _)| deadline),
            Ended::Killed => None,
        };
        let timeout = wake.map_or(PollTimeout::NONE, |wake| {
            let left = (wake - self.clock.shown()).min(LOOK);
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut watched = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        watched.extend(self.output.descriptors().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Error::system("poll", error)),
        }
        let _ = if wake.is_some() { self.clock.look() } else { self.clock.look_after_rest() };
        let ready: Vec<bool> = watched[1..].iter().map(|fd| fd.any() == Some(true)).collect();
        self.output.copy(&ready);
        Ok(())
    }

    fn take_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let Ok(signal) = Signal::try_from(info.ssi_signo as i32) else { continue };
            match signal {
                Signal::SIGCHLD => {}
                Signal::SIGTSTP => {
                    self.ranks.signal(Signal::SIGSTOP);
                    // Stops here; goes on when the shell sends SIGCONT.
                    let _ = nix::sys::signal::raise(Signal::SIGSTOP);
                }
                Signal::SIGCONT => self.ranks.signal(Signal::SIGCONT),
                Signal::SIGINT | Signal::SIGTERM
                    if matches!(self.passed_on, Some(Signal::SIGINT | Signal::SIGTERM)) || self.ended != Ended::Not =>
                {
                    self.say(&format!("{signal}: killing {}", self.ranks.names_alive()));
                    self.ended = Ended::Killed;
                    self.ranks.signal(Signal::SIGKILL);
                }
                signal => {
                    self.passed_on = Some(signal);
                    self.ranks.signal(signal);
                }
            }
        }
    }

    fn take_endings(&mut self) {
        let failed = self.ranks.endings();
        // Several may have ended since the last look. One that a signal ended is more likely the cause than one that
        // returned an error.
        let first = failed.iter().find(|(_, ending)| matches!(ending, Ending::Signal(..))).or(failed.first());
        let Some(&(rank, ending)) = first else { return };
        self.status.get_or_insert(ending.status());
        if self.ended != Ended::Not {
            return;
        }
        let by_us = match ending {
            Ending::Signal(signal, _) if self.passed_on == Some(signal) => ", which was passed on to all ranks",
            _ => "",
        };
        let rest = match self.ranks.alive() {
            0 => String::new(),
            1 => "; ending the other rank".to_string(),
            n => format!("; ending the other {n} ranks"),
        };
        self.say(&format!("{} {ending}{by_us}{rest}", self.ranks.name(rank)));
        self.end();
    }

    fn take_time(&mut self) {
        let now = self.clock.shown();
        match (self.ended, self.deadline) {
            (Ended::Asked(kill), _) if now >= kill => {
                self.say(&format!(
                    "{} did not end within {:?} of SIGTERM; killing",
                    self.ranks.names_alive(),
                    self.grace
                ));
                self.ended = Ended::Killed;
                self.ranks.signal(Signal::SIGKILL);
            }
            (Ended::Not, Some((deadline, timeout))) if now >= deadline => {
                self.say(&format!(
                    "--timeout {}: {} still running; ending",
                    timeout.as_secs_f64(),
                    self.ranks.names_alive()
                ));
                self.status = Some(124);
                self.end();
            }
            _ => {}
        }
    }

    /// Ask the remaining ranks to end. A stopped process is continued, since it could not act on the request.
    fn end(&mut self) {
        self.ended = Ended::Asked(self.clock.shown() + self.grace);
        self.ranks.signal(Signal::SIGTERM);
        self.ranks.signal(Signal::SIGCONT);
    }

    fn say(&mut self, what: &str) {
        // What ranks said before they failed comes first.
        self.output.copy_all();
        eprintln!("maypole run: {what}");
    }
}
