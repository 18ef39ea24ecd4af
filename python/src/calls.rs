//! The arguments of a call, checked and made into what the library takes.
//!
//! Every collective can be made in several ways (blocking, asynchronous, in a group, ...). They differ in what is done
//! with a [`Prepared`] call, which a [`Form`] knows; everything about arguments is here, once.

use std::sync::Arc;

use maypole::{
    Blocks, Call, Collective, Communicator, DataType, RawGroup, RawPersistent, RawRequest, ReduceOp, Result, Stream,
};
use pyo3::prelude::*;

use crate::array::{Array, Kind};
use crate::operation::{self, Chosen, Op};
use crate::{error, waiting};

/// An argument that is an array.
pub type Object<'py> = Bound<'py, PyAny>;
/// An argument that may be left out.
pub type Maybe<'py> = Option<Bound<'py, PyAny>>;

/// A way to make calls.
pub trait Form {
    /// Whether a call whose arguments are refused here counts as made, so that the others are told.
    const REFUSES: bool;

    /// The communicator.
    fn communicator(&self, py: Python<'_>) -> PyResult<Arc<Communicator>>;

    /// The CUDA stream on which device memory is used.
    fn device_stream(&self) -> Option<usize> {
        None
    }

    /// Make the call.
    fn take<'py>(&self, py: Python<'py>, comm: Arc<Communicator>, call: Prepared<'py>) -> PyResult<Bound<'py, PyAny>>;
}

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
    #[expect(dead_code, reason = "held to be dropped")]
    arrays: [Option<Array>; 2],
    op: Option<Py<Op>>,
}

impl Held {
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
    Plain { call: Call, input: *const u8, output: *mut u8, on_device: bool },
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

/// Counts and displacements.
#[derive(Default)]
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
                What::Plain { call, input, output, .. } => comm.run_at(*call, *input, *output),
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

    /// Start it.
    ///
    /// # Safety
    /// The call's `Held` lives until the request is done.
    pub unsafe fn start(&self, comm: &Communicator, stream: Option<&Stream>) -> Result<RawRequest> {
        // SAFETY: as in `run`.
        unsafe {
            match self {
                What::Plain { call, input, output, .. } => comm.start_at(*call, *input, *output, stream),
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
            What::Plain { call, input, output, .. } => unsafe { comm.persistent_at(*call, *input, *output) },
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
            What::Plain { call, input, output, .. } => unsafe { group.call_at(*call, *input, *output) },
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

/// Make a collective with equal blocks in a form.
pub fn plain<'py, F: Form>(
    form: &F,
    py: Python<'py>,
    collective: Collective,
    (x, out): (Maybe<'py>, Maybe<'py>),
    op: Maybe<'py>,
    root: i64,
) -> PyResult<Bound<'py, PyAny>> {
    make(form, py, |comm, stream| {
        let place = Place::of(comm, collective, root)?;
        let op = collective.reduces().then(|| operation::choose(op.as_ref())).transpose()?;
        let mut sides = place.arrays(py, (x, out), stream)?;
        let given = sides.input.as_ref().or(sides.output.as_ref());
        let (dtype, unit, op, own) = element(py, given, op)?;
        let count = place.count(&sides)?;
        let call = Call { collective, dtype, count: count * unit, op, root: place.root };
        let (input, output) = place.addresses(&sides, call.count * dtype.size());
        let on_device = given_on_device(&sides, stream)?;
        let result = sides.result.take();
        Ok(Prepared {
            what: What::Plain { call, input, output, on_device },
            held: Held { arrays: [sides.input, sides.output], op: own },
            result: result.unwrap_or_else(|| py.None().into_bound(py)),
        })
    })
}

/// Check a call's arguments and make it.
pub fn make<'py, F: Form>(
    form: &F,
    py: Python<'py>,
    prepare: impl FnOnce(&Communicator, Option<usize>) -> std::result::Result<Prepared<'py>, String>,
) -> PyResult<Bound<'py, PyAny>> {
    let comm = form.communicator(py)?;
    match prepare(&comm, form.device_stream()) {
        Ok(prepared) => form.take(py, comm, prepared),
        Err(what) if F::REFUSES => Err(waiting::blocking(py, &comm, || Err::<(), _>(comm.refuse(what)))
            .err()
            .unwrap_or_else(|| error::argument(py, "refused"))),
        Err(what) => Err(error::to_py(py, maypole::Error::Argument { rank: comm.rank(), what })),
    }
}

/// A collective's shape on this rank.
pub struct Place {
    pub name: &'static str,
    pub collective: Collective,
    pub rank: usize,
    pub size: usize,
    pub root: usize,
    pub inputs: usize,
    pub outputs: usize,
}

/// The arrays of a call.
pub struct Sides<'py> {
    pub input: Option<Array>,
    /// `None`: in place, or this rank gets nothing.
    pub output: Option<Array>,
    pub result: Maybe<'py>,
}

impl Place {
    /// # Errors
    /// A root that is no rank.
    pub fn of(comm: &Communicator, collective: Collective, root: i64) -> std::result::Result<Place, String> {
        let (rank, size) = (comm.rank(), comm.size());
        let root = if collective.is_rooted() { rank_of("root", root, size)? } else { 0 };
        let inputs = collective.input_blocks(rank, size, root);
        let outputs = collective.output_blocks(rank, size, root);
        Ok(Place { name: collective.name(), collective, rank, size, root, inputs, outputs })
    }

    /// The arrays that this rank passes. Those that it has no use for are not looked at.
    pub fn arrays<'py>(
        &self,
        py: Python<'py>,
        (x, out): (Maybe<'py>, Maybe<'py>),
        stream: Option<usize>,
    ) -> std::result::Result<Sides<'py>, String> {
        let array = |object: &Bound<'_, PyAny>, name: &str, written: bool| {
            let array = Array::of(object, stream).map_err(|what| format!("{name}: {what}"))?;
            match written && array.read_only {
                true => Err(format!("{name}: is read-only, but {} writes there", self.name)),
                false => Ok(array),
            }
        };
        if self.collective == Collective::Barrier {
            return Ok(Sides { input: None, output: None, result: None });
        }
        let apart = out.is_some() && self.outputs > 0;
        if !apart && x.is_none() && self.outputs > 0 {
            return Err(format!("x: {} needs an array on rank {}, or out", self.name, self.rank));
        }
        if x.is_none() && self.inputs > 0 {
            return Err(format!("x: {} needs an array on rank {}", self.name, self.rank));
        }
        if !apart {
            // The root's own block of a broadcast or a scatter stays as it is.
            let keeps = matches!(self.collective, Collective::Broadcast | Collective::Scatter) && self.inputs > 0;
            let x = x.unwrap_or_else(|| py.None().into_bound(py));
            let input = Some(array(&x, "x", self.outputs > 0 && !keeps)?);
            return Ok(Sides { input, output: None, result: (self.outputs > 0).then_some(x) });
        }
        let input = match x {
            Some(x) if self.inputs > 0 => Some(array(&x, "x", false)?),
            _ => None,
        };
        let out = out.expect("apart");
        let output = array(&out, "out", true)?;
        if let Some(input) = &input {
            if input.kind != output.kind {
                return Err(format!("out: has elements of {}, but x has elements of {}", output.kind, input.kind));
            }
            if input.device != output.device {
                return Err("out: lies elsewhere than x: both in host memory, or both on the same device".into());
            }
        }
        Ok(Sides { input, output: Some(output), result: Some(out) })
    }

    /// Elements of a block.
    pub fn count(&self, sides: &Sides<'_>) -> std::result::Result<usize, String> {
        let blocks_of = |array: &Array, name: &str, blocks: usize| match array.count % blocks.max(1) {
            0 => Ok(array.count / blocks.max(1)),
            _ => Err(format!(
                "{name}: has {} elements, but {} of {} ranks takes {blocks} equal blocks there",
                array.count, self.name, self.size
            )),
        };
        match (&sides.input, &sides.output) {
            (None, None) => Ok(0),
            (Some(x), None) => blocks_of(x, "x", self.inputs.max(self.outputs)),
            (None, Some(out)) => blocks_of(out, "out", self.outputs),
            (Some(x), Some(out)) => {
                let count = blocks_of(x, "x", self.inputs)?;
                match out.count == count * self.outputs {
                    true => Ok(count),
                    false => Err(format!(
                        "out: has {} elements, but {} of {} ranks with {} elements in x gives {}",
                        out.count,
                        self.name,
                        self.size,
                        x.count,
                        count * self.outputs
                    )),
                }
            }
        }
    }

    /// Where input and output lie, with blocks of `block` bytes.
    fn addresses(&self, sides: &Sides<'_>, block: usize) -> (*const u8, *mut u8) {
        let x = sides.input.as_ref().map_or(std::ptr::null_mut(), |x| x.address);
        if let Some(out) = &sides.output {
            return (x, out.address);
        }
        let own = x.wrapping_add(self.collective.in_place_block(self.rank).unwrap_or(0) * block);
        match (self.inputs, self.outputs) {
            (i, o) if i > 1 && o == 1 => (x, own),
            (i, o) if i == 1 && o > 1 => (own, x),
            _ => (x, x),
        }
    }
}

/// See [`element`].
type Carried = (DataType, usize, ReduceOp, Option<Py<Op>>);

/// What is carried: the type, how many of it make an element of the array, the operation, and what keeps that.
pub fn element(
    py: Python<'_>,
    array: Option<&Array>,
    op: Option<Chosen>,
) -> std::result::Result<Carried, String> {
    let kind = array.map_or(&Kind::Number(DataType::U8), |array| &array.kind);
    let name = |what: String| format!("x: {what}");
    match op {
        None => kind.carried(None).map_err(name).map(|(dtype, unit)| (dtype, unit, ReduceOp::Sum, None)),
        Some(Chosen::Known(op)) => kind.carried(Some(op)).map_err(name).map(|(dtype, unit)| (dtype, unit, op, None)),
        Some(Chosen::Own(own)) => match kind {
            Kind::Number(dtype) => Ok((*dtype, 1, own.get().on(py, *dtype)?, Some(own))),
            _ => Err(format!("x: operation {:?} cannot be used on elements of {kind}", own.get().label())),
        },
    }
}

/// Whether the arrays lie on a device.
fn given_on_device(sides: &Sides<'_>, stream: Option<usize>) -> std::result::Result<bool, String> {
    let device = sides.input.as_ref().or(sides.output.as_ref()).and_then(|array| array.device);
    match (device, stream) {
        (Some(device), None) => Err(format!(
            "x: lies in the memory of CUDA device {device}; say on which stream to use it: comm.on(stream).all_reduce(x)"
        )),
        (device, _) => Ok(device.is_some()),
    }
}

/// Refuse arrays in device memory.
pub fn on_host(array: &Array, name: &str) -> std::result::Result<(), String> {
    match array.device {
        None => Ok(()),
        Some(device) => Err(format!(
            "{name}: lies in the memory of CUDA device {device}; from Python only collectives with equal blocks take that"
        )),
    }
}

/// A rank that an argument names.
pub fn rank_of(name: &str, rank: i64, size: usize) -> std::result::Result<usize, String> {
    usize::try_from(rank)
        .ok()
        .filter(|rank| *rank < size)
        .ok_or_else(|| format!("{name}: is {rank}, but the ranks are 0 to {}", size - 1))
}

impl Message {
    /// A message of an array.
    pub fn of(
        array: &Array,
        name: &str,
        (side, peer): (&str, i64),
        tag: i64,
        size: usize,
    ) -> std::result::Result<Message, String> {
        on_host(array, name)?;
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

/// What a message, or two, give.
pub fn held(arrays: [Option<Array>; 2], op: Option<Py<Op>>) -> Held {
    Held { arrays, op }
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
