//! Registered memory as an array.

use maypole::DataType;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::Array;
use crate::{array, dlpack, operation};

/// Memory that the ranks of the host read where it lies; made by ``Communicator.alloc``.
///
/// It goes wherever an array goes. ``numpy.asarray(memory)`` and ``torch.from_dlpack(memory)`` are arrays on it, which
/// keep it; ``memory.array()`` is the same for NumPy with the types of ml_dtypes.
#[pyclass(module = "maypole", frozen)]
pub struct Registered {
    /// Bytes.
    memory: maypole::Registered<u8>,
    address: usize,
    count: usize,
    dtype: DataType,
}

impl Registered {
    /// Memory as `count` elements of `dtype`.
    pub fn new(mut memory: maypole::Registered<u8>, count: usize, dtype: DataType) -> Registered {
        let address = memory.as_mut_ptr().addr();
        Registered { memory, address, count, dtype }
    }

    fn at(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.address)
    }

    /// It as an argument.
    pub fn array(&self, own: &Bound<'_, PyAny>) -> Array {
        Array::of_maypole(own, self.at(), (self.count, self.dtype), None)
    }
}

#[pymethods]
impl Registered {
    /// What its elements are called: float32, bfloat16, ...
    #[getter]
    fn dtype(&self) -> &'static str {
        self.dtype.row().array_name
    }

    /// Whether other ranks read it where it lies. Otherwise it is ordinary memory: its world has one rank, or ranks
    /// that share no memory.
    #[getter]
    fn is_shared(&self) -> bool {
        self.memory.is_shared()
    }

    /// It as a NumPy array, which keeps it.
    #[pyo3(name = "array")]
    fn as_array<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let plain = py.import("numpy")?.call_method1("asarray", (slf,))?;
        plain.call_method1("view", (operation::numpy_dtype(py, slf.get().dtype)?,))
    }

    fn __len__(&self) -> usize {
        self.count
    }

    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        array::interface(py, self.address, self.count, self.dtype)
    }

    #[pyo3(signature = (**options))]
    fn __dlpack__(slf: &Bound<'_, Self>, options: Option<&Bound<'_, PyDict>>) -> PyResult<Py<PyAny>> {
        let this = slf.get();
        dlpack::refuse(options, None)?;
        dlpack::lend(slf.py(), slf.clone().into_any().unbind(), (this.at(), None), this.count, this.dtype)
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::place(None)
    }

    fn __repr__(&self) -> String {
        format!("<maypole.Registered: {} x {}>", self.count, self.dtype.row().array_name)
    }
}
