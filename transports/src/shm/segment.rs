//! The memory that a group shares, and where everything lies in it.
//!
//! One segment serves all ranks of a communicator on one host. It lies in a file that each process maps
//! ([`super::arena`]), or is an anonymous mapping where the ranks are threads. It is laid out
//! for every pair of ranks, but the kernel gives memory only to pages that are touched: a link costs nothing until it
//! is used.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::arena::Arena;
use super::memory::{self, page};
use crate::Result;

/// Sizes that all members of a segment must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many ranks share the segment.
    pub members: usize,
    /// Links per ordered pair of ranks.
    pub channels: usize,
    /// Links on channels from this one on ring the second of a member's two bells, all others and publications the
    /// first: so two threads of a rank can wait for different channels, and neither is woken by the other's news.
    pub second_bell_from: usize,
    /// Bytes of one link's ring; a power of two.
    pub ring: usize,
    /// Bytes of one publication; a multiple of 64.
    pub window: usize,
}

/// Parts of a segment that are used apart begin at multiples of this: where pages are as long, which is usual, one that
/// is not used takes no memory, and each lies near whoever uses it first.
const APART: usize = 4096;
/// Lines of one rank's small publication, see [`super::line`].
pub(super) const LINES: usize = 10;
/// Bytes of the body that takes what does not fit into the lines.
pub(super) const BODY: usize = 16 << 10;

const _: () = assert!(LINES * 64 <= APART);

impl Shape {
    /// Bytes of one set of lines and its body.
    const EXCHANGE: usize = (LINES * 64).next_multiple_of(APART) + BODY;

    /// Where each part begins; offsets in bytes.
    pub(super) fn bell(&self, member: usize, channel: usize) -> usize {
        member * 192 + if channel < self.second_bell_from { 0 } else { 64 }
    }
    pub(super) fn presence(&self, member: usize) -> usize {
        member * 192 + 128
    }
    /// How many members have unmapped the segment.
    fn unmapped(&self) -> usize {
        self.members * 192
    }
    fn lines_base(&self) -> usize {
        (self.unmapped() + 64).next_multiple_of(APART)
    }
    pub(super) fn lines(&self, member: usize, parity: usize) -> usize {
        self.lines_base() + (member * 2 + parity) * Self::EXCHANGE
    }
    pub(super) fn body(&self, member: usize, parity: usize) -> usize {
        self.lines(member, parity) + APART
    }
    fn windows_base(&self) -> usize {
        self.lines_base() + self.members * 2 * Self::EXCHANGE
    }
    fn window_stride(&self) -> usize {
        (64 + self.members * 64).next_multiple_of(APART) + 2 * self.window.next_multiple_of(APART)
    }
    pub(super) fn published(&self, member: usize) -> usize {
        self.windows_base() + member * self.window_stride()
    }
    pub(super) fn done(&self, member: usize, reader: usize) -> usize {
        self.published(member) + 64 + reader * 64
    }
    pub(super) fn place(&self, member: usize, parity: usize) -> usize {
        self.published(member)
            + (64 + self.members * 64).next_multiple_of(APART)
            + parity * self.window.next_multiple_of(APART)
    }
    fn rings_base(&self) -> usize {
        self.windows_base() + self.members * self.window_stride()
    }
    fn ring_stride(&self) -> usize {
        APART + self.ring.next_multiple_of(APART)
    }
    pub(super) fn ring_state(&self, from: usize, to: usize, channel: usize) -> usize {
        self.rings_base() + ((from * self.members + to) * self.channels + channel) * self.ring_stride()
    }
    pub(super) fn ring_data(&self, from: usize, to: usize, channel: usize) -> usize {
        self.ring_state(from, to, channel) + APART
    }
    /// Bytes of the whole segment, as addresses, a multiple of the page size; memory is taken only where it is touched.
    /// `usize::MAX` where there are not as many.
    pub fn bytes(&self) -> usize {
        let rings =
            [self.members, self.channels, self.ring_stride()].into_iter().fold(self.members, usize::saturating_mul);
        self.rings_base().saturating_add(rings).checked_next_multiple_of(page()).unwrap_or(usize::MAX)
    }
}

/// Mapped shared memory, zero at first; unmapped on drop.
#[derive(Debug)]
pub struct Segment {
    base: NonNull<u8>,
    shape: Shape,
    /// The file and the place in it; `None` where the members are threads.
    home: Option<(Arc<Arena>, u64)>,
}

// SAFETY: the mapping belongs to this value alone within the process and stays until drop; all access to its content
// goes through atomics or through pointers whose exclusive use the protocols of this module argue.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Memory for ranks that are threads of this process; not for its forks.
    pub fn anonymous(shape: Shape) -> Result<Arc<Segment>> {
        Segment::map(shape, None)
    }

    /// The first segment of a new file; pass its descriptor ([`Segment::fd`]) to the other processes, which
    /// [`Segment::open`] it.
    pub fn create(shape: Shape) -> Result<Arc<Segment>> {
        let arena = Arena::create()?;
        let at = arena.reserve(shape.bytes())?;
        Segment::map(shape, Some((arena, at)))
    }

    /// Map the first segment of a file that another process made. It must have been made with the same shape.
    ///
    /// # Errors
    /// [`LinkError::Io`](crate::LinkError::Io) when the file is shorter than the shape asks, or the system refuses the
    /// mapping.
    pub fn open(shape: Shape, fd: OwnedFd) -> Result<Arc<Segment>> {
        Segment::map(shape, Some((Arena::open(fd)?, Arena::first())))
    }

    /// Map a segment in a file that this process has open, at a place that one of its members has
    /// [reserved](Arena::reserve). Each member maps it once.
    ///
    /// # Errors
    /// As [`Segment::open`].
    pub fn in_arena(shape: Shape, arena: &Arc<Arena>, at: u64) -> Result<Arc<Segment>> {
        Segment::map(shape, Some((arena.clone(), at)))
    }

    fn map(shape: Shape, home: Option<(Arc<Arena>, u64)>) -> Result<Arc<Segment>> {
        assert!(shape.ring.is_power_of_two() && shape.window.is_multiple_of(64), "{shape:?}");
        let base = match &home {
            Some((arena, at)) => arena.map(*at, shape.bytes())?,
            None => memory::map_apart(shape.bytes(), None)?,
        };
        Ok(Arc::new(Segment { base, shape, home }))
    }

    /// The file it lies in, unless its members are threads.
    pub fn arena(&self) -> Option<&Arc<Arena>> {
        self.home.as_ref().map(|(arena, _)| arena)
    }

    /// The file's descriptor, to pass on.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.arena().map(|arena| arena.fd())
    }

    /// The sizes it was made with.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Pointer to `len` bytes at `offset`; panics where they do not lie inside.
    pub(super) fn bytes_at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.shape.bytes()), "beyond the segment");
        // SAFETY: in bounds of the mapping, as just checked.
        unsafe { self.base.add(offset) }
    }

    /// A `T` in the segment.
    ///
    /// # Safety
    /// `T` must be made of atomics only, for which all-zero bytes are valid, and every process must use the same `T` at
    /// this offset.
    pub(super) unsafe fn shared<T>(self: &Arc<Segment>, offset: usize) -> Shared<T> {
        let at = self.bytes_at(offset, size_of::<T>()).cast::<T>();
        assert!(at.is_aligned());
        Shared { at, _keep: self.clone() }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: an atomic in the mapping, at an offset that every member computes alike.
        let unmapped = unsafe { self.bytes_at(self.shape.unmapped(), 4).cast::<AtomicU32>().as_ref() };
        let last = unmapped.fetch_add(1, Ordering::AcqRel) as usize + 1 == self.shape.members;
        // SAFETY: the mapping was made in `map` with this length, and whatever points into it holds the Arc, so nothing
        // does any more.
        let _ = unsafe { nix::sys::mman::munmap(self.base.cast(), self.shape.bytes()) };
        if let Some((arena, at)) = self.home.as_ref().filter(|_| last) {
            arena.discard(*at, self.shape.bytes());
        }
    }
}

/// A reference to something in shared memory that keeps its memory mapped.
pub struct Shared<T> {
    at: NonNull<T>,
    _keep: Arc<dyn std::any::Any + Send + Sync>,
}

// SAFETY: a Shared is a reference to a T that other threads use at the same time, which T: Sync allows.
unsafe impl<T: Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl<T: Send + Sync + 'static> Shared<T> {
    /// A `T` on the heap behind the same face, for tests and model checks.
    pub fn from_arc(value: Arc<T>) -> Shared<T> {
        Shared { at: NonNull::from(&*value), _keep: value }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared { at: self.at, _keep: self._keep.clone() }
    }
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `at` points to a valid T in memory that `_keep` keeps.
        unsafe { self.at.as_ref() }
    }
}
