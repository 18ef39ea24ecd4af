//! What this process holds: memory from the allocator, mappings, descriptors, threads. A run gives all of it back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use maypole_transports::lock::{Condvar, Mutex};

/// The system's allocator, and how many bytes it has handed out.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: passed on to the caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: passed on to the caller.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: passed on to the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Everything that can leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub descriptors: usize,
    pub threads: usize,
    /// Mappings of memory that ranks share.
    pub shared: usize,
    /// Bytes from the allocator.
    pub bytes: usize,
}

impl Held {
    fn now() -> Held {
        let entries = |directory: &str| std::fs::read_dir(directory).expect("a directory of /proc").count();
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
        Held {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            shared: maps.lines().filter(|line| line.contains("memfd:") || line.contains("rw-s")).count(),
            bytes: LIVE.load(Ordering::Relaxed),
        }
    }

    /// What is held once threads that are ending have ended: the same for a while.
    pub fn settled() -> Held {
        let (mut last, mut since) = (Held::now(), Instant::now());
        while since.elapsed() < Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(10));
            let now = Held::now();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        last
    }

    /// Fail if more is held than `before`, but for a few bytes that are kept for the process's life.
    pub fn compare(&self, before: Held, after: &str) {
        let Held { bytes, .. } = *self;
        assert!(bytes < before.bytes + (64 << 10), "{bytes} bytes are held after {after}, {} before", before.bytes);
        assert_eq!(Held { bytes: 0, ..*self }, Held { bytes: 0, ..before }, "held after {after}");
    }
}

/// As many threads at once as no run has. The locks keep a table of the threads that wait, which grows with the most
/// that there ever were (65 KB when they are more than 170) and never shrinks: not a leak of whoever has the most.
pub fn crowd() {
    const THREADS: usize = 1000;
    let all_there = Barrier::new(THREADS);
    let (lock, nobody) = (Mutex::new(()), Condvar::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                // A thread has its place in the table when it has waited.
                nobody.wait_for(&mut lock.lock(), Duration::from_millis(1));
                all_there.wait();
            });
        }
    });
}
