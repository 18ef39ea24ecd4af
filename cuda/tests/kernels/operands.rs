//! Operands worth trying, and what the host makes of them.

use half::{bf16, f16};
use maypole_collectives::{DataType, Element, F8E4M3, F8E5M2, ReduceOp, reduce};

/// Every operation that has a kernel, but for averages: those are sums with a divisor.
pub const OPS: [ReduceOp; 7] =
    [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max, ReduceOp::And, ReduceOp::Or, ReduceOp::Xor];

/// A sequence of numbers that looks random and is the same each time (Steele, Lea and Flood's SplitMix64, 2014).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Codes of a type that are special: zeros, extremes, the smallest, infinities, NaN with and without payload.
fn special(dtype: DataType) -> &'static [u64] {
    match dtype {
        DataType::F16 => &[0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0xfe01, 0x7c01],
        DataType::Bf16 => &[0, 0x8000, 1, 0x8001, 0x7f, 0x80, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0, 0xffc1, 0x7f81],
        DataType::F32 => &[
            0,
            0x8000_0000,
            1,
            0x8000_0001,
            0x7f7f_ffff,
            0xff7f_ffff,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0xffc0_0001,
            0x7f80_0001,
        ],
        DataType::F64 => &[
            0,
            1 << 63,
            1,
            0x7fef_ffff_ffff_ffff,
            0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000,
            0x7ff8_0000_0000_0000,
            0xfff0_0000_0000_0001,
        ],
        _ => &[0, 1, 2, 0x7f, 0x80, 0xff, u64::MAX, 1 << 31, (1 << 31) - 1, 1 << 63, (1 << 63) - 1],
    }
}

/// `count` elements: a third any bits, a third near 1 (or small), a third special.
pub fn operand<T: Element>(numbers: &mut Numbers, count: usize) -> Vec<T> {
    let code = |code: u64| *bytemuck::from_bytes::<T>(&code.to_le_bytes()[..size_of::<T>()]);
    let special = special(T::DTYPE);
    (0..count)
        .map(|_| match numbers.below(3) {
            0 => code(numbers.next()),
            1 => T::from_f64((numbers.below(2001) as f64 - 1000.0) / 64.0),
            _ => code(special[numbers.below(special.len())]),
        })
        .collect()
}

pub fn bytes<T: Element>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// The fold of the operands from left to right. For two, what the host's kernels make of them; for more of the floats of
/// 8 and 16 bits, sums and products in f32 that are rounded once; a single one is itself, but for its NaN.
pub fn expected<T: Element>(op: ReduceOp, operands: &[Vec<T>], divide: u64) -> Vec<T> {
    let narrow = matches!(T::DTYPE, DataType::F16 | DataType::Bf16 | DataType::F8E4M3 | DataType::F8E5M2);
    let mut result = operands[0].clone();
    match (op, operands.len()) {
        (_, 1) => result.iter_mut().for_each(one_nan),
        (ReduceOp::Sum | ReduceOp::Avg | ReduceOp::Prod, 3..) if narrow => {
            for (i, element) in result.iter_mut().enumerate() {
                let mut fold = element.to_f64() as f32;
                for operand in &operands[1..] {
                    let next = operand[i].to_f64() as f32;
                    fold = if matches!(op, ReduceOp::Prod) { fold * next } else { fold + next };
                }
                *element = T::from_f64(f64::from(fold));
                one_nan(element);
            }
        }
        _ => operands[1..].iter().for_each(|operand| reduce::slices::reduce_in_place(op, &mut result, operand)),
    }
    if divide > 0 {
        let count = result.len();
        // SAFETY: the elements of a vector.
        unsafe { reduce::divide(T::DTYPE, result.as_mut_ptr().cast(), divide, count) };
    }
    result
}

/// Makes a NaN the positive quiet one.
fn one_nan<T: Element>(element: &mut T) {
    // Only NaN differs from itself.
    if PartialOrd::partial_cmp(&*element, &*element).is_none() {
        let nan = match T::DTYPE {
            DataType::F16 => u64::from(f16::NAN.to_bits()),
            DataType::Bf16 => u64::from(bf16::NAN.to_bits()),
            DataType::F32 => 0x7fc0_0000,
            DataType::F64 => 0x7ff8_0000_0000_0000,
            DataType::F8E4M3 => u64::from(F8E4M3(0x7f).0),
            DataType::F8E5M2 => u64::from(F8E5M2(0x7e).0),
            other => unreachable!("{other} has no NaN"),
        };
        *element = *bytemuck::from_bytes(&nan.to_le_bytes()[..size_of::<T>()]);
    }
}

/// Runs a generic function for each of the element types.
macro_rules! for_each_type {
    ($check:ident $(, $argument:expr)*) => {
        $check::<i8>($($argument),*);
        $check::<u8>($($argument),*);
        $check::<i32>($($argument),*);
        $check::<u32>($($argument),*);
        $check::<i64>($($argument),*);
        $check::<u64>($($argument),*);
        $check::<half::f16>($($argument),*);
        $check::<half::bf16>($($argument),*);
        $check::<f32>($($argument),*);
        $check::<f64>($($argument),*);
        $check::<maypole_collectives::F8E4M3>($($argument),*);
        $check::<maypole_collectives::F8E5M2>($($argument),*);
    };
}
pub(crate) use for_each_type;
