//! The exceptions: one class for each way to fail, with who and where as attributes.

use maypole::{Error, Verdict};
use pyo3::create_exception;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

create_exception!(
    maypole,
    Replaceable,
    PyRuntimeError,
    "Stands between Error and RuntimeError: in its place a framework's package puts the framework's own class."
);
create_exception!(
    maypole,
    MaypoleError,
    Replaceable,
    "Every error of Maypole; `rank` is this rank, where it is known."
);

/// The classes that are made when the module is: those with two bases, or whose base is such a one.
struct Classes {
    argument: Py<PyType>,
    died: Py<PyType>,
    mismatch: Py<PyType>,
    refused: Py<PyType>,
    stalled: Py<PyType>,
    aborted: Py<PyType>,
    link: Py<PyType>,
    bootstrap: Py<PyType>,
    setting: Py<PyType>,
    device: Py<PyType>,
    system: Py<PyType>,
}

static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();

/// Make the classes and put them into the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let root = py.get_type::<MaypoleError>();
    root.setattr("__name__", "Error")?;
    root.setattr("__qualname__", "Error")?;
    for name in ["rank", "host", "operation", "kind", "verdict"] {
        root.setattr(name, py.None())?;
    }
    module.add("Error", &root)?;
    let class = |name: &str, bases: &[&Bound<'_, PyType>], doc: &str| -> PyResult<Py<PyType>> {
        let namespace = PyDict::new(py);
        namespace.set_item("__doc__", doc)?;
        namespace.set_item("__module__", "maypole")?;
        let class = py.get_type::<PyType>().call1((name, PyTuple::new(py, bases)?, namespace))?;
        module.add(name, &class)?;
        Ok(class.cast_into::<PyType>()?.unbind())
    };
    let failed = class(
        "FailedError",
        &[&root],
        "The communicator has failed, on every rank with the same verdict, and cannot be used again.\n\n\
         `rank` is the rank to blame or that reported, `host` its host, `operation` the operation as text, `kind` what \
         kind of verdict it is (died, mismatch, refused, stalled, aborted, link), `verdict` its whole text; each None \
         where it has no meaning.",
    )?;
    let base = failed.bind(py).clone();
    let bootstrap = class("BootstrapError", &[&root], "The ranks could not be brought together.")?;
    let value = py.get_type::<PyValueError>();
    let classes = Classes {
        argument: class(
            "ArgumentError",
            &[&root, &value],
            "An argument was refused before anything started; the communicator stays usable.",
        )?,
        died: class("DiedError", &[&base], "A process that others still needed ended or left.")?,
        mismatch: class("MismatchError", &[&base], "Two ranks called different things as the same operation.")?,
        refused: class(
            "RefusedError",
            &[&base],
            "A rank refused the arguments of an operation that others had started.",
        )?,
        stalled: class("StalledError", &[&base], "The deadline passed.")?,
        aborted: class(
            "AbortedError",
            &[&base],
            "A rank gave up: `abort`, Ctrl-C, or an operation of its own that raised.",
        )?,
        link: class("LinkError", &[&base], "A link between two ranks failed.")?,
        setting: class("SettingError", &[&root, &value], "A setting makes no sense.")?,
        device: class("DeviceError", &[&root], "CUDA refused something.")?,
        system: class("SystemFailure", &[&root], "The operating system refused something.")?,
        bootstrap,
    };
    let _ = CLASSES.set(py, classes);
    Ok(())
}

fn make(py: Python<'_>, class: impl Fn(&Classes) -> &Py<PyType>, text: String) -> PyErr {
    let classes = CLASSES.get(py).expect("made with the module");
    PyErr::from_type(class(classes).bind(py).clone(), (text,))
}

/// An argument that was refused here, before the library saw it.
pub fn argument(py: Python<'_>, text: impl Into<String>) -> PyErr {
    make(py, |c| &c.argument, text.into())
}

/// A setting that makes no sense.
pub fn setting(py: Python<'_>, text: String) -> PyErr {
    make(py, |c| &c.setting, text)
}

/// The exception for an error of the library.
pub fn to_py(py: Python<'_>, error: Error) -> PyErr {
    let text = error.to_string();
    match &error {
        Error::Argument { rank, .. } => with(py, make(py, |c| &c.argument, text), Some(*rank), None, None),
        Error::Failed { verdict, .. } => failed(py, verdict, text),
        Error::Bootstrap { .. } => make(py, |c| &c.bootstrap, text),
        Error::Setting { .. } => make(py, |c| &c.setting, text),
        Error::Device { rank, .. } => with(py, make(py, |c| &c.device, text), Some(*rank), None, None),
        Error::System { .. } => make(py, |c| &c.system, text),
    }
}

fn failed(py: Python<'_>, verdict: &Verdict, text: String) -> PyErr {
    let (kind, rank, host, operation) = match verdict {
        Verdict::Died { rank, host, .. } => ("died", Some(*rank), Some(host.clone()), None),
        Verdict::Mismatch { one, other } => ("mismatch", Some(other.0), None, Some(one.1.to_string())),
        Verdict::Refused { rank, sequence, .. } => ("refused", Some(*rank), None, Some(format!("#{sequence}"))),
        Verdict::Stalled { operation, culprits, reporter, .. } => {
            let culprit = culprits.first();
            let rank = culprit.map_or(*reporter, |c| c.0);
            ("stalled", Some(rank), culprit.map(|c| c.1.clone()), Some(operation.to_string()))
        }
        Verdict::Aborted { rank, .. } => ("aborted", Some(*rank), None, None),
        Verdict::Link { peer, host, .. } => ("link", Some(*peer), Some(host.clone()), None),
        Verdict::Outside { host, .. } => ("died", None, Some(host.clone()), None),
    };
    let error = make(
        py,
        |c| match verdict {
            Verdict::Died { .. } | Verdict::Outside { .. } => &c.died,
            Verdict::Mismatch { .. } => &c.mismatch,
            Verdict::Refused { .. } => &c.refused,
            Verdict::Stalled { .. } => &c.stalled,
            Verdict::Aborted { .. } => &c.aborted,
            Verdict::Link { .. } => &c.link,
        },
        text,
    );
    let error = with(py, error, rank, host, operation);
    let value = error.value(py);
    let _ = value.setattr("kind", kind);
    let _ = value.setattr("verdict", verdict.to_string());
    error
}

fn with(py: Python<'_>, error: PyErr, rank: Option<usize>, host: Option<String>, operation: Option<String>) -> PyErr {
    let value = error.value(py);
    // An exception that lacks an attribute is better than none.
    let _ = value.setattr("rank", rank);
    let _ = value.setattr("host", host);
    let _ = value.setattr("operation", operation);
    error
}
