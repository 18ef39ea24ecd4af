//! Putting the segments back in order, which needs no memory: see the [parent module](super).

use std::io::IoSliceMut;
use std::time::{Duration, Instant};

use super::segment::{HEADER, SEGMENT, Segment, malformed};
use crate::tcp::connection::{Arrival, Closed};
use crate::tcp::halves::Incoming;
use crate::tcp::hold::Hold;
use crate::{LinkError, Result};

/// Bytes read at once where a header is expected: a small segment comes with its header.
const AHEAD: usize = 8 << 10;
/// One call brings at most about this much, so that a fast sender cannot keep it busy for ever.
const ENOUGH: usize = 2 * SEGMENT;
/// The peer closes all connections together. If one is closed and the others stay silent this long, they are as good as
/// closed.
const CLOSE_TOGETHER: Duration = Duration::from_secs(1);

/// The receiving side of a striped stream.
#[derive(Debug)]
pub(in crate::tcp) struct StripeIn {
    lanes: Vec<Lane>,
    /// Offset of the first byte of the stream that was not handed out.
    next: u64,
    /// The lane that had it last.
    current: usize,
    /// When the first connection was found closed.
    closing: Option<Instant>,
}

/// One connection.
#[derive(Debug)]
struct Lane {
    /// What was read ahead.
    ahead: Hold,
    /// The segment at the head, if its header was read.
    head: Option<Segment>,
    /// Offset after the last segment: a later one begins here or further on.
    least: u64,
    closed: Option<Closed>,
}

/// Where the bytes are wanted: in two places, one after the other.
struct Demand<'a> {
    first: &'a mut [u8],
    rest: &'a mut [u8],
    got: usize,
}

impl Demand<'_> {
    fn left(&self) -> usize {
        self.first.len() + self.rest.len() - self.got
    }

    /// The next `len` bytes' places.
    fn places(&mut self, len: usize) -> [&mut [u8]; 2] {
        let (cut, from, to) = (self.first.len(), self.got, self.got + len);
        [&mut self.first[from.min(cut)..to.min(cut)], &mut self.rest[from.max(cut) - cut..to.max(cut) - cut]]
    }
}

impl StripeIn {
    pub fn new(connections: usize) -> Self {
        let lane = |_| Lane { ahead: Hold::new(AHEAD), head: None, least: 0, closed: None };
        Self { lanes: (0..connections).map(lane).collect(), next: 0, current: 0, closing: None }
    }

    /// Whether a connection has ended and the others may follow.
    pub fn is_ending(&self) -> bool {
        self.closing.is_some()
    }

    /// Fill `first` and then `rest` with the stream's next bytes, as far as they are there; returns how many.
    pub fn read(&mut self, incoming: &mut Incoming, first: &mut [u8], rest: &mut [u8]) -> Result<usize> {
        let mut demand = Demand { first, rest, got: 0 };
        // An error after some bytes would lose them, so it is left for the next call, which finds it again.
        match self.advance(incoming, &mut demand) {
            Err(_) if demand.got > 0 => Ok(demand.got),
            outcome => outcome.map(|()| demand.got),
        }
    }

    fn advance(&mut self, incoming: &mut Incoming, demand: &mut Demand<'_>) -> Result<()> {
        while demand.left() > 0 && demand.got < ENOUGH {
            let Some(index) = self.find(incoming)? else {
                return self.check_closed();
            };
            self.current = index;
            let lane = &mut self.lanes[index];
            let n = lane.take(incoming, index, demand)?;
            if n == 0 {
                // The rest of this segment can come on this connection only.
                return lane.closed.as_ref().map_or(Ok(()), |closed| Err(closed.error()));
            }
            self.next += n as u64;
        }
        Ok(())
    }

    /// The lane whose head is at `next`, looking for headers that have arrived meanwhile.
    fn find(&mut self, incoming: &mut Incoming) -> Result<Option<usize>> {
        let count = self.lanes.len();
        let mut heads = 0;
        for step in 0..count {
            let index = (self.current + step) % count;
            if let Some(head) = self.lanes[index].head(incoming, index)? {
                if head.offset == self.next {
                    return Ok(Some(index));
                }
                heads += 1;
            }
        }
        if heads == count {
            return Err(malformed(format!("no connection has the segment at byte {} of the stream", self.next)));
        }
        Ok(None)
    }

    /// Whether more can come at all, once nothing is there.
    fn check_closed(&mut self) -> Result<()> {
        let mut closed = self.lanes.iter().filter_map(|lane| lane.closed.as_ref());
        let Some(one) = closed.next() else { return Ok(()) };
        let since = *self.closing.get_or_insert_with(Instant::now);
        let all = self.lanes.iter().all(|lane| lane.closed.is_some());
        let broken = self.lanes.iter().filter_map(|lane| lane.closed.as_ref()).find(|closed| closed.broken);
        match broken {
            Some(broken) => Err(broken.error()),
            None if all || since.elapsed() > CLOSE_TOGETHER => Err(LinkError::Gone { detail: one.detail.clone() }),
            None => Ok(()),
        }
    }
}

impl Lane {
    /// The segment at the head of this connection, if its header has arrived.
    fn head(&mut self, incoming: &mut Incoming, index: usize) -> Result<Option<Segment>> {
        if self.head.is_none() {
            if self.ahead.len() < HEADER && self.closed.is_none() {
                self.ahead.close_up();
                let came = incoming.read(index, &mut [IoSliceMut::new(self.ahead.room()?)]);
                self.ahead.came(if let Ok(Arrival::Bytes(n)) = came { n } else { 0 });
                if let Arrival::Closed(closed) = came? {
                    self.closed = Some(closed);
                }
            }
            if let Some(header) = self.ahead.bytes().first_chunk::<HEADER>() {
                let segment = Segment::decode(header, self.least)?;
                self.least = segment.after();
                self.ahead.gone(HEADER);
                self.head = Some(segment);
            }
        }
        Ok(self.head)
    }

    /// Hand out bytes of the segment at the head; returns how many, 0 if none are there.
    fn take(&mut self, incoming: &mut Incoming, index: usize, demand: &mut Demand<'_>) -> Result<usize> {
        let Some(head) = &mut self.head else { return Ok(0) };
        let want = head.left.min(demand.left());
        let n = if !self.ahead.is_empty() {
            let n = want.min(self.ahead.len());
            let [a, b] = demand.places(n);
            let (first, rest) = self.ahead.bytes()[..n].split_at(a.len());
            a.copy_from_slice(first);
            b.copy_from_slice(rest);
            self.ahead.gone(n);
            n
        } else if self.closed.is_some() {
            0
        } else {
            let [a, b] = demand.places(want);
            // What follows the segment on this connection is the next header: have it come along.
            let beyond = if want == head.left { self.ahead.room()? } else { &mut [] };
            let parts = &mut [IoSliceMut::new(a), IoSliceMut::new(b), IoSliceMut::new(beyond)];
            let came = incoming.read(index, parts);
            self.ahead.came(if let Ok(Arrival::Bytes(n)) = came { n.saturating_sub(want) } else { 0 });
            match came? {
                Arrival::Bytes(n) => n.min(want),
                Arrival::Nothing => 0,
                Arrival::Closed(closed) => {
                    self.closed = Some(closed);
                    0
                }
            }
        };
        demand.got += n;
        head.offset += n as u64;
        head.left -= n;
        if head.left == 0 {
            self.head = None;
        }
        Ok(n)
    }
}
