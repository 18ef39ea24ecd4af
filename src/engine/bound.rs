//! Binding a schedule to buffers: from chunks to bytes.
//!
//! A schedule speaks of chunks; here they become pointers. `count` elements per block are cut into pieces of equal
//! length (the last shorter, all starting at multiples of a cache line), and each piece into slices of at most `slice`
//! elements. Round `k` moves slice `k` of every chunk. Pieces and slices end where operands of the
//! operation do ([`ReduceOp::width`]), so that no operand is cut.
//!
//! Where blocks have counts of their own (the `_v` collectives), a chunk is a block, slices are cut from its start, and
//! there are as many rounds as the longest block needs. Slices are then of one fixed length, so the two ends of a link
//! cut a block alike whatever else each of them moves.

use maypole_collectives::ReduceOp;
use maypole_collectives::schedule::{Buffer, Region, Schedule};
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

/// Of so many elements pieces and slices are multiples: lines of 64 bytes, and whole operands of
/// `op`. Operands that make no line together which fits into a slice do without.
#[inline]
fn grain(dtype: DataType, op: ReduceOp, slice_bytes: usize) -> usize {
    let (line, width) = (64 / dtype.size(), op.width());
    if width == 1 {
        return line;
    }
    // The least common multiple: a line is a power of two.
    let common = width * (line >> width.trailing_zeros().min(line.trailing_zeros()));
    if common * dtype.size() <= slice_bytes { common } else { width }
}

/// Elements of the longest slice.
#[inline]
fn longest(dtype: DataType, grain: usize, slice_bytes: usize) -> usize {
    (slice_bytes / (grain * dtype.size())).max(1) * grain
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
    /// Chunks of scratch that the schedule uses. Behind them lie those that [`Bound::aside`] gives.
    steps: usize,
    /// Writes into memory that ranks share go around the caches from this many bytes.
    pub stream_from: usize,
    /// The output is larger than the caches: fetched slices are stored around them.
    pub large: bool,
    /// Where the input and the output lie, if publications of them are lent.
    pub loans: [Option<Loan>; 2],
}

impl<'a> Bound<'a> {
    /// `slice_bytes` is the longest slice, at least 64 and at least an operand of the operation.
    pub fn new(
        dtype: DataType,
        op: ReduceOp,
        count: usize,
        pieces: usize,
        slice_bytes: usize,
        (input, output): (*const u8, *mut u8),
    ) -> Bound<'a> {
        let grain = grain(dtype, op, slice_bytes);
        // At least one grain, so that scratch has an address even where there is nothing to move.
        let piece = count.div_ceil(pieces).next_multiple_of(grain).max(grain);
        let longest = longest(dtype, grain, slice_bytes);
        let rounds = piece.div_ceil(longest);
        // Equal slices, so that the last round is no stub.
        let slice = piece.div_ceil(rounds).next_multiple_of(grain);
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
            steps: 0,
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
        let grain = grain(dtype, op, slice_bytes);
        let most = self::longest(dtype, grain, slice_bytes);
        let mut bound = Bound::new(dtype, op, most, 1, slice_bytes, buffers);
        // Where everything goes in one round, scratch and publications need no more than that.
        bound.slice = most.min(longest.next_multiple_of(grain).max(grain));
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

    /// Bytes of scratch that `schedule` needs.
    pub fn scratch_of(&self, schedule: &dyn Schedule) -> usize {
        let aside = if self.combines_slices() { schedule.lanes() } else { 0 };
        (schedule.scratch() + aside) * self.stride
    }

    /// Scratch memory for a schedule: [`Bound::scratch_of`] bytes.
    pub fn use_scratch(&mut self, schedule: &dyn Schedule, scratch: *mut u8) {
        (self.scratch, self.steps) = (scratch, schedule.scratch());
    }

    /// Where lane `lane` collects a slice that comes by a link before it combines it; `None`: it
    /// combines what the link has, as it comes.
    #[inline]
    pub fn aside(&self, lane: usize) -> Option<*mut u8> {
        let at = || self.scratch.wrapping_add((self.steps + lane) * self.stride);
        self.combines_slices().then(at)
    }

    /// Whether the operation is given whole slices only. A link returns whole elements, but not whole
    /// operands of several; and a user's function that takes neighbours together though it does not
    /// say so shall not be right on one host and wrong on two.
    #[inline]
    fn combines_slices(&self) -> bool {
        matches!(self.op, ReduceOp::User(_)) || self.op.width() > 1
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
