//! A call from XLA as safe Rust: [`Frame`] has read and checked everything that a [`CallFrame`] points to.
//!
//! XLA promises that its pointers are valid for the length of the call. It cannot promise that its structures are the
//! ones that this was compiled for, so every `struct_size` is looked at before anything behind it is.

use std::ffi::{CString, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;

use super::layout::{self, element};

/// Version 0.1 of XLA's interface, the oldest that asks: what is claimed where XLA does not say which one it has.
const OLDEST: (c_int, c_int) = (0, 1);

/// Why a call was refused: a code of absl::Status and a text.
pub struct Refusal {
    pub code: c_int,
    pub message: String,
}

impl Refusal {
    /// An argument is not as it should be.
    pub fn argument(message: impl Into<String>) -> Refusal {
        Refusal { code: layout::code::INVALID_ARGUMENT, message: message.into() }
    }
}

/// A tensor of the call.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    /// One of [`element`].
    pub dtype: c_int,
    pub data: *mut u8,
    /// Elements.
    pub count: usize,
    frame: PhantomData<&'a ()>,
}

/// One call, checked.
pub struct Frame<'a> {
    raw: &'a layout::CallFrame,
    /// The operand, if the call has one besides its token.
    pub operand: Option<Tensor<'a>>,
    /// The result, likewise.
    pub result: Option<Tensor<'a>>,
}

/// Answer XLA's question which version of the interface this handler was made for. True if it was one.
///
/// # Safety
/// `frame` is what XLA passed to the handler.
pub unsafe fn answers_metadata(frame: *mut layout::CallFrame) -> bool {
    // SAFETY: the frame's first two fields are in all versions; XLA's pointers are valid or null.
    let (mut extension, api) = unsafe { ((*frame).extensions, (*frame).api) };
    // The question may stand behind extensions that are not known here.
    // SAFETY: extensions are a list; each begins with its size, its kind, and the next.
    while let Some(base) = unsafe { extension.as_ref() }.filter(|base| base.kind != layout::METADATA) {
        extension = base.next;
    }
    if extension.is_null() {
        return false;
    }
    // SAFETY: of this kind are only metadata queries.
    let metadata = unsafe { &mut *(*extension.cast::<layout::MetadataQuery>()).metadata };
    // The version is XLA's own, since `Frame::read` goes by sizes and not by versions. Only a later major version,
    // whose layout may be anything, gets an answer that makes XLA refuse the handler.
    // SAFETY: `api` points to XLA's table of functions, whose version is in its second field.
    let (major, minor) = if api.is_null() { OLDEST } else { unsafe { ((*api).version.major, (*api).version.minor) } };
    (metadata.version.major, metadata.version.minor) = if major == OLDEST.0 { (major, minor) } else { OLDEST };
    metadata.traits = 0;
    true
}

impl<'a> Frame<'a> {
    /// Read the frame of a call in the execute stage.
    ///
    /// # Errors
    /// What is not as this was compiled for, or not as `maypole.jax` makes its calls.
    ///
    /// # Safety
    /// `frame` is what XLA passed to the handler, and `'a` ends before the handler returns.
    pub unsafe fn read(frame: *mut layout::CallFrame) -> Result<Frame<'a>, Refusal> {
        // SAFETY: the caller's promise; the size comes first.
        sized::<layout::CallFrame>("the call frame", unsafe { (*frame).struct_size })?;
        // SAFETY: it is as large as this was compiled for.
        let raw = unsafe { &*frame };
        sized::<layout::Buffers>("the operands", raw.operands.struct_size)?;
        sized::<layout::Buffers>("the results", raw.results.struct_size)?;
        sized::<layout::Attributes>("the attributes", raw.attributes.struct_size)?;
        if raw.stage != layout::EXECUTE {
            return Err(internal(format!("called in stage {}, expected {} (execute)", raw.stage, layout::EXECUTE)));
        }
        // SAFETY: sizes checked above.
        let (operand, result) = unsafe { (tensor(&raw.operands, "operand")?, tensor(&raw.results, "result")?) };
        Ok(Frame { raw, operand, result })
    }

    /// The integer attribute `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn integer(&self, name: &str) -> Result<i64, Refusal> {
        let value = self.attribute(name, layout::SCALAR)?.cast::<layout::Scalar>();
        // SAFETY: attributes of this kind are scalars.
        let scalar = unsafe { &*value };
        if scalar.dtype != element::S64 {
            return Err(internal(format!("attribute {name} has element type {}, expected i64", scalar.dtype)));
        }
        // SAFETY: a scalar of this type is an i64; XLA does not say how it is aligned.
        Ok(unsafe { scalar.value.cast::<i64>().read_unaligned() })
    }

    /// The text attribute `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn text(&self, name: &str) -> Result<&'a str, Refusal> {
        let value = self.attribute(name, layout::STRING)?.cast::<layout::Span>();
        // SAFETY: attributes of this kind are spans of bytes, which live as long as the frame.
        unsafe { text(value) }.ok_or_else(|| internal(format!("attribute {name} is not UTF-8")))
    }

    fn attribute(&self, name: &str, kind: c_int) -> Result<*const c_void, Refusal> {
        let attributes = &self.raw.attributes;
        for i in 0..usize::try_from(attributes.size).unwrap_or(0) {
            // SAFETY: the three lists have `size` entries, and names are spans.
            let (found, found_kind, value) =
                unsafe { (text(*attributes.names.add(i)), *attributes.kinds.add(i), *attributes.values.add(i)) };
            if found == Some(name) {
                let wrong = || internal(format!("attribute {name} is of kind {found_kind}, expected {kind}"));
                return if found_kind == kind { Ok(value) } else { Err(wrong()) };
            }
        }
        Err(internal(format!("there is no attribute {name}")))
    }
}

/// Turn a refusal into an error of XLA's.
///
/// # Safety
/// `frame` is what XLA passed to the handler.
pub unsafe fn refuse(frame: *mut layout::CallFrame, refusal: &Refusal) -> *mut layout::XlaError {
    // A text that a zero cuts short still says more than none.
    let text: Vec<u8> = refusal.message.bytes().filter(|&byte| byte != 0).collect();
    let message = CString::new(text).unwrap_or_default();
    let mut error = layout::ErrorCreate {
        struct_size: size_of::<layout::ErrorCreate>(),
        extensions: null_mut(),
        message: message.as_ptr(),
        code: refusal.code,
    };
    // SAFETY: the table of functions begins alike in all of major version 0, the only one that registers this handler.
    let create = unsafe { (*(*frame).api).error_create };
    // SAFETY: the arguments live until it returns.
    create.map_or(null_mut(), |create| unsafe { create(&raw mut error) })
}

/// Of operands or results, the one that is not a token.
///
/// # Safety
/// `buffers` comes from XLA.
unsafe fn tensor<'a>(buffers: &'a layout::Buffers, what: &str) -> Result<Option<Tensor<'a>>, Refusal> {
    let mut found = None;
    for i in 0..usize::try_from(buffers.size).unwrap_or(0) {
        // SAFETY: both lists have `size` entries.
        let (kind, value) = unsafe { (*buffers.kinds.add(i), (*buffers.values.add(i)).cast::<layout::Buffer>()) };
        if kind != layout::BUFFER {
            return Err(internal(format!("{what} {i} is of kind {kind}, expected {} (buffer)", layout::BUFFER)));
        }
        // SAFETY: of this kind are only buffers, and their size comes first.
        sized::<layout::Buffer>("a buffer", unsafe { (*value).struct_size })?;
        // SAFETY: checked.
        let buffer = unsafe { &*value };
        if buffer.dtype == element::TOKEN {
            continue;
        }
        if found.is_some() {
            return Err(internal(format!("more than one {what}")));
        }
        let rank = usize::try_from(buffer.rank).unwrap_or(0);
        // SAFETY: there are `rank` dimensions; where there are none the pointer may be null.
        let dims = if rank == 0 { &[] } else { unsafe { std::slice::from_raw_parts(buffer.dims, rank) } };
        let count = dims.iter().try_fold(1usize, |count, &dim| count.checked_mul(usize::try_from(dim).ok()?));
        let count = count.ok_or_else(|| internal(format!("the {what} has the shape {dims:?}")))?;
        found = Some(Tensor { dtype: buffer.dtype, data: buffer.data, count, frame: PhantomData });
    }
    Ok(found)
}

/// # Safety
/// `span` is null or points to a span whose bytes live as long as `'a`.
unsafe fn text<'a>(span: *const layout::Span) -> Option<&'a str> {
    // SAFETY: the caller's promise.
    let span = unsafe { span.as_ref() }?;
    if span.bytes.is_null() || span.len == 0 {
        return Some("");
    }
    // SAFETY: the caller's promise.
    std::str::from_utf8(unsafe { std::slice::from_raw_parts(span.bytes, span.len) }).ok()
}

/// Check a structure's own word for its size. Larger ones are of later versions and begin alike.
fn sized<T>(what: &str, size: usize) -> Result<(), Refusal> {
    if size >= size_of::<T>() {
        return Ok(());
    }
    Err(internal(format!(
        "{what} has {size} bytes, expected at least {}: this jaxlib is too old or too new",
        size_of::<T>()
    )))
}

fn internal(what: String) -> Refusal {
    Refusal {
        code: layout::code::INTERNAL,
        message: format!("maypole.jax: {what}; please report it with jaxlib's version"),
    }
}
