//! DLPack: how array libraries hand each other tensors, on any device. The structures are those of `dlpack.h` 1.1.
//!
//! What is borrowed is worked on where it lies, so a producer is asked for no copy, and one that is
//! said to be a copy is refused: results that are written there would be lost.

use std::ffi::{CStr, c_void};

use maypole::DataType;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::Kind;

#[repr(C)]
#[derive(Clone, Copy)]
struct Device {
    kind: i32,
    number: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Element {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: Device,
    dimensions: i32,
    element: Element,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

#[repr(C)]
struct Versioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Versioned)>,
    flags: u64,
    tensor: Tensor,
}

const VERSIONED: &CStr = c"dltensor_versioned";
const UNVERSIONED: &CStr = c"dltensor";

/// Flags of a versioned tensor: it must not be written; it is a copy of the object's memory; its
/// elements of less than eight bits have a byte each, and are not packed.
const READ_ONLY: u64 = 1;
const COPIED: u64 = 2;
const PADDED: u64 = 4;

/// Memory of the host, or host memory that a GPU can reach as well: CPU, CUDA's and ROCm's pinned memory, CUDA's
/// managed.
const HOST: [i32; 4] = [1, 3, 11, MANAGED];
const CUDA: i32 = 2;
const MANAGED: i32 = 13;
/// The type code of handles.
const HANDLE: u8 = 3;

/// A tensor that somebody lends.
pub struct Lent {
    /// Keeps it: its destructor gives the tensor back, since nobody renames it.
    pub capsule: Py<PyAny>,
    /// Its first byte.
    pub address: *mut u8,
    /// How many elements it has.
    pub count: usize,
    /// What they are.
    pub kind: Kind,
    /// The CUDA device in whose memory it lies; `None`: host memory.
    pub device: Option<usize>,
    pub read_only: bool,
    pub contiguous: bool,
}

/// What the object lends by DLPack; `None` if it does not speak it. `stream`: the CUDA stream on which it is to be
/// used.
///
/// # Errors
/// The object's exception, or text that says what is not supported.
pub fn borrow(object: &Bound<'_, PyAny>, stream: Option<usize>) -> PyResult<Option<Result<Lent, String>>> {
    let py = object.py();
    let Some(lend) = object.getattr_opt(intern!(py, "__dlpack__"))? else { return Ok(None) };
    let keywords = PyDict::new(py);
    if let Some(stream) = stream
        && has_streams(object)?
    {
        // CUDA's legacy default stream is 0 there and 1 here.
        keywords.set_item(intern!(py, "stream"), stream.max(1))?;
    }
    keywords.set_item(intern!(py, "max_version"), (1, 1))?;
    keywords.set_item(intern!(py, "copy"), false)?;
    let mut answer = lend.call((), Some(&keywords));
    // Who raises a TypeError may be from before there was such an argument.
    for newer in [intern!(py, "copy"), intern!(py, "max_version")] {
        if !answer.as_ref().is_err_and(|error| error.is_instance_of::<PyTypeError>(py)) {
            break;
        }
        keywords.del_item(newer)?;
        answer = lend.call((), Some(&keywords));
    }
    answer.map(|capsule| Some(lent(&capsule)))
}

/// Whether the object's memory is used in the order of CUDA's streams: then it wants to know on
/// which one, and is made ready there. Other producers refuse the argument.
fn has_streams(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let Some(place) = object.getattr_opt(intern!(object.py(), "__dlpack_device__"))? else { return Ok(true) };
    let (kind, _number) = place.call0()?.extract::<(i32, Bound<'_, PyAny>)>()?;
    Ok(kind == CUDA || kind == MANAGED)
}

/// What a capsule holds.
///
/// # Errors
/// What is not supported, to be put behind the argument's name.
fn lent(capsule: &Bound<'_, PyAny>) -> Result<Lent, String> {
    let (tensor, flags) = match (pointer(capsule, VERSIONED), pointer(capsule, UNVERSIONED)) {
        (Some(at), _) => {
            let versioned = at.cast::<Versioned>();
            // SAFETY: a capsule of this name holds such a structure, and this thread is attached.
            let (major, flags) = unsafe { ((*versioned).major, (*versioned).flags) };
            if major != 1 {
                return Err(format!("speaks version {major} of DLPack, which is not known here"));
            }
            // SAFETY: as above.
            (unsafe { &raw const (*versioned).tensor }, flags)
        }
        // SAFETY: as above.
        (None, Some(at)) => (unsafe { &raw const (*at.cast::<Managed>()).tensor }, 0),
        (None, None) => return Err("gave something that is no DLPack capsule".into()),
    };
    if flags & COPIED != 0 {
        return Err("lends a copy of its memory, where what is written would be lost".into());
    }
    // SAFETY: it lives as long as the capsule.
    let tensor = unsafe { &*tensor };
    let device = match tensor.device.kind {
        kind if HOST.contains(&kind) => None,
        CUDA => Some(tensor.device.number as usize),
        kind => {
            return Err(format!("lies on a device of DLPack type {kind}; host memory and CUDA are supported"));
        }
    };
    let (kind, lanes) = kind(tensor.element, flags & PADDED != 0)?;
    let (shape, strides) = layout(tensor).ok_or("has dimensions, but no shape")?;
    let count = match shape.contains(&0) {
        true => Some(0),
        false => shape.iter().try_fold(lanes, |count, length| usize::try_from(*length).ok()?.checked_mul(count)),
    };
    let count = count.filter(|count| count.checked_mul(kind.size()).is_some());
    Ok(Lent {
        address: tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize),
        count: count.ok_or("has a shape that no memory holds")?,
        kind,
        device,
        read_only: flags & READ_ONLY != 0,
        contiguous: strides.is_none_or(|strides| is_contiguous(shape, strides)),
        capsule: capsule.clone().unbind(),
    })
}

fn pointer(capsule: &Bound<'_, PyAny>, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the object is alive and this thread attached; the first call says whether the second may be made.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule.as_ptr(), name.as_ptr()) == 0 {
            return None;
        }
        Some(ffi::PyCapsule_GetPointer(capsule.as_ptr(), name.as_ptr()))
    }
}

/// Shape and strides, in elements. `None` if there is no shape where there should be one.
fn layout(tensor: &Tensor) -> Option<(&[i64], Option<&[i64]>)> {
    let dimensions = tensor.dimensions.max(0) as usize;
    if dimensions == 0 {
        return Some((&[], None));
    }
    if tensor.shape.is_null() {
        return None;
    }
    // SAFETY: as many numbers as there are dimensions, which live as long as the tensor; strides may be NULL.
    unsafe {
        let shape = std::slice::from_raw_parts(tensor.shape, dimensions);
        let strides = (!tensor.strides.is_null()).then(|| std::slice::from_raw_parts(tensor.strides, dimensions));
        Some((shape, strides))
    }
}

fn is_contiguous(shape: &[i64], strides: &[i64]) -> bool {
    let mut expected = 1i64;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().all(|(length, stride)| {
            let fine = *length == 1 || *stride == expected;
            expected = expected.wrapping_mul(*length);
            fine
        })
}

/// What the elements are, and how many of these one of the tensor's elements has. `padded`: see
/// [`PADDED`].
///
/// # Errors
/// What is wrong with them.
fn kind(element: Element, padded: bool) -> Result<(Kind, usize), String> {
    let Element { code, bits, lanes } = element;
    let own = |dtype: &DataType| (dtype.row().dlpack, 8 * dtype.size()) == (code, bits.into());
    let known = match (code, bits) {
        (5, 64) => Kind::Complex(DataType::F32),
        (5, 128) => Kind::Complex(DataType::F64),
        (6, 8) => Kind::Bool,
        _ => match DataType::ALL.into_iter().find(own) {
            Some(dtype) => Kind::Number(dtype),
            None => return only_moved(element, padded).map(|kind| (kind, 1)),
        },
    };
    match lanes {
        0 => Err("has elements without lanes".into()),
        lanes => Ok((known, lanes.into())),
    }
}

/// Elements of a type that reductions do not know, all lanes of one together: those of less than
/// eight bits lie side by side in one byte.
fn only_moved(element: Element, padded: bool) -> Result<Kind, String> {
    let Element { code, bits, lanes } = element;
    let mut what = format!("DLPack type {code} of {bits} bits");
    if lanes != 1 {
        what.push_str(&format!(" x {lanes}"));
    }
    if code == HANDLE {
        return Err(format!("has elements that are handles ({what}), which mean nothing to other ranks"));
    }
    let each = usize::from(if padded { bits.next_multiple_of(8) } else { bits }) * usize::from(lanes);
    match each > 0 && each.is_multiple_of(8) {
        true => Ok(Kind::Other(each / 8, what)),
        false => Err(format!("has elements that are no whole number of bytes ({what}); pass a view of its bytes")),
    }
}

/// Where memory lies, as DLPack says it: kind and number of the device. `None`: host memory.
pub fn place(device: Option<usize>) -> (i32, i32) {
    device.map_or((HOST[0], 0), |device| (CUDA, device as i32))
}

/// Refuse what whoever borrows memory on `device` may ask for in `options` and does not get: a
/// copy, or the same on another device.
///
/// # Errors
/// A BufferError, as the protocol has it.
pub fn refuse(options: Option<&Bound<'_, PyDict>>, device: Option<usize>) -> PyResult<()> {
    let asked = |name: &str| match options.map(|options| options.get_item(name)).transpose()?.flatten() {
        Some(value) if !value.is_none() => PyResult::Ok(Some(value)),
        _ => Ok(None),
    };
    if let Some(copy) = asked("copy")?
        && copy.is_truthy()?
    {
        return Err(PyBufferError::new_err("Maypole's memory is lent where it lies; copy what you get"));
    }
    if let Some(wanted) = asked("dl_device")?
        && wanted.extract::<(i32, i32)>()? != place(device)
    {
        return Err(PyBufferError::new_err("Maypole's memory is lent where it lies, on no other device"));
    }
    Ok(())
}

/// Memory lent to others: a capsule of `count` elements of `dtype` at `address` on `device`, which keeps `owner`.
pub fn lend(
    py: Python<'_>,
    owner: Py<PyAny>,
    (address, device): (*mut u8, Option<usize>),
    count: usize,
    dtype: DataType,
) -> PyResult<Py<PyAny>> {
    let code = dtype.row().dlpack;
    let bits = 8 * dtype.size() as u8;
    let shape = Box::into_raw(Box::new([count as i64, 1]));
    let (on, number) = place(device);
    let managed = Box::into_raw(Box::new(Managed {
        tensor: Tensor {
            data: address.cast(),
            device: Device { kind: on, number },
            dimensions: 1,
            element: Element { code, bits, lanes: 1 },
            shape: shape.cast(),
            // SAFETY: the second of the two numbers.
            strides: unsafe { shape.cast::<i64>().add(1) },
            byte_offset: 0,
        },
        context: owner.into_ptr().cast(),
        deleter: Some(give_back),
    }));
    // SAFETY: this thread is attached; the name is static. The result is a new reference, or NULL with an exception.
    unsafe {
        let capsule = ffi::PyCapsule_New(managed.cast(), UNVERSIONED.as_ptr(), Some(forgotten));
        if capsule.is_null() {
            give_back(managed);
        }
        Bound::from_owned_ptr_or_err(py, capsule).map(Bound::unbind)
    }
}

/// # Safety
/// `managed` was made by [`lend`], and is given back once.
unsafe extern "C" fn give_back(managed: *mut Managed) {
    // SAFETY: made from boxes in `lend`.
    let (managed, owner) = unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.tensor.shape.cast::<[i64; 2]>()));
        let owner = managed.context.cast::<ffi::PyObject>();
        (managed, owner)
    };
    drop(managed);
    // SAFETY: the reference that `lend` was given; any thread may call this, so it attaches.
    Python::try_attach(|py| unsafe { drop(Bound::<PyAny>::from_owned_ptr(py, owner)) });
}

/// The capsule goes. If nobody took the tensor out of it, which renames it, the tensor goes too.
///
/// # Safety
/// Called by Python for a capsule that [`lend`] made.
unsafe extern "C" fn forgotten(capsule: *mut ffi::PyObject) {
    // SAFETY: Python's promise; a capsule of this name still holds what `lend` put there.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, UNVERSIONED.as_ptr()) != 0 {
            give_back(ffi::PyCapsule_GetPointer(capsule, UNVERSIONED.as_ptr()).cast());
        }
    }
}
