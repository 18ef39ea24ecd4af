//! Operations of reductions: by name, scaled sums, and the user's own.

use std::collections::HashMap;

use maypole::{CallbackFailed, DataType, Pair, ReduceOp, UserOp};
use maypole_transports::lock::Mutex;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};

use crate::{array, error, process, waiting};

/// An operation for reductions that is more than a name: ``maypole.Op(function)`` or ``maypole.premulsum(factor)``.
///
/// ``Op(function, name=None, width=1, commutes=True, dtype=None)`` makes an operation of ``function(a, b)``,
/// which gets two NumPy arrays of equal length and returns an array with the combination of each
/// pair of elements. It must be associative. It is called with parts of the arrays, in any order,
/// on any thread. ``name`` (by default the function's) tells ranks that
/// use different operations apart; it must be the same on all of them.
///
/// With a ``width``, so many elements that follow each other are one operand and stay together: the
/// arrays that the function gets then have the shape ``(n, width)``. Without ``commutes``, ranks
/// are combined in their order: ``a`` is from lower ranks than ``b``.
///
/// With a ``dtype``, one of NumPy's of any size, such as a structured one, it is for arrays of that
/// type, and the function gets them as such.
///
/// If it raises, the communicator fails on every rank, with an AbortedError that names the operation and what it
/// raised; on the rank where it happened the exception is the error's ``__cause__``.
#[pyclass(module = "maypole", frozen, name = "Op")]
pub struct Op {
    what: Kind,
}

enum Kind {
    Scaled(f64),
    Own {
        function: Py<PyAny>,
        name: String,
        width: u16,
        commutes: bool,
        structure: Option<Structure>,
        /// For each type that it was used on. Boxed, since operations under way point there.
        made: Mutex<HashMap<DataType, Box<Combine>>>,
    },
}

/// A type of NumPy's that is none of Maypole's: its elements are moved as bytes that stay together.
struct Structure {
    dtype: Py<PyAny>,
    size: usize,
}

/// A function for one type.
struct Combine {
    function: Py<PyAny>,
    name: String,
    frombuffer: Py<PyAny>,
    asarray: Py<PyAny>,
    dtype: Py<PyAny>,
    /// Bytes of an element of that type, and of what it is moved as.
    size: usize,
    unit: usize,
    width: u16,
    raised: Mutex<Option<PyErr>>,
}

#[pymethods]
impl Op {
    #[new]
    #[pyo3(
        signature = (function, name=None, width=1, commutes=true, dtype=None),
        text_signature = "(function, name=None, width=1, commutes=True, dtype=None)"
    )]
    fn new(
        function: Bound<'_, PyAny>,
        name: Option<String>,
        width: i64,
        commutes: bool,
        dtype: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Op> {
        if !function.is_callable() {
            return Err(error::argument(function.py(), "function: is not callable"));
        }
        let width = u16::try_from(width).ok().filter(|width| *width > 0).ok_or_else(|| {
            error::argument(function.py(), format!("width: is {width}, but an operand has 1 to {} elements", u16::MAX))
        })?;
        let structure = dtype.map(|dtype| Structure::of(&dtype, width)).transpose()?;
        let own = || function.getattr("__qualname__").ok()?.extract().ok();
        let name = name.or_else(own).unwrap_or_else(|| "user".into());
        let (function, made) = (function.unbind(), Mutex::default());
        Ok(Op { what: Kind::Own { function, name, width, commutes, structure, made } })
    }

    /// What it is called.
    #[getter]
    fn name(&self) -> String {
        match &self.what {
            Kind::Scaled(_) => "premulsum".into(),
            Kind::Own { name, .. } => name.clone(),
        }
    }

    /// How many elements are one operand.
    #[getter]
    fn width(&self) -> u16 {
        match &self.what {
            Kind::Scaled(_) => 1,
            Kind::Own { width, .. } => *width,
        }
    }

    /// Whether ranks are combined in any order.
    #[getter]
    fn commutes(&self) -> bool {
        !matches!(&self.what, Kind::Own { commutes: false, .. })
    }

    fn __repr__(&self) -> String {
        match &self.what {
            Kind::Scaled(factor) => format!("maypole.premulsum({factor})"),
            Kind::Own { name, .. } => format!("<maypole.Op {name}>"),
        }
    }
}

/// The sum of all ranks' elements, each multiplied by this rank's `factor` first.
#[pyfunction]
fn premulsum(factor: f64) -> Op {
    Op { what: Kind::Scaled(factor) }
}

/// The operation that an argument names: what the library does, and what must be kept for it.
pub enum Chosen {
    Known(ReduceOp),
    /// On pairs, whichever those are.
    Located(fn(Pair) -> ReduceOp),
    Own(Py<Op>),
}

/// Read the argument `op`.
///
/// # Errors
/// What is wrong with it.
pub fn choose(op: Option<&Bound<'_, PyAny>>) -> Result<Chosen, String> {
    use ReduceOp::*;
    let Some(op) = op else { return Ok(Chosen::Known(Sum)) };
    if let Ok(own) = op.cast::<Op>() {
        return Ok(match own.get().what {
            Kind::Scaled(factor) => Chosen::Known(PreMulSum(factor)),
            Kind::Own { .. } => Chosen::Own(own.clone().unbind()),
        });
    }
    let name = op.extract::<std::borrow::Cow<'_, str>>();
    match name.as_deref() {
        Ok("minloc") => return Ok(Chosen::Located(MinLoc)),
        Ok("maxloc") => return Ok(Chosen::Located(MaxLoc)),
        _ => {}
    }
    Ok(Chosen::Known(match name.as_deref() {
        Ok("sum") => Sum,
        Ok("prod") => Prod,
        Ok("min") => Min,
        Ok("max") => Max,
        Ok("avg") => Avg,
        Ok("and") => And,
        Ok("or") => Or,
        Ok("xor") => Xor,
        _ => {
            let shown = op.repr().map_or_else(|_| "it".into(), |text| text.to_string());
            return Err(format!(
                "op: {shown} is none of sum, prod, min, max, avg, and, or, xor, minloc, maxloc, nor a maypole.Op or \
                 maypole.premulsum(..)"
            ));
        }
    }))
}

impl Op {
    /// The operation on the elements of an array: as what they are carried, and how many of these
    /// make one. It may be used for as long as this lives.
    ///
    /// # Errors
    /// It cannot be used on them, or what is missing for it.
    pub fn on(&self, py: Python<'_>, elements: &array::Kind) -> Result<(DataType, usize, ReduceOp), String> {
        let Kind::Own { name, structure, .. } = &self.what else { unreachable!("scaled sums are known operations") };
        match (structure, elements) {
            (Some(structure), _) if structure.size == elements.size() => {
                Ok((DataType::U8, structure.size, self.made(py, DataType::U8)?))
            }
            (Some(structure), _) => Err(format!(
                "x: operation {name:?} is for elements of {} bytes ({}), not for elements of {elements}",
                structure.size, structure.dtype
            )),
            (None, array::Kind::Number(dtype)) => Ok((*dtype, 1, self.made(py, *dtype)?)),
            (None, _) => Err(format!(
                "x: operation {name:?} cannot be used on elements of {elements}; say their dtype: maypole.Op(.., \
                 dtype=x.dtype)"
            )),
        }
    }

    /// The operation on what is carried as elements of `dtype`.
    fn made(&self, py: Python<'_>, dtype: DataType) -> Result<ReduceOp, String> {
        let Kind::Own { function, name, width, commutes, structure, made } = &self.what else {
            unreachable!("scaled sums are known operations")
        };
        let found = made.lock().get(&dtype).map(|combine| &raw const **combine);
        let context = match found {
            Some(context) => context,
            None => {
                // Not under the lock: imports run Python.
                let combine = Combine::new(py, function, (name, *width), dtype, structure.as_ref()).map_err(|e| {
                    format!("op: an operation of one's own needs NumPy (bfloat16 and float8 ml_dtypes, too): {e}")
                })?;
                &raw const **made.lock().entry(dtype).or_insert_with(|| Box::new(combine))
            }
        };
        // SAFETY: `combine` does what such a function does; the context stays until this is dropped, and is Sync.
        let op = unsafe { UserOp::with_context(id(name), dtype, combine, context.cast()) };
        // Not more than a width can be, as was seen when it was made.
        let together = structure.as_ref().map_or(1, |structure| structure.size);
        let op = op.with_width(*width * together as u16);
        Ok(ReduceOp::User(if *commutes { op } else { op.not_commuting() }))
    }

    /// What it has raised since it was asked last.
    pub fn take_raised(&self) -> Option<PyErr> {
        match &self.what {
            Kind::Scaled(_) => None,
            Kind::Own { made, .. } => made.lock().values().find_map(|combine| combine.raised.lock().take()),
        }
    }
}

/// What tells operations apart: FNV-1a of the name.
fn id(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// What the library calls.
///
/// # Safety
/// As for [`maypole::UserFnWith`], with a context that is a `Combine`.
unsafe fn combine(context: *const (), dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
    // SAFETY: what `Op::on` gave.
    let this = unsafe { &*context.cast::<Combine>() };
    let bytes = count * this.unit;
    // SAFETY: the library's promise: `count` elements at each address. `dst` may be one of them, so no reference to it.
    let operands = unsafe { [std::slice::from_raw_parts(a, bytes), std::slice::from_raw_parts(b, bytes)] };
    let done = process::attached(|py| {
        let combined = waiting::combining(|| this.apply(py, operands)).map_err(|error| {
            let what = format!("operation {:?} raised {error}", this.name);
            *this.raised.lock() = Some(error);
            what
        })?;
        // SAFETY: as above; as many bytes, in memory of Python's.
        unsafe { std::ptr::copy_nonoverlapping(combined.as_bytes(py).as_ptr(), dst, bytes) };
        Ok(())
    });
    let done = done.unwrap_or_else(|| Err("the interpreter shuts down, and an operation needs it".to_string()));
    if let Err(why) = done {
        // Not `panic!`, which would print.
        std::panic::resume_unwind(Box::new(CallbackFailed(why)));
    }
}

impl Structure {
    fn of(dtype: &Bound<'_, PyAny>, width: u16) -> PyResult<Structure> {
        let py = dtype.py();
        let dtype = py.import("numpy")?.call_method1("dtype", (dtype,))?;
        if dtype.getattr("hasobject")?.extract()? {
            let what = format!("dtype: {dtype} has elements that are Python objects, which have no bytes to send");
            return Err(error::argument(py, what));
        }
        let size: usize = dtype.getattr("itemsize")?.extract()?;
        let most = usize::from(u16::MAX);
        if size == 0 || size.saturating_mul(width.into()) > most {
            let what = format!("dtype: {width} x {dtype} are {size} bytes each, but an operand has 1 to {most} bytes");
            return Err(error::argument(py, what));
        }
        Ok(Structure { dtype: dtype.unbind(), size })
    }
}

impl Combine {
    fn new(
        py: Python<'_>,
        function: &Py<PyAny>,
        (name, width): (&str, u16),
        dtype: DataType,
        structure: Option<&Structure>,
    ) -> PyResult<Combine> {
        let numpy = py.import("numpy")?;
        let (dtype_object, size) = match structure {
            Some(structure) => (structure.dtype.clone_ref(py).into_bound(py), structure.size),
            None => (numpy_dtype(py, dtype)?, dtype.size()),
        };
        Ok(Combine {
            function: function.clone_ref(py),
            name: name.to_string(),
            frombuffer: numpy.getattr("frombuffer")?.unbind(),
            asarray: numpy.getattr("asarray")?.unbind(),
            dtype: dtype_object.unbind(),
            size,
            unit: dtype.size(),
            width,
            raised: Mutex::new(None),
        })
    }

    /// Operands are copied, so that a function that keeps them keeps memory of Python's.
    fn apply(&self, py: Python<'_>, operands: [&[u8]; 2]) -> PyResult<Py<PyBytes>> {
        let array = |bytes| {
            let flat = self.frombuffer.call1(py, (PyByteArray::new(py, bytes), &self.dtype))?;
            match self.width {
                1 => Ok(flat),
                width => flat.call_method1(py, "reshape", (-1, width)),
            }
        };
        let (a, b) = (array(operands[0])?, array(operands[1])?);
        let result = self.function.call1(py, (a, b))?;
        let result = self.asarray.call1(py, (result, &self.dtype))?.into_bound(py);
        let bytes = result.call_method0("tobytes")?.cast_into::<PyBytes>()?;
        if bytes.as_bytes().len() != operands[0].len() {
            let shape = result.getattr("shape")?;
            let count = operands[0].len() / self.size;
            let given = match usize::from(self.width) {
                1 => format!("({count},)"),
                width => format!("({}, {width})", count / width),
            };
            return Err(PyTypeError::new_err(format!(
                "it returned an array of shape {shape} for operands of shape {given}"
            )));
        }
        Ok(bytes.unbind())
    }
}

/// NumPy's type for elements of `dtype`; of ml_dtypes, where NumPy has none.
pub fn numpy_dtype<'py>(py: Python<'py>, dtype: DataType) -> PyResult<Bound<'py, PyAny>> {
    let module = if array::numpy_has(dtype) { "numpy" } else { "ml_dtypes" };
    let scalar = py.import(module)?.getattr(dtype.row().array_name)?;
    py.import("numpy")?.call_method1("dtype", (scalar,))
}

/// Put the class and the function into the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Op>()?;
    module.add_function(wrap_pyfunction!(premulsum, module)?)
}
