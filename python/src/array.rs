//! Array arguments: anything with the buffer protocol or DLPack, as an address, a count and a type.
//!
//! Nothing is copied. What cannot be worked on where it lies is refused, by the argument's name.

use maypole::{DataType, Pair, ReduceOp};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::device::DeviceMemory;
use crate::registered::Registered;
use crate::view::View;
use crate::{ctypes, dlpack, format};

/// What the elements of an array are.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A type that reductions know.
    Number(DataType),
    /// A byte that is 0 or 1.
    Bool,
    /// Two of these.
    Complex(DataType),
    /// A value and its index.
    Pair(Pair),
    /// So many bytes, which can be moved but not combined; and what it is called.
    Other(usize, String),
}

impl Kind {
    /// Bytes of an element.
    pub fn size(&self) -> usize {
        match self {
            Kind::Number(dtype) => dtype.size(),
            Kind::Bool => 1,
            Kind::Complex(dtype) => 2 * dtype.size(),
            Kind::Pair(pair) => pair.size(),
            Kind::Other(size, _) => *size,
        }
    }

    /// As what such elements are carried, how many of these make one, and whether `op` is possible on them.
    ///
    /// # Errors
    /// What is wrong.
    pub fn carried(&self, op: Option<ReduceOp>) -> Result<(DataType, usize), String> {
        use ReduceOp::*;
        match (self, op) {
            (Kind::Number(dtype), _) => Ok((*dtype, 1)),
            (Kind::Bool, None | Some(And | Or | Xor | Min | Max)) => Ok((DataType::U8, 1)),
            (Kind::Complex(dtype), None | Some(Sum | Avg | PreMulSum(_))) => Ok((*dtype, 2)),
            (Kind::Pair(pair), None | Some(MinLoc(_) | MaxLoc(_))) => Ok((pair.dtype(), Pair::WIDTH)),
            (Kind::Other(size, _), None) => Ok((DataType::U8, *size)),
            (_, Some(op)) => Err(format!("{} is not defined on elements of {self}", op.name())),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Number(dtype) => f.write_str(dtype.row().array_name),
            Kind::Bool => f.write_str("bool"),
            Kind::Complex(dtype) => write!(f, "complex {}", dtype.row().array_name),
            Kind::Pair(pair) => write!(f, "pairs {pair}"),
            Kind::Other(_, what) => f.write_str(what),
        }
    }
}

/// What keeps an array's memory where it is.
#[expect(dead_code, reason = "held to be dropped")]
enum Hold {
    View(View),
    Object(Py<PyAny>),
}

/// An array argument: memory that stays where it is for as long as this lives.
pub struct Array {
    /// Its first byte.
    pub address: *mut u8,
    /// How many elements it has.
    pub count: usize,
    /// What they are.
    pub kind: Kind,
    /// The CUDA device in whose memory it lies; `None`: host memory.
    pub device: Option<usize>,
    /// Whether it must not be written.
    pub read_only: bool,
    _hold: Hold,
}

// SAFETY: an address, and what keeps it, which may be dropped on any thread.
unsafe impl Send for Array {}
// SAFETY: as above.
unsafe impl Sync for Array {}

impl Array {
    /// The memory of `object`. `stream`: the CUDA stream on which it will be used, if on any.
    ///
    /// # Errors
    /// What is wrong with it, to be put behind the argument's name.
    pub fn of(object: &Bound<'_, PyAny>, stream: Option<usize>) -> Result<Array, String> {
        if let Ok(registered) = object.cast::<Registered>() {
            return Ok(registered.get().array(object));
        }
        if let Ok(memory) = object.cast::<DeviceMemory>() {
            return Ok(memory.get().array(object));
        }
        // Why it does not show its memory, though it has the buffer protocol.
        let refused = match View::of(object) {
            Ok(Some(view)) => {
                let pair = view.format().to_bytes().starts_with(b"T{").then(|| pair_of(object)).flatten();
                let array = Array::of_view(view)?;
                if let (Kind::Other(..), None) = (&array.kind, pair) {
                    ctypes::without_references(object)?;
                }
                return Ok(Array { kind: pair.map_or(array.kind, Kind::Pair), ..array });
            }
            Ok(None) => None,
            Err(error) if is_numpys(object) => {
                return Array::of_small_floats(object).unwrap_or_else(|| Err(error.to_string()));
            }
            Err(error) => Some(error.to_string()),
        };
        let lent = match dlpack::borrow(object, stream) {
            Ok(Some(lent)) => lent?,
            Ok(None) => {
                return Err(refused.unwrap_or_else(|| {
                    format!(
                        "a {} is no array; pass anything with the buffer protocol or DLPack (NumPy, torch, JAX, ...)",
                        type_name(object)
                    )
                }));
            }
            Err(error) => return Err(format!("its {} does not lend its memory: {error}", type_name(object))),
        };
        if !lent.contiguous {
            return Err(NOT_CONTIGUOUS.into());
        }
        let dlpack::Lent { capsule, address, count, kind, device, read_only, .. } = lent;
        // JAX's arrays never change, which their buffers say. Those of the small floats have no
        // buffer, and old capsules have no place to say it.
        let read_only = read_only || refused.is_some();
        Ok(Array { address, count, kind, device, read_only, _hold: Hold::Object(capsule) })
    }

    fn of_view(view: View) -> Result<Array, String> {
        if !view.is_contiguous() {
            return Err(NOT_CONTIGUOUS.into());
        }
        let kind = format::kind(view.format().to_bytes(), view.itemsize())?;
        Ok(Array {
            address: view.address(),
            count: view.bytes() / view.itemsize(),
            kind,
            device: None,
            read_only: view.is_read_only(),
            _hold: Hold::View(view),
        })
    }

    /// NumPy has no format for the small floats of ml_dtypes; as plain bytes they have one.
    /// `object`: NumPy's, whose views are views; others' may be copies. `None` if it has other
    /// elements.
    fn of_small_floats(object: &Bound<'_, PyAny>) -> Option<Result<Array, String>> {
        let py = object.py();
        let dtype = object.getattr(intern!(py, "dtype")).ok()?;
        let called: String = dtype.getattr(intern!(py, "name")).ok()?.extract().ok()?;
        let number = of_name(&called);
        let plain = match number.map_or_else(|| dtype.getattr("itemsize").ok()?.extract().ok(), |d| Some(d.size()))? {
            1 => "u1",
            2 => "u2",
            _ => return None,
        };
        let bytes = object.call_method1(intern!(py, "view"), (plain,)).ok()?;
        let array = Array::of_view(View::of(&bytes).ok()??);
        let size = plain.as_bytes()[1] - b'0';
        let kind = number.map_or_else(|| Kind::Other(size.into(), called), Kind::Number);
        Some(array.map(|array| Array { kind, ..array }))
    }

    /// Memory of Maypole's own, in host memory or a device's, which `owner` keeps.
    pub fn of_maypole(
        owner: &Bound<'_, PyAny>,
        address: *mut u8,
        (count, dtype): (usize, DataType),
        device: Option<usize>,
    ) -> Array {
        let hold = Hold::Object(owner.clone().unbind());
        Array { address, count, kind: Kind::Number(dtype), device, read_only: false, _hold: hold }
    }

    /// Refuse device memory where no stream was named, for a call of this name.
    ///
    /// # Errors
    /// What is wrong with it, to be put behind the argument's name.
    pub fn placed(&self, stream: Option<usize>, call: &str) -> Result<(), String> {
        match (self.device, stream) {
            (Some(device), None) => Err(format!(
                "lies in the memory of CUDA device {device}; say on which stream to use it: comm.on(stream).{call}"
            )),
            _ => Ok(()),
        }
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.count * self.kind.size()
    }

    /// Whether the two share memory without being the same.
    pub fn overlaps(&self, other: &Array) -> bool {
        let (a, b) = (self.address.addr(), other.address.addr());
        a < b + other.bytes() && b < a + self.bytes()
    }
}

const NOT_CONTIGUOUS: &str = "its elements do not lie one after the other in C's order; pass a contiguous array \
                              (numpy.ascontiguousarray, tensor.contiguous())";

/// The name of an object's class.
pub fn type_name(object: &Bound<'_, PyAny>) -> String {
    object.get_type().name().map_or_else(|_| "object".into(), |name| name.to_string())
}

/// Whether it is an array of NumPy's.
fn is_numpys(object: &Bound<'_, PyAny>) -> bool {
    let class = object.py().import(intern!(object.py(), "numpy")).and_then(|numpy| numpy.getattr("ndarray"));
    class.is_ok_and(|class| object.is_instance(&class).unwrap_or(false))
}

/// The pair that an array's structs are, if NumPy says that they have two members which lie as in
/// C.
fn pair_of(object: &Bound<'_, PyAny>) -> Option<Pair> {
    let dtype = object.getattr(intern!(object.py(), "dtype")).ok()?;
    let names: Vec<String> = dtype.getattr("names").ok()?.extract().ok()?;
    let fields = dtype.getattr("fields").ok()?;
    let member = |name: &String| -> Option<(String, usize)> {
        let field = fields.get_item(name).ok()?;
        Some((field.get_item(0).ok()?.getattr("str").ok()?.extract().ok()?, field.get_item(1).ok()?.extract().ok()?))
    };
    let [value, index]: [(String, usize); 2] = names.iter().map(member).collect::<Option<Vec<_>>>()?.try_into().ok()?;
    let size: usize = dtype.getattr("itemsize").ok()?.extract().ok()?;
    Pair::ALL.into_iter().find(|pair| {
        let (first, second) = match pair {
            Pair::F32I32 => ("<f4", "<i4"),
            Pair::F64I32 => ("<f8", "<i4"),
            Pair::I64I32 => ("<i8", "<i4"),
            Pair::I32I32 => ("<i4", "<i4"),
            Pair::I16I32 => ("<i2", "<i4"),
            Pair::F64I64 => ("<f8", "<i8"),
            Pair::I64I64 => ("<i8", "<i8"),
        };
        // In all of them the index takes the second half, or its beginning.
        value == (first.to_string(), 0) && index == (second.to_string(), pair.size() / 2) && size == pair.size()
    })
}

/// The element type of a name of arrays in Python.
fn of_name(text: &str) -> Option<DataType> {
    DataType::ALL.into_iter().find(|dtype| dtype.row().array_name == text.trim_start_matches("torch."))
}

/// `count` elements as the array interface of NumPy, which CUDA's is like, describes them.
pub fn interface(py: Python<'_>, address: usize, count: usize, dtype: DataType) -> PyResult<Bound<'_, PyDict>> {
    let letter = match dtype.row().dlpack {
        SIGNED => 'i',
        IEEE => 'f',
        // There are no letters for the small floats.
        _ => 'u',
    };
    let dict = PyDict::new(py);
    dict.set_item("version", 3)?;
    dict.set_item("shape", (count,))?;
    dict.set_item("typestr", format!("<{letter}{}", dtype.size()))?;
    dict.set_item("data", (address, false))?;
    Ok(dict)
}

/// DLPack's codes for signed integers and for the floats of IEEE 754.
const SIGNED: u8 = 0;
const IEEE: u8 = 2;

/// Whether NumPy has the type; ml_dtypes has the others.
pub fn numpy_has(dtype: DataType) -> bool {
    dtype.is_integer() || dtype.row().dlpack == IEEE
}

/// The argument `dtype`: a name, or anything that has one.
///
/// # Errors
/// It names no type that there is.
pub fn dtype_argument(dtype: Option<&Bound<'_, PyAny>>) -> Result<DataType, String> {
    let Some(dtype) = dtype else { return Ok(DataType::F32) };
    let of = |name: PyResult<String>| name.ok().and_then(|name| of_name(&name));
    of(dtype.extract())
        .or_else(|| of(dtype.getattr("name").and_then(|name| name.extract())))
        .or_else(|| of(dtype.getattr("__name__").and_then(|name| name.extract())))
        .or_else(|| of(dtype.str().map(|text| text.to_string())))
        .ok_or_else(|| {
            format!("dtype: {dtype} is none of {}", DataType::ALL.map(|dtype| dtype.row().array_name).join(", "))
        })
}
