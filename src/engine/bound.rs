//! Binding a schedule to buffers: from chunks to bytes.
//!
//! A schedule speaks of chunks; here they become pointers. `count` elements per block are cut into pieces of equal
//! length (the last shorter, all starting at multiples of a cache line), and each piece into slices of at most `slice`
//! elements. Round `k` moves slice `k` of every chunk.

use maypole_collectives::ReduceOp;
use maypole_collectives::schedule::{Buffer, Region};
use maypole_collectives::{DataType, reduce};

/// What the executor needs to know about one call, apart from its schedule.
pub(crate) struct Bound {
    pub dtype: DataType,
    pub op: ReduceOp,
    pub count: usize,
    pub pieces: usize,
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
}

impl Bound {
    /// `slice_bytes` is the longest slice, at least 64.
    pub fn new(
        dtype: DataType,
        op: ReduceOp,
        count: usize,
        pieces: usize,
        slice_bytes: usize,
        (input, output): (*const u8, *mut u8),
    ) -> Bound {
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
        }
    }

    /// Where chunk `chunk` of `buffer` lies in round `round`, and how many bytes its slice has. The pointer may only be
    /// written through if the buffer is not the input.
    #[inline]
    pub fn slice(&self, buffer: Buffer, chunk: usize, round: usize) -> (*mut u8, usize) {
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

    /// [`Bound::slice`] of the `i`-th chunk of a region.
    #[inline]
    pub fn of(&self, region: Region, i: usize, round: usize) -> (*mut u8, usize) {
        self.slice(region.buffer, region.first + i, round)
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
