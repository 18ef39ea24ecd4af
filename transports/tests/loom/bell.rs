//! The bell alone: no wake-up is lost (Dekker's pattern: each side writes, fences, and reads what the other wrote).

use std::sync::Arc;
use std::time::Duration;

use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use maypole_transports::wait::Bell;

use crate::{check, sleep};

fn found(news: &AtomicU64, wanted: u64) -> Option<()> {
    (news.load(Ordering::Acquire) >= wanted).then_some(())
}

/// A sleeper that arms, looks and sleeps is woken by a ringer that stores, then rings.
#[test]
fn the_sleeper_wakes() {
    check(4, || {
        let (bell, news) = (Arc::new(Bell::default()), Arc::new(AtomicU64::new(0)));
        let ringer = thread::spawn({
            let (bell, news) = (bell.clone(), news.clone());
            move || {
                news.store(1, Ordering::Release);
                bell.ring();
            }
        });
        sleep(&bell, || found(&news, 1));
        ringer.join().unwrap();
    });
}

/// A bell armed, disarmed and armed again: a ring that was meant for the first time neither gets lost nor stands in for
/// the next.
#[test]
fn the_sleeper_wakes_twice() {
    check(3, || {
        let (bell, news) = (Arc::new(Bell::default()), Arc::new(AtomicU64::new(0)));
        let ringer = thread::spawn({
            let (bell, news) = (bell.clone(), news.clone());
            move || {
                for number in 1..=2 {
                    news.store(number, Ordering::Release);
                    bell.ring();
                }
            }
        });
        for number in 1..=2 {
            sleep(&bell, || found(&news, number));
        }
        ringer.join().unwrap();
    });
}

/// Two ringers, one sleeper that waits for both: whoever takes the 1 away, the sleeper sees the other's news too or is
/// rung again.
#[test]
fn two_ringers() {
    check(3, || {
        let bell = Arc::new(Bell::default());
        let news: [Arc<AtomicU64>; 2] = std::array::from_fn(|_| Arc::new(AtomicU64::new(0)));
        let ringers = news.each_ref().map(|news| {
            let (bell, news) = (bell.clone(), news.clone());
            thread::spawn(move || {
                news.store(1, Ordering::Release);
                bell.ring();
            })
        });
        sleep(&bell, || news.iter().all(|n| found(n, 1).is_some()).then_some(()));
        ringers.into_iter().for_each(|r| r.join().unwrap());
    });
}

/// Two ranks that sleep for each other in turn, each ringing before it sleeps.
#[test]
fn back_and_forth() {
    check(3, || {
        let bells: Arc<[Bell; 2]> = Arc::default();
        let turn = Arc::new(AtomicU64::new(0));
        let other = thread::spawn({
            let (bells, turn) = (bells.clone(), turn.clone());
            move || {
                sleep(&bells[1], || found(&turn, 1));
                turn.store(2, Ordering::Release);
                bells[0].ring();
            }
        });
        turn.store(1, Ordering::Release);
        bells[1].ring();
        sleep(&bells[0], || found(&turn, 2));
        other.join().unwrap();
    });
}

/// Negative control: a ringer without its fence may look at the bell before its news is out.
#[test]
#[should_panic(expected = "deadlock")]
fn caught_ringing_without_a_fence() {
    check(4, || {
        let (bell, news) = (Arc::new(Bell::default()), Arc::new(AtomicU64::new(0)));
        let ringer = thread::spawn({
            let (bell, news) = (bell.clone(), news.clone());
            move || {
                news.store(1, Ordering::Release);
                bell.ring_after_fence();
            }
        });
        sleep(&bell, || found(&news, 1));
        ringer.join().unwrap();
    });
}

/// Negative control: ringing first and storing the news afterwards.
#[test]
#[should_panic(expected = "deadlock")]
fn caught_ringing_too_early() {
    check(4, || {
        let (bell, news) = (Arc::new(Bell::default()), Arc::new(AtomicU64::new(0)));
        let ringer = thread::spawn({
            let (bell, news) = (bell.clone(), news.clone());
            move || {
                bell.ring();
                news.store(1, Ordering::Release);
            }
        });
        sleep(&bell, || found(&news, 1));
        ringer.join().unwrap();
    });
}

/// Negative control: a sleeper that does not look once more after it has armed the bell.
#[test]
#[should_panic(expected = "deadlock")]
fn caught_sleeping_without_a_last_look() {
    check(4, || {
        let (bell, news) = (Arc::new(Bell::default()), Arc::new(AtomicU64::new(0)));
        let ringer = thread::spawn({
            let (bell, news) = (bell.clone(), news.clone());
            move || {
                news.store(1, Ordering::Release);
                bell.ring();
            }
        });
        while found(&news, 1).is_none() {
            bell.arm();
            bell.sleep(Duration::ZERO);
        }
        ringer.join().unwrap();
    });
}

/// A bell whose fences can be left out.
#[derive(Default)]
struct Copy {
    armed: AtomicU32,
    lock: Mutex<()>,
    woken: Condvar,
}

impl Copy {
    fn arm(&self, fenced: bool) {
        self.armed.store(1, Ordering::Relaxed);
        if fenced {
            fence(Ordering::SeqCst);
        }
    }

    fn sleep(&self) {
        let held = self.lock.lock().unwrap();
        if self.armed.load(Ordering::Relaxed) == 1 {
            drop(self.woken.wait(held));
        }
    }

    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Relaxed) == 1 && self.armed.swap(0, Ordering::AcqRel) == 1 {
            let _held = self.lock.lock().unwrap();
            self.woken.notify_all();
        }
    }
}

fn copy_of_the_bell(fenced: bool) {
    check(4, move || {
        let (bell, news) = (Arc::new(Copy::default()), Arc::new(AtomicU64::new(0)));
        let ringer = thread::spawn({
            let (bell, news) = (bell.clone(), news.clone());
            move || {
                news.store(1, Ordering::Release);
                bell.ring();
            }
        });
        while found(&news, 1).is_none() {
            bell.arm(fenced);
            if found(&news, 1).is_none() {
                bell.sleep();
            }
        }
        ringer.join().unwrap();
    });
}

/// The copy as the bell is.
#[test]
fn the_copy_is_faithful() {
    copy_of_the_bell(true);
}

/// Negative control: without the sleeper's fence its last look may come before the bell is seen armed.
#[test]
#[should_panic(expected = "deadlock")]
fn caught_arming_without_a_fence() {
    copy_of_the_bell(false);
}
