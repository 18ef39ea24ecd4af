//! Making communicators.

use maypole::UniqueId;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::communicator::Communicator;
use crate::{error, process, settings, waiting};

/// The world that this process was launched into, by ``python -m maypole run``, torchrun, mpirun, mpiexec or srun; of
/// one rank, if by none. Blocks until all ranks have come.
///
/// Settings are those of ``python -m maypole info``, in lower case: ``maypole.init(timeout=30, transport="tcp")`` is
/// MAYPOLE_TIMEOUT=30 MAYPOLE_TRANSPORT=tcp.
#[pyfunction]
#[pyo3(signature = (**settings))]
fn init(py: Python<'_>, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Communicator> {
    let config = settings::config(py, settings)?;
    let comm = waiting::apart(py, move || maypole::Communicator::from_env_with(config))?;
    process::see_to_leaving(py);
    Ok(Communicator::new(comm))
}

/// A world of `n` ranks within this process: a list of communicators, one for each thread to use. With settings as
/// ``init``.
#[pyfunction]
#[pyo3(signature = (n, **settings))]
fn threads(py: Python<'_>, n: usize, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Vec<Communicator>> {
    let config = settings::config(py, settings)?;
    let world = waiting::apart(py, move || maypole::Communicator::threads_with(n, config))?;
    Ok(world.into_iter().map(Communicator::new).collect())
}

/// 128 bytes that name a world that is about to meet, in this process, which must live until the world is over. Hand
/// them to the others, in any way, and have each rank call ``from_id``.
#[pyfunction]
#[pyo3(signature = (**settings))]
fn unique_id<'py>(py: Python<'py>, settings: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyBytes>> {
    let config = settings::config(py, settings)?;
    let id = waiting::detached(py, || UniqueId::create(&config)).map_err(|e| error::to_py(py, e))?;
    Ok(PyBytes::new(py, id.as_bytes()))
}

/// A world whose ranks all hold the same id, made by one of them with ``unique_id``. Blocks until all have come.
#[pyfunction]
#[pyo3(signature = (id, rank, size, **settings))]
fn from_id(
    py: Python<'_>,
    id: &[u8],
    rank: usize,
    size: usize,
    settings: Option<&Bound<'_, PyDict>>,
) -> PyResult<Communicator> {
    let config = settings::config(py, settings)?;
    let id = UniqueId::from_bytes(id).map_err(|e| error::to_py(py, e))?;
    let comm = waiting::apart(py, move || maypole::Communicator::from_id(&id, rank, size, config))?;
    process::see_to_leaving(py);
    Ok(Communicator::new(comm))
}

/// Put the functions into the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(init, module)?)?;
    module.add_function(wrap_pyfunction!(threads, module)?)?;
    module.add_function(wrap_pyfunction!(unique_id, module)?)?;
    module.add_function(wrap_pyfunction!(from_id, module)?)
}
