//! The protocols of shared memory under loom's model checker.
//!
//! Loom runs a test again and again, each time with another interleaving of its threads and, where the memory model
//! lets a load return an older value, with each value that it may return. The cursors, counts, lines and bells here are
//! those of the crate, built with loom's atomics. The bytes that they guard are loom cells ([`Bytes`]), which report
//! two accesses that no release and acquire put in order. A sleeper whom nobody wakes is a deadlock, which loom reports
//! too.
//!
//! Each protocol has negative controls: a copy of its few lines with one of them weakened must fail, and the same copy
//! unchanged must pass. They show that the checks can see what they look for.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p maypole-transports --release --test loom --target-dir target/loom
//! ```
//!
//! Threads are switched at most as often as each test says where it calls [`check`] (a switch at which the running
//! thread could have gone on; others are not counted), or as `LOOM_MAX_PREEMPTIONS` says. Without `--cfg loom` this
//! file is empty.

#![cfg(loom)]

mod bell;
mod gate;
mod line;
mod ring;
mod ring_bells;
mod window;

use std::sync::Arc;
use std::time::Duration;

use loom::cell::UnsafeCell;
use maypole_transports::wait::Bell;

/// Run `model` through every interleaving with at most `preemptions` forced switches of threads.
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 10_000;
    builder.check(model);
}

/// Memory guarded by a protocol, as elements of 8 bytes.
struct Bytes(Vec<UnsafeCell<u64>>);

// SAFETY: not sound by itself; loom checks each access when it happens and ends the test where two of them race.
unsafe impl Sync for Bytes {}

impl Bytes {
    fn new(elements: usize) -> Arc<Bytes> {
        Arc::new(Bytes((0..elements).map(|_| UnsafeCell::new(0)).collect()))
    }

    fn write(&self, element: usize, value: u64) {
        // SAFETY: loom has checked, when it hands out the pointer, that nobody else has access.
        self.0[element].with_mut(|at| unsafe { *at = value });
    }

    fn read(&self, element: usize) -> u64 {
        // SAFETY: loom has checked, when it hands out the pointer, that nobody writes.
        self.0[element].with(|at| unsafe { *at })
    }
}

/// Poll until something is found, giving way to the other threads in between.
fn poll<T>(mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        match look() {
            Some(found) => return found,
            None => loom::thread::yield_now(),
        }
    }
}

/// As [`poll`], for at most so many looks. For models of three threads, where loom also follows two that look in turn
/// for ever and never let the third go on. What is safe must be safe in runs that are given up too; tests count the
/// others.
fn poll_at_most<T>(looks: usize, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..looks {
        if let Some(found) = look() {
            return Some(found);
        }
        loom::thread::yield_now();
    }
    None
}

/// Poll until something is found, as a rank does: look, arm the bell, look once more, sleep.
fn sleep<T>(bell: &Bell, mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = look() {
            return found;
        }
        bell.arm();
        if let Some(found) = look() {
            bell.disarm();
            return found;
        }
        bell.sleep(Duration::ZERO);
        bell.disarm();
    }
}
