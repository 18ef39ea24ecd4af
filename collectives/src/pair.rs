//! Pairs (value, index), of which [`ReduceOp::MinLoc`] and [`ReduceOp::MaxLoc`] keep the one with
//! the least or the greatest value: MPI's `MPI_FLOAT_INT` and its like, with `MPI_MINLOC` and
//! `MPI_MAXLOC`.
//!
//! A pair is two elements that stay together, as for a user's operation with a width of 2, and not
//! an element type of its own: nothing else about it matters to whatever moves it. It lies in
//! memory as the struct of its two members does in C.
//!
//! Which of two pairs is kept depends on nothing but the two, so results are the same bits whatever
//! the order in which ranks are combined: after the value and the index, where two are alike in
//! both, the value's bits decide (zeros of both signs, payloads of NaN). The pair that is kept is
//! kept whole, its padding too.

use bytemuck::{Pod, Zeroable};

use crate::{DataType, Element, ReduceOp};

/// The types of a value and its index, as a C struct of both has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Pair {
    /// `f32`, `i32`: 8 bytes. MPI's `MPI_FLOAT_INT`.
    F32I32 = 0,
    /// `f64`, `i32`, 4 bytes of padding: 16 bytes. MPI's `MPI_DOUBLE_INT`.
    F64I32 = 1,
    /// `i64`, `i32`, 4 bytes of padding: 16 bytes. MPI's `MPI_LONG_INT`.
    I64I32 = 2,
    /// `i32`, `i32`: 8 bytes. MPI's `MPI_2INT`.
    I32I32 = 3,
    /// `i16`, 2 bytes of padding, `i32`: 8 bytes. MPI's `MPI_SHORT_INT`.
    I16I32 = 4,
    /// `f64`, `i64`: 16 bytes.
    F64I64 = 5,
    /// `i64`, `i64`: 16 bytes.
    I64I64 = 6,
}

impl Pair {
    /// Every pair there is, in the order of their codes. Of MPI's six, `MPI_LONG_DOUBLE_INT` is not
    /// among them: Rust has no `long double`.
    pub const ALL: [Pair; 7] =
        [Pair::F32I32, Pair::F64I32, Pair::I64I32, Pair::I32I32, Pair::I16I32, Pair::F64I64, Pair::I64I64];

    /// Elements of [`Pair::dtype`] that make a pair.
    pub const WIDTH: usize = 2;

    /// The elements as which a pair is moved: two of half its size.
    pub const fn dtype(self) -> DataType {
        if self.size() == 8 { DataType::U32 } else { DataType::U64 }
    }

    /// Bytes of a pair.
    pub const fn size(self) -> usize {
        match self {
            Pair::F32I32 => size_of::<Struct<f32, i32>>(),
            Pair::F64I32 => size_of::<Struct<f64, i32>>(),
            Pair::I64I32 => size_of::<Struct<i64, i32>>(),
            Pair::I32I32 => size_of::<Struct<i32, i32>>(),
            Pair::I16I32 => size_of::<Struct<i16, i32>>(),
            Pair::F64I64 => size_of::<Struct<f64, i64>>(),
            Pair::I64I64 => size_of::<Struct<i64, i64>>(),
        }
    }

    /// The name used in messages: `(f32, i32)`.
    pub const fn name(self) -> &'static str {
        match self {
            Pair::F32I32 => "(f32, i32)",
            Pair::F64I32 => "(f64, i32)",
            Pair::I64I32 => "(i64, i32)",
            Pair::I32I32 => "(i32, i32)",
            Pair::I16I32 => "(i16, i32)",
            Pair::F64I64 => "(f64, i64)",
            Pair::I64I64 => "(i64, i64)",
        }
    }

    /// Of each two pairs, the one with the least or the `greatest` value.
    ///
    /// # Safety
    /// As for [`UserFn`](crate::UserFn), with `count` elements of [`Pair::dtype`].
    pub(crate) unsafe fn choose(self, greatest: bool, dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
        let pairs = count / Pair::WIDTH;
        // SAFETY: the caller's promise; so many elements are so many pairs, by their sizes.
        unsafe {
            match self {
                Pair::F32I32 => choose::<f32, i32>(greatest, dst, a, b, pairs),
                Pair::F64I32 => choose::<f64, i32>(greatest, dst, a, b, pairs),
                Pair::I64I32 => choose::<i64, i32>(greatest, dst, a, b, pairs),
                Pair::I32I32 => choose::<i32, i32>(greatest, dst, a, b, pairs),
                Pair::I16I32 => choose::<i16, i32>(greatest, dst, a, b, pairs),
                Pair::F64I64 => choose::<f64, i64>(greatest, dst, a, b, pairs),
                Pair::I64I64 => choose::<i64, i64>(greatest, dst, a, b, pairs),
            }
        }
    }
}

impl std::fmt::Display for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A pair as C lays it out.
#[repr(C)]
struct Struct<V, I> {
    value: V,
    index: I,
}

/// A type of values.
trait Number: Copy + PartialOrd {
    fn bits(self) -> u64;
}

macro_rules! number {
    ($($type:ty: $bits:expr;)*) => {$(
        impl Number for $type {
            fn bits(self) -> u64 {
                let bits: fn($type) -> u64 = $bits;
                bits(self)
            }
        }
    )*};
}

number! {
    i16: |v| v as u64;
    i32: |v| v as u64;
    i64: |v| v as u64;
    f32: |v| v.to_bits().into();
    f64: |v| v.to_bits();
}

/// Whether the first of two pairs is kept.
fn is_first<V: Number, I: Ord>(greatest: bool, (v, i): (V, I), (w, j): (V, I)) -> bool {
    #[expect(clippy::eq_op, reason = "NaN is what is not equal to itself")]
    let (v_is_nan, w_is_nan) = (v != v, w != w);
    if v_is_nan != w_is_nan {
        return v_is_nan;
    }
    if !v_is_nan && v != w {
        return (v > w) == greatest;
    }
    (i, v.bits()) <= (j, w.bits())
}

/// # Safety
/// `a` and `b` are readable and `dst` is writable for `pairs` structs, at any alignment; `dst` may
/// be `a` or `b`.
unsafe fn choose<V: Number, I: Ord + Copy>(greatest: bool, dst: *mut u8, a: *const u8, b: *const u8, pairs: usize) {
    let size = size_of::<Struct<V, I>>();
    let read = |at: *const u8| {
        let index = at.wrapping_add(std::mem::offset_of!(Struct<V, I>, index));
        // SAFETY: the caller's promise; every bit pattern is a number.
        unsafe { (at.cast::<V>().read_unaligned(), index.cast::<I>().read_unaligned()) }
    };
    for at in (0..pairs).map(|pair| pair * size) {
        let (x, y) = (a.wrapping_add(at), b.wrapping_add(at));
        let kept = if is_first(greatest, read(x), read(y)) { x } else { y };
        // SAFETY: the caller's promise. What is kept may be where it goes.
        unsafe { std::ptr::copy(kept, dst.wrapping_add(at), size) };
    }
}

/// A value and where it is, for [`Located::MINLOC`] and [`Located::MAXLOC`]: `f32` and `i32` with
/// an index in 32 bits, `f64` and `i64` in 64.
///
/// ```
/// use maypole_collectives::{Located, ReduceOp, reduce::slices};
///
/// let mut best = [Located { value: 0.25f32, index: 7 }];
/// let other = [Located { value: 0.125f32, index: 3 }];
/// let (mine, theirs) = (Located::elements_mut(&mut best), Located::elements(&other));
/// // With a communicator: comm.all_reduce_in_place(mine, Located::<f32>::MINLOC)?;
/// slices::reduce_in_place(Located::<f32>::MINLOC, mine, theirs);
/// assert_eq!(best, other);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct Located<V: Value> {
    /// What is compared.
    pub value: V,
    /// Where it is: whatever the caller counts. Of two equal values, the one with the lower index
    /// is kept.
    pub index: V::Index,
}

/// A type of values that a [`Located`] may have. Sealed.
///
/// # Safety
/// The index has the value's size, so that there is no padding, and [`Value::Half`] has it too.
pub unsafe trait Value: Element {
    /// The type of the index.
    type Index: Element;
    /// The elements as which both are moved.
    type Half: Element;
    /// Value and index.
    const PAIR: Pair;
}

// SAFETY: 4 bytes each.
unsafe impl Value for f32 {
    type Index = i32;
    type Half = u32;
    const PAIR: Pair = Pair::F32I32;
}

// SAFETY: 4 bytes each.
unsafe impl Value for i32 {
    type Index = i32;
    type Half = u32;
    const PAIR: Pair = Pair::I32I32;
}

// SAFETY: 8 bytes each.
unsafe impl Value for f64 {
    type Index = i64;
    type Half = u64;
    const PAIR: Pair = Pair::F64I64;
}

// SAFETY: 8 bytes each.
unsafe impl Value for i64 {
    type Index = i64;
    type Half = u64;
    const PAIR: Pair = Pair::I64I64;
}

// SAFETY: both members may be zero.
unsafe impl<V: Value> Zeroable for Located<V> {}
// SAFETY: both members are, and as they have the same size there is no padding.
unsafe impl<V: Value> Pod for Located<V> {}

impl<V: Value> Located<V> {
    /// The least value, and where it is.
    pub const MINLOC: ReduceOp = ReduceOp::MinLoc(V::PAIR);
    /// The greatest value, and where it is.
    pub const MAXLOC: ReduceOp = ReduceOp::MaxLoc(V::PAIR);

    /// Pairs as the elements that collectives take.
    pub fn elements(pairs: &[Located<V>]) -> &[V::Half] {
        bytemuck::cast_slice(pairs)
    }

    /// [`Located::elements`], to be written.
    pub fn elements_mut(pairs: &mut [Located<V>]) -> &mut [V::Half] {
        bytemuck::cast_slice_mut(pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reduce::slices;

    fn of<V: Value>(op: ReduceOp, a: (V, V::Index), b: (V, V::Index)) -> Located<V> {
        let [mut kept, other] = [a, b].map(|(value, index)| [Located { value, index }]);
        slices::reduce_in_place(op, Located::elements_mut(&mut kept), Located::elements(&other));
        kept[0]
    }

    /// Whichever comes first.
    fn both<V: Value>(op: ReduceOp, a: (V, V::Index), b: (V, V::Index)) -> Located<V> {
        let (one, other) = (of(op, a, b), of(op, b, a));
        assert_eq!(bytemuck::bytes_of(&one), bytemuck::bytes_of(&other), "{a:?} {b:?}");
        one
    }

    #[test]
    fn the_value_decides_then_the_index_then_the_bits() {
        assert_eq!(both::<f32>(Located::<f32>::MINLOC, (1.0, 9), (2.0, 1)).index, 9);
        assert_eq!(both::<f32>(Located::<f32>::MAXLOC, (1.0, 9), (2.0, 1)).index, 1);
        assert_eq!(both::<i64>(Located::<i64>::MAXLOC, (-1, -5), (-1, -6)).index, -6);
        assert_eq!(both::<i32>(Located::<i32>::MINLOC, (i32::MIN, 2), (i32::MAX, 1)).index, 2);
        // Equal numbers, whatever their sign.
        assert_eq!(both::<f64>(Located::<f64>::MINLOC, (0.0, 3), (-0.0, 4)).index, 3);
        assert!(both::<f64>(Located::<f64>::MINLOC, (0.0, 3), (-0.0, 3)).value.is_sign_positive());
        for op in [Located::<f32>::MINLOC, Located::<f32>::MAXLOC] {
            for other in [f32::NEG_INFINITY, 0.0, f32::INFINITY] {
                let kept = both::<f32>(op, (f32::NAN, 8), (other, 1));
                assert!(kept.value.is_nan() && kept.index == 8, "{kept:?}");
            }
            assert_eq!(both::<f32>(op, (f32::NAN, 8), (-f32::NAN, 6)).index, 6);
        }
    }

    #[test]
    fn pairs_lie_as_in_c_and_are_kept_whole() {
        assert_eq!(Pair::ALL.map(Pair::size), [8, 16, 16, 8, 8, 16, 16]);
        for (code, pair) in Pair::ALL.into_iter().enumerate() {
            assert_eq!((pair as usize, pair.size()), (code, Pair::WIDTH * pair.dtype().size()));
        }
        // A short, padding, an int; unaligned, and in place of either.
        let pair = |value: i16, index: i32, padding: u8| -> Vec<u8> {
            [&value.to_ne_bytes()[..], &[padding; 2], &index.to_ne_bytes()].concat()
        };
        let a = [vec![0], pair(-3, 70, 1), pair(5, 2, 2)].concat();
        let b = [vec![0], pair(-4, 71, 3), pair(5, 1, 4)].concat();
        let least = [pair(-4, 71, 3), pair(5, 1, 4)].concat();
        for second in [false, true] {
            let (mut x, mut y) = (a.clone(), b.clone());
            let (x, y) = (x.as_mut_ptr().wrapping_add(1), y.as_mut_ptr().wrapping_add(1));
            let dst = if second { y } else { x };
            // SAFETY: 16 bytes from the second on, in vectors of 17.
            let kept = unsafe {
                Pair::I16I32.choose(false, dst, x, y, 4);
                std::slice::from_raw_parts(dst, 16)
            };
            assert_eq!(kept, least);
        }
    }
}
