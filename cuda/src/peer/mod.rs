//! The transport between GPUs of one host: bytes in memory that all members reach, ordered by words that streams wait
//! for.
//!
//! The *members* are the ranks of one communicator on one host, numbered from 0, as threads of one process or as
//! processes, on one device or several. What they share:
//!
//! * [`Words`], in host memory that all have mapped and registered: the counters by which everything is ordered;
//! * [`Staging`], where the bytes pass: device memory of each member that the others have mapped, or host memory where
//!   a device cannot reach another's;
//! * registered buffers ([`Mapped`], [`Bases`]), which are read where they lie.
//!
//! Two protocols run over them, with the meaning of those of the same name in `maypole-transports`: the one-sided
//! [`Window`] and the two-sided fifo ([`Outgoing`], [`Incoming`]). Both only queue commands; [`crate::commands`] says
//! what orders what, and each file argues its own part on top. Who waits for whom, deadlines, and what happens when a
//! member dies are the business of whoever uses this: all it needs is that a word that is stored from the host lets a
//! stream go on.
//!
//! # Places
//!
//! Bytes pass in *places*: a header of [`HEADER`] bytes, then data. The header says which operation the bytes belong
//! to, and, where they are only lent, where they really are. It is written and checked by kernels, so that a rank that
//! called something else never gets a byte into another's result.
//!
//! # Streams that share a queue
//!
//! A device has few queues for the streams of one context (`CUDA_DEVICE_MAX_CONNECTIONS`, 8 unless set, 32 at most),
//! and a stream that waits holds back whatever else is in its queue. With a process per rank that costs overlap at
//! worst: what a rank waits for comes from other processes, which have queues of their own. Ranks that are threads of
//! one process can wait for each other in one queue, for ever; with more than a few of them on a device, set the
//! variable to 32 before the program starts.
//!
//! # Leaving
//!
//! A member leaves when its own streams are drained: no command of its own is left that reads, writes, waits for or
//! writes into anything shared. It then closes its mappings of the others' memory, and says so (its `left` word). Its
//! own memory must stay until every other member has closed its mapping of it: the driver says that memory freed under
//! a mapping is undefined. So it waits for their `left` words, for a bounded time, since a member may have died without
//! a word; after that it keeps the memory, which ends with the process ([`Staging::leave`]). Members that are threads
//! of one process hold each other's memory by reference counts, and wait for nobody. The words themselves are in host
//! memory, where every mapping stands for itself, and need no such care.

mod bases;
mod fifo;
mod mapped;
mod staging;
mod window;
mod words;

pub use bases::{ALLOCATIONS, ANYWHERE, Bases};
pub use fifo::{Incoming, Outgoing, Slots};
pub use mapped::{Mapped, Member, Offer};
pub use staging::{Shape, Staging};
pub use window::{FAR, SILENT, Window};
pub use words::{LINE, TROUBLE, Words};

pub use crate::kernels::HEADER;

/// Where one publication or one slot lies, as kernels of this member see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Address of its header of [`HEADER`] bytes, a multiple of 64.
    pub header: u64,
    /// Bytes that it holds behind the header.
    pub bytes: usize,
}

impl Place {
    /// Address of its data.
    #[inline]
    pub fn data(&self) -> u64 {
        self.header + HEADER as u64
    }
}
