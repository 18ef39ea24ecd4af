//! Reduction operations.

use crate::{DataType, Element};

/// A user's operation on `count` elements: `dst = a ⊕ b`, elementwise. Pointers may be unaligned, and `dst` may be `a`
/// or `b`.
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

/// An operation of the user's own on one element type. It must be associative and commutative as far as the user cares:
/// the order in which ranks are combined is the algorithm's, though the same on every rank.
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
#[derive(Clone, Copy, Debug)]
pub struct UserOp {
    id: u32,
    dtype: DataType,
    function: Function,
}

// SAFETY: a context is only handed to its function, and whoever makes the operation promises that any thread may do so.
unsafe impl Send for UserOp {}
// SAFETY: as above.
unsafe impl Sync for UserOp {}

/// What [`UserOp::of`] makes an operation from.
pub trait Operator {
    /// The elements it combines.
    type Element: Element;
    /// Names the operation in fingerprints: ranks that use different ids as the same operation are told.
    const ID: u32;
    /// a ⊕ b. A panic is caught and ends the communicator: on every rank its calls return an error that says so.
    fn combine(a: Self::Element, b: Self::Element) -> Self::Element;
}

impl UserOp {
    /// The operation that applies [`Operator::combine`] to each pair of elements.
    pub fn of<O: Operator>() -> UserOp {
        /// # Safety
        /// As for [`UserFn`].
        unsafe fn each<O: Operator>(dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
            let (dst, a, b) = (dst.cast::<O::Element>(), a.cast::<O::Element>(), b.cast::<O::Element>());
            for i in 0..count {
                // SAFETY: the caller promises `count` elements at each pointer; every bit pattern is an element.
                unsafe {
                    let combined = O::combine(a.add(i).read_unaligned(), b.add(i).read_unaligned());
                    dst.add(i).write_unaligned(combined);
                }
            }
        }
        UserOp { id: O::ID, dtype: <O::Element as Element>::DTYPE, function: Function::Plain(each::<O>) }
    }

    /// An operation given as a plain function, for other languages.
    ///
    /// # Safety
    /// `function` must do what [`UserFn`] says, for elements of `dtype`. A panic of it ends the communicator.
    pub const unsafe fn from_raw(id: u32, dtype: DataType, function: UserFn) -> UserOp {
        UserOp { id, dtype, function: Function::Plain(function) }
    }

    /// [`UserOp::from_raw`] for a function that is given `context` at every call.
    ///
    /// # Safety
    /// As for [`UserOp::from_raw`]; and the function may be called with `context` from any thread, as long as an
    /// operation runs that was called with this or a copy.
    pub const unsafe fn with_context(id: u32, dtype: DataType, function: UserFnWith, context: *const ()) -> UserOp {
        UserOp { id, dtype, function: Function::With(function, context) }
    }

    /// What ranks compare.
    pub const fn id(self) -> u32 {
        self.id
    }

    /// The elements it combines.
    pub const fn dtype(self) -> DataType {
        self.dtype
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
            ReduceOp::User(_) => "user",
        }
    }

    /// Whether the operation is defined on `dtype`.
    pub const fn supports(self, dtype: DataType) -> bool {
        match self {
            ReduceOp::And | ReduceOp::Or | ReduceOp::Xor => dtype.is_integer(),
            ReduceOp::User(op) => op.dtype as u8 == dtype as u8,
            _ => true,
        }
    }
}
