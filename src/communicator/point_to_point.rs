//! Messages from one rank to another.
//!
//! They have a channel of their own, so they never mix with collectives, and are numbered per pair of ranks. A
//! message's first bytes are its fingerprint: if the receiver expects another count or type, every rank gets an error
//! that shows both sides.

use bytemuck::{cast_slice, cast_slice_mut};
use maypole_collectives::schedule::{Region, Schedule, Step};
use maypole_collectives::{DataType, Element, ReduceOp};

use super::call::Buffers;
use super::{Communicator, Inner, Work};
use crate::engine::Part;
use crate::engine::bound::Bound;
use crate::engine::routes::POINT_TO_POINT;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;

/// A schedule of one step.
struct Message(Step);

impl Schedule for Message {
    fn pieces(&self) -> usize {
        1
    }
    fn channel(&self, _lane: usize) -> usize {
        POINT_TO_POINT
    }
    fn steps(&self, _lane: usize) -> usize {
        1
    }
    fn step(&self, _lane: usize, _i: usize) -> Step {
        self.0
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// One direction of a point-to-point operation, in elements of `dtype`.
#[derive(Clone, Copy)]
pub(super) struct Direction {
    pub peer: usize,
    pub count: usize,
}

impl Communicator {
    /// Send `buffer` to rank `to`, which must [`recv`](Communicator::recv) as many elements of the same type. Returns
    /// when the buffer may be reused: small messages do not wait for the receiver.
    ///
    /// # Errors
    /// [`Error::Argument`] if `to` is this rank or none; [`Error::Failed`] as everywhere.
    pub fn send<T: Element>(&self, buffer: &[T], to: usize) -> Result<()> {
        let number = self.inner.turns.take();
        let buffers = Buffers { input: cast_slice::<T, u8>(buffer).as_ptr(), output: std::ptr::null_mut() };
        let send = Direction { peer: to, count: buffer.len() };
        // SAFETY: the buffer is borrowed until this returns.
        unsafe { self.inner.message(number, T::DTYPE, buffers, Some(send), None) }
    }

    /// Receive `buffer.len()` elements from rank `from`, which must [`send`](Communicator::send) as many. Blocks until
    /// they are there.
    pub fn recv<T: Element>(&self, buffer: &mut [T], from: usize) -> Result<()> {
        let number = self.inner.turns.take();
        let recv = Direction { peer: from, count: buffer.len() };
        let buffers = Buffers { input: std::ptr::null(), output: cast_slice_mut::<T, u8>(buffer).as_mut_ptr() };
        // SAFETY: the buffer is borrowed until this returns.
        unsafe { self.inner.message(number, T::DTYPE, buffers, None, Some(recv)) }
    }

    /// Send to one rank and receive from one (the same, or another) at the same time: a ring of ranks that all call
    /// this does not deadlock. `to` and `from` may both be this rank, which copies.
    pub fn send_recv<T: Element>(&self, send: &[T], to: usize, recv: &mut [T], from: usize) -> Result<()> {
        let number = self.inner.turns.take();
        let (there, back) = (Direction { peer: to, count: send.len() }, Direction { peer: from, count: recv.len() });
        let output = cast_slice_mut::<T, u8>(recv).as_mut_ptr();
        let buffers = Buffers { input: cast_slice::<T, u8>(send).as_ptr(), output };
        // SAFETY: both buffers are borrowed until this returns.
        unsafe { self.inner.message(number, T::DTYPE, buffers, Some(there), Some(back)) }
    }
}

impl Inner {
    /// # Safety
    /// `buffers.input` is readable for `send.count` elements and `buffers.output` writable for `recv.count`, unshared,
    /// until this returns.
    pub(super) unsafe fn message(
        &self,
        number: u64,
        dtype: DataType,
        buffers: Buffers,
        send: Option<Direction>,
        recv: Option<Direction>,
    ) -> Result<()> {
        let _ticket = self.turns.enter(number);
        // SAFETY: this thread holds the ticket to the end of the function.
        let work = unsafe { self.work() };
        let to_self = |d: &Option<Direction>| d.is_some_and(|d| d.peer == self.rank);
        let argument = |what: String| Err(Error::Argument { rank: self.rank, what });
        for (name, direction) in [("send", &send), ("recv", &recv)] {
            if let Some(d) = direction
                && d.peer >= self.size
            {
                return argument(format!("{name}: the peer is {}, but the ranks are 0 to {}", d.peer, self.size - 1));
            }
        }
        match (send, recv) {
            (Some(s), Some(r)) if to_self(&send) && to_self(&recv) => {
                if s.count != r.count {
                    return argument(format!(
                        "send_recv with itself: sends {} elements, but receives {}",
                        s.count, r.count
                    ));
                }
                // SAFETY: the caller's promise; the buffers are apart, since one is borrowed mutably.
                unsafe { std::ptr::copy_nonoverlapping(buffers.input, buffers.output, s.count * dtype.size()) };
                return Ok(());
            }
            _ if to_self(&send) || to_self(&recv) => {
                return argument("a rank sends to itself only by send_recv with itself on both sides".into());
            }
            _ => {}
        }
        if self.watch.raised() {
            return Err(work.engine.court.failed());
        }
        work.message(self.config.stream, dtype, buffers, send, recv)
    }
}

impl Work {
    fn message(
        &mut self,
        stream_from: usize,
        dtype: DataType,
        buffers: Buffers,
        send: Option<Direction>,
        recv: Option<Direction>,
    ) -> Result<()> {
        let slice = self.tuner.message_slice();
        let bind = |count| {
            let mut bound = Bound::new(dtype, ReduceOp::Sum, count, 1, slice, (buffers.input, buffers.output));
            bound.stream_from = stream_from;
            bound
        };
        let me = self.engine.court.me;
        let next = |counts: &mut [u64], d: Direction| {
            counts[d.peer] += 1;
            counts[d.peer]
        };
        let there = send.map(|d| {
            let step = Step::Send { to: d.peer, src: Region::input(0, 1) };
            let number = next(&mut self.sent, d);
            (Message(step), bind(d.count), Fingerprint::point_to_point(number, dtype, d.count, me, d.peer))
        });
        let back = recv.map(|d| {
            let step = Step::Recv { from: d.peer, dst: Region::output(0, 1) };
            let number = next(&mut self.received, d);
            (Message(step), bind(d.count), Fingerprint::point_to_point(number, dtype, d.count, d.peer, me))
        });
        match (&there, &back) {
            (Some(there), Some(back)) => self.engine.execute(&[part(there), part(back)]),
            (Some(one), None) | (None, Some(one)) => self.engine.execute(&[part(one)]),
            (None, None) => Ok(()),
        }
    }
}

fn part<'a>((schedule, bound, operation): &'a (Message, Bound<'a>, Fingerprint)) -> Part<'a> {
    Part { schedule, bound, operation }
}
