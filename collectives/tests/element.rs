//! The 8-bit floats and the conversions from f64, against a search for the nearest value.

use half::{bf16, f16};
use maypole_collectives::{DataType, Element, F8E4M3, F8E5M2};
use proptest::prelude::*;

/// What a code means, from the definition of the format: sign, exponent, mantissa.
fn value_of(code: u8, mantissa_bits: i32, infinities: bool) -> f64 {
    let exponent_bits = 7 - mantissa_bits;
    let exponent = (code & 0x7f) as i32 >> mantissa_bits;
    let mantissa = (code as i32 & ((1 << mantissa_bits) - 1)) as f64 / (1 << mantissa_bits) as f64;
    let bias = (1 << (exponent_bits - 1)) - 1;
    let all_ones = exponent == (1 << exponent_bits) - 1;
    let magnitude = match exponent {
        0 => mantissa * 2f64.powi(1 - bias),
        _ if all_ones && infinities => {
            if mantissa == 0.0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        _ if code & 0x7f == 0x7f => f64::NAN,
        _ => (1.0 + mantissa) * 2f64.powi(exponent - bias),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The code nearest to `value`, found by looking at all of them; of two equally near the even one. What the format has
/// beyond its largest number (infinity or NaN) stands for the number that would be next in line.
fn nearest(value: f64, mantissa_bits: i32, infinities: bool) -> u8 {
    let (last, overflow, nan) = if infinities { (0x7b, 0x7c, 0x7e) } else { (0x7e, 0x7f, 0x7f) };
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return nan;
    }
    let number = |code: u8| value_of(code, mantissa_bits, infinities);
    let beyond = number(last) + (number(last) - number(last - 1));
    // Far beyond the end, all distances would look the same.
    let magnitude = magnitude.min(beyond);
    let code = (0..=last)
        .map(|code| (code, number(code)))
        .chain([(overflow, beyond)])
        .min_by(|&(c, x), &(d, y)| {
            let distance = |v: f64| (v - magnitude).abs();
            distance(x).total_cmp(&distance(y)).then((c & 1).cmp(&(d & 1)))
        })
        .expect("there are codes")
        .0;
    if code == nan { nan } else { code | sign }
}

#[test]
fn all_codes_mean_what_the_format_says_and_come_back() {
    for code in 0..=255u8 {
        let (e4m3, e5m2) = (F8E4M3(code), F8E5M2(code));
        assert_eq!((e4m3.to_bits(), e5m2.to_bits()), (code, code));
        let expected = value_of(code, 3, false);
        assert_eq!(e4m3.to_f32().is_nan(), expected.is_nan());
        if expected.is_nan() {
            assert_eq!(F8E4M3::from_f32(e4m3.to_f32()).0, 0x7f);
        } else {
            assert_eq!(e4m3.to_f32().to_bits(), (expected as f32).to_bits(), "E4M3 {code:#x}");
            assert_eq!(F8E4M3::from_f32(e4m3.to_f32()).0, code);
        }
        let expected = value_of(code, 2, true);
        assert_eq!(e5m2.to_f32().is_nan(), expected.is_nan());
        if expected.is_nan() {
            assert_eq!(F8E5M2::from_f32(e5m2.to_f32()).0, 0x7e);
        } else {
            assert_eq!(e5m2.to_f32().to_bits(), (expected as f32).to_bits(), "E5M2 {code:#x}");
            assert_eq!(F8E5M2::from_f32(e5m2.to_f32()).0, code);
        }
    }
}

#[test]
fn landmarks() {
    assert_eq!((F8E4M3::from_f32(448.0).to_f32(), F8E5M2::from_f32(57344.0).to_f32()), (448.0, 57344.0));
    assert_eq!((F8E4M3::from_f32(464.0).0, F8E4M3::from_f32(464.1).0), (0x7e, 0x7f), "a tie goes to the even 448");
    assert_eq!(
        (F8E5M2::from_f32(61439.0).0, F8E5M2::from_f32(61440.0).0),
        (0x7b, 0x7c),
        "a tie goes to the even infinity"
    );
    assert_eq!((F8E4M3::from_f32(f32::NEG_INFINITY).0, F8E5M2::from_f32(f32::NEG_INFINITY).0), (0x7f, 0xfc));
    assert_eq!((F8E4M3::from_f32(-0.0).0, F8E5M2::from_f32(-0.0).0), (0x80, 0x80));
    assert!(F8E4M3(0x7f) != F8E4M3(0x7f) && F8E4M3(0x80) == F8E4M3(0) && F8E5M2(0x3c) > F8E5M2(0xbc));
    assert_eq!(format!("{} {:?}", F8E4M3(0x38), F8E5M2(0xc0)), "1 -2.0");
}

#[test]
fn rounding_is_to_the_nearest_code() {
    let check = |value: f32| {
        assert_eq!(F8E4M3::from_f32(value).0, nearest(value as f64, 3, false), "E4M3 of {value:e}");
        assert_eq!(F8E5M2::from_f32(value).0, nearest(value as f64, 2, true), "E5M2 of {value:e}");
    };
    // Every exponent, and around every number and every midpoint of either format.
    (0..=u32::MAX).step_by(104_729).map(f32::from_bits).for_each(check);
    for code in 0..=0xffff_u32 {
        // An f32 whose significant bits are among the first 9 (sign, exponent) and the next 7, and its neighbours.
        for bits in [code << 16, (code << 16).wrapping_add(1), (code << 16).wrapping_sub(1)] {
            check(f32::from_bits(bits));
        }
    }
}

#[test]
fn f64_is_rounded_once() {
    // Just above halfway between two numbers, by less than f32 can tell: rounding to f32 first would make it a tie.
    let above = 1.0 + 2f64.powi(-4) + 2f64.powi(-40);
    assert_eq!(F8E4M3::from_f64(above).to_f64(), 1.125);
    assert_eq!(F8E4M3::from_f64(-above).to_f64(), -1.125);
    let below = 1.0 + 3.0 * 2f64.powi(-4) - 2f64.powi(-40);
    assert_eq!(F8E4M3::from_f64(below).to_f64(), 1.125);
    assert_eq!(<f16 as Element>::from_f64(1.0 + 2f64.powi(-11) + 2f64.powi(-40)).to_bits(), 0x3c01);
    assert_eq!(<bf16 as Element>::from_f64(1.0 + 2f64.powi(-8) + 2f64.powi(-40)).to_bits(), 0x3f81);
    assert_eq!(F8E5M2::from_f64(1e300).0, 0x7c);
    assert_eq!(F8E5M2::from_f64(-1e-300).0, 0x80);
}

#[test]
fn types_have_the_size_of_their_code() {
    fn size<T: Element>() -> (DataType, usize) {
        (T::DTYPE, size_of::<T>())
    }
    let sizes = [
        size::<i8>(),
        size::<u8>(),
        size::<i32>(),
        size::<u32>(),
        size::<i64>(),
        size::<u64>(),
        size::<f16>(),
        size::<bf16>(),
        size::<f32>(),
        size::<f64>(),
        size::<F8E4M3>(),
        size::<F8E5M2>(),
    ];
    assert_eq!(sizes.map(|(dtype, _)| dtype), DataType::ALL);
    for (dtype, size) in sizes {
        assert_eq!(dtype.size(), size, "{dtype}");
    }
}

#[test]
fn integers_truncate_and_saturate() {
    assert_eq!((i8::from_f64(-3.9), i8::from_f64(1e9), u8::from_f64(-1.0), u64::from_f64(f64::NAN)), (-3, 127, 0, 0));
    assert_eq!((i32::to_f64(-7), u64::to_f64(1 << 40)), (-7.0, 2f64.powi(40)));
}

proptest! {
    #[test]
    fn f64_to_any_float(bits: u64, exponent in -40i32..40, mantissa in 0u64..1 << 52) {
        for value in [f64::from_bits(bits), f64::from_bits(((1023 + exponent) as u64) << 52 | mantissa)] {
            prop_assert_eq!(F8E4M3::from_f64(value).0, nearest(value, 3, false));
            prop_assert_eq!(F8E5M2::from_f64(value).0, nearest(value, 2, true));
            if !value.is_nan() {
                prop_assert_eq!(<f16 as Element>::from_f64(value).to_bits(), f16::from_f64(value).to_bits());
                prop_assert_eq!(<bf16 as Element>::from_f64(value).to_bits(), bf16::from_f64(value).to_bits());
            }
        }
    }
}
