//! One instruction set each: how a loop is compiled for it, and what it has instructions for that plain code cannot
//! express.
//!
//! The kernels are written once, as plain generic loops that the compiler turns into vector code. [`Isa::run`] inlines
//! such a loop into a function compiled for the instruction set. Only the conversions of binary16 are spelled as
//! intrinsics.

use half::f16;

use super::lanes::{Op, Pair, Step, drive};

/// An instruction set.
pub(super) trait Isa: Copy {
    /// Runs `step` over `count` elements into `dst`.
    ///
    /// # Safety
    /// The processor has the instruction set, and the contract of [`drive`] holds.
    unsafe fn run<S: Step>(step: S, dst: *mut u8, count: usize);

    /// `a[i] ⊕ b[i]` on `N` binary16 values, computed in f32 and rounded to nearest even.
    ///
    /// # Safety
    /// The processor has the instruction set; `a` and `b` are readable for `N` elements, at any alignment. `O` on f32
    /// makes no NaN but the quiet one, `0x7fc0_0000`: an instruction would keep the payload of another.
    unsafe fn pair_f16<O: Op<f16> + Op<f32>, const N: usize>(a: *const f16, b: *const f16) -> [f16; N];
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
    unsafe fn pair_f16<O: Op<f16> + Op<f32>, const N: usize>(a: *const f16, b: *const f16) -> [f16; N] {
        // SAFETY: readable by contract.
        unsafe { Pair::<O, f16>::new(a.cast(), b.cast()).block::<Portable, N>(0) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256, _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm256_cvtph_ps, _mm256_cvtps_ph};
    use std::mem::transmute;

    use super::{Isa, Op, Step, drive, f16};

    /// How many binary16 values one F16C instruction converts.
    const LANES: usize = 8;

    /// AVX2 and F16C.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2;

    /// AVX-512 F, BW, DQ and VL, beside AVX2 and F16C.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512;

    /// # Safety
    /// The processor has F16C; `src` is readable for [`LANES`] elements, at any alignment.
    #[inline(always)]
    unsafe fn widen(src: *const f16) -> [f32; LANES] {
        // SAFETY: readable by contract, and the load takes any alignment; F16C is there by contract; the types have the
        // same size and no invalid values.
        unsafe { transmute::<__m256, [f32; LANES]>(_mm256_cvtph_ps(_mm_loadu_si128(src.cast()))) }
    }

    /// Rounds to nearest even.
    ///
    /// # Safety
    /// The processor has F16C.
    #[inline(always)]
    unsafe fn narrow(values: [f32; LANES]) -> [f16; LANES] {
        // SAFETY: F16C is there by contract; the types have the same sizes and no invalid values.
        unsafe { transmute(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(transmute::<[f32; LANES], __m256>(values))) }
    }

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
                unsafe fn pair_f16<O: Op<f16> + Op<f32>, const N: usize>(a: *const f16, b: *const f16) -> [f16; N] {
                    let mut results = [f16::ZERO; N];
                    // The compiler knows N: one of the two loops is left.
                    let (vectors, rest) = results.as_chunks_mut::<LANES>();
                    let done = vectors.len() * LANES;
                    for (i, vector) in vectors.iter_mut().enumerate() {
                        // SAFETY: all N elements are readable and F16C is there, by contract.
                        unsafe {
                            let (a, b) = (widen(a.add(i * LANES)), widen(b.add(i * LANES)));
                            *vector = narrow(std::array::from_fn(|k| O::apply(a[k], b[k])));
                        }
                    }
                    for (i, result) in rest.iter_mut().enumerate() {
                        // SAFETY: as above.
                        let (a, b) = unsafe { (a.add(done + i).read_unaligned(), b.add(done + i).read_unaligned()) };
                        *result = O::apply(a, b);
                    }
                    results
                }
            }
        };
    }

    x86_isa!(Avx2, "avx2,f16c");
    x86_isa!(Avx512, "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl");
}
