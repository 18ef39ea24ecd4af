//! The keeper: a small process that outlives `maypole run` by a moment.
//!
//! If the launcher is killed with SIGKILL it can end nobody. The kernel ends its direct children (`PR_SET_PDEATHSIG`),
//! but where a rank is a shell that runs the program, the program would stay. So before the first rank a child is
//! forked that holds the read end of a pipe and learns each rank's process group through it. End of file means that the
//! launcher is gone; without a farewell before it the keeper kills all the groups. It ignores signals and is in a group
//! of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::{ForkResult, Pid, fork, pipe2, setpgid};

use crate::error::{Error, Result};

pub(super) struct Keeper {
    pipe: Option<File>,
    process: Pid,
}

impl Keeper {
    /// Fork it. The calling process must have one thread.
    pub(super) fn start() -> Result<Keeper> {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC).map_err(|error| Error::system("pipe", error))?;
        // SAFETY: this process has one thread (the command has started none), so the child may go on with ordinary
        // code; it never returns.
        match unsafe { fork() }.map_err(|error| Error::system("fork", error))? {
            ForkResult::Parent { child } => Ok(Keeper { pipe: Some(ours.into()), process: child }),
            ForkResult::Child => keep(theirs, ours),
        }
    }

    /// Put a process group under its care.
    pub(super) fn guard(&mut self, group: Pid) {
        self.tell(group.as_raw());
    }

    /// The farewell: whatever still runs is meant to. Waits for its end.
    pub(super) fn dismiss(&mut self) {
        self.tell(0);
        if self.pipe.take().is_some() {
            let _ = nix::sys::wait::waitpid(self.process, None);
        }
    }

    fn tell(&mut self, word: i32) {
        if let Some(pipe) = &mut self.pipe {
            // Fails only if somebody has killed the keeper: then there is no keeper.
            let _ = pipe.write_all(&word.to_ne_bytes());
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.dismiss();
    }
}

/// The keeper's life.
fn keep(pipe: OwnedFd, other_end: OwnedFd) -> ! {
    drop(other_end);
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let _ = SigSet::all().thread_block();
    // Whoever reads the launcher's output must see its end when the launcher ends.
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        for fd in 0..3 {
            if fd != pipe.as_raw_fd() {
                // SAFETY: replaces a standard stream of this process, which uses none of them any more.
                unsafe { libc::dup2(null.as_fd().as_raw_fd(), fd) };
            }
        }
    }
    let mut pipe = File::from(pipe);
    let mut groups = Vec::new();
    let mut word = [0; 4];
    while pipe.read_exact(&mut word).is_ok() {
        match i32::from_ne_bytes(word) {
            0 => groups.clear(),
            group => groups.push(Pid::from_raw(group)),
        }
    }
    for group in groups {
        let _ = killpg(group, Signal::SIGKILL);
    }
    // SAFETY: ends this process without the exit handlers and buffers that belong to the launcher.
    unsafe { libc::_exit(0) }
}
