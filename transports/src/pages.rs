//! Buffers straight from the kernel.
//!
//! Buffers of links and scratch memory are large and mostly touched in part. An allocator that
//! clears what it hands out makes all of such a buffer resident where it takes it from memory that
//! was used before (glibc does so for ever larger sizes, once large ones have been freed), and
//! keeps it after it was freed. A mapping of its own costs what was touched, and nothing once it is
//! dropped.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// A buffer of zeros that belongs to whoever has it; a page that was never touched takes no memory.
#[derive(Debug)]
pub struct Pages {
    at: NonNull<c_void>,
    len: usize,
}

// SAFETY: plain memory, reached through this value only.
unsafe impl Send for Pages {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for Pages {}

impl Pages {
    /// `len` bytes, at least one, that will be used from one end to the other.
    ///
    /// # Errors
    /// The system has no memory or no room for another mapping.
    pub fn new(len: usize) -> io::Result<Pages> {
        let bytes = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping, wherever the kernel likes.
        let at = unsafe { mmap_anonymous(None, bytes, access, flags) }?;
        Ok(Pages { at, len })
    }

    /// The same for a buffer of which little will mostly be used.
    ///
    /// # Errors
    /// Those of [`Pages::new`].
    pub fn sparse(len: usize) -> io::Result<Pages> {
        let pages = Pages::new(len)?;
        // A huge page would take the memory of several buffers for the first byte of one. A hint.
        // SAFETY: the mapping was just made, and the advice changes nothing that can be read.
        let _ = unsafe { madvise(pages.at, len, MmapAdvise::MADV_NOHUGEPAGE) };
        Ok(pages)
    }
}

impl Deref for Pages {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped there, zeros or what was written, for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr().cast(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing borrows it any more.
        let _ = unsafe { munmap(self.at, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of the mapping at `pages` that are resident.
    fn resident(pages: &Pages) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux");
        let start = format!("{:x}-", pages.at.as_ptr() as usize);
        let mapping = maps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = mapping.into_iter().find_map(|line| line.strip_prefix("Rss:"));
        rss.and_then(|rss| rss.split_whitespace().next()?.parse().ok()).expect("the mapping is listed")
    }

    #[test]
    fn a_buffer_costs_what_was_touched() {
        // What an allocator does with such sizes once some were freed.
        (0..20).for_each(|i| drop(std::hint::black_box(vec![1u8; i << 20])));
        let mut pages = Pages::sparse(32 << 20).unwrap();
        pages[5_000_000] = 7;
        assert_eq!((pages[5_000_000], pages[5_000_001], pages.len()), (7, 0, 32 << 20));
        assert!(resident(&pages) <= 64, "{} KiB", resident(&pages));
    }
}
