//! f32 and f64.
//!
//! Two things are pinned down that the hardware leaves to chance, so that a result is a function of its operands alone
//! and not of their order, of the place in the buffer or of the instructions used. Every NaN result is the positive
//! quiet NaN without payload (the bits that an addition of two NaNs keeps are those of whichever operand the compiler
//! put first). And minimum and maximum order -0 below +0 (IEEE 754-2019 `minimum` and `maximum`), where the instruction
//! returns its second operand.

use super::dispatch::{Max, Min, Prod, Sum};
use super::integer::Quotient;
use super::lanes::{Map, Op};

/// Makes every NaN the same.
trait OneNan {
    /// The value itself, or the positive quiet NaN.
    fn one_nan(self) -> Self;
}

macro_rules! float {
    ($($type:ident, $bits:ident, $nan:expr;)*) => {$(
        impl OneNan for $type {
            #[inline(always)]
            fn one_nan(self) -> $type {
                const NAN: $bits = $nan;
                // On the bits: a selection between floats would leave the compiler free to keep any NaN.
                $type::from_bits(if self.is_nan() { NAN } else { self.to_bits() })
            }
        }

        impl Op<$type> for Sum {
            #[inline(always)]
            fn apply(a: $type, b: $type) -> $type {
                (a + b).one_nan()
            }
        }

        impl Op<$type> for Prod {
            #[inline(always)]
            fn apply(a: $type, b: $type) -> $type {
                (a * b).one_nan()
            }
        }

        impl Op<$type> for Min {
            #[inline(always)]
            fn apply(a: $type, b: $type) -> $type {
                let x = if a < b { a } else { b }.to_bits();
                let y = if b < a { b } else { a }.to_bits();
                // x and y differ only for two zeros, where `or` keeps the minus, and for NaN.
                $type::from_bits(if a.is_nan() | b.is_nan() { $nan } else { x | y })
            }
        }

        impl Op<$type> for Max {
            #[inline(always)]
            fn apply(a: $type, b: $type) -> $type {
                let x = if a > b { a } else { b }.to_bits();
                let y = if b > a { b } else { a }.to_bits();
                $type::from_bits(if a.is_nan() | b.is_nan() { $nan } else { x & y })
            }
        }

        impl Map<$type> for Quotient {
            #[inline(always)]
            fn apply(self, x: $type) -> $type {
                (x / self.divisor() as $type).one_nan()
            }
        }
    )*};
}

float! {
    f32, u32, 0x7fc0_0000;
    f64, u64, 0x7ff8_0000_0000_0000;
}
