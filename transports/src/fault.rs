//! Links that misbehave on purpose, to test what is built on links.
//!
//! A [`Fault`] says what goes wrong; [`Fault::sender`] and [`Fault::receiver`] wrap one end of any link with it. The
//! same fault over the same calls does the same thing: what is random comes from [`Fault::seed`].
//!
//! Delays and dribbling bend no promise of the [contract](crate): the conformance suite runs over wrapped links too. A
//! cut link ends like one whose peer is gone, on this side at once, and on the other because the wrapped end is
//! dropped.

use std::time::Duration;

use crate::{LinkError, Receiver, Result, Sender};

/// What is promised in one piece, however little a dribbling link moves.
const ELEMENT: usize = 64;

/// What goes wrong with one end of a link. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Fault {
    /// Each call first sleeps for a random time up to this.
    pub delay: Duration,
    /// Each call moves a random number of bytes up to this, at least one where the link could move any. Where bytes are
    /// read or written in place, 64 can be seen at once all the same, as the contract promises.
    pub dribble: Option<usize>,
    /// Where the link breaks.
    pub cut: Option<Cut>,
    /// Where the random numbers begin.
    pub seed: u64,
}

/// Where a link breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// After so many bytes: they pass, and the next call finds the link gone. Bytes handled in place pass in pieces of
    /// up to 64, so a cut within such a piece comes before it.
    Sever(u64),
    /// Like `Sever`, but a sender does not notice: it takes the rest of the message, and only after the message's end
    /// is the link gone. A receiver cannot help noticing, for it `Truncate` is `Sever`.
    Truncate(u64),
}

impl Fault {
    /// Every call is late by up to `delay`.
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// At most `bytes` bytes a call.
    pub fn dribble(bytes: usize) -> Self {
        Self { dribble: Some(bytes), ..Self::default() }
    }

    /// Break as `cut` says.
    pub fn cut(cut: Cut) -> Self {
        Self { cut: Some(cut), ..Self::default() }
    }

    /// The same fault with other random numbers.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// `inner` with this fault.
    pub fn sender(&self, inner: Box<dyn Sender>) -> Box<dyn Sender> {
        let credit = inner.credit();
        Box::new(FaultySender { course: Course::new(self), inner: Some(inner), credit, void: vec![0; 4096] })
    }

    /// `inner` with this fault.
    pub fn receiver(&self, inner: Box<dyn Receiver>) -> Box<dyn Receiver> {
        Box::new(FaultyReceiver { course: Course::new(self), inner: Some(inner) })
    }
}

/// The fault as it unfolds over the calls of one end.
struct Course {
    fault: Fault,
    moved: u64,
    random: u64,
}

impl Course {
    fn new(fault: &Fault) -> Self {
        Self { fault: fault.clone(), moved: 0, random: fault.seed }
    }

    /// The next number of the splitmix64 sequence (Steele, Lea and Flood, "Fast splittable pseudorandom number
    /// generators", 2014).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn delay(&mut self) {
        if !self.fault.delay.is_zero() {
            let nanoseconds = self.random() % (self.fault.delay.as_nanos() as u64 + 1);
            std::thread::sleep(Duration::from_nanos(nanoseconds));
        }
    }

    /// Bytes until the cut.
    fn until_cut(&self) -> usize {
        match self.fault.cut {
            Some(Cut::Sever(at) | Cut::Truncate(at)) => at.saturating_sub(self.moved) as usize,
            None => usize::MAX,
        }
    }

    /// Bytes that this call may move, at least `least` unless the cut is nearer.
    fn allowance(&mut self, least: usize) -> usize {
        let dribble = match self.fault.dribble {
            Some(most) => 1 + self.random() as usize % most.max(1),
            None => usize::MAX,
        };
        dribble.max(least).min(self.until_cut())
    }

    fn gone(&self) -> LinkError {
        LinkError::Gone { detail: format!("cut on purpose after {} bytes, by a test's fault", self.moved) }
    }
}

struct FaultySender {
    course: Course,
    /// `None` once the link is cut.
    inner: Option<Box<dyn Sender>>,
    credit: usize,
    /// Where the bytes behind a truncation go.
    void: Vec<u8>,
}

impl FaultySender {
    /// Whether bytes now vanish, up to the message's end.
    fn truncating(&self) -> bool {
        matches!(self.course.fault.cut, Some(Cut::Truncate(_))) && self.inner.is_some() && self.course.until_cut() == 0
    }

    /// Pass on what was sent before the cut, so that exactly that arrives, and drop the link.
    fn sever(&mut self) -> LinkError {
        if let Some(mut inner) = self.inner.take() {
            // What does not pass at once is lost: so it is with cut links.
            let _ = inner.end();
        }
        self.course.gone()
    }

    fn sever_if_due(&mut self) -> Result<()> {
        if self.inner.is_none() || (self.course.until_cut() == 0 && !self.truncating()) {
            return Err(self.sever());
        }
        Ok(())
    }
}

impl Sender for FaultySender {
    fn credit(&self) -> usize {
        self.credit
    }

    fn reserve(&mut self) -> Result<&mut [u8]> {
        self.course.delay();
        self.sever_if_due()?;
        if self.truncating() {
            return Ok(&mut self.void);
        }
        let allowance = self.course.allowance(ELEMENT);
        if allowance < ELEMENT {
            return Err(self.sever());
        }
        let Some(inner) = &mut self.inner else { return Err(self.course.gone()) };
        let room = inner.reserve()?;
        let len = room.len().min(allowance);
        Ok(&mut room[..len])
    }

    fn commit(&mut self, len: usize) {
        if !self.truncating()
            && let Some(inner) = &mut self.inner
        {
            inner.commit(len);
            self.course.moved += len as u64;
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        self.course.delay();
        self.sever_if_due()?;
        if self.truncating() {
            return Ok(bytes.len());
        }
        let allowance = self.course.allowance(1);
        let Some(inner) = &mut self.inner else { return Err(self.course.gone()) };
        let n = inner.send(&bytes[..bytes.len().min(allowance)])?;
        self.course.moved += n as u64;
        Ok(n)
    }

    fn end(&mut self) -> Result<bool> {
        self.course.delay();
        if self.truncating() {
            self.sever();
            return Ok(true);
        }
        match &mut self.inner {
            Some(inner) => inner.end(),
            None => Err(self.course.gone()),
        }
    }

    fn flush(&mut self) -> Result<bool> {
        self.course.delay();
        match &mut self.inner {
            Some(inner) => inner.flush(),
            None => Err(self.course.gone()),
        }
    }
}

struct FaultyReceiver {
    course: Course,
    /// `None` once the link is cut.
    inner: Option<Box<dyn Receiver>>,
}

impl FaultyReceiver {
    /// The link, unless it is cut or due to be.
    fn inner(&mut self) -> Result<&mut Box<dyn Receiver>> {
        if self.course.until_cut() == 0 {
            self.inner = None;
        }
        self.inner.as_mut().ok_or_else(|| self.course.gone())
    }
}

impl Receiver for FaultyReceiver {
    fn peek(&mut self) -> Result<&[u8]> {
        self.course.delay();
        let allowance = self.course.allowance(ELEMENT);
        // Asked twice because a borrow that is returned on one path only lasts over both.
        if allowance < ELEMENT && self.inner()?.peek()?.len() > allowance {
            self.inner = None;
        }
        let there = self.inner()?.peek()?;
        Ok(&there[..there.len().min(allowance)])
    }

    fn release(&mut self, len: usize) {
        if let Some(inner) = &mut self.inner {
            inner.release(len);
            self.course.moved += len as u64;
        }
    }

    fn recv(&mut self, into: &mut [u8]) -> Result<usize> {
        self.course.delay();
        let allowance = self.course.allowance(1);
        let len = into.len().min(allowance);
        let n = self.inner()?.recv(&mut into[..len])?;
        self.course.moved += n as u64;
        Ok(n)
    }

    fn end(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.end();
        }
    }

    fn absorb(&mut self) -> Result<bool> {
        self.course.delay();
        self.inner()?.absorb()
    }

    fn is_behind(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.is_behind())
    }

    fn is_empty(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.is_empty())
    }
}
