//! Host memory that devices can reach: pinned, or made known to the driver where it lies.

use std::any::Any;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use parking_lot::Mutex;

use super::capture::Relaxed;
use super::{Context, CudaError, Failed, Functions, Result, code};

/// Reachable from every context of the process, and mapped into the devices' addresses.
const PORTABLE_AND_MAPPED: u32 = 1 | 2;

/// Host memory of the driver's, page-locked and zeroed; given back on drop. Streams copy to and from it without the
/// driver's help, and kernels read and write it directly.
pub struct Pinned {
    at: NonNull<u8>,
    bytes: usize,
    device: u64,
    context: Arc<Context>,
}

// SAFETY: the memory is this value's own; those who share it with streams and other threads do so through addresses,
// and answer for that.
unsafe impl Send for Pinned {}
// SAFETY: as above: no method gives a reference to the content.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `bytes` bytes, at a page's beginning.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`]; the driver's.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Pinned> {
        let (_relaxed, _entered) = (Relaxed::new(context.driver()), context.enter()?);
        let mut at = null_mut();
        // SAFETY: a context is current, and the pointer valid.
        match unsafe { context.driver().cuMemHostAlloc(&mut at, bytes.max(1), PORTABLE_AND_MAPPED) } {
            Err(Failed { code: code::OUT_OF_MEMORY, .. }) => {
                return Err(CudaError::OutOfMemory { what: "pinned host", bytes: bytes as u64, free: 0, total: 0 });
            }
            other => other?,
        }
        let at = NonNull::new(at.cast::<u8>()).expect("the driver allocates at an address");
        let mut pinned = Pinned { at, bytes, device: 0, context: context.clone() };
        // SAFETY: `bytes` bytes have just been allocated there, and nobody else knows them.
        unsafe { at.write_bytes(0, bytes) };
        pinned.device = device_address(context.driver(), at.as_ptr())?;
        Ok(pinned)
    }

    /// Where the host sees it.
    pub fn as_ptr(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// Where the device of its context sees it.
    pub fn address(&self) -> u64 {
        self.device
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The context in which it was allocated.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _relaxed = Relaxed::new(self.context.driver());
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: allocated in `new`, and freed only here; whoever queued work that uses it has waited for that.
            let _ = unsafe { self.context.driver().cuMemFreeHost(self.at.as_ptr().cast()) };
        }
    }
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pinned({:p}, {} bytes)", self.at, self.bytes)
    }
}

/// With a context current.
fn device_address(driver: &Functions, at: *mut u8) -> Result<u64> {
    let mut address = 0;
    // SAFETY: the pointers are valid, and `at` lies in memory that the driver knows.
    unsafe { driver.cuMemHostGetDevicePointer(&mut address, at.cast(), 0) }?;
    Ok(address)
}

/// Host memory that stays where it is as long as this or a clone of it lives: memory that ranks share, usually.
#[derive(Clone)]
pub struct HostRegion {
    at: NonNull<u8>,
    bytes: usize,
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: an address and a length; those who use the memory answer for that.
unsafe impl Send for HostRegion {}
// SAFETY: as above.
unsafe impl Sync for HostRegion {}

impl HostRegion {
    /// `bytes` bytes at `at`, which `keep` keeps.
    ///
    /// # Safety
    /// As long as `keep` (or a clone of it) lives, the bytes are mapped, readable and writable, and no reference to
    /// them exists except to atomics.
    pub unsafe fn new(at: NonNull<u8>, bytes: usize, keep: Arc<dyn Any + Send + Sync>) -> HostRegion {
        HostRegion { at, bytes, _keep: keep }
    }

    /// Zeroed memory of this process, for ranks that are its threads. It begins at a page.
    ///
    /// # Panics
    /// Where the system has no memory.
    pub fn private(bytes: usize) -> HostRegion {
        let pages = Arc::new(Pages::zeroed(bytes));
        HostRegion { at: pages.0, bytes, _keep: pages }
    }

    /// Where it begins.
    pub fn as_ptr(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl std::fmt::Debug for HostRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostRegion({:p}, {} bytes)", self.at, self.bytes)
    }
}

/// A multiple of the page size of every machine that has a driver: pages are of 4, 16 or 64 KiB.
pub(crate) const PAGE: usize = 64 << 10;

/// Whole pages, since that is what can be registered.
struct Pages(NonNull<u8>, std::alloc::Layout);

// SAFETY: the allocation is this value's own until it is dropped.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    fn zeroed(bytes: usize) -> Pages {
        // The driver pins whole pages: what is another's must not lie in one of them.
        let layout = std::alloc::Layout::from_size_align(bytes.max(1).next_multiple_of(PAGE), PAGE)
            .expect("a length that fits into memory");
        // SAFETY: the layout is not empty.
        let at = unsafe { std::alloc::alloc_zeroed(layout) };
        Pages(NonNull::new(at).unwrap_or_else(|| std::alloc::handle_alloc_error(layout)), layout)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { std::alloc::dealloc(self.0.as_ptr(), self.1) }
    }
}

/// What is registered, by the address at which it begins.
static REGISTERED: Mutex<Option<HashMap<usize, Registered>>> = Mutex::new(None);

struct Registered {
    holders: usize,
    bytes: usize,
    /// In which it was registered. Kept: a registration ends with its context, for those with other contexts too.
    context: Arc<Context>,
}

/// Host memory that the devices of this process can reach, and streams wait for, until the last registration of it is
/// dropped. The driver registers a page once; ranks that are threads of one process each register the memory they
/// share, so the registrations are counted here.
pub struct HostRegistration {
    region: HostRegion,
    device: u64,
    context: Arc<Context>,
}

impl HostRegistration {
    /// Registers the region, which begins at a page's beginning.
    ///
    /// # Errors
    /// [`CudaError::RegistrationRefused`]: where the system does not let the driver have the pages, or part of them is
    /// registered already under another address.
    pub fn new(context: &Arc<Context>, region: &HostRegion) -> Result<HostRegistration> {
        let _entered = context.enter()?;
        let (driver, key) = (context.driver(), region.as_ptr() as usize);
        {
            let mut all = REGISTERED.lock();
            let all = all.get_or_insert_default();
            match all.get_mut(&key) {
                Some(known) if known.bytes >= region.bytes => known.holders += 1,
                _ => {
                    let at: *mut c_void = region.as_ptr().cast();
                    let _relaxed = Relaxed::new(driver);
                    // SAFETY: the region is mapped as long as `region` lives, of which the result has a clone.
                    let registered = unsafe { driver.cuMemHostRegister(at, region.bytes, PORTABLE_AND_MAPPED) };
                    registered.map_err(CudaError::of_registration)?;
                    all.insert(key, Registered { holders: 1, bytes: region.bytes, context: context.clone() });
                }
            }
        }
        let mut registration = HostRegistration { region: region.clone(), device: 0, context: context.clone() };
        registration.device = device_address(driver, region.as_ptr())?;
        Ok(registration)
    }

    /// Where the host sees it.
    pub fn region(&self) -> &HostRegion {
        &self.region
    }

    /// Where the device of the context sees its first byte.
    pub fn address(&self) -> u64 {
        self.device
    }

    /// The context with which it was registered.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for HostRegistration {
    fn drop(&mut self) {
        let mut all = REGISTERED.lock();
        let all = all.get_or_insert_default();
        let key = self.region.as_ptr() as usize;
        let Some(known) = all.get_mut(&key) else { return };
        known.holders -= 1;
        if known.holders > 0 {
            return;
        }
        let Some(Registered { context, .. }) = all.remove(&key) else { return };
        let ended = context.enter().and_then(|_entered| {
            let _relaxed = Relaxed::new(context.driver());
            // SAFETY: registered in `new`, and nobody else holds it. Whoever queued work that uses it has waited for
            // that.
            Ok(unsafe { context.driver().cuMemHostUnregister(self.region.as_ptr().cast()) }?)
        });
        if ended.is_err() {
            // The driver may still hold these pages: nothing else may come to lie at their address, where it could not
            // be registered. So the memory stays for good.
            std::mem::forget(self.region.clone());
        }
    }
}

impl std::fmt::Debug for HostRegistration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostRegistration({:?}, {:#x} on device {})", self.region, self.device, self.context.ordinal())
    }
}
