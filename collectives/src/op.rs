//! Reduction operations.

use crate::element::Operand;
use crate::pair::Pair;
use crate::{DataType, Element};

/// A user's operation on `count` elements: `dst = a ⊕ b`, elementwise. Pointers may be unaligned, and `dst` may be `a`
/// or `b`. An operation with a [width](UserOp::width) gets whole operands only: `count` is a
/// multiple of the width.
///
/// # Safety
/// Called with `a` and `b` readable and `dst` writable for `count` elements of the type that the operation was made
/// for.
pub type UserFn = unsafe fn(dst: *mut u8, a: *const u8, b: *const u8, count: usize);

/// A [`UserFn`] that is also given what it was made with, for languages whose functions have no state of their own.
///
/// # Safety
/// As for [`UserFn`], and `context` is what [`UserOp::with_context`] was given.
pub type UserFnWith = unsafe fn(context: *const (), dst: *mut u8, a: *const u8, b: *const u8, count: usize);

#[derive(Clone, Copy, Debug)]
enum Function {
    Plain(UserFn),
    With(UserFnWith, *const ()),
}

/// An operation of the user's own on one element type. It must be associative as far as the user
/// cares, and commutative unless it says that it is not ([`UserOp::not_commuting`]): the order in
/// which ranks are combined is the algorithm's, though the same on every rank.
///
/// ```
/// use maypole_collectives::op::{Operator, ReduceOp, UserOp};
///
/// /// The one further from zero.
/// struct Largest;
/// impl Operator for Largest {
///     type Element = f32;
///     const ID: u32 = 1;
///     fn combine(a: f32, b: f32) -> f32 {
///         if a.abs() >= b.abs() { a } else { b }
///     }
/// }
/// let op = ReduceOp::User(UserOp::of::<Largest>());
/// ```
///
/// Operands of several elements (complex numbers, small matrices, sums with their carries) are
/// arrays of them, and stay together wherever a message is cut:
///
/// ```
/// use maypole_collectives::op::{Operator, ReduceOp, UserOp};
///
/// /// 2x2 matrices, row by row, multiplied in the order of the ranks.
/// struct Product;
/// impl Operator for Product {
///     type Element = [f64; 4];
///     const ID: u32 = 2;
///     const COMMUTES: bool = false;
///     fn combine([a, b, c, d]: [f64; 4], [e, f, g, h]: [f64; 4]) -> [f64; 4] {
///         [a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h]
///     }
/// }
/// let op = ReduceOp::User(UserOp::of::<Product>()); // on slices of f64: `matrices.as_flattened()`
/// ```
#[derive(Clone, Copy, Debug)]
pub struct UserOp {
    id: u32,
    dtype: DataType,
    commutes: bool,
    width: u16,
    function: Function,
}

// SAFETY: a context is only handed to its function, and whoever makes the operation promises that any thread may do so.
unsafe impl Send for UserOp {}
// SAFETY: as above.
unsafe impl Sync for UserOp {}

/// What [`UserOp::of`] makes an operation from.
pub trait Operator {
    /// What it combines: an element, or an array of elements that stay together.
    type Element: Operand;
    /// Names the operation in fingerprints: ranks that use different ids as the same operation are told.
    const ID: u32;
    /// Whether a ⊕ b is b ⊕ a, as far as the user cares. If not, ranks are combined in their order;
    /// see [`UserOp::not_commuting`].
    const COMMUTES: bool = true;
    /// a ⊕ b. A panic is caught and ends the communicator: on every rank its calls return an error that says so.
    fn combine(a: Self::Element, b: Self::Element) -> Self::Element;
}

impl UserOp {
    /// The operation that applies [`Operator::combine`] to each pair of operands.
    pub fn of<O: Operator>() -> UserOp {
        /// # Safety
        /// As for [`UserFn`].
        unsafe fn each<O: Operator>(dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
            let (dst, a, b) = (dst.cast::<O::Element>(), a.cast::<O::Element>(), b.cast::<O::Element>());
            for i in 0..count / usize::from(O::Element::WIDTH) {
                // SAFETY: the caller promises `count` elements at each pointer, which are so many
                // operands; every bit pattern is one.
                unsafe {
                    let combined = O::combine(a.add(i).read_unaligned(), b.add(i).read_unaligned());
                    dst.add(i).write_unaligned(combined);
                }
            }
        }
        UserOp {
            id: O::ID,
            dtype: <<O::Element as Operand>::Scalar as Element>::DTYPE,
            commutes: O::COMMUTES,
            width: O::Element::WIDTH,
            function: Function::Plain(each::<O>),
        }
    }

    /// An operation given as a plain function, for other languages. It commutes, and has a width of
    /// 1.
    ///
    /// # Safety
    /// `function` must do what [`UserFn`] says, for elements of `dtype`. A panic of it ends the communicator.
    pub const unsafe fn from_raw(id: u32, dtype: DataType, function: UserFn) -> UserOp {
        UserOp { id, dtype, commutes: true, width: 1, function: Function::Plain(function) }
    }

    /// [`UserOp::from_raw`] for a function that is given `context` at every call.
    ///
    /// # Safety
    /// As for [`UserOp::from_raw`]; and the function may be called with `context` from any thread, as long as an
    /// operation runs that was called with this or a copy.
    pub const unsafe fn with_context(id: u32, dtype: DataType, function: UserFnWith, context: *const ()) -> UserOp {
        UserOp { id, dtype, commutes: true, width: 1, function: Function::With(function, context) }
    }

    /// The same, but `width` elements, one after the other from the start of a block, are one
    /// operand and stay together: the function is never given a part of one. Blocks then have a
    /// multiple of so many elements. Every rank must say the same.
    ///
    /// # Panics
    /// If `width` is 0.
    pub const fn with_width(self, width: u16) -> UserOp {
        assert!(width > 0, "an operand has at least one element");
        UserOp { width, ..self }
    }

    /// The same, but a ⊕ b is not b ⊕ a: only schedules run that combine the ranks in their order,
    /// 0, 1, 2, ..., however they put the brackets. It stays associative. Every rank must say the
    /// same.
    pub const fn not_commuting(self) -> UserOp {
        UserOp { commutes: false, ..self }
    }

    /// What ranks compare.
    pub const fn id(self) -> u32 {
        self.id
    }

    /// The elements it combines.
    pub const fn dtype(self) -> DataType {
        self.dtype
    }

    /// How many elements are one operand, and stay together.
    pub const fn width(self) -> usize {
        self.width as usize
    }

    /// Whether ranks may be combined in any order.
    pub const fn commutes(self) -> bool {
        self.commutes
    }

    /// Combine `count` elements.
    ///
    /// # Safety
    /// As for [`UserFn`].
    pub(crate) unsafe fn apply(self, dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
        // SAFETY: the caller's promise, and that of whoever made the operation.
        unsafe {
            match self.function {
                Function::Plain(function) => function(dst, a, b, count),
                Function::With(function, context) => function(context, dst, a, b, count),
            }
        }
    }
}

/// In which order the elements of different ranks are combined. Floating-point sums depend on it in their last bits.
///
/// Either way all ranks of one call get the same bits where they get the same elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// Whatever order the algorithm has; another algorithm, message size, transport or placement of the ranks on hosts
    /// may mean other bits.
    #[default]
    Free,
    /// The left fold in rank order, ((x0 ⊕ x1) ⊕ x2) ⊕ ..., whatever runs it: the same ranks with the same inputs get
    /// the same bits everywhere. Only algorithms that are
    /// [canonical](crate::algorithms::Algorithm::is_canonical) serve.
    Canonical,
}

/// How elements are combined. The 8- and 16-bit floats are widened to f32 for each pairwise step and rounded to nearest
/// even after it.
#[derive(Clone, Copy, Debug)]
pub enum ReduceOp {
    /// Sum; integers wrap.
    Sum,
    /// Product; integers wrap.
    Prod,
    /// Minimum; NaN if any operand is NaN.
    Min,
    /// Maximum; NaN if any operand is NaN.
    Max,
    /// Sum, then divided by the world size (integers: truncating).
    Avg,
    /// Each rank's input times its own factor, then the sum. The factor is rounded to the element type (integers:
    /// truncated).
    PreMulSum(f64),
    /// Bitwise and; integers only.
    And,
    /// Bitwise or; integers only.
    Or,
    /// Bitwise exclusive or; integers only.
    Xor,
    /// Of pairs (value, index), the one with the least value; of several such, the one with the
    /// least index. A value that is NaN is less than all others. For elements of the pair's
    /// [`dtype`](Pair::dtype), two to a pair; see [`Located`](crate::Located).
    MinLoc(Pair),
    /// Of pairs (value, index), the one with the greatest value; of several such, the one with the
    /// least index. A value that is NaN is greater than all others. Otherwise as
    /// [`ReduceOp::MinLoc`].
    MaxLoc(Pair),
    /// The user's own; on the type it was made for.
    User(UserOp),
}

impl ReduceOp {
    /// The name used on command lines and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Prod => "prod",
            ReduceOp::Min => "min",
            ReduceOp::Max => "max",
            ReduceOp::Avg => "avg",
            ReduceOp::PreMulSum(_) => "premulsum",
            ReduceOp::And => "and",
            ReduceOp::Or => "or",
            ReduceOp::Xor => "xor",
            ReduceOp::MinLoc(_) => "minloc",
            ReduceOp::MaxLoc(_) => "maxloc",
            ReduceOp::User(_) => "user",
        }
    }

    /// How many elements are one operand, and stay together: more than 1 for pairs, and for the
    /// user's own that say so.
    pub const fn width(self) -> usize {
        match self {
            ReduceOp::MinLoc(_) | ReduceOp::MaxLoc(_) => Pair::WIDTH,
            ReduceOp::User(op) => op.width(),
            _ => 1,
        }
    }

    /// Whether ranks may be combined in any order. The built-in operations all commute.
    pub const fn commutes(self) -> bool {
        !matches!(self, ReduceOp::User(UserOp { commutes: false, .. }))
    }

    /// Whether blocks of `count` elements are whole operands.
    #[inline]
    pub const fn divides(self, count: usize) -> bool {
        // Not by `width`: most operations need no division.
        match self {
            ReduceOp::MinLoc(_) | ReduceOp::MaxLoc(_) => count.is_multiple_of(Pair::WIDTH),
            ReduceOp::User(op) => count.is_multiple_of(op.width()),
            _ => true,
        }
    }

    /// Whether the operation is defined on `dtype`.
    pub const fn supports(self, dtype: DataType) -> bool {
        match self {
            ReduceOp::And | ReduceOp::Or | ReduceOp::Xor => dtype.is_integer(),
            ReduceOp::MinLoc(pair) | ReduceOp::MaxLoc(pair) => pair.dtype() as u8 == dtype as u8,
            ReduceOp::User(op) => op.dtype as u8 == dtype as u8,
            _ => true,
        }
    }
}
