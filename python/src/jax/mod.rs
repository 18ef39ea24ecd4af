//! Collectives inside programs that XLA compiled: what the Python package `maypole.jax` stands on.
//!
//! * [`layout`]: XLA's C structures, declared by hand. [`frame`]: a call of XLA's, checked.
//! * [`calls`]: the two handlers that XLA calls, for collectives and for messages.
//! * [`registry`]: which communicator a compiled program means by a number. [`interrupt`]: Ctrl-C while one waits.
//!
//! A handler runs on a thread of XLA's, which it keeps until the collective is done, and never needs the interpreter.
//! In which order XLA calls them is settled in Python (`maypole/jax/_internals.py`).

mod calls;
mod frame;
pub mod interrupt;
mod layout;
mod registry;

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use self::registry::Failure;
use crate::calls::Form;
use crate::communicator::Communicator;
use crate::error;

/// What XLA calls a handler's capsule; it looks at the pointer only.
const CAPSULE: &CStr = c"xla._CUSTOM_CALL_TARGET";

/// The handlers, by the names under which `maypole.jax` registers them, as capsules.
#[pyfunction]
#[pyo3(name = "_jax_targets")]
fn targets(py: Python<'_>) -> PyResult<Vec<(&'static str, Bound<'_, PyCapsule>)>> {
    let targets: [(&str, calls::Handler); 2] =
        [("maypole_collective", calls::collective), ("maypole_message", calls::message)];
    targets
        .into_iter()
        .map(|(name, handler)| {
            let pointer = NonNull::new(handler as *mut c_void).expect("a function has an address");
            // SAFETY: a function lives as long as the process, and there is nothing to drop.
            Ok((name, unsafe { PyCapsule::new_with_pointer(py, pointer, CAPSULE) }?))
        })
        .collect()
}

/// The number by which compiled programs know `comm`: the same for every call with it.
///
/// # Errors
/// Its ranks are threads of this process. XLA has as many threads as the machine has cores, and a call keeps one until
/// the other ranks have come, so ranks that share them may wait for each other for ever.
#[pyfunction]
#[pyo3(name = "_jax_handle")]
fn handle(py: Python<'_>, comm: &Communicator) -> PyResult<i64> {
    let comm = comm.slot().open(py)?;
    if comm.ranks_are_threads() {
        let what = "comm: its ranks are threads of one process (maypole.threads), but under JAX each rank must be a \
                    process of its own: start them with python -m maypole run, and use maypole.init()";
        return Err(error::argument(py, what));
    }
    Ok(registry::number(&comm))
}

/// Raise the error with which a call of a compiled program failed since this was last called, if any.
#[pyfunction]
#[pyo3(name = "_jax_raise")]
fn raise_failure(py: Python<'_>) -> PyResult<()> {
    match registry::take_failure() {
        None => Ok(()),
        Some(Failure::Own(error)) => Err(error::to_py(py, error)),
        Some(Failure::Raised(error)) => Err(error),
    }
}

/// The layout that the handlers were compiled with, as expressions of C over XLA's header and their values: offsets of
/// fields, and constants. For the tests.
#[pyfunction]
#[pyo3(name = "_jax_layout")]
fn layout_in_c() -> Vec<(String, i64)> {
    let offsets = layout::OFFSETS.map(|(of, field, offset)| (format!("offsetof({of}, {field})"), offset as i64));
    let constants = layout::CONSTANTS.map(|(name, value)| (name.to_string(), i64::from(value)));
    offsets.into_iter().chain(constants).collect()
}

/// Put the functions into the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(targets, module)?)?;
    module.add_function(wrap_pyfunction!(handle, module)?)?;
    module.add_function(wrap_pyfunction!(raise_failure, module)?)?;
    module.add_function(wrap_pyfunction!(interrupt::watch, module)?)?;
    module.add_function(wrap_pyfunction!(interrupt::give_up, module)?)?;
    module.add_function(wrap_pyfunction!(layout_in_c, module)?)
}
