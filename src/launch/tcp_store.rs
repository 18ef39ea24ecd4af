//! A board on torch's TCPStore.
//!
//! torchrun's agent serves a key-value store on `MASTER_ADDR:MASTER_PORT` for its workers. Its protocol (c10d's
//! `TCPStoreBackend`, the same for the libuv server and the older one, torch 2.1 and later) is one connection on which
//! the client writes requests; integers are in host byte order, strings and values are a 64-bit length and that many
//! bytes:
//!
//! ```text
//! VALIDATE 0x00  u32 magic              no answer; must come first
//! SET      0x01  key value              no answer
//! GET      0x03  key                    value; the key must exist
//! WAIT     0x06  u64 n, n keys          one byte 0x00 once all keys exist
//! DELETE   0x08  key                    i64 number of keys deleted
//! ```
//!
//! So reading is WAIT and then GET. The store is open to everybody who reaches its port: strangers can read what rank 0
//! posts there, until it is deleted when all have come, and put up a meeting point of their own beforehand. Without
//! `MAYPOLE_KEY` they can so join the job, or have ranks join them; with it on all ranks, what is in the store is not
//! enough to do either.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use maypole_transports::fork;

use super::{Board, LONGEST_NOTICE, is_done_with};
use crate::error::{Error, Result};
use crate::running::{LOOK, Limit};

const VALIDATE: u8 = 0;
const SET: u8 = 1;
const GET: u8 = 3;
const WAIT: u8 = 6;
const DELETE: u8 = 8;
const MAGIC: u32 = 0x3C85_F7CE;
const STOP_WAITING: u8 = 0;
/// How long the store may take to delete an entry.
const ANSWER: Duration = Duration::from_secs(10);

/// A connection to the store, and the key under which this world's notice stands.
pub(super) struct TcpStore {
    stream: Option<TcpStream>,
    address: String,
    key: String,
    /// Its number among those that this process comes to.
    number: Option<usize>,
}

impl TcpStore {
    /// Connect and introduce ourselves. Tries again until the limit has passed: the agent may be late.
    pub(super) fn connect(host: &str, port: u16, key: String, limit: &Limit) -> Result<TcpStore> {
        let address = format!("{host}:{port}");
        let failed = |error: String| {
            Error::bootstrap(format!(
                "torchrun's store at {address} (MASTER_ADDR:MASTER_PORT) cannot be reached: {error}; is torchrun's first \
                 agent still running, and can this host reach it?"
            ))
        };
        let stream = loop {
            let left = limit.left();
            let error = match connect_any(host, port, left.max(Duration::from_millis(1))) {
                Ok(stream) => break stream,
                Err(error) => error,
            };
            if left < Duration::from_millis(100) {
                return Err(failed(error.to_string()));
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
        TcpStore::over(stream, address, key)
    }

    /// Introduce ourselves to the store at the other end of `stream`.
    fn over(stream: TcpStream, address: String, key: String) -> Result<TcpStore> {
        fork::close_in_children(&stream);
        let mut store = TcpStore { stream: Some(stream), address, key, number: None };
        let mut hello = vec![VALIDATE];
        hello.extend(MAGIC.to_ne_bytes());
        store.send(&hello)?;
        Ok(store)
    }

    /// The same, for notice `number` of this process.
    pub(super) fn numbered(self, number: usize) -> TcpStore {
        TcpStore { key: format!("{}/{number}", self.key), number: Some(number), ..self }
    }

    fn stream(&mut self) -> Result<&mut TcpStream> {
        self.stream.as_mut().ok_or_else(|| Error::bootstrap("torchrun's store was used after it was finished"))
    }

    fn send(&mut self, request: &[u8]) -> Result<()> {
        let sent = self.stream()?.write_all(request);
        sent.map_err(|error| self.lost(&error))
    }

    /// Read exactly `bytes.len()` bytes before the limit has passed.
    fn receive(&mut self, mut bytes: &mut [u8], limit: &Limit) -> Result<()> {
        while !bytes.is_empty() {
            let left = limit.left();
            if left.is_zero() {
                return Err(Error::bootstrap(format!(
                    "rank 0 posted nothing on torchrun's store at {} in time: it has not come, or is not a Maypole program",
                    self.address
                )));
            }
            let stream = self.stream()?;
            let got = stream.set_read_timeout(Some(left.min(LOOK))).and_then(|()| stream.read(bytes));
            match got {
                Ok(0) => return Err(self.lost(&ErrorKind::UnexpectedEof.into())),
                Ok(n) => bytes = &mut bytes[n..],
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(self.lost(&error)),
            }
        }
        Ok(())
    }

    fn lost(&self, error: &std::io::Error) -> Error {
        Error::bootstrap(format!(
            "torchrun's store at {} closed the connection ({error}): the agent is gone, or does not speak the protocol of torch 2.1 and later",
            self.address
        ))
    }
}

impl Board for TcpStore {
    fn post(&mut self, bytes: &[u8]) -> Result<()> {
        let mut request = vec![SET];
        put(&mut request, self.key.as_bytes());
        put(&mut request, bytes);
        self.send(&request)
    }

    fn read(&mut self, within: Duration) -> Result<Vec<u8>> {
        let limit = &Limit::after(within);
        let mut request = vec![WAIT];
        request.extend(1u64.to_ne_bytes());
        put(&mut request, self.key.as_bytes());
        self.send(&request)?;
        let mut answer = [0u8];
        self.receive(&mut answer, limit)?;
        if answer[0] != STOP_WAITING {
            return Err(Error::bootstrap(format!(
                "torchrun's store at {} answered {} to a wait, not {STOP_WAITING}: this is not the protocol of torch 2.1 and later",
                self.address, answer[0]
            )));
        }
        let mut request = vec![GET];
        put(&mut request, self.key.as_bytes());
        self.send(&request)?;
        let mut length = [0u8; 8];
        self.receive(&mut length, limit)?;
        let length = u64::from_ne_bytes(length);
        if length > LONGEST_NOTICE as u64 {
            return Err(Error::bootstrap(format!(
                "torchrun's store at {} holds {length} bytes under {}, where at most {LONGEST_NOTICE} were posted",
                self.address, self.key
            )));
        }
        let mut value = vec![0; length as usize];
        self.receive(&mut value, limit)?;
        Ok(value)
    }

    fn clear(&mut self) -> Result<()> {
        let mut request = vec![DELETE];
        put(&mut request, self.key.as_bytes());
        self.send(&request)?;
        // Whether there still was one: nobody else deletes it.
        let mut deleted = [0u8; 8];
        self.receive(&mut deleted, &Limit::after(ANSWER))
    }

    fn done(&mut self) {
        self.number.into_iter().for_each(is_done_with);
    }

    fn is_open(&self) -> bool {
        true
    }

    fn lasts(&self) -> bool {
        true
    }

    fn finish(&mut self) -> Result<()> {
        self.stream = None;
        Ok(())
    }
}

fn put(request: &mut Vec<u8>, bytes: &[u8]) {
    request.extend((bytes.len() as u64).to_ne_bytes());
    request.extend(bytes);
}

fn connect_any(host: &str, port: u16, timeout: Duration) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(ErrorKind::NotFound, "the name has no address");
    // A few seconds each: of a host's several addresses the first may be one that drops everything.
    let timeout = timeout.min(Duration::from_secs(5));
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The answers of a store that may say anything, see [`crate::outside`].
#[cfg(any(test, fuzzing))]
pub(super) mod outside {
    use std::net::Shutdown;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::outside::input::Input;

    pub(crate) fn store(data: &[u8]) -> bool {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        // What a socket holds, whatever the system's settings.
        theirs.write_all(Input(data).take(16 << 10)).expect("there is room");
        theirs.shutdown(Shutdown::Write).expect("it is open");
        // All that is asked of the socket holds for these too.
        let stream = TcpStream::from(OwnedFd::from(ours));
        let mut store = TcpStore::over(stream, "host:1".into(), "key".into()).expect("it is open");
        store.post(b"notice").expect("it is open");
        let Ok(value) = store.read(ANSWER) else { return false };
        assert!(value.len() <= LONGEST_NOTICE && data[9..].starts_with(&value));
        let _ = store.clear();
        true
    }
}
