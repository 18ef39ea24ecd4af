//! A call whose arguments have been checked, and what it needs until it is done.

use maypole::{Blocks, Call, Communicator, DataType, RawGroup, RawPersistent, RawRequest, Result, Stream, cuda};
use pyo3::prelude::*;

use crate::array::Array;
use crate::calls::rank_of;
use crate::error;
use crate::operation::Op;

/// A call whose arguments have been checked.
pub struct Prepared<'py> {
    pub what: What,
    pub held: Held,
    /// What the call gives back: the array that has the result, or None where this rank gets none.
    pub result: Bound<'py, PyAny>,
}

/// What a call needs until it is done.
#[derive(Default)]
pub struct Held {
    arrays: [Option<Array>; 2],
    op: Option<Py<Op>>,
}

impl Held {
    /// The arrays of a call, and its operation.
    pub fn new(arrays: [Option<Array>; 2], op: Option<Py<Op>>) -> Held {
        Held { arrays, op }
    }

    /// The CUDA device on which an array of it lies, if one does.
    pub fn device(&self) -> Option<usize> {
        self.arrays.iter().flatten().find_map(|array| array.device)
    }

    /// Whether it holds an operation of the user's.
    pub fn has_operation(&self) -> bool {
        self.op.is_some()
    }

    /// The exception for an error of the call. If an operation of the user's raised something here, that is its cause.
    pub fn explain(&self, py: Python<'_>, error: maypole::Error) -> PyErr {
        let error = error::to_py(py, error);
        if let Some(raised) = self.op.as_ref().and_then(|op| op.get().take_raised()) {
            error.set_cause(py, Some(raised));
        }
        error
    }
}

/// What the library is asked to do.
pub enum What {
    Plain { call: Call, input: *const u8, output: *mut u8 },
    Blocks { call: Call, input: (*const u8, Lengths), output: (*mut u8, Lengths) },
    Message(Message),
    Both(Message, Message),
}

// SAFETY: addresses of memory that the call's `Held` keeps.
unsafe impl Send for What {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for What {}

/// A message to or from another rank.
#[derive(Clone, Copy)]
pub struct Message {
    dtype: DataType,
    count: usize,
    data: *mut u8,
    peer: usize,
    tag: u32,
    receives: bool,
}

/// A message from whichever rank sends it.
#[derive(Clone, Copy)]
pub struct FromAnyone {
    dtype: DataType,
    count: usize,
    data: *mut u8,
    tag: u32,
}

// SAFETY: an address of memory that the call's `Held` keeps.
unsafe impl Send for FromAnyone {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for FromAnyone {}

impl FromAnyone {
    /// Into an array that may lie where it does.
    pub fn of(array: &Array, name: &str, tag: i64) -> std::result::Result<FromAnyone, String> {
        let Message { dtype, count, data, tag, .. } = Message::of(array, name, ("source", 0), tag, 1)?;
        Ok(FromAnyone { dtype, count, data, tag })
    }

    /// Receive it: who has sent it.
    ///
    /// # Safety
    /// The call's `Held` lives until this returns.
    pub unsafe fn run(&self, comm: &Communicator) -> Result<usize> {
        // SAFETY: as in `What::run`.
        unsafe { comm.recv_any_at(self.dtype, self.count, self.data, self.tag) }
    }

    /// Expect it.
    ///
    /// # Safety
    /// The call's `Held` lives until the request is done.
    pub unsafe fn start(&self, comm: &Communicator) -> Result<RawRequest> {
        // SAFETY: as in `What::run`.
        unsafe { comm.start_recv_any_at(self.dtype, self.count, self.data, self.tag) }
    }
}

/// Counts and displacements.
#[derive(Clone, Default)]
pub struct Lengths {
    counts: Vec<usize>,
    displacements: Option<Vec<usize>>,
}

impl Lengths {
    /// One block.
    pub fn one(count: usize) -> Lengths {
        Lengths { counts: vec![count], displacements: None }
    }

    /// Of this rank's block; 0 if there is none, which the library refuses.
    pub fn count(&self, rank: usize) -> usize {
        self.counts.get(rank).copied().unwrap_or(0)
    }

    /// Where this rank's block begins.
    pub fn start(&self, rank: usize) -> usize {
        match &self.displacements {
            Some(displacements) => displacements.get(rank).copied().unwrap_or(0),
            None => self.counts.iter().take(rank).sum(),
        }
    }

    /// Where the last block ends; `None` beyond what can be counted.
    pub fn end(&self) -> Option<usize> {
        match &self.displacements {
            None => self.counts.iter().try_fold(0usize, |end, count| end.checked_add(*count)),
            Some(displacements) => {
                let ends = self.counts.iter().zip(displacements).map(|(count, start)| start.checked_add(*count));
                ends.collect::<Option<Vec<_>>>().map(|ends| ends.into_iter().max().unwrap_or(0))
            }
        }
    }

    /// Whether its blocks follow each other.
    pub fn is_packed(&self) -> bool {
        self.displacements.is_none()
    }

    fn blocks(&self) -> Blocks<'_> {
        match &self.displacements {
            None => Blocks::packed(&self.counts),
            Some(displacements) => Blocks::at(&self.counts, displacements),
        }
    }
}

impl What {
    /// Make the call and wait for it.
    ///
    /// # Safety
    /// The call's `Held` lives until this returns.
    pub unsafe fn run(&self, comm: &Communicator) -> Result<()> {
        // SAFETY: arrays that were checked to be as long as the call says; that nobody else touches them meanwhile is
        // their owner's affair, as everywhere in Python.
        unsafe {
            match self {
                What::Plain { call, input, output } => comm.run_at(*call, *input, *output),
                What::Blocks { call, input, output } => {
                    comm.run_v_at(*call, (input.0, input.1.blocks()), (output.0, output.1.blocks()))
                }
                What::Message(m) if m.receives => comm.recv_at(m.dtype, m.count, m.data, m.peer, m.tag),
                What::Message(m) => comm.send_at(m.dtype, m.count, m.data, m.peer, m.tag),
                What::Both(..) => {
                    let mut group = comm.raw_group();
                    self.collect(&mut group);
                    group.run()
                }
            }
        }
    }

    /// Queue it on a CUDA stream, if its arrays lie in device memory; or wait for the stream, and then for it.
    ///
    /// # Safety
    /// The call's `Held` lives until this returns; device memory is given back in the order of the stream, or later.
    pub unsafe fn run_on(&self, comm: &Communicator, stream: &cuda::Stream) -> Result<()> {
        // SAFETY: as in `run`.
        unsafe {
            match self {
                What::Plain { call, input, output } => comm.call_at(*call, *input, *output, stream),
                What::Blocks { call, input, output } => {
                    comm.call_v_at(*call, (input.0, input.1.blocks()), (output.0, output.1.blocks()), stream)
                }
                What::Message(m) if m.receives => comm.recv_at_on((m.dtype, m.count), m.data, m.peer, m.tag, stream),
                What::Message(m) => comm.send_at_on((m.dtype, m.count), m.data, m.peer, m.tag, stream),
                What::Both(got, sent) => {
                    let got_at = ((got.dtype, got.count), got.data, got.peer);
                    let sent_at = ((sent.dtype, sent.count), sent.data.cast_const(), sent.peer);
                    comm.send_recv_at_on(sent_at, got_at, got.tag, stream)
                }
            }
        }
    }

    /// Start it.
    ///
    /// # Safety
    /// The call's `Held` lives until the request is done.
    pub unsafe fn start(&self, comm: &Communicator, stream: Option<&Stream>) -> Result<RawRequest> {
        // SAFETY: as in `run`.
        unsafe {
            match self {
                What::Plain { call, input, output } => comm.start_at(*call, *input, *output, stream),
                What::Blocks { call, input, output } => {
                    comm.start_v_at(*call, (input.0, input.1.blocks()), (output.0, output.1.blocks()), stream)
                }
                What::Message(m) if m.receives => comm.start_recv_at(m.dtype, m.count, m.data, m.peer, m.tag, stream),
                What::Message(m) => comm.start_send_at(m.dtype, m.count, m.data, m.peer, m.tag, stream),
                What::Both(..) => {
                    let mut group = comm.raw_group();
                    self.collect(&mut group);
                    group.start(stream)
                }
            }
        }
    }

    /// Plan it.
    ///
    /// # Safety
    /// The call's `Held` lives as long as what this returns.
    pub unsafe fn keep(&self, comm: &Communicator) -> Result<RawPersistent> {
        match self {
            // SAFETY: as in `run`.
            What::Plain { call, input, output } => unsafe { comm.persistent_at(*call, *input, *output) },
            // SAFETY: as in `run`.
            What::Blocks { call, input, output } => unsafe {
                comm.persistent_v_at(*call, (input.0, input.1.blocks()), (output.0, output.1.blocks()))
            },
            What::Message(_) | What::Both(..) => {
                let what = "messages between two ranks have no persistent form".to_string();
                Err(maypole::Error::Argument { rank: comm.rank(), what })
            }
        }
    }

    /// Put it into a group.
    ///
    /// # Safety
    /// The call's `Held` lives until the group has run, or its request is done.
    pub unsafe fn collect(&self, group: &mut RawGroup<'_>) {
        let message = |group: &mut RawGroup<'_>, m: &Message| {
            // SAFETY: as in `run`.
            unsafe {
                match m.receives {
                    true => group.recv_at(m.dtype, m.count, m.data, m.peer, m.tag),
                    false => group.send_at(m.dtype, m.count, m.data, m.peer, m.tag),
                }
            }
        };
        match self {
            // SAFETY: as in `run`.
            What::Plain { call, input, output } => unsafe { group.call_at(*call, *input, *output) },
            // SAFETY: as in `run`.
            What::Blocks { call, input, output } => unsafe {
                group.call_v_at(*call, (input.0, input.1.blocks()), (output.0, output.1.blocks()));
            },
            What::Message(m) => message(group, m),
            What::Both(one, other) => {
                message(group, one);
                message(group, other);
            }
        }
    }
}

impl Message {
    /// A message of an array that may lie where it does.
    pub fn of(
        array: &Array,
        name: &str,
        (side, peer): (&str, i64),
        tag: i64,
        size: usize,
    ) -> std::result::Result<Message, String> {
        let receives = side == "source";
        if receives && array.read_only {
            return Err(format!("{name}: is read-only, but a message is received there"));
        }
        let (dtype, unit) = array.kind.carried(None)?;
        let tag = u32::try_from(tag).map_err(|_| format!("tag: is {tag}, but tags are 0 to {}", u32::MAX))?;
        let peer = rank_of(side, peer, size)?;
        Ok(Message { dtype, count: array.count * unit, data: array.address, peer, tag, receives })
    }
}

/// Lengths of blocks of elements that are `unit` of what is carried.
pub fn lengths(
    counts: &Bound<'_, PyAny>,
    displacements: Option<&Bound<'_, PyAny>>,
    (name, unit): (&str, usize),
) -> std::result::Result<Lengths, String> {
    let read = |object: &Bound<'_, PyAny>, name: &str| {
        let numbers: PyResult<Vec<i64>> = object.try_iter().and_then(|all| all.map(|each| each?.extract()).collect());
        let numbers = numbers.map_err(|_| format!("{name}: is no sequence of whole numbers"))?;
        let scaled = numbers.into_iter().map(|n| usize::try_from(n).ok().and_then(|n| n.checked_mul(unit)));
        scaled
            .collect::<Option<Vec<usize>>>()
            .ok_or_else(|| format!("{name}: has a number that is negative or too large"))
    };
    let displacements = displacements.map(|d| read(d, &name.replace("counts", "displacements"))).transpose()?;
    Ok(Lengths { counts: read(counts, name)?, displacements })
}
