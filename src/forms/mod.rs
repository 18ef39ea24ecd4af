//! The collectives as methods, in every form of a call.
//!
//! A form is a type that has the same methods as every other: [blocking](Communicator), asynchronous
//! ([`Start`](crate::communicator::request::Start)), in a [group](crate::Group), persistent
//! ([`Planner`](crate::communicator::planner::Planner)) and [on a stream](crate::cuda::OnStream). Which methods there
//! are, what they take and what they say of themselves comes from the [list](maypole_collectives::catalogue) of
//! collectives. The file of a form is a macro that says, for each of five kinds of methods, what the form takes for
//! buffers and where a call goes whose arguments are known. This file has what they share: the walk over the list
//! (`methods!`), and how a method's arguments become that call.

mod blocking;
mod group;
mod on_stream;
mod persistent;
mod start;

use maypole_collectives::catalogue::{Counts, Meaning};
use maypole_collectives::schedule::Collective;
use maypole_collectives::{DataType, Element, ReduceOp};

use crate::Blocks;
use crate::communicator::Call;

/// For each row of the list, `$form!` with
///
/// * `apart Variant method (arguments) "text"`: on two buffers;
/// * `in_place Variant method (arguments) "text"`: on one;
/// * `input`, `output` or `both Variant method (arguments) "text"`: on two, whose blocks have counts of their own on
///   that side;
/// * `buffer Variant method (arguments) "text"`: on one, whose blocks have counts of their own.
macro_rules! methods {
    ($form:ident $({
        #[doc = $what:literal]
        $variant:ident $name:ident: $takes:ident => $gives:ident, $givers:ident, $counts:ident;
        $(
            $args:tt
            $apart:ident $doc:literal
            $in_place:ident $doc_in_place:literal
            $($side:ident $apart_v:ident $doc_v:literal $in_place_v:ident $doc_in_place_v:literal)?
        )?
    })+) => {$($(
        $form! { apart $variant $apart $args $doc }
        $form! { in_place $variant $in_place $args $doc_in_place }
        $(
            $form! { $side $variant $apart_v $args $doc_v }
            $form! { buffer $variant $in_place_v $args $doc_in_place_v }
        )?
    )?)+};
}
use methods;

/// The arguments of methods beside their buffers.
#[derive(Clone, Copy)]
struct Extra {
    op: ReduceOp,
    root: usize,
}

impl Extra {
    fn op(self, op: ReduceOp) -> Extra {
        Extra { op, ..self }
    }

    fn root(self, root: usize) -> Extra {
        Extra { root, ..self }
    }
}

/// What stands for those that a method has not; its collective ignores them.
const NO_EXTRA: Extra = Extra { op: ReduceOp::Sum, root: 0 };

/// The barrier, which has no buffers.
const BARRIER: Call =
    Call { collective: Collective::Barrier, dtype: DataType::U8, count: 0, op: ReduceOp::Sum, root: 0 };

/// A method that is called on rank `rank` of `size`.
#[derive(Clone, Copy)]
struct Method {
    collective: Collective,
    rank: usize,
    size: usize,
    extra: Extra,
}

impl Method {
    /// The call on two buffers of so many elements.
    #[inline]
    fn apart<T: Element>(self, input: usize, output: usize) -> Call {
        use maypole_collectives::catalogue::Blocks::One;
        // The side that every rank has in full tells how long a block is.
        self.call::<T>(match self.collective.meaning() {
            Meaning { input: One, .. } => input,
            Meaning { output: One, .. } => output,
            _ => input / self.size,
        })
    }

    /// The call on one buffer of so many elements.
    #[inline]
    fn in_place<T: Element>(self, buffer: usize) -> Call {
        let Method { collective, rank, size, extra } = self;
        let inputs = collective.input_blocks(rank, size, extra.root);
        let outputs = collective.output_blocks(rank, size, extra.root);
        self.call::<T>(buffer / inputs.max(outputs).max(1))
    }

    /// The call on blocks with counts of their own.
    #[inline]
    fn variable<T: Element>(self) -> Call {
        self.call::<T>(0)
    }

    #[inline]
    fn call<T: Element>(self, count: usize) -> Call {
        let Extra { op, root } = self.extra;
        Call { collective: self.collective, dtype: T::DTYPE, count, op, root }
    }

    /// Whether this rank gets nothing where others do, and may pass any output, which stays as it was.
    #[inline]
    fn leaves_output(self) -> bool {
        use maypole_collectives::catalogue::Blocks::OneButFirst;
        self.rank == 0 && self.collective.meaning().output == OneButFirst
    }

    /// The blocks of the side that has one for each rank: as they were passed, or `otherwise` where only the root's
    /// count.
    fn blocks<'o, 'b: 'o>(self, passed: impl Into<Blocks<'b>>, otherwise: &'o [usize]) -> Blocks<'o> {
        match self.collective.meaning().counts {
            Counts::KnownToRoot if self.rank != self.extra.root => Blocks::packed(otherwise),
            _ => passed.into(),
        }
    }
}
