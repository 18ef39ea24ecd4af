//! The class `Group`: many calls at once.

use std::sync::Arc;

use maypole::Collective;
use maypole_transports::lock::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::calls::{self, Form, Maybe, Object};
use crate::communicator::Slot;
use crate::prepared::{Held, Prepared, What};
use crate::request::Request;
use crate::stream::Stream;
use crate::variable::{self, Arguments};
use crate::{error, messages, waiting};

/// Calls that are collected, and then run or started together; made by ``comm.group()``. Its messages cannot deadlock,
/// and small all-reduces in a row are packed into one.
///
/// As a context manager it runs them when the block ends, unless that ends with an exception.
#[pyclass(module = "maypole", frozen)]
pub struct Group {
    slot: Arc<Slot>,
    calls: Mutex<Vec<(What, Held, Py<PyAny>)>>,
}

impl Group {
    /// An empty one.
    pub fn new(slot: Arc<Slot>) -> Group {
        Group { slot, calls: Mutex::default() }
    }
}

impl Form for Group {
    const REFUSES: bool = false;

    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn take<'py>(
        &self,
        py: Python<'py>,
        _comm: Arc<maypole::Communicator>,
        call: Prepared<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.calls.lock().push((call.what, call.held, call.result.unbind()));
        Ok(py.None().into_bound(py))
    }
}

crate::forms::forms!(Group {
    /// Run the calls; a list of what each gives.
    fn run<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let comm = self.slot.open(py)?;
        let calls = std::mem::take(&mut *self.calls.lock());
        let outcome = waiting::blocking(py, &comm, || {
            let mut group = comm.raw_group();
            for (what, ..) in &calls {
                // SAFETY: `calls` lives until the group has run.
                unsafe { what.collect(&mut group) };
            }
            Ok(group.run())
        })?;
        outcome.map_err(|e| explain(py, &calls, e))?;
        PyList::new(py, calls.iter().map(|(_, _, result)| result))
    }

    /// Start the calls, on a stream of yours or the communicator's own. The Request gives a list.
    #[pyo3(signature = (stream=None))]
    fn start<'py>(&self, py: Python<'py>, stream: Option<Py<Stream>>) -> PyResult<Bound<'py, PyAny>> {
        let comm = self.slot.open(py)?;
        let stream = stream.as_ref().map(|stream| stream.get().open());
        let calls = std::mem::take(&mut *self.calls.lock());
        let started = waiting::detached(py, || {
            let mut group = comm.raw_group();
            for (what, ..) in &calls {
                // SAFETY: the request keeps what the calls need until it is done; if it is not started, nothing runs.
                unsafe { what.collect(&mut group) };
            }
            group.start(stream)
        });
        let started = started.map_err(|e| explain(py, &calls, e))?;
        let results = PyList::new(py, calls.iter().map(|(_, _, result)| result))?;
        let held = calls.into_iter().map(|(_, held, _)| held).collect();
        Request::new(started, held, results.into_any().unbind()).into_object(py)
    }

    fn __len__(&self) -> usize {
        self.calls.lock().len()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(&self, py: Python<'_>, class: Maybe<'_>, _error: Maybe<'_>, _trace: Maybe<'_>) -> PyResult<()> {
        match class {
            None => self.run(py).map(drop),
            Some(_) => {
                self.calls.lock().clear();
                Ok(())
            }
        }
    }

    fn __repr__(&self) -> String {
        format!("<maypole.Group of {} calls>", self.__len__())
    }
});

fn explain(py: Python<'_>, calls: &[(What, Held, Py<PyAny>)], error: maypole::Error) -> PyErr {
    let own = calls.iter().find(|(_, held, _)| held.has_operation());
    own.map_or_else(|| error::to_py(py, error.clone()), |(_, held, _)| held.explain(py, error.clone()))
}
