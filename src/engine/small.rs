//! The smallest all-reduces and barriers: one exchange of cache lines instead of a schedule.
//!
//! What an interpreter costs is more than two cores need to pass a line to each other. So where all ranks share memory and the vector fits
//! into an [`Exchange`](maypole_transports::shm::Exchange), every rank publishes its vector and folds all of them in rank order, as the
//! one-shot schedule does; `tests/small.rs` checks that both give the same bits.

use maypole_collectives::{DataType, ReduceOp, reduce};
use maypole_transports::LinkError;
use maypole_transports::shm::{Exchange, line::Seen};

use super::Engine;
use super::lane::Trouble;
use super::links::Links;
use super::wait::{Court, Wait};
use crate::error::Result;
use crate::fingerprint::Fingerprint;

/// The most bytes that take this path.
pub(crate) const MOST: usize = Exchange::CAPACITY;

/// A vector aligned for the kernels.
#[repr(align(64))]
pub(crate) struct Vector([u8; MOST]);

impl Vector {
    /// The running result and the next operand.
    pub fn pair() -> Box<[Vector; 2]> {
        Box::new([Vector([0; MOST]), Vector([0; MOST])])
    }
}

impl Engine {
    /// All-reduce `count` elements by one exchange. The caller has checked that there is an exchange and that the vector fits.
    ///
    /// # Safety
    /// `input` is readable and `output` writable for `count` elements of `dtype`; they are the same or apart.
    pub unsafe fn small_all_reduce(
        &mut self,
        operation: &Fingerprint,
        (dtype, op): (DataType, ReduceOp),
        count: usize,
        (input, output): (*const u8, *mut u8),
    ) -> Result<()> {
        let bytes = count * dtype.size();
        let Engine { links, court, vectors, .. } = self;
        let [Vector(sum), Vector(next)] = &mut **vectors;
        // SAFETY: the caller's promise; the borrow ends before `output`, which may be the same memory, is written.
        let mine = unsafe { std::slice::from_raw_parts(input, bytes) };
        let mut part = Participant::publish(links, court, operation, mine)?;
        for rank in 0..part.links.size {
            let theirs = match (rank == part.links.me, rank) {
                (true, 0) => {
                    sum[..bytes].copy_from_slice(mine);
                    continue;
                }
                (true, _) => input,
                (false, 0) => {
                    part.read(0, &mut sum[..bytes])?;
                    continue;
                }
                (false, _) => {
                    part.read(rank, &mut next[..bytes])?;
                    next.as_ptr()
                }
            };
            let sum = sum.as_mut_ptr();
            // SAFETY: `sum` and `theirs` have `count` elements and are apart.
            unsafe { reduce::reduce(op, dtype, sum, sum, theirs, count) };
        }
        part.finish();
        // SAFETY: `output` is writable for `bytes` bytes; `sum` is the engine's own.
        unsafe { std::ptr::copy_nonoverlapping(sum.as_ptr(), output, bytes) };
        Ok(())
    }

    /// Wait until every rank has come.
    pub fn small_barrier(&mut self, operation: &Fingerprint) -> Result<()> {
        let mut part = Participant::publish(&mut self.links, &self.court, operation, &[])?;
        let me = part.links.me;
        for rank in (0..part.links.size).filter(|r| *r != me) {
            part.read(rank, &mut [])?;
        }
        part.finish();
        Ok(())
    }
}

/// A rank in the middle of an exchange.
struct Participant<'a> {
    links: &'a mut Links,
    court: &'a Court,
    operation: &'a Fingerprint,
    wait: Wait<'a>,
}

impl<'a> Participant<'a> {
    #[inline]
    fn publish(
        links: &'a mut Links,
        court: &'a Court,
        operation: &'a Fingerprint,
        mine: &[u8],
    ) -> Result<Participant<'a>> {
        if court.watch.raised() {
            return Err(court.failed());
        }
        links.exchange().publish(operation.digest(), mine);
        Ok(Participant { links, court, operation, wait: Wait::new(court, operation, true) })
    }

    /// Wait for rank `from`'s vector and copy it out.
    #[inline]
    fn read(&mut self, from: usize, into: &mut [u8]) -> Result<()> {
        loop {
            match self.links.exchange().read(from, into) {
                Seen::All => break,
                Seen::NotYet => self.wait.nothing(self.links, Some(from))?,
                Seen::Other => return Err(self.court.disagree(self.operation, from)),
            }
            if self.wait.is_long() && self.links.exchange().has_left(from) {
                self.gone(from, into)?;
                break;
            }
        }
        self.wait.moved(self.links);
        Ok(())
    }

    /// Rank `from` has left: perhaps just after it had published.
    #[cold]
    fn gone(&mut self, from: usize, into: &mut [u8]) -> Result<()> {
        match self.links.exchange().read(from, into) {
            Seen::All => Ok(()),
            _ => {
                let gone = LinkError::Gone { detail: "it left the communicator".into() };
                Err(self.court.convict_for(Trouble::Link(from, gone), self.operation))
            }
        }
    }

    /// Everything is read: wake those that sleep on what was published.
    #[inline]
    fn finish(self) {
        self.links.exchange().settle();
    }
}
