//! The board that `maypole run` serves for its ranks.
//!
//! The launcher lives as long as its ranks, so it can hold the notices itself, and a rank needs nothing but a variable
//! to find it: no descriptor that a wrapper (`conda run`, `sudo`, Python's `subprocess`) would close, or keep open in
//! rank 0's place. [`BOARD`] holds the name of an abstract unix socket, a random secret, and who the process is:
//! `maypole-run-4711/8f…c2/3/8` for rank 3 of 8. On a connection go lines, one answer to each but the first:
//!
//! ```text
//! maypole 1 SECRET RANK      no answer; the board hangs up unless both make sense
//! post HEX                   ok
//! read                       notice HEX, once there is one that this rank has not read
//! clear                      ok
//! aborting                   no answer
//! ```
//!
//! A notice counts until it is taken down, until there is a newer one, or until the connection ends on which it was
//! posted: an attempt that has failed leaves nothing behind that a late rank would find. And a rank gets each notice
//! once, whichever of its processes asks, so any number of worlds can be made, by one program or by several in a row.
//!
//! A rank that aborts a communicator says so here before it tells the other ranks. They may end sooner than it does, and
//! the exit status of the job is to be that of the rank that failed first.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use maypole_transports::fork;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Board, LONGEST_NOTICE};
use crate::error::{Error, Result};
use crate::running::{LOOK, Limit};

/// Says to a rank where the board is, what opens it, and who the rank is.
pub const BOARD: &str = "MAYPOLE_BOARD";

/// How long the launcher may take at most to answer what needs nobody else.
const ANSWER: Duration = Duration::from_secs(30);
/// Between attempts to connect to a launcher whose queue is full.
const RETRY: Duration = Duration::from_millis(5);

/// What [`BOARD`] holds.
#[derive(Clone, PartialEq, Debug)]
pub struct Place {
    /// The abstract name at which the launcher listens.
    pub name: String,
    /// What a rank must know.
    pub secret: String,
    /// Which rank the launcher has started.
    pub rank: usize,
    /// Of how many.
    pub size: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}/{}", self.name, self.secret, self.rank, self.size)
    }
}

impl Place {
    /// Read the variable's text.
    ///
    /// # Errors
    /// [`Error::Setting`], without the text, which holds a secret.
    pub fn parse(text: &str) -> Result<Place> {
        let mut parts = text.trim().split('/');
        let mut next = || parts.next().filter(|part| !part.is_empty());
        let mut place = || {
            Some(Place {
                name: next()?.to_string(),
                secret: next()?.to_string(),
                rank: next()?.parse().ok()?,
                size: next()?.parse().ok()?,
            })
        };
        place().ok_or_else(|| Error::Setting {
            name: BOARD.to_string(),
            value: "(not shown)".to_string(),
            expected: "expected what `maypole run` sets; leave it as it is".to_string(),
        })
    }
}

/// What a rank asks of the board.
#[derive(PartialEq, Debug)]
pub enum Request {
    /// Who it is, and the secret.
    Hello {
        /// The secret.
        secret: String,
        /// The rank.
        rank: usize,
    },
    /// Put up these bytes.
    Post(Vec<u8>),
    /// The next notice.
    Read,
    /// Take the notice down.
    Clear,
    /// It is about to abort a communicator.
    Aborting,
}

impl Request {
    /// Read a line, without its end; `None` for nonsense.
    pub fn parse(line: &str) -> Option<Request> {
        let mut words = line.split(' ');
        let request = match words.next()? {
            "maypole" => match (words.next()?, words.next()?, words.next()?.parse()) {
                ("1", secret, Ok(rank)) => Request::Hello { secret: secret.to_string(), rank },
                _ => return None,
            },
            "post" => Request::Post(unhex(words.next()?).filter(|bytes| bytes.len() <= LONGEST_NOTICE)?),
            "read" => Request::Read,
            "clear" => Request::Clear,
            "aborting" => Request::Aborting,
            _ => return None,
        };
        words.next().is_none().then_some(request)
    }

    fn line(&self) -> String {
        match self {
            Request::Hello { secret, rank } => format!("maypole 1 {secret} {rank}\n"),
            Request::Post(bytes) => format!("post {}\n", hex(bytes)),
            Request::Read => "read\n".to_string(),
            Request::Clear => "clear\n".to_string(),
            Request::Aborting => "aborting\n".to_string(),
        }
    }
}

/// The answer to [`Request::Read`], with its end.
pub fn notice(bytes: &[u8]) -> String {
    format!("notice {}\n", hex(bytes))
}

/// The answer to what needs none but that it was done, with its end.
pub const DONE: &str = "ok\n";

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| (byte as char).to_digit(16);
    text.as_bytes().chunks(2).map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect()
}

/// A rank's connection to the board.
pub(super) struct RunBoard {
    stream: Option<BufReader<UnixStream>>,
    place: Place,
    /// Received of an answer whose end has not come yet.
    answer: Vec<u8>,
    /// How long the launcher may take to answer what needs nobody else.
    within: Duration,
}

impl RunBoard {
    /// Connect and say who this is. Blocks while the launcher's queue is full, until the limit has passed.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] if the launcher is gone, or does not take the connection in time.
    pub(super) fn connect(place: Place, limit: &Limit) -> Result<RunBoard> {
        let failed = |error: std::io::Error| {
            Error::bootstrap(format!(
                "rank {}: `maypole run` at {} ({BOARD}) cannot be reached: {error}; it has ended, or this process is in \
                 a container with a network of its own",
                place.rank, place.name
            ))
        };
        let address = SockAddr::unix(format!("\0{}", place.name)).map_err(failed)?;
        let stream = loop {
            // Without waiting: a launcher that is stopped would keep this rank for ever.
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
            socket.set_nonblocking(true).map_err(failed)?;
            match socket.connect(&address) {
                Err(e) if e.kind() == ErrorKind::WouldBlock && !limit.has_passed() => std::thread::sleep(RETRY),
                connected => break connected.and_then(|()| socket.set_nonblocking(false)).map(|()| socket),
            }
        };
        let stream = UnixStream::from(OwnedFd::from(stream.map_err(failed)?));
        fork::close_in_children(&stream);
        MET_AT.get_or_init(|| place.clone());
        let hello = Request::Hello { secret: place.secret.clone(), rank: place.rank };
        let within = limit.left().min(ANSWER);
        let mut board = RunBoard { stream: Some(BufReader::new(stream)), place, answer: Vec::new(), within };
        board.send(&hello)?;
        Ok(board)
    }

    fn stream(&mut self) -> Result<&mut BufReader<UnixStream>> {
        self.stream.as_mut().ok_or_else(|| Error::bootstrap("the board of `maypole run` was used after its end"))
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        // Rust's own writes to sockets raise no SIGPIPE.
        let sent = self.stream()?.get_mut().write_all(request.line().as_bytes());
        sent.map_err(|error| self.lost(&error.to_string()))
    }

    /// The next line, without its end. `late`: what it means that none comes in that time.
    fn line(&mut self, within: Duration, late: &str) -> Result<String> {
        let limit = Limit::after(within);
        loop {
            let left = limit.left().min(LOOK);
            if left.is_zero() {
                return Err(Error::bootstrap(format!("rank {}: {late}", self.place.rank)));
            }
            let mut answer = std::mem::take(&mut self.answer);
            let stream = self.stream()?;
            let got =
                stream.get_ref().set_read_timeout(Some(left)).and_then(|()| stream.read_until(b'\n', &mut answer));
            self.answer = answer;
            match got {
                Ok(_) if self.answer.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.answer);
                    return Ok(String::from_utf8_lossy(&line).trim_end().to_string());
                }
                Ok(_) => return Err(self.lost("end of file")),
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(self.lost(&error.to_string())),
            }
        }
    }

    fn done(&mut self, request: &Request) -> Result<()> {
        self.send(request)?;
        match self.line(self.within, "`maypole run` does not answer; is it stopped?")? {
            line if line == DONE.trim_end() => Ok(()),
            line => Err(self.lost(&format!("it answered \"{line}\""))),
        }
    }

    fn lost(&self, why: &str) -> Error {
        Error::bootstrap(format!(
            "rank {} lost the connection to `maypole run` at {} ({BOARD}): {why}; it has ended, or the variable is left \
             over from another job",
            self.place.rank, self.place.name
        ))
    }
}

/// Where this process has met the other ranks.
static MET_AT: OnceLock<Place> = OnceLock::new();

/// Tell the launcher that this rank is about to abort a communicator; nothing where the ranks have not met at its board.
/// Does not wait for the launcher: what was said before a rank ends is heard before its end is.
#[cold]
pub(crate) fn say_that_this_rank_aborts() {
    if let Some(place) = MET_AT.get() {
        // If the launcher is gone, nobody wants to know.
        let _ = RunBoard::connect(place.clone(), &Limit::after(Duration::ZERO))
            .and_then(|mut board| board.send(&Request::Aborting));
    }
}

impl Board for RunBoard {
    fn post(&mut self, bytes: &[u8]) -> Result<()> {
        self.done(&Request::Post(bytes.to_vec()))
    }

    fn read(&mut self, within: Duration) -> Result<Vec<u8>> {
        self.send(&Request::Read)?;
        let late = "rank 0 has posted nothing at `maypole run` in time: it has not created its communicator, or has \
                    ended";
        let line = self.line(within, late)?;
        let bytes = line.strip_prefix("notice ").and_then(unhex);
        bytes.ok_or_else(|| self.lost(&format!("it answered \"{line}\"")))
    }

    fn clear(&mut self) -> Result<()> {
        self.done(&Request::Clear)
    }

    fn is_local(&self) -> bool {
        true
    }

    fn finish(&mut self) -> Result<()> {
        self.stream = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_that_takes_no_connections_holds_nobody_up() {
        let place =
            Place { name: format!("maypole-stopped-{}", std::process::id()), secret: "5ec".into(), rank: 0, size: 1 };
        let launcher = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        launcher.bind(&SockAddr::unix(format!("\0{}", place.name)).unwrap()).unwrap();
        launcher.listen(2).unwrap();
        let connect = || RunBoard::connect(place.clone(), &Limit::after(Duration::from_millis(300)));
        // Its queue has room for a few, who wait in it.
        let mut queue = Vec::new();
        let error = loop {
            match connect() {
                Ok(board) => queue.push(board),
                Err(error) => break error.to_string(),
            }
            assert!(queue.len() < 10, "its queue has no end");
        };
        assert!(error.contains("cannot be reached") && error.contains("rank 0"), "{error}");
        // Those in the queue get no answer.
        let begun = std::time::Instant::now();
        let error = queue[0].post(b"notice").unwrap_err().to_string();
        assert!(error.contains("does not answer") && begun.elapsed() < Duration::from_secs(20), "{error}");
    }

    #[test]
    fn requests_and_places_survive_the_way() {
        for request in [
            Request::Hello { secret: "abc".into(), rank: 17 },
            Request::Post(vec![0, 255, 7]),
            Request::Post(Vec::new()),
            Request::Read,
            Request::Clear,
            Request::Aborting,
        ] {
            let line = request.line();
            assert_eq!(Request::parse(line.strip_suffix('\n').unwrap()), Some(request));
        }
        let long = format!("post {}", "00".repeat(LONGEST_NOTICE + 1));
        for nonsense in ["", "maypole", "maypole 2 s 1", "maypole 1 s x", "post 0", "post xy", "read 1", "GET /", &long]
        {
            assert_eq!(Request::parse(nonsense), None, "{nonsense}");
        }
        let place = Place { name: "maypole-run-1".into(), secret: "5ec".into(), rank: 3, size: 8 };
        assert_eq!(Place::parse(&place.to_string()).unwrap(), place);
        for nonsense in ["x", "x/5ec", "x/5ec/0", "x//0/1", "x/5ec/0/one"] {
            let error = Place::parse(nonsense).unwrap_err().to_string();
            assert!(error.contains(BOARD) && !error.contains("5ec"), "{error}");
        }
    }
}
