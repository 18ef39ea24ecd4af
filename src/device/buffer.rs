//! Device memory of the caller's: a buffer that owns it, and views of it.
//!
//! To Rust it is not memory: nothing here can be dereferenced, and what a stream does with it is ordered by the stream,
//! not by borrows. A call on a stream borrows its buffers only until it has queued its commands; the caller waits for the
//! stream before it uses the result on another one, or frees a buffer.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytemuck::{cast_slice, cast_slice_mut};
use maypole_collectives::Element;
use maypole_cuda::{Context, CudaError, DeviceMemory, Stream};
use maypole_transports::fork::Process;

use super::limbo;

/// `len` elements of device memory.
///
/// Wait for streams of your own that use it before you drop it. Where ranks are processes its memory is given back at
/// once, for which the driver may wait for what this process has on the device. Where ranks are threads of one process,
/// dropping it waits for nobody, and its memory is given back as soon as no operation of any communicator of this process
/// is outstanding: giving it back at once would wait for other ranks' operations too, which may wait for this thread. Where
/// much has been dropped, or there is no room for something new, the ranks' next collectives wait for that moment, for a
/// tenth of a second at most. No host function of yours on a stream may wait for a thread that uses communicators or drops
/// buffers.
pub struct DeviceBuffer<T> {
    process: Process,
    /// `None` only while it is dropped.
    memory: Option<Arc<DeviceMemory>>,
    /// What else goes with it.
    home: Option<Box<dyn Any + Send + Sync>>,
    len: usize,
    _elements: PhantomData<T>,
}

impl<T: Element> DeviceBuffer<T> {
    /// `len` elements on the context's device, all zero. Only this rank sees them; see
    /// [`alloc_device`](crate::Communicator::alloc_device) for memory that others read where it lies.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], and the driver's.
    pub fn new(context: &Arc<Context>, len: usize) -> Result<DeviceBuffer<T>, CudaError> {
        Ok(DeviceBuffer::of(DeviceBuffer::<T>::memory_of(context, len, false)?, len, None))
    }

    /// Zeroed memory for `len` elements; `shared`: other ranks are to map it.
    pub(super) fn memory_of(context: &Arc<Context>, len: usize, shared: bool) -> Result<Arc<DeviceMemory>, CudaError> {
        let bytes = bytes::<T>(context, len)?;
        let memory = limbo::making_room(|| match shared {
            true => DeviceMemory::exportable(context, bytes),
            false => DeviceMemory::new(context, bytes),
        })?;
        memory.fill(0, memory.bytes(), 0)?;
        Ok(Arc::new(memory))
    }

    /// A copy of `elements` on the context's device. Blocks until it is there.
    ///
    /// # Errors
    /// As [`DeviceBuffer::new`].
    pub fn from_slice(context: &Arc<Context>, elements: &[T]) -> Result<DeviceBuffer<T>, CudaError> {
        let memory = limbo::making_room(|| DeviceMemory::new(context, size_of_val(elements)))?;
        memory.copy_from_host(0, cast_slice(elements))?;
        Ok(DeviceBuffer::of(Arc::new(memory), elements.len(), None))
    }

    /// The elements as `stream` leaves them: blocks until it has done what was queued on it so far, and copied them.
    ///
    /// # Errors
    /// What went wrong on the stream; the driver's.
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>, CudaError> {
        let mut elements = vec![T::zeroed(); self.len];
        self.copy_to(&mut elements, stream)?;
        Ok(elements)
    }

    /// [`DeviceBuffer::to_vec`] into memory that there is.
    ///
    /// # Panics
    /// If `elements` has another length than the buffer.
    ///
    /// # Errors
    /// As [`DeviceBuffer::to_vec`].
    pub fn copy_to(&self, elements: &mut [T], stream: &Stream) -> Result<(), CudaError> {
        assert_eq!(elements.len(), self.len, "copying a device buffer to a slice of another length");
        self.copy_to_at(0, elements, stream)
    }

    /// [`DeviceBuffer::copy_to`] of as many elements as there are in `elements`, from element `first` on.
    ///
    /// # Panics
    /// If they reach beyond the buffer.
    ///
    /// # Errors
    /// As [`DeviceBuffer::to_vec`].
    pub fn copy_to_at(&self, first: usize, elements: &mut [T], stream: &Stream) -> Result<(), CudaError> {
        let offset = self.offset_of(first, elements.len());
        let bytes: &mut [u8] = cast_slice_mut(elements);
        // SAFETY: the slice is borrowed until the stream has got past the copy, and so is the memory.
        unsafe { self.memory().queue_to_host(offset, bytes.as_mut_ptr(), bytes.len(), stream) }?;
        stream.synchronize()
    }

    /// Replace the elements, after what was queued on `stream` so far. Blocks until that is done.
    ///
    /// # Panics
    /// If `elements` has another length than the buffer.
    ///
    /// # Errors
    /// As [`DeviceBuffer::to_vec`].
    pub fn copy_from(&mut self, elements: &[T], stream: &Stream) -> Result<(), CudaError> {
        assert_eq!(elements.len(), self.len, "copying a slice to a device buffer of another length");
        self.copy_from_at(0, elements, stream)
    }

    /// [`DeviceBuffer::copy_from`] of as many elements as there are in `elements`, from element `first` on.
    ///
    /// # Panics
    /// If they reach beyond the buffer.
    ///
    /// # Errors
    /// As [`DeviceBuffer::to_vec`].
    pub fn copy_from_at(&mut self, first: usize, elements: &[T], stream: &Stream) -> Result<(), CudaError> {
        let offset = self.offset_of(first, elements.len());
        let bytes: &[u8] = cast_slice(elements);
        // SAFETY: as above.
        unsafe { self.memory().queue_from_host(offset, bytes.as_ptr(), bytes.len(), stream) }?;
        stream.synchronize()
    }

    /// Where element `first` lies in the memory, in bytes; `count` elements from there on must be the buffer's.
    fn offset_of(&self, first: usize, count: usize) -> usize {
        let end = first.checked_add(count);
        assert!(end.is_some_and(|end| end <= self.len), "{count} elements from {first} of a buffer of {}", self.len);
        first * size_of::<T>()
    }

    /// The elements in `range`, to be read by a call.
    ///
    /// # Panics
    /// If the range reaches beyond the buffer.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> DeviceSlice<'_, T> {
        DeviceSlice::from(self).slice(range)
    }

    /// The elements in `range`, to be written by a call.
    ///
    /// # Panics
    /// If the range reaches beyond the buffer.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut::from(self).slice(range)
    }
}

impl<T> DeviceBuffer<T> {
    /// The first `len` elements of `memory`. `home`: what is dropped with it, if others can read it where it lies.
    pub(super) fn of(
        memory: Arc<DeviceMemory>,
        len: usize,
        home: Option<Box<dyn Any + Send + Sync>>,
    ) -> DeviceBuffer<T> {
        DeviceBuffer { process: Process::this(), memory: Some(memory), home, len, _elements: PhantomData }
    }

    fn memory(&self) -> &Arc<DeviceMemory> {
        self.memory.as_ref().expect("it is not being dropped")
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it begins, in the device's addresses.
    pub fn address(&self) -> u64 {
        self.memory().address()
    }

    /// The context in which it was allocated.
    pub fn context(&self) -> &Arc<Context> {
        self.memory().context()
    }

    /// Whether other ranks can read it where it lies; see [`alloc_device`](crate::Communicator::alloc_device).
    pub fn is_shared(&self) -> bool {
        self.home.is_some()
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        // A registration keeps the memory, and sees to the rest.
        let (memory, home) = (self.memory.take(), self.home.take());
        if !self.process.is_this() {
            // The parent's, as is the context.
            return std::mem::forget((memory, home));
        }
        match (memory, home) {
            (Some(memory), None) => limbo::give_back_buffer(memory),
            shared => drop(shared),
        }
    }
}

impl<T> std::fmt::Debug for DeviceBuffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceBuffer({} elements at {:#x}, shared: {})", self.len, self.address(), self.is_shared())
    }
}

fn bytes<T>(context: &Context, len: usize) -> Result<usize, CudaError> {
    let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| *bytes <= isize::MAX as usize);
    bytes.ok_or_else(|| {
        let (free, total) = context.memory().unwrap_or_default();
        CudaError::OutOfMemory { what: "device", bytes: u64::MAX, free, total }
    })
}

/// The context in which memory was allocated, by the address of its [`Context`]; 0 where a caller has given an address, of
/// which the driver must be asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Home(usize);

impl Home {
    pub const UNKNOWN: Home = Home(0);

    fn of<T>(buffer: &DeviceBuffer<T>) -> Home {
        Home(Arc::as_ptr(buffer.context()).addr())
    }

    /// Whether it is known to be memory of this context.
    pub fn is(self, context: &Arc<Context>) -> bool {
        self == Home(Arc::as_ptr(context).addr())
    }
}

/// Elements of device memory that a call reads. Made from a [`DeviceBuffer`], or from an address.
pub struct DeviceSlice<'a, T> {
    address: u64,
    len: usize,
    home: Home,
    _elements: PhantomData<&'a [T]>,
}

/// Elements of device memory that a call writes. Made from a [`DeviceBuffer`], or from an address.
pub struct DeviceSliceMut<'a, T> {
    address: u64,
    len: usize,
    home: Home,
    _elements: PhantomData<&'a mut [T]>,
}

impl<T> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DeviceSlice<'_, T> {}

/// First element and length of a range of `len` elements.
fn resolve(range: impl RangeBounds<usize>, len: usize) -> (usize, usize) {
    let start = match range.start_bound() {
        Bound::Included(at) => *at,
        Bound::Excluded(at) => *at + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(at) => *at + 1,
        Bound::Excluded(at) => *at,
        Bound::Unbounded => len,
    };
    assert!(start <= end && end <= len, "elements {start} to {end} of device memory that has {len}");
    (start, end - start)
}

impl<'a, T> DeviceSlice<'a, T> {
    /// Where it was allocated.
    pub(crate) const fn home(&self) -> Home {
        self.home
    }

    /// `len` elements at `address`, for memory of others: a framework's tensor, say. `T` need not be aligned.
    ///
    /// # Safety
    /// What a call queues with it reads it later: the memory must stay until the stream has done so, and nothing may
    /// write it meanwhile. (That it is device memory of that length is checked by the call.)
    pub const unsafe fn from_raw(address: u64, len: usize) -> DeviceSlice<'a, T> {
        DeviceSlice { address, len, home: Home::UNKNOWN, _elements: PhantomData }
    }

    /// No elements: what ranks pass that give nothing.
    pub const fn empty() -> DeviceSlice<'a, T> {
        DeviceSlice { address: 0, len: 0, home: Home::UNKNOWN, _elements: PhantomData }
    }

    /// The elements in `range`.
    ///
    /// # Panics
    /// If the range reaches beyond the slice.
    pub fn slice(self, range: impl RangeBounds<usize>) -> DeviceSlice<'a, T> {
        let (start, len) = resolve(range, self.len);
        let address = self.address + (start * size_of::<T>()) as u64;
        DeviceSlice { address, len, home: self.home, _elements: PhantomData }
    }

    /// Where it begins, in the device's addresses.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// How many elements it has.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same memory as bytes.
    pub const fn bytes(self) -> DeviceSlice<'a, u8> {
        DeviceSlice { address: self.address, len: self.len * size_of::<T>(), home: self.home, _elements: PhantomData }
    }
}

impl<'a, T> DeviceSliceMut<'a, T> {
    /// Where it was allocated.
    pub(crate) const fn home(&self) -> Home {
        self.home
    }

    /// `len` elements at `address`, for memory of others: a framework's tensor, say. `T` need not be aligned.
    ///
    /// # Safety
    /// What a call queues with it writes it later: the memory must stay until the stream has done so, and nothing else
    /// may read or write it meanwhile. (That it is device memory of that length is checked by the call.)
    pub const unsafe fn from_raw(address: u64, len: usize) -> DeviceSliceMut<'a, T> {
        DeviceSliceMut { address, len, home: Home::UNKNOWN, _elements: PhantomData }
    }

    /// No elements: what ranks pass that get nothing.
    pub const fn empty() -> DeviceSliceMut<'a, T> {
        DeviceSliceMut { address: 0, len: 0, home: Home::UNKNOWN, _elements: PhantomData }
    }

    /// The elements in `range`.
    ///
    /// # Panics
    /// If the range reaches beyond the slice.
    pub fn slice(self, range: impl RangeBounds<usize>) -> DeviceSliceMut<'a, T> {
        let (start, len) = resolve(range, self.len);
        let address = self.address + (start * size_of::<T>()) as u64;
        DeviceSliceMut { address, len, home: self.home, _elements: PhantomData }
    }

    /// Where it begins, in the device's addresses.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// How many elements it has.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same memory as bytes.
    pub const fn bytes(self) -> DeviceSliceMut<'a, u8> {
        DeviceSliceMut {
            address: self.address,
            len: self.len * size_of::<T>(),
            home: self.home,
            _elements: PhantomData,
        }
    }

    /// The same elements for a shorter time.
    pub const fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { address: self.address, len: self.len, home: self.home, _elements: PhantomData }
    }
}

impl<'a, T> From<&'a DeviceBuffer<T>> for DeviceSlice<'a, T> {
    fn from(buffer: &'a DeviceBuffer<T>) -> Self {
        DeviceSlice { address: buffer.address(), len: buffer.len, home: Home::of(buffer), _elements: PhantomData }
    }
}

impl<'a, T> From<&'a mut DeviceBuffer<T>> for DeviceSliceMut<'a, T> {
    fn from(buffer: &'a mut DeviceBuffer<T>) -> Self {
        DeviceSliceMut { address: buffer.address(), len: buffer.len, home: Home::of(buffer), _elements: PhantomData }
    }
}

impl<T> std::fmt::Debug for DeviceSlice<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceSlice({} elements at {:#x})", self.len, self.address)
    }
}

impl<T> std::fmt::Debug for DeviceSliceMut<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceSliceMut({} elements at {:#x})", self.len, self.address)
    }
}
