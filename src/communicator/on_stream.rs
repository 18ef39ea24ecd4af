//! One operation on device buffers: as in `call`, but queued on a CUDA stream.

use std::sync::Arc;

use maypole_collectives::{Element, ReduceOp};
use maypole_cuda::{Context, Stream, Where};

use super::blocks::Sides;
use super::{Buffers, Call, Communicator, Inner, Lengths};
use crate::cuda::DeviceBuffer;
use crate::error::{Error, Result};

impl Communicator {
    /// Have this communicator work on buffers in the memory of `context`'s device. Every rank must call it, each with the
    /// context of its own device; the first call on a stream does it as well, but messages between two ranks need it
    /// before the first. Blocks until all have. A communicator is attached once; its children attach on their own.
    ///
    /// # Errors
    /// [`Error::Device`] or [`Error::System`] where some rank has no device, no memory, or cannot share it, on every rank
    /// and with the reason that this rank has; the communicator stays usable for buffers in host memory.
    /// [`Error::Argument`] if it is attached to another context already. [`Error::Failed`] as everywhere.
    pub fn attach(&self, context: &Arc<Context>) -> Result<()> {
        self.inner.attached(context).map(|_| ())
    }

    /// A buffer of `len` elements of device memory, all zero, that the other ranks of this host can read where it lies:
    /// where an operation would copy it into staging memory it does not, if its blocks are large. Every rank must call
    /// it, after [`attach`](Communicator::attach); lengths and types may differ, 0 too. Blocks until all have.
    ///
    /// # Errors
    /// As [`Communicator::alloc`], and [`Error::Argument`] if the communicator is not attached to a device.
    pub fn alloc_device<T: Element>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        self.inner.alloc_device(len)
    }

    /// [`Communicator::call`] on buffers of which it is not known where they lie: in the memory of the stream's device,
    /// then the call is queued on `stream`, or in host memory, then the call waits for the stream first and blocks until
    /// it is done. Ranks must not differ in that.
    ///
    /// # Errors
    /// As [`Communicator::call`] and [`Communicator::on`]; [`Error::Argument`] if one buffer is device memory and the
    /// other is not.
    ///
    /// # Safety
    /// `input` and `output` are valid for the blocks that the call takes and gives on this rank (equal, or one inside the
    /// other at this rank's block, where it is in place), and stay so, untouched by others, until the stream has got past
    /// the call.
    pub unsafe fn call_at(&self, call: Call, input: *const u8, output: *mut u8, stream: &Stream) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.inner.run_at(stream, call, Buffers { input, output }) }
    }
}

impl Inner {
    /// Bring this rank's device together with the others', unless that has been done.
    fn attached(&self, _context: &Arc<Context>) -> Result<()> {
        Err(Error::system("attaching", "soon"))
    }

    fn alloc_device<T: Element>(&self, _len: usize) -> Result<DeviceBuffer<T>> {
        Err(Error::system("allocating", "soon"))
    }

    /// Queue operation `call` on `stream`. The buffers are addresses of device memory.
    pub fn run_on(&self, stream: &Stream, call: Call, buffers: Buffers, lengths: Lengths) -> Result<()> {
        let _ = (call, buffers, lengths);
        self.attached(stream.context())
    }

    /// The same for blocks with counts of their own.
    pub fn run_v_on(
        &self,
        stream: &Stream,
        call: Call,
        buffers: Buffers,
        lengths: Lengths,
        sides: Sides<'_>,
    ) -> Result<()> {
        let _ = (call, buffers, lengths, sides);
        self.attached(stream.context())
    }

    /// Wait for what was queued on `stream`.
    pub fn synchronize_on(&self, stream: &Stream) -> Result<()> {
        self.attached(stream.context())
    }

    /// # Safety
    /// As for [`Communicator::call_at`].
    unsafe fn run_at(&self, stream: &Stream, call: Call, buffers: Buffers) -> Result<()> {
        let _ = (call.op, ReduceOp::Sum, buffers, Where::Host);
        self.attached(stream.context())
    }
}
