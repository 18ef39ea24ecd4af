//! Registered memory: buffers that the ranks of a host read where they lie.

use std::collections::BTreeMap;
use std::ffi::c_void;

use maypole::Registered;
use maypole_transports::lock::Mutex;

use crate::communicator::{comm_of, maypole_comm};
use crate::entry::{check_out, enter, give};
use crate::status::*;

/// By address.
static REGISTERED: Mutex<BTreeMap<usize, Registered<u8>>> = Mutex::new(BTreeMap::new());

/// Memory of `bytes` bytes, zero at first, that the other ranks of this host can read where it lies: operations on large
/// blocks in it copy less. Used like any other memory, by this rank alone; where ranks share no memory it is ordinary
/// memory. Every rank of the communicator must call it; lengths may differ, 0 too. Blocks until all have.
///
/// @param comm the communicator.
/// @param bytes how many.
/// @param memory gets the address, aligned to 64 bytes, to be given to maypole_free(). It may outlive the communicator.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_alloc(comm: maypole_comm, bytes: usize, memory: *mut *mut c_void) -> maypole_status {
    enter("maypole_alloc", || {
        check_out("memory", memory)?;
        // At least one, so that each has an address of its own.
        let mut registered = comm_of(comm)?.alloc::<u8>(bytes.max(1))?;
        let at = registered.as_mut_ptr();
        REGISTERED.lock().insert(at.addr(), registered);
        // SAFETY: the caller's promise.
        unsafe { give("memory", memory, at.cast()) }
    })
}

/// Give back what maypole_alloc() gave. This rank's affair alone. No operation may be using it.
///
/// @return MAYPOLE_ERROR_ARGUMENT if the address is not one that maypole_alloc() gave, or was given back before.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_free(memory: *mut c_void) -> maypole_status {
    enter("maypole_free", || {
        let found = REGISTERED.lock().remove(&memory.addr());
        let unknown = || format!("memory ({memory:p}) was not made by maypole_alloc, or was given back before");
        found.map(drop).ok_or_else(|| Fault::argument(unknown()))
    })
}
