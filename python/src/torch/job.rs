//! One asynchronous call of a process group, from when it is queued until what came of it is known.
//!
//! Most are one call on memory by address, which any thread makes without the interpreter. What needs more, such as
//! copies of tensors before and after, is a *body*, a function of Python's.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use maypole::{Call, Communicator};
use maypole_transports::lock::{Condvar, Mutex};
use pyo3::exceptions::{PyBaseException, PyException, PyRuntimeError};
use pyo3::prelude::*;

use super::{source, target};
use crate::{error, process, waiting};

/// What there is to do.
pub enum Task {
    /// One call on host memory, whose tensors `keep` has until it is done.
    Call { comm: Arc<Communicator>, call: Call, input: usize, output: usize, keep: Py<PyAny> },
    /// A function without arguments.
    Body(Py<PyAny>),
}

/// What came of it.
enum Outcome {
    Done,
    Raised(Py<PyBaseException>),
    /// The interpreter was shutting down, so there was nobody to make an exception.
    Lost(String),
}

/// A job, shared by the lane and the object of Python's that stands for it.
pub struct Job {
    /// Taken by the thread that runs it.
    task: Mutex<Option<Task>>,
    /// Set once, with `end` locked.
    outcome: OnceLock<Outcome>,
    end: Mutex<End>,
    ended: Condvar,
}

#[derive(Default)]
struct End {
    /// A Work some of whose futures nobody has completed yet.
    watcher: Option<Py<PyAny>>,
}

impl Job {
    /// A job that has not begun.
    pub fn new(task: Task) -> Arc<Job> {
        let task = Mutex::new(Some(task));
        Arc::new(Job { task, outcome: OnceLock::new(), end: Mutex::default(), ended: Condvar::new() })
    }

    /// Whether it is done, with or without an error.
    pub fn is_done(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// Do it, on whatever thread, `here` if that is in the interpreter; and complete futures that
    /// were taken. Returns what a signal's handler raised meanwhile on a thread in the interpreter:
    /// that is for whoever waits there, whichever job was in front of his, and not for those who
    /// ask what came of this one, which the communicator says.
    #[must_use = "Ctrl-C would be lost"]
    pub fn run(&self, here: Option<Python<'_>>) -> Option<PyErr> {
        let task = self.task.lock().take()?;
        let mut raised = None;
        let outcome = match (task, here) {
            (task, Some(py)) => outcome(py, within(py, task, &mut raised)),
            (Task::Call { comm, call, input, output, keep }, None) => {
                // SAFETY: `keep` has both tensors, whose lengths the Python caller has checked, until this returns.
                let result = unsafe { comm.run_at(call, source(input), target(output)) };
                // Given back before anybody knows that it is done: closing the group must not find it in use.
                drop((comm, keep));
                match result {
                    Ok(()) => Outcome::Done,
                    Err(e) => {
                        let text = e.to_string();
                        process::attached(|py| outcome(py, Err(error::to_py(py, e)))).unwrap_or(Outcome::Lost(text))
                    }
                }
            }
            (task, None) => process::attached(|py| outcome(py, within(py, task, &mut raised)))
                .unwrap_or_else(|| Outcome::Lost("not called: the interpreter is shutting down".into())),
        };
        self.finish(outcome, here);
        raised
    }

    /// It will not be done: whoever waits for it is told `why`. Nothing if it has begun.
    pub fn refuse(&self, py: Python<'_>, why: &str) {
        if self.task.lock().take().is_some() {
            self.finish(outcome(py, Err(error::argument(py, why))), Some(py));
        }
    }

    fn finish(&self, outcome: Outcome, here: Option<Python<'_>>) {
        let mut end = self.end.lock();
        let _ = self.outcome.set(outcome);
        let watcher = end.watcher.take();
        drop(end);
        self.ended.notify_all();
        let Some(watcher) = watcher else { return };
        let complete = |py: Python<'_>| {
            if let Err(error) = watcher.call_method0(py, "_complete") {
                error.write_unraisable(py, Some(watcher.bind(py)));
            }
        };
        match here {
            Some(py) => complete(py),
            None => drop(process::attached(complete)),
        }
    }

    /// Wait for at most so long: whether it is done.
    pub fn wait_for(&self, at_most: Duration) -> bool {
        let mut end = self.end.lock();
        self.ended.wait_while_for(&mut end, |_| !self.is_done(), at_most);
        self.is_done()
    }

    /// Its exception, if it is done and has one.
    pub fn exception(&self, py: Python<'_>) -> Option<PyErr> {
        match self.outcome.get()? {
            Outcome::Done => None,
            Outcome::Raised(error) => Some(PyErr::from_value(error.clone_ref(py).into_bound(py).into_any())),
            Outcome::Lost(text) => Some(PyRuntimeError::new_err(text.clone())),
        }
    }
}

/// Do what there is to do, in the interpreter. `raised` gets what a signal's handler raised.
fn within(py: Python<'_>, task: Task, raised: &mut Option<PyErr>) -> PyResult<()> {
    match task {
        Task::Call { comm, call, input, output, keep: _keep } => {
            // SAFETY: `_keep` has both tensors, whose lengths the Python caller has checked, until this returns.
            let run = || unsafe { comm.run_at(call, source(input), target(output)) };
            let (outcome, interrupted) = waiting::interruptible(py, &comm, run)?;
            *raised = interrupted;
            outcome.map_err(|e| error::to_py(py, e))
        }
        Task::Body(body) => body.call0(py).map(drop).inspect_err(|error| {
            // No error of the body's own: it ends whoever runs it.
            if !error.is_instance_of::<PyException>(py) {
                *raised = Some(error.clone_ref(py));
            }
        }),
    }
}

fn outcome(py: Python<'_>, result: PyResult<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Raised(error.into_value(py)),
    }
}

/// A job as an object of Python's.
#[pyclass(module = "maypole._maypole", name = "TorchJob", frozen)]
pub struct Handle(pub Arc<Job>);

#[pymethods]
impl Handle {
    /// A job that is a function without arguments.
    #[new]
    fn new(body: Py<PyAny>) -> Handle {
        Handle(Job::new(Task::Body(body)))
    }

    /// Whether it is done, with or without an error.
    fn done(&self) -> bool {
        self.0.is_done()
    }

    /// Its exception, if it is done and has one.
    fn exception(&self, py: Python<'_>) -> Option<Py<PyBaseException>> {
        self.0.exception(py).map(|error| error.into_value(py))
    }

    /// Have `work._complete()` called when it is done. False, and it is not called, if it is done already.
    fn watch(&self, work: Py<PyAny>) -> bool {
        let mut end = self.0.end.lock();
        let waits = !self.0.is_done();
        if waits {
            end.watcher = Some(work);
        }
        waits
    }
}
