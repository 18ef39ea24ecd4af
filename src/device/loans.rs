//! Device buffers that others read where they lie: publications that lend in place of copying. As
//! [`crate::engine::loans`], which says when; here the reader's kernel finds the lender's memory in a table.
//!
//! # What can be lent
//!
//! Registered memory always, as all ranks have mapped it. Where all ranks are threads with one context, every buffer is
//! lent, registered or not: an address means the same to all of them, so the loan's offset is the address itself
//! ([`ANYWHERE`]). This rank's scratch is no exception, since operations of a communicator share it one after the other, and
//! a lender's operation ends when all have read. So memory of threads moves as few bytes as registered memory.
//!
//! # Rounds
//!
//! What passes the window is cut into rounds by its length. Nothing of what is lent passes it, so an operation all of whose
//! publications are lent, by all ranks, has one round, however long it is: an exchange costs microseconds, and the kernels
//! of a round some more. But each rank sees only its own buffers, and all must cut alike, so it must follow from what
//! all know ([`Loans::all_lend`]). Among threads with one context it does: they lend everything. Otherwise the caller
//! promises it for all ranks ([`OnStream::registered`](crate::cuda::OnStream::registered)). Ranks could agree by asking each
//! other, but a call would then wait until all others have come to it, and calls on streams return. That an operation
//! is not cut is part of its fingerprint: ranks of which some promise find out before a byte is read.
//!
//! # What a reader may call a result
//!
//! A lender's stream waits until all others are done with what it lent, and only then comes to whatever the caller has
//! queued behind, which may write it. Under a verdict nobody is waited for: the stream is let go, or an operation of
//! which not all could be queued ends without that wait ([`Device::tear`](super::state::Device::tear)). A reader's
//! kernel may then find bytes of the lender's next work. But before either, the lender's host has set the word
//! `released`, which all ranks of the host share and which stays set. Whoever waits for an operation's end looks at it
//! *after* the end has come, before it says that there is a result ([`Sentry`](super::sentry::Sentry)). Suppose that
//! the reader's kernel found such a byte: `released` was stored before the word that let the lender's stream go (the
//! same host, in this order), that before the kernel which wrote the byte, that before the reader's kernel ended, and
//! that before the reader's stream wrote `ended`, with a barrier of system scope in front. So who sees that end sees
//! `released` too. It is the argument of the gate on the host
//! ([`allocation`](maypole_transports::shm::allocation)), with one gate for all.
//!
//! Dropped memory is no way around it: it goes back to the driver only when every rank has dropped its part and closed
//! its mapping of the others' ([`super::registered`], [`super::limbo`]), so no reader ever finds another's data there. A
//! buffer that is not registered and belongs to this library goes back when no operation of the process is outstanding,
//! where ranks are threads. Memory of others may be lent only there, and `cuMemFree` waits for all that is on the device. What
//! is given back in a stream's order (`cuMemFreeAsync`) is not: after a failure the caller waits for the device first, as
//! [`super::on`] says.
//! A caller that waits for the stream by means of its own, and never asks the communicator, is not told of any failure.

use maypole_collectives::ReduceOp;
use maypole_collectives::algorithms::Algorithm;
use maypole_collectives::schedule::{Collective, Region};
use maypole_cuda::peer::ANYWHERE;

use crate::Call;
use crate::engine::bound::Bound;
use crate::engine::loans::{LEND_FROM, Loan};

/// This rank's part of an allocation.
struct Part {
    /// The allocation's place in everybody's tables.
    number: usize,
    address: u64,
    bytes: usize,
}

/// What ranks can read of each other's memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lendable {
    /// Nothing: they are on several hosts, or exchange through host memory.
    Nothing,
    /// What is registered.
    Registered,
    /// Everything: they are threads with one context, and an address means the same to all of them.
    Everything,
}

/// This rank's memory that others can read.
pub(crate) struct Loans {
    lendable: Lendable,
    /// Registered memory.
    parts: Vec<Part>,
}

impl Loans {
    pub fn new(lendable: Lendable) -> Loans {
        Loans { lendable, parts: Vec::new() }
    }

    /// From now on the `bytes` bytes at `address` can be lent, as allocation `number`.
    pub fn add(&mut self, number: usize, address: u64, bytes: usize) {
        self.parts.push(Part { number, address, bytes });
    }

    /// Allocation `number` is no more.
    pub fn remove(&mut self, number: usize) {
        self.parts.retain(|part| part.number != number);
    }

    /// Whether every rank lends all that it publishes of an operation on blocks of `block` bytes. All ranks say the same:
    /// they know it of the operation, and of its memory because there is no other or because the caller promises it
    /// (`registered`). A rank on which it does not hold then refuses the call ([`Loans::lend`] has lent less).
    ///
    /// Not of a call that is in place on some ranks and cannot lend there, but for all-to-all, whose input is copied first
    /// then: where everything can be lent, the copy is.
    pub fn all_lend(&self, algorithm: Algorithm, call: &Call, block: usize, registered: bool) -> bool {
        let Call { collective, op, .. } = *call;
        // The scaled copy is no registered memory.
        let scaled = collective.reduces() && matches!(op, ReduceOp::PreMulSum(_));
        let lends = algorithm.lends_in_place(collective) || algorithm.one_sided() && collective == Collective::AllToAll;
        let known = match self.lendable {
            Lendable::Nothing => false,
            Lendable::Registered => registered && !scaled,
            Lendable::Everything => true,
        };
        known && block >= LEND_FROM && lends
    }

    fn locate(&self, at: u64, bytes: usize) -> Option<Loan> {
        if self.lendable == Lendable::Everything {
            return Some(Loan { allocation: ANYWHERE as u64, offset: at, first: 0 });
        }
        self.parts.iter().find_map(|part| {
            let offset = at.checked_sub(part.address)?;
            let inside = offset as usize + bytes <= part.bytes;
            inside.then_some(Loan { allocation: part.number as u64, offset, first: 0 })
        })
    }

    /// As [`Links::lend`](crate::engine::links::Links::lend): have the operation lend what it publishes of these buffers,
    /// where that is worth its while and nothing overwrites them.
    pub fn lend(&self, bound: &mut Bound<'_>, algorithm: Algorithm, collective: Collective, blocks: [usize; 2]) {
        let block = bound.block();
        if self.lendable != Lendable::Everything && self.parts.is_empty() || block < LEND_FROM || !algorithm.one_sided()
        {
            return;
        }
        let buffers = [bound.input, bound.output.cast_const()].map(<*const u8>::addr);
        let ends = [0, 1].map(|side| buffers[side] + blocks[side] * block);
        let in_place = buffers[0] < ends[1] && buffers[1] < ends[0];
        if in_place && !algorithm.lends_in_place(collective) {
            return;
        }
        let locate = |side: usize| match blocks[side] {
            0 => None,
            count => self.locate(buffers[side] as u64, count * block),
        };
        bound.loans = [locate(0), locate(1)];
    }
}

/// The loan that stands for a publication of `src`, if it is lent.
pub(super) fn loan_of(bound: &Bound<'_>, src: Region) -> Option<Loan> {
    // A loan says where the first chunk lies; readers know how far from it the others do if the chunks begin with a block,
    // as they all do that are more than one.
    bound.loan(src).filter(|_| src.first == 0 || src.len == 1)
}
