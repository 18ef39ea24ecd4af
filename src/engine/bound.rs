//! Binding a schedule to buffers: from chunks to bytes.
//!
//! A schedule speaks of chunks; here they become pointers. `count` elements per block are cut into pieces of equal
//! length (the last shorter, all starting at multiples of a cache line), and each piece into slices of at most `slice`
//! elements. Round `k` moves slice `k` of every chunk.
//!
//! Where blocks have counts of their own (the `_v` collectives), a chunk is a block, slices are cut from its start, and
//! there are as many rounds as the longest block needs. Slices are then of one fixed length, so the two ends of a link
//! cut a block alike whatever else each of them moves.

use maypole_collectives::ReduceOp;
use maypole_collectives::schedule::{Buffer, Region};
use maypole_collectives::{DataType, reduce};

use super::loans::Loan;

/// One block of a buffer whose blocks have counts of their own, in elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub start: usize,
    pub count: usize,
}

impl Extent {
    pub fn end(&self) -> usize {
        self.start + self.count
    }
}

/// The blocks of a call with variable counts, as this rank knows them.
#[derive(Clone, Copy)]
pub(crate) struct Extents<'a> {
    pub input: &'a [Extent],
    pub output: &'a [Extent],
    /// This rank's own block: what chunks of scratch are as long as.
    pub own: usize,
}

/// What the executor needs to know about one call, apart from its schedule.
pub(crate) struct Bound<'a> {
    pub dtype: DataType,
    pub op: ReduceOp,
    count: usize,
    extents: Option<Extents<'a>>,
    /// Only the two ends of a link know the length of what it carries.
    pub counted_by_pair: bool,
    pieces: usize,
    /// Elements per piece.
    piece: usize,
    /// Elements per slice.
    slice: usize,
    /// Bytes from one chunk's slice to the next, in scratch and in publications.
    pub stride: usize,
    pub rounds: usize,
    pub input: *const u8,
    pub output: *mut u8,
    pub scratch: *mut u8,
    /// Writes into memory that ranks share go around the caches from this many bytes.
    pub stream_from: usize,
    /// The output is larger than the caches: fetched slices are stored around them.
    pub large: bool,
    /// Where the input and the output lie, if publications of them are lent.
    pub loans: [Option<Loan>; 2],
}

impl<'a> Bound<'a> {
    /// `slice_bytes` is the longest slice, at least 64.
    pub fn new(
        dtype: DataType,
        op: ReduceOp,
        count: usize,
        pieces: usize,
        slice_bytes: usize,
        (input, output): (*const u8, *mut u8),
    ) -> Bound<'a> {
        let line = 64 / dtype.size();
        // At least one line, so that scratch has an address even where there is nothing to move.
        let piece = count.div_ceil(pieces).next_multiple_of(line).max(line);
        let longest = (slice_bytes / 64 * line).max(line);
        let rounds = piece.div_ceil(longest);
        // Equal slices, so that the last round is no stub.
        let slice = piece.div_ceil(rounds).next_multiple_of(line);
        let stride = slice * dtype.size();
        let scratch = std::ptr::null_mut();
        Bound {
            dtype,
            op,
            count,
            extents: None,
            counted_by_pair: false,
            pieces,
            piece,
            slice,
            stride,
            rounds,
            input,
            output,
            scratch,
            stream_from: usize::MAX,
            large: false,
            loans: [None; 2],
        }
    }

    /// The same for blocks with counts of their own, by a schedule that cuts no block into pieces.
    pub fn variable(
        dtype: DataType,
        op: ReduceOp,
        extents: Extents<'a>,
        slice_bytes: usize,
        buffers: (*const u8, *mut u8),
    ) -> Bound<'a> {
        let blocks = extents.input.iter().chain(extents.output);
        let longest = blocks.map(|block| block.count).max().unwrap_or(0);
        let line = 64 / dtype.size();
        let most = (slice_bytes / 64 * line).max(line);
        let mut bound = Bound::new(dtype, op, most, 1, slice_bytes, buffers);
        // Where everything goes in one round, scratch and publications need no more than that.
        bound.slice = most.min(longest.next_multiple_of(line).max(line));
        bound.stride = bound.slice * dtype.size();
        bound.rounds = longest.div_ceil(bound.slice).max(1);
        bound.extents = Some(extents);
        bound
    }

    /// Elements of all rounds in the blocks of a region; only for blocks with counts of their own.
    pub fn count_of(&self, region: Region) -> usize {
        let all = |blocks: &[Extent]| blocks[region.chunks()].iter().map(|block| block.count).sum();
        match (&self.extents, region.buffer) {
            (Some(extents), Buffer::Input) => all(extents.input),
            (Some(extents), Buffer::Output) => all(extents.output),
            (Some(extents), Buffer::Scratch) => extents.own * region.len,
            (None, _) => self.count,
        }
    }

    /// Where chunk `chunk` of `buffer` lies in round `round`, and how many bytes its slice has. The pointer may only be
    /// written through if the buffer is not the input.
    #[inline]
    pub fn slice(&self, buffer: Buffer, chunk: usize, round: usize) -> (*mut u8, usize) {
        if let Some(extents) = &self.extents {
            return self.slice_of_extent(extents, buffer, chunk, round);
        }
        let (block, piece) = if self.pieces == 1 { (chunk, 0) } else { (chunk / self.pieces, chunk % self.pieces) };
        let start = (piece * self.piece).min(self.count);
        let length = self.piece.min(self.count - start);
        let skip = (round * self.slice).min(length);
        let elements = self.slice.min(length - skip);
        let size = self.dtype.size();
        let base = match buffer {
            Buffer::Scratch => return (self.scratch.wrapping_add(chunk * self.stride), elements * size),
            Buffer::Input => self.input.cast_mut(),
            Buffer::Output => self.output,
        };
        (base.wrapping_add((block * self.count + start + skip) * size), elements * size)
    }

    fn slice_of_extent(&self, extents: &Extents<'_>, buffer: Buffer, chunk: usize, round: usize) -> (*mut u8, usize) {
        let size = self.dtype.size();
        let (base, block) = match buffer {
            Buffer::Scratch => {
                let left = extents.own.saturating_sub(round * self.slice);
                return (self.scratch.wrapping_add(chunk * self.stride), self.slice.min(left) * size);
            }
            Buffer::Input => (self.input.cast_mut(), extents.input[chunk]),
            Buffer::Output => (self.output, extents.output[chunk]),
        };
        let skip = (round * self.slice).min(block.count);
        (base.wrapping_add((block.start + skip) * size), self.slice.min(block.count - skip) * size)
    }

    /// [`Bound::slice`] of the `i`-th chunk of a region.
    #[inline]
    pub fn of(&self, region: Region, i: usize, round: usize) -> (*mut u8, usize) {
        self.slice(region.buffer, region.first + i, round)
    }

    /// Bytes of a block; only where all blocks have one count.
    pub fn block(&self) -> usize {
        self.count * self.dtype.size()
    }

    /// Whether any publication may be lent.
    pub fn lends(&self) -> bool {
        self.loans.iter().any(Option::is_some)
    }

    /// The loan that stands for a publication of `region`, if it is lent and not copied.
    pub fn loan(&self, region: Region) -> Option<Loan> {
        let loan = match region.buffer {
            Buffer::Input => self.loans[0],
            Buffer::Output => self.loans[1],
            Buffer::Scratch => None,
        };
        loan.filter(|_| region.len > 0).map(|loan| Loan { first: region.first as u64, ..loan })
    }

    /// Where chunk `chunk` of another rank's buffer lies in round `round`, in bytes from the buffer's start.
    #[inline]
    pub fn offset(&self, chunk: usize, round: usize) -> usize {
        // Blocks are as long there as here: the same as in this rank's input, had it as many.
        self.slice(Buffer::Input, chunk, round).0.addr().wrapping_sub(self.input.addr())
    }

    /// `dst` = `a` ⊕ `b` over `bytes` bytes.
    ///
    /// # Safety
    /// As for [`reduce::reduce`].
    #[inline]
    pub unsafe fn reduce(&self, dst: *mut u8, a: *const u8, b: *const u8, bytes: usize) {
        // SAFETY: passed on to the caller.
        unsafe { reduce::reduce(self.op, self.dtype, dst, a, b, bytes / self.dtype.size()) }
    }
}
