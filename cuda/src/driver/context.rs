//! Contexts: found, never made.
//!
//! A second context on a device costs hundreds of megabytes, cannot use the first one's streams and shares the device
//! with it by time slices. So a [`Context`] is the device's primary one, which runtime-API programs and frameworks use,
//! or the one that the caller has made current or whose stream it passes. The same context is always the same `Arc`.

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::{Arc, OnceLock, Weak};

use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute as Attribute, CUuuid};
use parking_lot::Mutex;

use super::{CudaError, Functions, Result, Stream, code, probe};

/// A CUDA context and the device it belongs to. Keeps the device's primary context alive; a context made by
/// `cuCtxCreate` stays the caller's to keep.
pub struct Context {
    raw: CUcontext,
    device: CUdevice,
    driver: &'static Functions,
    /// Whether this value holds a reference to the device's primary context.
    retained: bool,
    name: String,
    uuid: [u8; 16],
    pci: String,
    capability: (u32, u32),
    multiprocessors: u32,
    memory_operations: bool,
    /// For copies that the caller waits for. Of its own, since the default stream would wait for other streams, and
    /// those perhaps for this rank.
    service: OnceLock<ServiceStream>,
}

/// Whether a device can reach the memory of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It can; a device reaches itself.
    Reached,
    /// It cannot.
    NotReached,
    /// The driver does not say, since this process does not see the other device (`CUDA_VISIBLE_DEVICES`, or a container
    /// without its node). Memory of it that another process shares can often be opened all the same: to try is how to
    /// find out.
    NotSeen,
}

/// A stream without an `Arc` to the context that owns it.
struct ServiceStream(cudarc::driver::sys::CUstream);

// SAFETY: a stream's handle may be used from any thread.
unsafe impl Send for ServiceStream {}
// SAFETY: as above.
unsafe impl Sync for ServiceStream {}

// SAFETY: a context's handle is a name for something of the driver's, whose functions may be called from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The contexts in use, by handle.
static CONTEXTS: Mutex<Option<HashMap<usize, Weak<Context>>>> = Mutex::new(None);

impl Context {
    /// The primary context of device `ordinal`, counted from 0 within what `CUDA_VISIBLE_DEVICES` leaves. It is the
    /// one that PyTorch and every runtime-API program use; if nobody has used the device yet, it comes into being.
    ///
    /// # Errors
    /// Those of [`probe`], [`CudaError::NoSuchDevice`], and whatever the driver says.
    pub fn primary(ordinal: usize) -> Result<Arc<Context>> {
        let driver = probe()?;
        let (driver, count) = (driver.functions(), driver.device_count());
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        let (mut device, mut raw) = (0, null_mut());
        // SAFETY: the ordinal is below the count, and the pointer valid.
        unsafe { driver.cuDeviceGet(&mut device, ordinal as i32) }?;
        // SAFETY: a device of the driver's; the reference is given back in `drop`, or by `find` if it is not needed.
        let retained = unsafe { driver.cuDevicePrimaryCtxRetain(&mut raw, device) };
        retained.map_err(|failed| CudaError::of_device(failed, ordinal))?;
        Context::find(driver, raw, device, true)
    }

    /// The context that is current on this thread.
    ///
    /// # Errors
    /// [`CudaError::NoContext`] where there is none; those of [`probe`].
    pub fn current() -> Result<Arc<Context>> {
        let driver = probe()?.functions();
        let mut raw = null_mut();
        // SAFETY: the pointer is valid.
        unsafe { driver.cuCtxGetCurrent(&mut raw) }?;
        if raw.is_null() {
            return Err(CudaError::NoContext { hint: "; make one current, or use Context::primary(device)" });
        }
        // SAFETY: a context that is current is alive.
        unsafe { Context::of(raw.cast()) }
    }

    /// The context whose default streams are meant, by a caller that works with device `ordinal`, if that is known.
    ///
    /// # Errors
    /// As [`current`](Context::current) and [`primary`](Context::primary); [`CudaError::GreenDefaultStream`].
    pub(super) fn of_default_streams(ordinal: Option<usize>) -> Result<Arc<Context>> {
        // SAFETY: a default stream may be asked about at any time. Without a current context that is an error.
        if let Ok((_, true)) = unsafe { probe()?.functions().stream_context(null_mut()) } {
            return Err(CudaError::GreenDefaultStream);
        }
        match (Context::current(), ordinal) {
            (Ok(current), Some(ordinal)) if current.ordinal() != ordinal => Context::primary(ordinal),
            (Err(CudaError::NoContext { .. }), Some(ordinal)) => Context::primary(ordinal),
            (current, _) => current,
        }
    }

    /// The context with handle `raw` (a `CUcontext`), which another library or the caller has made. For a green context
    /// that is the primary one, to which its memory and modules belong.
    ///
    /// # Errors
    /// Those of [`probe`]; the driver's where it does not know the context.
    ///
    /// # Safety
    /// `raw` is a living context. Unless it is a primary one, which this keeps alive, it stays so until everything made
    /// from the result is gone.
    pub unsafe fn of(raw: *mut c_void) -> Result<Arc<Context>> {
        let driver = probe()?.functions();
        let raw: CUcontext = raw.cast();
        // SAFETY: the caller promises a living context.
        let entered = unsafe { Entered::push(driver, raw) }?;
        let mut device = 0;
        // SAFETY: a context is current, and the pointer valid.
        unsafe { driver.cuCtxGetDevice(&mut device) }?;
        // SAFETY: a context is current, whose default stream this is.
        let (raw, _) = unsafe { driver.stream_context(null_mut()) }?;
        drop(entered);
        let (mut flags, mut active) = (0, 0);
        // SAFETY: the device came from the driver, and the pointers are valid.
        unsafe { driver.cuDevicePrimaryCtxGetState(device, &mut flags, &mut active) }?;
        let mut retained = false;
        // Asking for an inactive primary context would make one.
        if active != 0 {
            let mut primary = null_mut();
            // SAFETY: as above.
            unsafe { driver.cuDevicePrimaryCtxRetain(&mut primary, device) }?;
            retained = primary == raw;
            if !retained {
                // SAFETY: gives back what the call above took.
                unsafe { driver.cuDevicePrimaryCtxRelease(device) }?;
            }
        }
        Context::find(driver, raw, device, retained)
    }

    /// The value for a context; `retained`: the caller has taken a reference to the primary context for it.
    fn find(driver: &'static Functions, raw: CUcontext, device: CUdevice, retained: bool) -> Result<Arc<Context>> {
        let release = || {
            if retained {
                // SAFETY: gives back the caller's reference, once.
                let _ = unsafe { driver.cuDevicePrimaryCtxRelease(device) };
            }
        };
        let mut all = CONTEXTS.lock();
        let all = all.get_or_insert_default();
        if let Some(known) = all.get(&(raw as usize)).and_then(Weak::upgrade) {
            release();
            return Ok(known);
        }
        let context = Arc::new(Context::describe(driver, raw, device, retained).inspect_err(|_| release())?);
        all.retain(|_, context| context.strong_count() > 0);
        all.insert(raw as usize, Arc::downgrade(&context));
        Ok(context)
    }

    fn describe(driver: &'static Functions, raw: CUcontext, device: CUdevice, retained: bool) -> Result<Context> {
        let text = |buffer: &[u8]| {
            CStr::from_bytes_until_nul(buffer).map_or_else(|_| "?".into(), |t| t.to_string_lossy().into_owned())
        };
        let (mut name, mut pci, mut uuid) = ([0u8; 256], [0u8; 64], CUuuid { bytes: [0; 16] });
        // SAFETY: a device of the driver's, and a buffer of the length that is passed.
        unsafe { driver.cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device) }?;
        // SAFETY: as above.
        unsafe { driver.cuDeviceGetPCIBusId(pci.as_mut_ptr().cast(), pci.len() as i32, device) }?;
        // SAFETY: as above.
        unsafe { driver.cuDeviceGetUuid(&mut uuid, device) }?;
        let attribute = |attribute: Attribute| {
            let mut value = 0;
            // SAFETY: a device of the driver's, and a valid pointer.
            unsafe { driver.cuDeviceGetAttribute(&mut value, attribute as u32, device) }.map(|()| value as u32)
        };
        Ok(Context {
            raw,
            device,
            driver,
            retained,
            name: text(&name),
            uuid: uuid.bytes.map(|b| b as u8),
            pci: text(&pci),
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            // The first form of these calls had an attribute of its own (`_V1`), which drivers answer with no unless
            // their module was told otherwise. The second form, used here, has one for its 64-bit operations; devices
            // that have those have all of them.
            memory_operations: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS)? != 0,
            service: OnceLock::new(),
        })
    }

    /// Makes the context current on this thread until the guard is dropped. Where it already is, nothing happens.
    ///
    /// # Errors
    /// The driver's, for a context that was destroyed.
    #[inline]
    pub fn enter(&self) -> Result<Entered<'_>> {
        // SAFETY: the context is alive: retained here, or promised by whoever called `of`.
        unsafe { Entered::push(self.driver, self.raw) }
    }

    /// The driver's functions.
    pub(crate) fn driver(&self) -> &'static Functions {
        self.driver
    }

    /// The handle, a `CUcontext`.
    pub fn raw(&self) -> *mut c_void {
        self.raw.cast()
    }

    /// The device's number in this process, from 0.
    pub fn ordinal(&self) -> usize {
        self.device as usize
    }

    /// The device's name: "NVIDIA H100 80GB HBM3".
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What identifies the device in every process, whatever number it has there.
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Where the device is plugged in: "0000:1b:00.0".
    pub fn pci(&self) -> &str {
        &self.pci
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// How many multiprocessors the device has.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Bytes of the device's memory: free now, and in all.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let _entered = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are valid, and the context is current.
        unsafe { self.driver.cuMemGetInfo(&mut free, &mut total) }?;
        Ok((free as u64, total as u64))
    }

    /// Whether streams can wait for and write words in memory. Where not, [`Commands`](crate::Commands) uses host
    /// functions.
    pub fn supports_memory_operations(&self) -> bool {
        self.memory_operations
    }

    /// Whether this device can reach the memory of the device with that [`uuid`](Context::uuid).
    ///
    /// # Errors
    /// The driver's.
    pub fn reaches(&self, uuid: [u8; 16]) -> Result<Reach> {
        if uuid == self.uuid {
            return Ok(Reach::Reached);
        }
        for ordinal in 0..probe()?.device_count() {
            let (mut device, mut found, mut can) = (0, CUuuid { bytes: [0; 16] }, 0);
            // SAFETY: the ordinal is below the count, and the pointer valid.
            unsafe { self.driver.cuDeviceGet(&mut device, ordinal as i32) }?;
            // SAFETY: a device of the driver's, and a valid pointer.
            unsafe { self.driver.cuDeviceGetUuid(&mut found, device) }?;
            if found.bytes.map(|b| b as u8) == uuid {
                // SAFETY: as above.
                unsafe { self.driver.cuDeviceCanAccessPeer(&mut can, self.device, device) }?;
                return Ok(if can != 0 { Reach::Reached } else { Reach::NotReached });
            }
        }
        Ok(Reach::NotSeen)
    }

    /// Lets kernels of this context use plain addresses of memory of `other`, another context of this process.
    ///
    /// # Errors
    /// [`CudaError::PeerRefused`] where the devices cannot; the driver's.
    pub fn enable_peer(&self, other: &Context) -> Result<()> {
        if self.raw == other.raw {
            return Ok(());
        }
        if self.reaches(other.uuid)? != Reach::Reached {
            return Err(CudaError::PeerRefused { from: self.ordinal(), to: other.ordinal().to_string() });
        }
        let _entered = self.enter()?;
        // SAFETY: both contexts are alive, and this one is current.
        match unsafe { self.driver.cuCtxEnablePeerAccess(other.raw, 0) } {
            Err(failed) if failed.code != code::PEER_ACCESS_ALREADY_ENABLED => Err(failed.into()),
            _ => Ok(()),
        }
    }

    /// The stream for copies that the caller waits for. Its use must be followed by a wait for it.
    pub(super) fn service(&self) -> Result<cudarc::driver::sys::CUstream> {
        if let Some(stream) = self.service.get() {
            return Ok(stream.0);
        }
        let stream = Stream::create(self, super::stream::ORDINARY)?;
        match self.service.set(ServiceStream(stream)) {
            Ok(()) => Ok(stream),
            Err(mine) => {
                // SAFETY: another thread was faster; this one has just been made and nobody else knows it.
                let _ = unsafe { self.driver.cuStreamDestroy(mine.0) };
                self.service()
            }
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let (Some(stream), Ok(_entered)) = (self.service.get(), self.enter()) {
            // SAFETY: made by this context, and nobody uses it any more. Whatever it fails with concerns nobody.
            let _ = unsafe { self.driver.cuStreamDestroy(stream.0) };
        }
        if self.retained {
            // SAFETY: gives back the reference that `find` was handed.
            let _ = unsafe { self.driver.cuDevicePrimaryCtxRelease(self.device) };
        }
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context({:p} on device {}: {})", self.raw, self.device, self.name)
    }
}

/// A context is current on this thread as long as this lives.
pub struct Entered<'a> {
    /// `None`: it was current before.
    pushed: Option<&'static Functions>,
    /// Not to be sent: being current is a matter of the thread.
    _thread: PhantomData<(&'a Context, *const ())>,
}

impl Entered<'_> {
    /// # Safety
    /// `raw` is a living context.
    #[inline]
    unsafe fn push(driver: &'static Functions, raw: CUcontext) -> Result<Self> {
        let mut current = null_mut();
        // SAFETY: the pointer is valid.
        unsafe { driver.cuCtxGetCurrent(&mut current) }?;
        if current == raw {
            return Ok(Entered { pushed: None, _thread: PhantomData });
        }
        // SAFETY: the caller promises a living context.
        unsafe { driver.cuCtxPushCurrent(raw) }?;
        Ok(Entered { pushed: Some(driver), _thread: PhantomData })
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(driver) = self.pushed {
            let mut popped = null_mut();
            // SAFETY: takes off what this guard has pushed: guards of a thread are dropped in reverse order, or their
            // contexts' order does not matter to those who made no promise about it.
            let _ = unsafe { driver.cuCtxPopCurrent(&mut popped) };
        }
    }
}
