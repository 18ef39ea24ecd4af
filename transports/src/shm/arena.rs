//! The file in which segments lie: that of a communicator and, behind it, those of its children and theirs.
//!
//! A file is handed from process to process once. After that its members agree on a place in it for less than it takes
//! to meet anew. Places are given out from the front, by a counter in the file's first page, and never again: a fresh
//! place is zero because nobody has written there. What lay in a place goes back to the system when the last of its
//! members has unmapped it; only offsets in the file are spent, of which there are enough for billions of segments.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{LinkError, Result};

pub(super) const PAGE: usize = 4096;

/// A memfd (not a file under /dev/shm, which containers keep small), open in this process.
#[derive(Debug)]
pub struct Arena {
    fd: OwnedFd,
    /// The file's first page: how many bytes of places have been given out.
    given_out: NonNull<AtomicU64>,
}

// SAFETY: the page belongs to this value, stays mapped until drop, and is touched as an atomic only.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

fn io(doing: &'static str) -> impl Fn(nix::Error) -> LinkError {
    move |e| LinkError::Io { doing, source: e.into() }
}

impl Arena {
    /// A new file without any segment.
    pub fn create() -> Result<Arc<Arena>> {
        Arena::open(memfd(PAGE)?)
    }

    /// The file of another process of this host.
    ///
    /// # Errors
    /// [`LinkError::Io`] when the file is none of these, or the system refuses the mapping.
    pub fn open(fd: OwnedFd) -> Result<Arc<Arena>> {
        check_size(&fd, PAGE)?;
        let given_out = map(PAGE, Some((&fd, 0)))?.cast();
        Ok(Arc::new(Arena { fd, given_out }))
    }

    /// The descriptor, to pass on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A place for `bytes` bytes: its offset in the file, never 0, for all its members to map.
    ///
    /// # Errors
    /// [`LinkError::Io`] when the system lets the file grow no further.
    pub fn reserve(&self, bytes: usize) -> Result<u64> {
        let bytes = bytes.next_multiple_of(PAGE) as u64;
        // SAFETY: `given_out` is mapped until drop.
        let before = unsafe { self.given_out.as_ref() }.fetch_add(bytes, Ordering::Relaxed);
        let at = PAGE as u64 + before;
        // The file grows by having its last page set aside. Setting its length could cut off what another process has
        // just reserved behind this.
        let last = (at + bytes) as i64 - PAGE as i64;
        let flags = nix::fcntl::FallocateFlags::empty();
        nix::fcntl::fallocate(&self.fd, flags, last, PAGE as i64).map_err(io("making room in shared memory"))?;
        Ok(at)
    }

    /// Map a place of `bytes` bytes.
    pub(super) fn map(&self, at: u64, bytes: usize) -> Result<NonNull<u8>> {
        check_size(&self.fd, at as usize + bytes)?;
        map(bytes, Some((&self.fd, at)))
    }

    /// Give the memory of a place back, which nobody has mapped any more.
    pub(super) fn discard(&self, at: u64, bytes: usize) {
        use nix::fcntl::FallocateFlags;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // Where the system does not do it, the memory goes with the file.
        let _ = nix::fcntl::fallocate(&self.fd, flags, at as i64, bytes as i64);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped in `open`, and used through this value only.
        let _ = unsafe { nix::sys::mman::munmap(self.given_out.cast(), PAGE) };
    }
}

/// A new memfd of `bytes` zero bytes.
pub(super) fn memfd(bytes: usize) -> Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let io = io("making shared memory (memfd_create)");
    let fd = memfd_create(c"maypole", MFdFlags::MFD_CLOEXEC).map_err(&io)?;
    nix::unistd::ftruncate(&fd, bytes as i64).map_err(&io)?;
    Ok(fd)
}

/// Check that a file that another process made has at least `bytes` bytes: touching what lies beyond its end would be
/// a signal.
pub(super) fn check_size(fd: &OwnedFd, bytes: usize) -> Result<()> {
    let doing = "opening shared memory";
    let size = nix::sys::stat::fstat(fd).map_err(io(doing))?.st_size;
    if (size as usize) < bytes {
        let what = format!("it has {size} bytes, but this rank's settings ask for {bytes}");
        return Err(LinkError::Io { doing, source: std::io::Error::other(what) });
    }
    Ok(())
}

/// Map `bytes` bytes, at least one, from an offset in a file, or of memory that only threads (and forks) of this
/// process share.
pub(super) fn map(bytes: usize, file: Option<(&OwnedFd, u64)>) -> Result<NonNull<u8>> {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
    let length = std::num::NonZeroUsize::new(bytes).expect("shared memory is never empty");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
    // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
    let mapped = unsafe {
        match file {
            Some((fd, at)) => mmap(None, length, access, flags, fd, at as i64),
            None => mmap_anonymous(None, length, access, flags),
        }
    };
    Ok(mapped.map_err(io("mapping shared memory"))?.cast())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::shm::{Group, Segment, Shape};

    /// 512-byte blocks of memory that the file takes up.
    fn blocks(arena: &Arena) -> i64 {
        nix::sys::stat::fstat(&arena.fd).unwrap().st_blocks
    }

    #[test]
    fn segments_lie_behind_each_other_and_go_with_their_last_member() {
        let shape = Shape { members: 2, channels: 1, second_bell_from: 1, ring: 64 << 10, window: 4096 };
        let ours = Arena::create().unwrap();
        let theirs = Arena::open(ours.fd().try_clone_to_owned().unwrap()).unwrap();
        let empty = blocks(&ours);
        let places = [ours.reserve(shape.bytes()).unwrap(), theirs.reserve(shape.bytes()).unwrap()];
        assert!(places[0] != 0 && places[1] >= places[0] + shape.bytes() as u64);
        let pairs = places.map(|at| {
            let sides = [&ours, &theirs].map(|arena| Segment::in_arena(shape, arena, at).unwrap());
            let mut place = 0;
            sides.map(|segment| {
                place += 1;
                Group::new(segment, place - 1)
            })
        });
        for (number, [one, other]) in pairs.iter().enumerate() {
            let (mut sender, mut receiver) = (one.sender(1, 0), other.receiver(0, 0));
            assert_eq!(sender.send(&vec![number as u8 + 1; 50_000]).unwrap(), 50_000);
            assert!(sender.end().unwrap());
            let mut got = vec![0; 50_000];
            assert_eq!(receiver.recv(&mut got).unwrap(), 50_000);
            assert!(got.iter().all(|x| *x == number as u8 + 1), "places overlap");
        }
        assert!(blocks(&ours) >= empty + 2 * 50_000 / 512);
        let [[one, other], second] = pairs;
        drop(one);
        assert!(!other.absent().contains(&0) && blocks(&ours) >= empty + 2 * 50_000 / 512);
        drop(other);
        assert!(blocks(&ours) < empty + 2 * 50_000 / 512, "the first segment's memory is back");
        drop(second);
        assert_eq!(blocks(&ours), PAGE as i64 / 512, "only the page of the counter is left");
        assert!(Segment::in_arena(shape, &ours, places[1] + 1_000_000_000).is_err(), "beyond the end of the file");
    }
}
