//! The arguments of a call, checked and made into what the library takes.
//!
//! Every collective can be made in several ways (blocking, asynchronous, in a group, ...). They differ in what is done
//! with a [`Prepared`] call, which a [`Form`] knows; everything about arguments is here, once.

use std::sync::Arc;

use maypole::{Call, Collective, Communicator, DataType, Pair, ReduceOp};
use pyo3::prelude::*;

use crate::array::{Array, Kind};
use crate::communicator::Slot;
use crate::operation::{self, Chosen, Op};
use crate::prepared::{Held, Prepared, What};
use crate::{error, waiting};

/// An argument that is an array.
pub type Object<'py> = Bound<'py, PyAny>;
/// An argument that may be left out.
pub type Maybe<'py> = Option<Bound<'py, PyAny>>;

/// A way to make calls.
pub trait Form {
    /// Whether a call whose arguments are refused here counts as made, so that the others are told.
    const REFUSES: bool;

    /// Where it has its communicator.
    fn slot(&self) -> &Slot;

    /// The CUDA stream on which device memory is used.
    fn device_stream(&self) -> Option<usize> {
        None
    }

    /// Make the call.
    fn take<'py>(&self, py: Python<'py>, comm: Arc<Communicator>, call: Prepared<'py>) -> PyResult<Bound<'py, PyAny>>;
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
        sides.placed(stream, collective.name())?;
        let result = sides.result.take();
        Ok(Prepared {
            what: What::Plain { call, input, output },
            held: Held::new([sides.input, sides.output], own),
            result: result.unwrap_or_else(|| py.None().into_bound(py)),
        })
    })
}

/// Check a call's arguments and make it.
pub fn make<'py, F: Form>(
    form: &F,
    py: Python<'py>,
    prepare: impl FnOnce(&Communicator, Option<usize>) -> Result<Prepared<'py>, String>,
) -> PyResult<Bound<'py, PyAny>> {
    let comm = form.slot().open(py)?;
    match prepare(&comm, form.device_stream()) {
        Ok(prepared) => form.take(py, comm, prepared),
        Err(what) if F::REFUSES => {
            let refused = waiting::blocking(py, &comm, || Ok(comm.refuse(what)))?;
            Err(error::to_py(py, refused))
        }
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

impl Sides<'_> {
    /// Refuse device memory where no stream was named. Both lie in the same memory.
    pub fn placed(&self, stream: Option<usize>, call: &str) -> Result<(), String> {
        let (array, name) = match (&self.input, &self.output) {
            (Some(x), _) => (x, "x"),
            (None, Some(out)) => (out, "out"),
            (None, None) => return Ok(()),
        };
        array.placed(stream, &format!("{call}({name})")).map_err(|what| format!("{name}: {what}"))
    }
}

impl Place {
    /// # Errors
    /// A root that is no rank.
    pub fn of(comm: &Communicator, collective: Collective, root: i64) -> Result<Place, String> {
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
    ) -> Result<Sides<'py>, String> {
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
    pub fn count(&self, sides: &Sides<'_>) -> Result<usize, String> {
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
pub fn element(py: Python<'_>, array: Option<&Array>, op: Option<Chosen>) -> Result<Carried, String> {
    let kind = array.map_or(&Kind::Number(DataType::U8), |array| &array.kind);
    let name = |what: String| format!("x: {what}");
    match op {
        None => kind.carried(None).map_err(name).map(|(dtype, unit)| (dtype, unit, ReduceOp::Sum, None)),
        Some(Chosen::Known(op)) => kind.carried(Some(op)).map_err(name).map(|(dtype, unit)| (dtype, unit, op, None)),
        Some(Chosen::Located(of)) => match kind {
            Kind::Pair(pair) => Ok((pair.dtype(), Pair::WIDTH, of(*pair), None)),
            _ => Err(name(format!(
                "{} needs pairs of a value and its index, as numpy.dtype([(\"value\", \"f4\"), (\"index\", \"i4\")], \
                 align=True) describes them, not elements of {kind}",
                of(Pair::F32I32).name()
            ))),
        },
        Some(Chosen::Own(own)) => {
            let (dtype, unit, op) = own.get().on(py, kind)?;
            Ok((dtype, unit, op, Some(own)))
        }
    }
}

/// A rank that an argument names.
pub fn rank_of(name: &str, rank: i64, size: usize) -> Result<usize, String> {
    usize::try_from(rank)
        .ok()
        .filter(|rank| *rank < size)
        .ok_or_else(|| format!("{name}: is {rank}, but the ranks are 0 to {}", size - 1))
}
