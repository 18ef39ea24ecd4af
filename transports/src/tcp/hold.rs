//! What a link holds between its sockets and its caller, in a buffer that it has only while it
//! holds anything.
//!
//! A rank may have a thousand links, and few of them hold bytes at a time: of messages that wait
//! for their turn, or in the middle of a record. A buffer for each would make a thousand of them
//! resident, each as far as it was ever filled. So a link takes a buffer when bytes come, and gives
//! it back when the last of them is taken. An idle link has none.
//!
//! # Where buffers come from
//!
//! The thread that moves the bytes keeps those that its links gave back, the latest at hand,
//! which is still in the cache: one that polls a hundred links in vain reads into the same buffer
//! each time. It keeps up to [`KEPT`] bytes of touched memory, and unmaps what was unused for
//! longest beyond that. So steady work makes no system call for memory, needs no lock, as no other
//! thread sees these buffers, and leaves little behind.

use std::cell::RefCell;
use std::collections::VecDeque;

use crate::pages::Pages;
use crate::{LinkError, Result};

/// Bytes of memory that buffers have which a thread keeps: as much as a link to each of four ranks
/// holds at most, or a page for each of a thousand.
const KEPT: usize = 4 << 20;
/// Bytes of addresses that they have at most: systems that promise no more than they have count
/// these too.
const ADDRESSES: usize = 256 << 20;

/// The granularity in which memory becomes resident, at least.
const PAGE: usize = 4 << 10;

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare::NONE) };
}

/// A queue of bytes of bounded length.
#[derive(Debug)]
pub(super) struct Hold {
    /// The buffer's length while there is one.
    room: usize,
    buffer: Option<Buffer>,
    /// What is held is `buffer[start..end]`.
    start: usize,
    end: usize,
}

#[derive(Debug)]
struct Buffer {
    pages: Pages,
    /// So many bytes at its front have been written at some time.
    touched: usize,
}

impl Hold {
    /// With room for so many bytes, at least one. Takes no memory yet.
    pub const fn new(room: usize) -> Hold {
        Hold { room, buffer: None, start: 0, end: 0 }
    }

    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// What is held.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.buffer {
            Some(buffer) => &buffer.pages[self.start..self.end],
            None => &[],
        }
    }

    /// Bytes that have room behind those that are held.
    pub fn free(&self) -> usize {
        self.room - self.end
    }

    /// Bytes in front of those that are held, which [`Hold::close_up`] wins back.
    pub fn lost(&self) -> usize {
        self.start
    }

    /// Move what is held to the front.
    pub fn close_up(&mut self) {
        if let Some(buffer) = self.buffer.as_mut().filter(|_| self.start > 0) {
            buffer.pages.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    /// The place for what comes next, [`Hold::free`] bytes. Whoever asks says afterwards what came.
    ///
    /// # Errors
    /// [`LinkError::Io`]: there is no memory.
    #[inline]
    pub fn room(&mut self) -> Result<&mut [u8]> {
        let buffer = match &mut self.buffer {
            Some(buffer) => buffer,
            none => none.insert(Buffer::get(self.room)?),
        };
        Ok(&mut buffer.pages[self.end..])
    }

    /// So many bytes were written to the front of [`Hold::room`].
    ///
    /// # Panics
    /// There was no room for so many.
    #[inline]
    pub fn came(&mut self, bytes: usize) {
        assert!(bytes <= self.free(), "{bytes} bytes came, there was room for {}", self.free());
        self.end += bytes;
        if let Some(buffer) = &mut self.buffer {
            buffer.touched = buffer.touched.max(self.end);
        }
        self.let_go();
    }

    /// Hold these too.
    ///
    /// # Errors
    /// Those of [`Hold::room`].
    ///
    /// # Panics
    /// They have no room.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if !bytes.is_empty() {
            self.room()?[..bytes.len()].copy_from_slice(bytes);
            self.came(bytes.len());
        }
        Ok(())
    }

    /// The first so many bytes of those that are held are taken.
    ///
    /// # Panics
    /// There are not so many.
    #[inline]
    pub fn gone(&mut self, bytes: usize) {
        assert!(bytes <= self.len(), "{bytes} bytes taken, {} are there", self.len());
        self.start += bytes;
        self.let_go();
    }

    /// Give the buffer back if nothing is held.
    #[inline]
    fn let_go(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if let Some(buffer) = self.buffer.take() {
                buffer.give();
            }
        }
    }
}

impl Buffer {
    /// One of this thread's, or a new one.
    fn get(len: usize) -> Result<Buffer> {
        // A thread whose storage is gone keeps nothing any more.
        let spare = SPARE.try_with(|spare| spare.borrow_mut().take(len)).ok().flatten();
        let new = || Pages::sparse(len).map(|pages| Buffer { pages, touched: 0 });
        spare.map_or_else(new, Ok).map_err(|source| LinkError::Io { doing: "memory for a TCP link", source })
    }

    /// To this thread.
    fn give(self) {
        let _ = SPARE.try_with(|spare| spare.borrow_mut().put(self));
    }

    /// Memory that it takes, about.
    fn resident(&self) -> usize {
        self.touched.next_multiple_of(PAGE)
    }
}

/// The buffers that a thread keeps.
#[derive(Debug)]
struct Spare {
    /// That which came last is the last.
    buffers: VecDeque<Buffer>,
    resident: usize,
    addresses: usize,
}

impl Spare {
    const NONE: Spare = Spare { buffers: VecDeque::new(), resident: 0, addresses: 0 };

    /// The latest of those with this length: there are few lengths.
    #[inline]
    fn take(&mut self, len: usize) -> Option<Buffer> {
        let at = self.buffers.iter().rposition(|buffer| buffer.pages.len() == len)?;
        let buffer = self.buffers.remove(at)?;
        self.resident -= buffer.resident();
        self.addresses -= len;
        Some(buffer)
    }

    #[inline]
    fn put(&mut self, buffer: Buffer) {
        self.resident += buffer.resident();
        self.addresses += buffer.pages.len();
        self.buffers.push_back(buffer);
        while self.resident > KEPT || self.addresses > ADDRESSES {
            let Some(oldest) = self.buffers.pop_front() else { break };
            self.resident -= oldest.resident();
            self.addresses -= oldest.pages.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What this thread keeps: buffers, and bytes that they take.
    fn kept() -> (usize, usize) {
        SPARE.with(|spare| (spare.borrow().buffers.len(), spare.borrow().resident))
    }

    #[test]
    fn bytes_come_out_as_they_went_in_and_the_buffer_goes_with_the_last() {
        let mut hold = Hold::new(100);
        assert!(hold.buffer.is_none() && hold.bytes().is_empty());
        hold.put(b"hello").unwrap();
        hold.gone(2);
        assert_eq!((hold.bytes(), hold.lost(), hold.free()), (&b"llo"[..], 2, 95));
        hold.close_up();
        assert_eq!((hold.bytes(), hold.lost(), hold.free()), (&b"llo"[..], 0, 97));
        assert_eq!(hold.room().unwrap().len(), 97);
        hold.came(0);
        hold.gone(3);
        assert!(hold.buffer.is_none() && kept() == (1, PAGE));
        // Asked for in vain: it goes back, too.
        hold.room().unwrap()[0] = 1;
        assert_eq!(kept(), (0, 0));
        hold.came(0);
        assert!(hold.buffer.is_none() && kept().0 == 1);
    }

    #[test]
    fn links_of_a_thread_share_one_buffer_while_they_take_turns() {
        let mut holds: Vec<Hold> = (0..1000).map(|_| Hold::new(1 << 20)).collect();
        let mut places = std::collections::BTreeSet::new();
        for hold in &mut holds {
            places.insert(hold.room().unwrap().as_ptr() as usize);
            hold.put(&[1; 100]).unwrap();
            hold.gone(100);
        }
        assert_eq!((places.len(), kept()), (1, (1, PAGE)));
    }

    #[test]
    fn a_thread_keeps_a_bounded_amount_and_what_was_used_last() {
        let mut holds: Vec<Hold> = (0..20).map(|_| Hold::new(1 << 20)).collect();
        holds.iter_mut().for_each(|hold| hold.put(&vec![1; 1 << 20]).unwrap());
        holds.iter_mut().for_each(|hold| hold.gone(1 << 20));
        assert_eq!(kept(), (4, 4 << 20));
        // Of another length, so it is new; the oldest of the others makes room for it.
        let mut other = Hold::new(1 << 10);
        other.put(&[1; 10]).unwrap();
        other.gone(10);
        assert_eq!(kept(), (4, (3 << 20) + PAGE));
        // Many that were hardly touched.
        let mut holds: Vec<Hold> = (0..1000).map(|_| Hold::new(1 << 20)).collect();
        holds.iter_mut().for_each(|hold| hold.put(&[1; 10]).unwrap());
        holds.iter_mut().for_each(|hold| hold.gone(10));
        assert_eq!(kept().0, ADDRESSES >> 20);
    }

    #[test]
    #[should_panic(expected = "101 bytes came, there was room for 100")]
    fn more_than_there_is_room_for_is_refused() {
        Hold::new(100).came(101);
    }
}
