//! The class `Persistent`: calls that are planned once and started many times.

use std::sync::Arc;
use std::time::Duration;

use maypole::{Collective, RawPersistent};
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;

use crate::calls::{self, Form, Maybe, Object};
use crate::communicator::Slot;
use crate::prepared::{Held, Prepared};
use crate::stream::Stream;
use crate::variable::{self, Arguments};
use crate::{error, messages, request, waiting};

/// A communicator's calls in their persistent form: ``comm.persistent``. Each returns a Persistent and runs nothing.
#[pyclass(module = "maypole", frozen)]
pub struct PersistentCalls {
    slot: Arc<Slot>,
}

impl PersistentCalls {
    /// Those of a communicator.
    pub fn new(slot: Arc<Slot>) -> PersistentCalls {
        PersistentCalls { slot }
    }
}

impl Form for PersistentCalls {
    const REFUSES: bool = false;

    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn take<'py>(
        &self,
        py: Python<'py>,
        comm: Arc<maypole::Communicator>,
        call: Prepared<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Prepared { what, held, result } = call;
        // SAFETY: the object keeps `held` until the operation is gone.
        let made = waiting::blocking(py, &comm, || unsafe { what.keep(&comm) })?;
        let persistent = Persistent { raw: Some(made), comm: Some(comm), held: Some(held), result: result.unbind() };
        Ok(Bound::new(py, persistent)?.into_any())
    }
}

crate::forms::forms!(PersistentCalls {
    fn __repr__(&self) -> &'static str {
        "<maypole: persistent calls>"
    }
});

/// A call that was planned once and can be started any number of times; made by ``comm.persistent``. Every rank makes
/// it and starts it in the same order as its other calls. Starting it allocates nothing in Maypole. Fill its arrays
/// while it does not run.
#[pyclass(module = "maypole", frozen)]
pub struct Persistent {
    /// `None` only while it is dropped, like the next two.
    raw: Option<RawPersistent>,
    comm: Option<Arc<maypole::Communicator>>,
    held: Option<Held>,
    result: Py<PyAny>,
}

impl Persistent {
    fn parts(&self) -> (&RawPersistent, &maypole::Communicator) {
        const KEPT: &str = "it is not being dropped";
        (self.raw.as_ref().expect(KEPT), self.comm.as_ref().expect(KEPT))
    }

    fn outcome(&self, py: Python<'_>, outcome: maypole::Result<()>) -> PyResult<Py<PyAny>> {
        outcome.map_err(|e| match &self.held {
            Some(held) => held.explain(py, e),
            None => error::to_py(py, e),
        })?;
        Ok(self.result.clone_ref(py))
    }
}

#[pymethods]
impl Persistent {
    /// Start it, on a stream of yours or the communicator's own, and return at once.
    #[pyo3(signature = (stream=None))]
    fn start(&self, py: Python<'_>, stream: Option<Py<Stream>>) -> PyResult<()> {
        let (raw, _) = self.parts();
        let stream = stream.as_ref().map(|stream| stream.get().open());
        let started = waiting::detached(py, || match stream {
            None => raw.start(),
            Some(stream) => raw.start_on(stream),
        });
        started.map_err(|e| error::to_py(py, e))
    }

    /// Wait for the run that was started, and return the array that has the result. Returns at once if none was.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let (raw, _) = self.parts();
        let at_most = match timeout {
            None => Duration::MAX,
            Some(seconds) => Duration::try_from_secs_f64(seconds.max(0.0))
                .map_err(|_| error::argument(py, format!("timeout: {seconds} is no length of time")))?,
        };
        match waiting::request(py, || raw.wait_for(at_most))? {
            Some(outcome) => self.outcome(py, outcome),
            None => Err(PyTimeoutError::new_err("the operation is not done")),
        }
    }

    /// Start it and wait for it: what costs least.
    fn run(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let (raw, comm) = self.parts();
        let outcome = waiting::blocking(py, comm, || Ok(raw.run()))?;
        self.outcome(py, outcome)
    }

    /// Whether it does not run: ``wait`` will not block.
    #[getter]
    fn done(&self) -> bool {
        self.parts().0.test()
    }

    fn __repr__(&self) -> &'static str {
        "<maypole.Persistent>"
    }
}

impl Drop for Persistent {
    fn drop(&mut self) {
        let (Some(raw), Some(comm)) = (self.raw.take(), self.comm.take()) else { return };
        let held = self.held.take();
        Python::attach(|py| request::let_go(py, (raw, comm), held));
    }
}
