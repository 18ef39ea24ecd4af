//! The end of the process: it leaves its jobs in good order, whether or not the program let go of what it had.
//!
//! A program may return from `main`, or call `exit`, with communicators that nobody destroyed: they lie in statics, were
//! forgotten, or belong to a language that has no destructors. To the other ranks that would look like a death. So
//! whatever this process is a member of is listed here, and a handler of the C library's leaves it at the end. It is
//! there for all languages; one whose runtime ends earlier than the process, as Python's, calls [`leave`] then.
//!
//! *When.* Handlers run in the reverse order of their registration, among the destructors of C++'s statics. This one is
//! registered when the library is loaded, before any code of the program's has run, so it runs last: handlers and
//! destructors of the program's find communicators that still work. If the library is unloaded earlier (`dlclose`), the C
//! library runs it then.
//!
//! *What is under way* has a second to end: a request that nobody waited for, a message that is not quite
//! sent. Nothing is freed, since other threads may still be at work.
//!
//! *Whom it waits for.* As for dropping a [`Node`](crate::node::Node): in the process that holds the job together, for the other processes.
//!
//! *Not at* `_exit`, `abort`, or the death by a signal: those are deaths to the others, at once. A child by `fork` leaves
//! nothing in its parent's name.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use maypole_transports::fork;
use parking_lot::Mutex;

use crate::communicator::Inner;

/// How long what is under way may take to end.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// How long another thread may hold the list.
const LIST_WITHIN: Duration = Duration::from_secs(1);

/// One rank's membership in a job.
pub(crate) trait Membership: Send + Sync {
    /// Tell the others that this rank leaves. Once; does not wait.
    fn part(&self);
    /// After that: wait until it has left. `false`: whoever looked around said to stop waiting.
    fn await_end(&self) -> bool;
}

/// What one process is a member of.
struct Memberships {
    /// In jobs; also those whose node is being dropped just now.
    jobs: Vec<Weak<dyn Membership>>,
    communicators: Vec<Weak<Inner>>,
}

static HERE: Mutex<Memberships> = Mutex::new(Memberships { jobs: Vec::new(), communicators: Vec::new() });
/// One more than the [generation](fork::generation) of the process that has listed something last, 0 at first: a child by
/// `fork` has its parent's list, and perhaps a lock on it that is never given back.
static LISTED_BY: AtomicU64 = AtomicU64::new(0);
static REGISTERED: AtomicBool = AtomicBool::new(false);

impl Memberships {
    /// Without what is gone, and without what was the parent's.
    fn renew(&mut self) {
        let process = fork::generation() + 1;
        if LISTED_BY.swap(process, Ordering::Relaxed) != process {
            // Not dropped: that may be for the parent only.
            std::mem::forget(std::mem::take(&mut self.jobs));
            std::mem::forget(std::mem::take(&mut self.communicators));
        }
        self.jobs.retain(|job| job.strong_count() > 0);
        self.communicators.retain(|communicator| communicator.strong_count() > 0);
    }
}

/// The job is left when the process ends, if it was not before.
pub(crate) fn list_membership(job: Weak<dyn Membership>) {
    register();
    let mut here = HERE.lock();
    here.renew();
    here.jobs.push(job);
}

/// What `communicator` has under way when the process ends has a moment.
pub(crate) fn list_communicator(communicator: &Arc<Inner>) {
    let mut here = HERE.lock();
    here.renew();
    here.communicators.push(Arc::downgrade(communicator));
}

/// A communicator is being dropped: the list would keep its memory.
pub(crate) fn unlist_communicator() {
    if let Some(mut here) = HERE.try_lock_for(LIST_WITHIN) {
        here.renew();
    }
}

/// `job` has been left.
pub(crate) fn unlist_membership(job: *const ()) {
    if let Some(mut here) = HERE.try_lock_for(LIST_WITHIN) {
        here.jobs.retain(|listed| listed.as_ptr().cast() != job);
        here.renew();
    }
}

/// Leave every job that this process is in, in good order, as at its end: for runtimes that end before the process does.
/// What is under way has a second to end. In the process that holds a job together (usually rank 0's) it waits until the
/// other processes have left, however long they are at work, unless a look around ([`look_with`]) says to stop waiting.
/// Communicators must not be used after it.
///
/// [`look_with`]: crate::interrupt::look_with
pub fn leave() {
    if LISTED_BY.load(Ordering::Relaxed) != fork::generation() + 1 {
        return;
    }
    let (jobs, communicators) = {
        let Some(mut here) = HERE.try_lock_for(LIST_WITHIN) else { return };
        here.renew();
        let jobs: Vec<Arc<dyn Membership>> = here.jobs.iter().filter_map(Weak::upgrade).collect();
        let communicators: Vec<Arc<Inner>> = here.communicators.iter().filter_map(Weak::upgrade).collect();
        (jobs, communicators)
    };
    let until = Instant::now() + UNDER_WAY;
    for communicator in &communicators {
        while communicator.is_at_work() && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    // All first: ranks that are threads of one process wait for each other.
    jobs.iter().for_each(|job| job.part());
    // Whoever says to stop waiting means all.
    let _all_left = jobs.iter().all(|job| job.await_end());
    // To be dropped by whoever else holds them, not by a process that ends.
    std::mem::forget(communicators);
}

/// Have the C library call [`leave`] at the end, once.
fn register() {
    extern "C" fn at_end() {
        // It may come in an operation of the user's, or have lost what threads have of their own: nothing unwinds.
        let _ = std::panic::catch_unwind(leave);
    }
    unsafe extern "C" {
        fn at_quick_exit(handler: extern "C" fn()) -> std::ffi::c_int;
    }
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        // SAFETY: `at_end` lives as long as this library is loaded (the C library runs it before unloading), does not
        // unwind, and touches nothing but statics that are never destroyed.
        unsafe {
            libc::atexit(at_end);
            at_quick_exit(at_end);
        }
    }
}

/// Run when the library is loaded. Where the linker has left it out, the first node does it.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = {
    extern "C" fn at_load() {
        register();
    }
    at_load
};
