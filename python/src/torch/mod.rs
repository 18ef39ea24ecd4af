//! What the c10d backend in `maypole/torch` stands on: calls on memory by address.
//!
//! A tensor's address, element type and length are known in Python, so nothing is looked up here: each function
//! releases the GIL, makes one call and returns. Which bytes an address has is the promise of the Python code in
//! `maypole/torch`, its only caller.
//!
//! * `job`: an asynchronous call. `lane`: the order of these, and the thread that runs them. `posted`: a message.
//!   `stream`: a CUDA stream.

mod job;
mod lane;
mod posted;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use maypole::cuda::{Context, Stream};
use maypole::fork::Process;
use maypole::{Blocks, Call, Collective, Communicator, Config, DataType, Error, ReduceOp, UniqueId, Verdict};
use maypole_transports::lock::RwLock;
use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use self::job::{Handle, Job, Task};
use self::lane::Order;
use self::posted::Posted;
use self::stream::Beside;
use crate::{error, process, request, waiting};

/// The collectives by their numbers in `maypole/torch/kinds.py`.
const COLLECTIVES: [Collective; 9] = [
    Collective::AllReduce,
    Collective::Reduce,
    Collective::Broadcast,
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::AllToAll,
    Collective::Gather,
    Collective::Scatter,
    Collective::Barrier,
];

/// The operations by their numbers there. The last takes its factor from the call.
const OPERATIONS: [ReduceOp; 9] = [
    ReduceOp::Sum,
    ReduceOp::Prod,
    ReduceOp::Min,
    ReduceOp::Max,
    ReduceOp::Avg,
    ReduceOp::And,
    ReduceOp::Or,
    ReduceOp::Xor,
    ReduceOp::PreMulSum(1.0),
];

/// Where the ranks of a group meet, for messages.
const STORE: &str = "PyTorch's store, which others can read";

/// What a call is, in one number: `collective | type << 8 | operation << 16`.
fn decode(py: Python<'_>, what: u32, factor: f64, count: usize, root: usize) -> PyResult<Call> {
    let [collective, dtype, op, _] = what.to_le_bytes().map(usize::from);
    match (COLLECTIVES.get(collective), DataType::ALL.get(dtype), OPERATIONS.get(op)) {
        (Some(&collective), Some(&dtype), Some(&op)) => {
            let op = if matches!(op, ReduceOp::PreMulSum(_)) { ReduceOp::PreMulSum(factor) } else { op };
            Ok(Call { collective, dtype, count, op, root })
        }
        _ => Err(error::argument(py, format!("{what:#x} is no call"))),
    }
}

/// A tensor's memory that is read.
fn source(address: usize) -> *const u8 {
    std::ptr::with_exposed_provenance(address)
}

/// A tensor's memory that is written.
fn target(address: usize) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address)
}

/// A process group's communicator.
#[pyclass(module = "maypole._maypole", name = "TorchLink", frozen)]
pub struct Link {
    comm: RwLock<Option<Arc<Communicator>>>,
    /// Collectives that were called.
    calls: AtomicU64,
    /// The process that made it: a child by fork need not leave.
    process: Process,
}

impl Link {
    fn open(&self, py: Python<'_>) -> PyResult<Arc<Communicator>> {
        self.comm.read().clone().ok_or_else(|| error::argument(py, "the process group was destroyed"))
    }

    /// To make one collective more.
    fn next(&self, py: Python<'_>) -> PyResult<Arc<Communicator>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.open(py)
    }

    fn new(comm: Communicator) -> Link {
        Link { comm: RwLock::new(Some(Arc::new(comm))), calls: AtomicU64::new(0), process: Process::this() }
    }
}

#[pymethods]
impl Link {
    /// An error on every rank, before it waits for anything, if the settings forbid what others can read: the store, with
    /// no key besides.
    #[staticmethod]
    fn refuse_open(py: Python<'_>, timeout: f64) -> PyResult<()> {
        settings(py, timeout)?.refuse_open(STORE).map_err(|e| error::to_py(py, e))
    }

    /// Bytes that name a world which is about to meet; rank 0 makes them and hands them to the others.
    #[staticmethod]
    fn id(py: Python<'_>, timeout: f64) -> PyResult<Bound<'_, PyBytes>> {
        let config = settings(py, timeout)?;
        let id = py.detach(|| UniqueId::create(&config)).map_err(|e| error::to_py(py, e))?;
        Ok(PyBytes::new(py, id.as_bytes()))
    }

    /// Join the world that `id` names; without one, a world of one rank. `timeout`: seconds, for meeting and from then
    /// on for each operation.
    #[staticmethod]
    fn join(py: Python<'_>, id: Option<&[u8]>, rank: usize, size: usize, timeout: f64) -> PyResult<Link> {
        let config = settings(py, timeout)?;
        let id = id.map(UniqueId::from_bytes).transpose().map_err(|e| error::to_py(py, e))?;
        let comm = waiting::apart(py, move || match id {
            Some(id) => Communicator::from_id(&id, rank, size, config),
            None => Communicator::threads_with(1, config).map(|mut world| world.remove(0)),
        });
        Ok(Link::new(comm?))
    }

    /// A link among some ranks of this one, which alone call it. `timeout`: seconds, until they have come and from then on
    /// for each operation.
    fn subset(&self, py: Python<'_>, ranks: Vec<usize>, timeout: f64) -> PyResult<Link> {
        let (comm, timeout) = (self.open(py)?, seconds(py, timeout)?);
        let child = waiting::apart(py, move || comm.subset_within(&ranks, timeout))?;
        Ok(Link::new(child))
    }

    /// A communicator of the same ranks, with an order of operations of its own. Every rank calls this.
    fn communicator(&self, py: Python<'_>) -> PyResult<crate::communicator::Communicator> {
        let comm = self.open(py)?;
        waiting::blocking(py, &comm, || comm.duplicate()).map(crate::communicator::Communicator::new)
    }

    /// How many collectives this rank has called: the same on all ranks that are at the same place of the program.
    fn sequence(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// A number that all ranks of the link have, and no other link of the same world.
    fn number(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.open(py)?.context())
    }

    /// One collective on host memory, blocking. `what`: see `decode`; `count`: elements per block.
    #[expect(clippy::too_many_arguments, reason = "a call is made of so many numbers")]
    fn run(
        &self,
        py: Python<'_>,
        what: u32,
        root: usize,
        count: usize,
        input: usize,
        output: usize,
        factor: f64,
    ) -> PyResult<()> {
        let comm = self.next(py)?;
        let call = decode(py, what, factor, count, root)?;
        // SAFETY: the Python caller holds both tensors, whose lengths it has checked, until this returns.
        waiting::blocking(py, &comm, || unsafe { comm.run_at(call, source(input), target(output)) })
    }

    /// The same, queued on `lane`: the job. `keep` is kept until it is done, and has the memory.
    #[expect(clippy::too_many_arguments, reason = "a call is made of so many numbers")]
    fn start(
        &self,
        py: Python<'_>,
        lane: &Order,
        what: u32,
        root: usize,
        count: usize,
        input: usize,
        output: usize,
        factor: f64,
        keep: Py<PyAny>,
    ) -> PyResult<Handle> {
        let comm = self.next(py)?;
        let call = decode(py, what, factor, count, root)?;
        let job = Job::new(Task::Call { comm, call, input, output, keep });
        lane.queue(py, &job)?;
        Ok(Handle(job))
    }

    /// One collective whose blocks have counts of their own and follow each other.
    #[expect(clippy::too_many_arguments, reason = "a call is made of so many numbers")]
    fn run_v(
        &self,
        py: Python<'_>,
        what: u32,
        root: usize,
        input: usize,
        sent: Vec<usize>,
        output: usize,
        received: Vec<usize>,
    ) -> PyResult<()> {
        let comm = self.next(py)?;
        let call = decode(py, what, 1.0, 0, root)?;
        waiting::blocking(py, &comm, || {
            let (input, output) = ((source(input), Blocks::packed(&sent)), (target(output), Blocks::packed(&received)));
            // SAFETY: as in `run`.
            unsafe { comm.run_v_at(call, input, output) }
        })
    }

    /// A new CUDA stream on a device, to queue calls of this link on.
    fn stream(&self, py: Python<'_>, device: usize) -> PyResult<Beside> {
        let comm = self.open(py)?;
        let made = py.detach(|| Context::primary(device).and_then(|context| Stream::urgent(&context)));
        let made = made.map_err(|source| error::to_py(py, Error::Device { rank: comm.rank(), source }))?;
        Ok(Beside::new(made))
    }

    /// One collective on memory of the stream's device, queued there.
    #[expect(clippy::too_many_arguments, reason = "a call is made of so many numbers")]
    fn queue(
        &self,
        py: Python<'_>,
        what: u32,
        root: usize,
        count: usize,
        input: usize,
        output: usize,
        factor: f64,
        stream: &Beside,
    ) -> PyResult<()> {
        let (comm, stream) = (self.next(py)?, stream.stream());
        let call = decode(py, what, factor, count, root)?;
        // SAFETY: the Python caller keeps both tensors, whose lengths it has checked, until the stream has got past this.
        waiting::blocking(py, &comm, || unsafe { comm.call_at(call, source(input), target(output), stream) })
    }

    /// One collective on device memory whose blocks have counts of their own, queued as in `queue`.
    #[expect(clippy::too_many_arguments, reason = "a call is made of so many numbers")]
    fn queue_v(
        &self,
        py: Python<'_>,
        what: u32,
        root: usize,
        input: usize,
        sent: Vec<usize>,
        output: usize,
        received: Vec<usize>,
        stream: &Beside,
    ) -> PyResult<()> {
        let (comm, stream) = (self.next(py)?, stream.stream());
        let call = decode(py, what, 1.0, 0, root)?;
        waiting::blocking(py, &comm, || {
            let (input, output) = ((source(input), Blocks::packed(&sent)), (target(output), Blocks::packed(&received)));
            // SAFETY: as in `queue`.
            unsafe { comm.call_v_at(call, input, output, stream) }
        })
    }

    /// Post a message of `count` elements of type number `dtype` to rank `to`. `keep` is kept until it is done, and has
    /// the memory.
    #[expect(clippy::too_many_arguments, reason = "a message is made of so many numbers")]
    fn send(
        &self,
        py: Python<'_>,
        dtype: usize,
        count: usize,
        data: usize,
        to: usize,
        tag: u32,
        keep: Py<PyAny>,
    ) -> PyResult<Posted> {
        let (comm, dtype) = (self.open(py)?, element(py, dtype)?);
        request::tidy(py);
        // SAFETY: `keep` has the memory, and stays until the message is done.
        let raw = py.detach(|| unsafe { comm.start_send_at(dtype, count, source(data), to, tag, None) });
        Ok(Posted::new(raw.map_err(|e| error::to_py(py, e))?, keep))
    }

    /// Expect a message of `count` elements of type number `dtype` from rank `from`. `keep`: as in `send`.
    #[expect(clippy::too_many_arguments, reason = "a message is made of so many numbers")]
    fn recv(
        &self,
        py: Python<'_>,
        dtype: usize,
        count: usize,
        data: usize,
        from: usize,
        tag: u32,
        keep: Py<PyAny>,
    ) -> PyResult<Posted> {
        let (comm, dtype) = (self.open(py)?, element(py, dtype)?);
        request::tidy(py);
        // SAFETY: as in `send`.
        let raw = py.detach(|| unsafe { comm.start_recv_at(dtype, count, target(data), from, tag, None) });
        Ok(Posted::new(raw.map_err(|e| error::to_py(py, e))?, keep))
    }

    /// Expect a message of `count` elements of type number `dtype` from whichever rank sends it. `keep`: as in `send`.
    fn recv_any(
        &self,
        py: Python<'_>,
        dtype: usize,
        count: usize,
        data: usize,
        tag: u32,
        keep: Py<PyAny>,
    ) -> PyResult<Posted> {
        let (comm, dtype) = (self.open(py)?, element(py, dtype)?);
        request::tidy(py);
        // SAFETY: as in `send`.
        let raw = py.detach(|| unsafe { comm.start_recv_any_at(dtype, count, target(data), tag) });
        Ok(Posted::new(raw.map_err(|e| error::to_py(py, e))?, keep))
    }

    /// The deadline, in seconds, of operations from the next on.
    fn set_timeout(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let (comm, timeout) = (self.open(py)?, seconds(py, timeout)?);
        py.detach(|| comm.set_timeout(timeout));
        Ok(())
    }

    /// The same, but for collectives only.
    fn set_timeout_of_collectives(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let (comm, timeout) = (self.open(py)?, seconds(py, timeout)?);
        py.detach(|| comm.set_timeout_of_collectives(timeout));
        Ok(())
    }

    /// Fail every operation of the group, on every rank.
    fn abort(&self, py: Python<'_>, why: &str) -> PyResult<()> {
        let comm = self.open(py)?;
        py.detach(|| comm.abort(why));
        Ok(())
    }

    /// Why the group has failed, if it has: which kind of error that is to PyTorch, by the name that it has there.
    fn failure(&self) -> Option<&'static str> {
        let verdict = self.comm.read().clone()?.verdict()?;
        Some(match verdict {
            Verdict::Stalled { .. } => "TIMEOUT",
            Verdict::Died { .. } | Verdict::Outside { .. } => "REMOTE_ERROR",
            _ => "COMM_ERROR",
        })
    }

    /// The error with which the group has failed, if it has: calls on streams that have ended have no result then.
    fn error(&self, py: Python<'_>) -> Option<Py<PyBaseException>> {
        let comm = self.comm.read().clone()?;
        let outcome = py.detach(|| comm.outcome_on_streams());
        outcome.err().map(|e| error::to_py(py, e).into_value(py))
    }

    /// Leave the group, and come back at once.
    fn close(&self) {
        if let Some(comm) = self.comm.write().take() {
            process::leave(comm);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let Some(comm) = self.comm.get_mut().take() else { return };
        if self.process.is_this() {
            process::leave(comm);
        }
    }
}

fn element(py: Python<'_>, dtype: usize) -> PyResult<DataType> {
    DataType::ALL.get(dtype).copied().ok_or_else(|| error::argument(py, format!("{dtype} is no element type")))
}

fn seconds(py: Python<'_>, timeout: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(timeout)
        .map_err(|_| error::argument(py, format!("timeout: {timeout} is no number of seconds")))
}

fn settings(py: Python<'_>, timeout: f64) -> PyResult<Config> {
    let mut config = Config::from_env().map_err(|e| error::to_py(py, e))?;
    config.timeout = seconds(py, timeout)?;
    config.connect_timeout = config.timeout;
    // In torch a group's timeout is the end, also for ranks that are late and answer.
    config.late = Duration::ZERO;
    Ok(config)
}

/// Put the classes into the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Link>()?;
    module.add_class::<Handle>()?;
    module.add_class::<Order>()?;
    module.add_class::<Posted>()?;
    module.add_class::<Beside>()
}
