//! A message of a process group's: posted when it is called, waited for or not.
//!
//! A program may let go of a message without waiting for it, as users of NCCL do. It goes on then, and keeps its tensor:
//! nothing is waited for where an object is freed, with the interpreter's lock held.

use maypole::RawRequest;
use maypole::fork::Process;
use maypole_transports::lock::Mutex;
use pyo3::prelude::*;

use super::seconds;
use crate::{error, request, waiting};

/// A message that was posted.
#[pyclass(module = "maypole._maypole", name = "TorchPosted", frozen)]
pub struct Posted {
    /// `None` only while it is dropped.
    raw: Option<RawRequest>,
    /// What has the memory, until the message is done. Not longer, since a tensor may refer to the message.
    keep: Mutex<Option<Py<PyAny>>>,
    /// The process that posted it.
    process: Process,
}

impl Posted {
    /// Of a message that was started on memory that `keep` has.
    pub fn new(raw: RawRequest, keep: Py<PyAny>) -> Posted {
        Posted { raw: Some(raw), keep: Mutex::new(Some(keep)), process: Process::this() }
    }

    fn raw(&self, py: Python<'_>) -> PyResult<&RawRequest> {
        match &self.raw {
            Some(raw) if self.process.is_this() => Ok(raw),
            _ => Err(error::argument(
                py,
                "the message was posted before this process was forked off; it is its parent's",
            )),
        }
    }
}

#[pymethods]
impl Posted {
    /// Wait at most so many seconds, or without a limit of its own: whether it is done.
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let raw = self.raw(py)?;
        let at_most = timeout.map(|timeout| seconds(py, timeout)).transpose()?;
        let done = waiting::request(py, || match at_most {
            None => Some(raw.wait()),
            Some(at_most) => raw.wait_for(at_most),
        })?;
        if done.is_some() {
            let kept = self.keep.lock().take();
            // Not with the lock held: freeing a tensor may run anything.
            drop(kept);
        }
        done.transpose().map(|done| done.is_some()).map_err(|e| error::to_py(py, e))
    }

    /// The rank that has sent a message which any rank might send, from when it begins to come.
    fn source(&self, py: Python<'_>) -> PyResult<Option<usize>> {
        Ok(self.raw(py)?.source())
    }

    /// Whether it is done.
    fn test(&self, py: Python<'_>) -> PyResult<bool> {
        let raw = self.raw(py)?;
        Ok(py.detach(|| raw.test()))
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        let (Some(raw), keep) = (self.raw.take(), self.keep.get_mut().take()) else { return };
        if self.process.is_this() {
            Python::attach(|py| request::let_go(py, raw, keep));
        } else {
            // Its parent's: there is nothing here that would ever end it.
            std::mem::forget(raw);
        }
    }
}
