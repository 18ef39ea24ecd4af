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

use super::memory::{self, page};
use crate::{LinkError, Result};

/// A memfd, open in this process.
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

fn too_far(at: u64, bytes: usize) -> LinkError {
    let what = format!("{bytes} bytes from {at} on reach beyond the addresses that there are");
    LinkError::Io { doing: "finding room in shared memory", source: std::io::Error::other(what) }
}

/// Where `bytes` bytes from `at` on end, if a file can be as long.
fn end(at: u64, bytes: usize) -> Result<u64> {
    let end = at.checked_add(bytes as u64).filter(|end| i64::try_from(*end).is_ok());
    end.ok_or_else(|| too_far(at, bytes))
}

impl Arena {
    /// A new file without any segment.
    ///
    /// # Errors
    /// [`LinkError::Io`] when the system allows no memfds: the text says what forbids them.
    pub fn create() -> Result<Arc<Arena>> {
        Arena::open(memory::memfd(page(), true)?)
    }

    /// The file of another process of this host.
    ///
    /// # Errors
    /// [`LinkError::Io`] when the file is none of these, or the system refuses the mapping.
    pub fn open(fd: OwnedFd) -> Result<Arc<Arena>> {
        memory::check(&fd, page())?;
        let given_out = memory::map_apart(page(), Some((&fd, 0)))?.cast();
        Ok(Arc::new(Arena { fd, given_out }))
    }

    /// The descriptor, to pass on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where the first place lies.
    pub(super) fn first() -> u64 {
        page() as u64
    }

    /// A place for `bytes` bytes: its offset in the file, never 0, for all its members to map.
    ///
    /// # Errors
    /// [`LinkError::Io`] when the system lets the file grow no further, or has not the memory where it must be set aside.
    pub fn reserve(&self, bytes: usize) -> Result<u64> {
        let bytes = bytes.next_multiple_of(page());
        // SAFETY: `given_out` is mapped until drop.
        let before = unsafe { self.given_out.as_ref() }.fetch_add(bytes as u64, Ordering::Relaxed);
        let at = end(before, page())?;
        // The file grows by having its last page set aside. Setting its length could cut off what another process has
        // just reserved behind this.
        let last = end(at, bytes)? - page() as u64;
        memory::set_aside(&self.fd, last, page())?;
        if memory::is_strict() {
            memory::set_aside(&self.fd, at, bytes)?;
        }
        Ok(at)
    }

    /// Map a place of `bytes` bytes.
    pub(super) fn map(&self, at: u64, bytes: usize) -> Result<NonNull<u8>> {
        let end = usize::try_from(end(at, bytes)?).map_err(|_| too_far(at, bytes))?;
        memory::check(&self.fd, end)?;
        memory::map_apart(bytes, Some((&self.fd, at)))
    }

    /// Give the memory of a place back, which nobody has mapped any more.
    pub(super) fn discard(&self, at: u64, bytes: usize) {
        memory::give_back(&self.fd, at, bytes);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped in `open`, and used through this value only.
        let _ = unsafe { nix::sys::mman::munmap(self.given_out.cast(), page()) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::shm::{Group, Segment, Shape};

    /// 512-byte blocks of memory that the file takes up.
    fn blocks(arena: &Arena) -> i64 {
        nix::sys::stat::fstat(&arena.fd).unwrap().st_blocks
    }

    const SHAPE: Shape = Shape { members: 2, channels: 1, second_bell_from: 1, ring: 64 << 10, window: 4096 };

    #[test]
    fn with_large_pages_everything_that_is_mapped_lies_at_one() {
        memory::fake::PAGE.set(Some(64 << 10));
        let ours = Arena::create().unwrap();
        for _ in 0..3 {
            let at = ours.reserve(SHAPE.bytes()).unwrap();
            assert!(at.is_multiple_of(64 << 10) && SHAPE.bytes().is_multiple_of(64 << 10), "{at}");
            Segment::in_arena(SHAPE, &ours, at).unwrap();
        }
        memory::fake::PAGE.set(None);
    }

    #[test]
    fn what_the_system_does_not_promise_is_set_aside() {
        let lazy = Arena::create().unwrap();
        lazy.reserve(SHAPE.bytes()).unwrap();
        assert!(blocks(&lazy) * 512 <= 2 * page() as i64, "memory that nobody has touched");
        memory::fake::STRICT.set(true);
        let strict = Arena::create().unwrap();
        strict.reserve(SHAPE.bytes()).unwrap();
        memory::fake::STRICT.set(false);
        assert!(blocks(&strict) * 512 >= SHAPE.bytes() as i64, "a touch might be a signal");
    }

    #[test]
    fn nobody_can_shorten_what_is_shared_and_nothing_else_is_taken() {
        let arena = Arena::create().unwrap();
        let place = arena.reserve(SHAPE.bytes()).unwrap();
        nix::unistd::ftruncate(&arena.fd, 0).expect_err("its members would get a signal");
        Segment::in_arena(SHAPE, &arena, u64::MAX - 4096).expect_err("such a place does not exist");
        Segment::in_arena(SHAPE, &arena, i64::MAX as u64 & !4095).expect_err("nor does such a one");
        Segment::in_arena(SHAPE, &arena, place).unwrap();
        // SAFETY: makes a descriptor that is owned here.
        let plain = unsafe {
            let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC);
            <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd)
        };
        nix::unistd::ftruncate(&plain, 1 << 30).unwrap();
        let refusal = Arena::open(plain).unwrap_err().to_string();
        assert!(refusal.contains("not memory that Maypole made"), "{refusal}");
        let pipe = nix::unistd::pipe().unwrap().0;
        Arena::open(pipe).expect_err("a pipe");
    }

    /// Run `body` in a child, and how that ended.
    fn in_a_child(body: impl FnOnce()) -> i32 {
        // SAFETY: the child allocates at most, which the C library allows, and leaves by `_exit` or a signal.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            // SAFETY: no conditions.
            unsafe { libc::_exit(i32::from(done.is_err())) };
        }
        let mut status = 0;
        // SAFETY: the child made above.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        status
    }

    #[test]
    fn a_core_dump_takes_no_memory() {
        let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
        if pattern.is_empty() || pattern.contains(['|', '/']) {
            return println!(
                "skipped: a_core_dump_takes_no_memory: core dumps go to {pattern:?}, not to this directory"
            );
        }
        let shape = Shape { members: 8, ..SHAPE };
        let arena = Arena::create().unwrap();
        let place = arena.reserve(shape.bytes()).unwrap();
        let theirs = arena.fd.try_clone().unwrap();
        let before = blocks(&arena);
        let home = std::env::temp_dir().join(format!("maypole-core-{}", std::process::id()));
        std::fs::create_dir(&home).unwrap();
        let status = in_a_child(|| {
            std::env::set_current_dir(&home).unwrap();
            let (soft, hard) = (libc::RLIM_INFINITY, libc::RLIM_INFINITY);
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, soft, hard).unwrap();
            let _segment = Segment::in_arena(shape, &Arena::open(theirs).unwrap(), place).unwrap();
            std::process::abort();
        });
        let dumped = std::fs::read_dir(&home).unwrap().count();
        std::fs::remove_dir_all(&home).unwrap();
        if !libc::WCOREDUMP(status) || dumped == 0 {
            assert!(libc::WIFSIGNALED(status), "it did not abort");
            return println!("skipped: a_core_dump_takes_no_memory: the system wrote no core dump");
        }
        assert!(blocks(&arena) <= before, "{} blocks of 512 bytes, before {before}", blocks(&arena));
    }

    #[test]
    fn a_child_does_not_get_segments_mapped() {
        let arena = Arena::create().unwrap();
        let place = arena.reserve(SHAPE.bytes()).unwrap();
        let segment = Segment::in_arena(SHAPE, &arena, place).unwrap();
        let at = segment.bytes_at(0, 1).as_ptr().addr();
        let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
        let is_mapped = || maps().contains(&format!("{at:x}-"));
        assert!(is_mapped(), "{at:x} in {}", maps());
        assert_eq!(in_a_child(|| assert!(!is_mapped())), 0);
    }

    #[test]
    fn a_file_that_may_not_be_as_long_is_an_error() {
        let status = in_a_child(|| {
            let limit = 64 << 10;
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_FSIZE, limit, limit).unwrap();
            let arena = Arena::create().unwrap();
            let refusal = arena.reserve(SHAPE.bytes()).unwrap_err().to_string();
            assert!(refusal.contains("ulimit -f") && refusal.contains("MAYPOLE_TRANSPORT=tcp"), "{refusal}");
            crate::shm::Allocation::create(&[1 << 20], false).unwrap_err();
        });
        assert_eq!(status, 0, "it was a signal, or none");
    }

    #[test]
    fn addresses_that_are_refused_are_an_error() {
        let status = in_a_child(|| {
            let used = std::fs::read_to_string("/proc/self/statm").unwrap();
            let used = used.split(' ').next().unwrap().parse::<u64>().unwrap() * page() as u64;
            let limit = used + (1 << 30);
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_AS, limit, limit).unwrap();
            let shape = Shape { members: 64, ..SHAPE };
            let arena = Arena::create().unwrap();
            let map = || Segment::in_arena(shape, &arena, arena.reserve(shape.bytes())?);
            let segments: Vec<_> = (0..8).map(|_| map()).collect();
            assert!(segments[0].is_ok() && segments[7].is_err(), "{segments:?}");
            crate::shm::Allocation::create(&[2 << 30], false).unwrap_err();
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn segments_lie_behind_each_other_and_go_with_their_last_member() {
        let shape = SHAPE;
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
        assert_eq!(blocks(&ours), page() as i64 / 512, "only the page of the counter is left");
        assert!(Segment::in_arena(shape, &ours, places[1] + 1_000_000_000).is_err(), "beyond the end of the file");
    }
}
