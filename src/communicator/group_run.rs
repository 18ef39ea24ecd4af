//! Running a group: all calls checked, then messages and collectives at once.
//!
//! # Fusing all-reduces
//!
//! The vectors are packed one behind the other, reduced by one call, and unpacked. The result is bit for bit that of
//! separate calls. For operations whose result does not depend on the order in which operands are combined (all but
//! user operations on integers, minimum and maximum on floats) that is no question. For the others it holds if every
//! element is combined in the same order whatever its place in the vector, and the longer vector takes the same order
//! as the shorter ones would have; [`Work::order`] knows. Ranks decide alike, because they decide from what their
//! fingerprints compare: type, operation and counts.

use std::ops::Range;
use std::sync::Arc;

use maypole_collectives::ReduceOp;
use maypole_collectives::algorithms::Algorithm;
use maypole_collectives::schedule::Collective;

use super::blocks::Spread;
use super::call::{Buffers, Lengths};
use super::group::{Collected, Item, Task};
use super::outcome::{Outcome, Posted};
use super::stream::Stream;
use super::{Call, Inner, Work};
use crate::engine::messages::{Count, Message};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;

/// The most bytes that an all-reduce may have to be fused with others, and that all of them together may have.
const SMALL: usize = 16 << 10;
const TOGETHER: usize = 64 << 10;

/// A collective, with its number in the group and its name.
type Named<'a> = (&'a Collected, (usize, &'static str));

/// Messages under way: they are waited for however their group ends.
struct UnderWay<'a>(&'a Inner, &'a Count);

impl UnderWay<'_> {
    fn wait(&self) -> Result<()> {
        self.0.messages.wait(self.1)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let _ = self.wait();
    }
}

/// The tickets of a group's collectives that have not been used yet. They are used up when it goes.
struct Tickets<'a> {
    inner: &'a Inner,
    numbers: Range<u64>,
}

impl Tickets<'_> {
    fn next(&mut self) -> u64 {
        self.numbers.next().expect("a ticket for each collective")
    }
}

impl Drop for Tickets<'_> {
    fn drop(&mut self) {
        for number in self.numbers.by_ref() {
            drop(self.inner.turn(number));
        }
    }
}

/// The messages of a group. What is received is expected before anything is sent: it need not be stashed.
fn messages_of(items: &[Item]) -> Vec<Message> {
    let of = |item: &Item| match &item.task {
        Task::Message(message) => Some(*message),
        Task::Collective(_) | Task::Wrong(_) => None,
    };
    let received = items.iter().filter_map(of).filter(|m| !m.is_sent());
    received.chain(items.iter().filter_map(of).filter(|m| m.is_sent())).collect()
}

fn collectives_of(items: &[Item]) -> Vec<Named<'_>> {
    let mut collectives = Vec::new();
    for item in items {
        if let Task::Collective(collected) = &item.task {
            collectives.push((collected, item.call));
        }
    }
    collectives
}

/// How many tickets a group takes: one for each collective, refused ones included.
fn tickets_of(items: &[Item]) -> usize {
    items.iter().filter(|item| !matches!(item.task, Task::Message(_))).count()
}

impl Inner {
    /// # Safety
    /// The buffers of the calls are valid, and nobody else writes them or reads the outputs, until this returns.
    pub(super) unsafe fn run_group(&self, items: &[Item]) -> Result<()> {
        self.owner.check()?;
        let (messages, collectives) = (messages_of(items), collectives_of(items));
        let tickets = Tickets { inner: self, numbers: self.numbers(tickets_of(items))? };
        if let Err(what) = self.check_group(items, &messages) {
            self.refuse(tickets, &what);
            return Err(Error::Argument { rank: self.rank, what });
        }
        let count = Count::of(messages.len());
        // SAFETY: the caller's promise; `UnderWay` waits for the count before anything is let go of.
        unsafe { self.messages.post(&messages, &count) };
        let under_way = UnderWay(self, &count);
        // SAFETY: the caller's promise.
        unsafe { self.run_collectives(&collectives, tickets) }?;
        under_way.wait()
    }

    /// [`Inner::run_group`], but its collectives are queued on `stream` (or the communicator's own) and its messages,
    /// unless there is a stream, posted at the call.
    ///
    /// # Safety
    /// As for [`Inner::run_group`], until the outcome has ended.
    pub(super) unsafe fn start_group(self: &Arc<Self>, items: Vec<Item>, stream: Option<&Stream>) -> Result<Outcome> {
        self.owner.check()?;
        let messages = messages_of(&items);
        let collectives = tickets_of(&items);
        if let Err(what) = self.check_group(&items, &messages) {
            self.start(stream, collectives, {
                let what = what.clone();
                move |inner: &Inner, numbers| {
                    inner.refuse(Tickets { inner, numbers }, &what);
                    Ok(())
                }
            })?;
            return Err(Error::Argument { rank: self.rank, what });
        }
        if stream.is_some() {
            return self.start(stream, collectives, move |inner: &Inner, numbers| {
                let tickets = Tickets { inner, numbers };
                let count = Count::of(messages.len());
                // SAFETY: the caller's promise; `UnderWay` waits for the count before anything is let go of.
                unsafe { inner.messages.post(&messages, &count) };
                let under_way = UnderWay(inner, &count);
                // SAFETY: the caller's promise.
                unsafe { inner.run_collectives(&collectives_of(&items), tickets) }?;
                under_way.wait()
            });
        }
        let posted = Posted::new(self, messages.len());
        // The collectives first: where their stream gets no thread, nothing has been started.
        let outcome = match collectives {
            0 => Outcome::Posted(posted.clone()),
            _ => {
                let queued = self.start(None, collectives, move |inner: &Inner, numbers| {
                    let tickets = Tickets { inner, numbers };
                    // SAFETY: the caller's promise.
                    unsafe { inner.run_collectives(&collectives_of(&items), tickets) }
                })?;
                match queued {
                    Outcome::Queued(completion) => Outcome::Both(completion, posted.clone()),
                    other => other,
                }
            }
        };
        // SAFETY: the caller's promise; the outcome keeps the count.
        unsafe { self.messages.post(&messages, &posted.count) };
        Ok(outcome)
    }

    /// Run the collectives of a group, each with its ticket.
    ///
    /// # Safety
    /// As for [`Inner::run_group`].
    unsafe fn run_collectives(&self, collectives: &[Named<'_>], mut tickets: Tickets<'_>) -> Result<()> {
        let mut rest = collectives;
        while let [(first, named_call), ..] = rest {
            let number = tickets.next();
            let together = self.fusible(number, rest)?;
            let (call, buffers, lengths) = (first.call, first.buffers, first.lengths);
            let done = match (together, &first.sides) {
                // SAFETY: the caller's promise.
                (1, None) => unsafe { self.run(number, call, buffers, lengths) },
                // SAFETY: the caller's promise.
                (1, Some(sides)) => unsafe { self.run_v(number, call, buffers, lengths, sides.sides()) },
                _ => {
                    // Those that go with it need no turn of their own: what it passes on is passed on by them.
                    for _ in 1..together {
                        let later = tickets.next();
                        drop(self.turn(later - 1)?);
                    }
                    // SAFETY: the caller's promise.
                    unsafe { self.run_fused(number + together as u64 - 1, &rest[..together]) }
                }
            };
            done.map_err(|error| named(error, *named_call))?;
            rest = &rest[together..];
        }
        Ok(())
    }

    /// What is wrong with the calls of a group, if anything.
    fn check_group(&self, items: &[Item], messages: &[Message]) -> std::result::Result<(), String> {
        self.check_items(items, messages).map_err(|what| format!("{what}; nothing of the group was run"))
    }

    fn check_items(&self, items: &[Item], messages: &[Message]) -> std::result::Result<(), String> {
        let what = |error| match error {
            Error::Argument { what, .. } => what,
            other => other.to_string(),
        };
        for item in items {
            let checked = match &item.task {
                Task::Message(message) => self.check_peers(&[*message]).map_err(what),
                Task::Wrong(what) => Err(what.clone()),
                Task::Collective(Collected { call, lengths, sides: Some(sides), .. }) => {
                    self.spread(call, sides.sides(), *lengths, &mut Spread::default())
                }
                Task::Collective(Collected { call, lengths, sides: None, .. }) => self.check(call, *lengths),
            };
            checked.map_err(|what: String| in_group(item.call, &what))?;
        }
        self.messages.check(messages).map_err(|error| format!("in the group, {}", what(error)))
    }

    /// Use up the numbers of `collectives` collectives, so that ranks that make the same mistake stay in step and those
    /// that do not learn of it.
    fn refuse(&self, mut tickets: Tickets<'_>, what: &str) {
        while !tickets.numbers.is_empty() {
            // One that is given up, as the communicator has failed, needs no refusal.
            let Ok(_ticket) = self.turn(tickets.next()) else { continue };
            // SAFETY: this thread holds the ticket as long as it uses the work.
            let work = unsafe { self.work() };
            work.sequence += 1;
            self.watch.refuse(work.sequence, what.to_string());
        }
    }

    /// How many of these collectives, from the first, are done as one all-reduce. `number`: the ticket of the first, which
    /// stays to be used.
    ///
    /// # Errors
    /// Those of [`Inner::turn`].
    fn fusible(&self, number: u64, collectives: &[Named<'_>]) -> Result<usize> {
        let [(Collected { call: first, .. }, _), (Collected { call: second, .. }, _), ..] = collectives else {
            return Ok(1);
        };
        let bytes = |call: &Call| call.count * call.dtype.size();
        // None of them has variable counts: there is no such all-reduce.
        let kind = |call: &Call| {
            let fits = call.collective == Collective::AllReduce && bytes(call) <= SMALL;
            // Each rank has a factor of its own, so ranks would not know alike where it changes.
            let common = !matches!(call.op, ReduceOp::PreMulSum(_));
            (fits && common).then(|| Fingerprint::collective(0, call.collective, call.dtype, Some(call.op), 0, 0))
        };
        if kind(first).is_none() || kind(first) != kind(second) {
            return Ok(1);
        }
        let ticket = self.turn(number)?;
        // SAFETY: this thread holds the ticket as long as it uses the work.
        let work = unsafe { self.work() };
        let order = work.order(first, bytes(first));
        let mut total = 0;
        let fits = |(collected, _): &&Named<'_>| {
            let call = &collected.call;
            total += bytes(call);
            let mut same_order = |bytes| order.is_some() && work.order(call, bytes) == order;
            let same_result = is_exact(call) || same_order(bytes(call)) && same_order(total);
            kind(call) == kind(first) && total <= TOGETHER && same_result
        };
        let together = collectives.iter().take_while(fits).count().max(1);
        ticket.keep();
        Ok(together)
    }

    /// Run all-reduces of one type and operation as one.
    ///
    /// # Safety
    /// As for [`Inner::run_group`].
    unsafe fn run_fused(&self, number: u64, collectives: &[Named<'_>]) -> Result<()> {
        let count: usize = collectives.iter().map(|(collected, _)| collected.call.count).sum();
        let call = Call { count, ..collectives[0].0.call };
        let bytes = count * call.dtype.size();
        // As words: aligned for every element type.
        let mut packed = vec![0u64; bytes.div_ceil(8)];
        let at = packed.as_mut_ptr().cast::<u8>();
        let each = || {
            collectives.iter().scan(0, |end, (collected, _)| {
                let (start, bytes) = (*end, collected.call.count * call.dtype.size());
                *end += bytes;
                Some((collected.buffers, start, bytes))
            })
        };
        for (buffers, start, bytes) in each() {
            // SAFETY: the input has as many bytes, by its check; the sum of all is the length of `packed`.
            unsafe { std::ptr::copy_nonoverlapping(buffers.input, at.add(start), bytes) };
        }
        let buffers = Buffers { input: at, output: at };
        // SAFETY: `packed` is this function's own.
        unsafe { self.run(number, call, buffers, Lengths::InPlace { buffer: bytes }) }?;
        for (buffers, start, bytes) in each() {
            // SAFETY: as above, for the output.
            unsafe { std::ptr::copy_nonoverlapping(at.add(start), buffers.output, bytes) };
        }
        Ok(())
    }
}

/// In which order an all-reduce combines the elements of the ranks, where it is the same for every element.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Combines {
    /// The left fold in rank order.
    InRankOrder,
    /// As this algorithm does, whose steps all move the whole vector.
    As(Algorithm),
}

impl Work {
    /// The order in which all elements of an all-reduce of `bytes` bytes are combined; `None` if it depends on an
    /// element's place in the vector.
    fn order(&mut self, call: &Call, bytes: usize) -> Option<Combines> {
        if self.fuses(call.collective, call.op, bytes) {
            return Some(Combines::InRankOrder);
        }
        let plan = self.tuner.plan(call.collective, 0, bytes, call.needs()).ok()?;
        match plan.algorithm {
            algorithm if algorithm.is_canonical(call.collective) => Some(Combines::InRankOrder),
            algorithm if plan.schedule.pieces() == 1 => Some(Combines::As(algorithm)),
            _ => None,
        }
    }
}

/// Whether the result is the same in whatever order operands are combined.
fn is_exact(call: &Call) -> bool {
    match call.op {
        ReduceOp::User(_) => false,
        ReduceOp::Min | ReduceOp::Max | ReduceOp::MinLoc(_) | ReduceOp::MaxLoc(_) => true,
        _ => call.dtype.is_integer(),
    }
}

/// `error`, saying which call of the group it is about.
fn named(error: Error, call: (usize, &str)) -> Error {
    match error {
        Error::Argument { rank, what } => Error::Argument { rank, what: in_group(call, &what) },
        other => other,
    }
}

fn in_group((number, name): (usize, &str), what: &str) -> String {
    format!("call {number} of the group ({name}): {what}")
}
