//! The extension module `maypole._maypole`: what the Python package `maypole` stands on.

mod buffer;
mod communicator;
mod error;

use std::ffi::OsString;

use pyo3::prelude::*;

/// Collective communication; see the package `maypole`.
#[pymodule]
fn _maypole(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::register(module)?;
    communicator::register(module)?;
    module.add_function(wrap_pyfunction!(command, module)?)?;
    Ok(())
}

/// The `maypole` command with these arguments, the first being its own name; returns the exit status.
#[pyfunction]
fn command(arguments: Vec<OsString>, python: OsString) -> u8 {
    maypole::command::within_python(arguments, python)
}
