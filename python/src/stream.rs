//! Streams of the host as a class.

use maypole::Result;
use pyo3::prelude::*;

use crate::{error, process};

/// A queue of operations, and the thread that runs them in order; different streams run at the same time.
///
/// ``comm.start_on(stream)`` queues operations there. What is queued goes on when nobody keeps the
/// stream any more.
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
        // Until its queue is empty, which may take as long as deadlines, and may need the
        // interpreter.
        if let Some(stream) = self.stream.take() {
            process::drop_apart("maypole-drop", stream);
        }
    }
}
