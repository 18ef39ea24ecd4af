//! Two ways to make a communicator's calls: asynchronously, and on a CUDA stream.

use std::sync::Arc;

use maypole::Collective;
use pyo3::prelude::*;

use crate::calls::{self, Form, Maybe, Object};
use crate::communicator::Slot;
use crate::device::DeviceMemory;
use crate::prepared::Prepared;
use crate::request::Request;
use crate::stream::Stream;
use crate::variable::{self, Arguments};
use crate::{array, error, messages, waiting};

/// A communicator's asynchronous calls: ``comm.start``. Each returns a Request at once; its arrays belong to it until
/// it is done.
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

    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn take<'py>(
        &self,
        py: Python<'py>,
        comm: Arc<maypole::Communicator>,
        call: Prepared<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let stream = self.stream.as_ref().map(|stream| stream.get().open());
        let Prepared { what, held, result } = call;
        // SAFETY: the request keeps `held` until it is done.
        let started = waiting::detached(py, || unsafe { what.start(&comm, stream) });
        Request::new(started.map_err(|e| error::to_py(py, e))?, vec![held], result.unbind()).into_object(py)
    }
}

crate::forms::forms!(Start {
    /// Receive `x` from whichever rank sends it first: the request gives that rank. It is expected from now on.
    #[pyo3(signature = (x, tag=0))]
    fn recv_any<'py>(&self, x: Object<'py>, tag: i64) -> PyResult<Object<'py>> {
        match self.stream {
            None => messages::start_from_anyone(&self.slot, &x, tag),
            Some(_) => Err(error::argument(x.py(), "recv_any on a stream: name the sender, or start it without")),
        }
    }

    fn __repr__(&self) -> &'static str {
        "<maypole: asynchronous calls>"
    }
});

/// A communicator's calls on a CUDA stream: ``comm.on(stream)``. Those on device memory are queued and return at once;
/// what follows on the stream sees their results. Those on host memory wait for the stream and block; ranks must not
/// differ in that.
///
/// Messages in device memory have no tags, and all ranks make a collective on a stream (a barrier, say) before the
/// first. The arrays stay the stream's until it has got past the call. ``synchronize`` waits for that, and raises what
/// has gone wrong.
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

    /// Make a call with the stream. `device`: where its arrays lie, if it has any; otherwise the communicator's device is
    /// meant, if it has one.
    fn with<R>(
        &self,
        py: Python<'_>,
        (comm, device): (&maypole::Communicator, Option<usize>),
        call: impl FnOnce(&maypole::cuda::Stream) -> maypole::Result<R>,
    ) -> PyResult<R> {
        let raw = std::ptr::with_exposed_provenance_mut::<std::ffi::c_void>(self.handle);
        waiting::blocking(py, comm, || {
            let device = device.or_else(|| Some(comm.attached_to()?.ordinal()));
            // SAFETY: that it is a living stream is the caller's word, as with every library that takes handles.
            let stream = unsafe {
                match device {
                    Some(device) => maypole::cuda::Stream::adopt_on(raw, device),
                    None => maypole::cuda::Stream::adopt(raw),
                }
            };
            call(&stream.map_err(|source| maypole::Error::Device { rank: comm.rank(), source })?)
        })
    }
}

impl Form for OnStream {
    const REFUSES: bool = true;

    fn slot(&self) -> &Slot {
        &self.slot
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
        // SAFETY: `held` lives until the call is queued, or done. Who lends device memory gives it back in the order of
        // its stream.
        let outcome = self.with(py, (&comm, held.device()), |stream| Ok(unsafe { what.run_on(&comm, stream) }))?;
        outcome.map_err(|e| held.explain(py, e))?;
        Ok(result)
    }
}

crate::forms::forms!(OnStream {
    /// Memory on the stream's device for `count` elements, all zero, that the ranks of this host read where it lies:
    /// operations on it save a copy. Every rank must call it, each for its own device; counts may differ. `dtype` is a
    /// name (float32, bfloat16, ...) or a dtype of NumPy's or torch's.
    #[pyo3(signature = (count, dtype=None), text_signature = "($self, count, dtype='float32')")]
    fn alloc(&self, py: Python<'_>, count: usize, dtype: Maybe<'_>) -> PyResult<DeviceMemory> {
        let comm = self.slot.open(py)?;
        let dtype = array::dtype_argument(dtype.as_ref()).map_err(|what| error::argument(py, what))?;
        let bytes = count.saturating_mul(dtype.size());
        let memory = self.with(py, (&comm, None), |stream| {
            comm.attach(stream.context())?;
            comm.alloc_device::<u8>(bytes)
        })?;
        Ok(DeviceMemory::new(memory, count, dtype))
    }

    /// Wait until the calls that this communicator queued on the stream are done. What has failed since raises here.
    fn synchronize(&self, py: Python<'_>) -> PyResult<()> {
        let comm = self.slot.open(py)?;
        self.with(py, (&comm, None), |stream| comm.on(stream).synchronize())
    }

    fn __repr__(&self) -> String {
        format!("<maypole: calls on CUDA stream {:#x}>", self.handle)
    }
});
