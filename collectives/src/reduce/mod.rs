//! Reduction kernels: `dst[i] = a[i] ⊕ b[i]`, and the few other passes over elements that collectives need.
//!
//! The functions are untyped on purpose. Whoever runs a schedule holds bytes: a slot of a shared-memory link, a part of
//! a socket's receive buffer, a region of the user's tensor. None of them is a slice of `f32`; the bytes of a slot need
//! not even be aligned for one. So the element type is a value here, [`DataType`], and pointers may have any alignment.
//! [`slices`] has typed, safe forms.
//!
//! A result is a function of its two operands alone: not of its place in the buffer, nor of the instructions used
//! ([`Level`]), nor of the order of the operands. That holds for NaN and signed zeros too: a result that is NaN is
//! always the positive quiet NaN of its type, without payload, and -0 is below +0. Ranks that combine the same values
//! in the same tree therefore hold the same bits.
//!
//! * `dispatch.rs`: from an operation and a type to a kernel; `level.rs`: for which instructions.
//! * `lanes.rs`: the loop that all kernels share; `isa.rs`: how it is compiled for a set of instructions.
//! * `integer.rs`, `float.rs`, `narrow.rs`: the arithmetic, by family of types.
//! * `copy.rs`: copies, cached and not.

mod copy;
mod dispatch;
mod float;
mod integer;
mod isa;
mod lanes;
mod level;
mod narrow;
pub mod slices;

use crate::element::Element;
use crate::{DataType, ReduceOp, with_type};
use dispatch::{pairs, quotients};
use isa::Portable;

pub use self::copy::copy;
pub use level::{Level, force_level, level};

/// Bytes of a piece, where a pass is made of two over something that stays in the first-level cache. Four such pieces
/// fit into 32 KiB with room to spare, and it is a multiple of every element size.
const PIECE: usize = 4096;

/// Calls a generic function for the level's instruction set. The call is an unsafe one.
macro_rules! at_level {
    ($level:expr, $function:ident($($argument:expr),*)) => {
        match $level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => $function::<isa::Avx512>($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => $function::<isa::Avx2>($($argument),*),
            _ => $function::<Portable>($($argument),*),
        }
    };
}

/// `dst[i] = a[i] ⊕ b[i]`, for `count` elements of type `dtype`.
///
/// [`ReduceOp::Avg`] and [`ReduceOp::PreMulSum`] are sums here: [`divide`] and [`scale`] do the rest. Bitwise
/// operations on floats are refused by whoever takes the operation from the user ([`ReduceOp::supports`]); debug builds
/// assert it, others combine the raw bits.
///
/// # Safety
/// `a` and `b` are readable and `dst` is writable for `count` elements, at any alignment. `dst` may be `a` or `b`
/// exactly, and does not otherwise overlap them. A user's operation is called with the same pointers and was made for
/// `dtype`.
#[inline]
pub unsafe fn reduce(op: ReduceOp, dtype: DataType, dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
    // SAFETY: the caller's contract; the level in use is supported.
    unsafe { reduce_at(level(), op, dtype, dst, a, b, count) }
}

/// [`reduce`] with the instructions of `level` instead of those in use: for tests and benchmarks.
///
/// # Safety
/// As for [`reduce`], and `level` is supported here ([`Level::is_supported`]).
pub unsafe fn reduce_at(
    level: Level,
    op: ReduceOp,
    dtype: DataType,
    dst: *mut u8,
    a: *const u8,
    b: *const u8,
    count: usize,
) {
    debug_assert!(op.supports(dtype), "{} is not defined on {dtype}", op.name());
    // SAFETY: the caller's contract.
    unsafe { at_level!(level, pairs(op, dtype, dst, a, b, count)) }
}

/// Bytes of an operand, which stay together.
fn operand(op: ReduceOp, dtype: DataType) -> usize {
    op.width() * dtype.size()
}

/// [`reduce`] whose result goes to `dst2` as well: the fused receive-reduce-copy-send, which keeps a partial result and
/// passes it on. The operands are read from memory once.
///
/// # Safety
/// As for [`reduce`]; `dst2` is writable for `count` elements and overlaps none of the others.
pub unsafe fn reduce_to_two(
    op: ReduceOp,
    dtype: DataType,
    dst: *mut u8,
    dst2: *mut u8,
    a: *const u8,
    b: *const u8,
    count: usize,
) {
    let (size, operand) = (dtype.size(), operand(op, dtype));
    let piece = (PIECE / operand * operand).max(operand);
    let mut at = 0;
    while at < count * size {
        let bytes = piece.min(count * size - at);
        // SAFETY: at + bytes <= count * size, so the pieces are in bounds and overlap as little as the wholes.
        unsafe {
            reduce(op, dtype, dst.add(at), a.add(at), b.add(at), bytes / size);
            std::ptr::copy_nonoverlapping(dst.add(at), dst2.add(at), bytes);
        }
        at += bytes;
    }
}

/// [`reduce`] whose result bypasses the caches: for a destination that is larger than they are and that nobody reads
/// soon, as it spares fetching each line of it from memory before overwriting it. The stores are ordered before
/// everything that follows.
///
/// # Safety
/// As for [`reduce`].
pub unsafe fn reduce_non_temporal(
    op: ReduceOp,
    dtype: DataType,
    dst: *mut u8,
    a: *const u8,
    b: *const u8,
    count: usize,
) {
    let (size, operand) = (dtype.size(), operand(op, dtype));
    if operand > PIECE {
        // SAFETY: the caller's contract.
        return unsafe { reduce(op, dtype, dst, a, b, count) };
    }
    let mut piece = [0u64; PIECE / 8];
    let piece = piece.as_mut_ptr().cast::<u8>();
    let longest = PIECE / operand * operand;
    // The first piece ends on a cache line (as far as operands allow), so that no line is stored in
    // parts of two
    // pieces.
    let mut end = longest - dst.addr() % copy::LINE / operand * operand;
    let mut at = 0;
    while at < count * size {
        let bytes = end.min(count * size) - at;
        // SAFETY: at + bytes <= count * size and bytes <= PIECE: in bounds, and the piece is our own.
        unsafe {
            reduce(op, dtype, piece, a.add(at), b.add(at), bytes / size);
            copy::stream(dst.add(at), piece, bytes);
        }
        at += bytes;
        end += longest;
    }
    copy::fence();
}

/// `dst[i] = src[i] * factor`: what [`ReduceOp::PreMulSum`] does to each rank's input. The factor is rounded to the
/// element type first (integers: truncated towards zero and saturated), and the product is the one that
/// [`ReduceOp::Prod`] makes.
///
/// # Safety
/// `src` is readable and `dst` is writable for `count` elements, at any alignment; `dst` is `src` or does not overlap
/// it.
pub unsafe fn scale(dtype: DataType, dst: *mut u8, src: *const u8, factor: f64, count: usize) {
    // SAFETY: the caller's contract, with the type that belongs to `dtype`.
    unsafe { with_type!(dtype, T => scale_by(dst, src, <T as Element>::from_f64(factor), count)) }
}

/// [`scale`] for one type: a product whose second operand is a short run of copies of the factor, which stays in the
/// first-level cache.
///
/// # Safety
/// As for [`scale`].
unsafe fn scale_by<T: Element>(dst: *mut u8, src: *const u8, factor: T, count: usize) {
    const LONGEST: usize = 1024;
    let mut factors = [factor; LONGEST];
    let factors = factors.as_mut_ptr().cast::<u8>();
    let mut done = 0;
    while done < count {
        let run = (count - done).min(LONGEST);
        let offset = done * size_of::<T>();
        // SAFETY: done + run <= count, and run <= LONGEST: in bounds.
        unsafe { reduce(ReduceOp::Prod, T::DTYPE, dst.add(offset), src.add(offset), factors, run) };
        done += run;
    }
}

/// `dst[i] = dst[i] / divisor`: what turns a sum into [`ReduceOp::Avg`]. Integers truncate towards zero; f64 is divided
/// as such, the other floats as f32 (the divisor rounded to it) and then rounded to their type.
///
/// # Panics
/// If `divisor` is 0.
///
/// # Safety
/// `dst` is readable and writable for `count` elements, at any alignment.
pub unsafe fn divide(dtype: DataType, dst: *mut u8, divisor: u64, count: usize) {
    // SAFETY: the caller's contract; the level in use is supported.
    unsafe { divide_at(level(), dtype, dst, divisor, count) }
}

/// [`divide`] with the instructions of `level` instead of those in use: for tests and benchmarks.
///
/// # Panics
/// If `divisor` is 0.
///
/// # Safety
/// As for [`divide`], and `level` is supported here ([`Level::is_supported`]).
pub unsafe fn divide_at(level: Level, dtype: DataType, dst: *mut u8, divisor: u64, count: usize) {
    assert!(
        divisor != 0,
        "a sum was to be divided by 0 to make an average; the divisor is a world size, so at least 1"
    );
    // SAFETY: the caller's contract.
    unsafe { at_level!(level, quotients(dtype, dst, divisor, count)) }
}
