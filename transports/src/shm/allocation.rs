//! Memory of the application's own that all members of a host can read where it lies: registered buffers.
//!
//! One memfd holds a *part* for each member, which that member alone writes, and in front of them a [`Gate`] for each.
//! Every member maps all of it. What a member publishes out of its part needs no copy into a window: the publication
//! says where the bytes are.
//!
//! # The protocol
//!
//! When a part may be read and when its owner may write it again is the window's protocol ([`super::window`]): a
//! publication says that the bytes are there, and the owner writes them again only when every other member is done with
//! it ([`crate::Window::unread`]). That leaves an operation that *failed*: its owner gets its memory back although
//! others may not be done, and never will be. So each part has a gate, which its owner shuts before it goes on. A gate
//! once shut stays so: the communicator has failed too.
//!
//! *Members that are threads.* A read beside a write would be a data race. So a reader enters the gate before it reads
//! and leaves it afterwards, and an owner that has shut it waits until nobody is inside. A reader raises the count,
//! fences, and looks whether the gate is shut; the owner shuts it, fences, and looks at the count. The fences are
//! totally ordered: either the reader sees the gate shut and turns back, or the owner sees the reader and waits.
//!
//! *Members that are processes* are not waited for: one may have died inside. So a reader may find bytes that the owner
//! has written since, or zeros where it has given them back. It must not take them for what was lent, and need not: when
//! it has read, and before it says so or uses what it read, it looks at the gate again ([`Gate::is_open`]). Suppose that
//! it has read a byte that was written after the gate was shut. The owner's fence lies between its store into `shut` and
//! that write, the reader's between its read and the look; since the read found what was written behind the owner's
//! fence, everything before that fence is seen behind the reader's, `shut` too. So a gate that is found open vouches
//! for every byte before. The order of several reads does not matter, nor that a kernel or a copy makes them by halves.
//! Giving memory back is a call to the system, which comes after the fence as a write does; and whoever finds the zeros
//! has gone through the same system. A gate found shut says only that the bytes may be wrong: the reader fails with the
//! communicator, as it would have had it come later.
//!
//! `tests/loom` checks both.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::memory::{self, page};
use crate::sync::{AtomicU32, Ordering, fence};
use crate::{LinkError, Result};

/// Who reads a part, and whether that is still allowed. A line of its own.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Gate {
    inside: AtomicU32,
    shut: AtomicU32,
    /// The owner has given its part back.
    given_back: AtomicU32,
}

impl Gate {
    /// Begin to read; `false`: it is shut. Ends with [`Gate::leave`].
    #[inline]
    pub fn enter(&self) -> bool {
        self.inside.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.shut.load(Ordering::Relaxed) != 0 {
            self.leave();
            return false;
        }
        true
    }

    /// Whether the gate is open still, looked at after reading: then all that was read is what the owner had lent. Where
    /// members are processes nothing else says so.
    #[inline]
    #[must_use]
    pub fn is_open(&self) -> bool {
        // Behind the reads, whatever made them; see the module.
        fence(Ordering::Acquire);
        self.shut.load(Ordering::Relaxed) == 0
    }

    /// Everything that was to be read is read.
    #[inline]
    pub fn leave(&self) {
        self.inside.fetch_sub(1, Ordering::Release);
    }

    /// Let nobody in any more.
    pub fn shut(&self) {
        self.shut.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Whether nobody reads. Once the gate is shut and this was true, the owner may write.
    pub fn is_empty(&self) -> bool {
        self.inside.load(Ordering::Acquire) == 0
    }
}

/// Memory with a part for each member of a host; unmapped when dropped. See the [module](self).
#[derive(Debug)]
pub struct Allocation {
    base: NonNull<u8>,
    bytes: usize,
    /// Offset and bytes of each member's part.
    parts: Vec<(usize, usize)>,
    /// Whether the members are threads of this process.
    threads: bool,
}

// SAFETY: the mapping belongs to this value and stays until drop; gates are atomics, and when the bytes of the parts are
// touched by whom is what the protocol argues.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

/// Offset and bytes of each part, and the bytes of the whole. `None` where a usize cannot count them.
fn layout(lengths: &[usize]) -> Option<(Vec<(usize, usize)>, usize)> {
    let mut end = (lengths.len() * size_of::<Gate>()).next_multiple_of(page());
    let mut parts = Vec::with_capacity(lengths.len());
    for length in lengths {
        parts.push((end, *length));
        end = end.checked_add(length.checked_next_multiple_of(page())?)?;
    }
    (end <= isize::MAX as usize).then_some((parts, end))
}

fn too_long() -> LinkError {
    let what = "more bytes than a process can address";
    LinkError::Io { doing: "making registered memory", source: std::io::Error::other(what) }
}

impl Allocation {
    /// New memory with a part of `lengths[m]` bytes for each member `m`, zero at first, and its descriptor: for the
    /// other processes to [`Allocation::open`] and for [`Allocation::commit`]. `threads`: the members are threads of
    /// this process and share the value.
    ///
    /// # Errors
    /// [`LinkError::Io`] when the system refuses the memory's addresses.
    pub fn create(lengths: &[usize], threads: bool) -> Result<(Arc<Allocation>, OwnedFd)> {
        let (_, bytes) = layout(lengths).ok_or_else(too_long)?;
        let fd = memory::memfd(bytes, false)?;
        Ok((Allocation::map(lengths, threads, &fd)?, fd))
    }

    /// Map memory that another process made with the same lengths.
    ///
    /// # Errors
    /// [`LinkError::Io`] when the file's size does not fit the lengths, or the system refuses the mapping.
    pub fn open(lengths: &[usize], fd: &OwnedFd) -> Result<Arc<Allocation>> {
        memory::check(fd, layout(lengths).ok_or_else(too_long)?.1)?;
        Allocation::map(lengths, false, fd)
    }

    fn map(lengths: &[usize], threads: bool, fd: &OwnedFd) -> Result<Arc<Allocation>> {
        let (parts, bytes) = layout(lengths).ok_or_else(too_long)?;
        let base = memory::map(bytes, Some((fd, 0)))?;
        // The others' parts are in their own core dumps.
        // SAFETY: mapped just now.
        unsafe { memory::advise(base, bytes, libc::MADV_DONTDUMP) };
        Ok(Arc::new(Allocation { base, bytes, parts, threads }))
    }

    /// Have the system set member `me`'s part aside now, near the core this runs on: a shortage is an error here, not a
    /// signal in the middle of an operation.
    ///
    /// # Errors
    /// [`LinkError::Io`] when there is not enough memory.
    pub fn commit(&self, me: usize, fd: BorrowedFd<'_>) -> Result<()> {
        let (offset, length) = self.parts[me];
        if length == 0 {
            return Ok(());
        }
        memory::set_aside(fd, offset as u64, length)?;
        // SAFETY: the part is mapped, and begins at a page.
        unsafe { memory::advise(self.part(me).0, length, libc::MADV_DODUMP) };
        Ok(())
    }

    /// Member `member`'s part: a multiple of the page size, and how many bytes it has.
    pub fn part(&self, member: usize) -> (NonNull<u8>, usize) {
        let (offset, length) = self.parts[member];
        // SAFETY: `layout` puts every part within the mapping.
        (unsafe { self.base.add(offset) }, length)
    }

    /// Where `bytes` bytes from `offset` of member `member`'s part lie, `None` where they do not lie inside. To be read
    /// through `std::ptr::with_exposed_provenance`, since the owner, where it is a thread of this process, has a
    /// reference to them that it exposed when it published them.
    pub fn address(&self, member: usize, offset: usize, bytes: usize) -> Option<usize> {
        let (part, length) = self.part(member);
        let end = offset.checked_add(bytes)?;
        (end <= length).then(|| part.as_ptr().addr() + offset)
    }

    /// The offset within member `member`'s part of `bytes` bytes from `at`, if they lie inside.
    pub fn offset_of(&self, member: usize, at: *const u8, bytes: usize) -> Option<usize> {
        let (part, length) = self.part(member);
        let offset = at.addr().checked_sub(part.as_ptr().addr())?;
        (offset.checked_add(bytes)? <= length).then_some(offset)
    }

    /// The gate of member `member`'s part.
    pub fn gate(&self, member: usize) -> &Gate {
        assert!(member < self.parts.len(), "member {member} of {}", self.parts.len());
        // SAFETY: gates lie at the start of the mapping, one for each member; all-zero bytes are a gate.
        unsafe { self.base.cast::<Gate>().add(member).as_ref() }
    }

    /// Shut the gate of member `me`'s part and, where the members are threads, wait until nobody reads it. Other
    /// processes are not waited for: they may have died inside, and those that live look at the gate when they have read.
    pub fn take_back(&self, me: usize) {
        let gate = self.gate(me);
        gate.shut();
        while self.threads && !gate.is_empty() {
            std::thread::yield_now();
        }
    }

    /// Member `me` uses its part no longer: its memory goes back to the system, though the addresses stay mapped. No
    /// operation of the member's may be using it.
    pub fn give_back(&self, me: usize) {
        let (part, length) = self.part(me);
        // SAFETY: the part is mapped, starts at a page, and by the caller's word nobody uses its content any more; pages
        // that are touched all the same read as zero. Where the system does not do it, the memory goes with the mapping.
        let _ = unsafe { libc::madvise(part.as_ptr().cast(), length, libc::MADV_REMOVE) };
        self.gate(me).given_back.store(1, Ordering::Release);
    }

    /// Whether every member has given its part back.
    pub fn is_unused(&self) -> bool {
        (0..self.parts.len()).all(|member| self.gate(member).given_back.load(Ordering::Acquire) != 0)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; whoever uses the memory holds the value.
        let _ = unsafe { nix::sys::mman::munmap(self.base.cast(), self.bytes) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn with_large_pages_every_part_begins_at_one() {
        memory::fake::PAGE.set(Some(64 << 10));
        let (parts, bytes) = layout(&[10, 0, 100_000, 7]).unwrap();
        assert!(parts.iter().all(|(at, _)| at.is_multiple_of(64 << 10)) && bytes.is_multiple_of(64 << 10), "{parts:?}");
        members_see_each_others_parts();
        memory::fake::PAGE.set(None);
    }

    #[test]
    fn members_see_each_others_parts() {
        let lengths = [10, 0, 5000];
        let (mine, fd) = Allocation::create(&lengths, false).unwrap();
        let theirs = Allocation::open(&lengths, &fd).unwrap();
        for (member, length) in lengths.into_iter().enumerate() {
            mine.commit(member, fd.as_fd()).unwrap();
            let (at, bytes) = mine.part(member);
            assert!((at.as_ptr().addr() - mine.base.as_ptr().addr()).is_multiple_of(page()) && bytes == length);
        }
        let at = mine.part(2).0.as_ptr();
        // SAFETY: byte 4999 lies in the part, and nobody else has touched it yet.
        unsafe { at.add(4999).write(7) };
        let offset = mine.offset_of(2, at.wrapping_add(4999), 1).unwrap();
        let there = theirs.address(2, offset, 1).unwrap();
        // SAFETY: the other mapping of the same byte, which is written above and no more.
        assert_eq!(unsafe { std::ptr::with_exposed_provenance::<u8>(there).read() }, 7);
        assert_eq!(mine.offset_of(2, at.wrapping_add(4999), 2), None);
        assert_eq!(mine.offset_of(0, at, 1), None);
        assert_eq!(theirs.address(2, 4999, 2), None);
        assert_eq!(theirs.address(2, usize::MAX, 2), None);

        for member in 0..3 {
            assert!(!theirs.is_unused());
            mine.give_back(member);
        }
        assert!(theirs.is_unused());
        // SAFETY: as above; the part is mapped still.
        assert_eq!(unsafe { std::ptr::with_exposed_provenance::<u8>(there).read() }, 0, "its memory is gone");
        assert!(Allocation::open(&[10, 0, 500_000], &fd).unwrap_err().to_string().contains("bytes"));
        assert!(Allocation::create(&[usize::MAX, 1], true).is_err());
    }

    #[test]
    fn a_gate_that_is_shut_lets_nobody_in() {
        let (memory, _fd) = Allocation::create(&[1, 1], true).unwrap();
        let gate = memory.gate(1);
        assert!(gate.enter() && !gate.is_empty());
        std::thread::scope(|s| {
            let owner = s.spawn(|| memory.take_back(1));
            while gate.shut.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            assert!(!gate.enter() && !owner.is_finished());
            gate.leave();
        });
        assert!(gate.is_empty() && memory.gate(0).enter());
    }
}
