//! Registered device memory as an array.

use maypole::DataType;
use maypole::cuda::DeviceBuffer;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::Array;
use crate::{array, dlpack, waiting};

/// Device memory that the ranks of the host read where it lies; made by ``comm.on(stream).alloc``.
///
/// It goes wherever an array goes on a CUDA stream. ``torch.from_dlpack(memory)`` and ``cupy.asarray(memory)`` are
/// arrays on it, which keep it. Wait for streams that use it before letting go of the last of them.
#[pyclass(module = "maypole", frozen)]
pub struct DeviceMemory {
    /// Bytes; `None` only while it is dropped.
    memory: Option<DeviceBuffer<u8>>,
    count: usize,
    dtype: DataType,
}

impl DeviceMemory {
    /// Memory as `count` elements of `dtype`.
    pub fn new(memory: DeviceBuffer<u8>, count: usize, dtype: DataType) -> DeviceMemory {
        DeviceMemory { memory: Some(memory), count, dtype }
    }

    fn memory(&self) -> &DeviceBuffer<u8> {
        self.memory.as_ref().expect("it is not being dropped")
    }

    fn device(&self) -> usize {
        self.memory().context().ordinal()
    }

    /// An address that nothing on the host may follow.
    fn at(&self) -> *mut u8 {
        std::ptr::without_provenance_mut(self.memory().address() as usize)
    }

    /// It as an argument.
    pub fn array(&self, own: &Bound<'_, PyAny>) -> Array {
        Array::of_maypole(own, self.at(), (self.count, self.dtype), Some(self.device()))
    }
}

#[pymethods]
impl DeviceMemory {
    /// What its elements are called: float32, bfloat16, ...
    #[getter]
    fn dtype(&self) -> &'static str {
        self.dtype.row().array_name
    }

    /// Whether other ranks read it where it lies. Otherwise calls copy it once more: its world has one rank, or ranks
    /// whose devices do not reach each other.
    #[getter]
    fn is_shared(&self) -> bool {
        self.memory().is_shared()
    }

    fn __len__(&self) -> usize {
        self.count
    }

    #[getter]
    fn __cuda_array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        array::interface(py, self.at().addr(), self.count, self.dtype)
    }

    #[pyo3(signature = (**options))]
    fn __dlpack__(slf: &Bound<'_, Self>, options: Option<&Bound<'_, PyDict>>) -> PyResult<Py<PyAny>> {
        let this = slf.get();
        dlpack::refuse(options, Some(this.device()))?;
        let place = (this.at(), Some(this.device()));
        dlpack::lend(slf.py(), slf.clone().into_any().unbind(), place, this.count, this.dtype)
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::place(Some(self.device()))
    }

    fn __repr__(&self) -> String {
        format!(
            "<maypole.DeviceMemory: {} x {} on CUDA device {}>",
            self.count,
            self.dtype.row().array_name,
            self.device()
        )
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let memory = self.memory.take();
        // The driver may wait for what is on the device, and what is there for another thread.
        Python::attach(|py| waiting::detached(py, || drop(memory)));
    }
}
