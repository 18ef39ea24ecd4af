//! The buffer protocol, as in CPython's `Py_buffer`.
//!
//! The structure and these functions have been the same since Python 3.3, but only since 3.11 are they part of the
//! stable interface, so for 3.9 `pyo3` does not declare them.

use std::ffi::{CStr, c_char, c_int, c_void};

use pyo3::ffi;
use pyo3::prelude::*;

/// CPython's `Py_buffer`.
#[repr(C)]
struct Raw {
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

/// `PyBUF_FULL_RO`: format, shape, strides and suboffsets, of read-only memory too.
const FULL_READ_ONLY: c_int = 0x11c;

unsafe extern "C" {
    fn PyObject_CheckBuffer(object: *mut ffi::PyObject) -> c_int;
    fn PyObject_GetBuffer(object: *mut ffi::PyObject, view: *mut Raw, flags: c_int) -> c_int;
    fn PyBuffer_Release(view: *mut Raw);
    fn PyBuffer_IsContiguous(view: *const Raw, order: c_char) -> c_int;
}

/// A view of an object's memory, which stays where it is until the view is dropped. Boxed, since objects may have
/// pointers into the structure in it.
pub struct View(Box<Raw>);

// SAFETY: the pointers in it are used attached to the interpreter, or are those of memory that any thread may use.
unsafe impl Send for View {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for View {}

impl View {
    /// The object's memory; `None` if it does not have the buffer protocol.
    ///
    /// # Errors
    /// The object's exception.
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Option<View>> {
        // SAFETY: the object is alive, and this thread is attached.
        if unsafe { PyObject_CheckBuffer(object.as_ptr()) } == 0 {
            return Ok(None);
        }
        let mut raw = Box::new(Raw {
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
        // SAFETY: as above, and the structure is writable.
        match unsafe { PyObject_GetBuffer(object.as_ptr(), &mut *raw, FULL_READ_ONLY) } {
            0 => Ok(Some(View(raw))),
            _ => Err(PyErr::fetch(object.py())),
        }
    }

    /// Its first byte.
    pub fn address(&self) -> *mut u8 {
        self.0.buf.cast()
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.0.len.unsigned_abs()
    }

    /// How many bytes an element has, at least 1.
    pub fn itemsize(&self) -> usize {
        self.0.itemsize.unsigned_abs().max(1)
    }

    /// Whether it must not be written.
    pub fn is_read_only(&self) -> bool {
        self.0.readonly != 0
    }

    /// Whether its elements lie one after the other in the order of their indices (C's order).
    pub fn is_contiguous(&self) -> bool {
        // SAFETY: a view that was acquired and not released.
        self.0.suboffsets.is_null() && unsafe { PyBuffer_IsContiguous(&*self.0, b'C' as c_char) } != 0
    }

    /// The format of an element, as Python's `struct` writes it.
    pub fn format(&self) -> &CStr {
        match self.0.format.is_null() {
            true => c"B",
            // SAFETY: a C string that lives as long as the view.
            false => unsafe { CStr::from_ptr(self.0.format) },
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // Without an interpreter there is nobody to give it back to.
        Python::try_attach(|_| {
            // SAFETY: acquired once, in `of`, and released once, here, attached.
            unsafe { PyBuffer_Release(&mut *self.0) }
        });
    }
}
