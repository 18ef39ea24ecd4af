//! The ranks as processes: found, started, signalled, and reaped.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg, sigprocmask};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{AccessFlags, Pid, access, getpid, getppid};

use super::Args;
use super::keeper::Keeper;
use super::output::{Output, Sink};
use crate::error::{Error, Result};
use crate::launch;
use crate::node::ports;

/// How a rank ended, if not well.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    /// It returned this status, not 0.
    Status(i32),
    /// A signal; whether there is a core dump.
    Signal(Signal, bool),
}

impl Ending {
    /// As a shell has it.
    pub(super) fn status(self) -> u8 {
        match self {
            Ending::Status(status) => status as u8,
            Ending::Signal(signal, _) => 128 + signal as i32 as u8,
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
    /// Start them; if one cannot be started, none is left.
    pub(super) fn start(args: &Args, program: &Path, output: &mut Output) -> Result<Ranks> {
        let size = args.ranks as usize;
        // Before any rank exists, so that none is ever without it, and before the socket that only rank 0 may hold: a
        // second world binds that port anew.
        let keeper = Keeper::start()?;
        let ports = args.config()?.ports;
        // Not as a node listens: rank 0 is to inherit the socket.
        let listen = |ip: IpAddr| ports::bind(ports.as_ref(), |port| TcpListener::bind((ip, port)));
        let listener = listen(Ipv4Addr::LOCALHOST.into())
            .or_else(|v4| listen(Ipv6Addr::LOCALHOST.into()).map_err(|_| v4))
            .map_err(|error| Error::system("binding a port on the loopback interface, where the ranks meet", error))?;
        let address = listener.local_addr().map_err(|error| Error::system("getsockname", error))?;
        // Programs that use torch.distributed have a store of their own listen at MASTER_PORT.
        let for_programs = TcpListener::bind((address.ip(), 0))
            .and_then(|free| free.local_addr())
            .map_err(|error| Error::system("looking for a free port on the loopback interface", error))?;
        let mut common: Vec<(String, OsString)> = vec![
            ("WORLD_SIZE".into(), size.to_string().into()),
            ("LOCAL_WORLD_SIZE".into(), size.to_string().into()),
            ("MASTER_ADDR".into(), address.ip().to_string().into()),
            ("MASTER_PORT".into(), for_programs.port().to_string().into()),
            (launch::LISTEN_PORT.into(), address.port().to_string().into()),
            (launch::LAUNCHER.into(), "maypole run".into()),
        ];
        if std::env::var_os("MAYPOLE_KEY").is_none_or(|key| key.is_empty()) {
            common.push(("MAYPOLE_KEY".into(), random_key()?.into()));
        }
        common.extend(args.set.iter().filter_map(|(name, value)| Some((name.clone(), value.as_ref()?.into()))));

        let host = nix::unistd::gethostname().map_or("?".to_string(), |host| host.to_string_lossy().into_owned());
        let mut ranks = Ranks { children: Vec::with_capacity(size), ended: vec![false; size], host, keeper };
        for rank in 0..size {
            match ranks.spawn(rank, args, program, &common, &listener) {
                Ok(mut child) => {
                    ranks.keeper.guard(Pid::from_raw(child.id() as i32));
                    if let Some(stdout) = child.stdout.take() {
                        output.add(rank, Sink::Stdout, stdout.into());
                    }
                    if let Some(stderr) = child.stderr.take() {
                        output.add(rank, Sink::Stderr, stderr.into());
                    }
                    ranks.children.push(child);
                }
                Err(error) => {
                    ranks.signal(Signal::SIGKILL);
                    ranks.reap();
                    return Err(Error::system(format!("starting rank {rank} ({})", program.display()), error));
                }
            }
        }
        Ok(ranks)
    }

    fn spawn(
        &self,
        rank: usize,
        args: &Args,
        program: &Path,
        common: &[(String, OsString)],
        listener: &TcpListener,
    ) -> std::io::Result<Child> {
        let mut command = Command::new(program);
        command.arg0(&args.program[0]).args(&args.program[1..]).process_group(0);
        // An outer torchrun's store has nothing to do with these ranks.
        for name in
            ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT", launch::LISTEN_FD]
        {
            command.env_remove(name);
        }
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        if rank == 0 {
            command.env(launch::LISTEN_FD, listener.as_raw_fd().to_string());
        }
        command.envs(common.iter().map(|(name, value)| (name, value)));
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
        command.stdin(if rank == 0 && !terminal { Stdio::inherit() } else { Stdio::null() });
        if !args.no_prefix {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let launcher = getpid();
        let passed = (rank == 0).then(|| listener.as_raw_fd());
        // SAFETY: between fork and exec only async-signal-safe calls are made, nothing is allocated, and the descriptor
        // is open in the child.
        unsafe { command.pre_exec(move || in_child(launcher, passed)) };
        command.spawn()
    }

    /// How many have not ended.
    pub(super) fn alive(&self) -> usize {
        self.ended.iter().filter(|&&ended| !ended).count()
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
                _ => continue,
            }
            self.ended[rank] = true;
        }
        failed
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

/// What a rank does before it becomes the program.
fn in_child(launcher: Pid, passed: Option<std::os::fd::RawFd>) -> std::io::Result<()> {
    // Not for what the rank itself starts; for that there is the keeper.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != launcher {
        // The launcher died before the line above.
        return Err(std::io::ErrorKind::Interrupted.into());
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    if let Some(fd) = passed {
        // SAFETY: clears close-on-exec of a descriptor that is open here; no memory is involved.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The program's path, or why there is none, with the exit status that a shell would give.
pub(super) fn find_program(name: &OsStr) -> std::result::Result<PathBuf, (String, u8)> {
    let path = Path::new(name);
    let runs = |path: &Path| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    let shown = path.display();
    if path.components().count() > 1 || path.is_absolute() {
        return match () {
            () if runs(path) => Ok(path.to_path_buf()),
            () if path.is_dir() => Err((format!("{shown} is a directory, not a program"), 126)),
            () if path.exists() => {
                Err((format!("{shown} is not executable; chmod +x it, or name its interpreter first"), 126))
            }
            () => Err((format!("there is no program {shown}"), 127)),
        };
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&directories).map(|directory| directory.join(path)).find(|path| runs(path));
    found.ok_or_else(|| {
        let hint =
            if path.exists() { format!("; for the one in this directory write ./{shown}") } else { String::new() };
        (format!("there is no program {shown} in PATH{hint}"), 127)
    })
}

fn random_key() -> Result<String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::system("getrandom", error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
