//! Typed, safe forms of the kernels, for callers that hold slices.

use crate::{Element, ReduceOp};

/// `dst[i] = a[i] ⊕ b[i]`.
///
/// # Panics
/// If the lengths differ, or if the operation is not defined on `T` ([`ReduceOp::supports`]), or if it is the user's:
/// whether its function was made for `T` cannot be checked here, so call [`super::reduce`].
pub fn reduce<T: Element>(op: ReduceOp, dst: &mut [T], a: &[T], b: &[T]) {
    check(op, dst, b);
    assert_eq!(a.len(), dst.len(), "operand and destination of a reduction differ in length");
    // SAFETY: both operands and the destination have this length, and a unique borrow overlaps no other.
    unsafe {
        super::reduce(op, T::DTYPE, dst.as_mut_ptr().cast(), a.as_ptr().cast(), b.as_ptr().cast(), dst.len());
    }
}

/// `dst[i] = dst[i] ⊕ b[i]`.
///
/// # Panics
/// As for [`reduce`].
pub fn reduce_in_place<T: Element>(op: ReduceOp, dst: &mut [T], b: &[T]) {
    check(op, dst, b);
    let both = dst.as_mut_ptr().cast::<u8>();
    // SAFETY: operand and destination have this length; the first operand is the destination, exactly.
    unsafe { super::reduce(op, T::DTYPE, both, both, b.as_ptr().cast(), dst.len()) }
}

fn check<T: Element>(op: ReduceOp, dst: &[T], b: &[T]) {
    assert_eq!(b.len(), dst.len(), "operand and destination of a reduction differ in length");
    assert!(op.supports(T::DTYPE), "{} is not defined on {}", op.name(), T::DTYPE);
    assert!(!matches!(op, ReduceOp::User(_)), "a user's operation has no safe form");
}
