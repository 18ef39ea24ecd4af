//! Rounding a number to an element type, written apart from the reduction kernels that it checks: slow, general, and
//! short enough to be right by reading.

use maypole_collectives::dtype::Kind;

use crate::DataType;

/// The bits of `value` as `dtype`, rounded to nearest, ties to even. For floating-point types only, and for finite
/// values whose rounded magnitude the type can hold; subnormal results are exact.
pub(super) fn encode(dtype: DataType, value: f64) -> u64 {
    if dtype == DataType::F64 {
        return value.to_bits();
    }
    let (exponent_bits, mantissa_bits) = format(dtype);
    let total = exponent_bits + mantissa_bits;
    let sign = (value.is_sign_negative() as u64) << total;
    let magnitude = value.abs();
    if magnitude == 0.0 {
        return sign;
    }
    let bias = (1i64 << (exponent_bits - 1)) - 1;
    let exponent = (magnitude.to_bits() >> 52) as i64 - 1023;
    // Below the smallest normal number the spacing stops shrinking: that is what subnormals are.
    let exponent = exponent.max(1 - bias);
    let spacing = exponent - mantissa_bits as i64;
    let steps = (magnitude * 2f64.powi(-spacing as i32)).round_ties_even() as u64;
    // A mantissa that rounds up to 2 carries into the exponent, and a subnormal has exponent field 0, by this same sum.
    sign | ((((exponent + bias) as u64) << mantissa_bits) + steps - (1 << mantissa_bits))
}

/// Exponent and mantissa bits of a floating-point type.
pub(super) fn format(dtype: DataType) -> (u32, u32) {
    match dtype.row().kind {
        Kind::Float(exponent, mantissa) => (exponent, mantissa),
        _ => unreachable!("{dtype} is not a floating-point type"),
    }
}

/// The largest finite magnitude's bits. E4M3 has no infinities and only one NaN magnitude, so it reaches further.
pub(super) fn largest_finite(dtype: DataType) -> u64 {
    let (exponent_bits, mantissa_bits) = format(dtype);
    match dtype {
        DataType::F8E4M3 => 0x7e,
        _ => (((1u64 << exponent_bits) - 1) << mantissa_bits) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_half_crate_and_the_compiler() {
        for i in -70_000..70_000i32 {
            let x = i as f32 * 0.37e-3;
            assert_eq!(encode(DataType::F16, x as f64), half::f16::from_f32(x).to_bits() as u64, "{x}");
            assert_eq!(encode(DataType::Bf16, x as f64), half::bf16::from_f32(x).to_bits() as u64, "{x}");
            let wide = x as f64 * 1.000_000_1;
            assert_eq!(encode(DataType::F32, wide), (wide as f32).to_bits() as u64, "{wide}");
        }
        for bits in 0..0x7c00u16 {
            let x = half::f16::from_bits(bits);
            assert_eq!(encode(DataType::F16, x.to_f64()), bits as u64);
        }
    }

    #[test]
    fn eight_bit_floats() {
        for (value, e4m3, e5m2) in [
            (0.0, 0x00, 0x00),
            (1.0, 0x38, 0x3c),
            (-1.0, 0xb8, 0xbc),
            (1.5, 0x3c, 0x3e),
            (8.0, 0x50, 0x48),
            (16.0, 0x58, 0x4c),
            (0.015625, 0x08, 0x24), // E4M3's smallest normal number, 2^-6
        ] {
            assert_eq!(encode(DataType::F8E4M3, value), e4m3, "{value}");
            assert_eq!(encode(DataType::F8E5M2, value), e5m2, "{value}");
        }
        assert_eq!(encode(DataType::F8E4M3, 448.0), 0x7e);
        assert_eq!(encode(DataType::F8E5M2, 57344.0), 0x7b);
        assert_eq!(encode(DataType::F8E4M3, 2f64.powi(-9)), 1);
        assert_eq!(encode(DataType::F8E5M2, 2f64.powi(-16)), 1);
        // Halfway cases go to the even neighbour: 17 lies between 16 and 18, 19 between 18 and 20.
        assert_eq!(encode(DataType::F8E4M3, 17.0), encode(DataType::F8E4M3, 16.0));
        assert_eq!(encode(DataType::F8E4M3, 19.0), encode(DataType::F8E4M3, 20.0));
    }
}
