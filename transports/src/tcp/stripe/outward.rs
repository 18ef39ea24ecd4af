//! Cutting the stream into segments and giving each to a connection that has room.

use std::io::IoSlice;

use super::segment::{HEADER, SEGMENT, Segment};
use crate::Result;
use crate::tcp::halves::Outgoing;
use crate::tcp::hold::Hold;

/// The sending side of a striped stream.
#[derive(Debug)]
pub(in crate::tcp) struct StripeOut {
    lanes: Vec<Lane>,
    /// Offset of the next segment to be cut.
    next: u64,
    /// The lane whose segment is not complete yet, and how many bytes of it are to come: the next bytes of the stream.
    open: Option<(usize, usize)>,
    /// The lane whose turn it is, and the bytes that its turn still lasts.
    turn: usize,
    turn_left: usize,
}

/// One connection.
#[derive(Debug)]
struct Lane {
    /// Bytes that must go there and that nobody else holds: of one segment at most, and its header.
    spill: Hold,
}

impl Lane {
    fn new() -> Lane {
        Lane { spill: Hold::new(HEADER + SEGMENT) }
    }

    fn is_clear(&self) -> bool {
        self.spill.is_empty()
    }
}

/// The stream's next bytes, which lie in two places: what is staged, then the caller's slice.
#[derive(Clone, Copy)]
struct Supply<'a> {
    staged: &'a [u8],
    bytes: &'a [u8],
}

impl<'a> Supply<'a> {
    fn len(&self) -> usize {
        self.staged.len() + self.bytes.len()
    }

    /// Bytes `from..to` of both together.
    fn range(&self, from: usize, to: usize) -> [&'a [u8]; 2] {
        let cut = self.staged.len();
        [&self.staged[from.min(cut)..to.min(cut)], &self.bytes[from.max(cut) - cut..to.max(cut) - cut]]
    }
}

impl StripeOut {
    pub fn new(connections: usize) -> Self {
        let lanes = (0..connections).map(|_| Lane::new()).collect();
        Self { lanes, next: 0, open: None, turn: 0, turn_left: SEGMENT }
    }

    /// Whether no connection has bytes waiting here.
    pub fn is_clear(&self) -> bool {
        self.lanes.iter().all(Lane::is_clear)
    }

    /// Pass on `staged` and then `bytes` as far as connections have room; returns how many bytes of the two together
    /// were taken.
    pub fn write(&mut self, outgoing: &mut Outgoing, staged: &[u8], bytes: &[u8]) -> Result<usize> {
        let supply = Supply { staged, bytes };
        self.drain(outgoing)?;
        let mut taken = 0;
        while taken < supply.len() {
            let Some((lane, mut left)) = self.open else {
                match self.cut(outgoing, supply, taken, None)? {
                    Some(n) => taken += n,
                    None => break,
                }
                continue;
            };
            if self.lanes[lane].is_clear() {
                let part = left.min(supply.len() - taken);
                let [a, b] = supply.range(taken, taken + part);
                let n = outgoing.write(lane, &[IoSlice::new(a), IoSlice::new(b)])?;
                taken += n;
                left -= n;
                self.open = (left > 0).then_some((lane, left));
                if n == part {
                    continue;
                }
            }
            // The lane is full. If another takes what comes after this segment, its rest is ours to keep until the lane
            // has room.
            if supply.len() - taken <= left {
                break;
            }
            let Some(n) = self.cut(outgoing, supply, taken + left, Some(lane))? else { break };
            for part in supply.range(taken, taken + left) {
                self.lanes[lane].spill.put(part)?;
            }
            taken += left + n;
        }
        Ok(taken)
    }

    /// Try to pass on what waits for its connection.
    fn drain(&mut self, outgoing: &mut Outgoing) -> Result<()> {
        outgoing.flush()?;
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            if !lane.is_clear() {
                let sent = outgoing.write(index, &[IoSlice::new(lane.spill.bytes())])?;
                lane.spill.gone(sent);
            }
        }
        Ok(())
    }

    /// Cut the next segment at `from` of the supply and begin it on the first lane, in turn and other than `full`, that
    /// takes any of it. Returns how many bytes of the supply went there, or `None` if all lanes are full; then no
    /// segment was cut.
    fn cut(
        &mut self,
        outgoing: &mut Outgoing,
        supply: Supply<'_>,
        from: usize,
        full: Option<usize>,
    ) -> Result<Option<usize>> {
        let segment = Segment { offset: self.next, left: SEGMENT.min(supply.len() - from) };
        let header = segment.encode();
        let [a, b] = supply.range(from, from + segment.left);
        for _ in 0..self.lanes.len() {
            let lane = self.turn;
            if Some(lane) != full && self.lanes[lane].is_clear() {
                let n = outgoing.write(lane, &[IoSlice::new(&header), IoSlice::new(a), IoSlice::new(b)])?;
                if n > 0 {
                    self.lanes[lane].spill.put(&header[n.min(HEADER)..])?;
                    let payload = n.saturating_sub(HEADER);
                    self.next = segment.after();
                    self.open = (payload < segment.left).then_some((lane, segment.left - payload));
                    self.turn_left = self.turn_left.saturating_sub(segment.left);
                    if self.turn_left == 0 {
                        self.pass_turn();
                    }
                    return Ok(Some(payload));
                }
            }
            self.pass_turn();
        }
        Ok(None)
    }

    fn pass_turn(&mut self) {
        self.turn = (self.turn + 1) % self.lanes.len();
        self.turn_left = SEGMENT;
    }
}
