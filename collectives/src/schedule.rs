//! The vocabulary of schedules.
//!
//! A schedule is one rank's part in a collective, written as steps over *chunks*. It names no byte, no
//! element type and no message size; those are bound when it runs.
//!
//! # Blocks, pieces, chunks
//!
//! Every collective sees its buffers as *blocks* of `count` elements (see [`catalogue`](crate::catalogue)): all-reduce
//! has one block in and one out, all-gather one in and n out, all-to-all n and n. A schedule cuts each block into the same number of
//! [`pieces`](Schedule::pieces) (a ring all-reduce over n ranks uses n). One piece of one block is a *chunk*; chunk
//! `b * pieces + p` is piece `p` of block `b`. Scratch is counted in the same way.
//!
//! # Rounds and slices
//!
//! When a schedule runs, pieces may be longer than a link has credit for. The executor then cuts each piece into
//! *slices* and runs the whole schedule once per slice: round `k` moves slice `k` of every chunk. Elements of different
//! rounds never meet, so a schedule that is right for one round is right for all; the only thing rounds share is
//! scratch and the order on each link. Pipelining comes from the links: a rank that has sent slice 0 goes on to slice 1
//! while its neighbour still works on slice 0.
//!
//! # Lanes and channels
//!
//! A schedule has one or more *lanes*. A lane's steps run in order; lanes run concurrently, each at its own round. A
//! step of a lane talks on the lane's *channel*: the link that carries a message is named by (sender, receiver,
//! channel). Two lanes of one rank may share a channel if they never use the same link in the same direction.
//!
//! # Two families of steps
//!
//! *Two-sided* steps (send, recv and their fused forms) work on any transport. *One-sided* steps (publish, fetch) need
//! ranks that share memory. A published region is copied out when the step completes, so the publisher may overwrite it
//! at once; every other rank fetches from each publication exactly once, and that returns the publisher's credit. A
//! lane fetches from what the same lane of the other rank published.
//!
//! # Credit
//!
//! Schedules are checked against the smallest credit an executor may give: each link holds one message, a fused step
//! takes its message out of the link before it waits for room to send it on, and each lane's window holds one
//! publication. An executor that reads messages where they lie in the link, and so cannot take one out early, needs
//! room for two messages on each link.

use std::ops::Range;

pub use crate::catalogue::Collective;

/// A rank: a process's (or thread's) number in its world, from 0.
pub type Rank = usize;

/// Which of the executor's three buffers a [`Region`] lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Buffer {
    /// What the caller passed in; never written, except where the call is in place and output chunks alias it.
    Input,
    /// Where the result goes. Its content before the call is never read (in place: it is the input).
    Output,
    /// Memory of the executor's own, one slice per chunk, uninitialised at the start of each round.
    Scratch,
}

/// `len` consecutive chunks of one buffer, from chunk `first`. A message is its chunks' slices, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// The buffer.
    pub buffer: Buffer,
    /// Index of the first chunk.
    pub first: usize,
    /// How many chunks; 0 is an empty message (a pure signal).
    pub len: usize,
}

impl Region {
    /// Chunks `first..first + len` of the input.
    pub const fn input(first: usize, len: usize) -> Region {
        Region { buffer: Buffer::Input, first, len }
    }
    /// Chunks `first..first + len` of the output.
    pub const fn output(first: usize, len: usize) -> Region {
        Region { buffer: Buffer::Output, first, len }
    }
    /// Chunks `first..first + len` of scratch.
    pub const fn scratch(first: usize, len: usize) -> Region {
        Region { buffer: Buffer::Scratch, first, len }
    }
    /// The message of no chunks: only its arrival matters.
    pub const EMPTY: Region = Region { buffer: Buffer::Scratch, first: 0, len: 0 };

    /// The chunk indices.
    pub fn chunks(&self) -> Range<usize> {
        self.first..self.first + self.len
    }
}

/// In which order a step combines its operands. Those of the built-in operations commute in value, and
/// yet a schedule that reduces the same elements on several ranks fixes the order; a user's operation
/// need not commute at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operands {
    /// result = local ⊕ received
    LocalFirst,
    /// result = received ⊕ local
    PeerFirst,
}

/// One step of a lane. Regions that are combined or copied have the same number of chunks, and those chunks the same
/// pieces in the same order, since a chunk's length depends on its piece. `from` and `to` are the peers, and only
/// fetches may name the own rank; `local` is this rank's operand; `dst` is where the result goes.
#[expect(missing_docs, reason = "the fields mean the same in each step and are explained once, above")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Send `src` to rank `to`. Complete when the bytes are in the link: `src` may then be overwritten.
    Send { to: Rank, src: Region },
    /// Receive into `dst`.
    Recv { from: Rank, dst: Region },
    /// `dst` = `local` ⊕ received, in the given order. `dst` may be `local`.
    RecvReduce { from: Rank, local: Region, order: Operands, dst: Region },
    /// Like [`Step::RecvReduce`], and the result also goes to rank `to`, as it is produced. Without `dst` it is only
    /// sent on.
    RecvReduceSend { from: Rank, local: Region, order: Operands, dst: Option<Region>, to: Rank },
    /// Receive into `dst` and pass the same bytes on to rank `to`, as they arrive.
    RecvCopySend { from: Rank, dst: Region, to: Rank },
    /// Local copy. A no-op where both are the same memory (in place).
    Copy { src: Region, dst: Region },
    /// Local reduction: `dst` = `a` ⊕ `b`. `dst` may be either.
    Reduce { a: Region, b: Region, dst: Region },
    /// One-sided: make a copy of `src` readable by every rank (this one included). The n-th publish of a lane in a
    /// round is its publication n. Waits until every other rank has fetched from the publication whose place it takes.
    Publish { src: Region },
    /// One-sided: copy chunks `at..at + dst.len` (counted within the publication) of rank `from`'s publication `nth` of
    /// this round into `dst`.
    Fetch { from: Rank, nth: usize, at: usize, dst: Region },
    /// One-sided: `dst` = `local` ⊕ fetched, in the given order.
    FetchReduce { from: Rank, nth: usize, at: usize, local: Region, order: Operands, dst: Region },
}

impl Step {
    /// The chunks, of this rank, that are as long as the message of a two-sided step.
    pub const fn message(&self) -> Option<Region> {
        match *self {
            Step::Send { src, .. } => Some(src),
            Step::Recv { dst, .. } | Step::RecvReduce { dst, .. } | Step::RecvCopySend { dst, .. } => Some(dst),
            Step::RecvReduceSend { local, .. } => Some(local),
            _ => None,
        }
    }

    /// From whom a two-sided step receives, and to whom it sends.
    pub const fn peers(&self) -> (Option<Rank>, Option<Rank>) {
        match *self {
            Step::Send { to, .. } => (None, Some(to)),
            Step::Recv { from, .. } | Step::RecvReduce { from, .. } => (Some(from), None),
            Step::RecvReduceSend { from, to, .. } | Step::RecvCopySend { from, to, .. } => (Some(from), Some(to)),
            _ => (None, None),
        }
    }
}

/// What a schedule is generated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// This rank.
    pub rank: Rank,
    /// World size.
    pub size: usize,
    /// The root; 0 where the collective has none.
    pub root: Rank,
}

/// One rank's program. It is lazy: `step` computes step `i` when asked, so a schedule for 16,384 ranks takes no
/// more memory than one for two. Pure: the same question gets the same answer.
pub trait Schedule: Send + Sync {
    /// Into how many pieces each block is cut; the same on every rank.
    fn pieces(&self) -> usize;
    /// Chunks of scratch this rank needs.
    fn scratch(&self) -> usize {
        0
    }
    /// How many lanes this rank has, at least 1. Ranks may differ; a lane that publishes or fetches needs a lane of the
    /// same number on the others.
    fn lanes(&self) -> usize {
        1
    }
    /// The channel on which lane `lane` sends and receives.
    fn channel(&self, _lane: usize) -> usize {
        0
    }
    /// How many steps lane `lane` has in each round.
    fn steps(&self, lane: usize) -> usize;
    /// Step `i` of lane `lane`; `i < self.steps(lane)`. Constant or logarithmic time.
    fn step(&self, lane: usize, i: usize) -> Step;
    /// The most chunks that any message or publication of any rank has, and at least 1; the same on every rank. It
    /// bounds how long a slice may be.
    fn message_chunks(&self) -> usize;
}
