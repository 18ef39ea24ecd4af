//! Messages between two ranks.

use std::sync::Arc;

use maypole::Communicator;
use pyo3::prelude::*;

use crate::array::Array;
use crate::calls::{Form, Object};
use crate::communicator::Slot;
use crate::prepared::{FromAnyone, Held, Message, Prepared, What};
use crate::request::Request;
use crate::{error, waiting};

/// Make a message to or from a rank in a form.
pub fn one<'py, F: Form>(form: &F, x: Object<'py>, peer: (&str, i64), tag: i64) -> PyResult<Object<'py>> {
    let py = x.py();
    let call = if peer.0 == "to" { "send" } else { "recv" };
    local(form, py, |size| {
        let array = array(&x, "x", form.device_stream(), call)?;
        let message = Message::of(&array, "x", peer, tag, size)?;
        Ok(Prepared { what: What::Message(message), held: Held::new([Some(array), None], None), result: x })
    })
}

/// Make a message to a rank and one from a rank together.
pub fn both<'py, F: Form>(
    form: &F,
    (x, to): (Object<'py>, i64),
    (out, source): (Object<'py>, i64),
    tag: i64,
) -> PyResult<Object<'py>> {
    let py = x.py();
    local(form, py, |size| {
        let sent = array(&x, "x", form.device_stream(), "send_recv")?;
        let received = array(&out, "out", form.device_stream(), "send_recv")?;
        let what = What::Both(
            Message::of(&received, "out", ("source", source), tag, size)?,
            Message::of(&sent, "x", ("to", to), tag, size)?,
        );
        Ok(Prepared { what, held: Held::new([Some(sent), Some(received)], None), result: out })
    })
}

/// Receive from whichever rank sends first: that rank.
pub fn from_anyone(slot: &Slot, x: &Object<'_>, tag: i64) -> PyResult<usize> {
    let py = x.py();
    let (comm, message, _held) = expected(slot, x, tag)?;
    // SAFETY: `_held` has the array until this returns.
    waiting::blocking(py, &comm, || unsafe { message.run(&comm) })
}

/// Start to receive from whichever rank sends first: a request that gives that rank.
pub fn start_from_anyone<'py>(slot: &Slot, x: &Object<'py>, tag: i64) -> PyResult<Object<'py>> {
    let py = x.py();
    let (comm, message, held) = expected(slot, x, tag)?;
    // SAFETY: the request keeps `held` until it is done.
    let started = waiting::detached(py, || unsafe { message.start(&comm) });
    Request::new(started.map_err(|e| error::to_py(py, e))?, vec![held], py.None()).into_object(py)
}

fn expected(slot: &Slot, x: &Object<'_>, tag: i64) -> PyResult<(Arc<Communicator>, FromAnyone, Held)> {
    let comm = slot.open(x.py())?;
    let prepared = array(x, "x", None, "recv_any")
        .and_then(|array| Ok((FromAnyone::of(&array, "x", tag)?, Held::new([Some(array), None], None))));
    match prepared {
        Ok((message, held)) => Ok((comm, message, held)),
        Err(what) => Err(error::to_py(x.py(), maypole::Error::Argument { rank: comm.rank(), what })),
    }
}

/// An array of a message, in a memory that the call's form takes.
fn array(object: &Object<'_>, name: &str, stream: Option<usize>, call: &str) -> Result<Array, String> {
    let array = Array::of(object, stream).and_then(|array| {
        array.placed(stream, &format!("{call}({name})"))?;
        Ok(array)
    });
    array.map_err(|what| format!("{name}: {what}"))
}

/// Messages have no turn among the collectives, so nobody is told of one that was refused here.
fn local<'py, F: Form>(
    form: &F,
    py: Python<'py>,
    prepare: impl FnOnce(usize) -> Result<Prepared<'py>, String>,
) -> PyResult<Object<'py>> {
    let comm = form.slot().open(py)?;
    match prepare(comm.size()) {
        Ok(prepared) => form.take(py, comm, prepared),
        Err(what) => Err(crate::error::to_py(py, maypole::Error::Argument { rank: comm.rank(), what })),
    }
}
