//! The class `Communicator`: its blocking calls, its children and its end.

use std::sync::Arc;
use std::time::Duration;

use maypole::{Collective, Order};
use maypole_transports::lock::RwLock;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::calls::{self, Form, Maybe, Object};
use crate::group::Group;
use crate::persistent::PersistentCalls;
use crate::prepared::Prepared;
use crate::registered::Registered;
use crate::stream::Stream;
use crate::variable::{self, Arguments};
use crate::ways::{OnStream, Start};
use crate::{array, error, messages, process, waiting};

/// What a `Communicator` of Python's holds, and gives up when it is closed.
pub struct Slot {
    comm: RwLock<Option<Arc<maypole::Communicator>>>,
    generation: u64,
}

impl Slot {
    /// The communicator.
    ///
    /// # Errors
    /// It was closed, or belongs to the process from which this one was forked off.
    pub fn open(&self, py: Python<'_>) -> PyResult<Arc<maypole::Communicator>> {
        if self.generation != process::generation() {
            let what = "this process was forked off after the communicator was made, and is no rank; make communicators \
                        after forking, or start processes by spawn";
            return Err(error::argument(py, what));
        }
        self.comm.read().clone().ok_or_else(|| error::argument(py, "the communicator was closed"))
    }

    /// Leave. Not while the interpreter's lock is held: what still runs may need it.
    pub fn close(&self) {
        drop(self.comm.write().take());
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(comm) = self.comm.get_mut().take() else { return };
        if self.generation == process::generation() {
            // The collector of garbage must not wait for other ranks.
            process::leave(comm);
        } else {
            std::mem::forget(comm);
        }
    }
}

/// One rank's handle to a group of ranks that exchange data by collective operations.
///
/// Every rank of the group makes the same calls in the same order. Arrays are anything with the buffer protocol or
/// DLPack, contiguous; nothing is copied. ``op`` is "sum", "prod", "min", "max", "avg", "and", "or", "xor",
/// ``maypole.premulsum(f)`` or a ``maypole.Op``. A call waits until this rank's part is done and returns the array that
/// has the result; other threads of Python run meanwhile. ``comm.start`` has the same calls without the waiting.
///
/// After any error but an ArgumentError the communicator has failed, on every rank. Ctrl-C in a blocking call aborts
/// it, since no rank can leave an operation that the others are in; Ctrl-C while a request is waited for leaves it be.
#[pyclass(module = "maypole", frozen, weakref)]
pub struct Communicator {
    slot: Arc<Slot>,
}

impl Communicator {
    /// As an object for Python.
    pub fn new(comm: maypole::Communicator) -> Communicator {
        let slot = Arc::new(Slot { comm: RwLock::new(Some(Arc::new(comm))), generation: process::generation() });
        process::remember(&slot);
        Communicator { slot }
    }
}

impl Form for Communicator {
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
        let Prepared { what, held, result } = call;
        // SAFETY: `held` lives until the call is done.
        let outcome = waiting::blocking(py, &comm, || Ok(unsafe { what.run(&comm) }))?;
        outcome.map_err(|e| held.explain(py, e))?;
        Ok(result)
    }
}

crate::forms::forms!(Communicator {
    /// This rank's number, from 0.
    #[getter]
    fn rank(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.slot.open(py)?.rank())
    }

    /// How many ranks there are.
    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.slot.open(py)?.size())
    }

    /// The host of each rank.
    #[getter]
    fn hosts(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        Ok(self.slot.open(py)?.topology().hosts())
    }

    /// Why the communicator has failed, if it has.
    #[getter]
    fn verdict(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let comm = self.slot.open(py)?;
        Ok(waiting::detached(py, || comm.verdict()).map(|verdict| verdict.to_string()))
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.slot.comm.read().is_none()
    }

    /// The asynchronous calls: ``comm.start.all_reduce(x)`` returns a Request at once. They run in the order of the
    /// calls, blocking ones included.
    #[getter]
    fn start(&self) -> Start {
        Start::new(self.slot.clone(), None)
    }

    /// The asynchronous calls, on a stream of yours: they also wait for what was queued there before.
    fn start_on(&self, stream: Py<Stream>) -> Start {
        Start::new(self.slot.clone(), Some(stream))
    }

    /// The calls on device memory, queued on a CUDA stream: its handle as a number, or an object that has it as
    /// ``cuda_stream`` (torch's) or ``__cuda_stream__``.
    fn on(&self, stream: &Bound<'_, PyAny>) -> PyResult<OnStream> {
        OnStream::new(self.slot.clone(), stream)
    }

    /// Receive `x` from whichever rank sends it first, and return that rank. A message goes to the earliest
    /// ``recv`` or ``recv_any`` with its tag.
    #[pyo3(signature = (x, tag=0))]
    fn recv_any(&self, x: Object<'_>, tag: i64) -> PyResult<usize> {
        messages::from_anyone(&self.slot, &x, tag)
    }

    /// Many calls at once, run when the ``with`` block ends::
    ///
    ///     with comm.group() as group:
    ///         group.send(x, to=1)
    ///         group.recv(y, source=1)
    fn group(&self) -> Group {
        Group::new(self.slot.clone())
    }

    /// Calls that are planned once and started many times: ``step = comm.persistent.all_reduce(x)``, then
    /// ``step.run()`` or ``step.start()`` and ``step.wait()``.
    #[getter]
    fn persistent(&self) -> PersistentCalls {
        PersistentCalls::new(self.slot.clone())
    }

    /// Divide the communicator: ranks with the same `color` form a new one, ordered by `key` and then by rank. Ranks
    /// whose color is None take part and get None.
    #[pyo3(signature = (color, key=0))]
    fn split(&self, py: Python<'_>, color: Option<i64>, key: i64) -> PyResult<Option<Communicator>> {
        let comm = self.slot.open(py)?;
        let color = color.map(|color| {
            u32::try_from(color).map_err(|_| error::argument(py, format!("color: is {color}, but colors are 0 to {}", u32::MAX)))
        });
        let color = color.transpose()?;
        let child = waiting::blocking(py, &comm, || comm.split(color, key))?;
        Ok(child.map(Communicator::new))
    }

    /// Another communicator of the same ranks, with an order of operations of its own.
    fn duplicate(&self, py: Python<'_>) -> PyResult<Communicator> {
        let comm = self.slot.open(py)?;
        waiting::blocking(py, &comm, || comm.duplicate()).map(Communicator::new)
    }

    /// A communicator of some ranks, in this order, which alone call it. This one may have failed: the ranks that are
    /// left go on so.
    fn subset(&self, py: Python<'_>, ranks: Vec<i64>) -> PyResult<Communicator> {
        let comm = self.slot.open(py)?;
        let ranks = ranks.into_iter().map(|rank| calls::rank_of("ranks", rank, comm.size()));
        let ranks: Vec<usize> = ranks.collect::<Result<_, _>>().map_err(|what| error::argument(py, what))?;
        waiting::apart(py, move || comm.subset(&ranks)).map(Communicator::new)
    }

    /// Memory for `count` elements, all zero, that the ranks of this host read where it lies: operations on it save a
    /// copy. Every rank must call it; counts may differ. `dtype` is a name (float32, bfloat16, ...) or a dtype of
    /// NumPy's or torch's.
    #[pyo3(signature = (count, dtype=None), text_signature = "($self, count, dtype='float32')")]
    fn alloc(&self, py: Python<'_>, count: usize, dtype: Maybe<'_>) -> PyResult<Registered> {
        let comm = self.slot.open(py)?;
        let dtype = array::dtype_argument(dtype.as_ref()).map_err(|what| error::argument(py, what))?;
        let bytes = count.saturating_mul(dtype.size());
        let memory = waiting::blocking(py, &comm, || comm.alloc::<u8>(bytes))?;
        Ok(Registered::new(memory, count, dtype))
    }

    /// Set the deadline of this rank's operations, in seconds: when nothing of one has moved for so long, and a rank does
    /// not answer, the communicator fails. Ranks that are late but answer are waited for up to MAYPOLE_LATE.
    fn set_timeout(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        let comm = self.slot.open(py)?;
        let timeout = Duration::try_from_secs_f64(seconds).ok().filter(|timeout| !timeout.is_zero());
        let timeout = timeout.ok_or_else(|| error::argument(py, format!("seconds: {seconds} is no length of time")))?;
        waiting::blocking(py, &comm, || {
            comm.set_timeout(timeout);
            Ok(())
        })
    }

    /// Set in which order reductions combine ranks' elements: "free" (the fastest) or "canonical" (rank order: the same
    /// bits always). Every rank must set the same.
    fn set_order(&self, py: Python<'_>, order: &str) -> PyResult<()> {
        let comm = self.slot.open(py)?;
        let order = match order {
            "free" => Order::Free,
            "canonical" => Order::Canonical,
            other => return Err(error::argument(py, format!("order: {other:?} is neither free nor canonical"))),
        };
        waiting::blocking(py, &comm, || {
            comm.set_order(order);
            Ok(())
        })
    }

    /// Give up: every rank's present and future calls raise an AbortedError that names this rank and `why`.
    #[pyo3(signature = (why="no reason given"))]
    fn abort(&self, py: Python<'_>, why: &str) -> PyResult<()> {
        let comm = self.slot.open(py)?;
        waiting::detached(py, || comm.abort(why));
        Ok(())
    }

    /// Leave the group. Every later call raises an ArgumentError; requests under way go on. Closing twice is fine, and
    /// so is ``with maypole.init() as comm: ...``. Waits for no other rank; a process that holds the job together (usually
    /// rank 0's) waits at its end until the others have left, and Ctrl-C ends that.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        waiting::leaving(py, || self.slot.close())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(&self, py: Python<'_>, _class: Maybe<'_>, _error: Maybe<'_>, _trace: Maybe<'_>) -> PyResult<()> {
        self.close(py)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a maypole.Communicator cannot be pickled or copied: it is one process's place in a group of ranks; have each \
             process make its own by maypole.init()",
        ))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        match self.slot.open(py) {
            Ok(comm) => format!("<maypole.Communicator: rank {} of {}>", comm.rank(), comm.size()),
            Err(_) => "<maypole.Communicator: closed>".into(),
        }
    }
});
