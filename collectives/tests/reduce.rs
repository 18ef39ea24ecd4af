//! The reduction kernels against a plain loop: every type, operation and instruction set, at every length and
//! alignment.

mod plain;

use maypole_collectives::reduce::{
    Level, copy, divide, divide_at, force_level, level, reduce, reduce_at, reduce_non_temporal, reduce_to_two, scale,
    slices,
};
use maypole_collectives::{DataType, Element, F8E4M3, F8E5M2, ReduceOp, UserOp};
use plain::{OPS, Plain, for_each_type, operands};
use proptest::prelude::*;

/// Longer than the longest block, with room for blocks of 8 and single elements after it.
const COUNT: usize = 200;
/// Bytes around a destination that must keep this value.
const GUARD: u8 = 0xa5;
const MARGIN: usize = 64;

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_supported())
}

/// A copy of `bytes` that starts `offset` bytes after an address divisible by 64, between guards.
struct Placed {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl Placed {
    fn new(bytes: &[u8], offset: usize) -> Placed {
        let mut storage = vec![GUARD; bytes.len() + 4 * MARGIN];
        let start = storage.as_ptr().align_offset(64) + MARGIN + offset;
        storage[start..start + bytes.len()].copy_from_slice(bytes);
        Placed { storage, start, len: bytes.len() }
    }

    fn ptr(&mut self) -> *mut u8 {
        self.storage[self.start..].as_mut_ptr()
    }

    fn assert(&self, expected: &[u8], what: impl Fn() -> String) {
        let end = self.start + self.len;
        assert!(self.storage[self.start..end] == *expected, "{}: wrong result", what());
        let guards = self.storage[..self.start].iter().chain(&self.storage[end..]);
        assert!(guards.into_iter().all(|&byte| byte == GUARD), "{}: wrote outside of the destination", what());
    }
}

fn bytes<T: Element>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// Every operation that `T` has, with operands and the plain loop's result.
fn cases<T: Plain>(count: usize) -> impl Iterator<Item = (ReduceOp, Vec<T>, Vec<T>, Vec<T>)> {
    let (a, b) = operands::<T>(count);
    OPS.into_iter().filter(|op| op.supports(T::DTYPE)).map(move |op| {
        let expected = a.iter().zip(&b).map(|(&a, &b)| T::plain(op, a, b)).collect();
        (op, a.clone(), b.clone(), expected)
    })
}

#[test]
fn every_length_at_every_level() {
    fn check<T: Plain>() {
        for (op, a, b, expected) in cases::<T>(COUNT) {
            for level in levels() {
                for count in 0..=COUNT {
                    // Each length has other misalignments; `every_alignment` does all of them.
                    let (mut a, mut b) = (Placed::new(bytes(&a), count % 8), Placed::new(bytes(&b), count / 8 % 8));
                    let mut dst = Placed::new(&vec![0; count * size_of::<T>()], count / 3 % 8);
                    // SAFETY: three buffers of at least `count` elements, and the level is supported.
                    unsafe { reduce_at(level, op, T::DTYPE, dst.ptr(), a.ptr(), b.ptr(), count) };
                    dst.assert(bytes(&expected[..count]), || {
                        format!("{} of {count} {} at {level}", op.name(), T::DTYPE)
                    });
                }
            }
        }
    }
    for_each_type!(check);
}

#[test]
fn every_alignment() {
    fn check<T: Plain>() {
        // A block of 64, several of 8, and single elements.
        let count = 64 + 8 * 3 + 5;
        for (op, a, b, expected) in cases::<T>(count) {
            for level in levels() {
                for offsets in 0..512 {
                    let (mut a, mut b) = (Placed::new(bytes(&a), offsets % 8), Placed::new(bytes(&b), offsets / 8 % 8));
                    let mut dst = Placed::new(&vec![0; count * size_of::<T>()], offsets / 64);
                    // SAFETY: three buffers of `count` elements, and the level is supported.
                    unsafe { reduce_at(level, op, T::DTYPE, dst.ptr(), a.ptr(), b.ptr(), count) };
                    dst.assert(bytes(&expected), || format!("{} of {} at {level}", op.name(), T::DTYPE));
                }
            }
        }
    }
    for_each_type!(check);
}

#[test]
fn the_destination_may_be_an_operand() {
    fn check<T: Plain>() {
        for (op, a, b, expected) in cases::<T>(COUNT) {
            for level in levels() {
                for count in [1, 7, 8, 63, 64, 65, 129, COUNT] {
                    let (a, b) = (bytes(&a[..count]), bytes(&b[..count]));
                    let what = || format!("in place: {} of {count} {} at {level}", op.name(), T::DTYPE);
                    let (mut dst, mut other) = (Placed::new(a, 1), Placed::new(b, 3));
                    // SAFETY: two buffers of `count` elements; the destination is the first operand.
                    unsafe { reduce_at(level, op, T::DTYPE, dst.ptr(), dst.ptr(), other.ptr(), count) };
                    dst.assert(bytes(&expected[..count]), what);

                    let (mut dst, mut other) = (Placed::new(b, 5), Placed::new(a, 2));
                    // SAFETY: likewise, the second operand.
                    unsafe { reduce_at(level, op, T::DTYPE, dst.ptr(), other.ptr(), dst.ptr(), count) };
                    dst.assert(bytes(&expected[..count]), what);
                }
                let squares: Vec<T> = a.iter().map(|&a| T::plain(op, a, a)).collect();
                let mut dst = Placed::new(bytes(&a), 1);
                // SAFETY: one buffer of COUNT elements is the destination and both operands.
                unsafe { reduce_at(level, op, T::DTYPE, dst.ptr(), dst.ptr(), dst.ptr(), COUNT) };
                dst.assert(bytes(&squares), || format!("with itself: {} of {} at {level}", op.name(), T::DTYPE));
            }
        }
    }
    for_each_type!(check);
}

#[test]
fn two_destinations_and_uncached_stores_give_the_same() {
    fn check<T: Plain>() {
        // Several pieces of 4 KiB and a ragged end.
        for count in [0, 1, 5, 9001] {
            for (op, a, b, expected) in cases::<T>(count) {
                let zeros = vec![0; size_of_val(&a[..])];
                let mut b = Placed::new(bytes(&b), 2);

                let (mut dst, mut dst2) = (Placed::new(bytes(&a), 5), Placed::new(&zeros, 3));
                // SAFETY: three buffers of `count` elements; the first destination is the first operand.
                unsafe { reduce_to_two(op, T::DTYPE, dst.ptr(), dst2.ptr(), dst.ptr(), b.ptr(), count) };
                dst.assert(bytes(&expected), || format!("first of two: {} of {count} {}", op.name(), T::DTYPE));
                dst2.assert(bytes(&expected), || format!("second of two: {} of {count} {}", op.name(), T::DTYPE));

                let (mut a, mut dst) = (Placed::new(bytes(&a), 1), Placed::new(&zeros, 7));
                // SAFETY: three buffers of `count` elements.
                unsafe { reduce_non_temporal(op, T::DTYPE, dst.ptr(), a.ptr(), b.ptr(), count) };
                dst.assert(bytes(&expected), || format!("uncached: {} of {count} {}", op.name(), T::DTYPE));
                // SAFETY: two buffers of `count` elements; the destination is the first operand.
                unsafe { reduce_non_temporal(op, T::DTYPE, a.ptr(), a.ptr(), b.ptr(), count) };
                a.assert(bytes(&expected), || format!("uncached, in place: {} of {count} {}", op.name(), T::DTYPE));
            }
        }
    }
    for_each_type!(check);
}

#[test]
fn average_and_scaled_sum_are_sums() {
    for op in [ReduceOp::Avg, ReduceOp::PreMulSum(3.0)] {
        let mut sum = [0f32; 3];
        slices::reduce(op, &mut sum, &[1.0, 2.0, 3.0], &[0.5, -2.0, 4.0]);
        assert_eq!(sum, [1.5, 0.0, 7.0]);
    }
}

#[test]
fn a_user_function_is_called() {
    unsafe fn first_minus_twice_second(dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
        for i in 0..count {
            // SAFETY: `count` bytes each, by contract.
            unsafe { *dst.add(i) = *a.add(i) - 2 * *b.add(i) };
        }
    }
    // SAFETY: the function above does what its type says, for bytes.
    let op = ReduceOp::User(unsafe { UserOp::from_raw(1, DataType::U8, first_minus_twice_second) });
    let (mut dst, a, b) = ([0u8; 3], [10, 20, 30], [1, 2, 3]);
    // SAFETY: three bytes each, and the function is for bytes.
    unsafe { reduce(op, DataType::U8, dst.as_mut_ptr(), a.as_ptr(), b.as_ptr(), 3) };
    assert_eq!(dst, [8, 16, 24]);
}

#[test]
fn quotients() {
    fn check<T: Plain>() {
        let (values, _) = operands::<T>(COUNT);
        for divisor in
            [1, 2, 3, 7, 8, 64, 127, 128, 255, 256, 257, 1000, 65_537, 1 << 31, (1 << 32) - 1, 1 << 40, u64::MAX]
        {
            let expected: Vec<T> = values.iter().map(|v| v.plain_quotient(divisor)).collect();
            for level in levels() {
                for count in [0, 1, 9, 64, 77, COUNT] {
                    let mut dst = Placed::new(bytes(&values[..count]), count % 8);
                    // SAFETY: a buffer of `count` elements, and the level is supported.
                    unsafe { divide_at(level, T::DTYPE, dst.ptr(), divisor, count) };
                    dst.assert(bytes(&expected[..count]), || format!("{} / {divisor} at {level}", T::DTYPE));
                }
            }
            let mut dst = Placed::new(bytes(&values), 3);
            // SAFETY: a buffer of COUNT elements.
            unsafe { divide(T::DTYPE, dst.ptr(), divisor, COUNT) };
            dst.assert(bytes(&expected), || format!("{} / {divisor}", T::DTYPE));
        }
    }
    for_each_type!(check);
}

#[test]
fn eight_bit_quotients_are_all_right() {
    for divisor in 1..=300 {
        let mut signed: Vec<i8> = (i8::MIN..=i8::MAX).collect();
        let mut unsigned: Vec<u8> = (0..=u8::MAX).collect();
        // SAFETY: 256 elements each.
        unsafe {
            divide(DataType::I8, signed.as_mut_ptr().cast(), divisor, 256);
            divide(DataType::U8, unsigned.as_mut_ptr(), divisor, 256);
        }
        for (i, (&s, &u)) in signed.iter().zip(&unsigned).enumerate() {
            assert_eq!(s as i64, (i as i64 - 128) / divisor as i64);
            assert_eq!(u as u64, i as u64 / divisor);
        }
    }
}

#[test]
#[should_panic(expected = "divided by 0")]
fn a_divisor_of_zero_panics() {
    let mut value = 1u64;
    // SAFETY: one element.
    unsafe { divide(DataType::U64, (&raw mut value).cast(), 0, 1) };
}

#[test]
fn scaling_is_a_product_with_the_rounded_factor() {
    fn check<T: Plain>() {
        for count in [0, 1, 3, 100, 2500] {
            let (values, _) = operands::<T>(count);
            for factor in [0.0, 1.0, -1.0, 2.5, 0.1, -3.75, 100.0, 1e-3, 1e300, f64::INFINITY, f64::NAN] {
                let rounded = T::from_f64(factor);
                let expected: Vec<T> = values.iter().map(|&v| T::plain(ReduceOp::Prod, v, rounded)).collect();
                let mut src = Placed::new(bytes(&values), 1);
                let mut dst = Placed::new(&vec![0; size_of_val(&values[..])], 3);
                // SAFETY: two buffers of `count` elements.
                unsafe { scale(T::DTYPE, dst.ptr(), src.ptr(), factor, count) };
                dst.assert(bytes(&expected), || format!("{count} {} * {factor}", T::DTYPE));
                // SAFETY: a buffer of `count` elements is operand and destination.
                unsafe { scale(T::DTYPE, src.ptr(), src.ptr(), factor, count) };
                src.assert(bytes(&expected), || format!("in place: {count} {} * {factor}", T::DTYPE));
            }
        }
    }
    for_each_type!(check);
}

#[test]
fn integer_factors_truncate_and_saturate() {
    let scaled = |factor: f64| {
        let (src, mut dst) = ([1i8, -2, 3], [0i8; 3]);
        // SAFETY: three elements each.
        unsafe { scale(DataType::I8, dst.as_mut_ptr().cast(), src.as_ptr().cast(), factor, 3) };
        dst
    };
    assert_eq!(scaled(2.9), [2, -4, 6]);
    assert_eq!(scaled(-2.9), [-2, 4, -6]);
    assert_eq!(scaled(1e9), [127, 127i8.wrapping_mul(-2), 127i8.wrapping_mul(3)]);
}

#[test]
fn copies() {
    let source: Vec<u8> = (0..400u32).map(|i| (i * 31 % 251) as u8).collect();
    for non_temporal in [false, true] {
        for offset in 0..64 {
            for count in 0..300 {
                let mut src = Placed::new(&source[..count], (offset * 5 + count) % 64);
                let mut dst = Placed::new(&vec![0; count], offset);
                // SAFETY: two buffers of `count` bytes.
                unsafe { copy(dst.ptr(), src.ptr(), count, non_temporal) };
                dst.assert(&source[..count], || format!("copy of {count} bytes, non-temporal {non_temporal}"));
            }
        }
    }
}

#[test]
fn a_level_that_is_not_there_is_not_used() {
    let best = levels().last().expect("the portable level is always there");
    assert_eq!(level(), best);
    for wanted in Level::ALL {
        assert_eq!(force_level(wanted), wanted.min(best));
        assert_eq!(level(), wanted.min(best));
    }
}

#[test]
#[should_panic(expected = "xor is not defined on f32")]
fn slices_refuse_bitwise_operations_on_floats() {
    slices::reduce_in_place(ReduceOp::Xor, &mut [1.0f32], &[2.0]);
}

proptest! {
    #[test]
    fn random_bits(pairs in prop::collection::vec(any::<(u64, u64)>(), 0..150)) {
        fn check<T: Plain>(pairs: &[(u64, u64)]) {
            let (a, b): (Vec<T>, Vec<T>) = pairs.iter().map(|&(a, b)| (T::from_code(a), T::from_code(b))).unzip();
            for op in OPS.into_iter().filter(|op| op.supports(T::DTYPE)) {
                let expected: Vec<T> = a.iter().zip(&b).map(|(&a, &b)| T::plain(op, a, b)).collect();
                let mut dst = vec![T::default(); a.len()];
                slices::reduce(op, &mut dst, &a, &b);
                assert_eq!(bytes(&dst), bytes(&expected), "{} of {}: {a:?} and {b:?}", op.name(), T::DTYPE);
                // The operands' order does not matter, not even for NaN and zeros.
                slices::reduce(op, &mut dst, &b, &a);
                assert_eq!(bytes(&dst), bytes(&expected), "{} of {}: {b:?} and {a:?}", op.name(), T::DTYPE);
                let mut dst = a.clone();
                slices::reduce_in_place(op, &mut dst, &b);
                assert_eq!(bytes(&dst), bytes(&expected), "in place");
            }
        }
        macro_rules! check_all { ($($type:ty),*) => {$( check::<$type>(&pairs); )*} }
        check_all!(i8, u8, i32, u32, i64, u64, half::f16, half::bf16, f32, f64, F8E4M3, F8E5M2);
    }
}
