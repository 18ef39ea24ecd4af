//! What a kernel is told: the twins of the structs in `kernels/job.h`, which says what each field means to a kernel.
//!
//! Addresses are the device's, in the context in which the job runs; 0 is none. Host memory that is registered with the
//! driver has such addresses, too.

use maypole_collectives::{DataType, Element, ReduceOp, with_type};

/// The most sources of one job.
pub const MOST_SOURCES: usize = 8;
/// The most words that a job writes.
pub const MOST_WORDS: usize = 2;

/// Precedes published data, in staging memory, at a multiple of 16: which operation it belongs to, and where the data is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Header {
    /// The operation's fingerprint.
    pub digest: u32,
    /// 0.
    pub reserved: u32,
    /// 0: the data follows the header. Otherwise the index of a registered allocation of the rank that wrote the
    /// header, in the reader's table of that rank's allocations.
    pub allocation: u64,
    /// Where the published region begins in that allocation, in bytes.
    pub offset: u64,
    /// The whole fingerprint, 32 bytes, for hosts that find the header in a [`Trouble`].
    pub operation: [u64; 4],
    /// 0.
    pub unused: u64,
}

/// Where a rank's kernels report the first header that was of another operation. In host memory that they reach, and
/// that they write while the host reads: the host looks at `peer` as an atomic, and at the rest once that is not 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Trouble {
    /// The rank that wrote the header, plus one; 0: none was foreign. Written last, for good.
    pub peer: u32,
    /// The digest of the job that found it.
    pub ours: u32,
    /// 0.
    pub reserved: [u32; 14],
    /// The header.
    pub theirs: Header,
}

/// Bytes of a [`Header`]: what follows it is as aligned as itself.
pub const HEADER: usize = size_of::<Header>();

/// One operand of a job.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Source {
    /// The data, unless the header says that it is in a registered allocation.
    pub at: u64,
    /// The header that must be of this operation; 0: plain memory, whose content is not checked.
    pub header: u64,
    /// The table of addresses of the peer's registered allocations.
    pub bases: u64,
    /// Where the wanted part begins in the published region, in bytes. For registered allocations only: `at` includes it
    /// already.
    pub loan: u64,
    /// The rank that wrote the header.
    pub peer: u32,
    /// 0.
    pub reserved: u32,
}

impl Source {
    /// Memory of this rank's, which needs no check.
    pub const fn plain(at: u64) -> Source {
        Source { at, header: 0, bases: 0, loan: 0, peer: 0, reserved: 0 }
    }
}

/// The one parameter of every kernel but the gather kernel. [`Job::copy`] and the others fill it in; fields that they leave at 0 may be set
/// afterwards.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Job {
    /// The result, any alignment. It may be a source exactly, and overlaps none otherwise.
    pub dst: u64,
    /// A second place for the result, or 0. It overlaps nothing else.
    pub also: u64,
    /// Where `head` is written, a multiple of 16, or 0.
    pub publish: u64,
    /// The header to publish.
    pub head: Header,
    /// The operands, combined from left to right.
    pub source: [Source; MOST_SOURCES],
    /// How many of them there are. 0: nothing but the header is written.
    pub sources: u32,
    /// The operation's place in [`ReduceOp`]; of reductions only. [`op_code`] has it.
    pub op: u32,
    /// Elements of the result; bytes for a copy.
    pub count: u64,
    /// The factor of a scale kernel: the bits of an element. [`factor_bits`] has them.
    pub factor: u64,
    /// What the sum is divided by in the end; 0 or 1: nothing.
    pub divide: u64,
    /// What the headers of the sources must say. If one does not, the job writes no data, and its own header, if it
    /// publishes one, gets the digest 0.
    pub digest: u32,
    /// 0.
    pub reserved: u32,
    /// The rank's [`Trouble`]. Needed if a source has a header.
    pub trouble: u64,
    /// A 32-bit word in device memory, 0 at first, that a job sets which finds a foreign header. Jobs that find it set do
    /// as if they had: what they would read may be what that job has not written. 0: there is none.
    pub poison: u64,
    /// Words that say that the job is done, whatever it found in headers, in the order in which they are written. Of jobs of
    /// [one block](super::Kernel::fits_a_block) only.
    pub word: [Told; MOST_WORDS],
}

/// A word that a job writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Told {
    /// Where devices see it; 0: there is none, and no more.
    pub at: u64,
    /// What is written.
    pub value: u32,
    /// 0.
    pub reserved: u32,
}

impl Job {
    /// `count` bytes from one place to another, with [`Kernel::Copy`](super::Kernel::Copy).
    pub fn copy(dst: u64, source: Source, count: u64) -> Job {
        Job { dst, count, ..Job::default() }.with(&[source])
    }

    /// `dst = source[0] ⊕ source[1] ⊕ ...` for `count` elements, with [`Kernel::Reduce`](super::Kernel::Reduce).
    ///
    /// The 8- and 16-bit floats are rounded once, at the end. A single source is copied, but for NaN, which is made the
    /// quiet one. `divide` turns a sum into an average; with one source it is nothing but the division.
    ///
    /// # Panics
    /// If there are more than [`MOST_SOURCES`], or the operation is on pairs or the user's own.
    pub fn reduce(dst: u64, sources: &[Source], op: ReduceOp, count: u64) -> Job {
        let op = op_code(op).expect("an operation on pairs or of the user's own has no kernel");
        Job { dst, op, count, ..Job::default() }.with(sources)
    }

    /// `dst = source * factor` for `count` elements of type `dtype`, with [`Kernel::Scale`](super::Kernel::Scale). The
    /// factor is rounded to the type first.
    pub fn scale(dst: u64, source: Source, dtype: DataType, factor: f64, count: u64) -> Job {
        Job { dst, count, factor: factor_bits(dtype, factor), ..Job::default() }.with(&[source])
    }

    /// Nothing but a header, with any kernel.
    pub fn publish(at: u64, head: Header) -> Job {
        Job { publish: at, head, ..Job::default() }
    }

    fn with(mut self, sources: &[Source]) -> Job {
        self.source[..sources.len()].copy_from_slice(sources);
        self.sources = sources.len() as u32;
        self
    }
}

/// Where one source of a [`Gather`] goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Target {
    /// Any alignment. It overlaps no source and no other target.
    pub dst: u64,
    /// How many; 0: only the source's header is looked at.
    pub bytes: u64,
}

/// The parameter of the gather kernel: up to [`MOST_SOURCES`] copies at the same time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Gather {
    /// The sources, and what headers must say. Its `dst`, `also`, `count` and `word` are not used.
    pub job: Job,
    /// Where each of them goes.
    pub to: [Target; MOST_SOURCES],
}

impl Gather {
    /// Copies of nothing yet, for the operation of `job`.
    pub fn new(job: Job) -> Gather {
        Gather { job: Job { sources: 0, ..job }, ..Gather::default() }
    }

    /// Whether it has as many copies as it can have.
    pub fn is_full(&self) -> bool {
        self.job.sources as usize == MOST_SOURCES
    }

    /// One copy more.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn add(&mut self, source: Source, to: Target) {
        let at = self.job.sources as usize;
        (self.job.source[at], self.to[at]) = (source, to);
        self.job.sources += 1;
    }
}

/// The number by which kernels know an operation; `None` for those on pairs and the user's own,
/// which have no kernel.
pub const fn op_code(op: ReduceOp) -> Option<u32> {
    match op {
        ReduceOp::Sum => Some(0),
        ReduceOp::Prod => Some(1),
        ReduceOp::Min => Some(2),
        ReduceOp::Max => Some(3),
        ReduceOp::Avg => Some(4),
        ReduceOp::PreMulSum(_) => Some(5),
        ReduceOp::And => Some(6),
        ReduceOp::Or => Some(7),
        ReduceOp::Xor => Some(8),
        ReduceOp::MinLoc(_) | ReduceOp::MaxLoc(_) | ReduceOp::User(_) => None,
    }
}

/// A factor as the bits of an element of type `dtype`, rounded as [`Element::from_f64`] does.
pub fn factor_bits(dtype: DataType, factor: f64) -> u64 {
    fn bits<T: Element>(factor: f64) -> u64 {
        let mut bytes = [0; 8];
        bytes[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&T::from_f64(factor)));
        u64::from_le_bytes(bytes)
    }
    with_type!(dtype, T => bits::<T>(factor))
}

/// What `static_assert` says in `kernels/job.h`, and the offsets that a slip would change first.
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Header>() == 64 && size_of::<Source>() == 40 && size_of::<Job>() == 496);
    assert!(size_of::<Trouble>() == 128 && offset_of!(Trouble, theirs) == 64);
    assert!(offset_of!(Job, head) == 24 && offset_of!(Job, source) == 88 && offset_of!(Job, sources) == 408);
    assert!(offset_of!(Job, count) == 416 && offset_of!(Job, digest) == 440 && offset_of!(Job, trouble) == 448);
    assert!(offset_of!(Job, poison) == 456 && offset_of!(Job, word) == 464 && offset_of!(Header, operation) == 24);
    assert!(size_of::<Gather>() == 624 && offset_of!(Gather, to) == 496);
    assert!(offset_of!(Source, peer) == 32 && offset_of!(Header, allocation) == 8);
};
