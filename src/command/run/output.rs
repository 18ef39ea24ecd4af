//! What ranks print, from their pipes to where it goes: [`lines`](super::lines) cuts it, [`writer`](super::writer)s
//! write it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::fstat;

use super::lines::{Cursor, Lines};
use super::writer::Writer;
use crate::error::{Error, Result};

/// What a pipe can hold, bytes: the most that users may give one.
const LARGEST_PIPE: usize = 1 << 20;
/// What is read in one go, bytes.
const PIECE: usize = 64 << 10;

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
    /// How much is taken at most once the ranks have ended: what they left running may write for ever.
    left: usize,
}

/// A writer and where the cursor stands there.
struct Place {
    writer: Writer,
    cursor: Cursor,
}

/// The ranks' open output streams.
pub(super) struct Output {
    streams: Vec<Stream>,
    /// One, if standard output and standard error are the same: then what comes first is printed first.
    places: Vec<Place>,
    bell: Arc<EventFd>,
    added: usize,
}

impl Output {
    /// Start the threads that write.
    ///
    /// # Errors
    /// [`Error::System`] if descriptors or threads are short.
    pub(super) fn new() -> Result<Output> {
        let system = |error| Error::system("setting up the output", error);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = Arc::new(EventFd::from_flags(flags).map_err(|e| system(e.into()))?);
        let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
        let file = |fd: BorrowedFd| fstat(fd).map(|about| (about.st_dev, about.st_ino, about.st_rdev));
        let same = matches!((file(stdout.as_fd()), file(stderr.as_fd())), (Ok(a), Ok(b)) if a == b);
        let mut files = vec![stdout.as_fd().try_clone_to_owned().map_err(system)?];
        if !same {
            files.push(stderr.as_fd().try_clone_to_owned().map_err(system)?);
        }
        let place = |file| Ok(Place { writer: Writer::start(file, bell.clone())?, cursor: Cursor::default() });
        let places = files.into_iter().map(place).collect::<Result<_>>()?;
        Ok(Output { streams: Vec::new(), places, bell, added: 0 })
    }

    /// Take over the read end of a rank's pipe.
    pub(super) fn add(&mut self, rank: usize, sink: Sink, pipe: OwnedFd) {
        // One slow rank must not hold up the others' output. If this fails, reads block until there is something to
        // read, which is after poll said so.
        let _ = fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        let lines = Lines::new(self.added, rank);
        self.added += 1;
        self.streams.push(Stream { pipe: pipe.into(), sink, lines, left: LARGEST_PIPE });
    }

    /// Rung when the writers have got on.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// It has been heard.
    pub(super) fn heard(&self) {
        let _ = self.bell.read();
    }

    /// The streams to watch, by number: those whose writer has room.
    pub(super) fn watched(&self) -> Vec<(usize, BorrowedFd<'_>)> {
        let streams = self.streams.iter().enumerate();
        streams.filter(|(_, s)| !self.place(s.sink).writer.is_full()).map(|(i, s)| (i, s.pipe.as_fd())).collect()
    }

    /// When the beginning of some line is to be printed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.streams.iter().filter_map(|stream| stream.lines.due()).min()
    }

    fn place(&self, sink: Sink) -> &Place {
        match sink {
            Sink::Stdout => &self.places[0],
            Sink::Stderr => self.places.last().expect("one at least"),
        }
    }

    /// Copy once from those of [`Output::watched`] that are ready, and print what has waited long enough.
    pub(super) fn copy(&mut self, ready: &[usize]) {
        let now = Instant::now();
        let mut number = 0;
        self.retain(|stream, place| {
            let is_ready = ready.contains(&number);
            number += 1;
            let more = !is_ready || stream.copy_once(place) != Copied::End;
            let mut text = Vec::new();
            stream.lines.show_late(now, &mut place.cursor, &mut text);
            place.writer.put(&text);
            more
        });
    }

    /// Copy what is there now, as far as the writers have room.
    pub(super) fn copy_all(&mut self) {
        self.retain(|stream, place| {
            // No more than there can be: a rank may print faster than this.
            for _ in 0..LARGEST_PIPE / PIECE {
                match place.writer.is_full() {
                    true => return true,
                    false => match stream.copy_once(place) {
                        Copied::Some => {}
                        Copied::Nothing => return true,
                        Copied::End => return false,
                    },
                }
            }
            true
        });
    }

    /// The ranks have ended: copy the rest, as far as there is room. Whether all of it has been written. What the ranks
    /// left running is not waited for, though it may have the pipes open.
    pub(super) fn finish(&mut self) -> bool {
        self.retain(|stream, place| {
            while !place.writer.is_full() {
                match if stream.left == 0 { Copied::Nothing } else { stream.copy_once(place) } {
                    Copied::Some => stream.left = stream.left.saturating_sub(PIECE),
                    Copied::Nothing => {
                        stream.end(place);
                        return false;
                    }
                    Copied::End => return false,
                }
            }
            true
        });
        self.streams.is_empty() && self.places.iter().all(|place| place.writer.is_done())
    }

    fn retain(&mut self, mut keep: impl FnMut(&mut Stream, &mut Place) -> bool) {
        let last = self.places.len() - 1;
        let places = &mut self.places;
        self.streams.retain_mut(|stream| {
            let place = if stream.sink == Sink::Stdout { 0 } else { last };
            keep(stream, &mut places[place])
        });
    }

    /// Print a line of the launcher's own on standard error.
    pub(super) fn say(&mut self, what: &str) {
        let place = self.places.last_mut().expect("one at least");
        let mut text = Vec::new();
        place.cursor.start_line(&mut text);
        text.extend(format!("maypole run: {what}\n").bytes());
        place.writer.put(&text);
    }

    /// Whether what was to be said has been.
    pub(super) fn has_said(&self) -> bool {
        self.place(Sink::Stderr).writer.is_done()
    }

    /// What has gone wrong with the writing since the last call, for people.
    pub(super) fn trouble(&self) -> Option<String> {
        let trouble = |(number, place): (usize, &Place)| Some((self.name(number), place.writer.trouble()?));
        let (name, why) = self.places.iter().enumerate().find_map(trouble)?;
        Some(format!("{name} cannot be written: {}; what ranks print there is lost until it can", why.desc()))
    }

    /// What will never be written, for people.
    pub(super) fn lost(&self) -> Option<String> {
        let lost = |(number, place): (usize, &Place)| Some((number, place.writer.lost())).filter(|(_, lost)| *lost > 0);
        let (number, lost) = self.places.iter().enumerate().find_map(lost)?;
        Some(format!("{lost} bytes for {} are lost", self.name(number)))
    }

    fn name(&self, place: usize) -> &'static str {
        match (place, self.places.len()) {
            (0, 1) => "the output",
            (0, _) => "standard output",
            _ => "standard error",
        }
    }
}

#[derive(PartialEq)]
enum Copied {
    Some,
    Nothing,
    End,
}

impl Stream {
    fn copy_once(&mut self, place: &mut Place) -> Copied {
        let mut bytes = [0; PIECE];
        match self.pipe.read(&mut bytes) {
            Ok(0) => {
                self.end(place);
                Copied::End
            }
            Ok(n) => {
                let mut text = Vec::with_capacity(n + 256);
                self.lines.add(&bytes[..n], &mut place.cursor, &mut text);
                place.writer.put(&text);
                // Nobody reads our output any more: closing the pipe lets the rank find out as it would have without
                // us.
                if place.writer.is_gone() { Copied::End } else { Copied::Some }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Copied::Nothing,
            Err(error) if error.kind() == ErrorKind::Interrupted => Copied::Some,
            // A terminal's other end was closed by the last who had it open, or something worse.
            Err(_) => {
                self.end(place);
                Copied::End
            }
        }
    }

    fn end(&mut self, place: &mut Place) {
        let mut text = Vec::new();
        self.lines.end(&mut place.cursor, &mut text);
        place.writer.put(&text);
    }
}
