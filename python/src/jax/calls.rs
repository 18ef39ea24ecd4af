//! The handlers that XLA calls: one for collectives, one for messages between two ranks.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use maypole::{Call, Collective, Communicator, DataType, Error, Pair, ReduceOp, Verdict};
use pyo3::PyErr;

use super::frame::{self, Frame, Refusal, Tensor};
use super::layout::{CallFrame, XlaError, code, element};
use super::registry::{self, Failure};
use crate::waiting;

/// What XLA calls.
pub type Handler = unsafe extern "C" fn(*mut CallFrame) -> *mut XlaError;

/// A collective. Attributes: `collective`, its name; `comm`, the communicator's number, and `size`, how many ranks it
/// has; `op` and `root`, which are ignored where the collective has none.
///
/// # Safety
/// XLA calls it.
pub unsafe extern "C" fn collective(frame: *mut CallFrame) -> *mut XlaError {
    // SAFETY: the caller's promise.
    unsafe { answer(frame, run_collective) }
}

/// Messages: what there is of an operand is sent to rank `to`, what there is of a result is received from rank
/// `source`, both with `tag`. Where the rank is -1, nothing is sent, and the result is zeros. `comm` and `size` as
/// above.
///
/// # Safety
/// XLA calls it.
pub unsafe extern "C" fn message(frame: *mut CallFrame) -> *mut XlaError {
    // SAFETY: the caller's promise.
    unsafe { answer(frame, run_message) }
}

/// # Safety
/// `frame` is what XLA passed to the handler.
unsafe fn answer(frame: *mut CallFrame, run: fn(&Frame<'_>) -> Result<(), Refusal>) -> *mut XlaError {
    // SAFETY: the caller's promise.
    if unsafe { frame::answers_metadata(frame) } {
        return null_mut();
    }
    // SAFETY: as above. A panic must not unwind into C++.
    let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { Frame::read(frame) }.and_then(|frame| run(&frame))));
    let panicked = || Refusal { code: code::INTERNAL, message: "maypole.jax: a call panicked".into() };
    match outcome.unwrap_or_else(|_| Err(panicked())) {
        Ok(()) => null_mut(),
        // SAFETY: as above.
        Err(refusal) => unsafe { frame::refuse(frame, &refusal) },
    }
}

fn run_collective(frame: &Frame<'_>) -> Result<(), Refusal> {
    let comm = communicator(frame)?;
    let name = frame.text("collective")?;
    let collective = Collective::ALL.into_iter().find(|collective| collective.name() == name);
    let collective = collective.ok_or_else(|| Refusal::argument(format!("there is no collective {name:?}")))?;
    let root = usize::try_from(frame.integer("root")?).unwrap_or(usize::MAX);
    if collective == Collective::Barrier {
        return within(&comm, || comm.barrier());
    }
    let (Some(operand), Some(result)) = (frame.operand, frame.result) else {
        return Err(Refusal::argument(format!("{name}: has no operand or no result")));
    };
    let (dtype, width) = if collective.reduces() { arithmetic(operand.dtype) } else { plain(operand.dtype) }
        .ok_or_else(|| Refusal::argument(format!("{name}: x has elements of XLA's type {}", operand.dtype)))?;
    let op = if collective.reduces() { operation(frame.text("op")?)? } else { ReduceOp::Sum };
    // Shapes were settled when the program was compiled, for a communicator of this size; `call` checks the lengths.
    let blocks = if matches!(collective, Collective::ReduceScatter | Collective::AllToAll) { comm.size() } else { 1 };
    let call = Call { collective, dtype, count: operand.count * width / blocks, op, root };
    let unit = width * dtype.size();
    // SAFETY: XLA keeps operands and results where they are for the length of the call, and lets nobody else write to
    // them; a result is never its own operand here, since the call names no aliases.
    let (mut input, output) = unsafe { (bytes(operand, unit), bytes_mut(result, unit)) };
    let output = match collective {
        // Every rank's program has the same shapes, though only the root has something to give or to get.
        Collective::Broadcast if comm.rank() != root => {
            input = &[];
            output
        }
        Collective::Reduce if comm.rank() != root => {
            output.fill(0);
            &mut []
        }
        _ => output,
    };
    within(&comm, || comm.call(call, input, output))
}

fn run_message(frame: &Frame<'_>) -> Result<(), Refusal> {
    let comm = communicator(frame)?;
    let tag = u32::try_from(frame.integer("tag")?).map_err(|_| Refusal::argument("tag: expected 0 to 2^32 - 1"))?;
    // -1 is nobody; other ranks are checked by the call.
    let (to, source) = (usize::try_from(frame.integer("to")?).ok(), usize::try_from(frame.integer("source")?).ok());
    let sent = to.and_then(|to| Some((to, elements(frame.operand?)?)));
    let received = source.and_then(|source| Some((source, elements(frame.result?)?)));
    if to.is_some() != sent.is_some() || source.is_some() != received.is_some() {
        return Err(Refusal::argument("a message: there is no array, or of a type that cannot be sent"));
    }
    if let (None, Some(result)) = (source, frame.result) {
        let unit = plain(result.dtype).map_or(0, |(dtype, width)| width * dtype.size());
        // SAFETY: XLA lets nobody else use the result for the length of the call.
        unsafe { bytes_mut(result, unit) }.fill(0);
    }
    // SAFETY: XLA keeps operands and results where they are, and lets nobody else write to them, until this returns.
    within(&comm, || unsafe {
        match (sent, received) {
            (None, None) => Ok(()),
            (Some((to, (dtype, count, data))), None) => comm.send_at(dtype, count, data, to, tag),
            (None, Some((source, (dtype, count, data)))) => comm.recv_at(dtype, count, data, source, tag),
            (Some((to, out)), Some((source, into))) => {
                let mut both = comm.raw_group();
                both.recv_at(into.0, into.1, into.2, source, tag);
                both.send_at(out.0, out.1, out.2, to, tag);
                both.run()
            }
        }
    })
}

/// Make a call that may wait, and that Ctrl-C may end.
fn within(comm: &Communicator, call: impl FnOnce() -> Result<(), Error>) -> Result<(), Refusal> {
    let (outcome, raised) = waiting::in_program(comm, call);
    outcome.map_err(|error| refusal(error, raised))
}

/// The communicator that the call names, checked to be one that it was compiled for.
fn communicator(frame: &Frame<'_>) -> Result<Arc<Communicator>, Refusal> {
    let (number, size) = (frame.integer("comm")?, frame.integer("size")?);
    let Some(comm) = registry::find(number) else {
        let message =
            format!("comm: the communicator of this program (number {number}) was closed, or is the parent process's");
        return Err(Refusal { code: code::FAILED_PRECONDITION, message });
    };
    if usize::try_from(size) != Ok(comm.size()) {
        let message =
            format!("comm: this program was compiled for {size} ranks, but communicator {number} has {}", comm.size());
        return Err(Refusal { code: code::FAILED_PRECONDITION, message });
    }
    Ok(comm)
}

/// # Safety
/// The tensor has elements of `unit` bytes, readable and unchanged while the slice is used.
unsafe fn bytes<'a>(tensor: Tensor<'a>, unit: usize) -> &'a [u8] {
    match tensor.count * unit {
        0 => &[],
        // SAFETY: the caller's promise.
        length => unsafe { std::slice::from_raw_parts(tensor.data, length) },
    }
}

/// # Safety
/// The tensor has elements of `unit` bytes, which nobody else uses while the slice is.
unsafe fn bytes_mut<'a>(tensor: Tensor<'a>, unit: usize) -> &'a mut [u8] {
    match tensor.count * unit {
        0 => &mut [],
        // SAFETY: the caller's promise.
        length => unsafe { std::slice::from_raw_parts_mut(tensor.data, length) },
    }
}

/// How elements of a type are combined: as how many of which type each. A complex number is added up as two real ones
/// (the only operations on them are sum and average), a truth value is a byte of 0 or 1 (the only ones: min, max, and,
/// or, xor). `maypole.jax` sees to both.
fn arithmetic(dtype: c_int) -> Option<(DataType, usize)> {
    Some(match dtype {
        element::S8 => (DataType::I8, 1),
        element::U8 | element::PRED => (DataType::U8, 1),
        element::S32 => (DataType::I32, 1),
        element::U32 => (DataType::U32, 1),
        element::S64 => (DataType::I64, 1),
        element::U64 => (DataType::U64, 1),
        element::F16 => (DataType::F16, 1),
        element::BF16 => (DataType::Bf16, 1),
        element::F32 => (DataType::F32, 1),
        element::F64 => (DataType::F64, 1),
        element::F8E4M3FN => (DataType::F8E4M3, 1),
        element::F8E5M2 => (DataType::F8E5M2, 1),
        element::C64 => (DataType::F32, 2),
        element::C128 => (DataType::F64, 2),
        _ => return None,
    })
}

/// How elements of a type travel: also those that cannot be combined, as bytes.
fn plain(dtype: c_int) -> Option<(DataType, usize)> {
    match dtype {
        element::S16 | element::U16 => Some((DataType::U8, 2)),
        _ => arithmetic(dtype),
    }
}

/// A tensor as the elements that travel: their type, how many, where.
fn elements(tensor: Tensor<'_>) -> Option<(DataType, usize, *mut u8)> {
    let (dtype, width) = plain(tensor.dtype)?;
    // An empty tensor may have no address at all (jaxlib 0.5), and the library asks for one.
    let data = if tensor.count == 0 { NonNull::dangling().as_ptr() } else { tensor.data };
    Some((dtype, tensor.count * width, data))
}

/// The operation of a name; of pairs, "maxloc of (f32, i32)", whose operand has the words of the pairs.
fn operation(name: &str) -> Result<ReduceOp, Refusal> {
    use ReduceOp::{And, Avg, Max, MaxLoc, Min, MinLoc, Or, Prod, Sum, Xor};
    let plain = [Sum, Prod, Min, Max, Avg, And, Or, Xor].into_iter().find(|op| op.name() == name);
    let found = plain.or_else(|| {
        let (name, of) = name.split_once(" of ")?;
        let pair = Pair::ALL.into_iter().find(|pair| pair.name() == of)?;
        [MinLoc(pair), MaxLoc(pair)].into_iter().find(|op| op.name() == name)
    });
    found.ok_or_else(|| Refusal::argument(format!("there is no operation {name:?}")))
}

/// The error as XLA takes it: with a code of its own, and the whole text. The error itself is kept for Python, or what
/// a signal's handler raised, if that is the cause.
fn refusal(error: Error, raised: Option<PyErr>) -> Refusal {
    let code = match &error {
        Error::Argument { .. } | Error::Setting { .. } => code::INVALID_ARGUMENT,
        Error::Failed { verdict: Verdict::Stalled { .. }, .. } => code::DEADLINE_EXCEEDED,
        Error::Failed { verdict: Verdict::Died { .. } | Verdict::Outside { .. } | Verdict::Link { .. }, .. } => {
            code::UNAVAILABLE
        }
        Error::Failed { .. } => code::ABORTED,
        Error::Bootstrap { .. } | Error::Device { .. } | Error::System { .. } => code::INTERNAL,
    };
    let message = error.to_string();
    registry::note_failure(raised.map_or(Failure::Own(error), Failure::Raised));
    Refusal { code, message }
}
