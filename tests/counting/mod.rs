//! The allocator of a test that counts allocations, by thread. Such a test is alone in its file, since what is counted is
//! the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts allocations between [`start`] and [`stop`].
struct Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
const THREADS: usize = 64;
/// Threads that have allocated, and how often.
static COUNTS: [(AtomicU64, AtomicU64); THREADS] = [const { (AtomicU64::new(0), AtomicU64::new(0)) }; THREADS];

fn count() {
    if COUNTING.load(Ordering::Relaxed) {
        let me = this_thread();
        for (thread, allocations) in &COUNTS {
            let owner =
                thread.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed).unwrap_or_else(|other| other);
            if owner == 0 || owner == me {
                allocations.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

// SAFETY: everything is passed on to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The calling thread's number, as [`counted`] has it.
pub fn this_thread() -> u64 {
    nix::unistd::gettid().as_raw() as u64
}

/// Count from now on.
pub fn start() {
    COUNTING.store(true, Ordering::Relaxed);
}

/// Count no more.
pub fn stop() {
    COUNTING.store(false, Ordering::Relaxed);
}

/// Threads that have allocated since the last call, and how often each.
pub fn counted() -> Vec<(u64, u64)> {
    let taken =
        COUNTS.iter().map(|(thread, times)| (thread.swap(0, Ordering::Relaxed), times.swap(0, Ordering::Relaxed)));
    taken.filter(|(thread, _)| *thread != 0).collect()
}

/// That the counter counts: a test that found nothing ends with it.
pub fn check() {
    counted();
    start();
    drop(std::hint::black_box(vec![1u8; 100]));
    stop();
    let me = this_thread();
    assert!(counted().iter().any(|(thread, times)| *thread == me && *times >= 1));
}
