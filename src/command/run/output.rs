//! What ranks print, line by line, with the rank before each line.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// A longer line is printed in parts, so that a rank that prints no newlines cannot fill the memory.
const LONGEST: usize = 1 << 20;

/// Where a stream goes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Sink {
    Stdout,
    Stderr,
}

struct Stream {
    pipe: File,
    sink: Sink,
    lines: Lines,
}

/// The ranks' open output streams.
pub(super) struct Output {
    streams: Vec<Stream>,
}

impl Output {
    pub(super) fn new() -> Output {
        Output { streams: Vec::new() }
    }

    /// Take over the read end of a rank's pipe.
    pub(super) fn add(&mut self, rank: usize, sink: Sink, pipe: OwnedFd) {
        // One slow rank must not hold up the others' output. If this fails, reads block until there is something to
        // read, which is after poll said so.
        let _ = fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        self.streams.push(Stream { pipe: pipe.into(), sink, lines: Lines::new(rank) });
    }

    /// The open pipes, in the order in which [`Output::copy`] expects to hear about them.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.streams.iter().map(|stream| stream.pipe.as_fd())
    }

    /// Copy once from those that are ready.
    pub(super) fn copy(&mut self, ready: &[bool]) {
        let mut ready = ready.iter();
        self.streams.retain_mut(|stream| !ready.next().copied().unwrap_or(false) || stream.copy_once() != Copied::End);
    }

    /// Copy all that is there now.
    pub(super) fn copy_all(&mut self) {
        self.streams.retain_mut(|stream| {
            loop {
                match stream.copy_once() {
                    Copied::Some => {}
                    Copied::Nothing => return true,
                    Copied::End => return false,
                }
            }
        });
    }

    /// Copy all that is there, then close: for when every writer is gone.
    pub(super) fn drain(&mut self) {
        self.copy_all();
        for stream in &mut self.streams {
            stream.end();
        }
        self.streams.clear();
    }
}

#[derive(PartialEq)]
enum Copied {
    Some,
    Nothing,
    End,
}

impl Stream {
    fn copy_once(&mut self) -> Copied {
        let mut bytes = [0; 64 << 10];
        match self.pipe.read(&mut bytes) {
            Ok(0) => {
                self.end();
                Copied::End
            }
            Ok(n) => {
                let mut text = Vec::with_capacity(n + 256);
                self.lines.add(&bytes[..n], &mut text);
                // Nobody reads our output any more: closing the pipe lets the rank find out as it would have without
                // us.
                if self.sink.write(&text) { Copied::Some } else { Copied::End }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Copied::Nothing,
            Err(error) if error.kind() == ErrorKind::Interrupted => Copied::Some,
            Err(_) => {
                self.end();
                Copied::End
            }
        }
    }

    fn end(&mut self) {
        let mut text = Vec::new();
        self.lines.end(&mut text);
        self.sink.write(&text);
    }
}

impl Sink {
    /// Whole lines in one go; false if the reader is gone.
    fn write(self, text: &[u8]) -> bool {
        if text.is_empty() {
            return true;
        }
        match self {
            Sink::Stdout => {
                let mut stdout = std::io::stdout().lock();
                stdout.write_all(text).and_then(|()| stdout.flush()).is_ok()
            }
            Sink::Stderr => std::io::stderr().lock().write_all(text).is_ok(),
        }
    }
}

/// Cuts bytes into lines and puts the rank before each.
struct Lines {
    prefix: String,
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
}

impl Lines {
    fn new(rank: usize) -> Lines {
        Lines { prefix: format!("[{rank}] "), rest: Vec::new() }
    }

    /// Append to `out` every line that `bytes` completes.
    fn add(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.rest.extend(part);
            if part.ends_with(b"\n") {
                out.extend(self.prefix.as_bytes());
                out.append(&mut self.rest);
            } else if self.rest.len() >= LONGEST {
                self.end(out);
            }
        }
    }

    /// Append what is left, as a line.
    fn end(&mut self, out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            out.extend(self.prefix.as_bytes());
            out.append(&mut self.rest);
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_reads() {
        let text = b"one\ntwo\n\n\xff\x00three\r\nfour";
        for step in 1..text.len() {
            let mut lines = Lines::new(12);
            let mut out = Vec::new();
            for part in text.chunks(step) {
                lines.add(part, &mut out);
            }
            assert!(!out.ends_with(b"four\n"), "a line without its end must wait");
            lines.end(&mut out);
            assert_eq!(out, b"[12] one\n[12] two\n[12] \n[12] \xff\x00three\r\n[12] four\n", "in steps of {step}");
            let length = out.len();
            lines.end(&mut out);
            assert_eq!(out.len(), length, "the end comes once");
        }
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut lines = Lines::new(0);
        let mut out = Vec::new();
        for _ in 0..40 {
            lines.add(&[b'x'; 64 << 10], &mut out);
        }
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 2);
        assert!(lines.rest.len() < LONGEST);
    }
}
