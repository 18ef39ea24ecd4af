//! What a device operation puts on a stream.
//!
//! Three commands are all there is: **wait** until a word has come to a value, **launch** a kernel, **write** a word.
//! The host only queues them and goes on; no thread and no kernel waits. A kernel that spun on a word would keep its
//! multiprocessor from whoever is to write the word, which with several ranks on one device is a deadlock.
//!
//! # Words
//!
//! A [`Word`] is 32 bits in host memory that the device reaches and that ranks share. It counts: it only grows, and
//! wraps. To wait is to wait until `(word - value) as i32 >= 0`, so 2^31 is the furthest that a word may be ahead of
//! what somebody waits for. A communicator would have to keep one rank waiting over two thousand million slots to come
//! near it.
//!
//! # What orders what
//!
//! * Commands of one stream run in order, each when the one before has ended. A wait holds back everything after it.
//! * A write is preceded by a memory barrier of system scope, for all that came before it on the stream: whoever sees
//!   the word's new value sees what kernels before the write have stored, wherever it lies. (That is the driver's
//!   default, `CU_STREAM_WRITE_VALUE_DEFAULT`. The second version of these calls, which is used here, has no flag that
//!   leaves it out.)
//! * A wait that has ended is followed, as the driver's documentation puts it for stream memory operations, by work
//!   that sees what was ordered before the write.
//!
//! * A kernel starts with nothing in its multiprocessor's first-level cache. Headers, and data that lies alike in its 16
//!   bytes, kernels read past that cache all the same (`ld.global.cg`), as each byte is read once. The rest they read with
//!   ordinary loads, which it may answer; a line from before the wait is gone because the wait lies between two kernels.
//!   (Loads that go by the read-only path, `ld.global.nc`, occur in no kernel.)
//!
//! So: what a kernel stored before a write is seen by every kernel after the wait for it. All protocols of
//! [`crate::peer`] rest on that sentence, and it on the barrier and on the boundary between kernels: a kernel that
//! waited inside itself would need loads of its own kind.
//!
//! A wait for a word that has the value already is left out: the host's load acquires what the write released, and a
//! kernel that the host queues after it comes after. That is the common case of waits for room, and each command costs
//! a microsecond.
//!
//! # Batches
//!
//! Waits and writes gather in an array and go to the driver in one call (`cuStreamBatchMemOp`) before the next launch,
//! or at [`finish`](Commands::finish). They run in the array's order, and each write has its barrier.
//!
//! A job that one block runs writes up to two words itself: those that are written right after its launch, which is put off
//! until then. Its threads meet at a barrier, and one of them fences with system scope what all have done, and writes. That
//! spares a call to the driver, and the stream a microsecond or two for each word, in which it would first wait until the
//! kernel has left the device. (Of several blocks the last would have to be found, by an atomic counter: not worth it where a
//! job takes longer anyway.) What kernels before it on the stream have stored is ordered before its fence, too, as the
//! stream runs one after the other.
//!
//! # How many fit
//!
//! A stream has a queue in the driver of about 1,024 commands. A call that finds it full blocks until the device has
//! taken some, and, as far as is known, holds the context's lock meanwhile. [`Commands::calls`] counts, so that whoever
//! queues much can stay below that.
//!
//! # Without stream memory operations
//!
//! Where the device or its driver has none, a host function stands for each: one that stores, and one that looks until
//! the word is there. Drivers run the host functions of a process on few threads, so one that waits may keep another,
//! for which it waits, from running. It therefore serves only ranks in processes of their own: each process has then
//! one stream of one rank in waiting.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::{
    CUstreamBatchMemOpParams, CUstreamBatchMemOpParams_union_CUstreamMemOpWaitValueParams_st as WaitValue,
    CUstreamBatchMemOpParams_union_CUstreamMemOpWaitValueParams_st__bindgen_ty_1 as WaitOperand,
    CUstreamBatchMemOpParams_union_CUstreamMemOpWriteValueParams_st as WriteValue,
    CUstreamBatchMemOpParams_union_CUstreamMemOpWriteValueParams_st__bindgen_ty_1 as WriteOperand,
    CUstreamBatchMemOpType_enum as MemoryOperation,
};

use crate::driver::{Entered, Result, Stream};
use crate::kernels::{Gather, Job, Kernel, Kernels, MOST_WORDS, Told};

/// `CU_STREAM_WAIT_VALUE_GEQ`, in cyclic comparison.
const AT_LEAST: u32 = 0;
/// `CU_STREAM_WRITE_VALUE_DEFAULT`: with a barrier before it.
const AFTER_BARRIER: u32 = 0;

/// Waits and writes that go to the driver together. It takes fewer than 256.
const BATCH: usize = 16;

/// 32 bits that hosts and streams wait for and write. A name for them, to be copied; it keeps nothing.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    host: NonNull<AtomicU32>,
    device: u64,
}

// SAFETY: the word is an atomic, which threads may share; that it stays where it is was promised in `new`.
unsafe impl Send for Word {}
// SAFETY: as above.
unsafe impl Sync for Word {}

impl Word {
    /// The word at `host`, which the device sees at `device`.
    ///
    /// # Safety
    /// Both name the same four bytes, at a multiple of four, in memory that is registered with the device's driver and
    /// stays so as long as the result, a copy of it, or a queued command uses it. Everybody uses them as an atomic.
    pub unsafe fn new(host: NonNull<AtomicU32>, device: u64) -> Word {
        Word { host, device }
    }

    /// Its value; what was stored before it was written is visible.
    #[inline]
    pub fn load(&self) -> u32 {
        self.atomic().load(Ordering::Acquire)
    }

    /// Writes it from the host; what was stored before is visible to whoever sees the value. Streams that wait see it.
    #[inline]
    pub fn store(&self, value: u32) {
        self.atomic().store(value, Ordering::Release);
    }

    /// Whether it has come to `value`: what a wait for `value` waits for.
    #[inline]
    pub fn is_at_least(&self, value: u32) -> bool {
        self.load().wrapping_sub(value) as i32 >= 0
    }

    /// The atomic.
    #[inline]
    pub fn atomic(&self) -> &AtomicU32 {
        // SAFETY: promised in `new`.
        unsafe { self.host.as_ref() }
    }

    /// Where the device sees it.
    #[inline]
    pub fn address(&self) -> u64 {
        self.device
    }
}

/// A job of one block that has not been launched yet.
struct Pending {
    kernels: Arc<Kernels>,
    kernel: Kernel,
    job: Job,
    /// How many words it has.
    words: usize,
}

/// Commands on their way to a stream. Call [`finish`](Commands::finish) at the end: what is only gathered is lost when
/// this is dropped, as after an error; the operation is in pieces then, and its words must be released otherwise.
#[must_use = "commands are queued by `finish`"]
pub struct Commands<'a> {
    stream: &'a Stream,
    memory_operations: bool,
    gathered: usize,
    batch: [CUstreamBatchMemOpParams; BATCH],
    /// Calls to the driver.
    calls: u64,
    /// What goes in front of the next wait or write that is gathered.
    along: Option<(Word, u32)>,
    /// A launch that may yet be given words. Nothing is gathered then.
    pending: Option<Pending>,
    /// The stream's context is current meanwhile, so that each call finds it so.
    _entered: Entered<'a>,
}

impl<'a> Commands<'a> {
    /// Commands for `stream`. Its context is current on this thread until this is dropped.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(stream: &'a Stream) -> Result<Commands<'a>> {
        let context = stream.context();
        let _entered = context.enter()?;
        let memory_operations = context.supports_memory_operations();
        let batch = [CUstreamBatchMemOpParams { pad: [0; 6] }; BATCH];
        Ok(Commands { stream, memory_operations, gathered: 0, batch, calls: 0, along: None, pending: None, _entered })
    }

    /// The stream.
    pub fn stream(&self) -> &'a Stream {
        self.stream
    }

    /// How many calls to the driver have put something on the stream: each takes a place in the stream's queue, however
    /// many waits and writes a batch has.
    #[inline]
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Everything after this on the stream waits until `word` has come to `value`.
    ///
    /// # Errors
    /// The driver's.
    #[inline]
    pub fn wait(&mut self, word: &Word, value: u32) -> Result<()> {
        if word.is_at_least(value) {
            return Ok(());
        }
        self.gather(
            CUstreamBatchMemOpParams {
                waitValue: WaitValue {
                    operation: MemoryOperation::CU_STREAM_MEM_OP_WAIT_VALUE_32,
                    address: word.device,
                    __bindgen_anon_1: WaitOperand { value },
                    flags: AT_LEAST,
                    alias: 0,
                },
            },
            word,
            value,
            look,
        )
    }

    /// Writes `value` into `word` when everything before this on the stream has ended and can be seen.
    ///
    /// # Errors
    /// The driver's.
    #[inline]
    pub fn write(&mut self, word: &Word, value: u32) -> Result<()> {
        if let Some(Pending { job, words, .. }) = &mut self.pending
            && *words < MOST_WORDS
        {
            job.word[*words] = Told { at: word.device, value, reserved: 0 };
            *words += 1;
            return Ok(());
        }
        self.gather(
            CUstreamBatchMemOpParams {
                writeValue: WriteValue {
                    operation: MemoryOperation::CU_STREAM_MEM_OP_WRITE_VALUE_32,
                    address: word.device,
                    __bindgen_anon_1: WriteOperand { value },
                    flags: AFTER_BARRIER,
                    alias: 0,
                },
            },
            word,
            value,
            store,
        )
    }

    /// [`Commands::write`], but in one call to the driver with the next wait, or with a write that no kernel makes, and
    /// before that one. Kernels that are launched until then run before it.
    ///
    /// # Errors
    /// The driver's.
    #[inline]
    pub fn write_along(&mut self, word: &Word, value: u32) -> Result<()> {
        if self.gathered > 0 || self.along.is_some() || !self.memory_operations {
            return self.write(word, value);
        }
        self.along = Some((*word, value));
        Ok(())
    }

    /// [`Commands::write`], behind what was to come along: the operation's last.
    ///
    /// # Errors
    /// The driver's.
    pub fn write_last(&mut self, word: &Word, value: u32) -> Result<()> {
        self.catch_up()?;
        self.write(word, value)
    }

    /// Puts something else on the stream, behind everything so far.
    ///
    /// # Errors
    /// The driver's, and those of `queue`.
    #[inline]
    pub fn then<T>(&mut self, queue: impl FnOnce(&'a Stream) -> Result<T>) -> Result<T> {
        self.flush()?;
        self.calls += 1;
        queue(self.stream)
    }

    /// Launches a kernel on a job.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Safety
    /// As for [`Kernels::launch`]; until it is launched, which it is with the next command at the latest.
    #[inline]
    pub unsafe fn launch(&mut self, kernels: &Arc<Kernels>, kernel: Kernel, job: &Job) -> Result<()> {
        self.flush()?;
        if self.memory_operations && kernel.fits_a_block(job) {
            self.pending = Some(Pending { kernels: kernels.clone(), kernel, job: *job, words: 0 });
            return Ok(());
        }
        self.calls += 1;
        // SAFETY: the caller's promise.
        unsafe { kernels.launch(self.stream, kernel, job) }
    }

    /// Launches what was put off.
    #[inline]
    fn issue(&mut self) -> Result<()> {
        let Some(Pending { kernels, kernel, job, .. }) = self.pending.take() else { return Ok(()) };
        self.calls += 1;
        // SAFETY: promised to `launch`. Its words are valid until then, as `Word::new` was promised, and it has one block.
        unsafe { kernels.launch(self.stream, kernel, &job) }
    }

    /// Launches several copies as one kernel.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Safety
    /// As for [`Kernels::gather`].
    #[inline]
    pub unsafe fn launch_gather(&mut self, kernels: &Kernels, gather: &Gather) -> Result<()> {
        self.flush()?;
        self.calls += 1;
        // SAFETY: the caller's promise.
        unsafe { kernels.gather(self.stream, gather) }
    }

    /// Copies `bytes` bytes with the driver's own copy, which on some devices leaves the multiprocessors alone.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Safety
    /// When the stream comes to it, both ranges are memory that the device reaches, and nobody else uses them in a way
    /// that excludes this.
    pub unsafe fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.flush()?;
        self.calls += 1;
        let (driver, stream) = (self.stream.context().driver(), self.stream.handle());
        // SAFETY: the stream is alive and its context current; the rest is the caller's promise.
        Ok(unsafe { driver.cuMemcpyDtoDAsync(to, from, bytes, stream) }?)
    }

    /// Everything so far is on the stream: nothing is gathered any more. To be called before the caller waits for anybody.
    ///
    /// # Errors
    /// The driver's.
    pub fn hand_over(&mut self) -> Result<()> {
        self.catch_up()?;
        self.flush()
    }

    /// Everything is on the stream.
    ///
    /// # Errors
    /// The driver's.
    pub fn finish(mut self) -> Result<()> {
        self.hand_over()
    }

    #[inline]
    fn gather(
        &mut self,
        operation: CUstreamBatchMemOpParams,
        word: &Word,
        value: u32,
        otherwise: unsafe extern "C" fn(*mut c_void),
    ) -> Result<()> {
        if !self.memory_operations {
            return self.by_host_function(word, value, otherwise);
        }
        self.issue()?;
        self.catch_up()?;
        if self.gathered == BATCH {
            self.flush()?;
        }
        self.batch[self.gathered] = operation;
        self.gathered += 1;
        Ok(())
    }

    /// Gathers what was to come along.
    #[inline]
    fn catch_up(&mut self) -> Result<()> {
        match self.along.take() {
            Some((word, value)) => self.write(&word, value),
            None => Ok(()),
        }
    }

    #[inline]
    fn flush(&mut self) -> Result<()> {
        self.issue()?;
        let count = std::mem::take(&mut self.gathered);
        if count == 0 {
            return Ok(());
        }
        self.calls += 1;
        let (driver, stream) = (self.stream.context().driver(), self.stream.handle());
        // SAFETY: the stream is alive and its context current; the first `count` entries were written by `gather`, and
        // their addresses are words, which stay as `Word::new` was promised. The driver copies the array.
        Ok(unsafe { driver.cuStreamBatchMemOp(stream, count as u32, self.batch.as_mut_ptr(), 0) }?)
    }

    #[cold]
    fn by_host_function(&mut self, word: &Word, value: u32, function: unsafe extern "C" fn(*mut c_void)) -> Result<()> {
        self.calls += 1;
        let data = Box::into_raw(Box::new((*word, value)));
        let (driver, stream) = (self.stream.context().driver(), self.stream.handle());
        // SAFETY: the stream is alive and its context current; `function` takes such a box.
        if let Err(failed) = unsafe { driver.cuLaunchHostFunc(stream, Some(function), data.cast()) } {
            // SAFETY: the driver has refused it and will not call; the box is still ours.
            drop(unsafe { Box::from_raw(data) });
            return Err(failed.into());
        }
        Ok(())
    }
}

/// What `data` of the two functions below points to.
type Operand = (Word, u32);

/// # Safety
/// `data` is a boxed [`Operand`] that nobody else has.
unsafe extern "C" fn store(data: *mut c_void) {
    // SAFETY: the caller's promise.
    let (word, value) = *unsafe { Box::from_raw(data.cast::<Operand>()) };
    // Kernels that have ended were made visible to the host before the driver called this.
    word.store(value);
}

/// # Safety
/// As for [`store`].
unsafe extern "C" fn look(data: *mut c_void) {
    // SAFETY: the caller's promise.
    let (word, value) = *unsafe { Box::from_raw(data.cast::<Operand>()) };
    let mut looks = 0u32;
    while !word.is_at_least(value) {
        looks = looks.saturating_add(1);
        match looks {
            0..100 => std::hint::spin_loop(),
            100..1000 => std::thread::yield_now(),
            _ => std::thread::sleep(std::time::Duration::from_micros(50)),
        }
    }
}

impl std::fmt::Debug for Commands<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Commands(on {:?}, {} gathered)", self.stream, self.gathered)
    }
}
