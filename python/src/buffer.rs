//! Arrays of Python's, as addresses: through the buffer protocol.

use std::ffi::{CStr, c_char, c_int, c_void};

use maypole::DataType;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::error;

/// CPython's `Py_buffer`. Its layout and the two functions below have been the same since Python 3.3, though only since
/// 3.11 are they part of the stable interface, so `pyo3` does not declare them for 3.9.
#[repr(C)]
struct View {
    buf: *mut c_void,
    obj: *mut ffi::PyObject,
    len: isize,
    itemsize: isize,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_char,
    shape: *mut isize,
    strides: *mut isize,
    suboffsets: *mut isize,
    internal: *mut c_void,
}

/// Format, shape, strides and suboffsets, read-only memory too.
const FULL_READ_ONLY: c_int = 0x0100 | 0x0080 | 0x0010 | 0x0008 | 0x0004;

unsafe extern "C" {
    fn PyObject_GetBuffer(object: *mut ffi::PyObject, view: *mut View, flags: c_int) -> c_int;
    fn PyBuffer_Release(view: *mut View);
    fn PyBuffer_IsContiguous(view: *const View, order: c_char) -> c_int;
}

/// An array argument: memory that stays where it is for as long as this lives.
pub struct Array {
    /// Its first byte.
    pub address: *mut u8,
    /// Elements.
    pub count: usize,
    /// Of one element.
    pub dtype: DataType,
    view: Box<View>,
}

// SAFETY: an address and a view, which only `drop` touches, attached to the interpreter.
unsafe impl Send for Array {}
// SAFETY: as above.
unsafe impl Sync for Array {}

impl Array {
    /// The memory of `object`, which the caller knows as its argument `name`.
    ///
    /// # Errors
    /// `ArgumentError` where it has none, or none that collectives can work on.
    pub fn of(object: &Bound<'_, PyAny>, name: &str, writable: bool) -> PyResult<Array> {
        let py = object.py();
        let mut view = Box::new(View {
            buf: std::ptr::null_mut(),
            obj: std::ptr::null_mut(),
            len: 0,
            itemsize: 0,
            readonly: 0,
            ndim: 0,
            format: std::ptr::null_mut(),
            shape: std::ptr::null_mut(),
            strides: std::ptr::null_mut(),
            suboffsets: std::ptr::null_mut(),
            internal: std::ptr::null_mut(),
        });
        // SAFETY: the object is alive, the view is writable, and this thread is attached.
        if unsafe { PyObject_GetBuffer(object.as_ptr(), &mut *view, FULL_READ_ONLY) } != 0 {
            let cause = PyErr::fetch(py);
            let what = format!("{name}: {} has no memory to work on ({cause})", object.get_type().name()?);
            return Err(error::argument(py, what));
        }
        // SAFETY: a format is NULL (bytes) or a C string that lives as long as the view.
        let format = (!view.format.is_null()).then(|| unsafe { CStr::from_ptr(view.format) });
        let format = format.map_or("B", |format| format.to_str().unwrap_or("?")).to_string();
        let dtype = of_format(&format, view.itemsize);
        let (address, count) = (view.buf.cast(), (view.len / view.itemsize.max(1)) as usize);
        let array = Array { address, count, dtype: dtype.unwrap_or(DataType::U8), view };
        if dtype.is_none() {
            return Err(error::argument(py, format!("{name}: elements of format {format:?} are not supported")));
        }
        if writable && array.view.readonly != 0 {
            return Err(error::argument(py, format!("{name}: is read-only, but would be written")));
        }
        // SAFETY: a view that was acquired above.
        if unsafe { PyBuffer_IsContiguous(&*array.view, b'C' as c_char) } == 0 {
            return Err(error::argument(py, format!("{name}: is not contiguous; pass a contiguous copy")));
        }
        Ok(array)
    }

    /// Its bytes.
    pub fn bytes(&self) -> usize {
        self.count * self.dtype.size()
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        // Without an interpreter there is nobody to give it back to.
        let _ = Python::try_attach(|_| {
            // SAFETY: acquired once, in `of`, released once, here, attached.
            unsafe { PyBuffer_Release(&mut *self.view) }
        });
    }
}

/// The element type of a format of Python's `struct`.
fn of_format(format: &str, size: isize) -> Option<DataType> {
    let letter = format.trim_start_matches(['@', '=', '<']);
    Some(match (letter, size) {
        ("b", 1) => DataType::I8,
        ("B", 1) => DataType::U8,
        ("i" | "l" | "q" | "n", 4) => DataType::I32,
        ("I" | "L" | "Q" | "N", 4) => DataType::U32,
        ("i" | "l" | "q" | "n", 8) => DataType::I64,
        ("I" | "L" | "Q" | "N", 8) => DataType::U64,
        ("e", 2) => DataType::F16,
        ("f", 4) => DataType::F32,
        ("d", 8) => DataType::F64,
        _ => return None,
    })
}
