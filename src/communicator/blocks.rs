//! Blocks with counts of their own: the arguments of the `_v` collectives.
//!
//! Who knows what is as in MPI: in all-gather and reduce-scatter every rank passes everybody's counts, and ranks whose
//! counts differ are told so; in gather and scatter the root passes everybody's and the others their own; in all-to-all
//! each rank passes what it sends to and receives from every other. Counts that two ranks expect of one message are
//! compared when it arrives.

use maypole_collectives::catalogue::{Counts, Meaning};
use maypole_collectives::schedule::Collective;

use super::call::Lengths;
use super::{Call, Inner};
use crate::engine::bound::Extent;

/// Where the blocks of a buffer lie: how many elements each has and, unless they follow each other, where each starts.
/// Block r belongs to rank r.
///
/// ```
/// use maypole::Blocks;
///
/// let counts = [3, 0, 5];
/// let one_after_the_other = Blocks::packed(&counts);
/// let with_gaps = Blocks::at(&counts, &[0, 0, 8]); // 3 elements from 0, none, 5 from 8
/// # let _ = (one_after_the_other, with_gaps);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    counts: &'a [usize],
    displacements: Option<&'a [usize]>,
}

impl<'a> Blocks<'a> {
    /// Blocks of `counts[r]` elements that follow each other from the start of the buffer; together they are the buffer.
    pub const fn packed(counts: &'a [usize]) -> Blocks<'a> {
        Blocks { counts, displacements: None }
    }

    /// Blocks of `counts[r]` elements from element `displacements[r]` of the buffer, in any order. Elements between
    /// them are left alone. Blocks that are written must not overlap; those that are only read may.
    pub const fn at(counts: &'a [usize], displacements: &'a [usize]) -> Blocks<'a> {
        Blocks { counts, displacements: Some(displacements) }
    }

    /// How many elements each block has.
    pub const fn counts(&self) -> &'a [usize] {
        self.counts
    }

    /// Where each block starts, if they were made with [`Blocks::at`].
    pub const fn displacements(&self) -> Option<&'a [usize]> {
        self.displacements
    }

    /// How many elements a buffer has that ends with its last block. The error says which block ends beyond what can be
    /// counted.
    pub(super) fn end(&self) -> Result<usize, String> {
        let mut extents = Vec::new();
        self.extents(&mut extents)?;
        Ok(extents.iter().map(Extent::end).max().unwrap_or(0))
    }

    /// Where a block starts, if there is such a block.
    pub(super) fn start(&self, block: usize) -> Option<usize> {
        match self.displacements {
            Some(displacements) => displacements.get(block).copied(),
            None => self.counts.get(..block).map(|before| before.iter().sum()),
        }
    }

    /// Write the blocks out.
    fn extents(&self, into: &mut Vec<Extent>) -> Result<(), String> {
        into.clear();
        if let Some(displacements) = self.displacements
            && displacements.len() != self.counts.len()
        {
            return Err(format!("there are {} counts, but {} displacements", self.counts.len(), displacements.len()));
        }
        let mut next = 0usize;
        for (block, count) in self.counts.iter().copied().enumerate() {
            let start = self.displacements.map_or(next, |all| all[block]);
            next = start.checked_add(count).ok_or_else(|| {
                format!("block {block}, {count} elements from {start}, ends beyond what a usize can count")
            })?;
            into.push(Extent { start, count });
        }
        Ok(())
    }
}

impl<'a> From<&'a [usize]> for Blocks<'a> {
    fn from(counts: &'a [usize]) -> Blocks<'a> {
        Blocks::packed(counts)
    }
}

impl<'a, const N: usize> From<&'a [usize; N]> for Blocks<'a> {
    fn from(counts: &'a [usize; N]) -> Blocks<'a> {
        Blocks::packed(counts)
    }
}

impl<'a> From<&'a Vec<usize>> for Blocks<'a> {
    fn from(counts: &'a Vec<usize>) -> Blocks<'a> {
        Blocks::packed(counts)
    }
}

/// The blocks of a call, as its caller passed them.
#[derive(Clone, Copy)]
pub(crate) enum Sides<'a> {
    Apart {
        input: Blocks<'a>,
        output: Blocks<'a>,
    },
    /// Of the larger buffer, inside which the smaller lies as its own block.
    InPlace(Blocks<'a>),
}

/// A call's blocks, written out. Kept between calls for its memory.
#[derive(Default)]
pub(super) struct Spread {
    pub input: Vec<Extent>,
    pub output: Vec<Extent>,
}

impl Spread {
    /// Write out the blocks of a call and check them against its buffers. The error says what is wrong.
    pub fn fill(&mut self, inner: &Inner, call: &Call, sides: Sides<'_>, lengths: Lengths) -> Result<(), String> {
        let name = call.collective.name();
        let (rank, size) = (inner.rank, inner.size);
        let root = if call.collective.is_rooted() { call.root } else { 0 };
        let inputs = call.collective.input_blocks(rank, size, root);
        let outputs = call.collective.output_blocks(rank, size, root);
        let wrap = |side: &str, what: String| format!("{name}_v: {side}: {what}");
        let expect = |side: &str, blocks: &[Extent], expected: usize| match blocks.len() == expected {
            true => Ok(()),
            false => Err(wrap(
                side,
                format!("rank {rank} of {size} has {expected} blocks there, but {} counts were passed", blocks.len()),
            )),
        };
        let element = call.dtype.size();
        match (sides, lengths) {
            (Sides::Apart { input, output }, Lengths::Apart { input: input_bytes, output: output_bytes }) => {
                input.extents(&mut self.input).map_err(|what| wrap("input", what))?;
                output.extents(&mut self.output).map_err(|what| wrap("output", what))?;
                expect("input", &self.input, inputs)?;
                expect("output", &self.output, outputs)?;
                within(&self.input, input_bytes / element, input.displacements.is_none())
                    .map_err(|what| wrap("input", what))?;
                within(&self.output, output_bytes / element, output.displacements.is_none())
                    .map_err(|what| wrap("output", what))?;
            }
            (Sides::InPlace(blocks), Lengths::InPlace { buffer }) => {
                let larger = if inputs > outputs { &mut self.input } else { &mut self.output };
                blocks.extents(larger).map_err(|what| wrap("buffer", what))?;
                expect("buffer", larger, inputs.max(outputs))?;
                within(larger, buffer / element, blocks.displacements.is_none())
                    .map_err(|what| wrap("buffer", what))?;
                let own = |blocks: &[Extent]| blocks.get(if blocks.len() == 1 { 0 } else { rank }).copied();
                match (inputs, outputs) {
                    (i, o) if i > o => {
                        self.output.clear();
                        self.output.extend(own(&self.input).filter(|_| o > 0));
                    }
                    (i, o) if i < o => {
                        self.input.clear();
                        self.input.extend(own(&self.output).filter(|_| i > 0));
                    }
                    _ => self.input.clone_from(&self.output),
                }
            }
            _ => unreachable!("blocks and lengths are made together"),
        }
        apart(&self.output).map_err(|what| wrap("output", what))?;
        self.agrees_with_itself(inner, call, root)
    }

    /// The block that stays on its rank has the same length on both sides.
    fn agrees_with_itself(&self, inner: &Inner, call: &Call, root: usize) -> Result<(), String> {
        let rank = inner.rank;
        let own = |blocks: &[Extent]| blocks.get(if blocks.len() == 1 { 0 } else { rank }).map(|block| block.count);
        let keeps = match call.collective.meaning().counts {
            // Only the root's own block stays there.
            Counts::KnownToRoot => rank == root,
            _ => true,
        };
        match (own(&self.input), own(&self.output)) {
            (Some(input), Some(output)) if keeps && input != output => Err(format!(
                "{}_v: rank {rank}'s own block has {input} elements in the input, but {output} in the output",
                call.collective.name()
            )),
            _ => Ok(()),
        }
    }

    /// The counts of all ranks, where this one knows them.
    pub fn all_counts(&self, collective: Collective) -> Option<&[Extent]> {
        let Meaning { input, counts, .. } = collective.meaning();
        let side = if input.are_for_each() { &self.input } else { &self.output };
        (*counts == Counts::KnownToAll).then_some(side)
    }
}

/// Whether the blocks lie within a buffer of `length` elements and, if they are `packed`, fill it.
fn within(blocks: &[Extent], length: usize, packed: bool) -> Result<(), String> {
    for (number, block) in blocks.iter().enumerate() {
        if block.end() > length {
            return Err(format!(
                "block {number} is elements {} to {} of a buffer that has {length}",
                block.start,
                block.end()
            ));
        }
    }
    let end = blocks.last().map_or(0, Extent::end);
    match packed && end != length {
        true => Err(format!("the counts add up to {end} elements, but the buffer has {length}")),
        false => Ok(()),
    }
}

/// Whether no two blocks overlap.
fn apart(blocks: &[Extent]) -> Result<(), String> {
    let filled = || blocks.iter().enumerate().filter(|(_, block)| block.count > 0);
    if filled().zip(filled().skip(1)).all(|((_, one), (_, next))| one.end() <= next.start) {
        return Ok(());
    }
    let mut sorted: Vec<_> = filled().collect();
    sorted.sort_unstable_by_key(|(_, block)| block.start);
    match sorted.windows(2).find(|pair| pair[0].1.end() > pair[1].1.start) {
        Some(pair) => Err(format!(
            "blocks {} and {} overlap: elements {} to {} and {} to {}",
            pair[0].0,
            pair[1].0,
            pair[0].1.start,
            pair[0].1.end(),
            pair[1].1.start,
            pair[1].1.end()
        )),
        None => Ok(()),
    }
}

/// Blocks that own their numbers, for operations that outlive the call.
pub(super) struct OwnedBlocks {
    counts: Box<[usize]>,
    displacements: Option<Box<[usize]>>,
}

impl OwnedBlocks {
    pub fn new(blocks: Blocks<'_>) -> OwnedBlocks {
        OwnedBlocks { counts: blocks.counts.into(), displacements: blocks.displacements.map(Into::into) }
    }

    pub fn blocks(&self) -> Blocks<'_> {
        Blocks { counts: &self.counts, displacements: self.displacements.as_deref() }
    }
}

/// The blocks of a call that outlives its caller's numbers.
pub(super) enum OwnedSides {
    Apart { input: OwnedBlocks, output: OwnedBlocks },
    InPlace(OwnedBlocks),
}

impl OwnedSides {
    pub fn new(sides: Sides<'_>) -> OwnedSides {
        match sides {
            Sides::Apart { input, output } => {
                OwnedSides::Apart { input: OwnedBlocks::new(input), output: OwnedBlocks::new(output) }
            }
            Sides::InPlace(blocks) => OwnedSides::InPlace(OwnedBlocks::new(blocks)),
        }
    }

    pub fn sides(&self) -> Sides<'_> {
        match self {
            OwnedSides::Apart { input, output } => Sides::Apart { input: input.blocks(), output: output.blocks() },
            OwnedSides::InPlace(blocks) => Sides::InPlace(blocks.blocks()),
        }
    }
}
