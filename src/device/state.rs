//! What one rank's device has in one communicator: what operations are queued with.
//!
//! # When memory is allocated
//!
//! `cuMemAlloc` and `cuMemHostAlloc` may wait for everything on the device, NVIDIA's manual says. Where a rank is a process
//! that is a pause. Where another rank is a thread of the same process it may be for ever: that rank's stream waits for
//! what this thread is to queue next. So nearly everything is allocated when the communicator is attached, before anything
//! is queued. Two things are not known by then:
//!
//! * *Scratch*, for schedules that keep something and for scaled inputs. It is allocated in the order of the operation's
//!   stream (`cuMemAllocAsync`), which waits for nothing.
//! * *Rings of links to other hosts.* Some are made in advance where ranks are threads ([`RESERVED`] directions, of
//!   `MAYPOLE_DEVICE_FIFO` bytes each).
//!
//! Where a device has no memory pools, or more links are used, the rank first waits for its own operations, for at most as
//! long as an operation may take ([`Device::prepare_to_allocate`]). Then no stream of its own is what the driver waits for,
//! but another rank's may be, if it is ahead by an operation: the deadline would end that. It takes ranks as threads, of
//! one host among several or on a device without pools, and an allocation that does wait; who is in that place
//! runs the operation once, on every rank, before anything else is outstanding.

use std::any::Any;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use maypole_collectives::schedule::Schedule;
use maypole_cuda::kernels::Trouble;
use maypole_cuda::peer::{HEADER, Incoming, Mapped, Outgoing, Shape, Slots, Staging, Window, Words};
use maypole_cuda::{Commands, Context, CudaError, DeviceMemory, Event, Pinned, Stream, Word};
use maypole_transports::lock::{Mutex, RwLockReadGuard};

use super::courier::{Courier, End, Ring};
use super::executor::{CHANNELS, Executor, link};
use super::limbo::{self, Busy, Parting};
use super::loans::{Lendable, Loans};
use super::messages::Numbers;
use super::pace::{Halt, Pace};
use super::plan::Planner;
use super::sentry::{Awaited, Entry, Flag, Posts, Sentry};
use crate::engine::routes::Routes;
use crate::engine::wait::Court;
use crate::error::{Error, Result, Verdict};
use crate::fingerprint::Fingerprint;
use crate::watch::Watch;

/// How long a rank that leaves waits until what it sent to other hosts is with the kernel.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// How long a process that is to end with its operations has for telling other ranks why. Streams stand still meanwhile.
const TELL_WITHIN: Duration = Duration::from_secs(1);

/// Links to other hosts, one direction each, for which there is memory from the beginning where ranks are threads.
const RESERVED: usize = 8;

/// What the ranks of a host share.
pub(crate) struct Fabric {
    pub words: Arc<Words>,
    pub staging: Staging,
    /// The word that stops this rank's kernels once one has found a foreign header.
    pub poison: DeviceMemory,
    /// This rank's number among them.
    pub me: usize,
    /// Whether another rank is a thread of this process.
    pub crowded: bool,
    pub lendable: Lendable,
    /// Whether the process ends when operations on its streams fail.
    pub abort: bool,
}

/// One rank's device in one communicator. See the [module](self).
pub(crate) struct Device {
    pub context: Arc<Context>,
    pub words: Arc<Words>,
    /// This rank's number among those of its host.
    pub me: usize,
    pub sentry: Arc<Sentry>,
    /// Only touched by whoever has the communicator's turn.
    pub state: Mutex<State>,
    watch: Arc<Watch>,
    /// How long a rank that leaves waits for the others.
    patience: Duration,
    /// Held while a registered buffer is made.
    pub registering: Mutex<()>,
    /// Not in `state`: a buffer that is dropped does not wait for an operation that waits for room on its stream.
    pub loans: Mutex<Loans>,
    /// Number of the latest operation that was begun.
    latest: AtomicU32,
    /// Sequence number of the latest collective that was begun.
    begun: AtomicU64,
    /// The communicator's own number.
    communicator: u64,
    /// Whether another rank is a thread of this process.
    crowded: bool,
}

/// What changes from operation to operation.
pub(crate) struct State {
    pub executor: Executor,
    pub planner: Planner,
    /// Of messages between two ranks.
    pub numbers: Numbers,
    /// Memory of the links to and from other hosts, by the number of the link: the sending ends', then the others'.
    far: Vec<(End, Arc<Pinned>)>,
    /// Memory for such links that was allocated when the communicator was attached.
    reserve: Vec<Arc<Pinned>>,
    /// Links between hosts. `None`: all ranks are on this one.
    pub courier: Option<Arc<Courier>>,
    /// The stream of the latest operation, and its number there.
    pub last: Option<(usize, u32)>,
    scratch: Vec<DeviceMemory>,
    /// `None` once the rank has left.
    staging: Option<Staging>,
    _poison: DeviceMemory,
}

/// A word, as the sentry sees it.
pub(super) fn flag(word: &Word, memory: Arc<dyn Any + Send + Sync>) -> Flag {
    // SAFETY: words are atomics in memory that `memory` keeps.
    unsafe { Flag::new(word.atomic(), memory) }
}

/// What this rank's kernels found in place of a header of theirs.
fn found(words: Arc<Words>, me: usize) -> Box<dyn Fn() -> Option<(u32, Fingerprint)> + Send + Sync> {
    Box::new(move || {
        let word = words.trouble(me);
        if word.load() == 0 {
            return None;
        }
        words.registration().region().as_ptr().expose_provenance();
        let record: *const Trouble = std::ptr::with_exposed_provenance(std::ptr::from_ref(word.atomic()).addr());
        // SAFETY: the word begins the record, which lies in the words' memory; its first word is written last and for
        // good, so nobody writes it any more.
        let (ours, operation) = unsafe { ((*record).ours, (*record).theirs.operation) };
        Some((ours, bytemuck::cast(operation)))
    })
}

/// Operations have failed of which no call may ever tell: say so, and end the process if it is to.
fn lost(what: &str, abort: bool) {
    if !abort {
        return crate::log::error(format_args!("{what}"));
    }
    crate::log::error(format_args!("{what}; the process ends, since MAYPOLE_DEVICE_ABORT is 1"));
    std::thread::sleep(TELL_WITHIN);
    std::process::abort();
}

impl Device {
    pub fn new(
        context: Arc<Context>,
        court: Court,
        size: usize,
        fabric: Fabric,
        (mut executor, planner): (Executor, Planner),
        routes: Option<Routes>,
    ) -> Result<Arc<Device>> {
        let Fabric { words, staging, poison, me, crowded, lendable, abort } = fabric;
        let post = |word: Word| flag(&word, words.clone());
        let probe = Event::new(&context, false).map_err(|source| Error::Device { rank: court.me, source })?;
        let posts = Posts {
            started: post(words.started(me)),
            ended: post(words.ended(me)),
            trouble: post(words.trouble(me)),
            released: post(words.released()),
            found: found(words.clone(), me),
            ailment: Box::new(move || probe.check().err().filter(CudaError::is_sticky).map(|e| e.to_string())),
            lost: Box::new(move |what| lost(what, abort)),
        };
        let courier =
            routes.map(|routes| Courier::start(routes, court.clone(), post(words.trouble(me)))).transpose()?;
        let (watch, patience, communicator) = (court.watch.clone(), court.timeout, court.context);
        let courier = courier.map(Arc::new);
        // Only where allocating later might wait for a rank that waits for this one.
        let links = if crowded && courier.is_some() { RESERVED } else { 0 };
        let (.., ring) = ring_layout(&staging.shape(), 0);
        let reserve: std::result::Result<Vec<_>, _> =
            (0..links).map(|_| Pinned::new(&context, ring).map(Arc::new)).collect();
        let reserve = reserve.map_err(|source| Error::Device { rank: court.me, source })?;
        let sentry = Arc::new(Sentry::new(court, size, posts));
        executor.pace = Some(Pace::new(sentry.clone(), courier.clone(), &words, me));
        words.waited_by(me).for_each(|[word, mark]| sentry.guard(post(word), post(mark)));
        let state = State {
            executor,
            planner,
            numbers: Numbers::new(size),
            far: Vec::new(),
            reserve,
            courier,
            last: None,
            scratch: Vec::new(),
            staging: Some(staging),
            _poison: poison,
        };
        let device = Arc::new(Device {
            context,
            words,
            me,
            sentry,
            state: Mutex::new(state),
            watch,
            patience,
            registering: Mutex::new(()),
            loans: Mutex::new(Loans::new(lendable)),
            latest: AtomicU32::new(0),
            begun: AtomicU64::new(0),
            communicator,
            crowded,
        });
        let weak: Weak<Device> = Arc::downgrade(&device);
        limbo::watch(weak);
        Ok(device)
    }

    /// Collective `sequence` is about to begin: wait while device memory is given back, see [`limbo`]. Then nothing is
    /// given back until the result is dropped.
    pub fn enter(&self, sequence: u64) -> RwLockReadGuard<'static, ()> {
        limbo::before(self, sequence);
        let queueing = limbo::queueing();
        self.begun.store(sequence, Ordering::Relaxed);
        queueing
    }

    /// Before memory is allocated while operations may be outstanding: wait for the own ones, as long as an operation may
    /// take. See the [module](self).
    fn prepare_to_allocate(&self) {
        if self.crowded {
            self.sentry.drain();
        }
    }

    /// Operation `number` begins.
    pub fn note(&self, number: u32) {
        self.latest.store(number, Ordering::Relaxed);
    }

    /// The first commands of operation `number`: it comes after the one before, whichever stream that is on.
    ///
    /// # Errors
    /// The driver's.
    pub fn begin(
        &self,
        state: &mut State,
        commands: &mut Commands<'_>,
        number: u32,
    ) -> std::result::Result<(), CudaError> {
        let stream = name(commands.stream());
        // One of the per-thread default streams may be another than the last of that name.
        if let Some((last, before)) = state.last
            && (last != stream || last == 2)
        {
            commands.wait(&self.words.ended(self.me), before)?;
        }
        state.last = Some((stream, number));
        state.executor.pace().begin(commands.stream());
        // Before the first wait, so that the deadline counts from there; a launch before that waits for nobody.
        commands.write_along(&self.words.started(self.me), number)
    }

    /// The last command of operation `number`.
    ///
    /// # Errors
    /// The driver's.
    pub fn end(
        &self,
        state: &mut State,
        mut commands: Commands<'_>,
        number: u32,
    ) -> std::result::Result<(), CudaError> {
        commands.write_last(&self.words.ended(self.me), number)?;
        commands.hand_over()?;
        state.executor.pace().end(commands.calls(), number);
        Ok(())
    }

    /// Part of an operation is on the stream and the rest cannot be: all ranks are told.
    #[cold]
    pub fn tear(&self, entry: Entry<'_>, stream: &Stream, operation: &Fingerprint, error: Halt) -> Error {
        // Not all waits are on the stream, perhaps not the one for those that read what was lent. Before the stream goes
        // on: see [`super::loans`].
        self.sentry.renounce();
        // What is on the stream already says that it ended, if it gets there.
        let ended = Commands::new(stream).and_then(|mut commands| {
            commands.write(&self.words.ended(self.me), entry.number())?;
            commands.finish()
        });
        drop((entry, ended));
        let court = self.sentry.court();
        let why = format!("{operation} could not be queued: {error}");
        court.convict(Verdict::Aborted { rank: court.me, why })
    }

    /// This rank leaves the communicator: nothing more is queued. Where other processes have mapped its memory, they must
    /// have read what it published before this process may end, so this waits for them, as long as for an operation. What
    /// it holds is given back as soon as that waits for nobody.
    pub fn leave(self: Arc<Self>) {
        let drained = self.sentry.drain();
        let courier = {
            let mut state = self.state.lock();
            state.executor.pace = None;
            state.courier.take()
        };
        if let Some(courier) = courier {
            courier.finish(LEAVE_WITHIN);
        }
        if !drained {
            tracing::warn!("device memory is kept: a stream has not got past this communicator's operations");
            return std::mem::forget(self);
        }
        self.sentry.adjourn();
        let (exported, published) = {
            let state = self.state.lock();
            let exported = state.staging.as_ref().is_some_and(Staging::is_exported);
            (exported, state.executor.window.as_ref().map_or(0, Window::unread))
        };
        let (begun, mut nap) = (Instant::now(), Duration::from_micros(20));
        let taken = || self.words.all_taken(self.me, published);
        while exported && !taken() && !self.watch.raised() && begun.elapsed() < self.patience {
            std::thread::sleep(nap);
            nap = (nap * 5 / 4).min(Duration::from_millis(1));
        }
        limbo::give_back(self);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let staging = self.state.get_mut().staging.take();
        if let Some(own) = staging.and_then(|staging| staging.part(&self.words, self.me)) {
            limbo::part(Box::new(Left { words: self.words.clone(), own: Some(own) }));
        }
    }
}

/// The staging memory of a rank that has left, until nobody has it mapped.
struct Left {
    words: Arc<Words>,
    own: Option<Arc<DeviceMemory>>,
}

impl Parting for Left {
    fn go_on(&mut self) -> bool {
        let all_left = self.words.all_left();
        if all_left {
            self.own = None;
        }
        all_left
    }
}

impl Busy for Device {
    fn is_busy(&self) -> bool {
        let latest = self.latest.load(Ordering::Relaxed);
        !self.words.ended(self.me).is_at_least(latest)
    }

    fn is_crowded(&self) -> bool {
        self.crowded
    }

    fn begun(&self) -> (u64, u64) {
        (self.communicator, self.begun.load(Ordering::Relaxed))
    }
}

impl State {
    /// Device memory of at least `bytes` bytes for the operation that is queued next on `stream`, content undefined.
    /// Operations run one after the other, so they may all have the same.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`]; the driver's.
    pub fn scratch(&mut self, device: &Device, stream: &Stream, bytes: usize) -> std::result::Result<u64, CudaError> {
        if bytes == 0 {
            return Ok(0);
        }
        if self.scratch.last().is_none_or(|memory| memory.bytes() < bytes) {
            // Those before may be in use, and giving memory back waits for the device. Each is twice as long at least,
            // so they are not much.
            let bytes = bytes.next_power_of_two();
            let memory = limbo::making_room(|| match DeviceMemory::in_order(&device.context, bytes, stream)? {
                Some(memory) => Ok(memory),
                None => {
                    device.prepare_to_allocate();
                    DeviceMemory::new(&device.context, bytes)
                }
            })?;
            self.scratch.push(memory);
        }
        Ok(self.scratch.last().map_or(0, DeviceMemory::address))
    }

    /// Open the links that `schedule` uses.
    ///
    /// # Errors
    /// The driver's.
    pub fn open(&mut self, device: &Device, schedule: &dyn Schedule) -> std::result::Result<(), CudaError> {
        for lane in 0..schedule.lanes() {
            let channel = schedule.channel(lane);
            for i in 0..schedule.steps(lane) {
                let (from, to) = schedule.step(lane, i).peers();
                from.map_or(Ok(()), |from| self.open_from(device, from, channel))?;
                to.map_or(Ok(()), |to| self.open_to(device, to, channel))?;
            }
        }
        Ok(())
    }

    /// Open the link to rank `to`, unless it is open.
    ///
    /// # Errors
    /// The driver's.
    pub fn open_to(&mut self, device: &Device, to: usize, channel: usize) -> std::result::Result<(), CudaError> {
        let number = link(to, channel);
        if self.executor.outgoing[number].is_some() {
            return Ok(());
        }
        let end = match self.executor.members[to] {
            Some(there) => {
                let (words, me) = (&device.words, device.me);
                let slots = self.staging().slots(me, there, channel);
                Outgoing::new(slots, words.filled(me, there, channel), words.freed(me, there, channel))
            }
            None => {
                let far = self.far(device, End::to(to, channel))?;
                device.sentry.guard(far.flag(&far.freed), far.flag(&far.freed_mark));
                Outgoing::new(far.slots, far.filled, far.freed)
            }
        };
        self.executor.outgoing[number] = Some(end);
        Ok(())
    }

    /// Open the link from rank `from`, unless it is open.
    ///
    /// # Errors
    /// The driver's.
    pub fn open_from(&mut self, device: &Device, from: usize, channel: usize) -> std::result::Result<(), CudaError> {
        let number = link(from, channel);
        if self.executor.incoming[number].is_some() {
            return Ok(());
        }
        let end = match self.executor.members[from] {
            Some(there) => {
                let (words, me) = (&device.words, device.me);
                let slots = self.staging().slots(there, me, channel);
                Incoming::new(slots, words.filled(there, me, channel), words.freed(there, me, channel))
            }
            None => {
                let far = self.far(device, End::from(from, channel))?;
                device.sentry.guard(far.flag(&far.filled), far.flag(&far.filled_mark));
                Incoming::new(far.slots, far.filled, far.freed)
            }
        };
        self.executor.incoming[number] = Some(end);
        Ok(())
    }

    /// Whether what ranks of this host exchange lies in device memory.
    pub fn is_staged_on_device(&self) -> bool {
        self.staging().is_on_device()
    }

    /// Whether publications can be lent: all ranks are on this host and reach each other's devices.
    pub fn lends(&self) -> bool {
        self.executor.window.is_some() && self.is_staged_on_device()
    }

    /// From now on this rank's kernels find what others lend of allocation `number`.
    ///
    /// # Errors
    /// The driver's.
    pub fn register(&mut self, number: usize, mapped: &Mapped) -> std::result::Result<(), CudaError> {
        self.executor.bases.set(number, mapped.addresses())
    }

    /// What the link to a rank (or from it) waits for at last, for the sentry.
    pub fn awaited(&self, device: &Device, end: End, operation: Fingerprint) -> Awaited {
        let number = link(end.peer, end.channel);
        let (word, value) = match end.outward {
            true => self.executor.outgoing[number].as_ref().expect("an open link").awaited(),
            false => self.executor.incoming[number].as_ref().expect("an open link").awaited(),
        };
        let memory: Arc<dyn Any + Send + Sync> = match self.far.iter().find(|(other, _)| *other == end) {
            Some((_, memory)) => memory.clone(),
            None => device.words.clone(),
        };
        Awaited { peer: end.peer, operation, word: flag(&word, memory), value }
    }

    /// Have the courier carry what was queued for other hosts.
    pub fn carry(&mut self) {
        self.executor.carry();
    }

    /// Bytes of a slot of the links on `channel`, and how many slots they have.
    pub fn slots(&self, channel: usize) -> (usize, usize) {
        let shape = self.staging().shape();
        (shape.slot(channel), shape.slots)
    }

    fn staging(&self) -> &Staging {
        self.staging.as_ref().expect("nothing is queued after leaving")
    }

    /// One direction of a link to another host: slots in pinned memory, with the courier at the other end.
    fn far(&mut self, device: &Device, end: End) -> std::result::Result<Far, CudaError> {
        let shape = self.staging().shape();
        let (count, bytes) = (shape.slots, shape.slot(end.channel));
        let (first, stride, length) = ring_layout(&shape, end.channel);
        let memory = match self.reserve.pop() {
            Some(memory) => memory,
            None => {
                device.prepare_to_allocate();
                Arc::new(Pinned::new(&device.context, length)?)
            }
        };
        let word = |offset: usize| {
            let at = std::ptr::NonNull::new(memory.as_ptr().wrapping_add(offset).cast()).expect("allocated");
            // SAFETY: both name the same bytes, in memory that the courier and the sentry keep; the executor's ends go
            // before them.
            unsafe { Word::new(at, memory.address() + offset as u64) }
        };
        let (filled, freed) = (word(0), word(HEADER));
        let (filled_mark, freed_mark) = (word(size_of::<u32>()), word(HEADER + size_of::<u32>()));
        let slots = Slots { first: memory.address() + first as u64, stride, bytes, count: count as u32 };
        // SAFETY: the slots lie behind the words in the same memory, at multiples of 64; only the device and this courier
        // touch them.
        let ring = unsafe {
            let place = (memory.as_ptr().wrapping_add(first), stride);
            Ring::new(place, (count as u32, bytes), (filled.atomic(), freed.atomic()), memory.clone())
        };
        self.courier.as_ref().expect("there is one where ranks are on other hosts").open(end, ring);
        self.far.push((end, memory.clone()));
        Ok(Far { slots, filled, freed, filled_mark, freed_mark, memory })
    }
}

/// Where a link to another host has its slots: the first one's offset, the next one's distance, and bytes in all. Two lines
/// for the words come before.
fn ring_layout(shape: &Shape, channel: usize) -> (usize, usize, usize) {
    let (first, stride) = (2 * HEADER, HEADER + shape.slot(channel).next_multiple_of(HEADER));
    (first, stride, first + shape.slots * stride)
}

struct Far {
    slots: Slots,
    filled: Word,
    freed: Word,
    /// For the sentry, beside the words.
    filled_mark: Word,
    freed_mark: Word,
    memory: Arc<Pinned>,
}

impl Far {
    /// One of the words, as the sentry sees it.
    fn flag(&self, word: &Word) -> Flag {
        flag(word, self.memory.clone())
    }
}

/// A stream's name, as operations remember it: default streams by their handle, others by a number that no stream made
/// later has, as it may have the handle.
pub(crate) fn name(stream: &Stream) -> usize {
    stream.number().map_or(stream.raw() as usize, |number| DEFAULT_STREAMS + number as usize)
}

/// Handles of default streams are below this.
const DEFAULT_STREAMS: usize = 3;

const _: () = assert!(CHANNELS >= 3);
