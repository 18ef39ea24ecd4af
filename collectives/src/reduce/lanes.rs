//! The loop that all kernels share, and what they plug into it.
//!
//! A [`Step`] computes `N` consecutive results from its operands as an array; [`drive`] stores them, in blocks of 64,
//! then of 8, then one at a time. The array matters: `dst` may be one of the operands, so the compiler must not assume
//! that a store leaves later operands alone. When a block's results are complete before the first is stored, there is
//! nothing to assume, and the block becomes vector loads, vector arithmetic and vector stores, without a test for
//! overlap.

use std::marker::PhantomData;

use super::isa::Isa;

/// Something that computes elements.
pub(super) trait Step: Copy {
    /// The type of the results.
    type Out: Copy;

    /// The results `at .. at + N`.
    ///
    /// # Safety
    /// The processor has `I`, and the operands are readable there.
    unsafe fn block<I: Isa, const N: usize>(self, at: usize) -> [Self::Out; N];
}

/// A binary operation on `T`.
pub(super) trait Op<T>: Copy {
    /// `a ⊕ b`.
    fn apply(a: T, b: T) -> T;
}

/// `a[i] ⊕ b[i]`; the pointers need no alignment.
pub(super) struct Pair<O, T> {
    a: *const T,
    b: *const T,
    op: PhantomData<O>,
}

impl<O, T> Clone for Pair<O, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O, T> Copy for Pair<O, T> {}

impl<O, T> Pair<O, T> {
    /// The step for two operands of elements of type `T`.
    #[inline(always)]
    pub(super) fn new(a: *const u8, b: *const u8) -> Pair<O, T> {
        Pair { a: a.cast(), b: b.cast(), op: PhantomData }
    }
}

impl<O: Op<T>, T: Copy> Step for Pair<O, T> {
    type Out = T;

    #[inline(always)]
    unsafe fn block<I: Isa, const N: usize>(self, at: usize) -> [T; N] {
        std::array::from_fn(|i| {
            // SAFETY: `at + i` is below `at + N`, so it is readable by contract.
            let (a, b) = unsafe { (self.a.add(at + i).read_unaligned(), self.b.add(at + i).read_unaligned()) };
            O::apply(a, b)
        })
    }
}

/// A unary operation on `T` with a parameter.
pub(super) trait Map<T>: Copy {
    /// The image of `x`.
    fn apply(self, x: T) -> T;
}

/// `map(src[i])`; the pointer needs no alignment.
#[derive(Clone, Copy)]
pub(super) struct Mapped<M, T> {
    map: M,
    src: *const T,
}

impl<M, T> Mapped<M, T> {
    /// The step for one operand of elements of type `T`.
    #[inline(always)]
    pub(super) fn new(map: M, src: *const u8) -> Mapped<M, T> {
        Mapped { map, src: src.cast() }
    }
}

impl<M: Map<T>, T: Copy> Step for Mapped<M, T> {
    type Out = T;

    #[inline(always)]
    unsafe fn block<I: Isa, const N: usize>(self, at: usize) -> [T; N] {
        // SAFETY: `at + i` is below `at + N`, so it is readable by contract.
        std::array::from_fn(|i| self.map.apply(unsafe { self.src.add(at + i).read_unaligned() }))
    }
}

/// `dst[i] = step(i)` for `i` in `0..count`.
///
/// # Safety
/// The processor has `I`; the step's operands are readable and `dst` is writable for `count` elements, at any
/// alignment; `dst` either is an operand or does not overlap it.
#[inline(always)]
pub(super) unsafe fn drive<I: Isa, S: Step>(step: S, dst: *mut u8, count: usize) {
    let dst = dst.cast::<S::Out>();
    let mut at = 0;
    // SAFETY: as the caller promises, and `at` grows by what was written.
    unsafe {
        at = blocks::<I, S, 64>(step, dst, at, count);
        at = blocks::<I, S, 8>(step, dst, at, count);
        blocks::<I, S, 1>(step, dst, at, count);
    }
}

/// Writes blocks of `N` results from `at` on, as many as fit in `count`, and returns where it stopped.
///
/// # Safety
/// As for [`drive`].
#[inline(always)]
unsafe fn blocks<I: Isa, S: Step, const N: usize>(step: S, dst: *mut S::Out, mut at: usize, count: usize) -> usize {
    while count - at >= N {
        // SAFETY: at + N <= count, so operands and destination are in bounds. All N results exist before the first is
        // stored, and `dst` overlaps an operand only if it is that operand, so no store changes what a later block
        // reads.
        unsafe {
            let results = step.block::<I, N>(at);
            dst.add(at).cast::<[S::Out; N]>().write_unaligned(results);
        }
        at += N;
    }
    at
}
