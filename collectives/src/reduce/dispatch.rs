//! From an operation and a type, which are values, to a kernel, which is a type.
//!
//! One match on the operation and one on the type, then a call: a few nanoseconds, which a reduction of two floats
//! notices.

use half::{bf16, f16};

use super::integer::Quotient;
use super::isa::Isa;
use super::lanes::{Map, Mapped, Op, Pair};
use super::narrow::{PairBf16, PairF16};
use crate::{DataType, F8E4M3, F8E5M2, ReduceOp, with_type};

/// `a + b`.
#[derive(Clone, Copy)]
pub(super) struct Sum;

/// `a * b`.
#[derive(Clone, Copy)]
pub(super) struct Prod;

/// The lesser of `a` and `b`.
#[derive(Clone, Copy)]
pub(super) struct Min;

/// The greater of `a` and `b`.
#[derive(Clone, Copy)]
pub(super) struct Max;

/// The bits that both have.
#[derive(Clone, Copy)]
pub(super) struct And;

/// The bits that either has.
#[derive(Clone, Copy)]
pub(super) struct Or;

/// The bits that only one has.
#[derive(Clone, Copy)]
pub(super) struct Xor;

/// Finds the kernel for an operation and a type, and runs it.
///
/// # Safety
/// As for [`super::reduce`], and the processor has `I`.
#[inline(always)]
pub(super) unsafe fn pairs<I: Isa>(
    op: ReduceOp,
    dtype: DataType,
    dst: *mut u8,
    a: *const u8,
    b: *const u8,
    count: usize,
) {
    // SAFETY: the caller's contract, for the type that belongs to `dtype`; bitwise operations are on its bytes.
    unsafe {
        match op {
            ReduceOp::Sum | ReduceOp::Avg | ReduceOp::PreMulSum(_) => arithmetic::<I, Sum>(dtype, dst, a, b, count),
            ReduceOp::Prod => arithmetic::<I, Prod>(dtype, dst, a, b, count),
            ReduceOp::Min => ordered::<I, Min>(dtype, dst, a, b, count),
            ReduceOp::Max => ordered::<I, Max>(dtype, dst, a, b, count),
            ReduceOp::And => pair::<I, And, u8>(dst, a, b, count * dtype.size()),
            ReduceOp::Or => pair::<I, Or, u8>(dst, a, b, count * dtype.size()),
            ReduceOp::Xor => pair::<I, Xor, u8>(dst, a, b, count * dtype.size()),
            ReduceOp::MinLoc(pair) => pair.choose(false, dst, a, b, count),
            ReduceOp::MaxLoc(pair) => pair.choose(true, dst, a, b, count),
            ReduceOp::User(op) => op.apply(dst, a, b, count),
        }
    }
}

/// Sum and product: signed and unsigned integers share a kernel.
///
/// # Safety
/// As for [`pairs`].
#[inline(always)]
unsafe fn arithmetic<I: Isa, O>(dtype: DataType, dst: *mut u8, a: *const u8, b: *const u8, count: usize)
where
    O: Op<u8> + Op<u32> + Op<u64> + Op<f32> + Op<f64> + Op<f16> + Op<bf16> + Op<F8E4M3> + Op<F8E5M2>,
{
    // SAFETY: the caller's contract.
    unsafe {
        match dtype {
            DataType::I8 | DataType::U8 => pair::<I, O, u8>(dst, a, b, count),
            DataType::I32 | DataType::U32 => pair::<I, O, u32>(dst, a, b, count),
            DataType::I64 | DataType::U64 => pair::<I, O, u64>(dst, a, b, count),
            DataType::F16 => I::run(PairF16::<O>::new(a, b), dst, count),
            DataType::Bf16 => I::run(PairBf16::<O>::new(a, b), dst, count),
            DataType::F32 => pair::<I, O, f32>(dst, a, b, count),
            DataType::F64 => pair::<I, O, f64>(dst, a, b, count),
            DataType::F8E4M3 => pair::<I, O, F8E4M3>(dst, a, b, count),
            DataType::F8E5M2 => pair::<I, O, F8E5M2>(dst, a, b, count),
        }
    }
}

/// Minimum and maximum.
///
/// # Safety
/// As for [`pairs`].
#[inline(always)]
unsafe fn ordered<I: Isa, O>(dtype: DataType, dst: *mut u8, a: *const u8, b: *const u8, count: usize)
where
    O: Op<i8> + Op<u8> + Op<i32> + Op<u32> + Op<i64> + Op<u64> + Op<f32> + Op<f64>,
    O: Op<f16> + Op<bf16> + Op<F8E4M3> + Op<F8E5M2>,
{
    // SAFETY: the caller's contract.
    unsafe { with_type!(dtype, T => pair::<I, O, T>(dst, a, b, count)) }
}

/// One kernel of two operands.
///
/// # Safety
/// As for [`pairs`], on elements of type `T`.
#[inline(always)]
unsafe fn pair<I: Isa, O: Op<T>, T: Copy>(dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
    // SAFETY: the caller's contract.
    unsafe { I::run(Pair::<O, T>::new(a, b), dst, count) }
}

/// Finds the kernel that divides elements of a type, and runs it.
///
/// # Panics
/// If `divisor` is 0.
///
/// # Safety
/// As for [`super::divide`], and the processor has `I`.
#[inline(always)]
pub(super) unsafe fn quotients<I: Isa>(dtype: DataType, dst: *mut u8, divisor: u64, count: usize) {
    let quotient = Quotient::by(divisor);
    // SAFETY: the caller's contract, for the type that belongs to `dtype`.
    unsafe { with_type!(dtype, T => mapped::<I, Quotient, T>(quotient, dst, count)) }
}

/// One kernel of one operand, in place.
///
/// # Safety
/// As for [`quotients`], on elements of type `T`.
#[inline(always)]
unsafe fn mapped<I: Isa, M: Map<T>, T: Copy>(map: M, dst: *mut u8, count: usize) {
    // SAFETY: the caller's contract.
    unsafe { I::run(Mapped::<M, T>::new(map, dst), dst, count) }
}
