//! Locks that a child by `fork` can use.
//!
//! In the child there is only the thread that forked. A lock that another thread held is never given back there, which
//! is why statics lie behind [`PerProcess`](crate::fork::PerProcess). What is less plain is that a lock may be unusable
//! in the child because of threads that *waited* in the parent, for any lock. parking_lot's keep all waiting threads in
//! one table of the process, whose entries lie in the memory of those threads. The child inherits the table, and uses
//! the memory for the stacks of its own threads; the first of them that lets the table grow follows what were pointers.
//! So these are the standard library's, whose waiting threads only the kernel knows (futexes), and each lock that the
//! child makes is new to it.
//!
//! Two things are parking_lot's. A panic leaves nothing behind that later callers would have to handle: what a lock
//! guards is whole between any two statements. And [`MutexGuard::bump`] lets others in where a thread takes the same
//! lock again and again.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{self, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

pub use std::sync::{RwLockReadGuard, RwLockWriteGuard};

/// How often [`MutexGuard::bump`] lets the scheduler choose before it wants the lock again: some 100 us, longer than it
/// takes to wake whoever waits.
const YIELDS: usize = 200;
/// How long [`Mutex::try_lock_for`] sleeps between two tries.
const BETWEEN_TRIES: Duration = Duration::from_millis(1);

/// A lock for one thread at a time.
#[derive(Default)]
pub struct Mutex<T: ?Sized> {
    /// Threads that have found it taken and wait.
    waiting: AtomicU32,
    /// Written by whoever gives it back, read by whoever has waited for it: a release and an acquire that the lock has
    /// inside anyway, out of ThreadSanitizer's sight.
    given_back: AtomicBool,
    inner: sync::Mutex<T>,
}

impl<T> Mutex<T> {
    /// A lock that nobody has.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex { waiting: AtomicU32::new(0), given_back: AtomicBool::new(false), inner: sync::Mutex::new(value) }
    }

    /// What it guarded.
    pub fn into_inner(self) -> T {
        self.inner.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Wait until no other thread has it, and take it. A thread that has it already waits for ever.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.try_lock().unwrap_or_else(|| self.wait())
    }

    #[cold]
    fn wait(&self) -> MutexGuard<'_, T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.given_back.load(Ordering::Acquire);
        MutexGuard { lock: self, inner: Some(inner) }
    }

    /// Take it if no thread has it. Does not wait.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(MutexGuard { lock: self, inner: Some(inner) })
    }

    /// Take it if that can be done within `at_most`. To be used where a thread that has it may never give it back; it
    /// looks every millisecond.
    pub fn try_lock_for(&self, at_most: Duration) -> Option<MutexGuard<'_, T>> {
        let began = Instant::now();
        loop {
            let guard = self.try_lock();
            if guard.is_some() || began.elapsed() >= at_most {
                return guard;
            }
            thread::sleep(BETWEEN_TRIES);
        }
    }

    /// What it guards: no other thread can have it.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// A [`Mutex`] that this thread has, until it is dropped.
pub struct MutexGuard<'a, T: ?Sized> {
    lock: &'a Mutex<T>,
    /// None only while [`MutexGuard::unlocked`] or a [`Condvar`] has given it back.
    inner: Option<sync::MutexGuard<'a, T>>,
}

impl<T: ?Sized> MutexGuard<'_, T> {
    #[inline]
    fn give_back(&mut self) {
        if self.inner.is_some() {
            self.lock.given_back.store(true, Ordering::Release);
            self.inner = None;
        }
    }

    /// Give the lock back, run `f`, and wait for the lock again. If `f` panics the lock is taken again, too.
    pub fn unlocked<R>(guard: &mut Self, f: impl FnOnce() -> R) -> R {
        let unlocked = Unlocked::new(guard);
        let result = f();
        drop(unlocked);
        result
    }

    /// Let in whoever waits for the lock; nothing, for the price of a load, if nobody does.
    #[inline]
    pub fn bump(guard: &mut Self) {
        if guard.lock.waiting.load(Ordering::Relaxed) != 0 {
            Self::let_in(guard);
        }
    }

    /// Giving back wakes one of those that wait. It is not handed the lock, so this thread keeps off for a while.
    #[cold]
    fn let_in(guard: &mut Self) {
        let lock = guard.lock;
        Self::unlocked(guard, || {
            let before = lock.waiting.load(Ordering::Relaxed);
            for _ in 0..YIELDS {
                if lock.waiting.load(Ordering::Relaxed) < before {
                    break;
                }
                thread::yield_now();
            }
        });
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A lock that is given back for a while.
struct Unlocked<'a, 'b, T: ?Sized>(&'a mut MutexGuard<'b, T>);

impl<'a, 'b, T: ?Sized> Unlocked<'a, 'b, T> {
    fn new(guard: &'a mut MutexGuard<'b, T>) -> Self {
        guard.give_back();
        Unlocked(guard)
    }
}

impl<T: ?Sized> Drop for Unlocked<'_, '_, T> {
    fn drop(&mut self) {
        self.0.inner = self.0.lock.lock().inner.take();
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.inner.as_ref().expect("the lock is given back only within this module")
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_mut().expect("the lock is given back only within this module")
    }
}

/// A lock for one thread that writes, or many that read.
#[derive(Debug, Default)]
pub struct RwLock<T: ?Sized>(sync::RwLock<T>);

impl<T> RwLock<T> {
    /// A lock that nobody has.
    pub const fn new(value: T) -> RwLock<T> {
        RwLock(sync::RwLock::new(value))
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Wait until nobody writes.
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait until nobody reads or writes.
    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it guards: no other thread can have it.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take it for writing if nobody reads or writes. Does not wait.
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        match self.0.try_write() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Wakes threads that have given back a [`Mutex`] to wait for what another will do behind it.
///
/// Whoever is woken waits for the mutex as any other does, so that [`MutexGuard::bump`] knows of it. Hence the standard
/// library's condition has a lock of its own: a thread takes that one before it gives back the mutex, and sleeps as it
/// gives back that one; whoever notifies takes it too, and so comes before a thread that has found nothing to wait for,
/// or after it sleeps.
#[derive(Debug, Default)]
pub struct Condvar {
    going_to_sleep: sync::Mutex<()>,
    inner: sync::Condvar,
}

impl Condvar {
    /// One for which nobody waits.
    pub const fn new() -> Condvar {
        Condvar { going_to_sleep: sync::Mutex::new(()), inner: sync::Condvar::new() }
    }

    /// Sleep until notified, or for no reason. The mutex is given back meanwhile.
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        let awake = self.awake();
        let unlocked = Unlocked::new(guard);
        drop(self.inner.wait(awake));
        drop(unlocked);
    }

    /// Sleep until notified, but no longer than `at_most`. The mutex is given back meanwhile. Whether the time was up.
    pub fn wait_for<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, at_most: Duration) -> bool {
        let awake = self.awake();
        let unlocked = Unlocked::new(guard);
        let (awake, result) = self.inner.wait_timeout(awake, at_most).unwrap_or_else(PoisonError::into_inner);
        // Before the mutex is waited for, or a thread that has it and goes to sleep would wait for this one.
        drop(awake);
        drop(unlocked);
        result.timed_out()
    }

    /// Sleep while `condition` holds of what the mutex guards, but no longer than `at_most`.
    pub fn wait_while_for<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        mut condition: impl FnMut(&mut T) -> bool,
        at_most: Duration,
    ) {
        let began = Instant::now();
        while condition(guard) {
            let left = at_most.saturating_sub(began.elapsed());
            if left.is_zero() {
                break;
            }
            self.wait_for(guard, left);
        }
    }

    /// Wake one of those that sleep.
    pub fn notify_one(&self) {
        drop(self.awake());
        self.inner.notify_one();
    }

    /// Wake all that sleep.
    pub fn notify_all(&self) {
        drop(self.awake());
        self.inner.notify_all();
    }

    fn awake(&self) -> sync::MutexGuard<'_, ()> {
        self.going_to_sleep.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn who_holds_on_to_a_lock_lets_others_in() {
        let (lock, over) = (Mutex::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut guard = lock.lock();
                while !over.load(Ordering::Relaxed) {
                    MutexGuard::bump(&mut guard);
                }
            });
            for _ in 0..100 {
                *lock.lock() += 1;
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(lock.into_inner(), 100);
    }

    #[test]
    fn no_notice_is_lost_and_who_was_woken_is_let_in() {
        let (turn, changed) = (Mutex::new(0), Condvar::new());
        thread::scope(|scope| {
            for me in 0..3 {
                let (turn, changed) = (&turn, &changed);
                scope.spawn(move || {
                    let mut now = turn.lock();
                    for round in 0..1000 {
                        while *now != 3 * round + me {
                            changed.wait(&mut now);
                        }
                        *now += 1;
                        changed.notify_all();
                        MutexGuard::bump(&mut now);
                    }
                });
            }
        });
        assert_eq!(turn.into_inner(), 3000);
    }

    #[test]
    fn waiting_ends_when_the_time_is_up() {
        let (lock, changed) = (Mutex::new(()), Condvar::new());
        let mut guard = lock.lock();
        while !changed.wait_for(&mut guard, Duration::from_millis(1)) {}
        assert!(lock.try_lock().is_none() && lock.try_lock_for(Duration::from_millis(1)).is_none());
    }

    #[test]
    fn a_panic_leaves_the_lock_to_the_others() {
        let lock = Mutex::new(1);
        let panicked = std::panic::catch_unwind(|| {
            let mut guard = lock.lock();
            MutexGuard::unlocked(&mut guard, || panic!("meant"));
        });
        assert!(panicked.is_err());
        assert_eq!(*lock.lock(), 1);
    }
}
