//! The ranks as processes: found, started, signalled, and reaped.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, killpg, sigprocmask};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpid, getppid, pipe2};

use super::args::Args;
use super::bind::{Bind, Places};
use super::board::Board;
use super::keeper::Keeper;
use super::output::{Output, Sink};
use super::stdin::Input;
use super::terminal;
use crate::descriptors;
use crate::error::{Error, Result};
use crate::launch::run_board::{BOARD, Place};

/// How a rank ended, if not well.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    /// It returned this status, not 0.
    Status(i32),
    /// A signal; whether there is a core dump.
    Signal(Signal, bool),
    /// Somebody else has taken its status: a debugger, or code of the program that runs this command.
    Unknown,
}

impl Ending {
    /// As a shell has it.
    pub(super) fn status(self) -> u8 {
        match self {
            Ending::Status(status) => status as u8,
            Ending::Signal(signal, _) => 128 + signal as i32 as u8,
            Ending::Unknown => 1,
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::Status(status) => write!(f, "exited with status {status}"),
            Ending::Signal(signal, core) => {
                write!(f, "was ended by {signal}{}", if *core { " (core dumped)" } else { "" })
            }
            Ending::Unknown => write!(f, "ended, and its status went to somebody else"),
        }
    }
}

/// All ranks. Ended ones stay zombies until [`Ranks::reap`]: so long, their process group's number cannot become
/// somebody else's.
pub(super) struct Ranks {
    children: Vec<Child>,
    ended: Vec<bool>,
    host: String,
    keeper: Keeper,
}

impl Ranks {
    /// Start them; if one cannot be started, none is left. `keeper` was made before this process had threads.
    pub(super) fn start(
        args: &Args,
        program: &Path,
        keeper: Keeper,
        output: &mut Output,
        board: &Board,
    ) -> Result<Ranks> {
        let size = args.ranks as usize;
        let places = Places::find(args.bind)?;
        if (1..size).contains(&places.len()) && args.bind == Bind::Core {
            output.say(&format!("{size} ranks on {} cores (--bind core): some share one", places.len()));
        }
        // Programs that use torch.distributed have a store of their own listen at MASTER_PORT.
        let here = |ip: IpAddr| TcpListener::bind((ip, 0)).and_then(|free| free.local_addr());
        let free = here(Ipv4Addr::LOCALHOST.into())
            .or_else(|v4| here(Ipv6Addr::LOCALHOST.into()).map_err(|_| v4))
            .map_err(|error| Error::system("looking for a free port on the loopback interface", error))?;
        let mut common: Vec<(String, OsString)> = vec![
            ("WORLD_SIZE".into(), size.to_string().into()),
            ("LOCAL_WORLD_SIZE".into(), size.to_string().into()),
            ("MASTER_ADDR".into(), free.ip().to_string().into()),
            ("MASTER_PORT".into(), free.port().to_string().into()),
        ];
        if !std::env::var("MAYPOLE_KEY").is_ok_and(|key| !key.trim().is_empty()) {
            common.push(("MAYPOLE_KEY".into(), random_key()?.into()));
        }
        // Python collects what it prints to a pipe, and loses that when it is killed.
        if !args.no_prefix && std::env::var_os("PYTHONUNBUFFERED").is_none() {
            common.push(("PYTHONUNBUFFERED".into(), "1".into()));
        }
        common.extend(args.set.iter().filter_map(|(name, value)| Some((name.clone(), value.as_ref()?.into()))));

        let host = nix::unistd::gethostname().map_or("?".to_string(), |host| host.to_string_lossy().into_owned());
        let mut ranks = Ranks { children: Vec::with_capacity(size), ended: vec![false; size], host, keeper };
        let mut input = Input::new(args.stdin);
        let files = raise_limit();
        for rank in 0..size {
            let set_up = Setup { board: board.place(rank), place: places.of(rank, size), files };
            match spawn(rank, args, (program, &common), set_up, &mut input, output) {
                Ok(child) => {
                    ranks.keeper.guard(Pid::from_raw(child.id() as i32));
                    ranks.children.push(child);
                }
                Err(error) => {
                    ranks.signal(Signal::SIGKILL);
                    ranks.reap();
                    return Err(Error::system(format!("starting rank {rank} ({})", program.display()), error));
                }
            }
        }
        input.hand_on();
        Ok(ranks)
    }

    /// How many have not ended.
    pub(super) fn alive(&self) -> usize {
        self.ended.iter().filter(|&&ended| !ended).count()
    }

    /// Whether this one has not ended.
    pub(super) fn is_alive(&self, rank: usize) -> bool {
        !self.ended[rank]
    }

    /// Those that have ended badly since the last call.
    pub(super) fn endings(&mut self) -> Vec<(usize, Ending)> {
        let mut failed = Vec::new();
        for (rank, child) in self.children.iter().enumerate() {
            if self.ended[rank] {
                continue;
            }
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            match waitid(Id::Pid(Pid::from_raw(child.id() as i32)), flags) {
                Ok(WaitStatus::Exited(_, 0)) => {}
                Ok(WaitStatus::Exited(_, status)) => failed.push((rank, Ending::Status(status))),
                Ok(WaitStatus::Signaled(_, signal, core)) => failed.push((rank, Ending::Signal(signal, core))),
                Err(Errno::ECHILD) => failed.push((rank, Ending::Unknown)),
                _ => continue,
            }
            self.ended[rank] = true;
        }
        failed
    }

    /// Those that something has stopped since the last call, and by which signal.
    pub(super) fn stops(&self) -> Vec<(usize, Signal)> {
        let stopped = |child: &Child| {
            let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
            match waitid(Id::Pid(Pid::from_raw(child.id() as i32)), flags) {
                Ok(WaitStatus::Stopped(_, signal)) => Some(signal),
                _ => None,
            }
        };
        let running = self.children.iter().enumerate().filter(|(rank, _)| !self.ended[*rank]);
        running.filter_map(|(rank, child)| Some((rank, stopped(child)?))).collect()
    }

    /// Send a signal to every rank's process group, ended ones' too: they may have left something running.
    pub(super) fn signal(&self, signal: Signal) {
        for child in &self.children {
            // ESRCH: nobody left in the group, which is fine.
            let _ = killpg(Pid::from_raw(child.id() as i32), signal);
        }
    }

    /// Take every rank out of the process table. Blocks for those that have not ended.
    pub(super) fn reap(&mut self) {
        self.keeper.dismiss();
        for child in &mut self.children {
            let _ = child.wait();
        }
    }

    /// A rank for messages.
    pub(super) fn name(&self, rank: usize) -> String {
        format!("rank {rank} (pid {} on {})", self.children[rank].id(), self.host)
    }

    /// The ranks that have not ended, for messages.
    pub(super) fn names_alive(&self) -> String {
        let alive: Vec<String> =
            self.ended.iter().enumerate().filter(|&(_, &ended)| !ended).map(|(rank, _)| rank.to_string()).collect();
        match alive.len() {
            1 => format!("rank {}", alive[0]),
            n if n > 16 => format!("{n} ranks (the first: {})", alive[0]),
            _ => format!("ranks {}", alive.join(", ")),
        }
    }
}

/// What is a rank's own.
struct Setup {
    board: Place,
    place: Option<CpuSet>,
    /// The limits of descriptors that this process was started with, if it has others now.
    files: Option<(u64, u64)>,
}

/// Two pipes and a connection for each rank may be more descriptors than this process was given. The limits before, if
/// they are others now: ranks are to have those, since programs that wait in `select` count on them.
fn raise_limit() -> Option<(u64, u64)> {
    let before = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    descriptors::raise();
    let now = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (now != before).then_some(before)
}

fn spawn(
    rank: usize,
    args: &Args,
    (program, common): (&Path, &[(String, OsString)]),
    set_up: Setup,
    input: &mut Input,
    output: &mut Output,
) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.arg0(&args.program[0]).args(&args.program[1..]).process_group(0);
    // An outer torchrun's store has nothing to do with these ranks.
    for name in ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"] {
        command.env_remove(name);
    }
    command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
    command.env(BOARD, set_up.board.to_string());
    command.envs(common.iter().map(|(name, value)| (name, value)));
    command.stdin(input.of(rank)?);
    let mut read = Vec::new();
    if !args.no_prefix {
        for sink in [Sink::Stdout, Sink::Stderr] {
            let (ours, theirs) = if args.pty { terminal::open()? } else { pipe2(OFlag::O_CLOEXEC)? };
            match sink {
                Sink::Stdout => command.stdout(theirs),
                Sink::Stderr => command.stderr(theirs),
            };
            read.push((sink, ours));
        }
    }
    let (launcher, place, files) = (getpid(), set_up.place, set_up.files);
    // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
    unsafe { command.pre_exec(move || in_child(launcher, place.as_ref(), files)) };
    let child = command.spawn()?;
    // The rank's ends go with the command.
    drop(command);
    read.into_iter().for_each(|(sink, ours)| output.add(rank, sink, ours));
    Ok(child)
}

/// What a rank does before it becomes the program.
fn in_child(launcher: Pid, place: Option<&CpuSet>, files: Option<(u64, u64)>) -> std::io::Result<()> {
    // Not for what the rank itself starts; for that there is the keeper.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != launcher {
        // The launcher died before the line above.
        return Err(std::io::ErrorKind::Interrupted.into());
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    // A shell without job control has what it starts in the background ignore Ctrl-C, which is typed for others. What
    // comes to a rank was sent to the launcher, and meant.
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: the default action is no function.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
    }
    if let Some(place) = place {
        sched_setaffinity(Pid::from_raw(0), place)?;
    }
    if let Some((soft, hard)) = files {
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    }
    Ok(())
}

fn random_key() -> Result<String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::system("getrandom", error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
