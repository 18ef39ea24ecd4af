//! Boards made of mpiexec's key-value space and its barriers.

use std::time::Duration;

use super::SHARED;
use super::connection::{Connection, word};
use crate::error::{Error, Result};
use crate::launch::run_board::{hex, unhex};
use crate::launch::{Board, LONGEST_NOTICE};
use crate::running::Limit;

/// The boards in the job's key-value space, over the process's one connection.
pub(super) struct KeyValueSpace {
    /// How long mpiexec may take to answer what needs no other rank.
    pub answer: Duration,
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

impl Connection {
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

    /// Leave the board at which rank 0 gave up waiting, once all have come to it. What it put there
    /// is of no use any more, as the others see when they go there, and so come to the next one:
    /// ranks meet that have not tried equally often.
    fn catch_up(&mut self, limit: &Limit) -> Result<()> {
        if self.at_barrier {
            self.barrier(limit)?;
            self.board += 1;
        }
        Ok(())
    }

    /// Put the bytes where every rank can get them after a barrier.
    pub(super) fn post(&mut self, bytes: &[u8], limit: &Limit) -> Result<()> {
        self.catch_up(limit)?;
        let board = self.board;
        let pieces: Vec<&[u8]> = bytes.chunks(self.piece).collect();
        for i in 0..pieces.len().max(1) {
            let count = if i == 0 { format!("{:03}.", pieces.len()) } else { String::new() };
            let value = hex(pieces.get(i).unwrap_or(&&[][..]));
            let (name, key) = (&self.kvsname, key(board, i));
            let request = format!("cmd=put kvsname={name} key={key} value={count}{value}");
            self.request(&request, "put_result", limit)?;
        }
        Ok(())
    }

    /// Wait for every rank, then get what rank 0 has put.
    pub(super) fn read(&mut self, limit: &Limit) -> Result<Vec<u8>> {
        self.barrier(limit)?;
        self.board += 1;
        let board = self.board - 1;
        let first = self.get(board, 0, limit)?;
        let broken = || Error::bootstrap("what rank 0 put into mpiexec's key-value space (PMI) came back changed");
        let (count, text) = first.split_once('.').ok_or_else(broken)?;
        let count: usize = count.parse().map_err(|_| broken())?;
        if count > LONGEST_NOTICE {
            return Err(broken());
        }
        let mut text = text.to_string();
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
}

pub(super) fn key(board: usize, piece: usize) -> String {
    format!("maypole-{board}-{piece}")
}
