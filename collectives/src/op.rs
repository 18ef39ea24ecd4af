//! Reduction operations.

use crate::DataType;

/// A user's operation on `count` elements: `dst = a ⊕ b`, elementwise. It must be associative and commutative in the
/// sense that the user can accept any order. Pointers may be unaligned, and `dst` may be `a` or `b`.
///
/// # Safety
/// Called with `a` and `b` readable and `dst` writable for `count` elements of the type that the operation was made
/// for.
pub type UserFn = unsafe fn(dst: *mut u8, a: *const u8, b: *const u8, count: usize);

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
    /// The user's function. `id` names it in fingerprints: ranks must agree on it.
    User {
        /// What ranks compare.
        id: u32,
        /// What is called.
        function: UserFn,
    },
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
            ReduceOp::User { .. } => "user",
        }
    }

    /// Whether the operation is defined on `dtype`.
    pub const fn supports(self, dtype: DataType) -> bool {
        match self {
            ReduceOp::And | ReduceOp::Or | ReduceOp::Xor => dtype.is_integer(),
            _ => true,
        }
    }
}
