//! A CUDA stream for the calls of a process group.

use maypole::cuda::Stream;
use pyo3::prelude::*;

/// A stream of the highest priority, on which nothing runs but what is queued by it. It lives as
/// long as the process: PyTorch's allocator remembers streams by their handles.
#[pyclass(module = "maypole._maypole", name = "TorchStream", frozen)]
pub struct Beside(&'static Stream);

impl Beside {
    pub fn new(stream: Stream) -> Beside {
        Beside(Box::leak(Box::new(stream)))
    }

    pub fn stream(&self) -> &'static Stream {
        self.0
    }
}

#[pymethods]
impl Beside {
    /// What CUDA calls it by: a `cudaStream_t`.
    #[getter]
    fn handle(&self) -> usize {
        self.0.raw().addr()
    }
}
