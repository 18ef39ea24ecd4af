//! PMI-1: the wire protocol of MPICH's, Intel MPI's and other Hydra launchers, and of Slurm's `srun --mpi=pmi2`.
//!
//! mpiexec leaves each rank one end of a socket pair (`PMI_FD`), or an address to connect to (`PMI_PORT` and `PMI_ID`).
//! On it go lines of `key=value` words, one answer to each request:
//!
//! ```text
//! cmd=initack pmiid=3                              cmd=initack rc=0, then cmd=set size=8 / rank=3 / debug=0      (PMI_PORT only)
//! cmd=init pmi_version=1 pmi_subversion=1          cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=1
//! cmd=get_maxes                                    cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024
//! cmd=get_my_kvsname                               cmd=my_kvsname kvsname=kvs_4711_0
//! cmd=put kvsname=kvs_4711_0 key=k value=v         cmd=put_result rc=0
//! cmd=barrier_in                                   cmd=barrier_out           once every rank is there
//! cmd=get kvsname=kvs_4711_0 key=k                 cmd=get_result rc=0 value=v
//! cmd=finalize                                     cmd=finalize_ack
//! ```
//!
//! What was put is certain to be seen only after a barrier, so [`Board::read`] is a barrier and then gets. Values are
//! words of limited length: ours are hexadecimal, in pieces.
//!
//! # When to take leave
//!
//! A process that has said `finalize` may die without mpiexec minding (Intel MPI's does not even end the others after a
//! SIGKILL). One that closes the connection without it takes the whole job down at once. That is what we want for a
//! rank that dies, so the connection is kept for the process's life, and `finalize` is said by an exit handler: ranks
//! that return from main or call exit, with whatever status, leave politely and mpiexec reports their status; ranks
//! killed by a signal or an abort do not. Where [MPI](super::mpi) has been initialised in the same process, the
//! connection is its own too, and so is the farewell.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use maypole_transports::fork;
use maypole_transports::lock::Mutex;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};

use super::run_board::{hex, unhex};
use super::{Board, LONGEST_NOTICE, Launch, LaunchMeeting, Lookup, check_rank, number};
use crate::error::{Error, Result};
use crate::running::{LOOK, Limit};

pub(super) const LAUNCHER: &str = "MPICH (PMI-1)";

/// Bytes of ours in one value, twice that in hexadecimal. With name and key the line stays below 1024 bytes, the
/// longest that old implementations read.
const PIECE: usize = 256;

/// No line of mpiexec's is longer, bytes.
const LONGEST_LINE: usize = 64 << 10;

/// Whether the variables offer PMI-1.
pub(super) fn present(lookup: Lookup) -> bool {
    lookup("PMI_FD").is_some() || (lookup("PMI_PORT").is_some() && lookup("PMI_ID").is_some())
}

/// Connect, unless this process is connected already.
pub(super) fn launch(lookup: Lookup, limit: &Limit) -> Result<Launch> {
    let mut shared = SHARED.lock();
    if shared.is_none() {
        *shared = Some(Connection::open(lookup, limit)?);
        leave_at_exit();
    }
    let connection = shared.as_ref().expect("opened above");
    Ok(Launch {
        rank: connection.rank,
        size: connection.size,
        local_rank: number(lookup, "MPI_LOCALRANKID", "this rank's number on its host")?,
        local_size: number(lookup, "MPI_LOCALNRANKS", "the number of ranks on this host")?,
        launcher: LAUNCHER,
        run: String::new(),
        meeting: LaunchMeeting::Board(Box::new(KeyValueSpace { answer: limit.left() })),
    })
}

/// The process's one connection to its mpiexec.
static SHARED: Mutex<Option<Connection>> = Mutex::new(None);

struct Connection {
    stream: File,
    /// Received, but not yet part of a whole line.
    buffer: Vec<u8>,
    rank: usize,
    size: usize,
    kvsname: String,
    piece: usize,
    /// A request went unanswered: whatever comes next cannot be told apart from its answer.
    lost: bool,
    /// This rank is at a barrier at which not all had come when it stopped waiting. It goes on there.
    at_barrier: bool,
    /// How many boards there have been: barriers that all have passed. What was put for one of them is of no use to the
    /// next, and no key may be put twice.
    board: usize,
    /// The process that connected: a forked child must not take leave in its name.
    process: fork::Process,
}

impl Connection {
    fn open(lookup: Lookup, limit: &Limit) -> Result<Connection> {
        if let Some(fd) = number(lookup, "PMI_FD", "the file descriptor of mpiexec's socket")? {
            let who = |name, expected| {
                number(lookup, name, expected)?.ok_or_else(|| {
                    Error::bootstrap(format!(
                        "PMI_FD is set but {name} is not: {name} is {expected}; start the ranks with mpiexec"
                    ))
                })
            };
            let (rank, size) = (who("PMI_RANK", "this process's rank")?, who("PMI_SIZE", "the number of ranks")?);
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
    fn ask_who(stream: File, address: &str, id: usize, limit: &Limit) -> Result<Connection> {
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

    fn new(stream: File, rank: usize, size: usize) -> Connection {
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

    fn greet(mut self, limit: &Limit) -> Result<Connection> {
        let answer = self.request("cmd=init pmi_version=1 pmi_subversion=1", "response_to_init", limit)?;
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

    /// Send a request and wait for the answer, whose `cmd` must be `expected` and whose `rc`, if any, 0.
    fn request(&mut self, request: &str, expected: &str, limit: &Limit) -> Result<String> {
        self.ask(request)?;
        self.lost = true;
        let answer = self.line(limit, expected)?;
        self.lost = false;
        self.check(request, answer, expected)
    }

    /// Send a request.
    fn ask(&mut self, request: &str) -> Result<()> {
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
    fn check(&self, request: &str, answer: String, expected: &str) -> Result<String> {
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

    fn line(&mut self, limit: &Limit, expected: &str) -> Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_string());
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(Error::bootstrap(format!(
                    "rank {} waited for {expected} from mpiexec (PMI), but a line of more than {LONGEST_LINE} bytes came: \
                     what answers there does not speak PMI-1",
                    self.rank
                )));
            }
            let left = limit.left();
            if left.is_zero() {
                let what = if expected == "barrier_out" {
                    "not every rank has come: some have not started, or have not created their communicator"
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

    /// Wait until every rank has come to the barrier. One that gave up there is at it still.
    fn barrier(&mut self, limit: &Limit) -> Result<()> {
        if !self.at_barrier {
            self.ask("cmd=barrier_in")?;
            self.at_barrier = true;
        }
        let answer = self.line(limit, "barrier_out")?;
        self.at_barrier = false;
        self.check("cmd=barrier_in", answer, "barrier_out").map(drop)
    }

    /// Leave the board at which rank 0 gave up waiting, once all have come to it. What it put there is of no use any more,
    /// as the others see when they go there, and so come to the next one: ranks meet that have not tried equally often.
    fn catch_up(&mut self, limit: &Limit) -> Result<()> {
        if self.at_barrier {
            self.barrier(limit)?;
            self.board += 1;
        }
        Ok(())
    }

    /// Put the bytes where every rank can get them after a barrier.
    fn post(&mut self, bytes: &[u8], limit: &Limit) -> Result<()> {
        self.catch_up(limit)?;
        let board = self.board;
        let pieces: Vec<&[u8]> = bytes.chunks(self.piece).collect();
        for i in 0..pieces.len().max(1) {
            let count = if i == 0 { format!("{:03}.", pieces.len()) } else { String::new() };
            let value = hex(pieces.get(i).unwrap_or(&&[][..]));
            let request = format!("cmd=put kvsname={} key={} value={count}{value}", self.kvsname, key(board, i));
            self.request(&request, "put_result", limit)?;
        }
        Ok(())
    }

    /// Wait for every rank, then get what rank 0 has put.
    fn read(&mut self, limit: &Limit) -> Result<Vec<u8>> {
        self.barrier(limit)?;
        self.board += 1;
        let board = self.board - 1;
        let first = self.get(board, 0, limit)?;
        let broken = || Error::bootstrap("what rank 0 put into mpiexec's key-value space (PMI) came back changed");
        let (count, mut text) = first.split_once('.').map(|(n, hex)| (n, hex.to_string())).ok_or_else(broken)?;
        let count: usize = count.parse().ok().filter(|count| *count <= LONGEST_NOTICE).ok_or_else(broken)?;
        for piece in 1..count {
            text.push_str(&self.get(board, piece, limit)?);
            if text.len() > 2 * LONGEST_NOTICE {
                return Err(broken());
            }
        }
        unhex(&text).ok_or_else(broken)
    }

    fn get(&mut self, board: usize, piece: usize, limit: &Limit) -> Result<String> {
        let request = format!("cmd=get kvsname={} key={}", self.kvsname, key(board, piece));
        let answer = self.request(&request, "get_result", limit)?;
        Ok(word(&answer, "value").unwrap_or_default().to_string())
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

/// The boards in the job's key-value space, over the process's one connection.
struct KeyValueSpace {
    /// How long mpiexec may take to answer what needs no other rank.
    answer: Duration,
}

impl KeyValueSpace {
    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        match SHARED.lock().as_mut() {
            Some(connection) => work(connection),
            None => Err(Error::bootstrap("this process has taken leave of mpiexec (PMI) already")),
        }
    }
}

impl Board for KeyValueSpace {
    fn post(&mut self, bytes: &[u8]) -> Result<()> {
        let limit = Limit::after(self.answer);
        self.with(|connection| connection.post(bytes, &limit))
    }

    fn read(&mut self, within: Duration) -> Result<Vec<u8>> {
        let limit = Limit::after(within);
        self.with(|connection| connection.read(&limit))
    }

    fn finish(&mut self) -> Result<()> {
        // The connection outlives the board; see the module's text.
        Ok(())
    }
}

fn key(board: usize, piece: usize) -> String {
    format!("maypole-{board}-{piece}")
}

/// The value of `key` in a line of `key=value` words.
fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// A copy of the descriptor that mpiexec left, closed in children.
fn inherited(fd: RawFd) -> Result<File> {
    let closed = || {
        Error::Setting {
        name: "PMI_FD".to_string(),
        value: fd.to_string(),
        expected: "expected the open descriptor that mpiexec passes to its ranks; a wrapper between mpiexec and this program (ssh, sudo, \
                   a container) has closed it, or the variable is left over from another job"
            .to_string(),
    }
    };
    if fd < 0 {
        return Err(closed());
    }
    // SAFETY: only copied before this function returns; if it is not open, the copy fails. mpiexec opened it for this
    // process to use.
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

fn leave_at_exit() {
    extern "C" fn leave() {
        // Another thread may be inside a request while main returns; then mpiexec is better left alone.
        let Some(mut shared) = SHARED.try_lock() else { return };
        let Some(mut connection) = shared.take() else { return };
        if connection.process.is_this() && !super::mpi::was_initialised() {
            // The answer only matters in that mpiexec has then read the request.
            let _ = connection.request("cmd=finalize", "finalize_ack", &Limit::after(Duration::from_secs(2)));
        }
    }
    // SAFETY: `leave` lives as long as this library is loaded (the C library runs it before unloading), and neither
    // unwinds nor touches anything but a static.
    unsafe { libc::atexit(leave) };
}

/// The answers of a mpiexec that may say anything, see [`crate::outside`].
#[cfg(any(test, fuzzing))]
pub(super) mod outside {
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::outside::input::Input;

    pub(crate) fn pmi(data: &[u8]) -> bool {
        let mut input = Input(data);
        let (choices, notice) = (input.byte(), input.piece());
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        // What a socket holds, whatever the system's settings.
        theirs.write_all(input.take(16 << 10)).expect("there is room");
        theirs.shutdown(Shutdown::Write).expect("it is open");
        let ours = File::from(OwnedFd::from(ours));
        let limit = &Limit::after(Duration::from_secs(60));
        let connection = match choices & 1 {
            0 => Ok(Connection::new(ours, 3, 8)),
            _ => Connection::ask_who(ours, "host:1", if choices & 2 == 0 { 3 } else { usize::MAX }, limit),
        };
        let Ok(mut connection) = connection.and_then(|connection| connection.greet(limit)) else { return false };
        assert!(connection.rank < connection.size && (1..=PIECE).contains(&connection.piece));
        assert!(!connection.kvsname.contains([' ', '\t', '\n', '\r']));
        let hexadecimal: String = notice.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(unhex(&hexadecimal).as_deref(), Some(notice));
        if choices & 4 == 4 && connection.post(notice, limit).is_err() {
            return false;
        }
        let read = connection.read(limit);
        assert!(read.as_ref().is_ok_and(|bytes| bytes.len() <= LONGEST_NOTICE) || read.is_err());
        read.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A mpiexec for one rank on the other end of a socket pair; answers with `vallen_max` and remembers what was put.
    fn mpiexec(vallen_max: usize) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut space = std::collections::HashMap::new();
            let mut out = theirs.try_clone().unwrap();
            for line in BufReader::new(theirs).lines().map_while(|line| line.ok()) {
                let answer = match word(&line, "cmd").unwrap() {
                    "init" => "cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=2".to_string(),
                    "get_maxes" => format!("cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max={vallen_max}"),
                    "get_my_kvsname" => "cmd=my_kvsname kvsname=kvs_1_0".to_string(),
                    "put" => {
                        let (key, value) = (word(&line, "key").unwrap(), word(&line, "value").unwrap());
                        assert!(value.len() < vallen_max && line.len() < 1024, "{line}");
                        space.insert(key.to_string(), value.to_string());
                        "cmd=put_result rc=0 msg=success".to_string()
                    }
                    "barrier_in" => "cmd=barrier_out tag=0".to_string(),
                    "get" => match space.get(word(&line, "key").unwrap()) {
                        Some(value) => format!("cmd=get_result rc=0 msg=success value={value}"),
                        None => "cmd=get_result rc=-1 msg=key_not_found value=unknown".to_string(),
                    },
                    _ => break,
                };
                // In two parts, since nothing promises a line per read.
                let (head, tail) = answer.split_at(answer.len() / 2);
                out.write_all(head.as_bytes()).unwrap();
                out.write_all(format!("{tail}\n").as_bytes()).unwrap();
            }
        });
        ours
    }

    /// A mpiexec for so many ranks; barriers end when all are there.
    fn mpiexec_of(ranks: usize) -> Vec<UnixStream> {
        let space = std::sync::Arc::new(Mutex::new((std::collections::HashMap::<String, String>::new(), Vec::new())));
        let serve = |_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let space = space.clone();
            std::thread::spawn(move || {
                let mut out = theirs.try_clone().unwrap();
                for line in BufReader::new(theirs).lines().map_while(|line| line.ok()) {
                    let (kept, here) = &mut *space.lock();
                    let answer = match word(&line, "cmd").unwrap() {
                        "init" => "cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=2".to_string(),
                        "get_maxes" => "cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=1024".to_string(),
                        "get_my_kvsname" => "cmd=my_kvsname kvsname=kvs_1_0".to_string(),
                        "put" => {
                            let (key, value) = (word(&line, "key").unwrap(), word(&line, "value").unwrap());
                            match kept.insert(key.to_string(), value.to_string()) {
                                None => "cmd=put_result rc=0 msg=success".to_string(),
                                Some(_) => "cmd=put_result rc=-1 msg=duplicate_key".to_string(),
                            }
                        }
                        "barrier_in" => {
                            here.push(out.try_clone().unwrap());
                            if here.len() == ranks {
                                here.drain(..).for_each(|mut rank| rank.write_all(b"cmd=barrier_out\n").unwrap());
                            }
                            continue;
                        }
                        "get" => match kept.get(word(&line, "key").unwrap()) {
                            Some(value) => format!("cmd=get_result rc=0 msg=success value={value}"),
                            None => "cmd=get_result rc=-1 msg=key_not_found value=unknown".to_string(),
                        },
                        _ => break,
                    };
                    out.write_all(format!("{answer}\n").as_bytes()).unwrap();
                }
            });
            ours
        };
        (0..ranks).map(serve).collect()
    }

    #[test]
    fn ranks_that_have_not_tried_equally_often_meet_at_one_board() {
        let long = Duration::from_secs(30);
        let mut ranks: Vec<Connection> = mpiexec_of(3)
            .into_iter()
            .enumerate()
            .map(|(rank, stream)| Connection::new(File::from(OwnedFd::from(stream)), rank, 3))
            .map(|connection| connection.greet(&Limit::after(long)).unwrap())
            .collect();
        let mut attempt = |rank: usize, notice: &[u8], within: Duration| {
            let limit = Limit::after(within);
            let posted = if rank == 0 { ranks[0].post(notice, &limit) } else { Ok(()) };
            posted.and_then(|()| ranks[rank].read(&limit))
        };
        // Ranks 0 and 1 try twice in vain, rank 2 not at all.
        for notice in [b"one", b"two"] {
            for rank in [0, 1] {
                let error = attempt(rank, notice, Duration::from_millis(50)).unwrap_err().to_string();
                assert!(error.contains("not every rank has come"), "{error}");
            }
        }
        // When it comes it finds what rank 0 has left, as does rank 1, and all are together at the next board.
        for rank in [2, 1] {
            assert_eq!(attempt(rank, b"", long).unwrap(), b"one");
        }
        std::thread::scope(|scope| {
            let mut ends: Vec<_> = ranks.iter_mut().enumerate().collect();
            let reads: Vec<_> = ends
                .drain(..)
                .map(|(rank, connection)| {
                    scope.spawn(move || {
                        let limit = Limit::after(long);
                        if rank == 0 {
                            connection.post(b"three", &limit).unwrap();
                        }
                        connection.read(&limit).unwrap()
                    })
                })
                .collect();
            assert!(reads.into_iter().all(|read| read.join().unwrap() == b"three"));
        });
    }

    #[test]
    fn a_board_in_short_and_long_values() {
        let limit = &Limit::after(Duration::from_secs(10));
        for vallen_max in [16, 64, 256, 1024] {
            let stream = mpiexec(vallen_max);
            let mut rank0 = Connection::new(File::from(OwnedFd::from(stream)), 0, 1).greet(limit).unwrap();
            for length in [0usize, 1, 128, 700] {
                let bytes: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
                rank0.post(&bytes, limit).unwrap();
                assert_eq!(rank0.read(limit).unwrap(), bytes, "{length} bytes, vallen_max {vallen_max}");
            }
            let error = rank0.read(limit).unwrap_err().to_string();
            assert!(error.contains("rc=0") && error.contains("rc=-1"), "{error}");
        }
    }

    #[test]
    fn silence_and_hanging_up_are_errors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let connection = Connection::new(File::from(OwnedFd::from(ours)), 3, 8);
        let error = connection.greet(&Limit::after(Duration::from_millis(50))).err().unwrap().to_string();
        assert!(error.contains("rank 3 of 8") && error.contains("does not answer"), "{error}");
        drop(theirs);
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let connection = Connection::new(File::from(OwnedFd::from(ours)), 3, 8);
        let error = connection.greet(&Limit::after(Duration::from_secs(5))).err().unwrap().to_string();
        assert!(error.contains("lost the connection to mpiexec"), "{error}");
    }

    #[test]
    fn endless_lines_and_pieces_end() {
        let limit = &Limit::after(Duration::from_secs(10));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let flood = std::thread::spawn(move || while theirs.write_all(&[b'x'; 4096]).is_ok() {});
        let connection = Connection::new(File::from(OwnedFd::from(ours)), 3, 8);
        let error = connection.greet(limit).err().unwrap().to_string();
        assert!(error.contains("rank 3") && error.contains("does not speak PMI-1"), "{error}");
        flood.join().unwrap();
        // A notice that says that it has more pieces than any has, and one whose pieces have no end.
        let stream = mpiexec(1024);
        let mut rank0 = Connection::new(File::from(OwnedFd::from(stream)), 0, 1).greet(limit).unwrap();
        for (board, count) in [(0, usize::MAX), (1, 4096)] {
            for piece in 0..20 {
                let first = if piece == 0 { format!("{count}.") } else { String::new() };
                let value = format!("{first}{}", "ab".repeat(450));
                let request = format!("cmd=put kvsname=kvs_1_0 key={} value={value}", key(board, piece));
                rank0.request(&request, "put_result", limit).unwrap();
            }
            let error = rank0.read(limit).unwrap_err().to_string();
            assert!(error.contains("came back changed"), "{error}");
        }
    }

    #[test]
    fn a_closed_descriptor_names_the_variable() {
        let lookup = |name: &str| match name {
            "PMI_FD" => Some("987654".to_string()),
            "PMI_RANK" => Some("0".to_string()),
            "PMI_SIZE" => Some("2".to_string()),
            _ => None,
        };
        let error = Connection::open(&lookup, &Limit::after(Duration::ZERO)).err().unwrap().to_string();
        assert!(error.starts_with("PMI_FD=987654: expected the open descriptor"), "{error}");
    }
}
