//! The Rust types that collectives accept as elements, and the two 8-bit floats that Rust does not have.

use std::fmt;

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use crate::{DataType, minifloat};

/// A Rust type that is the type of an element: `i8 u8 i32 u32 i64 u64`, [`half::f16`], [`half::bf16`], `f32 f64`,
/// [`F8E4M3`], [`F8E5M2`].
///
/// The typed interfaces are generic over it; underneath, everything works on bytes and [`Element::DTYPE`].
///
/// # Safety
/// The type has the size and the representation that [`Element::DTYPE`] says. Sealed: there are no other
/// implementations.
pub unsafe trait Element:
    Pod + Operand<Scalar = Self> + Default + PartialEq + PartialOrd + fmt::Debug + fmt::Display
{
    /// The element type's name at run time.
    const DTYPE: DataType;

    /// The nearest value, ties to even, rounded once; integers truncate towards zero and saturate (NaN becomes 0).
    fn from_f64(value: f64) -> Self;

    /// The value as `f64`: exact, but for 64-bit integers beyond 2^53.
    fn to_f64(self) -> f64;
}

/// What a user's operation combines: an element, or an array of elements, which then stay together.
///
/// # Safety
/// The type is [`Operand::WIDTH`] elements of [`Operand::Scalar`] one after the other, and nothing
/// else. Sealed: there are no other implementations.
pub unsafe trait Operand: Copy + Send + Sync + 'static + sealed::Sealed {
    /// The elements.
    type Scalar: Element;

    /// How many there are; at least 1.
    const WIDTH: u16;
}

impl<T: Element, const N: usize> sealed::Sealed for [T; N] {}

// SAFETY: an array is its elements one after the other.
unsafe impl<T: Element, const N: usize> Operand for [T; N] {
    type Scalar = T;
    const WIDTH: u16 = {
        assert!(N > 0 && N <= u16::MAX as usize, "an operand has 1 to 65535 elements");
        N as u16
    };
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! element {
    ($($type:ty, $dtype:ident, $from:expr, $to:expr;)*) => {$(
        impl sealed::Sealed for $type {}

        // SAFETY: it is itself.
        unsafe impl Operand for $type {
            type Scalar = $type;
            const WIDTH: u16 = 1;
        }

        // SAFETY: `DataType` defines the code as this representation; the test below compares the sizes.
        unsafe impl Element for $type {
            const DTYPE: DataType = DataType::$dtype;

            fn from_f64(value: f64) -> $type {
                let convert: fn(f64) -> $type = $from;
                convert(value)
            }

            fn to_f64(self) -> f64 {
                let convert: fn($type) -> f64 = $to;
                convert(self)
            }
        }
    )*};
}

element! {
    i8, I8, |v| v as i8, |x| x as f64;
    u8, U8, |v| v as u8, |x| x as f64;
    i32, I32, |v| v as i32, |x| x as f64;
    u32, U32, |v| v as u32, |x| x as f64;
    i64, I64, |v| v as i64, |x| x as f64;
    u64, U64, |v| v as u64, |x| x as f64;
    f16, F16, |v| f16::from_bits(minifloat::f32_to_f16(minifloat::f64_to_odd_f32(v))), |x| x.to_f64();
    bf16, Bf16, |v| bf16::from_bits(minifloat::f32_to_bf16(minifloat::f64_to_odd_f32(v))), |x| x.to_f64();
    f32, F32, |v| v as f32, |x| x as f64;
    f64, F64, |v| v, |x| x;
    F8E4M3, F8E4M3, |v| F8E4M3::from_f32(minifloat::f64_to_odd_f32(v)), |x| x.to_f32() as f64;
    F8E5M2, F8E5M2, |v| F8E5M2::from_f32(minifloat::f64_to_odd_f32(v)), |x| x.to_f32() as f64;
}

/// An 8-bit float with 4 exponent and 3 mantissa bits: OCP FP8 E4M3, the "fn" variant. Largest 448, smallest 2^-9, no
/// infinities, one NaN per sign (`0x7f`, `0xff`).
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct F8E4M3(pub u8);

/// An 8-bit float with 5 exponent and 2 mantissa bits: OCP FP8 E5M2. binary16 without its last 8 bits: largest 57344,
/// smallest 2^-16, infinities (`0x7c`, `0xfc`) and NaN (all codes beyond).
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct F8E5M2(pub u8);

impl F8E4M3 {
    /// The value that has this code.
    pub const fn from_bits(code: u8) -> F8E4M3 {
        F8E4M3(code)
    }

    /// The code.
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// The nearest value, ties to even. What rounds beyond 448 becomes NaN, as does infinity: OCP's non-saturating
    /// mode, the rule of ml_dtypes and PyTorch. (CUDA's conversions saturate by default.) Every NaN becomes `0x7f`.
    pub fn from_f32(value: f32) -> F8E4M3 {
        F8E4M3(minifloat::f32_to_f8e4m3(value))
    }

    /// The value; exact.
    pub fn to_f32(self) -> f32 {
        minifloat::f8e4m3_to_f32(self.0)
    }
}

impl F8E5M2 {
    /// The value that has this code.
    pub const fn from_bits(code: u8) -> F8E5M2 {
        F8E5M2(code)
    }

    /// The code.
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// The nearest value, ties to even. What rounds beyond 57344 becomes infinity: OCP's non-saturating mode, the rule
    /// of ml_dtypes and PyTorch. Every NaN becomes `0x7e`.
    pub fn from_f32(value: f32) -> F8E5M2 {
        F8E5M2(minifloat::f32_to_f8e5m2(value))
    }

    /// The value; exact.
    pub fn to_f32(self) -> f32 {
        minifloat::f8e5m2_to_f32(self.0)
    }
}

macro_rules! compare_and_print_as_f32 {
    ($($type:ty),*) => {$(
        impl PartialEq for $type {
            fn eq(&self, other: &$type) -> bool {
                self.to_f32() == other.to_f32()
            }
        }

        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &$type) -> Option<std::cmp::Ordering> {
                self.to_f32().partial_cmp(&other.to_f32())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.to_f32(), f)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.to_f32(), f)
            }
        }
    )*};
}

compare_and_print_as_f32!(F8E4M3, F8E5M2);
