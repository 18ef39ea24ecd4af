//! The class `Communicator`.

use std::sync::Arc;

use maypole::{Call, Collective, Config, ReduceOp};
use parking_lot::RwLock;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::buffer::Array;
use crate::error;

/// One rank's handle to a group of ranks that exchange data by collective operations.
#[pyclass(module = "maypole", frozen)]
pub struct Communicator {
    comm: RwLock<Option<Arc<maypole::Communicator>>>,
}

impl Communicator {
    fn new(comm: maypole::Communicator) -> Communicator {
        Communicator { comm: RwLock::new(Some(Arc::new(comm))) }
    }

    /// The communicator, unless it was closed.
    pub fn open(&self, py: Python<'_>) -> PyResult<Arc<maypole::Communicator>> {
        self.comm.read().clone().ok_or_else(|| error::argument(py, "the communicator was closed"))
    }
}

#[pymethods]
impl Communicator {
    /// This rank's number, from 0.
    #[getter]
    fn rank(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.open(py)?.rank())
    }

    /// How many ranks there are.
    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.open(py)?.size())
    }

    /// Every rank's `x` (or `out`) becomes the reduction of all ranks' `x`.
    #[pyo3(signature = (x, op="sum", out=None))]
    fn all_reduce<'py>(
        &self,
        x: Bound<'py, PyAny>,
        op: &str,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = x.py();
        let comm = self.open(py)?;
        let op = operation(py, op)?;
        let input = Array::of(&x, "x", out.is_none())?;
        let output = out.as_ref().map(|out| Array::of(out, "out", true)).transpose()?;
        let call = Call { collective: Collective::AllReduce, dtype: input.dtype, count: input.count, op, root: 0 };
        py.detach(|| match &output {
            None => {
                // SAFETY: the array holds its memory; that nobody else touches it meanwhile is its caller's affair, as
                // everywhere in Python.
                let bytes = unsafe { std::slice::from_raw_parts_mut(input.address, input.bytes()) };
                comm.call_in_place(call, bytes)
            }
            Some(output) => {
                // SAFETY: as above.
                let from = unsafe { std::slice::from_raw_parts(input.address, input.bytes()) };
                // SAFETY: as above.
                let to = unsafe { std::slice::from_raw_parts_mut(output.address, output.bytes()) };
                comm.call(call, from, to)
            }
        })
        .map_err(|e| error::to_py(py, e))?;
        Ok(out.unwrap_or(x))
    }

    /// Returns once every rank has called it.
    fn barrier(&self, py: Python<'_>) -> PyResult<()> {
        let comm = self.open(py)?;
        py.detach(|| comm.barrier()).map_err(|e| error::to_py(py, e))
    }
}

fn operation(py: Python<'_>, name: &str) -> PyResult<ReduceOp> {
    Ok(match name {
        "sum" => ReduceOp::Sum,
        "prod" => ReduceOp::Prod,
        "min" => ReduceOp::Min,
        "max" => ReduceOp::Max,
        "avg" => ReduceOp::Avg,
        "and" => ReduceOp::And,
        "or" => ReduceOp::Or,
        "xor" => ReduceOp::Xor,
        _ => {
            return Err(error::argument(py, format!("op: {name:?} is none of sum, prod, min, max, avg, and, or, xor")));
        }
    })
}

/// The world that this process was launched into.
#[pyfunction]
#[pyo3(signature = (**settings))]
fn init(py: Python<'_>, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Communicator> {
    let mut config = Config::from_env().map_err(|e| error::to_py(py, e))?;
    for (name, value) in settings.into_iter().flatten() {
        let name = format!("MAYPOLE_{}", name.str()?.to_string().to_uppercase());
        config.set(&name, &value.str()?.to_string()).map_err(|e| error::to_py(py, e))?;
    }
    let comm = py.detach(|| maypole::Communicator::from_env_with(config)).map_err(|e| error::to_py(py, e))?;
    Ok(Communicator::new(comm))
}

/// A world of `n` ranks within this process, one for each thread that is handed one.
#[pyfunction]
fn threads(py: Python<'_>, n: usize) -> PyResult<Vec<Communicator>> {
    let world = py.detach(|| maypole::Communicator::threads(n)).map_err(|e| error::to_py(py, e))?;
    Ok(world.into_iter().map(Communicator::new).collect())
}

/// Put the class and the functions that make one into the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Communicator>()?;
    module.add_function(wrap_pyfunction!(init, module)?)?;
    module.add_function(wrap_pyfunction!(threads, module)?)
}
