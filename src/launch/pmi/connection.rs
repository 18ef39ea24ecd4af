//! The connection to mpiexec: how it is made, requests, and answers.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use maypole_transports::fork;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};

use crate::error::{Error, Result};
use crate::launch::{Lookup, check_rank, number};
use crate::running::{LOOK, Limit};

/// Bytes of ours in one value, twice that in hexadecimal. With name and key the line stays below
/// 1024 bytes, the longest that old implementations read.
pub(super) const PIECE: usize = 256;

/// No line of mpiexec's is longer, bytes.
const LONGEST_LINE: usize = 64 << 10;

pub(super) struct Connection {
    stream: File,
    /// Received, but not yet part of a whole line.
    buffer: Vec<u8>,
    pub rank: usize,
    pub size: usize,
    pub kvsname: String,
    pub piece: usize,
    /// A request went unanswered: whatever comes next cannot be told apart from its answer.
    lost: bool,
    /// This rank is at a barrier at which not all had come when it stopped waiting. It goes on
    /// there.
    pub at_barrier: bool,
    /// How many boards there have been: barriers that all have passed. What was put for one of them
    /// is of no use to the next, and no key may be put twice.
    pub board: usize,
    /// The process that connected: a forked child must not take leave in its name.
    pub process: fork::Process,
}

impl Connection {
    pub(super) fn open(lookup: Lookup, limit: &Limit) -> Result<Connection> {
        if let Some(fd) = number(lookup, "PMI_FD", "the file descriptor of mpiexec's socket")? {
            let who = |name, expected| {
                number(lookup, name, expected)?.ok_or_else(|| {
                    Error::bootstrap(format!(
                        "PMI_FD is set but {name} is not: {name} is {expected}; start the ranks \
                         with mpiexec"
                    ))
                })
            };
            let rank = who("PMI_RANK", "this process's rank")?;
            let size = who("PMI_SIZE", "the number of ranks")?;
            check_rank("PMI_RANK", rank, "PMI_SIZE", size)?;
            return Connection::new(inherited(fd)?, rank, size).greet(limit);
        }
        let address = lookup("PMI_PORT").unwrap_or_default();
        let id: usize = number(lookup, "PMI_ID", "this process's number")?.unwrap_or_default();
        let stream = connect(&address, limit).map_err(|error| {
            Error::bootstrap(format!(
                "mpiexec at {address} (PMI_PORT) cannot be reached: {error}; is it still running?"
            ))
        })?;
        Connection::ask_who(File::from(OwnedFd::from(stream)), &address, id, limit)?.greet(limit)
    }

    /// Have mpiexec at `address` tell its process `id` its rank and the size of the world.
    pub(super) fn ask_who(stream: File, address: &str, id: usize, limit: &Limit) -> Result<Connection> {
        // Until then its number is its rank in messages.
        let mut connection = Connection::new(stream, id, id.saturating_add(1));
        connection.request(&format!("cmd=initack pmiid={id}"), "initack", limit)?;
        let (mut rank, mut size) = (None, None);
        // Three lines follow, always in this order: size, rank, debug.
        for _ in 0..3 {
            let line = connection.line(limit, "set")?;
            rank = rank.or(word(&line, "rank").and_then(|n| n.parse().ok()));
            size = size.or(word(&line, "size").and_then(|n| n.parse().ok()));
        }
        let (Some(rank), Some(size)) = (rank, size) else {
            return Err(Error::bootstrap(format!(
                "mpiexec at {address} (PMI_PORT) told process {id} no rank and size"
            )));
        };
        check_rank("rank (from mpiexec)", rank, "size", size)?;
        (connection.rank, connection.size) = (rank, size);
        Ok(connection)
    }

    pub(super) fn new(stream: File, rank: usize, size: usize) -> Connection {
        fork::close_in_children(&stream);
        Connection {
            stream,
            buffer: Vec::new(),
            rank,
            size,
            kvsname: String::new(),
            piece: PIECE,
            lost: false,
            at_barrier: false,
            board: 0,
            process: fork::Process::this(),
        }
    }

    pub(super) fn greet(mut self, limit: &Limit) -> Result<Connection> {
        let init = "cmd=init pmi_version=1 pmi_subversion=1";
        let answer = self.request(init, "response_to_init", limit)?;
        if word(&answer, "pmi_version") != Some("1") {
            return Err(self.nonsense("init", &answer, "PMI version 1"));
        }
        let answer = self.request("cmd=get_maxes", "maxes", limit)?;
        match word(&answer, "vallen_max").and_then(|max| max.parse::<usize>().ok()) {
            // One character is the C string's end, four hold the number of pieces.
            Some(max) if max >= 16 => self.piece = PIECE.min((max - 5) / 2),
            _ => return Err(self.nonsense("get_maxes", &answer, "vallen_max of at least 16")),
        }
        let answer = self.request("cmd=get_my_kvsname", "my_kvsname", limit)?;
        match word(&answer, "kvsname") {
            Some(name) => self.kvsname = name.to_string(),
            None => return Err(self.nonsense("get_my_kvsname", &answer, "kvsname")),
        }
        Ok(self)
    }

    /// Send a request and wait for the answer, whose `cmd` must be `expected` and whose `rc`, if
    /// any, 0.
    pub(super) fn request(&mut self, request: &str, expected: &str, limit: &Limit) -> Result<String> {
        self.ask(request)?;
        self.lost = true;
        let answer = self.line(limit, expected)?;
        self.lost = false;
        self.check(request, answer, expected)
    }

    /// Send a request.
    pub(super) fn ask(&mut self, request: &str) -> Result<()> {
        if self.lost {
            return Err(Error::bootstrap(format!(
                "rank {}: the connection to mpiexec (PMI) failed earlier",
                self.rank
            )));
        }
        self.lost = true;
        let mut line = request.as_bytes().to_vec();
        line.push(b'\n');
        self.send(&line).map_err(|error| self.gone(&error.to_string()))?;
        self.lost = false;
        Ok(())
    }

    /// `answer`, if it is one to `request`, whose `cmd` is `expected` and whose `rc`, if any, 0.
    pub(super) fn check(&self, request: &str, answer: String, expected: &str) -> Result<String> {
        let name = request.split(' ').next().unwrap_or(request);
        match word(&answer, "rc") {
            _ if word(&answer, "cmd") != Some(expected) => Err(self.nonsense(name, &answer, expected)),
            None | Some("0") => Ok(answer),
            Some(_) => Err(self.nonsense(name, &answer, "rc=0")),
        }
    }

    /// Write all of it, without SIGPIPE where the host program (C, Python) has not turned that off.
    fn send(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            match send(self.stream.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::EINTR) => {}
                Err(Errno::ENOTSOCK) => return self.stream.write_all(bytes),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(super) fn line(&mut self, limit: &Limit, expected: &str) -> Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_string());
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(Error::bootstrap(format!(
                    "rank {} waited for {expected} from mpiexec (PMI), but a line of more than \
                     {LONGEST_LINE} bytes came: what answers there does not speak PMI-1",
                    self.rank
                )));
            }
            let left = limit.left();
            if left.is_zero() {
                let what = if expected == "barrier_out" {
                    "not every rank has come: some have not started, or have not created their \
                     communicator"
                } else {
                    "mpiexec does not answer"
                };
                return Err(Error::bootstrap(format!(
                    "rank {} of {} waited in vain for {expected} from mpiexec (PMI): {what}",
                    self.rank, self.size
                )));
            }
            let mut watched = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left.min(LOOK) + Duration::from_millis(1));
            match poll(&mut watched, timeout.unwrap_or(PollTimeout::MAX)) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(self.gone(&error.to_string())),
            }
            let mut bytes = [0; 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(self.gone("end of file")),
                Ok(n) => self.buffer.extend(&bytes[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.gone(&error.to_string())),
            }
        }
    }

    fn gone(&self, error: &str) -> Error {
        Error::bootstrap(format!("rank {} lost the connection to mpiexec (PMI): {error}", self.rank))
    }

    fn nonsense(&self, request: &str, answer: &str, expected: &str) -> Error {
        Error::bootstrap(format!(
            "rank {}: mpiexec answered \"{answer}\" to PMI request {request}, expected {expected}",
            self.rank
        ))
    }
}

/// The value of `key` in a line of `key=value` words.
pub(super) fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// What is expected of `PMI_FD`.
const INHERITED: &str = "expected the open descriptor that mpiexec passes to its ranks; a wrapper \
                         between mpiexec and this program (ssh, sudo, a container) has closed it, \
                         or the variable is left over from another job";

/// A copy of the descriptor that mpiexec left, closed in children.
fn inherited(fd: RawFd) -> Result<File> {
    let closed =
        || Error::Setting { name: "PMI_FD".to_string(), value: fd.to_string(), expected: INHERITED.to_string() };
    if fd < 0 {
        return Err(closed());
    }
    // SAFETY: only copied before this function returns; if it is not open, the copy fails. mpiexec
    // opened it for this process to use.
    let inherited = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(File::from(inherited.try_clone_to_owned().map_err(|_| closed())?))
}

fn connect(address: &str, limit: &Limit) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        let left = limit.left().max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
