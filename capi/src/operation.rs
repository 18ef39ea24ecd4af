//! Reduction operations: the built-in ones by number, others by handle.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;

use maypole::communicator::raw::CallbackFailed;
use maypole::{DataType, Pair, ReduceOp, UserOp};

use crate::entry::{check_out, enter, give, text_of};
use crate::status::*;
use crate::table::{Kind, Table};
use crate::values::{dtype_of, maypole_dtype};

/// How elements are combined: MAYPOLE_SUM and so on, or what maypole_op_create(),
/// maypole_op_create_with() and maypole_op_premulsum() made.
pub type maypole_op = u64;

/// Sum; integers wrap.
pub const MAYPOLE_SUM: maypole_op = 0;
/// Product; integers wrap.
pub const MAYPOLE_PROD: maypole_op = 1;
/// Minimum; NaN if any operand is NaN.
pub const MAYPOLE_MIN: maypole_op = 2;
/// Maximum; NaN if any operand is NaN.
pub const MAYPOLE_MAX: maypole_op = 3;
/// Sum, then divided by the number of ranks (integers: truncating).
pub const MAYPOLE_AVG: maypole_op = 4;
/// Bitwise and; integers only.
pub const MAYPOLE_AND: maypole_op = 5;
/// Bitwise or; integers only.
pub const MAYPOLE_OR: maypole_op = 6;
/// Bitwise exclusive or; integers only.
pub const MAYPOLE_XOR: maypole_op = 7;
/// The pair (value, index) with the least value, and of several such the one with the least index.
/// A value that is NaN is less than all others. Pairs only (MAYPOLE_F32_I32 and so on), in host
/// memory.
pub const MAYPOLE_MINLOC: maypole_op = 8;
/// The pair (value, index) with the greatest value, and of several such the one with the least
/// index. A value that is NaN is greater than all others. Pairs only, in host memory.
pub const MAYPOLE_MAXLOC: maypole_op = 9;

/// An operation of the caller's own: combines element i of `a` and of `b` into that of `result`. Pointers are aligned for
/// the element type, and `result` may be `a` or `b`. It must be associative as far as the caller
/// cares, and commutative unless it was made otherwise; then `a` is from lower ranks than `b`. It
/// is called by whichever thread runs the operation, by several at a time if the handle is used so.
/// Where operands are several elements (maypole_op_create_with()), `count` is still elements, and a
/// multiple of as many.
///
/// Returns 0. Anything else says that it has failed: then the communicator is aborted, and every rank gets
/// MAYPOLE_ERROR_FAILED with that number in the text, and what maypole_op_explain() was told. A C++
/// exception that leaves it ends the process, for want of anybody who could catch it; maypole.hpp
/// has operations that catch theirs.
pub type maypole_op_callback = Option<
    unsafe extern "C-unwind" fn(
        context: *mut c_void,
        result: *mut c_void,
        a: *const c_void,
        b: *const c_void,
        count: usize,
    ) -> c_int,
>;

/// What a handle stands for.
pub(crate) enum Operation {
    User(Callback),
    PreMulSum(f64),
}

/// A C function and what it is called with.
pub(crate) struct Callback {
    id: u32,
    dtype: DataType,
    width: u16,
    commutes: bool,
    /// If it lets an exception out after all, that is no undefined behaviour: unwinding ends with
    /// the process where Rust would have to catch it.
    function: unsafe extern "C-unwind" fn(*mut c_void, *mut c_void, *const c_void, *const c_void, usize) -> c_int,
    context: *mut c_void,
}

// SAFETY: the context is only handed to the callback, and the header says from which threads.
unsafe impl Send for Callback {}
// SAFETY: as above.
unsafe impl Sync for Callback {}

static OPERATIONS: Table<Operation> = Table::new(Kind::Operation);

/// An operation on elements or on a `pair`, and what must be kept as long as it is used.
pub(crate) fn op_of(op: maypole_op, pair: Option<Pair>) -> Outcome<(ReduceOp, Option<Arc<Operation>>)> {
    let plain = match op {
        MAYPOLE_MINLOC | MAYPOLE_MAXLOC => {
            let pair = pair.ok_or_else(|| {
                Fault::argument(
                    "op is MAYPOLE_MINLOC or MAYPOLE_MAXLOC, which need pairs: dtype MAYPOLE_F32_I32 or the like",
                )
            })?;
            if op == MAYPOLE_MINLOC { ReduceOp::MinLoc(pair) } else { ReduceOp::MaxLoc(pair) }
        }
        _ if pair.is_some() => {
            return Err(Fault::argument(
                "dtype is a pair of a value and its index; pairs are combined by MAYPOLE_MINLOC and MAYPOLE_MAXLOC only",
            ));
        }
        MAYPOLE_SUM => ReduceOp::Sum,
        MAYPOLE_PROD => ReduceOp::Prod,
        MAYPOLE_MIN => ReduceOp::Min,
        MAYPOLE_MAX => ReduceOp::Max,
        MAYPOLE_AVG => ReduceOp::Avg,
        MAYPOLE_AND => ReduceOp::And,
        MAYPOLE_OR => ReduceOp::Or,
        MAYPOLE_XOR => ReduceOp::Xor,
        small if small < 1 << 32 => {
            return Err(Fault::argument(format!(
                "op is {op}, which is neither MAYPOLE_SUM or another operation nor a handle"
            )));
        }
        handle => {
            let made = OPERATIONS.get("op", handle)?;
            let op = match &*made {
                Operation::PreMulSum(factor) => ReduceOp::PreMulSum(*factor),
                Operation::User(callback) => {
                    let context = std::ptr::from_ref(callback).cast();
                    // SAFETY: `combine` does what it should, and whoever uses the operation keeps `made` meanwhile.
                    let op = unsafe { UserOp::with_context(callback.id, callback.dtype, combine, context) };
                    let op = op.with_width(callback.width);
                    ReduceOp::User(if callback.commutes { op } else { op.not_commuting() })
                }
            };
            return Ok((op, Some(made)));
        }
    };
    Ok((plain, None))
}

/// Call the C function.
///
/// # Safety
/// As for a [`maypole::UserFnWith`] whose context is a [`Callback`].
unsafe fn combine(context: *const (), dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
    // SAFETY: the caller's promise.
    let callback = unsafe { &*context.cast::<Callback>() };
    let size = callback.dtype.size();
    let aligned = [dst.addr(), a.addr(), b.addr()].iter().all(|at| at.is_multiple_of(size));
    if aligned {
        // SAFETY: the caller's promise.
        return unsafe { callback.call(dst, a, b, count) };
    }
    // Slots of links need not lie as elements do, but C code that casts its pointers expects it.
    const WORDS: usize = 128;
    let width = usize::from(callback.width);
    // Whole operands, and at least one.
    let each = (WORDS * 8 / size / width).max(1) * width;
    let words = (each * size).div_ceil(8).max(WORDS);
    let (mut near, mut far) = ([0u64; 2 * WORDS], Vec::new());
    let rooms = if words == WORDS {
        &mut near[..]
    } else {
        far.resize(2 * words, 0);
        &mut far[..]
    };
    for first in (0..count).step_by(each) {
        let (at, elements) = (first * size, each.min(count - first));
        let (left, right) = rooms.split_at_mut(words);
        let (left, right) = (left.as_mut_ptr().cast::<u8>(), right.as_mut_ptr().cast::<u8>());
        // SAFETY: `elements` elements fit into a room, and lie within the operands.
        unsafe {
            std::ptr::copy_nonoverlapping(a.wrapping_add(at), left, elements * size);
            std::ptr::copy_nonoverlapping(b.wrapping_add(at), right, elements * size);
            callback.call(left, left, right, elements);
            std::ptr::copy_nonoverlapping(left, dst.wrapping_add(at), elements * size);
        }
    }
}

impl Callback {
    /// # Safety
    /// The pointers are valid for `count` elements, and aligned.
    unsafe fn call(&self, dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
        // SAFETY: the caller's promise; the function does what the header asks of it.
        let returned = unsafe { (self.function)(self.context, dst.cast(), a.cast(), b.cast(), count) };
        // Also of one that has not failed, or it would be the reason of the next. At the end of the
        // thread there is none.
        let why = WHY.try_with(RefCell::take).unwrap_or_default();
        if returned != 0 {
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            let why = format!("the callback of the reduction operation with id {} returned {returned}{why}", self.id);
            std::panic::resume_unwind(Box::new(CallbackFailed(why)));
        }
    }
}

thread_local! {
    /// Why the callback that this thread is in is going to fail.
    static WHY: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Say, within a callback of maypole_op_create(), why it is going to fail: every rank gets that
/// text if the callback then returns anything but 0.
///
/// @param why the reason, UTF-8; NULL for none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_op_explain(why: *const c_char) -> maypole_status {
    enter("maypole_op_explain", || {
        // SAFETY: the caller's promise.
        let why = unsafe { text_of("why", why) }?.map(str::to_string);
        let _ = WHY.try_with(|place| place.replace(why));
        Ok(())
    })
}

fn make(operation: Operation, op: *mut maypole_op) -> Outcome {
    // SAFETY: the callers' promise.
    unsafe { give("op", op, OPERATIONS.insert(operation)) }
}

/// Make an operation of the caller's own.
///
/// @param id names it: ranks that use different ids as the same operation are told.
/// @param dtype the elements that it combines.
/// @param callback combines them; not NULL.
/// @param context handed to the callback; must live until no operation uses it any more.
/// @param op gets the operation, to be given to maypole_op_destroy().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_op_create(
    id: u32,
    dtype: maypole_dtype,
    callback: maypole_op_callback,
    context: *mut c_void,
    op: *mut maypole_op,
) -> maypole_status {
    enter("maypole_op_create", || own((id, dtype), (1, true), (callback, context), op))
}

/// Make an operation of the caller's own whose operands are several elements, or which does not
/// commute: complex numbers, matrices, structs of one type. All ranks say the same of it.
///
/// @param id names it: ranks that use different ids as the same operation are told.
/// @param dtype the elements that it combines.
/// @param width how many elements are one operand, 1 to 65535. They stay together whatever cuts a
/// message: the callback
/// gets whole operands, and the counts of calls are multiples of it.
/// @param commutes 0 if a ⊕ b is not b ⊕ a: then ranks are combined in their order, 0, 1, 2, ...,
/// however bracketed.
/// @param callback combines them; not NULL.
/// @param context handed to the callback; must live until no operation uses it any more.
/// @param op gets the operation, to be given to maypole_op_destroy().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_op_create_with(
    id: u32,
    dtype: maypole_dtype,
    width: usize,
    commutes: c_int,
    callback: maypole_op_callback,
    context: *mut c_void,
    op: *mut maypole_op,
) -> maypole_status {
    enter("maypole_op_create_with", || own((id, dtype), (width, commutes != 0), (callback, context), op))
}

fn own(
    (id, dtype): (u32, maypole_dtype),
    (width, commutes): (usize, bool),
    (callback, context): (maypole_op_callback, *mut c_void),
    op: *mut maypole_op,
) -> Outcome {
    check_out("op", op)?;
    let function = callback.ok_or_else(|| Fault::argument("callback is NULL"))?;
    let width = u16::try_from(width)
        .ok()
        .filter(|width| *width > 0)
        .ok_or_else(|| Fault::argument(format!("width is {width}, but an operand has 1 to {} elements", u16::MAX)))?;
    make(Operation::User(Callback { id, dtype: dtype_of(dtype)?, width, commutes, function, context }), op)
}

/// Make the sum in which each rank's input is first multiplied by its own factor, rounded to the element type (integers:
/// truncated).
///
/// @param factor this rank's.
/// @param op gets the operation, to be given to maypole_op_destroy().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_op_premulsum(factor: f64, op: *mut maypole_op) -> maypole_status {
    enter("maypole_op_premulsum", || {
        check_out("op", op)?;
        make(Operation::PreMulSum(factor), op)
    })
}

/// Give up an operation that was made. What is under way with it goes on.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_op_destroy(op: maypole_op) -> maypole_status {
    enter("maypole_op_destroy", || match op {
        MAYPOLE_SUM..=MAYPOLE_MAXLOC => Err(Fault::argument("op is a built-in operation, which is not destroyed")),
        handle => OPERATIONS.remove("op", handle).map(drop),
    })
}
