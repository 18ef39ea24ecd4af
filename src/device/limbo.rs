//! Where device memory waits until it may be given back.
//!
//! The driver's functions that give memory back wait for everything on the device. If another rank of this process has
//! an operation queued there that waits for this one, and this thread is to queue it next, that would be for ever. So what
//! was dropped lies here until no operation of any communicator of this process is outstanding; no new one begins
//! while memory is given back.
//!
//! Where each rank is a process of its own there is nothing to fear: operations that are outstanding wait for other
//! processes, which go on meanwhile. There memory is given back at once, even in a pipeline that always has something
//! outstanding.
//!
//! # Pipelines of threads
//!
//! Ranks that are threads and never wait for their streams need not ever be idle at the same time. So when more than a
//! [part](SHARE) of the device's memory lies here, or an allocation found no room, the ranks are made to *rest*: one that is
//! about to begin an operation that no other rank of this process has begun waits, since nobody can wait for it yet, until
//! all that is outstanding has ended and memory has been given back. Those that are behind catch up; their operations are
//! what the others' streams wait for. A rank may wait for something else here, of another communicator, or a caller's
//! work may hold a stream up: then the rest ends after [`REST`] with nothing given back, and is tried again when as much
//! has been dropped again.
//!
//! # What this cannot see
//!
//! * *A caller's own work.* Giving back waits for whatever is on the device. A host function of the caller's, or a stream
//!   that waits for an event or a word, which does not end before some thread of this process has queued an operation or
//!   dropped a buffer, may then wait for the very thread that gives memory back here. Such work must not wait for a thread
//!   that uses a communicator: NVIDIA's manual asks the same of whoever calls `cuMemFree`.
//! * *The last of all.* Memory is given back when something is dropped, allocated or begun. What a communicator that
//!   leaves while others are busy holds lies here until one of these happens in this process again, and if none does,
//!   until the process ends, when the driver takes everything back. The others' memory goes when they leave: whoever leaves
//!   last finds nobody busy.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use maypole_cuda::{CudaError, DeviceMemory};
use maypole_transports::lock::{Mutex, RwLock, RwLockReadGuard};

/// Ranks rest when more than one part in so many of a device's memory waits here.
const SHARE: u64 = 16;
/// How long an operation is held back at most.
const REST: Duration = Duration::from_millis(100);
/// How long an allocation that found no room waits for what can be given back.
const ROOM_WITHIN: Duration = Duration::from_secs(1);
/// Between two looks whether all are idle.
const NAP: Duration = Duration::from_micros(50);

/// Something of which operations may be outstanding: a rank of a communicator.
pub(super) trait Busy: Send + Sync {
    /// Whether some are.
    fn is_busy(&self) -> bool;
    /// Whether several of its ranks are threads of this process.
    fn is_crowded(&self) -> bool;
    /// The communicator, and which of its collectives was begun last. Ranks begin the same ones.
    fn begun(&self) -> (u64, u64);
}

/// What is given back in several steps, some of which wait for other ranks.
pub(super) trait Parting: Send {
    /// Go as far as it goes now, while no operation of this process is outstanding that waits for this thread. Returns
    /// whether that was the end.
    fn go_on(&mut self) -> bool;

    /// Bytes of device memory that it gives back as soon as nobody is busy.
    fn bytes(&self) -> u64 {
        0
    }
}

/// What is given back at once.
struct Whole<T>(Option<T>);

impl<T: Send> Parting for Whole<T> {
    fn go_on(&mut self) -> bool {
        drop(self.0.take());
        true
    }
}

/// A buffer of the caller's.
struct Buffer(Option<Arc<DeviceMemory>>);

impl Parting for Buffer {
    fn go_on(&mut self) -> bool {
        self.0 = None;
        true
    }

    fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |memory| memory.bytes() as u64)
    }
}

/// Held for reading while an operation is queued.
static QUEUEING: RwLock<()> = RwLock::new(());
static COMMUNICATORS: Mutex<Vec<Weak<dyn Busy>>> = Mutex::new(Vec::new());
static PARTING: Mutex<Vec<Box<dyn Parting>>> = Mutex::new(Vec::new());
/// How many were put there, ever, and how many have ended.
static CAME: AtomicU64 = AtomicU64::new(0);
static WENT: AtomicU64 = AtomicU64::new(0);
/// Ranks are to rest.
static RESTING: AtomicBool = AtomicBool::new(false);
/// When so many bytes wait here, ranks are to rest; more than that once a rest was in vain.
static ENOUGH: AtomicU64 = AtomicU64::new(0);

/// From now on nothing is given back while `communicator` is busy.
pub(super) fn watch(communicator: Weak<dyn Busy>) {
    let mut all = COMMUNICATORS.lock();
    all.retain(|known| known.strong_count() > 0);
    all.push(communicator);
}

/// How many ranks of communicators of this process are attached to devices.
pub(super) fn attached() -> usize {
    COMMUNICATORS.lock().iter().filter(|known| known.strong_count() > 0).count()
}

/// An operation is about to be queued: nothing is given back before the result is dropped.
pub(crate) fn queueing() -> RwLockReadGuard<'static, ()> {
    // A thread may have several at once: whoever sweeps only tries to write, so no reader waits behind a writer that
    // waits for this thread.
    QUEUEING.read()
}

/// Rank `me` is about to begin collective `sequence`. Waits, for no longer than [`REST`], where ranks are to rest and no
/// other has begun it.
#[inline]
pub(super) fn before(me: &dyn Busy, sequence: u64) {
    if RESTING.load(Ordering::Relaxed) {
        rest(me.begun().0, sequence);
    }
}

#[cold]
fn rest(communicator: u64, sequence: u64) {
    let until = Instant::now() + REST;
    while RESTING.load(Ordering::Relaxed) {
        if is_begun(communicator, sequence) {
            return;
        }
        sweep();
        if Instant::now() >= until {
            // In vain. Not again before as much has come together once more.
            ENOUGH.store(waiting() + share(), Ordering::Relaxed);
            return RESTING.store(false, Ordering::Relaxed);
        }
        std::thread::sleep(NAP);
    }
}

/// Whether a rank of this process has begun that collective.
fn is_begun(communicator: u64, sequence: u64) -> bool {
    // Nobody sweeps meanwhile, so none of these becomes the last reference to a communicator.
    let _queueing = queueing();
    let is_awaited = |(other, begun)| other == communicator && begun >= sequence;
    communicators().iter().any(|rank| is_awaited(rank.begun()))
}

/// Drop `memory` as soon as that waits for nobody.
pub(super) fn give_back(memory: impl Send + 'static) {
    part(Box::new(Whole(Some(memory))));
}

/// Let go of `shared`. If nobody else has it any more, it goes as with [`give_back`].
pub(super) fn let_go<T: Send + Sync + 'static>(shared: Arc<T>) {
    if let Some(last) = Arc::into_inner(shared) {
        give_back(last);
    }
}

/// [`give_back`] of a caller's buffer.
pub(super) fn give_back_buffer(memory: Arc<DeviceMemory>) {
    if share() == 0
        && let Ok((_, total)) = memory.context().memory()
    {
        let _ = TOTAL.set(total);
        ENOUGH.store(share(), Ordering::Relaxed);
    }
    part(Box::new(Buffer(Some(memory))));
    if share() > 0 && waiting() > ENOUGH.load(Ordering::Relaxed) {
        RESTING.store(true, Ordering::Relaxed);
    }
}

/// Bytes of a device, once known.
static TOTAL: OnceLock<u64> = OnceLock::new();

/// How many bytes may wait here; 0: not known yet.
fn share() -> u64 {
    TOTAL.get().map_or(0, |total| total / SHARE)
}

/// Bytes that wait here for nothing but idleness.
fn waiting() -> u64 {
    PARTING.lock().iter().map(|parting| parting.bytes()).sum()
}

/// Give back `parting` as soon as that waits for nobody.
pub(super) fn part(parting: Box<dyn Parting>) {
    PARTING.lock().push(parting);
    CAME.fetch_add(1, Ordering::SeqCst);
    sweep();
}

/// What `allocate` allocates. Where it finds no room, it is asked again when what lies here has been given back, for which
/// this waits until nobody is busy, but no longer than [`ROOM_WITHIN`]. The caller is not queueing.
///
/// # Errors
/// Those of `allocate`.
pub(super) fn making_room<T>(mut allocate: impl FnMut() -> Result<T, CudaError>) -> Result<T, CudaError> {
    sweep();
    let until = Instant::now() + ROOM_WITHIN;
    loop {
        let outcome = allocate();
        let is_full = matches!(outcome, Err(CudaError::OutOfMemory { .. }));
        if !is_full || PARTING.lock().is_empty() {
            return outcome;
        }
        // Others may take what is given back, so this may come round again.
        let went = WENT.load(Ordering::Relaxed);
        while WENT.load(Ordering::Relaxed) == went {
            if Instant::now() >= until {
                RESTING.store(false, Ordering::Relaxed);
                return allocate();
            }
            RESTING.store(true, Ordering::Relaxed);
            sweep();
            std::thread::sleep(NAP);
        }
    }
}

fn communicators() -> Vec<Arc<dyn Busy>> {
    COMMUNICATORS.lock().iter().filter_map(Weak::upgrade).collect()
}

/// Give back what can be.
pub(super) fn sweep() {
    loop {
        let came = CAME.load(Ordering::SeqCst);
        sweep_once();
        // Who put something here while this thread had the lock has found it taken, and may never come by again.
        if CAME.load(Ordering::SeqCst) == came {
            return;
        }
    }
}

fn sweep_once() {
    if PARTING.lock().is_empty() {
        return RESTING.store(false, Ordering::Relaxed);
    }
    // Whoever is queueing will come by again; whoever sweeps looks once more.
    let Some(_nobody_queues) = QUEUEING.try_write() else { return };
    let communicators = communicators();
    let crowded = communicators.iter().any(|communicator| communicator.is_crowded());
    if crowded && communicators.iter().any(|communicator| communicator.is_busy()) {
        return;
    }
    // Taken out meanwhile: what is dropped may drop more.
    let mut parting = std::mem::take(&mut *PARTING.lock());
    let before = parting.len();
    parting.retain_mut(|parting| !parting.go_on());
    WENT.fetch_add((before - parting.len()) as u64, Ordering::Relaxed);
    PARTING.lock().append(&mut parting);
    RESTING.store(false, Ordering::Relaxed);
    ENOUGH.store(share(), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranks that are threads of this process, with something outstanding for as long as it says so.
    struct Threads(AtomicBool);

    impl Busy for Threads {
        fn is_busy(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }

        fn is_crowded(&self) -> bool {
            true
        }

        fn begun(&self) -> (u64, u64) {
            (u64::MAX, 0)
        }
    }

    /// Something that must not be given back while they are busy.
    struct Memory(Arc<Threads>, Arc<AtomicBool>);

    impl Drop for Memory {
        fn drop(&mut self) {
            assert!(!self.0.is_busy(), "given back while an operation is outstanding");
            self.1.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_the_last_of_several_lets_go_of_waits_for_the_end_of_operations() {
        let threads = Arc::new(Threads(AtomicBool::new(true)));
        let known: Weak<dyn Busy> = Arc::downgrade(&(threads.clone() as Arc<dyn Busy>));
        watch(known);
        let gone = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Memory(threads.clone(), gone.clone()));
        // A registered buffer and a communicator that leaves: whoever of them comes last.
        let other = shared.clone();
        let_go(shared);
        let_go(other);
        sweep();
        assert!(!gone.load(Ordering::Relaxed));
        threads.0.store(false, Ordering::Relaxed);
        // Another test's communicators may be busy, or queueing, for a moment.
        let start = std::time::Instant::now();
        while !gone.load(Ordering::Relaxed) {
            assert!(start.elapsed().as_secs() < 30, "it is never given back");
            sweep();
            std::thread::yield_now();
        }
    }
}
