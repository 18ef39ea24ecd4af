//! Element types, by number.

use std::ffi::c_int;

use maypole::DataType;

use crate::status::{Fault, Outcome};

/// The type of an element: MAYPOLE_F32 and so on.
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

#[inline]
pub(crate) fn dtype_of(dtype: maypole_dtype) -> Outcome<DataType> {
    let found = usize::try_from(dtype).ok().and_then(|code| DataType::ALL.get(code));
    found.copied().ok_or_else(|| Fault::argument(format!("dtype is {dtype}, which is no MAYPOLE_... element type")))
}

/// Bytes per element of a type; 0 if there is no such type.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_dtype_size(dtype: maypole_dtype) -> usize {
    dtype_of(dtype).map_or(0, DataType::size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_librarys() {
        let all = [
            (MAYPOLE_I8, DataType::I8),
            (MAYPOLE_U8, DataType::U8),
            (MAYPOLE_I32, DataType::I32),
            (MAYPOLE_U32, DataType::U32),
            (MAYPOLE_I64, DataType::I64),
            (MAYPOLE_U64, DataType::U64),
            (MAYPOLE_F16, DataType::F16),
            (MAYPOLE_BF16, DataType::Bf16),
            (MAYPOLE_F32, DataType::F32),
            (MAYPOLE_F64, DataType::F64),
            (MAYPOLE_F8E4M3, DataType::F8E4M3),
            (MAYPOLE_F8E5M2, DataType::F8E5M2),
        ];
        assert_eq!(all.len(), DataType::ALL.len());
        for (number, dtype) in all {
            assert_eq!(dtype_of(number).unwrap(), dtype);
        }
        assert!([-1, 12, c_int::MAX].into_iter().all(|wrong| dtype_of(wrong).is_err()));
    }
}
