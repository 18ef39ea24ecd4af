//! What the formats of ctypes do not tell: a union, and a struct that is packed, are so many bytes there, whatever their
//! members are. Their classes know.
//!
//! A format of bytes is believed of everybody else. Whoever has cast pointers to numbers or bytes, as NumPy does with
//! those that it takes from ctypes, has said that these are to be moved.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyType};

use crate::format::Reference;

/// Refuse an object of ctypes', or a view of one, that has references anywhere in its elements.
///
/// # Errors
/// What is wrong with it, to be put behind the argument's name.
pub fn without_references(object: &Bound<'_, PyAny>) -> Result<(), String> {
    let mut shows = object.clone();
    while shows.is_instance_of::<PyMemoryView>() {
        match shows.getattr(intern!(shows.py(), "obj")) {
            Ok(behind) => shows = behind,
            Err(_) => return Ok(()),
        }
    }
    let class = shows.get_type();
    // What answers otherwise than classes of ctypes do is none of them.
    let found = Classes::find(class.py()).and_then(|classes| classes.reference_in(&class).ok().flatten());
    found.map_or(Ok(()), |reference| {
        let name = class.name().map_or_else(|_| "a class of ctypes".to_string(), |name| name.to_string());
        Err(reference.refusal(&format!("in {name}")))
    })
}

/// The module of the classes from which all others of ctypes come.
struct Classes<'py>(Bound<'py, PyAny>);

impl<'py> Classes<'py> {
    /// `None`: nothing has been imported, so there are no such objects.
    fn find(py: Python<'py>) -> Option<Classes<'py>> {
        let modules = py.import(intern!(py, "sys")).and_then(|sys| sys.getattr(intern!(py, "modules"))).ok()?;
        modules.get_item(intern!(py, "_ctypes")).ok().map(Classes)
    }

    fn has(&self, class: &Bound<'py, PyType>, name: &str) -> PyResult<bool> {
        class.is_subclass(&self.0.getattr(name)?)
    }

    /// What is in an object of this class that means something in this process only.
    fn reference_in(&self, class: &Bound<'py, PyType>) -> PyResult<Option<Reference>> {
        let py = class.py();
        let of = || class.getattr(intern!(py, "_type_"));
        if self.has(class, "_Pointer")? || self.has(class, "CFuncPtr")? {
            return Ok(Some(Reference::Pointer));
        }
        if self.has(class, "_SimpleCData")? {
            return Ok(match of()?.extract::<String>()?.as_str() {
                "O" => Some(Reference::Object),
                "P" | "z" | "Z" | "X" => Some(Reference::Pointer),
                _ => None,
            });
        }
        if self.has(class, "Array")? {
            return self.reference_in(of()?.cast::<PyType>()?);
        }
        // Every class in the line adds its own members.
        for part in class.mro() {
            let own = part.getattr(intern!(py, "__dict__"))?;
            let Ok(fields) = own.get_item(intern!(py, "_fields_")) else { continue };
            for field in fields.try_iter()? {
                let found = self.reference_in(field?.get_item(1)?.cast::<PyType>()?)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }
}
