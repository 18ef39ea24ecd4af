//! `maypole run`: start N ranks of a program on this machine, and see them to their end.
//!
//! One thread and one `poll`: it watches a signal descriptor, the ranks' output pipes, the [`board`] at which they meet
//! and, through SIGCHLD, the ranks. Nothing in it waits for anything else: what may take long, which is to write where a
//! reader is slow and to read where a person types, [`writer`] and [`stdin`] do on threads. Every rank is the leader of
//! its own process group, so a signal reaches whatever the rank itself has started (a shell that runs a program, say).
//! [`args`] has the command line, [`ranks`] starts and ends the ranks, [`blame`] says which of them failed first,
//! [`output`] and [`lines`] prefix what they print, [`keeper`] ends them if this process is killed.

mod args;
mod bind;
mod blame;
mod board;
mod keeper;
mod lines;
mod output;
mod program;
mod ranks;
mod stdin;
mod terminal;
mod writer;

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::say;
use crate::error::{Error, Result};
use crate::running::{Clock, LOOK, Moment};
pub(crate) use args::{Args, with_np};
use blame::Blame;
use board::Board;
use keeper::Keeper;
use output::Output;
use ranks::{Ending, Ranks};

/// How long a reader that is slow may take when the job was ended by force.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Signals that are passed on as they are.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Run the command.
pub(super) fn run(args: &Args) -> ExitCode {
    let fail = |why: &dyn std::fmt::Display, status| {
        say(format_args!("maypole run: {why}"));
        ExitCode::from(status)
    };
    if let Err(why) = args.check() {
        return fail(&why, 2);
    }
    let program = match program::find(&args.program[0]) {
        Ok(program) => program,
        Err((why, status)) => return fail(&why, status),
    };
    match Job::start(args, &program).and_then(|mut job| job.watch()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(&error, 126),
    }
}

/// Start `ranks` ranks of `program` (with its arguments) that write to this process's own output, and see them to their
/// end: how `maypole perf --ranks` gets its ranks. The calling process must have one thread.
pub(crate) fn ranks_of(program: Vec<std::ffi::OsString>, ranks: u32) -> ExitCode {
    run(&Args::plain(program, ranks))
}

/// What has been done to end the job.
#[derive(Clone, Copy, PartialEq)]
enum Ended {
    /// Nothing: it runs.
    Not,
    /// Whoever started this has sent SIGTERM, which was passed on; SIGKILL follows then.
    Told(Moment),
    /// SIGTERM was sent; SIGKILL follows then.
    Asked(Moment),
    /// SIGKILL was sent.
    Killed,
}

struct Job {
    ranks: Ranks,
    output: Output,
    board: Board,
    signals: SignalFd,
    deadline: Option<(Moment, Duration)>,
    /// Ctrl-Z stops it.
    clock: Clock,
    grace: Duration,
    ended: Ended,
    blame: Blame,
    status: Option<u8>,
    /// The last signal that was passed on, to say so if a rank dies of it.
    passed_on: Option<Signal>,
}

impl Job {
    fn start(args: &Args, program: &Path) -> Result<Job> {
        // Where it is ignored, as some programs leave it to what they start, the system keeps no statuses.
        // SAFETY: the default action is no function.
        unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }
            .map_err(|error| Error::system("having SIGCHLD back", error))?;
        let mut watched = SigSet::empty();
        for signal in PASSED_ON.into_iter().chain([Signal::SIGCHLD, Signal::SIGTSTP, Signal::SIGCONT]) {
            watched.add(signal);
        }
        watched.thread_block().map_err(|error| Error::system("blocking signals", error))?;
        let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|error| Error::system("signalfd", error))?;
        // Before there are threads, and before any rank exists, so that none is ever without it.
        let keeper = Keeper::start()?;
        let mut output = Output::new()?;
        let board = Board::open(args.ranks as usize)?;
        let ranks = Ranks::start(args, program, keeper, &mut output, &board)?;
        let clock = Clock::start();
        Ok(Job {
            ranks,
            output,
            board,
            signals,
            deadline: args.timeout.map(|timeout| (clock.shown() + timeout, timeout)),
            clock,
            grace: args.grace,
            ended: Ended::Not,
            blame: Blame::default(),
            status: None,
            passed_on: None,
        })
    }

    /// Until the last rank has ended and its output is out. The exit status.
    fn watch(&mut self) -> Result<u8> {
        while self.ranks.alive() > 0 {
            self.wait()?;
            self.take_signals();
            self.take_stops();
            self.take_endings();
            self.take_time();
            self.take_trouble();
        }
        // What the ranks started in their groups and left running must not outlive the job, nor keep the pipes open.
        self.ranks.signal(Signal::SIGKILL);
        self.ranks.reap();
        self.finish()?;
        Ok(self.status.unwrap_or(0))
    }

    /// Have the rest of the output written. A reader may take its time over it, as over any program's, but not when the
    /// job was to be over by now, nor when somebody wants this command to end.
    fn finish(&mut self) -> Result<()> {
        let ended_by_signal = self.passed_on.is_some() && self.status.is_some();
        let forced = self.status == Some(124) || self.ended == Ended::Killed || ended_by_signal;
        let soon = self.clock.shown() + LAST_WORDS;
        let by = if forced { Some(soon) } else { self.deadline.map(|(deadline, _)| deadline.max(soon)) };
        let mut told = false;
        while !self.output.finish() && !told && by.is_none_or(|by| self.clock.shown() < by) {
            self.sleep(by)?;
            while let Ok(Some(info)) = self.signals.read_signal() {
                let signal = Signal::try_from(info.ssi_signo as i32);
                told |= matches!(signal, Ok(Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT));
                if signal == Ok(Signal::SIGTSTP) {
                    let _ = nix::sys::signal::raise(Signal::SIGSTOP);
                }
            }
            self.take_trouble();
        }
        self.take_trouble();
        if let Some(lost) = self.output.lost() {
            self.output.say(&lost);
            let until = Instant::now() + LAST_WORDS;
            while !self.output.has_said() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Sleep until something happens, and do what that asks for, but for signals.
    fn wait(&mut self) -> Result<()> {
        let wake = match self.ended {
            Ended::Told(kill) | Ended::Asked(kill) => Some(kill),
            Ended::Not => None,
            Ended::Killed => return self.sleep(None),
        };
        let deadline = self.deadline.map(|(deadline, _)| deadline).filter(|_| !matches!(self.ended, Ended::Asked(_)));
        self.sleep(wake.into_iter().chain(deadline).chain(self.blame.due()).min())
    }

    /// Sleep until something happens, `wake` comes, or a line has waited long enough; serve the board, copy output.
    fn sleep(&mut self, wake: Option<Moment>) -> Result<()> {
        let left = wake.map(|wake| (wake - self.clock.shown()).min(LOOK));
        let due = self.output.due().map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = left.into_iter().chain(due).min().map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let streams = self.output.watched();
        let mut watched: Vec<PollFd> = [self.signals.as_fd(), self.output.bell()]
            .into_iter()
            .chain(self.board.descriptors())
            .chain(streams.iter().map(|(_, fd)| *fd))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Error::system("poll", error)),
        }
        let _ = if wake.is_some() { self.clock.look() } else { self.clock.look_after_rest() };
        let ready: Vec<bool> = watched.iter().map(|fd| fd.any() == Some(true)).collect();
        let (board, pipes) = ready[2..].split_at(ready.len() - 2 - streams.len());
        let readable: Vec<usize> =
            streams.iter().zip(pipes).filter(|(_, ready)| **ready).map(|((i, _), _)| *i).collect();
        self.output.heard();
        self.board.serve(board);
        self.output.copy(&readable);
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
                    if signal == Signal::SIGTERM {
                        // One that is stopped could not act on it.
                        self.ranks.signal(Signal::SIGCONT);
                        self.ended = Ended::Told(self.clock.shown() + self.grace);
                    }
                }
            }
        }
    }

    /// Ranks that something has stopped wait for ever, and the others for them.
    fn take_stops(&mut self) {
        for (rank, signal) in self.ranks.stops() {
            let why = match signal {
                Signal::SIGTTIN => {
                    ": it reads from the terminal, which ranks cannot; --stdin has the launcher hand it on"
                }
                Signal::SIGTTOU => ": it changes the terminal, which ranks cannot",
                _ => "; kill -CONT has it go on",
            };
            self.say(&format!("{} was stopped by {signal}{why}", self.ranks.name(rank)));
        }
    }

    fn take_trouble(&mut self) {
        if let Some(trouble) = self.output.trouble() {
            self.output.say(&trouble);
        }
    }

    fn take_endings(&mut self) {
        let ended = self.ranks.endings();
        if !ended.is_empty() {
            // Whoever has aborted said so before the others could end.
            self.board.catch_up();
        }
        let now = self.clock.shown();
        if let Some(rank) = self.board.take_aborting() {
            self.blame.aborts(rank, now);
        }
        let first = self.blame.first(ended, |rank| self.ranks.is_alive(rank), now);
        let Some((rank, ending)) = first else { return };
        let already = self.status.is_some();
        self.status.get_or_insert(ending.status());
        if already || matches!(self.ended, Ended::Asked(_) | Ended::Killed) {
            return;
        }
        let by_us = match ending {
            Ending::Signal(signal, _) if self.passed_on == Some(signal) => ", which was passed on to all ranks",
            _ => "",
        };
        // Those that were told are about to end.
        let told = self.ended != Ended::Not;
        let rest = match self.ranks.alive() {
            0 => String::new(),
            _ if told => String::new(),
            1 => "; ending the other rank".to_string(),
            n => format!("; ending the other {n} ranks"),
        };
        self.say(&format!("{} {ending}{by_us}{rest}", self.ranks.name(rank)));
        if !told {
            self.end();
        }
    }

    fn take_time(&mut self) {
        let now = self.clock.shown();
        match (self.ended, self.deadline) {
            (Ended::Told(kill) | Ended::Asked(kill), _) if now >= kill => {
                self.say(&format!(
                    "{} did not end within {:?} of SIGTERM; killing",
                    self.ranks.names_alive(),
                    self.grace
                ));
                self.ended = Ended::Killed;
                self.ranks.signal(Signal::SIGKILL);
            }
            (Ended::Not | Ended::Told(_), Some((deadline, timeout))) if now >= deadline => {
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
        self.output.say(what);
    }
}
