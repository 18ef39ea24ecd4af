//! The end of the process: it leaves its jobs in good order, whether or not the program let go of what it had.
//!
//! A program may return from `main`, or call `exit`, with communicators that nobody destroyed: they lie in statics, were
//! forgotten, or belong to a language that has no destructors. To the other ranks that would look like a death. So
//! whatever this process is a member of is listed here, and a handler of the C library's leaves it at the end. It is
//! there for all languages; one whose runtime ends earlier than the process, as Python's, calls [`leave`] then.
//!
//! *When.* Handlers run in the reverse order of their registration, among the destructors of C++'s statics. This one is
//! registered when the library is loaded, before any code of the program's has run, so it runs last: handlers and
//! destructors of the program's find communicators that still work. If what has this code is
//! unloaded earlier (`dlclose` of a program's own library; Maypole's for C is never unmapped), the
//! C library runs it then.
//!
//! *What is under way* has a second to end: a request that nobody waited for, a message that is not quite
//! sent. Nothing is freed, since other threads may still be at work.
//!
//! *Whom it waits for.* In the process that holds a job together, for the other processes: they could not go on without
//! it. Only here, and not where a [`Node`](crate::node::Node) is dropped: a program that is not at its end yet has other
//! things to do, and with two worlds, each held together by one of two processes, each could wait for the other. A process
//! that waits here has left all its jobs, so no two wait for each other.
//!
//! *A process that was told to end* by a signal, and whose handler for it has `main` return, cannot be told from one that
//! is done. It waits as well: those who were told the same are about to leave too, and need it. But once it has waited for
//! five seconds and has said for whom, SIGTERM, SIGINT and SIGHUP end it at once, handler or not (a handler can do nothing
//! more for a `main` that has returned), unless they are ignored.
//!
//! *Not at* `_exit`, `abort`, or the death by a signal: those are deaths to the others, at once. A child by `fork` leaves
//! nothing in its parent's name.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use maypole_transports::fork::PerProcess;
use maypole_transports::lock::{Condvar, Mutex, MutexGuard};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::communicator::Inner;

/// How long what is under way may take to end.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// How long another thread may hold the list.
const LIST_WITHIN: Duration = Duration::from_secs(1);

/// How long a process waits at its end before it says for whom, and before signals end it whatever handlers they have.
pub(crate) const SAY_AFTER: Duration = Duration::from_secs(5);
/// How often a thread that waits for an end looks around.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What this process is to a job: one of its ranks, or what holds it together.
pub(crate) trait Membership: Send + Sync {
    /// It ends: tell whoever has to know. Does not wait, and does nothing the second time.
    fn part(&self);
    /// What is to be waited for after that.
    fn end(&self) -> &End;
}

/// Something that ends once, and is waited for.
#[derive(Default)]
pub(crate) struct End {
    over: Mutex<bool>,
    ended: Condvar,
}

impl End {
    /// It is over.
    pub fn come(&self) {
        *self.over.lock() = true;
        self.ended.notify_all();
    }

    /// Wait until it is over, or until `stop` says so, which is asked ten times a second. Returns whether it is over.
    pub fn wait(&self, mut stop: impl FnMut() -> bool) -> bool {
        let mut over = self.over.lock();
        while !*over {
            let late = self.ended.wait_for(&mut over, LOOK_EVERY);
            if late && MutexGuard::unlocked(&mut over, &mut stop) {
                break;
            }
        }
        *over
    }
}

/// What one process is a member of.
#[derive(Default)]
struct Memberships {
    /// Also those whose node is being dropped just now, and jobs that it holds together without a rank in them any more.
    jobs: Vec<Weak<dyn Membership>>,
    communicators: Vec<Weak<Inner>>,
}

/// A child by `fork` has none of its parent's: dropping them there may be for the parent only, and
/// another thread may have held the lock.
static HERE: PerProcess<Mutex<Memberships>> = PerProcess::new();
static REGISTERED: AtomicBool = AtomicBool::new(false);
/// This process was told to wait for nothing more at its end.
static HURRIED: PerProcess<AtomicBool> = PerProcess::new();

impl Memberships {
    /// Without what is gone.
    fn renew(&mut self) {
        self.jobs.retain(|job| job.strong_count() > 0);
        self.communicators.retain(|communicator| communicator.strong_count() > 0);
    }
}

/// The job is left when the process ends, if it was not before.
pub(crate) fn list_membership(job: Weak<dyn Membership>) {
    register();
    let mut here = HERE.get().lock();
    here.renew();
    here.jobs.push(job);
}

/// What `communicator` has under way when the process ends has a moment.
pub(crate) fn list_communicator(communicator: &Arc<Inner>) {
    let mut here = HERE.get().lock();
    here.renew();
    here.communicators.push(Arc::downgrade(communicator));
}

/// A communicator is being dropped: the list would keep its memory.
pub(crate) fn unlist_communicator() {
    if let Some(mut here) = HERE.get().try_lock_for(LIST_WITHIN) {
        here.renew();
    }
}

/// `job` has been left.
pub(crate) fn unlist_membership(job: *const ()) {
    if let Some(mut here) = HERE.get().try_lock_for(LIST_WITHIN) {
        here.jobs.retain(|listed| listed.as_ptr().cast() != job);
        here.renew();
    }
}

/// Leave every job that this process is in, in good order, as at its end: for runtimes that end before the process does,
/// and for programs that call `_exit`. What is under way has a second to end. In the process that holds a job together
/// (usually rank 0's) it waits until the other processes have left, however long they are at work, unless a look around
/// ([`look_with`]) or, after five seconds, a signal says to stop waiting. Communicators must not be used after it.
///
/// [`look_with`]: crate::interrupt::look_with
pub fn leave() {
    leave_or(None);
}

/// [`leave`], but wait for other processes at most so long, now and later: for a process that has failed, and whose end
/// somebody waits for. Those that cannot go on without it are told that it ended.
pub fn leave_within(at_most: Duration) {
    leave_or(Some(at_most));
}

fn leave_or(at_most: Option<Duration>) {
    let (jobs, communicators) = {
        let Some(mut here) = HERE.made().and_then(|here| here.try_lock_for(LIST_WITHIN)) else { return };
        here.renew();
        let jobs: Vec<Arc<dyn Membership>> = here.jobs.iter().filter_map(Weak::upgrade).collect();
        let communicators: Vec<Arc<Inner>> = here.communicators.iter().filter_map(Weak::upgrade).collect();
        (jobs, communicators)
    };
    // Once the time was up, it is not waited for again.
    let hurried = HURRIED.made().is_some_and(|hurried| hurried.load(Ordering::Relaxed));
    let until = Instant::now() + if hurried { Duration::ZERO } else { UNDER_WAY };
    for communicator in &communicators {
        while communicator.is_at_work() && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    // All first: nobody who waits for this process waits for what it waits for.
    jobs.iter().for_each(|job| job.part());
    await_ends(&jobs, Instant::now(), at_most);
    // To be dropped by whoever else holds them, not by a process that ends.
    std::mem::forget(communicators);
}

/// Wait until all of them are over, or until a look around or the time says to stop, which means all of them, now and later.
fn await_ends(jobs: &[Arc<dyn Membership>], since: Instant, at_most: Option<Duration>) {
    let hurried = HURRIED.get();
    let mut deaf = true;
    for job in jobs {
        let stop = || {
            if deaf && since.elapsed() >= SAY_AFTER {
                deaf = false;
                heed_signals();
            }
            if crate::interrupt::look() || at_most.is_some_and(|at_most| since.elapsed() >= at_most) {
                hurried.store(true, Ordering::Relaxed);
            }
            hurried.load(Ordering::Relaxed)
        };
        if !hurried.load(Ordering::Relaxed) {
            job.end().wait(stop);
        }
    }
}

/// From now on signals that ask a process to end do end it, unless they are ignored: its handlers have had their turn.
fn heed_signals() {
    let mut asking = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default action is no function.
        let before = unsafe { sigaction(signal, &default) };
        match before {
            // SAFETY: as it was: ignored, which is no function either.
            Ok(before) if before.handler() == SigHandler::SigIgn => _ = unsafe { sigaction(signal, &before) },
            _ => asking.add(signal),
        }
    }
    let _ = asking.thread_unblock();
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
