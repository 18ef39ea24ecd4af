//! The smallest all-reduces and barriers: one exchange instead of a schedule.
//!
//! What an interpreter costs is more than two cores need to pass a line to each other. So where all ranks share memory
//! and the vector fits into an [`Exchange`](maypole_transports::shm::Exchange), every rank publishes its vector and
//! folds all of them in rank order, as the one-shot schedule does; `tests/small.rs` checks that both give the same
//! bits.

use maypole_collectives::{DataType, ReduceOp, reduce};
use maypole_transports::LinkError;
use maypole_transports::shm::{Exchange, line::Seen};

use super::Engine;
use super::lane::Trouble;
use super::links::Links;
use super::wait::{Court, Questions, Wait};
use crate::error::Result;
use crate::fingerprint::Fingerprint;

/// The most bytes that take this path.
pub(crate) const MOST: usize = Exchange::BODY;

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
    /// All-reduce `count` elements by one exchange. The caller has checked that there is an exchange and that the
    /// vector fits.
    ///
    /// # Safety
    /// `input` is readable and `output` writable for `count` elements of `dtype`; they are the same or apart.
    pub unsafe fn small_all_reduce(
        &mut self,
        (operation, digest): (&Fingerprint, u32),
        (dtype, op): (DataType, ReduceOp),
        count: usize,
        (input, output): (*const u8, *mut u8),
    ) -> Result<()> {
        let bytes = count * dtype.size();
        let Engine { links, court, questions, vectors, .. } = self;
        let [Vector(sum), Vector(next)] = &mut **vectors;
        // SAFETY: the caller's promise; the borrow ends before `output`, which may be the same memory, is written.
        let mine = unsafe { std::slice::from_raw_parts(input, bytes) };
        let mut part = Participant::publish((links, court, questions), (operation, digest), mine)?;
        let (me, last) = (part.links.me, part.links.size - 1);
        let mut first = input;
        for rank in 0..=last {
            let into = if rank == 0 { &mut *sum } else { &mut *next };
            let theirs = if rank == me { input } else { part.read(rank, &mut into[..bytes])? };
            if rank == 0 {
                first = theirs;
                continue;
            }
            let to = if rank == last { output } else { sum.as_mut_ptr() };
            // SAFETY: all three have `count` elements. `to` is the first operand or apart from both, except that the
            // output may be the input: then it is one of the operands, or the input has been folded in already.
            unsafe { reduce::reduce(op, dtype, to, first, theirs, count) };
            first = sum.as_ptr();
        }
        part.finish();
        Ok(())
    }

    /// Wait until every rank has come.
    pub fn small_barrier(&mut self, (operation, digest): (&Fingerprint, u32)) -> Result<()> {
        let Engine { links, court, questions, .. } = self;
        let mut part = Participant::publish((links, court, questions), (operation, digest), &[])?;
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
        (links, court, questions): (&'a mut Links, &'a Court, &'a mut Questions),
        (operation, digest): (&'a Fingerprint, u32),
        mine: &[u8],
    ) -> Result<Participant<'a>> {
        if court.watch.is_over() {
            return Err(court.failed());
        }
        let exchange = links.exchange();
        if mine.len() <= Exchange::CAPACITY {
            exchange.publish(digest, mine);
        } else {
            let body = exchange.body()[..mine.len()].as_mut_ptr();
            // SAFETY: the body has as many bytes and is apart from the caller's memory.
            unsafe { reduce::copy(body, mine.as_ptr(), mine.len(), true) };
            exchange.publish(digest, &[]);
        }
        Ok(Participant { links, court, operation, wait: Wait::new(court, operation, questions) })
    }

    /// Wait for rank `from`'s vector, as long as `into`; where it is then: in `into`, or in the body that it was
    /// published in, until this exchange is finished.
    #[inline]
    fn read(&mut self, from: usize, into: &mut [u8]) -> Result<*const u8> {
        if into.len() <= Exchange::CAPACITY {
            self.read_lines(from, into)?;
            return Ok(into.as_ptr());
        }
        self.read_lines(from, &mut [])?;
        Ok(self.links.exchange().body_of(from).as_ptr())
    }

    #[inline]
    fn read_lines(&mut self, from: usize, into: &mut [u8]) -> Result<()> {
        loop {
            match self.links.exchange().read(from, into) {
                Seen::All => break,
                Seen::NotYet => self.wait.nothing(self.links, Some(from))?,
                Seen::Other => return Err(self.court.disagree(self.operation, from, None)),
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
