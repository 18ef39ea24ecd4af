//! Streams of the host as a class.

use maypole::Result;
use pyo3::prelude::*;

use crate::{error, waiting};

/// A queue of operations, and the thread that runs them in order; different streams run at the same time.
///
/// ``comm.start_on(stream)`` queues operations there. Dropping it waits until the queue is empty.
#[pyclass(module = "maypole", frozen)]
pub struct Stream {
    /// `None` only while it is dropped.
    stream: Option<maypole::Stream>,
}

impl Stream {
    /// The stream.
    pub fn open(&self) -> &maypole::Stream {
        self.stream.as_ref().expect("it is not being dropped")
    }
}

#[pymethods]
impl Stream {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Stream> {
        let stream: Result<maypole::Stream> = maypole::Stream::new();
        let stream = Some(stream.map_err(|e| error::to_py(py, e))?);
        Ok(Stream { stream })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let stream = self.stream.take();
        // What it still runs may need the interpreter.
        Python::attach(|py| waiting::detached(py, || drop(stream)));
    }
}
