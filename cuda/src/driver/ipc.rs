//! Device memory of other processes.
//!
//! The exporter's memory is mapped into the importer's addresses. The driver wants every mapping closed before the
//! exporter frees the memory; [`crate::peer`] sees to that among ranks.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::sys::CUipcMemHandle;
use parking_lot::Mutex;

use super::capture::Relaxed;
use super::{Context, CudaError, DeviceMemory, Result};

/// The importer's device may reach the exporter's from the first access on. Without this the driver refuses.
const LAZY_ENABLE_PEER_ACCESS: u32 = 1;

/// Names a piece of device memory to the other processes of this host. 64 bytes to pass on as they are; whoever has
/// them can read and write the memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpcHandle(pub [u8; 64]);

impl IpcHandle {
    pub(super) fn of(memory: &DeviceMemory) -> Result<IpcHandle> {
        let context = memory.context();
        let _entered = context.enter()?;
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: the address begins an allocation that `memory` keeps, and the pointer is valid.
        let exported = unsafe { context.driver().cuIpcGetMemHandle(&mut handle, memory.address()) };
        exported.map_err(CudaError::of_ipc)?;
        Ok(IpcHandle(handle.reserved.map(|b| b as u8)))
    }
}

impl std::fmt::Debug for IpcHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not its bytes: they are the key to the memory.
        f.write_str("IpcHandle")
    }
}

/// Where memory is mapped, and how often it was opened.
struct Mapping {
    address: u64,
    opened: usize,
}

/// What is open, by context and handle. The driver maps memory once per context.
static OPEN: Mutex<Option<HashMap<(usize, IpcHandle), Mapping>>> = Mutex::new(None);

/// Another process's device memory, mapped as long as this lives. Opened twice, it is mapped once.
pub struct ImportedMemory {
    address: u64,
    handle: IpcHandle,
    context: Arc<Context>,
}

impl ImportedMemory {
    /// Maps the memory that `handle` names, on whatever device it lies, for the device of `context`.
    ///
    /// # Errors
    /// [`CudaError::IpcRefused`]: the exporter is gone, or is this process, or the system keeps the two apart.
    pub fn open(context: &Arc<Context>, handle: IpcHandle) -> Result<ImportedMemory> {
        let _entered = context.enter()?;
        let mut all = OPEN.lock();
        let all = all.get_or_insert_default();
        let key = (context.raw() as usize, handle);
        let address = match all.get_mut(&key) {
            Some(mapping) => {
                mapping.opened += 1;
                mapping.address
            }
            None => {
                let raw = CUipcMemHandle { reserved: handle.0.map(|b| b as _) };
                let mut address = 0;
                let _relaxed = Relaxed::new(context.driver());
                // SAFETY: a context is current, and the pointer valid. The driver checks what the handle names.
                let opened = unsafe { context.driver().cuIpcOpenMemHandle(&mut address, raw, LAZY_ENABLE_PEER_ACCESS) };
                opened.map_err(CudaError::of_ipc)?;
                all.insert(key, Mapping { address, opened: 1 });
                address
            }
        };
        Ok(ImportedMemory { address, handle, context: context.clone() })
    }

    /// Where it begins, in the addresses of this process.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for ImportedMemory {
    fn drop(&mut self) {
        // Closed while the table is locked: whoever opens the same memory at this moment finds it open, or closed.
        let mut all = OPEN.lock();
        let all = all.get_or_insert_default();
        let key = (self.context.raw() as usize, self.handle);
        if let Some(mapping) = all.get_mut(&key) {
            mapping.opened -= 1;
            if mapping.opened == 0 {
                all.remove(&key);
                if let Ok(_entered) = self.context.enter() {
                    let _relaxed = Relaxed::new(self.context.driver());
                    // SAFETY: opened in `open`, and nobody else holds it. Whoever queued work that uses it has waited
                    // for that.
                    let _ = unsafe { self.context.driver().cuIpcCloseMemHandle(self.address) };
                }
            }
        }
    }
}

impl std::fmt::Debug for ImportedMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImportedMemory({:#x} on device {})", self.address, self.context.ordinal())
    }
}
