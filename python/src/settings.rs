//! Settings as keyword arguments: `timeout=30` is `MAYPOLE_TIMEOUT=30`.

use maypole::Config;
use maypole::config::KNOBS;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error;

/// The environment's settings, overridden by those given.
///
/// # Errors
/// `SettingError` for a name or a value that makes no sense.
pub fn config(py: Python<'_>, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Config> {
    let mut config = Config::from_env().map_err(|e| error::to_py(py, e))?;
    for (name, value) in settings.into_iter().flatten() {
        let name: String = name.extract()?;
        let variable = format!("MAYPOLE_{}", name.to_uppercase());
        if !KNOBS.iter().any(|knob| knob.name == variable) {
            let known: Vec<String> = KNOBS.iter().map(|knob| knob.name["MAYPOLE_".len()..].to_lowercase()).collect();
            return Err(error::setting(
                py,
                format!("{name}: there is no such setting; there are {}", known.join(", ")),
            ));
        }
        config.set(&variable, &value.str()?.to_string()).map_err(|e| error::to_py(py, e))?;
    }
    Ok(config)
}
