//! Groups: the calls that a thread makes between a beginning and an end, run together.

use std::cell::RefCell;
use std::sync::Arc;

use maypole::{Call, DataType, RawGroup};

use crate::communicator::{comm_of, maypole_comm};
use crate::entry::{check_out, enter};
use crate::operation::Operation;
use crate::request::{give_request, maypole_request};
use crate::status::*;
use crate::stream::{host_stream_of, maypole_stream, queue};
use crate::work::{Lengths, Sides, Work};

/// A call of a group, with whatever does not outlive the call.
enum Item {
    Even(Call, *const u8, *mut u8),
    Variable(Call, (*const u8, Lengths<'static>), (*mut u8, Lengths<'static>)),
    Message(Message),
}

/// A message between two ranks.
pub(crate) struct Message {
    pub way: Way,
    pub dtype: DataType,
    pub count: usize,
    /// The rank at its other side.
    pub peer: usize,
    pub tag: u32,
}

/// Which way a message goes.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    To(*const u8),
    From(*mut u8),
}

/// A thread's open group.
struct Open {
    comm: maypole_comm,
    items: Vec<Item>,
    operations: Vec<Arc<Operation>>,
}

thread_local! {
    static OPEN: RefCell<Option<Open>> = const { RefCell::new(None) };
}

fn with_open<T>(with: impl FnOnce(&mut Option<Open>) -> T) -> Outcome<T> {
    let gone = |_| Fault::argument("this thread is ending, and has no group any more");
    OPEN.try_with(|open| with(&mut open.borrow_mut())).map_err(gone)
}

/// Whether this thread's calls on `comm` are being collected.
#[inline]
pub(crate) fn is_open(comm: maypole_comm) -> bool {
    OPEN.try_with(|open| open.borrow().as_ref().is_some_and(|open| open.comm == comm)).unwrap_or(false)
}

/// Refuse to start something with a request of its own while a group collects the communicator's calls.
pub(crate) fn refuse_requests(comm: maypole_comm) -> Outcome {
    match is_open(comm) {
        true => {
            Err(Fault::argument("a group is open, whose calls have no requests of their own; see maypole_group_start"))
        }
        false => Ok(()),
    }
}

fn add(stream: maypole_stream, item: Item, operation: Option<Arc<Operation>>) -> Outcome {
    if !stream.is_null() {
        return Err(Fault::argument(
            "stream is not NULL, but the calls of a group take the stream of maypole_group_start",
        ));
    }
    with_open(|open| {
        let open = open.as_mut().expect("asked before");
        open.items.push(item);
        open.operations.extend(operation);
    })
}

/// Collect a collective in the open group.
pub(crate) fn collect(stream: maypole_stream, work: Work<'_>) -> Outcome {
    let item = match work.sides {
        Sides::Even(input, output) => Item::Even(work.call, input, output),
        Sides::Variable((input, sent), (output, received)) => {
            Item::Variable(work.call, (input, sent.owned()), (output, received.owned()))
        }
    };
    add(stream, item, work.operation)
}

/// Collect a message in the open group.
pub(crate) fn collect_message(stream: maypole_stream, message: Message) -> Outcome {
    add(stream, Item::Message(message), None)
}

/// Take this thread's open group away, which must be `comm`'s.
fn close(comm: maypole_comm) -> Outcome<Open> {
    let closed = with_open(|open| open.take_if(|open| open.comm == comm))?;
    closed.ok_or_else(|| {
        Fault::argument("no group of this communicator is open on this thread; call maypole_group_begin")
    })
}

impl Open {
    /// # Safety
    /// The buffers are as the header asks of each call, until the group is done.
    unsafe fn fill(&self, group: &mut RawGroup<'_>) {
        for item in &self.items {
            // SAFETY: the caller's promise.
            unsafe {
                match item {
                    Item::Even(call, input, output) => group.call_at(*call, *input, *output),
                    Item::Variable(call, (input, sent), (output, received)) => {
                        group.call_v_at(*call, (*input, sent.blocks()), (*output, received.blocks()));
                    }
                    Item::Message(Message { way, dtype, count, peer, tag }) => match way {
                        Way::To(data) => group.send_at(*dtype, *count, *data, *peer, *tag),
                        Way::From(data) => group.recv_at(*dtype, *count, *data, *peer, *tag),
                    },
                }
            }
        }
    }
}

/// Begin a group: this thread's calls on the communicator from now on are only collected, until maypole_group_end() runs or
/// maypole_group_start() starts them all together. All messages of a group go at the same time, so their order does not
/// matter and no pattern of them deadlocks; collectives run beside them, in order; small all-reduces that follow each other
/// are done as one. The calls take no stream, and what is wrong with a call is said by its own
/// status or at the end. A thread has one group at a time, and groups do not nest; calls that it
/// collected for a thread that ends are forgotten.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_group_begin(comm: maypole_comm) -> maypole_status {
    enter("maypole_group_begin", || {
        comm_of(comm)?;
        let begun = with_open(|open| {
            let free = open.is_none();
            open.get_or_insert_with(|| Open { comm, items: Vec::new(), operations: Vec::new() });
            free
        })?;
        match begun {
            true => Ok(()),
            false => Err(Fault::argument("a group is open on this thread already; end it first")),
        }
    })
}

/// Run the calls of the group that is open on this thread. Returns when all are done. The group is then gone, whatever the
/// outcome.
///
/// @return MAYPOLE_ERROR_ARGUMENT if a call is wrong, the text says which: then none was run.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_group_end(comm: maypole_comm) -> maypole_status {
    enter("maypole_group_end", || {
        let open = close(comm)?;
        let comm = comm_of(comm)?;
        let mut group = comm.raw_group();
        // SAFETY: whoever made the calls promised that their buffers stay until this returns.
        unsafe { open.fill(&mut group) };
        Ok(group.run()?)
    })
}

/// Start the calls of the group that is open on this thread, with one request for all of them. The group is then gone.
///
/// @param comm the communicator.
/// @param stream a host stream to queue them on; NULL: collectives go to the communicator's own, messages at once.
/// @param request gets the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_group_start(
    comm: maypole_comm,
    stream: maypole_stream,
    request: *mut maypole_request,
) -> maypole_status {
    enter("maypole_group_start", || {
        check_out("request", request)?;
        let stream = host_stream_of(stream)?;
        let open = close(comm)?;
        let comm = comm_of(comm)?;
        let mut group = comm.raw_group();
        // SAFETY: whoever made the calls promised that their buffers stay until the request is done.
        unsafe { open.fill(&mut group) };
        let started = group.start(queue(&stream))?;
        // SAFETY: the caller's promise.
        unsafe { give_request(started, open.operations, request) }
    })
}

/// Forget the calls of the group that is open on this thread; none is run.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_group_cancel(comm: maypole_comm) -> maypole_status {
    enter("maypole_group_cancel", || close(comm).map(drop))
}
