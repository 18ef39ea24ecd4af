//! The floats of 8 and 16 bits.
//!
//! Sums, products and quotients are computed in f32 and rounded to nearest even. Minimum and maximum need no
//! arithmetic: they compare the codes, after a mapping under which integer order is the order of the values. NaN and
//! signed zeros are treated as in [`super::float`].

use std::marker::PhantomData;

use half::{bf16, f16};

use super::dispatch::{Max, Min, Prod, Sum};
use super::integer::Quotient;
use super::isa::Isa;
use super::lanes::{Map, Op, Step};
use crate::element::{F8E4M3, F8E5M2};
use crate::minifloat;

macro_rules! through_f32 {
    ($($type:ty, $widen:ident, $narrow:ident;)*) => {$(
        impl Op<$type> for Sum {
            #[inline(always)]
            fn apply(a: $type, b: $type) -> $type {
                let sum = minifloat::$widen(a.to_bits()) + minifloat::$widen(b.to_bits());
                <$type>::from_bits(minifloat::$narrow(sum))
            }
        }

        impl Op<$type> for Prod {
            #[inline(always)]
            fn apply(a: $type, b: $type) -> $type {
                let product = minifloat::$widen(a.to_bits()) * minifloat::$widen(b.to_bits());
                <$type>::from_bits(minifloat::$narrow(product))
            }
        }

        impl Map<$type> for Quotient {
            #[inline(always)]
            fn apply(self, x: $type) -> $type {
                <$type>::from_bits(minifloat::$narrow(minifloat::$widen(x.to_bits()) / self.divisor() as f32))
            }
        }
    )*};
}

through_f32! {
    f16, f16_to_f32, f32_to_f16;
    bf16, bf16_to_f32, f32_to_bf16;
    F8E4M3, f8e4m3_to_f32, f32_to_f8e4m3;
    F8E5M2, f8e5m2_to_f32, f32_to_f8e5m2;
}

/// A code as a signed integer that orders like the value, -0 below +0: the bits below a minus sign are flipped. What is
/// above `$largest` in magnitude is NaN.
macro_rules! ordered_by_code {
    ($($type:ty, $signed:ident, $largest:expr, $nan:expr;)*) => {$(
        impl Ordered for $type {
            type Key = $signed;

            #[inline(always)]
            fn key(self) -> $signed {
                let code = self.to_bits() as $signed;
                code ^ ((code >> ($signed::BITS - 1)) & $signed::MAX)
            }

            #[inline(always)]
            fn nan_or(a: $type, b: $type, number: $type) -> $type {
                let magnitude = |v: $type| v.to_bits() as $signed & $signed::MAX;
                let nan = (magnitude(a) > $largest) | (magnitude(b) > $largest);
                <$type>::from_bits(if nan { $nan } else { number.to_bits() })
            }
        }

        impl Op<$type> for Min {
            #[inline(always)]
            fn apply(a: $type, b: $type) -> $type {
                <$type>::nan_or(a, b, if a.key() < b.key() { a } else { b })
            }
        }

        impl Op<$type> for Max {
            #[inline(always)]
            fn apply(a: $type, b: $type) -> $type {
                <$type>::nan_or(a, b, if a.key() > b.key() { a } else { b })
            }
        }
    )*};
}

/// What minimum and maximum need of a format.
trait Ordered: Copy {
    /// A signed integer of the format's width.
    type Key: Ord;

    /// An integer that orders like the value, -0 below +0: the bits below a minus sign are flipped.
    fn key(self) -> Self::Key;

    /// The NaN if `a` or `b` is one, `number` otherwise.
    fn nan_or(a: Self, b: Self, number: Self) -> Self;
}

// The largest magnitude that is not NaN, and the NaN that is written.
ordered_by_code! {
    f16, i16, 0x7c00, 0x7e00;
    bf16, i16, 0x7f80, 0x7fc0;
    F8E4M3, i8, 0x7e, 0x7f;
    F8E5M2, i8, 0x7c, 0x7e;
}

/// `a[i] ⊕ b[i]` on binary16, in f32 by the processor's conversions. Sums and products; the rest is as quick without
/// it.
pub(super) struct PairF16<O> {
    a: *const f16,
    b: *const f16,
    op: PhantomData<O>,
}

impl<O> Clone for PairF16<O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for PairF16<O> {}

impl<O> PairF16<O> {
    /// The step for two operands.
    #[inline(always)]
    pub(super) fn new(a: *const u8, b: *const u8) -> PairF16<O> {
        PairF16 { a: a.cast(), b: b.cast(), op: PhantomData }
    }
}

impl<O: Op<f16> + Op<f32>> Step for PairF16<O> {
    type Out = f16;

    #[inline(always)]
    unsafe fn block<I: Isa, const N: usize>(self, at: usize) -> [f16; N] {
        // SAFETY: `at .. at + N` is readable and `I` is there, by contract; sums and products of f32 make one NaN only.
        unsafe { I::pair_f16::<O, N>(self.a.add(at), self.b.add(at)) }
    }
}

/// `a[i] ⊕ b[i]` on bfloat16, two to a 32-bit word: either half of a word is the upper half of an f32, so widening is a
/// shift or a mask and narrowing an addition. Half as many instructions as one element to a lane, as nothing is spread
/// out and packed again.
pub(super) struct PairBf16<O> {
    a: *const bf16,
    b: *const bf16,
    op: PhantomData<O>,
}

impl<O> Clone for PairBf16<O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for PairBf16<O> {}

impl<O> PairBf16<O> {
    /// The step for two operands.
    #[inline(always)]
    pub(super) fn new(a: *const u8, b: *const u8) -> PairBf16<O> {
        PairBf16 { a: a.cast(), b: b.cast(), op: PhantomData }
    }
}

impl<O: Op<bf16> + Op<f32>> Step for PairBf16<O> {
    type Out = bf16;

    #[inline(always)]
    unsafe fn block<I: Isa, const N: usize>(self, at: usize) -> [bf16; N] {
        let mut results = [bf16::ZERO; N];
        for (i, pair) in results.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            // SAFETY: `at .. at + N` is readable by contract.
            let (a, b) = unsafe {
                (
                    self.a.add(at + 2 * i).cast::<u32>().read_unaligned(),
                    self.b.add(at + 2 * i).cast::<u32>().read_unaligned(),
                )
            };
            // Which element is the lower half depends on the byte order; that each goes back where it came from does
            // not.
            let low = O::apply(f32::from_bits(a << 16), f32::from_bits(b << 16));
            let high = O::apply(f32::from_bits(a & 0xffff_0000), f32::from_bits(b & 0xffff_0000));
            let word = (round_to_upper_half(low) >> 16) | (round_to_upper_half(high) & 0xffff_0000);
            *pair = bytemuck::cast(word);
        }
        if let [.., last] = &mut results[..]
            && N % 2 == 1
        {
            let end = at + N - 1;
            // SAFETY: as above.
            let (a, b) = unsafe { (self.a.add(end).read_unaligned(), self.b.add(end).read_unaligned()) };
            *last = O::apply(a, b);
        }
        results
    }
}

/// The bits of a value whose NaN is the quiet one, rounded to nearest even in their upper half. The NaN's lower half is
/// zero, so it stays what it is.
#[inline(always)]
fn round_to_upper_half(value: f32) -> u32 {
    let bits = value.to_bits();
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1))
}
