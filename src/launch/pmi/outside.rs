//! The answers of a mpiexec that may say anything, see [`crate::outside`].

use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::connection::{Connection, PIECE};
use crate::launch::LONGEST_NOTICE;
use crate::launch::run_board::unhex;
use crate::outside::input::Input;
use crate::running::Limit;

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
