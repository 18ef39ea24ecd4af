//! What the driver says of a device, of what matters here.

use std::ffi::c_int;
use std::fmt;

use libloading::Library;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Numbers of `CUdevice_attribute`, as cuda.h has them.
const ATTRIBUTES: [(c_int, &str); 10] = [
    (122, "stream memory operations, second version"),
    (123, "waits until a NOR is not 0"),
    (98, "waits can flush remote writes"),
    (91, "host pointers of registered memory are the device's"),
    (20, "compute mode (0 shared, 2 prohibited, 3 one process)"),
    (78, "streams have priorities"),
    (16, "multiprocessors"),
    (38, "bytes of the second-level cache"),
    (40, "copy engines"),
    (115, "memory pools"),
];

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// Its number in cuda.h.
    pub number: i32,
    /// What it tells.
    pub name: String,
    /// Its value; null where the driver has none.
    pub value: Option<i32>,
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.map_or("not known".to_string(), |value| value.to_string());
        write!(f, "{:<56} {value}", self.name)
    }
}

/// Of device `ordinal`. The driver is loaded and initialised already.
///
/// # Errors
/// [`Error::System`] if it lacks the functions that tell.
pub fn of(ordinal: usize) -> Result<Vec<Attribute>> {
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Tell = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    let failed = |e: libloading::Error| Error::system("asking the driver for a device's attributes", e);
    // SAFETY: it has been loaded, so this names what is there.
    let driver = unsafe { Library::new("libcuda.so.1") }.map_err(failed)?;
    // SAFETY: the types are those of cuda.h.
    let (get, tell) = unsafe {
        let get = driver.get::<Get>(b"cuDeviceGet\0").map_err(failed)?;
        (get, driver.get::<Tell>(b"cuDeviceGetAttribute\0").map_err(failed)?)
    };
    let mut device = 0;
    // SAFETY: the pointer is valid.
    if unsafe { get(&mut device, ordinal as c_int) } != 0 {
        return Err(Error::system("asking the driver for a device", format!("there is no {ordinal}")));
    }
    let ask = |(number, name): (c_int, &str)| {
        let mut value = 0;
        // SAFETY: the pointer is valid, and the device the driver's own.
        let known = unsafe { tell(&mut value, number, device) } == 0;
        Attribute { number, name: name.into(), value: known.then_some(value) }
    };
    Ok(ATTRIBUTES.map(ask).to_vec())
}
