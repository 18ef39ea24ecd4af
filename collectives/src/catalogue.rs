//! The list of collectives: what each is called, how many blocks it takes and gives, and what its outputs are made of.
//!
//! A row of [`collectives!`](crate::collectives) is all that is ever said of a collective. From it come the enum
//! [`Collective`], its names and shapes, and [`Collective::contributions`], its meaning: which ranks' blocks make a
//! block of the output. The methods of every form are made from it too. The [verifier](crate::verify) expects that, [`direct`](crate::algorithms) and one-shot do that
//! and nothing else, so a row alone already runs; measurements and tests compute from it what must come out.
//!
//! Every buffer is seen as *blocks* of equal length (the forms with counts of their own give each its length). Three
//! words on each side of a row say how many there are and whose they are.

use std::ops::Range;

use crate::schedule::{Place, Rank};

/// THE list. A row says
///
/// * in its first lines what the collective means: `Variant name: what it takes => what it gives, made of whose blocks,
///   who knows uneven counts;`, in the words of [`Blocks`], [`Givers`] and [`Counts`];
/// * how it is called: its arguments beside the buffers, the method on two buffers and the one on a single buffer, each
///   with its text for the typed interface;
/// * and, where blocks may have counts of their own, which side is told of them (`input`, `output` or `both`), and the
///   two methods for that.
///
/// `collectives!(callback)` is `callback! { {row} {row} ... }`, and `collectives!(callback, tokens)` the same with those
/// tokens first.
#[macro_export]
macro_rules! collectives {
    ($callback:path $(, $($first:tt)+)?) => {
        $callback! {
            $($($first)+)?
            {
                /// Every rank's output becomes the reduction of all ranks' inputs.
                AllReduce all_reduce: One => One, All, Even;
                (op: ReduceOp)
                all_reduce "Every rank's `output` becomes the reduction of all ranks' `input`s, which have the same \
                    length. Bit-identical on all ranks."
                all_reduce_in_place "[`Communicator::all_reduce`] with `buffer` as input and output."
            }
            {
                /// The root's output becomes the reduction of all ranks' inputs.
                Reduce reduce: One => OneAtRoot, All, Even;
                (op: ReduceOp, root: usize)
                reduce "`output` on rank `root` becomes the reduction of all ranks' `input`s. On the other ranks \
                    `output` must be empty."
                reduce_in_place "[`Communicator::reduce`] with `buffer` as input and, on rank `root`, as output. On \
                    the other ranks its content stays as it was."
            }
            {
                /// Every rank's output becomes the root's input.
                Broadcast broadcast: OneAtRoot => One, Root, Even;
                (root: usize)
                broadcast_from "Every rank's `output` becomes rank `root`'s `input`. On the other ranks `input` must \
                    be empty."
                broadcast "Every rank's `buffer` becomes rank `root`'s."
            }
            {
                /// Block r of every rank's output becomes rank r's input.
                AllGather all_gather: One => Each, Owner, KnownToAll;
                ()
                all_gather "Every rank's `output` becomes all ranks' `input`s, in the order of the ranks: `size` \
                    times as long as `input`."
                all_gather_in_place "[`Communicator::all_gather`] where this rank's input already lies at its place, \
                    block `rank` of `buffer`'s `size` equal blocks."
                output
                all_gather_v "Block r of every rank's `output` becomes rank r's `input`. All ranks pass the same \
                    counts; where blocks lie is each rank's own affair. `input` has as many elements as this rank's \
                    block."
                all_gather_v_in_place "[`Communicator::all_gather_v`] where this rank's input already lies at its \
                    place in `buffer`."
            }
            {
                /// Rank r's output becomes the reduction of all ranks' block r.
                ReduceScatter reduce_scatter: Each => One, All, KnownToAll;
                (op: ReduceOp)
                reduce_scatter "`input` has `size` equal blocks; `output` becomes the reduction of all ranks' block \
                    number `rank`."
                reduce_scatter_in_place "[`Communicator::reduce_scatter`] whose result replaces block `rank` of \
                    `buffer`; the other blocks' contents are undefined afterwards."
                input
                reduce_scatter_v "`output` becomes the reduction of all ranks' block number `rank`. All ranks pass \
                    the same counts."
                reduce_scatter_v_in_place "[`Communicator::reduce_scatter_v`] whose result replaces this rank's block \
                    of `buffer`; the other blocks' contents are undefined afterwards."
            }
            {
                /// Block s of rank r's output becomes block r of rank s.
                AllToAll all_to_all: Each => Each, Owner, KnownToPairs;
                ()
                all_to_all "Both buffers have `size` equal blocks; block `s` of `output` becomes block `rank` of rank \
                    `s`'s `input`."
                all_to_all_in_place "[`Communicator::all_to_all`] that replaces every block of `buffer`. Copies the \
                    buffer first."
                both
                all_to_all_v "Block s of `output` becomes the block of rank s's `input` that is for this rank. What \
                    rank r expects from rank s must be as long as what s has for r; if not, all ranks get an error \
                    that shows both."
                all_to_all_v_in_place "[`Communicator::all_to_all_v`] that replaces each block of `buffer` by one of \
                    the same length from the rank it was for. Copies the buffer first."
            }
            {
                /// Block r of the root's output becomes rank r's input.
                Gather gather: One => EachAtRoot, Owner, KnownToRoot;
                (root: usize)
                gather "`output` on rank `root` becomes all ranks' `input`s in the order of the ranks. On the other \
                    ranks `output` must be empty."
                gather_in_place "[`Communicator::gather`] where rank `root`'s own input already lies at its place, \
                    block `root` of `buffer`'s `size` equal blocks; on the other ranks `buffer` is the input."
                output
                gather_v "Block r of rank `root`'s `output` becomes rank r's `input`. On the other ranks `output` must \
                    be empty and `blocks` is ignored."
                gather_v_in_place "[`Communicator::gather_v`] where rank `root`'s own input already lies at its place \
                    in `buffer`; on the other ranks `buffer` is the input and `blocks` is ignored."
            }
            {
                /// Rank r's output becomes the root's block r.
                Scatter scatter: EachAtRoot => One, Root, KnownToRoot;
                (root: usize)
                scatter "`input` on rank `root` has `size` equal blocks; `output` becomes block `rank` of it. On the \
                    other ranks `input` must be empty."
                scatter_in_place "[`Communicator::scatter`] where rank `root`'s own block stays where it is in \
                    `buffer`; on the other ranks `buffer` is the output."
                input
                scatter_v "`output` becomes this rank's block of rank `root`'s `input`. On the other ranks `input` \
                    must be empty and `blocks` is ignored."
                scatter_v_in_place "[`Communicator::scatter_v`] where rank `root`'s own block stays where it is in \
                    `buffer`; on the other ranks `buffer` is the output and `blocks` is ignored."
            }
            {
                /// Rank r's output becomes the reduction of the inputs of ranks 0 to r.
                Scan scan: One => One, UpTo, Even;
                (op: ReduceOp)
                scan "`output` becomes the reduction of the `input`s of ranks 0 up to this one, this one included. \
                    [`ReduceOp::Avg`] is refused: of how many ranks it would be differs from rank to rank."
                scan_in_place "[`Communicator::scan`] with `buffer` as input and output."
            }
            {
                /// Rank r's output becomes the reduction of the inputs of ranks 0 to r - 1; rank 0 has none.
                ExclusiveScan exclusive_scan: One => OneButFirst, Before, Even;
                (op: ReduceOp)
                exclusive_scan "`output` becomes the reduction of the `input`s of the ranks before this one. On rank \
                    0 there are none: `output` stays as it was, whatever its length."
                exclusive_scan_in_place "[`Communicator::exclusive_scan`] with `buffer` as input and output. On rank \
                    0 it stays as it was."
            }
            {
                /// Nothing moves: nobody leaves before everybody has come.
                Barrier barrier: None => None, All, Even;
            }
        }
    };
}

/// How many blocks a collective has on one side, on a given rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// None on any rank.
    None,
    /// One on every rank.
    One,
    /// One on every rank but 0.
    OneButFirst,
    /// One at the root, none elsewhere.
    OneAtRoot,
    /// One for each rank, on every rank: block r is rank r's.
    Each,
    /// One for each rank, at the root; none elsewhere.
    EachAtRoot,
}

impl Blocks {
    /// How many there are on `rank`.
    pub const fn on(self, rank: Rank, size: usize, root: Rank) -> usize {
        match self {
            Blocks::None => 0,
            Blocks::One => 1,
            Blocks::OneButFirst => (rank > 0) as usize,
            Blocks::OneAtRoot => (rank == root) as usize,
            Blocks::Each => size,
            Blocks::EachAtRoot => (rank == root) as usize * size,
        }
    }

    /// Whether a rank that has any has one for each rank.
    pub const fn are_for_each(self) -> bool {
        matches!(self, Blocks::Each | Blocks::EachAtRoot)
    }

    /// Whether only the root has any.
    pub const fn are_at_root(self) -> bool {
        matches!(self, Blocks::OneAtRoot | Blocks::EachAtRoot)
    }
}

/// Whose blocks a block of the output is made of. Of several ranks it is the reduction, of one a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Givers {
    /// All ranks'.
    All,
    /// Those of ranks 0 to this one.
    UpTo,
    /// Those of the ranks before this one.
    Before,
    /// The root's.
    Root,
    /// That of the rank whose number the block has.
    Owner,
}

/// Who knows how long the blocks are in the form with counts of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// There is no such form: all blocks are equally long.
    Even,
    /// Every rank passes all counts.
    KnownToAll,
    /// The root passes all counts, the others their own.
    KnownToRoot,
    /// Each rank passes what it sends to and receives from every other.
    KnownToPairs,
}

/// A row of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// The name used everywhere: `all_reduce`.
    pub name: &'static str,
    /// That of its form with counts of its own, where it has one: `all_gather_v`.
    pub name_v: &'static str,
    /// What it takes.
    pub input: Blocks,
    /// What it gives.
    pub output: Blocks,
    /// Of whose blocks.
    pub givers: Givers,
    /// With counts of their own.
    pub counts: Counts,
}

/// What a block of an output is made of; see [`Collective::contributions`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contributions {
    /// The ranks that contribute. The block is the reduction of what they do, in their order, or a copy where the
    /// collective does not reduce; there is one then.
    pub ranks: Range<Rank>,
    /// Which block of their inputs.
    pub block: usize,
}

macro_rules! enumerate {
    ($({
        #[doc = $text:literal]
        $variant:ident $name:ident: $in:ident => $out:ident, $givers:ident, $counts:ident;
        $($methods:tt)*
    })+) => {
        /// A collective: what ranks do together. The list is in [`catalogue`](crate::catalogue).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Collective {
            $(#[doc = $text] $variant,)*
        }

        impl Collective {
            /// Every collective that has schedules.
            pub const ALL: [Collective; [$(stringify!($variant)),*].len()] = [$(Collective::$variant),*];

            const ROWS: [Meaning; Collective::ALL.len()] = [$(Meaning {
                name: stringify!($name),
                name_v: concat!(stringify!($name), "_v"),
                input: Blocks::$in,
                output: Blocks::$out,
                givers: Givers::$givers,
                counts: Counts::$counts,
            }),*];
        }
    };
}

collectives!(enumerate);

impl Collective {
    /// Its row of the list.
    #[inline]
    pub const fn meaning(self) -> &'static Meaning {
        &Collective::ROWS[self as usize]
    }

    /// The name used everywhere: `all_reduce`.
    #[inline]
    pub const fn name(self) -> &'static str {
        self.meaning().name
    }

    /// Whether the call names a root.
    #[inline]
    pub const fn is_rooted(self) -> bool {
        let Meaning { input, output, .. } = *self.meaning();
        input.are_at_root() || output.are_at_root()
    }

    /// Whether each rank gets the reduction of those before it rather than of all.
    #[inline]
    pub const fn is_scan(self) -> bool {
        matches!(self.meaning().givers, Givers::UpTo | Givers::Before)
    }

    /// Whether it combines elements.
    #[inline]
    pub const fn reduces(self) -> bool {
        !self.is_barrier() && !matches!(self.meaning().givers, Givers::Root | Givers::Owner)
    }

    /// Whether it moves nothing, and ranks only wait for each other.
    #[inline]
    pub const fn is_barrier(self) -> bool {
        matches!(self.meaning().output, Blocks::None)
    }

    /// Whether every rank's output is the same.
    #[inline]
    pub const fn gives_all_the_same(self) -> bool {
        let Meaning { input, output, givers, .. } = *self.meaning();
        !input.are_for_each() && !output.are_at_root() && matches!(givers, Givers::All | Givers::Root)
    }

    /// Whether it has a form on blocks with counts of their own: `all_gather_v`.
    #[inline]
    pub const fn has_counts(self) -> bool {
        !matches!(self.meaning().counts, Counts::Even)
    }

    /// Blocks in the input of `rank` (0: the rank passes none).
    #[inline]
    pub const fn input_blocks(self, rank: Rank, size: usize, root: Rank) -> usize {
        self.meaning().input.on(rank, size, root)
    }

    /// Blocks in the output of `rank` (0: the rank gets none).
    #[inline]
    pub const fn output_blocks(self, rank: Rank, size: usize, root: Rank) -> usize {
        self.meaning().output.on(rank, size, root)
    }

    /// Where in-place calls put the smaller buffer inside the larger one, as NCCL does: the block index of the larger
    /// buffer at which rank `rank`'s block of the smaller one lies. `None`: the collective has no in-place form without
    /// a copy (all-to-all).
    #[inline]
    pub const fn in_place_block(self, rank: Rank) -> Option<usize> {
        let Meaning { input, output, .. } = *self.meaning();
        match (input.are_for_each(), output.are_for_each()) {
            (true, true) => None,
            (false, false) => Some(0),
            _ => Some(rank),
        }
    }

    /// What block `block` of rank `place.rank`'s output is made of, if it has such a block.
    #[inline]
    pub fn contributions(self, place: Place, block: usize) -> Contributions {
        let Place { rank, size, root } = place;
        let Meaning { input, givers, .. } = *self.meaning();
        let ranks = match givers {
            Givers::All => 0..size,
            Givers::UpTo => 0..rank + 1,
            Givers::Before => 0..rank,
            Givers::Root => root..root + 1,
            Givers::Owner => block..block + 1,
        };
        Contributions { ranks, block: if input.are_for_each() { rank } else { 0 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_of_every_output_is_made_of_blocks_that_there_are() {
        for collective in Collective::ALL {
            for size in 1..6 {
                for (rank, root) in (0..size).flat_map(|rank| (0..size).map(move |root| (rank, root))) {
                    for block in 0..collective.output_blocks(rank, size, root) {
                        let from = collective.contributions(Place { rank, size, root }, block);
                        assert!(!from.ranks.is_empty() && from.ranks.end <= size, "{collective:?}: {from:?}");
                        assert!(from.ranks.len() == 1 || collective.reduces(), "{collective:?}: {from:?}");
                        for giver in from.ranks {
                            assert!(from.block < collective.input_blocks(giver, size, root), "{collective:?}");
                        }
                    }
                }
            }
        }
    }
}
