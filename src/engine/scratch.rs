//! Scratch memory of operations: for what a schedule puts aside, and for copies of a whole input.
//!
//! Most operations need a few KiB, some as much as their input (all-to-all in place, a
//! pre-multiplied sum), and few communicators of a process are at work at the same time. So each
//! engine has [`OWN`] bytes of its own, and takes what is longer for one operation at a time from
//! blocks that all engines of the process share.
//!
//! # What is given back, and when
//!
//! A block goes back to the others when its operation ends. Of those that no operation uses, the
//! process keeps up to [`KEPT`] bytes, so that operations in a row make no system call for memory.
//! The system gets back at once what is more than that, beginning with what was unused for longest;
//! a block that [`LATELY`] later operations had no use for; and all of them with the last
//! communicator.

use std::collections::VecDeque;

use maypole_transports::fork::PerProcess;
use maypole_transports::lock::Mutex;
use maypole_transports::pages::Pages;

/// What an engine has for itself, bytes: such operations take no lock.
const OWN: usize = 64 << 10;
/// Bytes that the process keeps at most of what no operation uses.
const KEPT: usize = 32 << 20;
/// After so many operations with scratch from the blocks, one that none of them took goes.
const LATELY: u64 = 64;
/// Where scratch begins, a multiple of this: a line of the caches.
const ALIGNED: usize = 64;

static BLOCKS: PerProcess<Mutex<Blocks>> = PerProcess::new();

/// One engine's scratch memory.
pub(super) struct Scratch {
    own: Vec<u64>,
    /// What the present operation has from the others, if its own is too short.
    block: Option<Pages>,
}

impl Scratch {
    pub fn new() -> Scratch {
        BLOCKS.get().lock().engines += 1;
        Scratch { own: Vec::new(), block: None }
    }

    /// At least `bytes` bytes of anything, until the next call or [`Scratch::rest`].
    ///
    /// # Panics
    /// There is no memory.
    pub fn room(&mut self, bytes: usize) -> *mut u8 {
        if bytes > OWN {
            return self.longer(bytes);
        }
        let words = (bytes + ALIGNED).div_ceil(size_of::<u64>());
        if self.own.len() < words {
            self.own = vec![0; words];
        }
        let at = self.own.as_mut_ptr().cast::<u8>();
        at.wrapping_add(at.align_offset(ALIGNED))
    }

    fn longer(&mut self, bytes: usize) -> *mut u8 {
        // An operation that panicked has left one.
        self.rest();
        let there = BLOCKS.get().lock().take(bytes);
        let block = self.block.insert(there.unwrap_or_else(|| new(bytes)));
        block.as_mut_ptr()
    }

    /// The operation is over.
    #[inline]
    pub fn rest(&mut self) {
        if let Some(block) = self.block.take() {
            BLOCKS.get().lock().put(block);
            trim();
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.rest();
        BLOCKS.get().lock().engines -= 1;
        trim();
    }
}

/// A block for `bytes` bytes, of a length that serves others as well.
fn new(bytes: usize) -> Pages {
    let len = if bytes < KEPT { bytes.next_power_of_two() } else { bytes };
    // It ends the operation, on all ranks, with these words.
    Pages::new(len).unwrap_or_else(|error| panic!("no memory for {len} bytes of scratch: {error}"))
}

/// Give the system what is too much, one after the other: it takes its time, and nobody waits for
/// it.
fn trim() {
    loop {
        let surplus = BLOCKS.get().lock().surplus();
        if surplus.is_none() {
            return;
        }
    }
}

/// The blocks that no operation uses.
struct Blocks {
    /// How many engines there are.
    engines: usize,
    /// Each with what `taken` was when it came. That which came last is the last.
    spare: VecDeque<(Pages, u64)>,
    bytes: usize,
    /// How often a block was asked for.
    taken: u64,
}

impl Default for Blocks {
    fn default() -> Blocks {
        // Room for all that come up at a time, so that steady work allocates nothing.
        Blocks { engines: 0, spare: VecDeque::with_capacity(64), bytes: 0, taken: 0 }
    }
}

impl Blocks {
    /// The shortest that is long enough, but none that is much too long: it would never be found to
    /// be too much.
    fn take(&mut self, bytes: usize) -> Option<Pages> {
        self.taken += 1;
        let fits = |len: usize| (bytes..=bytes.saturating_mul(4)).contains(&len);
        let blocks = self.spare.iter().enumerate().filter(|(_, (block, _))| fits(block.len()));
        let (at, _) = blocks.min_by_key(|(_, (block, _))| block.len())?;
        let (block, _) = self.spare.remove(at)?;
        self.bytes -= block.len();
        Some(block)
    }

    fn put(&mut self, block: Pages) {
        self.bytes += block.len();
        self.spare.push_back((block, self.taken));
    }

    /// A block that is given back to the system.
    fn surplus(&mut self) -> Option<Pages> {
        let (_, since) = self.spare.front()?;
        let unused = self.taken - since > LATELY;
        if !unused && self.bytes <= KEPT && self.engines > 0 {
            return None;
        }
        let (block, _) = self.spare.pop_front()?;
        self.bytes -= block.len();
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn block(mib: usize) -> Pages {
        Pages::new(mib * MIB).unwrap()
    }

    /// Lengths in MiB.
    fn lengths(blocks: &Blocks) -> Vec<usize> {
        blocks.spare.iter().map(|(block, _)| block.len() / MIB).collect()
    }

    fn trimmed(blocks: &mut Blocks) -> Vec<usize> {
        while blocks.surplus().is_some() {}
        lengths(blocks)
    }

    #[test]
    fn blocks_are_kept_up_to_a_bound_and_the_oldest_goes_first() {
        let mut blocks = Blocks { engines: 1, ..Blocks::default() };
        [8, 16, 4, 8].into_iter().for_each(|mib| blocks.put(block(mib)));
        assert_eq!(trimmed(&mut blocks), [16, 4, 8]);
        blocks.put(block(33));
        assert_eq!(trimmed(&mut blocks), [0; 0]);
        assert_eq!(blocks.bytes, 0);
    }

    #[test]
    fn the_shortest_that_fits_is_taken_and_none_that_is_much_too_long() {
        let mut blocks = Blocks { engines: 1, ..Blocks::default() };
        [8, 2, 4].into_iter().for_each(|mib| blocks.put(block(mib)));
        assert_eq!(blocks.take(3 * MIB).map(|block| block.len()), Some(4 * MIB));
        assert_eq!(blocks.take(3 * MIB).map(|block| block.len()), Some(8 * MIB));
        assert!(blocks.take(MIB / 4).is_none() && blocks.take(3 * MIB).is_none());
        assert_eq!((lengths(&blocks), blocks.bytes), (vec![2], 2 * MIB));
    }

    #[test]
    fn what_was_not_needed_lately_goes_and_all_with_the_last_engine() {
        let mut blocks = Blocks { engines: 1, ..Blocks::default() };
        blocks.put(block(16));
        for _ in 0..LATELY {
            let taken = blocks.take(MIB).unwrap_or_else(|| block(1));
            blocks.put(taken);
            assert_eq!(trimmed(&mut blocks), [16, 1]);
        }
        let taken = blocks.take(MIB).unwrap();
        blocks.put(taken);
        assert_eq!(trimmed(&mut blocks), [1]);
        blocks.engines = 0;
        assert_eq!(trimmed(&mut blocks), [0; 0]);
    }

    #[test]
    fn scratch_has_room_is_aligned_and_goes_on_after_a_panic() {
        let mut scratch = Scratch::new();
        for bytes in [0, 1, 1000, OWN, OWN + 1, MIB, 3 * MIB, 40 * MIB, 7] {
            let at = scratch.room(bytes);
            assert!(at.addr().is_multiple_of(ALIGNED));
            // SAFETY: so much was asked for, and nobody else has it.
            unsafe { at.write_bytes(7, bytes) };
            assert_eq!(scratch.block.is_some(), scratch.block.as_ref().is_some_and(|block| block.len() >= bytes));
            if bytes != MIB {
                scratch.rest();
                assert!(scratch.block.is_none());
            }
        }
    }
}
