//! What the kernels are compared with: each operation on one element, in the most obvious code, and operands worth
//! trying.

use half::{bf16, f16};
use maypole_collectives::{Element, F8E4M3, F8E5M2, ReduceOp};

/// The operations that have a kernel.
pub const OPS: [ReduceOp; 7] =
    [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max, ReduceOp::And, ReduceOp::Or, ReduceOp::Xor];

/// One element of each operation. The NaN of a result is the positive quiet one, without payload.
pub trait Plain: Element {
    /// Codes worth trying, as the low bytes of each word.
    const SPECIAL: &'static [u64];

    fn plain(op: ReduceOp, a: Self, b: Self) -> Self;

    fn plain_quotient(self, divisor: u64) -> Self;

    fn from_code(code: u64) -> Self {
        *bytemuck::from_bytes(&code.to_le_bytes()[..size_of::<Self>()])
    }
}

/// Runs a generic function for each of the element types.
macro_rules! for_each_type {
    ($check:ident) => {
        $check::<i8>();
        $check::<u8>();
        $check::<i32>();
        $check::<u32>();
        $check::<i64>();
        $check::<u64>();
        $check::<half::f16>();
        $check::<half::bf16>();
        $check::<f32>();
        $check::<f64>();
        $check::<maypole_collectives::F8E4M3>();
        $check::<maypole_collectives::F8E5M2>();
    };
}
pub(crate) use for_each_type;

macro_rules! plain_integer {
    ($($type:ty),*) => {$(
        impl Plain for $type {
            const SPECIAL: &'static [u64] =
                &[0, 1, u64::MAX, <$type>::MAX as u64, <$type>::MIN as u64, 1 << (<$type>::BITS - 1), 2, 3];

            fn plain(op: ReduceOp, a: $type, b: $type) -> $type {
                match op {
                    ReduceOp::Sum => a.wrapping_add(b),
                    ReduceOp::Prod => a.wrapping_mul(b),
                    ReduceOp::Min => a.min(b),
                    ReduceOp::Max => a.max(b),
                    ReduceOp::And => a & b,
                    ReduceOp::Or => a | b,
                    ReduceOp::Xor => a ^ b,
                    other => panic!("no plain form of {}", other.name()),
                }
            }

            fn plain_quotient(self, divisor: u64) -> $type {
                (self as i128 / divisor as i128) as $type
            }
        }
    )*};
}

plain_integer!(i8, u8, i32, u32, i64, u64);

/// `$wide` is what a step is computed in. -0 is below +0.
macro_rules! plain_float {
    ($($type:ty, $wide:ident, $widen:expr, $narrow:expr, nan: $nan:expr, special: $special:expr;)*) => {$(
        impl Plain for $type {
            const SPECIAL: &'static [u64] = &$special;

            fn plain(op: ReduceOp, a: $type, b: $type) -> $type {
                let (a, b) = ($widen(a), $widen(b));
                let result: $wide = match op {
                    ReduceOp::Sum => a + b,
                    ReduceOp::Prod => a * b,
                    _ if a.is_nan() || b.is_nan() => $wide::NAN,
                    ReduceOp::Min => if a.total_cmp(&b).is_lt() { a } else { b },
                    ReduceOp::Max => if a.total_cmp(&b).is_gt() { a } else { b },
                    other => panic!("no plain form of {}", other.name()),
                };
                if result.is_nan() { <$type>::from_code($nan) } else { $narrow(result) }
            }

            fn plain_quotient(self, divisor: u64) -> $type {
                let result = $widen(self) / divisor as $wide;
                if result.is_nan() { <$type>::from_code($nan) } else { $narrow(result) }
            }
        }
    )*};
}

// Zeros, ones, smallest and largest subnormals, smallest and largest normals, infinities, quiet and signalling NaNs,
// either sign.
plain_float! {
    f16, f32, f16::to_f32, f16::from_f32, nan: 0x7e00,
        special: [
            0, 0x8000, 0x3c00, 0xbc00, 1, 0x8001, 0x3ff, 0x83ff, 0x400, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00,
            0xfe01, 0x7c01,
        ];
    bf16, f32, bf16::to_f32, bf16::from_f32, nan: 0x7fc0,
        special: [
            0, 0x8000, 0x3f80, 0xbf80, 1, 0x8001, 0x7f, 0x807f, 0x80, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0, 0xffc1,
            0x7f81,
        ];
    f32, f32, |x| x, |x| x, nan: 0x7fc0_0000,
        special: [
            0, 0x8000_0000, 0x3f80_0000, 0xbf80_0000, 1, 0x8000_0001, 0x7f_ffff, 0x80_0000, 0x7f7f_ffff, 0xff7f_ffff,
            0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0xffc0_0001, 0x7f80_0001, 0xff80_0001,
        ];
    f64, f64, |x| x, |x| x, nan: 0x7ff8_0000_0000_0000,
        special: [
            0, 1 << 63, 0x3ff0 << 48, 0xbff0 << 48, 1, 1 << 63 | 1, 0xf_ffff_ffff_ffff, 1 << 52,
            0x7fef_ffff_ffff_ffff, 0xffef_ffff_ffff_ffff, 0x7ff0 << 48, 0xfff0 << 48, 0x7ff8 << 48, 0xfff8 << 48 | 1,
            0x7ff0 << 48 | 1, 0xfff0 << 48 | 1,
        ];
    F8E4M3, f32, F8E4M3::to_f32, F8E4M3::from_f32, nan: 0x7f,
        special: [
            0, 0x80, 0x38, 0xb8, 1, 0x81, 7, 0x87, 8, 0x7e, 0xfe, 0x7f, 0xff, 0x08,
        ];
    F8E5M2, f32, F8E5M2::to_f32, F8E5M2::from_f32, nan: 0x7e,
        special: [
            0, 0x80, 0x3c, 0xbc, 1, 0x81, 3, 0x83, 4, 0x7b, 0xfb, 0x7c, 0xfc, 0x7d, 0x7e, 0x7f, 0xff,
        ];
}

/// `count` pairs: every pair of special codes first, then special and random ones mixed, spread over the positions by a
/// stride so that short prefixes differ in kind too.
pub fn operands<T: Plain>(count: usize) -> (Vec<T>, Vec<T>) {
    let kinds = T::SPECIAL.len();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        // xorshift64*, Vigna 2016.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8 ^ state << 56
    };
    (0..count)
        .map(|i| {
            let pair = i * 7 % (kinds * kinds);
            let (a, b) = (T::SPECIAL[pair % kinds], T::SPECIAL[pair / kinds]);
            let (a, b) = match i % 4 {
                0 => (a, b),
                1 => (a, random()),
                2 => (random(), b),
                _ => (random(), random()),
            };
            (T::from_code(a), T::from_code(b))
        })
        .unzip()
}
