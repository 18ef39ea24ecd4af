//! Two ways to make a communicator's calls: asynchronously, and on a CUDA stream.

use std::sync::Arc;

use maypole::Collective;
use pyo3::prelude::*;

use crate::calls::{self, Form, Maybe, Object};
use crate::communicator::Slot;
use crate::prepared::{Prepared, What};
use crate::request::Request;
use crate::stream::Stream;
use crate::variable::{self, Arguments};
use crate::{error, messages, waiting};

/// A communicator's asynchronous calls: ``comm.start``. Each returns a Request at once; its arrays belong to it until it
/// is done.
#[pyclass(module = "maypole", frozen)]
pub struct Start {
    slot: Arc<Slot>,
    stream: Option<Py<Stream>>,
}

impl Start {
    /// Those of a communicator, on a stream of the user's or on its own.
    pub fn new(slot: Arc<Slot>, stream: Option<Py<Stream>>) -> Start {
        Start { slot, stream }
    }
}

impl Form for Start {
    const REFUSES: bool = true;

    fn communicator(&self, py: Python<'_>) -> PyResult<Arc<maypole::Communicator>> {
        self.slot.open(py)
    }

    fn take<'py>(
        &self,
        py: Python<'py>,
        comm: Arc<maypole::Communicator>,
        call: Prepared<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let stream = self.stream.as_ref().map(|stream| stream.get().open()).transpose();
        let stream = stream.map_err(|what| error::argument(py, what))?;
        let Prepared { what, held, result } = call;
        // SAFETY: the request keeps `held` until it is done.
        let started = waiting::detached(py, || unsafe { what.start(&comm, stream) });
        Request::new(started.map_err(|e| error::to_py(py, e))?, vec![held], result.unbind()).into_object(py)
    }
}

crate::forms::forms!(Start {
    fn __repr__(&self) -> &'static str {
        "<maypole: asynchronous calls>"
    }
});

/// A communicator's calls on a CUDA stream: ``comm.on(stream)``. Those on device memory are queued and return at once;
/// what follows on the stream sees their results.
#[pyclass(module = "maypole", frozen)]
pub struct OnStream {
    slot: Arc<Slot>,
    handle: usize,
}

impl OnStream {
    /// Those of a communicator on the stream that an argument names.
    ///
    /// # Errors
    /// It names none.
    pub fn new(slot: Arc<Slot>, stream: &Bound<'_, PyAny>) -> PyResult<OnStream> {
        let handle = stream.extract::<usize>();
        let handle = handle.or_else(|_| stream.getattr("cuda_stream")?.extract::<usize>());
        let handle =
            handle.or_else(|_| stream.call_method0("__cuda_stream__")?.extract::<(usize, usize)>().map(|pair| pair.1));
        let handle = handle.map_err(|_| {
            let what = "stream: is no CUDA stream: pass its handle, or an object with cuda_stream or __cuda_stream__";
            error::argument(stream.py(), what)
        })?;
        Ok(OnStream { slot, handle })
    }
}

impl Form for OnStream {
    const REFUSES: bool = true;

    fn communicator(&self, py: Python<'_>) -> PyResult<Arc<maypole::Communicator>> {
        self.slot.open(py)
    }

    fn device_stream(&self) -> Option<usize> {
        Some(self.handle)
    }

    fn take<'py>(
        &self,
        py: Python<'py>,
        comm: Arc<maypole::Communicator>,
        prepared: Prepared<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Prepared { what, held, result } = prepared;
        let What::Plain { call, input, output } = what else {
            let what = "from Python only collectives with equal blocks can be put on a CUDA stream";
            return Err(error::argument(py, what));
        };
        let raw = std::ptr::with_exposed_provenance_mut::<std::ffi::c_void>(self.handle);
        let outcome = waiting::blocking(py, &comm, || {
            // SAFETY: that it is a living stream is the caller's word, as with every library that takes handles.
            let stream = unsafe { maypole::cuda::Stream::adopt(raw) };
            let stream = stream.map_err(|source| maypole::Error::Device { rank: comm.rank(), source })?;
            // SAFETY: arrays that were checked to be as long as the call says. Device memory is given back in the order
            // of its stream, so it may be dropped when the call is queued.
            Ok(unsafe { comm.call_at(call, input, output, &stream) })
        })?;
        outcome.map_err(|e| held.explain(py, e))?;
        Ok(result)
    }
}

crate::forms::forms!(OnStream {
    fn __repr__(&self) -> String {
        format!("<maypole: calls on CUDA stream {:#x}>", self.handle)
    }
});
