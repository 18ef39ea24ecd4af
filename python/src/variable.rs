//! Calls whose blocks have counts of their own.

use maypole::{Call, Collective};
use pyo3::prelude::*;

use crate::array::Array;
use crate::calls::{self, Form, Lengths, Maybe, Place, Prepared, What};
use crate::operation;

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
        let mut sides = place.arrays(py, (x, out), stream)?;
        let given = sides.input.as_ref().or(sides.output.as_ref());
        let (dtype, unit, op, own) = calls::element(py, given, op)?;
        for array in sides.input.iter().chain(&sides.output) {
            calls::on_host(array, "x")?;
        }
        let both = collective == Collective::AllToAll;
        let spread = |counts: &Maybe<'py>, displacements: &Maybe<'py>, name: &str| match counts {
            Some(counts) => calls::lengths(counts, displacements.as_ref(), (name, unit)),
            None => Err(format!("{name}: {}_v needs the counts of all ranks on rank {}", place.name, place.rank)),
        };
        let single = |array: Option<&Array>| Lengths::one(array.map_or(0, |array| array.count * unit));
        // One array: the larger side's, with the smaller inside it; or the only side's.
        let alone = sides.output.is_none();
        let (input, output) = match (place.inputs, place.outputs) {
            (0, 0) => (Lengths::default(), Lengths::default()),
            _ if both => {
                let sent = spread(&counts, &displacements, "counts")?;
                let received = match alone && out_counts.is_none() {
                    true => spread(&counts, &displacements, "counts")?,
                    false => spread(&out_counts, &out_displacements, "out_counts")?,
                };
                (sent, received)
            }
            (i, o)
                if i > 1
                    || (i == 1
                        && o == 1
                        && collective != Collective::Gather
                        && collective != Collective::AllGather) =>
            {
                let larger = spread(&counts, &displacements, "counts")?;
                let own = if alone { Lengths::one(larger.count(place.rank)) } else { single(sides.output.as_ref()) };
                (larger, own)
            }
            (1, o) if o >= 1 => {
                let larger = spread(&counts, &displacements, "counts")?;
                let own = if alone { Lengths::one(larger.count(place.rank)) } else { single(sides.input.as_ref()) };
                (own, larger)
            }
            // Not the root: one block on one side.
            (1, _) => (single(sides.input.as_ref()), Lengths::default()),
            _ => (Lengths::default(), single(sides.output.as_ref().or(sides.input.as_ref()))),
        };
        let x = sides.input.as_ref().map_or(std::ptr::null_mut(), |x| x.address);
        let (from, to) = match &sides.output {
            Some(out) => {
                out_fits(&output, out, unit, "out")?;
                if let Some(x) = &sides.input {
                    out_fits(&input, x, unit, "x")?;
                }
                (x, out.address)
            }
            None => {
                let (larger, offset_in) = match place.inputs >= place.outputs {
                    true => (&input, false),
                    false => (&output, true),
                };
                if let Some(array) = &sides.input {
                    out_fits(larger, array, unit, "x")?;
                }
                let own = x.wrapping_add(larger.start(place.rank) * dtype.size());
                match (both || place.inputs == 0 || place.outputs == 0, offset_in) {
                    (true, _) => (x, x),
                    (false, true) => (own, x),
                    (false, false) => (x, own),
                }
            }
        };
        let call = Call { collective, dtype, count: 0, op, root: place.root };
        let result = sides.result.take();
        Ok(Prepared {
            what: What::Blocks { call, input: (from, input), output: (to, output) },
            held: calls::held([sides.input, sides.output], own),
            result: result.unwrap_or_else(|| py.None().into_bound(py)),
        })
    })
}

/// Whether the blocks lie within the array, and fill it if they follow each other.
fn out_fits(lengths: &Lengths, array: &Array, unit: usize, name: &str) -> Result<(), String> {
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

impl<'py> Arguments<'py> {
    /// Without counts.
    pub fn of(x: Maybe<'py>, out: Maybe<'py>) -> Arguments<'py> {
        Arguments { x, out, counts: None, displacements: None, out_counts: None, out_displacements: None }
    }
}
