//! Registered buffers: memory of the caller's that the ranks of its host can read where it lies.
//!
//! One-sided schedules have every rank publish what the others need, by copying it into memory that they share. A buffer
//! made by [`Communicator::alloc`] is such memory, so what lies in it is not copied; see the engine's `loans` for when.
//! Nothing else differs: it goes wherever a slice goes, mixed with ordinary memory as one likes, and each rank may
//! choose for itself. Where ranks do not share memory it is ordinary memory.

use std::alloc::Layout;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use maypole_collectives::{Element, ReduceOp};
use maypole_transports::LinkError;
use maypole_transports::fork::Own;
use maypole_transports::shm::Allocation;

use super::build::World;
use super::{Communicator, Inner};
use crate::engine::loans::Loans;
use crate::error::{Error, Result};

/// A buffer that the ranks of its host can read where it lies; made by [`Communicator::alloc`]. A slice in every other
/// respect.
///
/// Dropping it is this rank's affair alone: it waits for nobody, and its memory goes back to the system (the addresses
/// when the other ranks have dropped theirs or the communicator goes). It may outlive the communicator. A child by `fork` sees
/// the parent's memory itself, where it is shared, and not a copy: what either writes the other reads.
pub struct Registered<T> {
    elements: NonNull<[T]>,
    home: Home,
}

/// Whose memory it is.
enum Home {
    /// This member's part of an allocation.
    Shared(Own<Arc<Allocation>>, usize),
    /// Memory of this process.
    Own(Layout),
}

// SAFETY: it owns its elements as a Vec does; other ranks read them only while an operation has them borrowed.
unsafe impl<T: Send> Send for Registered<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Registered<T> {}

impl<T: Element> Registered<T> {
    fn shared(memory: Arc<Allocation>, member: usize, len: usize) -> Registered<T> {
        let at = memory.part(member).0.cast::<T>();
        let elements = NonNull::slice_from_raw_parts(at, len);
        Registered { elements, home: Home::Shared(Own::new(memory), member) }
    }

    /// Memory that nobody else sees, zero, aligned like the kernels like it.
    fn ordinary(rank: usize, len: usize) -> Result<Registered<T>> {
        let bytes = len.checked_mul(size_of::<T>());
        let layout = bytes.and_then(|bytes| Layout::from_size_align(bytes.max(1), 64).ok());
        let Some(layout) = layout else { return Err(too_long::<T>(rank, len)) };
        // SAFETY: the layout is of at least one byte.
        let at = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) });
        let at =
            at.ok_or_else(|| Error::system(format!("rank {rank} allocates {} bytes", layout.size()), "no memory"))?;
        Ok(Registered { elements: NonNull::slice_from_raw_parts(at.cast(), len), home: Home::Own(layout) })
    }
}

impl<T> Registered<T> {
    /// Where the elements lie, for operations that outlive a borrow.
    pub(super) fn elements(&self) -> NonNull<[T]> {
        self.elements
    }

    /// Whether other ranks can read it where it lies. Otherwise it is ordinary memory: its world has one rank, or ranks
    /// that share no memory.
    pub fn is_shared(&self) -> bool {
        matches!(self.home, Home::Shared(..))
    }
}

impl<T> Deref for Registered<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements, zero at first, which every element type allows, and this value's alone to write.
        unsafe { self.elements.as_ref() }
    }
}

impl<T> DerefMut for Registered<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { self.elements.as_mut() }
    }
}

impl<T: fmt::Debug> fmt::Debug for Registered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("elements", &&**self).field("shared", &self.is_shared()).finish()
    }
}

impl<T> Drop for Registered<T> {
    fn drop(&mut self) {
        match &self.home {
            // The parent of a child still has it.
            Home::Shared(memory, _) if !memory.is_ours() => {}
            Home::Shared(memory, member) => memory.give_back(*member),
            // SAFETY: allocated with this layout in `ordinary`, and given back only here.
            Home::Own(layout) => unsafe { std::alloc::dealloc(self.elements.as_ptr().cast(), *layout) },
        }
    }
}

/// What a rank says that cannot take part; no length is as large.
const NOT_POSSIBLE: u64 = u64::MAX;

impl Communicator {
    /// A buffer of `len` elements, all zero, that the other ranks of this host can read where it lies. Every rank must
    /// call it; lengths and types may differ, 0 too. Blocks until all have.
    ///
    /// Only operations of this communicator gain by it (not those of its children): where they would copy the buffer
    /// into shared memory they do not, if its blocks have 32 KiB or more. They then return when the other ranks have
    /// read it.
    ///
    /// # Errors
    /// [`Error::Argument`] for a length that no memory can have, [`Error::System`] where there is not enough memory, on
    /// every rank if on one: nothing is left behind, and the communicator stays usable. [`Error::Failed`] as everywhere.
    pub fn alloc<T: Element>(&self, len: usize) -> Result<Registered<T>> {
        let inner = &*self.inner;
        inner.owner.check()?;
        let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= isize::MAX as usize);
        // One at a time, so that allocations have the same numbers on every rank.
        let mut number = inner.allocations.lock();
        *number += 1;
        let mut lengths = vec![0u64; inner.size];
        self.all_gather(&[bytes.map_or(NOT_POSSIBLE, |bytes| bytes as u64)], &mut lengths)?;
        if bytes.is_none() {
            return Err(too_long::<T>(inner.rank, len));
        }
        if let Some(rank) = lengths.iter().position(|length| *length == NOT_POSSIBLE) {
            return Err(Error::system("allocating a registered buffer", format!("rank {rank} asked for too much")));
        }
        if !inner.shares_memory || inner.size == 1 {
            return Registered::ordinary(inner.rank, len);
        }
        let lengths: Vec<usize> = lengths.into_iter().map(|length| length as usize).collect();
        let memory = self.share(*number, &lengths);
        // So that a rank may use the buffer at once: all others know it now. And nobody has one if not all have.
        let mut fine = [u8::from(memory.is_ok())];
        let told = self.all_reduce_in_place(&mut fine, ReduceOp::Min);
        if let World::Processes(node) = &inner.world {
            node.unshare_fd(inner.context, *number as u32);
        }
        if fine != [1] || told.is_err() {
            // Where it has failed, nobody will look there.
            let _ = inner.with_loans(|loans| loans.remove(*number));
            if let World::Threads(threads) = &inner.world {
                threads.forget_allocation(inner.context, *number);
            }
        }
        let memory = memory?;
        told?;
        match fine {
            [1] => Ok(Registered::shared(memory, inner.rank, len)),
            _ => Err(Error::system("allocating a registered buffer", "another rank has no memory for its part")),
        }
    }

    /// Make allocation `number` with the others and have the engine know it.
    fn share(&self, number: u64, lengths: &[usize]) -> Result<Arc<Allocation>> {
        let inner = &*self.inner;
        let system = |e: LinkError| Error::system(format!("rank {} allocates a registered buffer", inner.rank), e);
        let memory = match &inner.world {
            World::Alone => unreachable!("a world of one shares nothing"),
            World::Threads(threads) => threads.allocation(inner.context, number, lengths).map_err(system)?,
            World::Processes(node) => {
                // Rank 0 makes the memory. Whether it could is told before the others come for it.
                let made = (inner.rank == 0).then(|| Allocation::create(lengths, false));
                let mut there = [u8::from(!matches!(made, Some(Err(_))))];
                self.broadcast(&mut there, 0)?;
                let (memory, fd) = match made {
                    Some(made) => {
                        let (memory, fd) = made.map_err(system)?;
                        let own = fd.try_clone().map_err(|e| Error::system("dup", e))?;
                        node.share_fd(inner.context, number as u32, own);
                        (memory, fd)
                    }
                    None if there == [0] => {
                        return Err(Error::system("allocating a registered buffer", "rank 0 could not make it"));
                    }
                    None => {
                        let within = inner.config.connect_timeout;
                        let fd = node.fetch_fd(inner.members[0], inner.context, number as u32, within)?;
                        (Allocation::open(lengths, &fd).map_err(system)?, fd)
                    }
                };
                memory.commit(inner.rank, fd.as_fd()).map_err(system)?;
                memory
            }
        };
        inner.with_loans(|loans| loans.add(number, memory.clone()))?;
        Ok(memory)
    }
}

impl Inner {
    /// Have the engine's loans changed, between two operations.
    ///
    /// # Errors
    /// Those of [`Inner::between`].
    fn with_loans(&self, change: impl FnOnce(&mut Loans)) -> Result<()> {
        self.between(|work| change(&mut work.engine.links.loans))
    }
}

fn too_long<T: Element>(rank: usize, len: usize) -> Error {
    let what = format!("alloc: {len} elements of {} are more bytes than there are addresses", T::DTYPE);
    Error::Argument { rank, what }
}
