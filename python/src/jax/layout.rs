//! The memory layout of XLA's foreign function interface, as far as Maypole's handlers need it.
//!
//! XLA calls a handler with one pointer, to a [`CallFrame`], and everything hangs off it. The layout is C, and stable
//! within major version 0: structures only grow at their end, and each says its own size in its first field, which
//! [`frame`](super::frame) checks before it reads another one. Declared by hand after jaxlib's public header
//! (`jax.ffi.include_dir()`, `xla/ffi/api/c_api.h`), so building Maypole needs no jaxlib; [`OFFSETS`] and
//! [`CONSTANTS`] are what `python/tests/jax` compares with that header.
//!
//! Fields that nothing here reads keep their place with a leading underscore.

use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;

/// A list of things that callers of later versions may hang to a structure; the only one so far asks a handler which
/// version it was made for.
#[repr(C)]
pub struct Extension {
    pub struct_size: usize,
    pub kind: c_int,
    pub next: *mut Extension,
}

/// [`Extension::kind`] of a [`MetadataQuery`].
pub const METADATA: c_int = 1;

#[repr(C)]
pub struct Version {
    pub struct_size: usize,
    _extensions: *mut Extension,
    pub major: c_int,
    pub minor: c_int,
}

/// What a handler says of itself. Later versions have more fields behind these; zero is right for them.
#[repr(C)]
pub struct Metadata {
    pub struct_size: usize,
    pub version: Version,
    pub traits: u32,
}

#[repr(C)]
pub struct MetadataQuery {
    pub base: Extension,
    pub metadata: *mut Metadata,
}

/// An error that XLA made and owns.
#[repr(C)]
pub struct XlaError {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct ErrorCreate {
    pub struct_size: usize,
    pub extensions: *mut Extension,
    /// Ends with a zero; XLA copies it.
    pub message: *const c_char,
    pub code: c_int,
}

/// What handlers can call, up to the only function that Maypole's do.
#[repr(C)]
pub struct Api {
    pub struct_size: usize,
    _extensions: *mut Extension,
    pub version: Version,
    _internal: *const c_void,
    pub error_create: Option<unsafe extern "C" fn(*mut ErrorCreate) -> *mut XlaError>,
}

/// A tensor, row by row.
#[repr(C)]
pub struct Buffer {
    pub struct_size: usize,
    _extensions: *mut Extension,
    /// One of [`element`].
    pub dtype: c_int,
    pub data: *mut u8,
    pub rank: i64,
    pub dims: *const i64,
}

/// Operands or results; the two are laid out alike.
#[repr(C)]
pub struct Buffers {
    pub struct_size: usize,
    _extensions: *mut Extension,
    pub size: i64,
    /// [`BUFFER`] for each; there is no other kind yet.
    pub kinds: *const c_int,
    pub values: *const *const c_void,
}

/// The only kind of operand and of result.
pub const BUFFER: c_int = 1;

#[repr(C)]
pub struct Span {
    pub bytes: *const u8,
    pub len: usize,
}

#[repr(C)]
pub struct Scalar {
    /// One of [`element`].
    pub dtype: c_int,
    pub value: *const c_void,
}

/// What the call site was compiled with.
#[repr(C)]
pub struct Attributes {
    pub struct_size: usize,
    _extensions: *mut Extension,
    pub size: i64,
    /// [`SCALAR`] and [`STRING`], among others.
    pub kinds: *const c_int,
    pub names: *const *const Span,
    pub values: *const *const c_void,
}

/// Kind of an attribute whose value is a [`Scalar`].
pub const SCALAR: c_int = 3;
/// Kind of an attribute whose value is a [`Span`].
pub const STRING: c_int = 4;

/// One call of a handler.
#[repr(C)]
pub struct CallFrame {
    pub struct_size: usize,
    pub extensions: *mut Extension,
    pub api: *const Api,
    _context: *mut c_void,
    pub stage: c_int,
    pub operands: Buffers,
    pub results: Buffers,
    pub attributes: Attributes,
}

/// The stage in which a handler does its work.
pub const EXECUTE: c_int = 3;

/// Element types, numbered as in XLA. The others have no counterpart here.
pub mod element {
    use std::ffi::c_int;

    pub const PRED: c_int = 1;
    pub const S8: c_int = 2;
    pub const S16: c_int = 3;
    pub const S32: c_int = 4;
    pub const S64: c_int = 5;
    pub const U8: c_int = 6;
    pub const U16: c_int = 7;
    pub const U32: c_int = 8;
    pub const U64: c_int = 9;
    pub const F16: c_int = 10;
    pub const F32: c_int = 11;
    pub const F64: c_int = 12;
    pub const C64: c_int = 15;
    pub const BF16: c_int = 16;
    /// No data: an operand or result that only orders calls.
    pub const TOKEN: c_int = 17;
    pub const C128: c_int = 18;
    pub const F8E5M2: c_int = 19;
    pub const F8E4M3FN: c_int = 20;
}

/// Codes of errors, those of absl::Status.
pub mod code {
    use std::ffi::c_int;

    pub const INVALID_ARGUMENT: c_int = 3;
    pub const DEADLINE_EXCEEDED: c_int = 4;
    pub const FAILED_PRECONDITION: c_int = 9;
    pub const ABORTED: c_int = 10;
    pub const INTERNAL: c_int = 13;
    pub const UNAVAILABLE: c_int = 14;
}

/// Where the fields are that are used here: structure and field by their names in XLA's header, offset in bytes.
pub const OFFSETS: [(&str, &str, usize); 33] = [
    ("XLA_FFI_Extension_Base", "type", offset_of!(Extension, kind)),
    ("XLA_FFI_Extension_Base", "next", offset_of!(Extension, next)),
    ("XLA_FFI_Api_Version", "major_version", offset_of!(Version, major)),
    ("XLA_FFI_Api_Version", "minor_version", offset_of!(Version, minor)),
    ("XLA_FFI_Metadata", "api_version", offset_of!(Metadata, version)),
    ("XLA_FFI_Metadata", "traits", offset_of!(Metadata, traits)),
    ("XLA_FFI_Metadata_Extension", "metadata", offset_of!(MetadataQuery, metadata)),
    ("XLA_FFI_Error_Create_Args", "extension_start", offset_of!(ErrorCreate, extensions)),
    ("XLA_FFI_Error_Create_Args", "message", offset_of!(ErrorCreate, message)),
    ("XLA_FFI_Error_Create_Args", "errc", offset_of!(ErrorCreate, code)),
    ("XLA_FFI_Api", "api_version", offset_of!(Api, version)),
    ("XLA_FFI_Api", "XLA_FFI_Error_Create", offset_of!(Api, error_create)),
    ("XLA_FFI_Buffer", "dtype", offset_of!(Buffer, dtype)),
    ("XLA_FFI_Buffer", "data", offset_of!(Buffer, data)),
    ("XLA_FFI_Buffer", "rank", offset_of!(Buffer, rank)),
    ("XLA_FFI_Buffer", "dims", offset_of!(Buffer, dims)),
    ("XLA_FFI_Args", "size", offset_of!(Buffers, size)),
    ("XLA_FFI_Args", "types", offset_of!(Buffers, kinds)),
    ("XLA_FFI_Args", "args", offset_of!(Buffers, values)),
    ("XLA_FFI_Rets", "rets", offset_of!(Buffers, values)),
    ("XLA_FFI_ByteSpan", "len", offset_of!(Span, len)),
    ("XLA_FFI_Scalar", "value", offset_of!(Scalar, value)),
    ("XLA_FFI_Attrs", "size", offset_of!(Attributes, size)),
    ("XLA_FFI_Attrs", "types", offset_of!(Attributes, kinds)),
    ("XLA_FFI_Attrs", "names", offset_of!(Attributes, names)),
    ("XLA_FFI_Attrs", "attrs", offset_of!(Attributes, values)),
    ("XLA_FFI_CallFrame", "extension_start", offset_of!(CallFrame, extensions)),
    ("XLA_FFI_CallFrame", "api", offset_of!(CallFrame, api)),
    ("XLA_FFI_CallFrame", "ctx", offset_of!(CallFrame, _context)),
    ("XLA_FFI_CallFrame", "stage", offset_of!(CallFrame, stage)),
    ("XLA_FFI_CallFrame", "args", offset_of!(CallFrame, operands)),
    ("XLA_FFI_CallFrame", "rets", offset_of!(CallFrame, results)),
    ("XLA_FFI_CallFrame", "attrs", offset_of!(CallFrame, attributes)),
];

/// The numbers that are used here, by their names in XLA's header.
pub const CONSTANTS: [(&str, c_int); 29] = [
    ("XLA_FFI_Extension_Metadata", METADATA),
    ("XLA_FFI_ArgType_BUFFER", BUFFER),
    ("XLA_FFI_RetType_BUFFER", BUFFER),
    ("XLA_FFI_AttrType_SCALAR", SCALAR),
    ("XLA_FFI_AttrType_STRING", STRING),
    ("XLA_FFI_ExecutionStage_EXECUTE", EXECUTE),
    ("XLA_FFI_DataType_PRED", element::PRED),
    ("XLA_FFI_DataType_S8", element::S8),
    ("XLA_FFI_DataType_S16", element::S16),
    ("XLA_FFI_DataType_S32", element::S32),
    ("XLA_FFI_DataType_S64", element::S64),
    ("XLA_FFI_DataType_U8", element::U8),
    ("XLA_FFI_DataType_U16", element::U16),
    ("XLA_FFI_DataType_U32", element::U32),
    ("XLA_FFI_DataType_U64", element::U64),
    ("XLA_FFI_DataType_F16", element::F16),
    ("XLA_FFI_DataType_F32", element::F32),
    ("XLA_FFI_DataType_F64", element::F64),
    ("XLA_FFI_DataType_BF16", element::BF16),
    ("XLA_FFI_DataType_C64", element::C64),
    ("XLA_FFI_DataType_C128", element::C128),
    ("XLA_FFI_DataType_TOKEN", element::TOKEN),
    ("XLA_FFI_DataType_F8E5M2", element::F8E5M2),
    ("XLA_FFI_DataType_F8E4M3FN", element::F8E4M3FN),
    ("XLA_FFI_Error_Code_INVALID_ARGUMENT", code::INVALID_ARGUMENT),
    ("XLA_FFI_Error_Code_DEADLINE_EXCEEDED", code::DEADLINE_EXCEEDED),
    ("XLA_FFI_Error_Code_FAILED_PRECONDITION", code::FAILED_PRECONDITION),
    ("XLA_FFI_Error_Code_ABORTED", code::ABORTED),
    ("XLA_FFI_Error_Code_UNAVAILABLE", code::UNAVAILABLE),
];
