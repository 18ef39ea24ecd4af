//! The extension module `maypole._maypole`: what the Python package `maypole` stands on.
//!
//! * `communicator`, `making`: the class `Communicator`, and where one comes from. `forms`: the collectives as methods
//!   of every class that makes calls: it, `ways` (asynchronous ones and those on CUDA streams), `group`,
//!   `persistent`.
//! * `calls`, `variable`, `messages`: arguments, checked and made into what the library takes, `prepared`. `array`,
//!   `view`, `format`, `ctypes`, `dlpack`: arrays as addresses. `operation`: `op`.
//! * `jax`: the handlers that XLA calls.
//! * `request`, `stream`, `registered`, `device`: what else there are objects for.
//! * `torch`: what `maypole.torch` stands on.
//! * `waiting`: the interpreter's lock and Ctrl-C. `process`: forks and the interpreter's exit. `error`: exceptions.

mod array;
mod calls;
mod communicator;
mod ctypes;
mod device;
mod dlpack;
mod error;
mod format;
mod forms;
mod group;
mod jax;
mod making;
mod messages;
mod operation;
mod persistent;
mod prepared;
mod process;
mod registered;
mod request;
mod settings;
mod stream;
mod torch;
mod variable;
mod view;
mod waiting;
mod ways;

use std::ffi::OsString;

use pyo3::prelude::*;

/// Collective communication; see the package `maypole`. A free-threaded CPython turns its lock on
/// for it: nothing has shown that it can do without.
#[pymodule(gil_used = true)]
fn _maypole(module: &Bound<'_, PyModule>) -> PyResult<()> {
    maypole::fork::watch();
    waiting::register();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::register(module)?;
    making::register(module)?;
    request::register(module)?;
    operation::register(module)?;
    module.add_class::<communicator::Communicator>()?;
    module.add_class::<ways::Start>()?;
    module.add_class::<ways::OnStream>()?;
    module.add_class::<group::Group>()?;
    module.add_class::<persistent::PersistentCalls>()?;
    module.add_class::<persistent::Persistent>()?;
    module.add_class::<registered::Registered>()?;
    module.add_class::<device::DeviceMemory>()?;
    module.add_class::<stream::Stream>()?;
    torch::register(module)?;
    jax::register(module)?;
    module.add_function(wrap_pyfunction!(process::_leave, module)?)?;
    module.add_function(wrap_pyfunction!(command, module)?)
}

/// The `maypole` command with these arguments, the first being its own name; returns the exit status.
#[pyfunction]
fn command(arguments: Vec<OsString>, python: OsString) -> u8 {
    maypole::command::within_python(arguments, python)
}
