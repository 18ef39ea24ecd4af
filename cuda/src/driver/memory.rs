//! Device memory.

use std::ffi::c_void;
use std::sync::Arc;

use super::capture::Relaxed;
use super::{Context, CudaError, Failed, IpcHandle, Result, Stream, code};

/// Memory that other processes are to map is shared in units of the device's large pages. Whole units keep whatever
/// else this process has allocated out of the others' reach.
const SHARED_UNIT: usize = 2 << 20;

/// A piece of a device's memory, given back on drop.
///
/// Giving back may wait for everything on the device (`cuMemFree` does), so a rank does it only when none of its own
/// operations, nor any of a rank that is a thread of the same process, is queued that waits for this thread.
pub struct DeviceMemory {
    address: u64,
    bytes: usize,
    context: Arc<Context>,
}

impl DeviceMemory {
    /// `bytes` bytes, of undefined content, at a multiple of 256. 0 bytes are allowed.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`]; the driver's.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<DeviceMemory> {
        let (_relaxed, _entered) = (Relaxed::new(context.driver()), context.enter()?);
        let mut address = 0;
        // SAFETY: a context is current, and the pointer valid. The driver refuses to allocate nothing.
        match unsafe { context.driver().cuMemAlloc(&mut address, bytes.max(1)) } {
            Ok(()) => Ok(DeviceMemory { address, bytes, context: context.clone() }),
            Err(failed) => Err(refused(context, bytes, failed)),
        }
    }

    /// As [`new`](DeviceMemory::new), for work that is put on `stream` after this, or ordered after that: it waits for
    /// nothing, where `new` may wait for everything on the device. From the device's memory pool, so it cannot be
    /// exported. `None` where the device has no pools.
    ///
    /// # Errors
    /// As [`new`](DeviceMemory::new).
    pub fn in_order(context: &Arc<Context>, bytes: usize, stream: &Stream) -> Result<Option<DeviceMemory>> {
        let (_relaxed, _entered) = (Relaxed::new(context.driver()), context.enter()?);
        let mut address = 0;
        // SAFETY: the stream is alive, its context current, and the pointer valid.
        match unsafe { context.driver().cuMemAllocAsync(&mut address, bytes.max(1), stream.handle()) } {
            Ok(()) => Ok(Some(DeviceMemory { address, bytes, context: context.clone() })),
            Err(Failed { code: code::NOT_SUPPORTED, .. }) => Ok(None),
            Err(failed) => Err(refused(context, bytes, failed)),
        }
    }

    /// As [`new`](DeviceMemory::new), for memory that is to be [exported](DeviceMemory::export): it shares no page with
    /// another allocation, so others see this memory only.
    ///
    /// # Errors
    /// As [`new`](DeviceMemory::new).
    pub fn exportable(context: &Arc<Context>, bytes: usize) -> Result<DeviceMemory> {
        let mut memory = DeviceMemory::new(context, bytes.max(1).next_multiple_of(SHARED_UNIT))?;
        memory.bytes = bytes;
        Ok(memory)
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The context in which it was allocated.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// What another process [opens](super::ImportedMemory::open) to map this memory. The memory must not be dropped
    /// before they have closed it.
    ///
    /// # Errors
    /// [`CudaError::IpcRefused`].
    pub fn export(&self) -> Result<IpcHandle> {
        IpcHandle::of(self)
    }

    /// The address of the range, which must lie inside.
    fn range(&self, offset: usize, bytes: usize) -> Result<u64> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(self.address + offset as u64),
            _ => Err(CudaError::OutOfBounds {
                address: self.address.wrapping_add(offset as u64),
                bytes: bytes as u64,
                base: self.address,
                allocated: self.bytes as u64,
            }),
        }
    }

    /// Copies `data` to `offset`, and blocks until it is there. Not ordered with anything on a stream: the caller has
    /// waited for what still uses the range.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`]; the driver's.
    pub fn copy_from_host(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.on_service(self.range(offset, data.len())?, data.len(), |at, stream| {
            // SAFETY: the range was checked, and `data` stays until the stream has been waited for.
            unsafe { self.context.driver().cuMemcpyHtoDAsync(at, data.as_ptr().cast(), data.len(), stream) }
        })
    }

    /// Copies from `offset` into `data`, and blocks until it is there. Not ordered with anything on a stream.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`]; the driver's.
    pub fn copy_to_host(&self, offset: usize, data: &mut [u8]) -> Result<()> {
        self.on_service(self.range(offset, data.len())?, data.len(), |at, stream| {
            // SAFETY: the range was checked, and `data` stays until the stream has been waited for.
            unsafe { self.context.driver().cuMemcpyDtoHAsync(data.as_mut_ptr().cast(), at, data.len(), stream) }
        })
    }

    /// Sets `bytes` bytes from `offset` to `value`, and blocks until they are. Not ordered with anything on a stream.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`]; the driver's.
    pub fn fill(&self, offset: usize, bytes: usize, value: u8) -> Result<()> {
        self.on_service(self.range(offset, bytes)?, bytes, |at, stream| {
            // SAFETY: the range was checked.
            unsafe { self.context.driver().cuMemsetD8Async(at, value, bytes, stream) }
        })
    }

    fn on_service(
        &self,
        at: u64,
        bytes: usize,
        call: impl FnOnce(u64, cudarc::driver::sys::CUstream) -> std::result::Result<(), Failed>,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _entered = self.context.enter()?;
        let stream = self.context.service()?;
        call(at, stream)?;
        // SAFETY: the service stream lives as long as the context. Nothing that waits is ever put on it.
        Ok(unsafe { self.context.driver().cuStreamSynchronize(stream) }?)
    }

    /// Queues a copy of `bytes` bytes at `data` to `offset`.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`]; the driver's.
    ///
    /// # Safety
    /// `data` points to `bytes` bytes that are not written, nor freed, before the stream has got past the copy; nor is
    /// this memory.
    pub unsafe fn queue_from_host(&self, offset: usize, data: *const u8, bytes: usize, stream: &Stream) -> Result<()> {
        let (at, _entered) = (self.range(offset, bytes)?, self.context.enter()?);
        if bytes == 0 {
            return Ok(());
        }
        let data: *const c_void = data.cast();
        // SAFETY: the range was checked, and the caller keeps both sides.
        Ok(unsafe { self.context.driver().cuMemcpyHtoDAsync(at, data, bytes, stream.handle()) }?)
    }

    /// Queues a copy of `bytes` bytes from `offset` to `data`.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`]; the driver's.
    ///
    /// # Safety
    /// `data` points to `bytes` bytes that nobody else touches, nor frees, before the stream has got past the copy; nor
    /// is this memory freed.
    pub unsafe fn queue_to_host(&self, offset: usize, data: *mut u8, bytes: usize, stream: &Stream) -> Result<()> {
        let (at, _entered) = (self.range(offset, bytes)?, self.context.enter()?);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range was checked, and the caller keeps both sides.
        Ok(unsafe { self.context.driver().cuMemcpyDtoHAsync(data.cast(), at, bytes, stream.handle()) }?)
    }

    /// Queues a copy of `bytes` bytes of `from`, at `from_offset`, to `offset`, by the driver's own copy (`cuMemcpy`).
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`]; the driver's.
    ///
    /// # Safety
    /// Neither is freed before the stream has got past the copy.
    pub unsafe fn queue_copy(
        &self,
        offset: usize,
        from: &DeviceMemory,
        from_offset: usize,
        bytes: usize,
        stream: &Stream,
    ) -> Result<()> {
        let (to, from) = (self.range(offset, bytes)?, from.range(from_offset, bytes)?);
        let _entered = self.context.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the ranges were checked, and the caller keeps both.
        Ok(unsafe { self.context.driver().cuMemcpyDtoDAsync(to, from, bytes, stream.handle()) }?)
    }

    /// Queues setting `bytes` bytes from `offset` to `value`.
    ///
    /// # Errors
    /// [`CudaError::OutOfBounds`]; the driver's.
    ///
    /// # Safety
    /// This is not freed before the stream has got past it.
    pub unsafe fn queue_fill(&self, offset: usize, bytes: usize, value: u8, stream: &Stream) -> Result<()> {
        let (at, _entered) = (self.range(offset, bytes)?, self.context.enter()?);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range was checked, and the caller keeps the memory.
        Ok(unsafe { self.context.driver().cuMemsetD8Async(at, value, bytes, stream.handle()) }?)
    }
}

/// Why there is no memory.
fn refused(context: &Context, bytes: usize, failed: Failed) -> CudaError {
    if failed.code != code::OUT_OF_MEMORY {
        return failed.into();
    }
    let (free, total) = context.memory().unwrap_or_default();
    CudaError::OutOfMemory { what: "device", bytes: bytes as u64, free, total }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _relaxed = Relaxed::new(self.context.driver());
        let freed = self.context.enter().and_then(|_entered| {
            // SAFETY: allocated in `new`, and freed only here. Queued work that still uses it was excluded by whoever
            // queued it.
            Ok(unsafe { self.context.driver().cuMemFree(self.address) }?)
        });
        // At the end of the process the driver may be gone already, and its memory with it.
        if let Err(error) = freed
            && error.code() != Some(code::DEINITIALIZED)
        {
            tracing::warn!(%error, bytes = self.bytes, "device memory was not given back");
        }
    }
}

impl std::fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceMemory({:#x}, {} bytes on device {})", self.address, self.bytes, self.context.ordinal())
    }
}
