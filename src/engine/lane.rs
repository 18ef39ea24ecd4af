//! One lane of a schedule as it runs: a state machine that does as much of its steps as links allow, and says for whom
//! it waits.

use std::ops::Range;

use maypole_collectives::reduce;
use maypole_collectives::schedule::{Buffer, Operands, Region, Schedule, Step};
use maypole_transports::{LinkError, Receiver, Sender};

use super::bound::Bound;
use super::links::{Links, WINDOW_HEADER};
use super::loans::Loan;
use crate::fingerprint::Fingerprint;

/// The most bytes that a fused step moves before it looks at its other side again: small enough to stay in the
/// first-level caches on the way through.
const MORSEL: usize = 32 << 10;

/// Where in a publication's header its [`Loan`] stands, behind the fingerprint.
const LOAN: Range<usize> = size_of::<Fingerprint>()..size_of::<Fingerprint>() + size_of::<Loan>();
const _: () = assert!(LOAN.end <= WINDOW_HEADER);

/// Why a lane cannot go on.
pub(crate) enum Trouble {
    /// The link to this rank failed.
    Link(usize, LinkError),
    /// This rank's first message was for another operation than `ours`.
    Mismatch { peer: usize, ours: Fingerprint, theirs: Fingerprint },
    /// Something that is already an error of this crate.
    Error(crate::Error),
}

/// How far a lane has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing could be done: it waits for this rank (`None`: for several).
    Blocked(Option<usize>),
    /// Something was done.
    Moved,
    /// The lane is at its end.
    Done,
}

/// A lane in the middle of its work.
pub(crate) struct Lane<'a> {
    schedule: &'a dyn Schedule,
    lane: usize,
    channel: usize,
    bound: &'a Bound<'a>,
    operation: &'a Fingerprint,
    /// Identifies this operation to the links, so that each knows whether it has been opened for it.
    stamp: u64,
    steps: usize,
    round: usize,
    index: usize,
    current: Option<Step>,
    /// Position within the current step: which chunk of its region, and how many of the chunk's bytes are in and out.
    chunk: usize,
    got: usize,
    sent: usize,
    /// Publications made in this round.
    published: usize,
}

impl<'a> Lane<'a> {
    pub fn new(
        (schedule, lane): (&'a dyn Schedule, usize),
        bound: &'a Bound<'a>,
        operation: &'a Fingerprint,
        stamp: u64,
    ) -> Lane<'a> {
        let steps = schedule.steps(lane);
        let channel = schedule.channel(lane);
        let round = if steps == 0 { bound.rounds } else { 0 };
        Lane {
            schedule,
            lane,
            channel,
            bound,
            operation,
            stamp,
            steps,
            round,
            index: 0,
            current: None,
            chunk: 0,
            got: 0,
            sent: 0,
            published: 0,
        }
    }

    /// Do as much as can be done now.
    pub fn advance(&mut self, links: &mut Links) -> Result<Progress, Trouble> {
        let mut moved = false;
        while self.round < self.bound.rounds {
            let step = match self.current {
                Some(step) => step,
                None => *self.current.insert(self.schedule.step(self.lane, self.index)),
            };
            let before = (self.chunk, self.got, self.sent);
            let progress = if self.round > 0 && self.is_nothing(step) { None } else { self.step(step, links)? };
            match progress {
                None => {
                    moved = true;
                    self.current = None;
                    (self.chunk, self.got, self.sent) = (0, 0, 0);
                    self.index += 1;
                    if self.index == self.steps {
                        self.index = 0;
                        self.round += 1;
                        self.published = 0;
                    }
                }
                Some(waits_for) => {
                    moved |= before != (self.chunk, self.got, self.sent);
                    return Ok(if moved { Progress::Moved } else { Progress::Blocked(waits_for) });
                }
            }
        }
        Ok(Progress::Done)
    }

    /// Whether a step of a later round has no bytes left to move, which both ends of a link know alike: then it moves no
    /// message either. So short blocks beside a long one cost their own rounds and no more.
    fn is_nothing(&self, step: Step) -> bool {
        let Some(message) = step.message() else { return false };
        message.len > 0 && (0..message.len).all(|i| self.bound.of(message, i, self.round).1 == 0)
    }

    /// What the first message of the operation on a link is announced as: where only the two ends know how long it is,
    /// with that length.
    #[inline]
    fn announced(&self, message: Region) -> Fingerprint {
        match self.bound.counted_by_pair {
            false => *self.operation,
            true => self.operation.of_pair(self.bound.count_of(message)),
        }
    }

    /// Go on with one step. `None`: it is complete; otherwise for whom it waits.
    fn step(&mut self, step: Step, links: &mut Links) -> Result<Option<Option<usize>>, Trouble> {
        let done = match step {
            Step::Send { to, src } => self.send(links, to, src)?.then_some(()).ok_or(Some(to)),
            Step::Recv { from, dst } => self.recv(links, from, dst)?.then_some(()).ok_or(Some(from)),
            Step::RecvReduce { from, local, order, dst } => {
                self.recv_reduce(links, from, (local, order, dst))?.then_some(()).ok_or(Some(from))
            }
            Step::RecvReduceSend { from, local, order, dst, to } => {
                self.recv_reduce_send(links, from, (local, order, dst), to)?.map_or(Ok(()), |who| Err(Some(who)))
            }
            Step::RecvCopySend { from, dst, to } => {
                self.recv_copy_send(links, from, dst, to)?.map_or(Ok(()), |who| Err(Some(who)))
            }
            Step::Copy { src, dst } => {
                self.copy(src, dst);
                Ok(())
            }
            Step::Reduce { a, b, dst } => {
                self.reduce(a, b, dst);
                Ok(())
            }
            Step::Publish { src } => self.publish(links, src)?.then_some(()).ok_or(None),
            Step::Fetch { from, nth, at, dst } => {
                self.fetch(links, (from, nth, at), None, dst)?.then_some(()).ok_or(Some(from))
            }
            Step::FetchReduce { from, nth, at, local, order, dst } => {
                self.fetch(links, (from, nth, at), Some((local, order)), dst)?.then_some(()).ok_or(Some(from))
            }
        };
        Ok(done.err())
    }

    fn send(&mut self, links: &mut Links, to: usize, src: Region) -> Result<bool, Trouble> {
        let Some(tx) = links.open_sender(to, self.channel, self.stamp, &self.announced(src))? else { return Ok(false) };
        while self.chunk < src.len {
            let (at, bytes) = self.bound.of(src, self.chunk, self.round);
            // SAFETY: the region lies in a buffer of this call, which nothing writes while this step sends it (the
            // verifier's promise).
            let rest = unsafe { std::slice::from_raw_parts(at.add(self.sent), bytes - self.sent) };
            self.sent += put(tx, rest, self.bound.stream_from).map_err(|e| Trouble::Link(to, e))?;
            if self.sent < bytes {
                return Ok(false);
            }
            (self.chunk, self.sent) = (self.chunk + 1, 0);
        }
        tx.end().map_err(|e| Trouble::Link(to, e))?;
        Ok(true)
    }

    fn recv(&mut self, links: &mut Links, from: usize, dst: Region) -> Result<bool, Trouble> {
        let operation = self.announced(dst);
        let Some(rx) = links.open_receiver(from, self.channel, self.stamp, &operation)? else { return Ok(false) };
        while self.chunk < dst.len {
            let (at, bytes) = self.bound.of(dst, self.chunk, self.round);
            // SAFETY: the region lies in the output or scratch of this call, and nothing else touches it during this
            // step.
            let rest = unsafe { std::slice::from_raw_parts_mut(at.add(self.got), bytes - self.got) };
            self.got += rx.recv(rest).map_err(|e| Trouble::Link(from, e))?;
            if self.got < bytes {
                return Ok(false);
            }
            (self.chunk, self.got) = (self.chunk + 1, 0);
        }
        rx.end();
        Ok(true)
    }

    fn recv_reduce(
        &mut self,
        links: &mut Links,
        from: usize,
        (local, order, dst): (Region, Operands, Region),
    ) -> Result<bool, Trouble> {
        let Some(rx) = links.open_receiver(from, self.channel, self.stamp, self.operation)? else { return Ok(false) };
        let aside = self.bound.aside(self.lane);
        while self.chunk < dst.len {
            let (to, bytes) = self.bound.of(dst, self.chunk, self.round);
            let (mine, _) = self.bound.of(local, self.chunk, self.round);
            if let Some(aside) = aside
                && bytes > 0
            {
                // SAFETY: the memory aside is as long as a slice, and this lane's.
                if !unsafe { collect(rx, aside, (&mut self.got, bytes)) }.map_err(|e| Trouble::Link(from, e))? {
                    return Ok(false);
                }
                // SAFETY: all three have `bytes` bytes; what is aside is apart from the others.
                unsafe { combine(self.bound, to, mine, aside, order, bytes, false) };
            }
            while self.got < bytes {
                let there = rx.peek().map_err(|e| Trouble::Link(from, e))?;
                let n = whole(there.len().min(bytes - self.got), self.bound);
                if n == 0 {
                    return Ok(false);
                }
                // SAFETY: n bytes from `got` lie within both chunks' slices; `there` is the link's memory, apart from
                // both.
                unsafe { combine(self.bound, to.add(self.got), mine.add(self.got), there.as_ptr(), order, n, false) };
                rx.release(n);
                self.got += n;
            }
            (self.chunk, self.got) = (self.chunk + 1, 0);
        }
        rx.end();
        Ok(true)
    }

    /// `Ok(Some(rank))`: waits for that rank.
    fn recv_reduce_send(
        &mut self,
        links: &mut Links,
        from: usize,
        (local, order, dst): (Region, Operands, Option<Region>),
        to: usize,
    ) -> Result<Option<usize>, Trouble> {
        let Some((rx, tx)) = links.open_both(from, to, self.channel, self.stamp, self.operation)? else {
            return Ok(Some(links.unopened(from, to, self.channel, self.stamp)));
        };
        let shared = tx.is_shared();
        let aside = self.bound.aside(self.lane);
        while self.chunk < local.len {
            let (mine, bytes) = self.bound.of(local, self.chunk, self.round);
            if let Some(aside) = aside {
                // Collected, combined where it goes or else in its place, and sent from there.
                let result = dst.map_or(aside, |dst| self.bound.of(dst, self.chunk, self.round).0);
                if self.got < bytes {
                    // SAFETY: the memory aside is as long as a slice, and this lane's.
                    if !unsafe { collect(rx, aside, (&mut self.got, bytes)) }.map_err(|e| Trouble::Link(from, e))? {
                        return Ok(Some(from));
                    }
                    // SAFETY: all three have `bytes` bytes; what is aside is apart from the others,
                    // but it may be where the result goes.
                    unsafe { combine(self.bound, result, mine, aside, order, bytes, false) };
                }
                // SAFETY: the result has so many bytes, which nothing writes before they are sent.
                let rest = unsafe { std::slice::from_raw_parts(result.add(self.sent), bytes - self.sent) };
                self.sent += put(tx, rest, self.bound.stream_from).map_err(|e| Trouble::Link(to, e))?;
                if self.sent < bytes {
                    return Ok(Some(to));
                }
            }
            while self.got < bytes {
                let there = rx.peek().map_err(|e| Trouble::Link(from, e))?;
                let room = tx.reserve().map_err(|e| Trouble::Link(to, e))?;
                let most = (bytes - self.got).min(MORSEL);
                let n = whole(there.len().min(room.len()).min(most), self.bound);
                if n == 0 {
                    return Ok(Some(if there.is_empty() { from } else { to }));
                }
                let room = room.as_mut_ptr();
                let around_caches = shared && n >= self.bound.stream_from;
                // SAFETY: n bytes from `got` lie within the chunks' slices; the two links' memory is apart from them
                // and from each other.
                unsafe {
                    let mine = mine.add(self.got);
                    match dst {
                        None => combine(self.bound, room, mine, there.as_ptr(), order, n, around_caches),
                        Some(dst) => {
                            let keep = self.bound.of(dst, self.chunk, self.round).0.add(self.got);
                            combine(self.bound, keep, mine, there.as_ptr(), order, n, false);
                            reduce::copy(room, keep, n, around_caches);
                        }
                    }
                }
                rx.release(n);
                tx.commit(n);
                self.got += n;
            }
            (self.chunk, self.got, self.sent) = (self.chunk + 1, 0, 0);
        }
        rx.end();
        tx.end().map_err(|e| Trouble::Link(to, e))?;
        Ok(None)
    }

    fn recv_copy_send(
        &mut self,
        links: &mut Links,
        from: usize,
        dst: Region,
        to: usize,
    ) -> Result<Option<usize>, Trouble> {
        let Some((rx, tx)) = links.open_both(from, to, self.channel, self.stamp, self.operation)? else {
            return Ok(Some(links.unopened(from, to, self.channel, self.stamp)));
        };
        while self.chunk < dst.len {
            let (at, bytes) = self.bound.of(dst, self.chunk, self.round);
            while self.sent < bytes {
                let before = (self.got, self.sent);
                let most = (bytes - self.got).min(MORSEL);
                // SAFETY: [got, got + most) of the chunk's slice is written by nobody else and read only below, after
                // it was received.
                let into = unsafe { std::slice::from_raw_parts_mut(at.add(self.got), most) };
                self.got += rx.recv(into).map_err(|e| Trouble::Link(from, e))?;
                // SAFETY: [sent, got) of the chunk's slice has been received, and the borrow above has ended.
                let onward = unsafe { std::slice::from_raw_parts(at.add(self.sent), self.got - self.sent) };
                self.sent += put(tx, onward, self.bound.stream_from).map_err(|e| Trouble::Link(to, e))?;
                if before == (self.got, self.sent) {
                    return Ok(Some(if self.got == self.sent { from } else { to }));
                }
            }
            (self.chunk, self.got, self.sent) = (self.chunk + 1, 0, 0);
        }
        rx.end();
        tx.end().map_err(|e| Trouble::Link(to, e))?;
        Ok(None)
    }

    fn copy(&self, src: Region, dst: Region) {
        for i in 0..src.len {
            let (from, _) = self.bound.of(src, i, self.round);
            let (to, bytes) = self.bound.of(dst, i, self.round);
            if from != to {
                // SAFETY: both slices lie in this call's buffers; different chunks do not overlap, equal ones were just
                // excluded.
                unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
            }
        }
    }

    fn reduce(&self, a: Region, b: Region, dst: Region) {
        for i in 0..dst.len {
            let (to, bytes) = self.bound.of(dst, i, self.round);
            let ((a, _), (b, _)) = (self.bound.of(a, i, self.round), self.bound.of(b, i, self.round));
            // SAFETY: all slices lie in this call's buffers and have the same length; `dst` is one of the others or
            // apart from both.
            unsafe { self.bound.reduce(to, a, b, bytes) };
        }
    }

    fn publish(&mut self, links: &mut Links, src: Region) -> Result<bool, Trouble> {
        let me = links.me;
        let window = links.window();
        let Some(place) = window.reserve().map_err(|e| Trouble::Link(me, e))? else { return Ok(false) };
        place[..size_of::<Fingerprint>()].copy_from_slice(bytemuck::bytes_of(self.operation));
        let loan = self.bound.loan(src);
        place[LOAN].copy_from_slice(bytemuck::bytes_of(&loan.unwrap_or(Loan::NONE)));
        let copied = if loan.is_none() { src.len } else { 0 };
        for i in 0..copied {
            let (from, bytes) = self.bound.of(src, i, self.round);
            let to = place[WINDOW_HEADER + i * self.bound.stride..][..bytes].as_mut_ptr();
            // SAFETY: the slice lies in a buffer of this call, apart from the window's memory.
            unsafe { reduce::copy(to, from, bytes, bytes >= self.bound.stream_from) };
        }
        window.publish();
        links.publications[me] += 1;
        self.published += 1;
        Ok(true)
    }

    fn fetch(
        &self,
        links: &mut Links,
        (from, nth, at): (usize, usize, usize),
        local: Option<(Region, Operands)>,
        dst: Region,
    ) -> Result<bool, Trouble> {
        // Publications of others are fetched in order, each once; this rank's own are counted when they are made.
        let own = from == links.me;
        let number = links.publications[from] - if own { (self.published - nth) as u64 } else { 0 };
        let window = links.window();
        let Some(place) = window.fetch(from, number).map_err(|e| Trouble::Link(from, e))? else { return Ok(false) };
        let theirs: &Fingerprint = bytemuck::from_bytes(&place[..size_of::<Fingerprint>()]);
        if theirs != self.operation {
            return Err(Trouble::Mismatch { peer: from, ours: *self.operation, theirs: *theirs });
        }
        let loan: Loan = bytemuck::pod_read_unaligned(&place[LOAN]);
        if loan == Loan::NONE {
            for i in 0..dst.len {
                let bytes = self.bound.of(dst, i, self.round).1;
                let there = &place[WINDOW_HEADER + (at + i) * self.bound.stride..][..bytes];
                // SAFETY: the window's memory is apart from this call's buffers, and not written before `done`.
                unsafe { self.take_in(dst, i, there.as_ptr(), local) };
            }
        } else if dst.len > 0 {
            let Some(borrowed) = links.loans.borrow(from, &loan)? else { return Ok(false) };
            for i in 0..dst.len {
                let bytes = self.bound.of(dst, i, self.round).1;
                let offset = self.bound.offset(loan.first as usize + at + i, self.round);
                let there = borrowed.address(offset, bytes)?;
                // SAFETY: the address lies in the owner's part, which stays mapped. The owner does not write it before
                // `done`. If the operation has failed on its side, a thread waits until it is not borrowed any more;
                // another process does not, and then these may be any bytes, which every element type allows and
                // nobody gets to see, as follows. What it lends of this rank's own is apart from `dst`.
                unsafe { self.take_in(dst, i, there, local) };
            }
            // Otherwise what lies in `dst` may be what the owner wrote after its operation had failed. This one cannot
            // succeed any more either: the gate stays shut, so this rank waits here until it is told why.
            if !borrowed.is_intact() {
                return Ok(false);
            }
        }
        links.window().done(from, number);
        if !own {
            links.publications[from] += 1;
        }
        Ok(true)
    }

    /// Copy into chunk `i` of `dst` what lies at `there`, or reduce it with this rank's operand.
    ///
    /// # Safety
    /// `there` is readable for the bytes of that chunk's slice, and apart from this call's output and scratch.
    #[inline]
    unsafe fn take_in(&self, dst: Region, i: usize, there: *const u8, local: Option<(Region, Operands)>) {
        let (to, bytes) = self.bound.of(dst, i, self.round);
        match local {
            None => {
                let around_caches = self.bound.large && dst.buffer == Buffer::Output;
                // SAFETY: the slice lies in this call's output or scratch; the rest is the caller's promise.
                unsafe { reduce::copy(to, there, bytes, around_caches) }
            }
            Some((local, order)) => {
                let (mine, _) = self.bound.of(local, i, self.round);
                // SAFETY: as above; `mine` is a slice of this call's buffers of the same length.
                unsafe { combine(self.bound, to, mine, there, order, bytes, false) };
            }
        }
    }
}

/// Put as much of `bytes` on a link as it takes now; returns how much. Into memory that the receiver shares, pieces of
/// at least `stream_from` bytes go around the caches.
#[inline]
pub(crate) fn put(tx: &mut dyn Sender, bytes: &[u8], stream_from: usize) -> Result<usize, LinkError> {
    if !tx.is_shared() || bytes.len() < stream_from {
        return tx.send(bytes);
    }
    let mut taken = 0;
    while taken < bytes.len() {
        let room = tx.reserve()?;
        let n = room.len().min(bytes.len() - taken);
        if n == 0 {
            break;
        }
        // SAFETY: both are slices of at least n bytes, the room a mutable one of the link's own.
        unsafe { reduce::copy(room.as_mut_ptr(), bytes[taken..].as_ptr(), n, n >= stream_from) };
        tx.commit(n);
        taken += n;
    }
    Ok(taken)
}

/// Take what is there of a slice of `bytes` bytes, of which `got` have come; whether all have.
///
/// # Safety
/// `into` is writable for `bytes` bytes, and nobody else's.
unsafe fn collect(rx: &mut dyn Receiver, into: *mut u8, (got, bytes): (&mut usize, usize)) -> Result<bool, LinkError> {
    // SAFETY: the caller's promise.
    let rest = unsafe { std::slice::from_raw_parts_mut(into.add(*got), bytes - *got) };
    *got += rx.recv(rest)?;
    Ok(*got == bytes)
}

/// The largest multiple of the element size that `bytes` holds.
#[inline]
fn whole(bytes: usize, bound: &Bound<'_>) -> usize {
    bytes & !(bound.dtype.size() - 1)
}

/// `to` = `mine` ⊕ `theirs`, or the other way round; stored around the caches if so asked.
///
/// # Safety
/// All three are valid for `bytes` bytes, a multiple of the element size; `to` may be `mine`, and is otherwise apart
/// from both.
#[inline]
unsafe fn combine(
    bound: &Bound<'_>,
    to: *mut u8,
    mine: *const u8,
    theirs: *const u8,
    order: Operands,
    bytes: usize,
    around_caches: bool,
) {
    let (a, b) = match order {
        Operands::LocalFirst => (mine, theirs),
        Operands::PeerFirst => (theirs, mine),
    };
    // SAFETY: passed on to the caller.
    unsafe {
        if around_caches {
            reduce::reduce_non_temporal(bound.op, bound.dtype, to, a, b, bytes / bound.dtype.size());
        } else {
            bound.reduce(to, a, b, bytes);
        }
    }
}
