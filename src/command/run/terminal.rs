//! Pseudo-terminals for ranks: `--pty`.
//!
//! A program that writes to a pipe collects what it prints and writes it in large pieces, so it comes late, and what a
//! killed one had collected is lost. To a terminal the same program writes each line as it is.

use std::os::fd::OwnedFd;

use nix::pty::openpty;
use nix::sys::termios::{OutputFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// A new one: the end that the launcher reads, and the rank's, which changes nothing of what is written. It is as large
/// as the terminal that this process writes to, if it does.
///
/// # Errors
/// The system's.
pub(super) fn open() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let mut size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call writes one winsize, or fails and writes nothing.
    unsafe { libc::ioctl(1, libc::TIOCGWINSZ, &mut size) };
    let both = openpty(&size, None::<&Termios>)?;
    let mut settings = tcgetattr(&both.slave)?;
    settings.output_flags.remove(OutputFlags::OPOST);
    tcsetattr(&both.slave, SetArg::TCSANOW, &settings)?;
    // Ranks that start meanwhile must not have them.
    for fd in [&both.master, &both.slave] {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    Ok((both.master, both.slave))
}
