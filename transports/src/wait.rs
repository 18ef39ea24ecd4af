//! Waiting: spin briefly, give way, then sleep until a bell rings.
//!
//! A rank that waits polls what it waits for. [`Patience`] says how long that may hold a core: long where every rank
//! has a core of its own, hardly at all where ranks share cores, since then the core is what the other rank needs to
//! make progress. After that the rank sleeps on its [`Bell`]. Where others want the cores of which the rank knows nothing,
//! `crowd.rs` finds out, and it sleeps at once.
//!
//! # Why no wake-up is lost
//!
//! The sleeper **arms** its bell (sets it to 1, then a sequentially consistent fence), polls once more, and only then
//! sleeps, in the kernel, under the condition that the bell is still armed. The other side first makes its news visible
//! (a release store), then fences, then looks at the bell. The two fences are totally ordered. If the sleeper's comes
//! first, the other side sees the armed bell and rings. If the other side's comes first, the sleeper's last poll sees
//! the news. Either way the sleeper does not stay asleep. Ringing takes the 1 away before it wakes, so a sleeper that
//! has not reached the kernel yet finds the condition false and returns at once.
//! `tests/loom` checks this under a model checker.

use std::time::{Duration, Instant};

use crate::crowd::CORES;
use crate::sync::{AtomicU32, Ordering, fence};

/// A word in shared memory on which one rank sleeps. One cache line, read by everybody who sends to that rank, written
/// only when it goes to sleep or is woken.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Bell {
    armed: AtomicU32,
    #[cfg(loom)]
    queue: crate::sync::WaitQueue,
}

impl Bell {
    /// The owner is about to sleep. It must poll everything it waits for once more before [`Bell::sleep`].
    pub fn arm(&self) {
        // An exchange and not a store, so that an exchange in `wake` meant for an earlier sleep is seen to come before
        // it. The fences order a store as well, but loom does not work that out, and who goes to sleep can afford it.
        self.armed.swap(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The owner found something to do after all, or has slept.
    pub fn disarm(&self) {
        self.armed.store(0, Ordering::Relaxed);
    }

    /// Whether the bell is armed and nobody rang. For model checks and diagnosis.
    pub fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Acquire) == 1
    }

    /// Sleep until somebody rings, a signal arrives, or `at_most` has passed. Only the owner, after [`Bell::arm`].
    #[cfg(not(loom))]
    pub fn sleep(&self, at_most: Duration) {
        let timeout = libc::timespec { tv_sec: at_most.as_secs() as _, tv_nsec: at_most.subsec_nanos() as _ };
        // SAFETY: the word outlives the call and FUTEX_WAIT only reads it; every outcome (woken, value changed,
        // timeout, signal) means the same here: the caller polls again.
        unsafe {
            libc::syscall(libc::SYS_futex, self.armed.as_ptr(), libc::FUTEX_WAIT, 1, &timeout, 0, 0);
        }
    }

    /// As above; the model checker's time does not pass, so it sleeps until somebody rings.
    #[cfg(loom)]
    pub fn sleep(&self, _at_most: Duration) {
        self.queue.wait(&self.armed, 1);
    }

    /// Wake the owner if it sleeps or is about to. What it should find must have been stored before. One fence and one
    /// load where nobody sleeps.
    #[inline]
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        self.ring_after_fence();
    }

    /// [`Bell::ring`] for a caller that has just fenced, so that one fence serves many bells.
    #[inline]
    pub fn ring_after_fence(&self) {
        if self.armed.load(Ordering::Relaxed) == 1 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if self.armed.swap(0, Ordering::AcqRel) == 1 {
            #[cfg(not(loom))]
            // SAFETY: FUTEX_WAKE does not touch memory; the address only names the queue.
            unsafe {
                libc::syscall(libc::SYS_futex, self.armed.as_ptr(), libc::FUTEX_WAKE, i32::MAX, 0, 0, 0);
            }
            #[cfg(loom)]
            self.queue.wake();
        }
    }
}

/// The longest time that the polls of [`Patience::spins`] may take. In shared memory a poll is a few loads, but over
/// TCP it is a system call for each link, and thousands of those would hold a core for tens of milliseconds.
pub const SPIN: Duration = Duration::from_micros(200);
/// Polls without a pause between them. What another core has just written is on its way: it comes within as many, and
/// on processors whose pause is long (140 cycles and more since Intel's Skylake) each pause may be waited for in vain.
const EAGER: u32 = 24;
/// After so many polls the clock is looked at; a power of 2.
const GLANCE: u32 = 64;

/// How often patience is halved at most.
const WEARIEST: u32 = 5;

/// How long a waiting rank polls before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// Polls with nothing but a pause between them; fewer if they take longer than [`SPIN`].
    pub spins: u32,
    /// After those, how long it goes on polling, giving the core away between polls where `give_way` is set.
    pub then: Duration,
    /// Whether other ranks may need this core.
    pub give_way: bool,
    /// Whether nobody knows of others that may need it, so that a long wait looks for them.
    pub alone: bool,
}

impl Patience {
    /// For a host where `ranks` ranks share `cores` cores.
    pub fn for_host(ranks: usize, cores: usize) -> Patience {
        if ranks <= cores {
            Patience { spins: 4000, then: Duration::from_micros(100), give_way: false, alone: true }
        } else {
            Patience { spins: 20, then: Duration::from_micros(60), give_way: true, alone: false }
        }
    }

    /// The same, with the time to poll given by the user, whoever else wants the core; none at all if that is zero.
    pub fn with_time(self, then: Duration) -> Patience {
        Patience { then, spins: if then.is_zero() { 0 } else { self.spins }, alone: false, ..self }
    }

    /// The same where each poll asks the system, as with sockets: the clock is looked at sooner.
    pub fn with_sockets(self) -> Patience {
        Patience { spins: self.spins.min(GLANCE), ..self }
    }
}

/// What a waiting rank should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Poll again.
    Poll,
    /// Arm the bell, poll once more, sleep.
    Sleep,
}

/// One wait after the other: counts polls that found nothing.
///
/// A wait that patience did not cover, so that the rank slept after all, halves the patience of the next; one that it
/// covered doubles it again, up to what was given. Where waits are long, because a network is slow or because more ranks
/// share the cores than anybody knows of, polling would only keep others from them.
#[derive(Debug)]
pub struct Idle {
    patience: Patience,
    /// Polls of this wait with nothing but a pause between them, and how long it goes on polling after those: what is
    /// left of patience.
    left: (u32, Duration),
    polls: u32,
    /// First look at the clock during the first polls.
    spins_since: Option<Instant>,
    /// When these were over.
    since: Option<Instant>,
    /// How often patience is halved.
    weary: u32,
    slept: bool,
}

impl Idle {
    /// A wait that has not begun.
    #[inline]
    pub fn new(patience: Patience) -> Idle {
        let mut idle = Idle {
            patience,
            left: (0, Duration::ZERO),
            polls: 0,
            spins_since: None,
            since: None,
            weary: 0,
            slept: false,
        };
        idle.look_at_patience();
        idle
    }

    /// Something arrived: the next wait starts afresh.
    #[inline]
    pub fn reset(&mut self) {
        if self.polls > 0 {
            self.begin_anew();
        }
    }

    fn begin_anew(&mut self) {
        self.weary = if self.slept { (self.weary + 1).min(WEARIEST) } else { self.weary.saturating_sub(1) };
        self.slept = false;
        self.polls = 0;
        self.spins_since = None;
        self.since = None;
        self.look_at_patience();
    }

    /// How much of it the next wait has.
    #[inline]
    fn look_at_patience(&mut self) {
        let Patience { spins, then, alone, .. } = self.patience;
        self.left = match alone && CORES.is_here() {
            true => (0, Duration::ZERO),
            false => (spins >> self.weary, then),
        };
    }

    /// How many polls in a row found nothing.
    pub fn polls(&self) -> u32 {
        self.polls
    }

    /// A poll found nothing: pause or give way, and say what comes next.
    #[inline]
    pub fn found_nothing(&mut self) -> Next {
        self.polls = self.polls.wrapping_add(1);
        if self.polls <= self.left.0 && !self.polls.is_multiple_of(GLANCE) {
            if self.polls > EAGER {
                std::hint::spin_loop();
            }
            return Next::Poll;
        }
        self.linger()
    }

    #[cold]
    fn linger(&mut self) -> Next {
        let (spins, then) = self.left;
        // Once in each wait, when it is longer than a neighbour's answer takes.
        if self.patience.alone && self.polls == GLANCE && CORES.look() {
            self.slept = true;
            return Next::Sleep;
        }
        let now = Instant::now();
        if self.polls < spins {
            if now - *self.spins_since.get_or_insert(now) < SPIN / (1 << self.weary) {
                return Next::Poll;
            }
            // That was long enough: from here on every poll comes by.
            self.polls = spins;
        }
        if now - *self.since.get_or_insert(now) >= then / (1 << self.weary) {
            self.slept = true;
            return Next::Sleep;
        }
        if self.patience.give_way {
            std::thread::yield_now();
        } else {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
        }
        Next::Poll
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// How often a wait in which each poll takes `poll` polls until it sleeps.
    fn polls_until_sleep(patience: Patience, poll: Duration) -> usize {
        let mut idle = Idle::new(patience);
        let mut polls = 1;
        while idle.found_nothing() == Next::Poll {
            polls += 1;
            let until = Instant::now() + poll;
            while Instant::now() < until {}
        }
        polls
    }

    #[test]
    fn dear_polls_are_few() {
        let patience = Patience::for_host(1, 2);
        // Not 4000 of them. Whatever else takes the core away makes them fewer.
        let polls = polls_until_sleep(patience, Duration::from_micros(10));
        assert!(polls < 1000, "{polls}");
        assert_eq!(polls_until_sleep(patience.with_time(Duration::ZERO), Duration::ZERO), 1);
    }

    /// So few polls that none looks at the clock.
    const PATIENCE: Patience = Patience { spins: 60, then: Duration::ZERO, give_way: false, alone: false };

    #[test]
    fn a_reset_begins_anew() {
        let mut idle = Idle::new(PATIENCE);
        while idle.found_nothing() == Next::Poll {}
        idle.reset();
        assert_eq!((idle.polls(), idle.found_nothing()), (0, Next::Poll));
    }

    /// Polls of a wait that ends in sleep, or that is over after `most`.
    fn wait(idle: &mut Idle, most: usize) -> usize {
        let polls = (1..=most).find(|_| idle.found_nothing() == Next::Sleep).unwrap_or(most);
        idle.reset();
        polls
    }

    #[test]
    fn patience_follows_what_it_brings() {
        let mut idle = Idle::new(PATIENCE);
        assert_eq!([(); 3].map(|()| wait(&mut idle, 1000)), [61, 31, 16]);
        // Moving without a wait says nothing about waits.
        idle.reset();
        assert_eq!(wait(&mut idle, 5), 5);
        assert_eq!(wait(&mut idle, 1000), 16);
        let last = [(); 10].map(|()| wait(&mut idle, 1000))[9];
        assert_eq!(last, 2, "a thirty-second of 60, and the poll that gives up");
        for _ in 0..5 {
            wait(&mut idle, 1);
        }
        assert_eq!(wait(&mut idle, 1000), 61);
    }
}
