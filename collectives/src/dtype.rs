//! Element types.

/// THE list of element types. A row has a text; the variant, its code, the Rust type, the name and the kind; and what
/// others call it: arrays in Python (NumPy, ml_dtypes, torch, JAX), DLPack's code, `ncclDataType_t`, and the names that
/// nccl-tests takes.
///
/// `element_types!(callback)` is `callback! { {row} {row} ... }`, and `element_types!(callback, tokens)` the same with
/// those tokens first.
#[macro_export]
macro_rules! element_types {
    ($callback:ident $(, $($first:tt)+)?) => {
        $callback! {
            $($($first)+)?
            {
                /// 8-bit signed integer.
                I8 = 0: i8, "i8", Signed;
                array "int8", dlpack 0, nccl 0 ["int8", "char"];
            }
            {
                /// 8-bit unsigned integer, or plain bytes.
                U8 = 1: u8, "u8", Unsigned;
                array "uint8", dlpack 1, nccl 1 ["uint8"];
            }
            {
                /// 32-bit signed integer.
                I32 = 2: i32, "i32", Signed;
                array "int32", dlpack 0, nccl 2 ["int32", "int"];
            }
            {
                /// 32-bit unsigned integer.
                U32 = 3: u32, "u32", Unsigned;
                array "uint32", dlpack 1, nccl 3 ["uint32"];
            }
            {
                /// 64-bit signed integer.
                I64 = 4: i64, "i64", Signed;
                array "int64", dlpack 0, nccl 4 ["int64"];
            }
            {
                /// 64-bit unsigned integer.
                U64 = 5: u64, "u64", Unsigned;
                array "uint64", dlpack 1, nccl 5 ["uint64"];
            }
            {
                /// IEEE 754 binary16.
                F16 = 6: half::f16, "f16", Float(5, 10);
                array "float16", dlpack 2, nccl 6 ["half", "float16"];
            }
            {
                /// bfloat16: binary32's upper half.
                Bf16 = 7: half::bf16, "bf16", Float(8, 7);
                array "bfloat16", dlpack 4, nccl 9 ["bfloat16"];
            }
            {
                /// IEEE 754 binary32.
                F32 = 8: f32, "f32", Float(8, 23);
                array "float32", dlpack 2, nccl 7 ["float", "float32"];
            }
            {
                /// IEEE 754 binary64.
                F64 = 9: f64, "f64", Float(11, 52);
                array "float64", dlpack 2, nccl 8 ["double", "float64"];
            }
            {
                /// 8-bit float, 4 exponent and 3 mantissa bits, no infinities (OCP FP8 E4M3, "fn").
                F8E4M3 = 10: $crate::F8E4M3, "f8e4m3", Float(4, 3);
                array "float8_e4m3fn", dlpack 10, nccl 10 ["fp8_e4m3"];
            }
            {
                /// 8-bit float, 5 exponent and 2 mantissa bits (OCP FP8 E5M2).
                F8E5M2 = 11: $crate::F8E5M2, "f8e5m2", Float(5, 2);
                array "float8_e5m2", dlpack 12, nccl 11 ["fp8_e5m2"];
            }
        }
    };
}

/// `with_type!(dtype, T => body)`: `body` for the Rust type that belongs to a [`DataType`], as `T`. One match. It wants
/// to be imported by its name.
#[macro_export]
macro_rules! with_type {
    ($dtype:expr, $type:ident => $body:expr) => {
        $crate::element_types!(with_type, @ ($dtype) $type ($body))
    };
    (@ ($dtype:expr) $name:ident ($body:expr) $({
        #[doc = $text:literal]
        $variant:ident = $code:literal: $type:path, $($more:tt)+
    })+) => {
        match $dtype {
            $($crate::DataType::$variant => {
                type $name = $type;
                $body
            })+
        }
    };
}

/// How bits are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As a number in two's complement.
    Signed,
    /// As a number.
    Unsigned,
    /// As sign, so many bits of exponent, and so many of mantissa.
    Float(u32, u32),
}

/// A row of the list.
#[derive(Clone, Copy, Debug)]
pub struct ElementType {
    /// The name used on command lines and in messages: `f32`, `bf16`, `f8e4m3`.
    pub name: &'static str,
    /// Bytes per element.
    pub size: usize,
    /// How its bits are read.
    pub kind: Kind,
    /// What NumPy, ml_dtypes, torch and JAX call it. (Maypole's own names are not for Python: `i8` is NumPy's for eight
    /// bytes.)
    pub array_name: &'static str,
    /// DLPack's code; its size says the rest.
    pub dlpack: u8,
    /// NCCL's `ncclDataType_t`.
    pub nccl: i32,
    /// What else command lines take for its name: nccl-tests' names.
    pub nccl_names: &'static [&'static str],
}

macro_rules! enumerate {
    ($({
        #[doc = $text:literal]
        $variant:ident = $code:literal: $type:path, $name:literal, $kind:expr;
        array $array:literal, dlpack $dlpack:literal, nccl $nccl:literal $nccl_names:expr;
    })+) => {
        /// The type of an element. Collectives move bytes; only reductions look at the type.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DataType {
            $(#[doc = $text] $variant = $code,)+
        }

        impl DataType {
            /// Every type, in the order of their codes.
            pub const ALL: [DataType; [$($code),+].len()] = [$(DataType::$variant),+];

            const ROWS: [ElementType; DataType::ALL.len()] = {
                use Kind::*;
                [$(ElementType {
                    name: $name,
                    size: size_of::<$type>(),
                    kind: $kind,
                    array_name: $array,
                    dlpack: $dlpack,
                    nccl: $nccl,
                    nccl_names: &$nccl_names,
                }),+]
            };
        }
    };
}

element_types!(enumerate);

impl DataType {
    /// Its row of the list.
    #[inline]
    pub const fn row(self) -> &'static ElementType {
        &DataType::ROWS[self as usize]
    }

    /// Bytes per element.
    #[inline]
    pub const fn size(self) -> usize {
        self.row().size
    }

    /// Whether bitwise operations make sense.
    #[inline]
    pub const fn is_integer(self) -> bool {
        !matches!(self.row().kind, Kind::Float(..))
    }

    /// The name used on command lines and in messages: `f32`, `bf16`, `f8e4m3`.
    pub const fn name(self) -> &'static str {
        self.row().name
    }
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
