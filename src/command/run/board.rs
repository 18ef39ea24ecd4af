//! The board at which the ranks leave each other word of where they meet, and the launcher word that they abort;
//! [`run_board`] has what goes over it.
//!
//! It is served between the launcher's other work: no call here waits. A rank's connection is there while it makes a
//! world, and no longer.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use crate::error::{Error, Result};
use crate::launch::LONGEST_NOTICE;
use crate::launch::run_board::{DONE, Place, Request, notice};

/// The longest line of a rank's, bytes.
const LONGEST_LINE: usize = 2 * LONGEST_NOTICE + 64;
/// How many may be connected beside the ranks.
const STRANGERS: usize = 64;

/// Where ranks leave and find notices.
pub(super) struct Board {
    listener: UnixListener,
    name: String,
    secret: String,
    callers: Vec<Caller>,
    /// The number of the latest notice, from 1, and the notice while it is up.
    number: u64,
    notice: Option<Vec<u8>>,
    /// The latest notice that each rank has read.
    read: Vec<u64>,
    /// A rank that has said that it aborts.
    aborting: Option<usize>,
}

/// A connection.
struct Caller {
    stream: UnixStream,
    /// What has come of a line.
    line: Vec<u8>,
    /// Who it is, once it has said so.
    rank: Option<usize>,
    /// It waits for a notice.
    waits: bool,
    /// The number of the notice that it has put up.
    posted: Option<u64>,
}

impl Board {
    /// Listen for `ranks` ranks that know the secret.
    ///
    /// # Errors
    /// [`Error::System`].
    pub(super) fn open(ranks: usize) -> Result<Board> {
        let system = |error| Error::system("opening the board at which the ranks meet", error);
        let mut random = [0u8; 24];
        getrandom::fill(&mut random).map_err(|error| Error::system("getrandom", error))?;
        let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let (number, secret) = text.split_at(16);
        let name = format!("maypole-run-{}-{number}", std::process::id());
        let listener = SocketAddr::from_abstract_name(&name).and_then(|at| UnixListener::bind_addr(&at));
        let listener = listener.map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        let secret = secret.to_string();
        Ok(Board {
            listener,
            name,
            secret,
            callers: Vec::new(),
            number: 0,
            notice: None,
            read: vec![0; ranks],
            aborting: None,
        })
    }

    /// How `rank` finds it.
    pub(super) fn place(&self, rank: usize) -> Place {
        Place { name: self.name.clone(), secret: self.secret.clone(), rank, size: self.read.len() }
    }

    /// What to watch: where callers come, then the callers.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd()).chain(self.callers.iter().map(|caller| caller.stream.as_fd()))
    }

    /// Do what there is to do. `ready`: which of [`Board::descriptors`] have something.
    pub(super) fn serve(&mut self, ready: &[bool]) {
        let mut callers = std::mem::take(&mut self.callers);
        let mut ready = ready.iter().copied();
        let called = ready.next().unwrap_or(false);
        callers.retain_mut(|caller| {
            let stays = !ready.next().unwrap_or(false) || self.hear(caller);
            if !stays && caller.posted == Some(self.number) {
                // Whoever posted it has given up, or has ended: nobody meets there any more.
                self.notice = None;
            }
            stays
        });
        callers.retain_mut(|caller| !caller.waits || self.answer_read(caller));
        self.callers = callers;
        while called && let Ok((stream, _)) = self.listener.accept() {
            self.admit(stream);
        }
    }

    /// Take what has been said by now, whether or not it was seen to come.
    pub(super) fn catch_up(&mut self) {
        // First whoever calls is let in, then heard.
        for _ in 0..2 {
            let all = vec![true; self.descriptors().count()];
            self.serve(&all);
        }
    }

    /// The first rank that has said since the last call that it aborts.
    pub(super) fn take_aborting(&mut self) -> Option<usize> {
        self.aborting.take()
    }

    fn admit(&mut self, stream: UnixStream) {
        if self.callers.len() >= self.read.len() + STRANGERS
            && let Some(oldest) = self.callers.iter().position(|caller| caller.rank.is_none())
        {
            self.callers.remove(oldest);
        }
        if stream.set_nonblocking(true).is_ok() {
            self.callers.push(Caller { stream, line: Vec::new(), rank: None, waits: false, posted: None });
        }
    }

    /// Take what a caller sends; whether it stays.
    fn hear(&mut self, caller: &mut Caller) -> bool {
        let mut bytes = [0; 1024];
        loop {
            match caller.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(n) => caller.line.extend(&bytes[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
            while let Some(end) = caller.line.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = caller.line.drain(..=end).collect();
                let request = std::str::from_utf8(&line[..end]).ok().and_then(Request::parse);
                if !request.is_some_and(|request| self.obey(caller, request)) {
                    return false;
                }
            }
            if caller.line.len() > LONGEST_LINE {
                return false;
            }
        }
    }

    /// Do what is asked; whether the caller may stay.
    fn obey(&mut self, caller: &mut Caller, request: Request) -> bool {
        match (request, caller.rank) {
            (Request::Hello { secret, rank }, None) if secret == self.secret && rank < self.read.len() => {
                caller.rank = Some(rank);
                true
            }
            (Request::Post(bytes), Some(0)) => {
                self.number += 1;
                self.notice = Some(bytes);
                caller.posted = Some(self.number);
                say(caller, DONE)
            }
            (Request::Clear, Some(0)) => {
                self.notice = None;
                say(caller, DONE)
            }
            (Request::Read, Some(_)) => {
                caller.waits = true;
                true
            }
            (Request::Aborting, Some(rank)) => {
                self.aborting.get_or_insert(rank);
                true
            }
            _ => false,
        }
    }

    /// Answer a caller that waits, if there is a notice for it; whether it may stay.
    fn answer_read(&mut self, caller: &mut Caller) -> bool {
        let (Some(bytes), Some(rank)) = (&self.notice, caller.rank) else { return true };
        if self.read[rank] < self.number {
            self.read[rank] = self.number;
            caller.waits = false;
            return say(caller, &notice(bytes));
        }
        true
    }
}

/// Send a line. A rank takes it at once: there is one answer to each request.
fn say(caller: &mut Caller, line: &str) -> bool {
    caller.stream.write_all(line.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    struct Rank(BufReader<UnixStream>);

    impl Rank {
        fn call(board: &Board, hello: &str) -> Rank {
            let at = SocketAddr::from_abstract_name(&board.name).unwrap();
            let mut rank = Rank(BufReader::new(UnixStream::connect_addr(&at).unwrap()));
            if !hello.is_empty() {
                rank.say(hello);
            }
            rank
        }

        fn say(&mut self, line: &str) {
            self.0.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        }

        /// What comes by now, if anything does.
        fn hear(&mut self, board: &mut Board) -> Option<String> {
            board.catch_up();
            self.0.get_ref().set_nonblocking(true).unwrap();
            let mut line = String::new();
            match self.0.read_line(&mut line) {
                Ok(0) => Some("end".to_string()),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => Some("end".to_string()),
                Ok(_) => Some(line.trim_end().to_string()),
                Err(_) => None,
            }
        }
    }

    #[test]
    fn each_rank_gets_each_notice_once() {
        let mut board = Board::open(2).unwrap();
        let hello = |rank: usize, board: &Board| format!("maypole 1 {} {rank}", board.secret);
        let mut one = Rank::call(&board, &hello(1, &board));
        one.say("read");
        assert_eq!(one.hear(&mut board), None, "there is none yet");
        for number in ["01", "02"] {
            let mut zero = Rank::call(&board, &hello(0, &board));
            zero.say(&format!("post {number}"));
            assert_eq!(zero.hear(&mut board).as_deref(), Some("ok"));
            assert_eq!(one.hear(&mut board), Some(format!("notice {number}")));
            // Whichever process asks.
            one = Rank::call(&board, &hello(1, &board));
            one.say("read");
            assert_eq!(one.hear(&mut board), None);
            zero.say("clear");
            assert_eq!(zero.hear(&mut board).as_deref(), Some("ok"));
        }
    }

    #[test]
    fn what_an_attempt_that_failed_had_posted_is_gone() {
        let mut board = Board::open(2).unwrap();
        let hello = format!("maypole 1 {} ", board.secret);
        let mut zero = Rank::call(&board, &format!("{hello}0"));
        zero.say("post 01");
        assert_eq!(zero.hear(&mut board).as_deref(), Some("ok"));
        drop(zero);
        let mut one = Rank::call(&board, &format!("{hello}1"));
        one.say("read");
        assert_eq!(one.hear(&mut board), None);
        let mut again = Rank::call(&board, &format!("{hello}0"));
        again.say("post 02");
        assert_eq!(again.hear(&mut board).as_deref(), Some("ok"));
        assert_eq!(one.hear(&mut board).as_deref(), Some("notice 02"));
    }

    #[test]
    fn a_rank_that_aborts_is_heard_though_it_has_hung_up() {
        let mut board = Board::open(3).unwrap();
        for rank in [2, 1] {
            Rank::call(&board, &format!("maypole 1 {} {rank}", board.secret)).say("aborting");
        }
        Rank::call(&board, "aborting");
        board.catch_up();
        assert_eq!((board.take_aborting(), board.take_aborting()), (Some(2), None));
    }

    #[test]
    fn strangers_learn_nothing() {
        let mut board = Board::open(2).unwrap();
        let hello = format!("maypole 1 {} ", board.secret);
        for lines in [
            vec!["read".to_string()],
            vec!["maypole 1 secret 0".to_string()],
            vec![format!("{hello}2")],
            vec![format!("{hello}1"), "post 00".to_string()],
            vec!["x".repeat(2 * LONGEST_LINE)],
        ] {
            let mut stranger = Rank::call(&board, &lines[0]);
            lines[1..].iter().for_each(|line| stranger.say(line));
            assert_eq!(stranger.hear(&mut board).as_deref(), Some("end"), "{}", &lines[0][..10.min(lines[0].len())]);
        }
        // Nor do they keep ranks out, however many they are.
        let strangers: Vec<Rank> = (0..3 * STRANGERS).map(|_| Rank::call(&board, "")).collect();
        let mut rank = Rank::call(&board, &format!("{hello}0"));
        rank.say("post 07");
        assert_eq!(rank.hear(&mut board).as_deref(), Some("ok"));
        drop(strangers);
    }
}
