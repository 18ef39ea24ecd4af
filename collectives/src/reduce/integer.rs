//! Integers: everything wraps, so sums and products do not care about the sign; minimum, maximum and quotients do.

use super::dispatch::{And, Max, Min, Or, Prod, Sum, Xor};
use super::lanes::{Map, Op};

macro_rules! wrapping {
    ($($type:ty),*) => {$(
        impl Op<$type> for Sum {
            #[inline(always)]
            fn apply(a: $type, b: $type) -> $type {
                a.wrapping_add(b)
            }
        }

        impl Op<$type> for Prod {
            #[inline(always)]
            fn apply(a: $type, b: $type) -> $type {
                a.wrapping_mul(b)
            }
        }
    )*};
}

wrapping!(u8, u32, u64);

macro_rules! ordered {
    ($($type:ty),*) => {$(
        impl Op<$type> for Min {
            #[inline(always)]
            fn apply(a: $type, b: $type) -> $type {
                a.min(b)
            }
        }

        impl Op<$type> for Max {
            #[inline(always)]
            fn apply(a: $type, b: $type) -> $type {
                a.max(b)
            }
        }
    )*};
}

ordered!(i8, u8, i32, u32, i64, u64);

/// Bitwise operations run on bytes, whatever the type.
macro_rules! bitwise {
    ($($op:ident $symbol:tt),*) => {$(
        impl Op<u8> for $op {
            #[inline(always)]
            fn apply(a: u8, b: u8) -> u8 {
                a $symbol b
            }
        }
    )*};
}

bitwise!(And &, Or |, Xor ^);

/// Division by a positive integer; quotients of integers are truncated towards zero.
///
/// Processors divide vectors of floats but not of integers. For 8-bit integers f32, and for 32-bit integers f64, is
/// wide enough that truncating the rounded quotient is exact: a quotient that is no integer is at least 1/d away from
/// the next, and its rounding error is less than that. A divisor too large to be exact in the float type gives 0 either
/// way. 64-bit integers are divided one at a time.
#[derive(Clone, Copy)]
pub(super) struct Quotient(u64);

impl Quotient {
    /// # Panics
    /// If `divisor` is 0.
    pub(super) fn by(divisor: u64) -> Quotient {
        assert!(divisor != 0, "a sum was to be divided by 0; the divisor of an average is a world size, so at least 1");
        Quotient(divisor)
    }

    /// The divisor, at least 1.
    #[inline(always)]
    pub(super) fn divisor(self) -> u64 {
        self.0
    }
}

macro_rules! divide_as_float {
    ($($type:ty, $float:ty;)*) => {$(
        impl Map<$type> for Quotient {
            #[inline(always)]
            fn apply(self, x: $type) -> $type {
                let quotient = x as $float / self.0 as $float;
                // SAFETY: the divisor is at least 1, so the quotient is finite and between 0 and x. (A checked
                // conversion would be five times as slow: it saturates, lane by lane.)
                unsafe { quotient.to_int_unchecked() }
            }
        }
    )*};
}

divide_as_float! {
    i8, f32;
    u8, f32;
    i32, f64;
    u32, f64;
}

impl Map<u64> for Quotient {
    #[inline(always)]
    fn apply(self, x: u64) -> u64 {
        x / self.0
    }
}

impl Map<i64> for Quotient {
    #[inline(always)]
    fn apply(self, x: i64) -> i64 {
        // By magnitude, as the divisor may be beyond i64. i64::MIN / 1 comes back as itself.
        let magnitude = (x.unsigned_abs() / self.0) as i64;
        if x < 0 { magnitude.wrapping_neg() } else { magnitude }
    }
}
