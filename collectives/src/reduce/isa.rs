//! One instruction set each: how a loop is compiled for it, and the conversions that it has instructions for.
//!
//! The kernels are written once, as plain generic loops that the compiler turns into vector code. [`Isa::run`] inlines such a loop into
//! a function compiled for the instruction set; only the conversions of binary16, which no plain code expresses, are
//! spelled as intrinsics.

use half::f16;

use super::lanes::{Step, drive};
use crate::minifloat;

/// How many binary16 values are converted at a time: one F16C instruction.
pub(super) const F16_LANES: usize = 8;

/// An instruction set.
pub(super) trait Isa: Copy {
    /// Runs `step` over `count` elements into `dst`.
    ///
    /// # Safety
    /// The processor has the instruction set, and the contract of [`drive`] holds.
    unsafe fn run<S: Step>(step: S, dst: *mut u8, count: usize);

    /// Widens to f32, exactly.
    ///
    /// # Safety
    /// The processor has the instruction set; `src` is readable for [`F16_LANES`] elements, at any alignment.
    unsafe fn widen(src: *const f16) -> [f32; F16_LANES];

    /// Rounds to nearest even. Every NaN becomes the format's positive quiet NaN.
    ///
    /// # Safety
    /// The processor has the instruction set, and every NaN among `values` is the positive quiet one, `0x7fc0_0000`.
    unsafe fn narrow(values: [f32; F16_LANES]) -> [f16; F16_LANES];
}

/// What the target guarantees.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Isa for Portable {
    #[inline(always)]
    unsafe fn run<S: Step>(step: S, dst: *mut u8, count: usize) {
        // SAFETY: the caller's contract is `drive`'s.
        unsafe { drive::<Portable, S>(step, dst, count) }
    }

    #[inline(always)]
    unsafe fn widen(src: *const f16) -> [f32; F16_LANES] {
        // SAFETY: readable by contract.
        let codes = unsafe { src.cast::<[u16; F16_LANES]>().read_unaligned() };
        codes.map(minifloat::f16_to_f32)
    }

    #[inline(always)]
    unsafe fn narrow(values: [f32; F16_LANES]) -> [f16; F16_LANES] {
        values.map(|value| f16::from_bits(minifloat::f32_to_f16(value)))
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256, _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm256_cvtph_ps, _mm256_cvtps_ph};
    use std::mem::transmute;

    use super::{F16_LANES, Isa, Step, drive, f16};

    /// AVX2 and F16C.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2;

    /// AVX-512 F, BW, DQ and VL, beside AVX2 and F16C.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512;

    macro_rules! x86_isa {
        ($isa:ident, $features:literal) => {
            impl Isa for $isa {
                #[inline(always)]
                unsafe fn run<S: Step>(step: S, dst: *mut u8, count: usize) {
                    #[target_feature(enable = $features)]
                    unsafe fn compiled<S: Step>(step: S, dst: *mut u8, count: usize) {
                        // SAFETY: the caller's contract is `drive`'s.
                        unsafe { drive::<$isa, S>(step, dst, count) }
                    }
                    // SAFETY: the processor has the features by contract.
                    unsafe { compiled::<S>(step, dst, count) }
                }

                #[inline(always)]
                unsafe fn widen(src: *const f16) -> [f32; F16_LANES] {
                    // SAFETY: readable by contract, and the load takes any alignment; F16C is there by contract; the types have the
                    // same size and no invalid values.
                    unsafe { transmute::<__m256, [f32; F16_LANES]>(_mm256_cvtph_ps(_mm_loadu_si128(src.cast()))) }
                }

                #[inline(always)]
                unsafe fn narrow(values: [f32; F16_LANES]) -> [f16; F16_LANES] {
                    // SAFETY: F16C is there by contract; the types have the same sizes and no invalid values.
                    unsafe {
                        transmute(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(transmute::<[f32; F16_LANES], __m256>(
                            values,
                        )))
                    }
                }
            }
        };
    }

    x86_isa!(Avx2, "avx2,f16c");
    x86_isa!(Avx512, "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl");
}
