//! Who reads standard input: `--stdin`.
//!
//! A file or a pipe is simply inherited by the one rank that is to read it. A terminal cannot be: ranks are in process
//! groups of their own, and the system stops those that read from it. Nor can one pipe serve several readers, each of
//! which is to have all of it. There the launcher reads, on a thread, and hands on.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::str::FromStr;

use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::unistd::pipe2;

/// The ranks that read standard input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Readers {
    All,
    None,
    One(u32),
}

impl FromStr for Readers {
    type Err = String;

    fn from_str(text: &str) -> Result<Readers, String> {
        match text {
            "all" => Ok(Readers::All),
            "none" => Ok(Readers::None),
            _ => text.parse().map(Readers::One).map_err(|_| "expected a rank, all or none".to_string()),
        }
    }
}

/// Hands out standard input.
pub(super) struct Input {
    readers: Readers,
    /// The launcher reads and hands on.
    copies: bool,
    /// Where to.
    pipes: Vec<File>,
}

impl Input {
    /// `wanted`: what the command line says, if it does.
    pub(super) fn new(wanted: Option<Readers>) -> Input {
        let terminal = std::io::stdin().is_terminal();
        let default = if terminal { Readers::None } else { Readers::One(0) };
        let readers = wanted.unwrap_or(default);
        let copies = readers == Readers::All || terminal && readers != Readers::None;
        Input { readers, copies, pipes: Vec::new() }
    }

    /// What `rank` reads.
    ///
    /// # Errors
    /// The system's, if it has no more pipes.
    pub(super) fn of(&mut self, rank: usize) -> std::io::Result<Stdio> {
        let reads = match self.readers {
            Readers::All => true,
            Readers::None => false,
            Readers::One(one) => one as usize == rank,
        };
        if reads && self.copies {
            let (theirs, ours): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC)?;
            self.pipes.push(ours.into());
            return Ok(theirs.into());
        }
        Ok(if reads { Stdio::inherit() } else { Stdio::null() })
    }

    /// All ranks have theirs: begin to hand on. The thread ends with the input, its readers, or the process.
    pub(super) fn hand_on(self) {
        if self.pipes.is_empty() {
            return;
        }
        let mut pipes = self.pipes;
        // Without a thread the ranks find the end of their input.
        let _ = std::thread::Builder::new().name("maypole-input".into()).spawn(move || {
            let _ = SigSet::all().thread_block();
            let (mut input, mut bytes) = (std::io::stdin().lock(), vec![0; 64 << 10]);
            while let Ok(n @ 1..) = input.read(&mut bytes) {
                // The slowest sets the pace; one that has closed its input drops out.
                pipes.retain_mut(|pipe| pipe.write_all(&bytes[..n]).is_ok());
                if pipes.is_empty() {
                    break;
                }
            }
        });
    }
}
