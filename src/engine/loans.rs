//! Registered buffers as the engine sees them: publications that lend in place of copying.
//!
//! A publication normally is a copy in the window, and its publisher may overwrite the original at once. Where the
//! original lies in registered memory, which the other members have mapped, it can be *lent*: the publication says where
//! it is, and the others read it there. Each rank decides that for itself, publication by publication. A lender that
//! has come to the end of an operation waits until all others are done with its publications, and only then gives its
//! caller the buffer back.
//!
//! A lent buffer must not change while the operation runs. Out of place that is so for inputs, which are never written,
//! and for what is published of an output, which is complete. In place a later step could overwrite what others still
//! read; [`Algorithm::lends_in_place`] says where none does, and the verifier checks it.
//!
//! Where an operation fails, a lender goes on without its readers. What a reader in another process has taken in then
//! counts only if the lender's gate was open afterwards; the argument is with
//! [`Allocation`](maypole_transports::shm::allocation).

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use maypole_collectives::algorithms::Algorithm;
use maypole_collectives::schedule::Collective;
use maypole_transports::LinkError;
use maypole_transports::shm::Allocation;

use super::bound::Bound;
use super::lane::Trouble;
use super::links::Links;

/// The smallest block, in bytes, of an operation that lends: below it copying costs less than waiting for the others.
pub(crate) const LEND_FROM: usize = 32 << 10;

/// Where the buffer of a publication lies in its owner's part of registered memory. Travels in the publication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Loan {
    /// Number of the allocation on the communicator, from 1; 0: nothing is lent, the publication is a copy.
    pub allocation: u64,
    /// Where in the owner's part the buffer begins.
    pub offset: u64,
    /// The first chunk of the buffer that is published.
    pub first: u64,
}

impl Loan {
    /// The publication is a copy.
    pub const NONE: Loan = Loan { allocation: 0, offset: 0, first: 0 };
}

/// Another rank's buffer while it is read. A thread of this process cannot take it back meanwhile; another process can,
/// and then it is no longer [intact](Borrowed::is_intact).
pub(crate) struct Borrowed<'a> {
    memory: &'a Allocation,
    from: usize,
    loan: Loan,
}

impl Borrowed<'_> {
    /// Where `bytes` bytes from `offset` of the buffer lie, to be read before this value is dropped.
    ///
    /// # Errors
    /// [`Trouble::Link`] if they lie outside the owner's part.
    #[inline]
    pub fn address(&self, offset: usize, bytes: usize) -> Result<*const u8, Trouble> {
        let within = (self.loan.offset as usize).checked_add(offset);
        let at = within.and_then(|offset| self.memory.address(self.from, offset, bytes));
        // The owner may be a thread of this process: then it has exposed the address, and this is that very memory.
        at.map(std::ptr::with_exposed_provenance).ok_or_else(|| astray(self.from, &self.loan))
    }

    /// Whether all that was read so far is what its owner had lent. To be asked when everything is read, and before any
    /// of it is passed on or the owner is told that this rank is done.
    #[inline]
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.memory.gate(self.from).is_open()
    }
}

impl Drop for Borrowed<'_> {
    #[inline]
    fn drop(&mut self) {
        self.memory.gate(self.from).leave();
    }
}

/// What a rank published as a loan makes no sense.
#[cold]
fn astray(from: usize, loan: &Loan) -> Trouble {
    let what = format!("{loan:?} is no memory that it has registered");
    let source = std::io::Error::other(what);
    Trouble::Link(from, LinkError::Io { doing: "reading a registered buffer", source })
}

/// The registered memory of a communicator whose ranks all share memory.
#[derive(Default)]
pub(crate) struct Loans {
    allocations: Vec<(u64, Arc<Allocation>)>,
}

impl Loans {
    /// From now on buffers in `allocation` can be lent and borrowed. It stays mapped until every member has given its
    /// part back: a member that uses its own no longer still reads the others'.
    pub fn add(&mut self, number: u64, allocation: Arc<Allocation>) {
        self.allocations.retain(|(_, known)| !known.is_unused());
        self.allocations.push((number, allocation));
    }

    /// Forget allocation `number`, which could not be made on every rank.
    pub fn remove(&mut self, number: u64) {
        self.allocations.retain(|(known, _)| *known != number);
    }

    /// Where `bytes` bytes from `at` lie, if they are rank `me`'s registered memory.
    fn locate(&self, me: usize, at: *const u8, bytes: usize) -> Option<Loan> {
        self.allocations.iter().find_map(|(allocation, memory)| {
            let offset = memory.offset_of(me, at, bytes)? as u64;
            // Readers that are threads of this process read by the address alone.
            at.expose_provenance();
            Some(Loan { allocation: *allocation, offset, first: 0 })
        })
    }

    /// Begin to read what rank `from` lends. `None`: it has taken it back, because the operation has failed.
    ///
    /// # Errors
    /// [`Trouble::Link`] if this rank knows nothing of the memory.
    pub fn borrow(&self, from: usize, loan: &Loan) -> Result<Option<Borrowed<'_>>, Trouble> {
        let known = self.allocations.iter().find(|(number, _)| *number == loan.allocation);
        let Some((_, memory)) = known else { return Err(astray(from, loan)) };
        // Made only once inside: dropping it leaves, and who was not let in must not.
        Ok(memory.gate(from).enter().then(|| Borrowed { memory, from, loan: *loan }))
    }

    /// An operation that lent failed: nobody reads rank `me`'s parts any more when this returns.
    #[cold]
    pub fn take_back(&self, me: usize) {
        self.allocations.iter().for_each(|(_, memory)| memory.take_back(me));
    }
}

impl Links {
    /// Have an operation by `algorithm` lend what it publishes of buffers that lie in registered memory and have as many
    /// `blocks` each (input, output), where that is worth its while and nothing overwrites them.
    pub fn lend(&self, bound: &mut Bound<'_>, algorithm: Algorithm, collective: Collective, blocks: [usize; 2]) {
        let block = bound.block();
        if self.loans.allocations.is_empty() || block < LEND_FROM || !algorithm.one_sided() {
            return;
        }
        let buffers = [bound.input, bound.output.cast_const()].map(<*const u8>::addr);
        let ends = [0, 1].map(|side| buffers[side] + blocks[side] * block);
        let in_place = buffers[0] < ends[1] && buffers[1] < ends[0];
        if in_place && !algorithm.lends_in_place(collective) {
            return;
        }
        let locate = |at, blocks| if blocks > 0 { self.loans.locate(self.me, at, blocks * block) } else { None };
        bound.loans = [locate(bound.input, blocks[0]), locate(bound.output.cast_const(), blocks[1])];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_let_in_does_not_leave() {
        let (memory, _fd) = Allocation::create(&[64, 64], true).unwrap();
        let mut loans = Loans::default();
        loans.add(1, memory.clone());
        let loan = Loan { allocation: 1, offset: 0, first: 0 };
        assert!(matches!(loans.borrow(1, &loan), Ok(Some(_))));
        loans.take_back(1);
        assert!(matches!(loans.borrow(1, &loan), Ok(None)));
        assert!(memory.gate(1).is_empty(), "the owner would wait for ever, or not for one who is inside");
    }
}
