//! The caller's side: showing the key, and having the door show it.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use maypole_transports::tcp::seal::{self, HELLO};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Errand, GREETING, MAC, MAGIC, Refusal, Transcript, check_magic, random};
use crate::node::key::Key;
use crate::node::session::Session;

/// The caller's side: show the key and have the door show it; returns what both ends have in common
/// then. Blocks until `deadline`, or until `give_up` says so (asked every 20 ms). `stream` is
/// non-blocking and stays so.
pub(in crate::node) fn knock<S: Read + Write + AsFd>(
    stream: &mut S,
    key: &Key,
    errand: &Errand,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> Result<Session, Refusal> {
    let opening = errand.opening(&random()?);
    transfer(stream, Transfer::Write(&opening), deadline, give_up)?;
    let mut greeting = [0; GREETING];
    transfer(stream, Transfer::Read(&mut greeting), deadline, give_up)?;
    check_magic(&greeting[..MAGIC.len()])?;
    let transcript = Transcript { greeting: &greeting, opening: &opening };
    let proof = transcript.mac(key, b"caller");
    transfer(stream, Transfer::Write(proof.as_bytes()), deadline, give_up)?;
    let mut answer = [0; MAC];
    transfer(stream, Transfer::Read(&mut answer), deadline, give_up)?;
    // Its refusal is no MAC either.
    if blake3::Hash::from_bytes(answer) != transcript.mac(key, b"door") {
        return Err(Refusal::WrongKey);
    }
    let key = transcript.session(key);
    let seal = match errand.sealed {
        false => None,
        true => {
            let (caller, hello) = seal::call(key.bytes());
            transfer(stream, Transfer::Write(&hello), deadline, give_up)?;
            let mut answer = [0; HELLO];
            transfer(stream, Transfer::Read(&mut answer), deadline, give_up)?;
            Some(caller.answered(&answer).map_err(|_| Refusal::Changed)?)
        }
    };
    Ok(Session { key, seal })
}

enum Transfer<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

fn transfer<S: Read + Write + AsFd>(
    stream: &mut S,
    mut what: Transfer<'_>,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> Result<(), Refusal> {
    let mut done = 0;
    loop {
        let (result, length, event) = match &mut what {
            Transfer::Read(into) => (stream.read(&mut into[done..]), into.len(), PollFlags::POLLIN),
            Transfer::Write(from) => (stream.write(&from[done..]), from.len(), PollFlags::POLLOUT),
        };
        match result {
            Ok(0) => return Err(Refusal::Closed),
            Ok(n) if done + n == length => return Ok(()),
            Ok(n) => done += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait(&*stream, event, deadline, give_up)?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Err(Refusal::Closed),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Wait until `stream` is ready for `event`.
pub(in crate::node) fn wait(
    stream: &impl AsFd,
    event: PollFlags,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> Result<(), Refusal> {
    loop {
        if give_up() {
            return Err(Refusal::GivenUp);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Refusal::Silent);
        }
        let nap = left.min(Duration::from_millis(20)).as_millis().max(1) as u16;
        match poll(&mut [PollFd::new(stream.as_fd(), event)], PollTimeout::from(nap)) {
            Ok(n) if n > 0 => return Ok(()),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Refusal::Io(e.into())),
        }
    }
}
