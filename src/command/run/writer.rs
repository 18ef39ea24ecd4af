//! Writes text to standard output or standard error on a thread of its own.
//!
//! A write may take as long as its reader likes: `less` shows a page and waits, Ctrl-S stops a terminal, a file lies on a
//! server that is down. Nor can writes be told not to wait, since that is a property of the open file, which the shell
//! and others share. So a thread does them, and the launcher looks after its ranks meanwhile: [`Writer::put`] only queues.
//! While there is much in the queue ([`Writer::is_full`]), the launcher takes no more from its ranks, and they wait for
//! the reader as they would without it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use maypole_transports::lock::{Condvar, Mutex};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::SigSet;

use crate::error::{Error, Result};

/// More is not taken from ranks before some of it has been written, bytes.
const ROOM: usize = 256 << 10;

/// A file to write to, and the thread that does.
pub(super) struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    file: OwnedFd,
    queue: Mutex<Queue>,
    more: Condvar,
    /// Rung whenever something has been written, or could not be.
    bell: Arc<EventFd>,
}

#[derive(Default)]
struct Queue {
    text: Vec<u8>,
    /// How much the thread is writing just now.
    writing: usize,
    /// The reader has gone.
    gone: bool,
    /// What went wrong, until somebody asks.
    trouble: Option<Errno>,
    /// Bytes that could not be written.
    lost: u64,
}

impl Writer {
    /// Write to `file`, and ring `bell` when something has happened. The thread ends with the process.
    ///
    /// # Errors
    /// [`Error::System`] if there is no thread to be had.
    pub(super) fn start(file: OwnedFd, bell: Arc<EventFd>) -> Result<Writer> {
        let shared = Arc::new(Shared { file, queue: Mutex::default(), more: Condvar::new(), bell });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("maypole-output".into());
        thread.spawn(move || theirs.work()).map_err(|error| Error::system("starting a thread", error))?;
        Ok(Writer { shared })
    }

    /// Queue `text`. Does not wait.
    pub(super) fn put(&self, text: &[u8]) {
        let mut queue = self.shared.queue.lock();
        if !queue.gone && !text.is_empty() {
            queue.text.extend_from_slice(text);
            self.shared.more.notify_one();
        }
    }

    /// Whether the reader is so slow that there is much in the queue.
    pub(super) fn is_full(&self) -> bool {
        self.shared.queue.lock().text.len() >= ROOM
    }

    /// Whether the reader has gone: what is put is thrown away.
    pub(super) fn is_gone(&self) -> bool {
        self.shared.queue.lock().gone
    }

    /// Whether everything that was put has been written, or was lost.
    pub(super) fn is_done(&self) -> bool {
        let queue = self.shared.queue.lock();
        queue.text.is_empty() && queue.writing == 0
    }

    /// What went wrong since the last call.
    pub(super) fn trouble(&self) -> Option<Errno> {
        self.shared.queue.lock().trouble.take()
    }

    /// How many bytes could not be written; those that wait to be are counted too.
    pub(super) fn lost(&self) -> u64 {
        let queue = self.shared.queue.lock();
        if queue.gone { 0 } else { queue.lost + (queue.writing + queue.text.len()) as u64 }
    }
}

impl Shared {
    fn work(&self) {
        // They are the launcher's to take.
        let _ = SigSet::all().thread_block();
        loop {
            let mut queue = self.queue.lock();
            while queue.text.is_empty() {
                self.more.wait(&mut queue);
            }
            let text = std::mem::take(&mut queue.text);
            queue.writing = text.len();
            drop(queue);
            let _ = self.bell.write(1);
            let outcome = self.write(&text);
            let mut queue = self.queue.lock();
            queue.writing = 0;
            match outcome {
                Ok(()) => {}
                Err((Errno::EPIPE, _)) => {
                    queue.gone = true;
                    queue.text = Vec::new();
                }
                Err((trouble, left)) => {
                    // Once: a full disk is full for every line.
                    if queue.lost == 0 {
                        queue.trouble = Some(trouble);
                    }
                    queue.lost += left as u64;
                }
            }
            drop(queue);
            let _ = self.bell.write(1);
        }
    }

    /// Write all of it; or what went wrong, and how much is left.
    fn write(&self, mut text: &[u8]) -> std::result::Result<(), (Errno, usize)> {
        while !text.is_empty() {
            match nix::unistd::write(&self.file, text) {
                Ok(n) => text = &text[n..],
                Err(Errno::EINTR) => {}
                // Somebody who shares the file wants it so.
                Err(Errno::EAGAIN) => {
                    let mut watched = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
                    let _ = poll(&mut watched, PollTimeout::NONE);
                }
                Err(error) => return Err((error, text.len())),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::{Duration, Instant};

    use super::*;

    fn until(what: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !what() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn pipe() -> (std::fs::File, OwnedFd) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        (reader.into(), writer)
    }

    #[test]
    fn a_reader_that_sleeps_holds_up_nobody_and_gets_everything() {
        let (mut reader, file) = pipe();
        let writer = Writer::start(file, Arc::new(EventFd::new().unwrap())).unwrap();
        let text: Vec<u8> = (0..2 * ROOM).map(|i| i as u8).collect();
        text.chunks(1000).for_each(|part| writer.put(part));
        assert!(writer.is_full() && !writer.is_done(), "a pipe has less room");
        let mut read = vec![0; text.len()];
        reader.read_exact(&mut read).unwrap();
        assert!(read == text);
        until(|| writer.is_done());
        assert!(!writer.is_full() && writer.lost() == 0 && writer.trouble().is_none());
    }

    #[test]
    fn a_reader_that_leaves_is_noticed_and_a_full_disk_is_told_once() {
        let (reader, file) = pipe();
        drop(reader);
        let bell = Arc::new(EventFd::new().unwrap());
        let writer = Writer::start(file, bell.clone()).unwrap();
        writer.put(b"text");
        until(|| writer.is_gone() && writer.is_done());
        assert_eq!((writer.lost(), writer.trouble()), (0, None));

        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let writer = Writer::start(full.into(), bell).unwrap();
        for lost in [4, 8] {
            writer.put(b"text");
            until(|| writer.is_done() && writer.lost() == lost);
            assert_eq!(writer.trouble(), (lost == 4).then_some(Errno::ENOSPC));
        }
        assert!(!writer.is_gone());
    }
}
