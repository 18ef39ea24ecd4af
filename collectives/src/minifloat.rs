//! Conversions between `f32` and the floats of 8 and 16 bits, without branches.
//!
//! Each function is a handful of integer operations, one float addition and a few selections, so that a loop over it
//! becomes vector code on any processor. A format is given by its exponent bits, its mantissa bits and its smallest
//! code that is not finite: infinity in binary16 and E5M2, above which all codes are NaN; the NaN itself in OCP's E4M3,
//! which has no infinity and one NaN per sign. The exponent bias is `2^(exponent bits - 1) - 1` in all of them.
//!
//! Rounding is to nearest, ties to even. What is too large for the format becomes infinity, or NaN where there is none
//! (OCP's non-saturating mode, which ml_dtypes and PyTorch follow too). Every NaN that is written is the one positive
//! quiet NaN of the format, so equal inputs give equal bits whichever instruction computed them.

/// The code of binary16's infinity; larger ones are NaN.
pub(crate) const F16_INFINITY: u32 = 0x7c00;
/// The code of E5M2's infinity; larger ones are NaN.
pub(crate) const F8E5M2_INFINITY: u32 = 0x7c;
/// E4M3's only NaN; there is no infinity.
pub(crate) const F8E4M3_NAN: u32 = 0x7f;

/// The value of a code. `special` is the smallest code (sign aside) that is not a finite number.
#[inline(always)]
fn widen<const EXPONENT: u32, const MANTISSA: u32>(code: u32, special: u32) -> f32 {
    let shift = 23 - MANTISSA;
    let bias = (1 << (EXPONENT - 1)) - 1;
    let sign_bit = 1 << (EXPONENT + MANTISSA);
    let magnitude = code & (sign_bit - 1);
    let normal = (magnitude << shift) + ((127 - bias) << 23);
    // A subnormal code has no implicit one. Put its mantissa below an explicit one, then take that one away again: the
    // subtraction is exact, and unlike a multiplication by a power of two it never sees a subnormal f32, which some
    // processors are slow on.
    let one = (128 - bias) << 23;
    let subnormal = (f32::from_bits((magnitude << shift) | one) - f32::from_bits(one)).to_bits();
    let finite = if magnitude < (1 << MANTISSA) { subnormal } else { normal };
    // An all-ones exponent keeps the mantissa: zero is infinity, anything else NaN. E4M3's NaN has a mantissa of ones.
    let bits = if magnitude >= special { (magnitude << shift) | 0x7f80_0000 } else { finite };
    f32::from_bits(bits | ((code & sign_bit) << (31 - EXPONENT - MANTISSA)))
}

/// The code nearest to a value, without its sign, before overflow is dealt with: monotonic, so that "too large" is a
/// comparison of codes.
#[inline(always)]
fn round<const EXPONENT: u32, const MANTISSA: u32>(magnitude: u32) -> u32 {
    let shift = 23 - MANTISSA;
    let bias = (1 << (EXPONENT - 1)) - 1;
    let odd = (magnitude >> shift) & 1;
    let normal = (magnitude + ((1 << (shift - 1)) - 1) + odd).wrapping_sub((127 - bias) << 23) >> shift;
    // Below the smallest normal number, add a power of two whose last bit is worth one subnormal step: the addition
    // rounds for us.
    let anchor = (151 - bias - MANTISSA) << 23;
    let subnormal = (f32::from_bits(magnitude) + f32::from_bits(anchor)).to_bits().wrapping_sub(anchor);
    if magnitude < (128 - bias) << 23 { subnormal } else { normal }
}

/// Rounds to an IEEE-like format whose infinity is `infinity`; its NaN is the quiet one with no further mantissa bit.
#[inline(always)]
fn narrow_ieee<const EXPONENT: u32, const MANTISSA: u32>(value: f32, infinity: u32) -> u32 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let code = round::<EXPONENT, MANTISSA>(magnitude).min(infinity);
    let sign = (bits >> (31 - EXPONENT - MANTISSA)) & (1 << (EXPONENT + MANTISSA));
    if magnitude > 0x7f80_0000 { infinity | 1 << (MANTISSA - 1) } else { code | sign }
}

/// binary16 to f32. Used where no instruction does it.
#[inline(always)]
pub(crate) fn f16_to_f32(code: u16) -> f32 {
    widen::<5, 10>(code as u32, F16_INFINITY)
}

/// f32 to binary16. Used where no instruction does it.
#[inline(always)]
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    narrow_ieee::<5, 10>(value, F16_INFINITY) as u16
}

/// bfloat16 to f32.
#[inline(always)]
pub(crate) fn bf16_to_f32(code: u16) -> f32 {
    f32::from_bits((code as u32) << 16)
}

/// f32 to bfloat16. A carry out of the mantissa moves the exponent on, and out of the largest finite number gives
/// infinity.
#[inline(always)]
pub(crate) fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fc0 } else { rounded as u16 }
}

/// E4M3 to f32.
#[inline(always)]
pub(crate) fn f8e4m3_to_f32(code: u8) -> f32 {
    widen::<4, 3>(code as u32, F8E4M3_NAN)
}

/// f32 to E4M3: above 464 (halfway from 448, the largest, to what would be next) the result is NaN.
#[inline(always)]
pub(crate) fn f32_to_f8e4m3(value: f32) -> u8 {
    let bits = value.to_bits();
    // Infinity and NaN of f32 round to codes far above the NaN, so one minimum covers them and finite overflow.
    let code = round::<4, 3>(bits & 0x7fff_ffff).min(F8E4M3_NAN);
    let sign = (bits >> 24) & 0x80;
    (if code == F8E4M3_NAN { code } else { code | sign }) as u8
}

/// E5M2 to f32.
#[inline(always)]
pub(crate) fn f8e5m2_to_f32(code: u8) -> f32 {
    widen::<5, 2>(code as u32, F8E5M2_INFINITY)
}

/// f32 to E5M2: from 61440 (halfway from 57344, the largest, to what would be next) the result is infinity.
#[inline(always)]
pub(crate) fn f32_to_f8e5m2(value: f32) -> u8 {
    narrow_ieee::<5, 2>(value, F8E5M2_INFINITY) as u8
}

/// f64 to f32 rounded to odd: an inexact result has its last bit set. Rounding that once more to a format with at least
/// two bits fewer gives the nearest value, as if rounded from the f64 at once (Boldo and Melquiond, "When double
/// rounding is odd", 2005).
pub(crate) fn f64_to_odd_f32(value: f64) -> f32 {
    let nearest = value as f32;
    if nearest as f64 == value || value.is_nan() {
        return nearest;
    }
    let bits = nearest.to_bits();
    // The neighbour towards zero, unless the nearest is on that side already.
    let truncated = if (nearest as f64).abs() > value.abs() { bits - 1 } else { bits };
    f32::from_bits(truncated | 1)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// The 8-bit floats are tested through their public types.
    #[test]
    fn sixteen_bit_floats_convert_like_the_half_crate() {
        for code in 0..=u16::MAX {
            let (a, b) = (f16_to_f32(code), f16::from_bits(code).to_f32());
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "f16 {code:#x}: {a} and {b}");
            let (a, b) = (bf16_to_f32(code), bf16::from_bits(code).to_f32());
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "bf16 {code:#x}: {a} and {b}");
        }
        // Every value with 11 bits of mantissa, so every binary16 and every midpoint between two, with its neighbours;
        // and a stride through all the rest.
        let near = (0..1 << 20).flat_map(|top: u32| [0, 1, u32::MAX].map(|step| (top << 12).wrapping_add(step)));
        for value in near.chain((0..=u32::MAX).step_by(10_007)).map(f32::from_bits) {
            if value.is_nan() {
                assert_eq!((f32_to_f16(value), f32_to_bf16(value)), (0x7e00, 0x7fc0));
            } else {
                assert_eq!(f32_to_f16(value), f16::from_f32(value).to_bits(), "f16 of {value:e}");
                assert_eq!(f32_to_bf16(value), bf16::from_f32(value).to_bits(), "bf16 of {value:e}");
            }
        }
    }
}
