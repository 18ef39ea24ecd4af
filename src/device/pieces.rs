//! What a step touches, cut into runs of bytes that lie together.
//!
//! A region is a sequence of chunks, and chunks that follow each other in memory need not be separate jobs for the
//! device: each job costs microseconds, whatever it moves.

use maypole_collectives::schedule::Region;

use crate::engine::bound::Bound;

/// Where the chunks of one operand lie.
#[derive(Clone, Copy)]
pub(super) enum Track {
    /// In the call's buffers.
    Chunks(Region),
    /// In a publication: one stride after the other from this address.
    Strided(u64),
}

impl Track {
    /// Where its `i`-th chunk lies.
    fn at(self, bound: &Bound<'_>, i: usize, round: usize) -> u64 {
        match self {
            Track::Chunks(region) => bound.of(region, i, round).0.addr() as u64,
            Track::Strided(base) => base + (i * bound.stride) as u64,
        }
    }
}

/// Runs of bytes over the chunks of several operands side by side, without those that have none.
pub(super) struct Runs<'a, const N: usize> {
    bound: &'a Bound<'a>,
    round: usize,
    /// Says how long the chunks are.
    region: Region,
    tracks: [Track; N],
    next: usize,
}

impl<'a, const N: usize> Runs<'a, N> {
    /// `region` has as many and as long chunks as each of `tracks`.
    pub fn new(bound: &'a Bound<'a>, round: usize, region: Region, tracks: [Track; N]) -> Runs<'a, N> {
        Runs { bound, round, region, tracks, next: 0 }
    }

    fn chunk(&self, i: usize) -> ([u64; N], usize) {
        let bytes = self.bound.of(self.region, i, self.round).1;
        (self.tracks.map(|track| track.at(self.bound, i, self.round)), bytes)
    }
}

impl<const N: usize> Iterator for Runs<'_, N> {
    /// Where a run lies in each operand, and its length.
    type Item = ([u64; N], usize);

    fn next(&mut self) -> Option<Self::Item> {
        let mut run: Option<([u64; N], usize)> = None;
        while self.next < self.region.len {
            let (at, bytes) = self.chunk(self.next);
            if bytes > 0 {
                match &mut run {
                    None => run = Some((at, bytes)),
                    Some((start, length)) if (0..N).all(|n| start[n] + *length as u64 == at[n]) => *length += bytes,
                    Some(_) => break,
                }
            }
            self.next += 1;
        }
        run
    }
}

/// Bytes of a region's slices in a round.
pub(super) fn length(bound: &Bound<'_>, region: Region, round: usize) -> usize {
    (0..region.len).map(|i| bound.of(region, i, round).1).sum()
}

#[cfg(test)]
mod tests {
    use maypole_collectives::{DataType, ReduceOp};

    use super::*;

    fn bound(count: usize, pieces: usize) -> Bound<'static> {
        let at =
            |address: usize| (std::ptr::without_provenance(address), std::ptr::without_provenance_mut(2 * address));
        Bound::new(DataType::F32, ReduceOp::Sum, count, pieces, 1 << 20, at(0x10000))
    }

    #[test]
    fn chunks_that_lie_together_are_one_run() {
        // Pieces of 64 bytes, the last shorter: together they are the block.
        let bound = bound(40, 3);
        let region = Region::input(0, 3);
        let runs: Vec<_> = Runs::new(&bound, 0, region, [Track::Chunks(region)]).collect();
        assert_eq!(runs, [([0x10000], 160)]);
        assert_eq!(length(&bound, region, 0), 160);
        // In a publication they lie a stride apart, which is as long as all but the last.
        let runs: Vec<_> = Runs::new(&bound, 0, region, [Track::Chunks(region), Track::Strided(64)]).collect();
        assert_eq!(runs, [([0x10000, 64], 160)]);
    }

    #[test]
    fn a_gap_in_either_operand_ends_a_run() {
        // Blocks of 40 bytes, strides of 64.
        let bound = bound(10, 1);
        let region = Region::input(1, 2);
        let runs: Vec<_> = Runs::new(&bound, 0, region, [Track::Chunks(region), Track::Strided(0)]).collect();
        assert_eq!(runs, [([0x10000 + 40, 0], 40), ([0x10000 + 80, 64], 40)]);
    }

    #[test]
    fn what_is_empty_is_no_run() {
        let bound = bound(0, 2);
        let region = Region::output(0, 2);
        assert_eq!(Runs::new(&bound, 0, region, [Track::Chunks(region)]).next(), None);
    }
}
