//! The class `Request`: an asynchronous call, waited for or awaited.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use maypole::fork::PerProcess;
use maypole::{Communicator, RawPersistent, RawRequest};
use maypole_transports::lock::Mutex;
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;

use crate::prepared::Held;
use crate::{error, process, waiting};

/// An asynchronous call. ``wait()`` gives what the blocking call returns; so does ``await request``, in asyncio.
///
/// Its arrays must be left alone until it is done. A request that nobody keeps goes on by itself, with its arrays.
#[pyclass(module = "maypole", frozen)]
pub struct Request {
    /// `None` only while it is dropped.
    raw: Option<RawRequest>,
    /// What it needs until it is done.
    held: Mutex<Vec<Held>>,
    result: Py<PyAny>,
    generation: u64,
}

/// What was started, and ends by itself.
pub trait Run: Send {
    /// Whether it is done: dropping it does not wait.
    fn is_done(&self) -> bool;
}

impl Run for RawRequest {
    fn is_done(&self) -> bool {
        self.test()
    }
}

/// A persistent call, and the communicator that it needs.
impl Run for (RawPersistent, Arc<Communicator>) {
    fn is_done(&self) -> bool {
        self.0.test()
    }
}

/// A run that nobody keeps, and what it needs.
struct Orphan {
    run: Box<dyn Run>,
    _held: Box<dyn Send>,
}

static ORPHANS: PerProcess<Mutex<Vec<Orphan>>> = PerProcess::new();

/// Take those orphans out that have ended.
fn ended_orphans() -> Vec<Orphan> {
    let mut orphans = ORPHANS.get().lock();
    let (ended, rest) = std::mem::take(&mut *orphans).into_iter().partition(|orphan| orphan.run.is_done());
    *orphans = rest;
    ended
}

/// Let go of what runs hold that nobody kept and that have ended meanwhile.
pub fn tidy(py: Python<'_>) {
    drop(waiting::detached(py, ended_orphans));
}

/// Let go of a run that may be under way. It goes on by itself, with what it needs, `held`; waiting
/// for it here, in a deallocator, could take as long as its deadline, and Ctrl-C could not end
/// that.
pub fn let_go<R: Run + 'static>(py: Python<'_>, run: R, held: impl Send + 'static) {
    let rest = waiting::detached(py, || match run.is_done() {
        true => None,
        false => Some(run),
    });
    if let Some(run) = rest {
        let orphan = Orphan { run: Box::new(run), _held: Box::new(held) };
        waiting::detached(py, || ORPHANS.get().lock().push(orphan));
    }
}

impl Request {
    /// Of a call that was started, and needs `held`.
    pub fn new(raw: RawRequest, held: Vec<Held>, result: Py<PyAny>) -> Request {
        Request { raw: Some(raw), held: Mutex::new(held), result, generation: process::generation() }
    }

    /// As an object of Python's. Orphans that have ended meanwhile are let go of.
    pub fn into_object(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        tidy(py);
        Ok(Bound::new(py, self)?.into_any())
    }

    fn raw(&self, py: Python<'_>) -> PyResult<&RawRequest> {
        match &self.raw {
            Some(raw) if self.generation == process::generation() => Ok(raw),
            _ => Err(error::argument(
                py,
                "this process was forked off while the request ran; only its parent can wait for it",
            )),
        }
    }
}

#[pymethods]
impl Request {
    /// Wait until it is done, and return what the blocking call does. With `timeout`, in seconds, a TimeoutError after
    /// that; the request goes on, and may be waited for again. So it does when Ctrl-C ends the wait.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let raw = self.raw(py)?;
        let at_most = match timeout {
            None => Duration::MAX,
            Some(seconds) => Duration::try_from_secs_f64(seconds.max(0.0))
                .map_err(|_| error::argument(py, format!("timeout: {seconds} is no length of time")))?,
        };
        let outcome = waiting::request(py, || raw.wait_for(at_most))?;
        let Some(outcome) = outcome else {
            return Err(PyTimeoutError::new_err(format!("the request is not done after {} s", timeout.unwrap_or(0.0))));
        };
        let held = std::mem::take(&mut *self.held.lock());
        outcome.map_err(|e| match held.first() {
            Some(held) => held.explain(py, e),
            None => error::to_py(py, e),
        })?;
        match raw.source() {
            // Of a receive from any rank.
            Some(source) => Ok(source.into_pyobject(py)?.into_any().unbind()),
            None => Ok(self.result.clone_ref(py)),
        }
    }

    /// Whether it is done: ``wait`` will not block.
    #[getter]
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        let raw = self.raw(py)?;
        Ok(waiting::detached(py, || raw.test()))
    }

    /// Have `function()` called when it is done, on a thread of Maypole's own. That has the
    /// deadline of a wait.
    fn when_done(&self, py: Python<'_>, function: Py<PyAny>) -> PyResult<()> {
        let raw = self.raw(py)?;
        let bell = bell();
        waiting::detached(py, || {
            raw.when_done(move |_| {
                // Not called here: this thread must not be kept waiting for the interpreter.
                let _ = bell.send(function);
            });
        });
        Ok(())
    }

    fn __await__<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("maypole._awaiting")?.call_method1("wait", (slf,))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let state = match self.done(py) {
            Ok(true) => "done",
            Ok(false) => "running",
            Err(_) => "of another process",
        };
        format!("<maypole.Request: {state}>")
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let Some(raw) = self.raw.take() else { return };
        let held = std::mem::take(&mut *self.held.lock());
        Python::attach(|py| let_go(py, raw, held));
    }
}

/// Where functions go that are to be called: to a thread that does nothing else. A fork has a thread of its own.
fn bell() -> Sender<Py<PyAny>> {
    static BELL: PerProcess<Mutex<Option<Sender<Py<PyAny>>>>> = PerProcess::new();
    let mut bell = BELL.get().lock();
    bell.get_or_insert_with(|| {
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new().name("maypole-bell".into());
        // Without it nobody is called: a process that gets no thread has other worries.
        let _ = thread.spawn(move || call_each(&receiver));
        sender
    })
    .clone()
}

/// Call each function that comes.
fn call_each(functions: &Receiver<Py<PyAny>>) {
    for function in functions {
        let called = process::attached(|py| {
            if let Err(error) = function.call0(py) {
                error.write_unraisable(py, Some(function.bind(py)));
            }
        });
        if called.is_none() {
            std::mem::forget(function);
        }
    }
}

/// Wait until all requests are done; a list of what each gives. The first error, in their order, is raised when all
/// are.
#[pyfunction]
fn wait_all(py: Python<'_>, requests: Vec<Py<Request>>) -> PyResult<Vec<Py<PyAny>>> {
    let results: Vec<_> = requests
        .iter()
        .map(|request| {
            let result = request.get().wait(py, None);
            // A signal's handler that raised must not wait for the rest.
            match &result {
                Err(error) if !error.is_instance_of::<error::MaypoleError>(py) => Err(error.clone_ref(py)),
                _ => Ok(result),
            }
        })
        .collect::<PyResult<_>>()?;
    results.into_iter().collect()
}

/// Wait until one of the requests is done: its index, the first if there are several.
#[pyfunction]
fn wait_any(py: Python<'_>, requests: Vec<Py<Request>>) -> PyResult<usize> {
    if requests.is_empty() {
        return Err(error::argument(py, "requests: there are none to wait for"));
    }
    let raw: Vec<&RawRequest> = requests.iter().map(|request| request.get().raw(py)).collect::<PyResult<_>>()?;
    let first = waiting::request(py, || RawRequest::wait_any(raw.iter().copied()))?;
    first.ok_or_else(|| error::argument(py, "requests: the wait was ended"))
}

/// Put the class and the functions into the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Request>()?;
    module.add_function(wrap_pyfunction!(wait_all, module)?)?;
    module.add_function(wrap_pyfunction!(wait_any, module)?)
}
