//! Element types, by number.

use std::ffi::c_int;

use maypole::{DataType, Pair};

use crate::status::{Fault, Outcome};

/// The type of an element: MAYPOLE_F32 and so on; or of a pair of a value and its index,
/// MAYPOLE_F32_I32 and so on, which are moved like elements and combined by MAYPOLE_MINLOC and
/// MAYPOLE_MAXLOC.
pub type maypole_dtype = c_int;

/// 8-bit signed integer.
pub const MAYPOLE_I8: maypole_dtype = 0;
/// 8-bit unsigned integer, or plain bytes.
pub const MAYPOLE_U8: maypole_dtype = 1;
/// 32-bit signed integer.
pub const MAYPOLE_I32: maypole_dtype = 2;
/// 32-bit unsigned integer.
pub const MAYPOLE_U32: maypole_dtype = 3;
/// 64-bit signed integer.
pub const MAYPOLE_I64: maypole_dtype = 4;
/// 64-bit unsigned integer.
pub const MAYPOLE_U64: maypole_dtype = 5;
/// IEEE 754 binary16.
pub const MAYPOLE_F16: maypole_dtype = 6;
/// bfloat16: the upper half of binary32.
pub const MAYPOLE_BF16: maypole_dtype = 7;
/// IEEE 754 binary32.
pub const MAYPOLE_F32: maypole_dtype = 8;
/// IEEE 754 binary64.
pub const MAYPOLE_F64: maypole_dtype = 9;
/// 8-bit float, 4 exponent and 3 mantissa bits, no infinities (OCP FP8 E4M3).
pub const MAYPOLE_F8E4M3: maypole_dtype = 10;
/// 8-bit float, 5 exponent and 2 mantissa bits (OCP FP8 E5M2).
pub const MAYPOLE_F8E5M2: maypole_dtype = 11;

/// struct { float value; int32_t index; }, as MPI_FLOAT_INT.
pub const MAYPOLE_F32_I32: maypole_dtype = 64;
/// struct { double value; int32_t index; } with its padding, 16 bytes, as MPI_DOUBLE_INT.
pub const MAYPOLE_F64_I32: maypole_dtype = 65;
/// struct { int64_t value; int32_t index; } with its padding, 16 bytes, as MPI_LONG_INT.
pub const MAYPOLE_I64_I32: maypole_dtype = 66;
/// struct { int32_t value; int32_t index; }, as MPI_2INT.
pub const MAYPOLE_I32_I32: maypole_dtype = 67;
/// struct { int16_t value; int32_t index; } with its padding, 8 bytes, as MPI_SHORT_INT.
pub const MAYPOLE_I16_I32: maypole_dtype = 68;
/// struct { double value; int64_t index; }.
pub const MAYPOLE_F64_I64: maypole_dtype = 69;
/// struct { int64_t value; int64_t index; }.
pub const MAYPOLE_I64_I64: maypole_dtype = 70;

/// What a type of the caller's is for the library.
#[derive(Clone, Copy)]
pub(crate) struct Carried {
    pub dtype: DataType,
    /// How many of them one of the caller's is.
    pub unit: usize,
    /// Whether it is a pair.
    pub pair: Option<Pair>,
}

impl Carried {
    /// So many of the caller's.
    pub fn times(&self, count: usize) -> Outcome<usize> {
        count.checked_mul(self.unit).ok_or_else(|| Fault::argument(format!("{count} is more than there are addresses")))
    }
}

#[inline]
pub(crate) fn carried(dtype: maypole_dtype) -> Outcome<Carried> {
    let code = dtype.checked_sub(MAYPOLE_F32_I32).and_then(|code| usize::try_from(code).ok());
    match code.and_then(|code| Pair::ALL.get(code).copied()) {
        Some(pair) => Ok(Carried { dtype: pair.dtype(), unit: Pair::WIDTH, pair: Some(pair) }),
        None => dtype_of(dtype).map(|dtype| Carried { dtype, unit: 1, pair: None }),
    }
}

#[inline]
pub(crate) fn dtype_of(dtype: maypole_dtype) -> Outcome<DataType> {
    let found = usize::try_from(dtype).ok().and_then(|code| DataType::ALL.get(code));
    found.copied().ok_or_else(|| Fault::argument(format!("dtype is {dtype}, which is no MAYPOLE_... element type")))
}

/// Bytes per element, or per pair, of a type; 0 if there is no such type.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_dtype_size(dtype: maypole_dtype) -> usize {
    carried(dtype).map_or(0, |carried| carried.unit * carried.dtype.size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_librarys() {
        // In the order of the library's.
        let all = [
            MAYPOLE_I8,
            MAYPOLE_U8,
            MAYPOLE_I32,
            MAYPOLE_U32,
            MAYPOLE_I64,
            MAYPOLE_U64,
            MAYPOLE_F16,
            MAYPOLE_BF16,
            MAYPOLE_F32,
            MAYPOLE_F64,
            MAYPOLE_F8E4M3,
            MAYPOLE_F8E5M2,
        ];
        assert_eq!(all.map(|number| dtype_of(number).unwrap()), DataType::ALL);
        let pairs = [
            (MAYPOLE_F32_I32, Pair::F32I32),
            (MAYPOLE_F64_I32, Pair::F64I32),
            (MAYPOLE_I64_I32, Pair::I64I32),
            (MAYPOLE_I32_I32, Pair::I32I32),
            (MAYPOLE_I16_I32, Pair::I16I32),
            (MAYPOLE_F64_I64, Pair::F64I64),
            (MAYPOLE_I64_I64, Pair::I64I64),
        ];
        assert_eq!(pairs.len(), Pair::ALL.len());
        for (number, pair) in pairs {
            assert_eq!((carried(number).unwrap().pair, maypole_dtype_size(number)), (Some(pair), pair.size()));
        }
        assert!([-1, 12, 63, 71, c_int::MAX, c_int::MIN].into_iter().all(|wrong| carried(wrong).is_err()));
    }
}
