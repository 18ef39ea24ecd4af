//! Calls whose blocks have counts of their own.

use maypole::{Call, Collective};
use pyo3::prelude::*;

use crate::array::Array;
use crate::calls::{self, Form, Maybe, Place};
use crate::operation;
use crate::prepared::{self, Held, Lengths, Prepared, What};

/// The arguments of a call with counts, as Python passed them.
pub struct Arguments<'py> {
    pub x: Maybe<'py>,
    pub out: Maybe<'py>,
    /// Of the side that has a block for each rank; of the input, where both have.
    pub counts: Maybe<'py>,
    pub displacements: Maybe<'py>,
    /// Of the output, where both sides have a block for each rank.
    pub out_counts: Maybe<'py>,
    pub out_displacements: Maybe<'py>,
}

impl<'py> Arguments<'py> {
    /// Without counts.
    pub fn of(x: Maybe<'py>, out: Maybe<'py>) -> Arguments<'py> {
        Arguments { x, out, counts: None, displacements: None, out_counts: None, out_displacements: None }
    }
}

/// What this rank has on one side of a collective.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Nothing,
    /// Its own block.
    Own,
    /// A block for each rank.
    All,
}

/// The sides of a collective that has counts.
fn shape(place: &Place) -> (Side, Side) {
    let at_root = |side| if place.rank == place.root { side } else { Side::Nothing };
    match place.collective {
        Collective::AllGather => (Side::Own, Side::All),
        Collective::ReduceScatter => (Side::All, Side::Own),
        Collective::Gather => (Side::Own, at_root(Side::All)),
        Collective::Scatter => (at_root(Side::All), Side::Own),
        _ => (Side::All, Side::All),
    }
}

/// Make a collective with counts in a form.
pub fn blocks<'py, F: Form>(
    form: &F,
    py: Python<'py>,
    collective: Collective,
    arguments: Arguments<'py>,
    op: Maybe<'py>,
    root: i64,
) -> PyResult<Bound<'py, PyAny>> {
    calls::make(form, py, |comm, stream| {
        let place = Place::of(comm, collective, root)?;
        let op = collective.reduces().then(|| operation::choose(op.as_ref())).transpose()?;
        let Arguments { x, out, counts, displacements, out_counts, out_displacements } = arguments;
        let mut arrays = place.arrays(py, (x, out), stream)?;
        let given = arrays.input.as_ref().or(arrays.output.as_ref());
        let (dtype, unit, op, own) = calls::element(py, given, op)?;
        arrays.placed(stream, &format!("{}_v", place.name))?;

        let sides = shape(&place);
        let spread = |counts: &Maybe<'py>, displacements: &Maybe<'py>, name: &str| match counts {
            Some(counts) => prepared::lengths(counts, displacements.as_ref(), (name, unit)),
            None => Err(format!("{name}: {}_v needs the counts of all ranks on rank {}", place.name, place.rank)),
        };
        let all = (sides.0 == Side::All || sides.1 == Side::All)
            .then(|| spread(&counts, &displacements, "counts"))
            .transpose()?
            .unwrap_or_default();
        let in_place = arrays.output.is_none();
        let single = |array: Option<&Array>| match in_place && (sides.0 == Side::All || sides.1 == Side::All) {
            true => Lengths::one(all.count(place.rank)),
            false => Lengths::one(array.map_or(0, |array| array.count * unit)),
        };
        let input = match sides.0 {
            Side::Nothing => Lengths::default(),
            Side::Own => single(arrays.input.as_ref()),
            Side::All => all.clone(),
        };
        let output = match sides.1 {
            Side::Nothing => Lengths::default(),
            Side::Own => single(arrays.output.as_ref().or(arrays.input.as_ref())),
            Side::All if sides.0 == Side::All && !(in_place && out_counts.is_none()) => {
                spread(&out_counts, &out_displacements, "out_counts")?
            }
            Side::All => all.clone(),
        };

        let x = arrays.input.as_ref().map_or(std::ptr::null_mut(), |x| x.address);
        let (from, to) = if let Some(out) = &arrays.output {
            fits(&output, out, unit, "out")?;
            if let Some(x) = &arrays.input {
                fits(&input, x, unit, "x")?;
            }
            (x, out.address)
        } else {
            // One array: the side that has all blocks, and this rank's own inside it; or the only side.
            let larger = if sides.1 == Side::All || sides.0 == Side::Nothing { &output } else { &input };
            if let Some(x) = &arrays.input {
                fits(larger, x, unit, "x")?;
            }
            let own = x.wrapping_add(all.start(place.rank) * dtype.size());
            match sides {
                (Side::Own, Side::All) => (own, x),
                (Side::All, Side::Own) => (x, own),
                _ => (x, x),
            }
        };
        let call = Call { collective, dtype, count: 0, op, root: place.root };
        let result = arrays.result.take();
        Ok(Prepared {
            what: What::Blocks { call, input: (from, input), output: (to, output) },
            held: Held::new([arrays.input, arrays.output], own),
            result: result.unwrap_or_else(|| py.None().into_bound(py)),
        })
    })
}

/// Whether the blocks lie within the array, and fill it if they follow each other.
fn fits(lengths: &Lengths, array: &Array, unit: usize, name: &str) -> Result<(), String> {
    let end = lengths.end().ok_or_else(|| format!("{name}: the counts are more than there are addresses"))?;
    let has = array.count * unit;
    match end <= has && (end == has || !lengths.is_packed()) {
        true => Ok(()),
        false => Err(format!(
            "{name}: has {} elements, but its blocks {} {}",
            array.count,
            if lengths.is_packed() { "are together" } else { "reach to" },
            end / unit
        )),
    }
}
