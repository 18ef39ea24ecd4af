//! Streams of the host as a class.

use maypole::Result;
use pyo3::prelude::*;

use crate::{error, process, waiting};

/// A queue of operations, and the thread that runs them in order; different streams run at the same time.
///
/// ``comm.start_on(stream)`` queues operations there. Dropping it waits until the queue is empty.
#[pyclass(module = "maypole", frozen)]
pub struct Stream {
    stream: Option<maypole::Stream>,
    generation: u64,
}

impl Stream {
    /// The stream, or why it cannot be used.
    pub fn open(&self) -> std::result::Result<&maypole::Stream, String> {
        match &self.stream {
            Some(stream) if self.generation == process::generation() => Ok(stream),
            _ => Err("stream: it was made before this process was forked off, and its thread is not here".into()),
        }
    }
}

#[pymethods]
impl Stream {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Stream> {
        let stream: Result<maypole::Stream> = maypole::Stream::new();
        let stream = Some(stream.map_err(|e| error::to_py(py, e))?);
        Ok(Stream { stream, generation: process::generation() })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let stream = self.stream.take();
        if self.generation != process::generation() {
            std::mem::forget(stream);
            return;
        }
        // What it still runs may need the interpreter.
        Python::attach(|py| waiting::detached(py, || drop(stream)));
    }
}
