//! Sleeping in a `Poller`: what wakes it, what does not, and for how long it sleeps at most.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use maypole_transports::tcp::{self, Poller, TcpReceiver, TcpSender, Wire};
use maypole_transports::{Receiver, Sender};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::factories::{Sealed, Tcp};
use crate::traffic::{bytes_at, until};

/// More than any sleep here should last on a busy machine, and far less than the sleeps' own limits.
const SOON: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(60);

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Do `work` while signals, whose handler does not restart system calls, interrupt this thread all the time.
pub fn bombarded<R>(work: impl FnOnce() -> R) -> R {
    /// Ends the bombardment even if the work panics.
    struct Cease<'a>(&'a AtomicBool);
    impl Drop for Cease<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let action = SigAction::new(SigHandler::Handler(count_signal), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler only adds to an atomic.
        unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
    });
    // SAFETY: no preconditions.
    let target = unsafe { libc::pthread_self() };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // SAFETY: the target is the thread that waits at the end of this scope for this one, so it exists.
                unsafe { libc::pthread_kill(target, libc::SIGUSR2) };
                thread::sleep(Duration::from_micros(200));
            }
        });
        let _cease = Cease(&done);
        work()
    })
}

struct Rank {
    sender: TcpSender,
    receiver: TcpReceiver,
    poller: Poller,
}

fn ranks(connections: usize) -> (Rank, Rank) {
    let (a, b) = Tcp::v4(connections).streams();
    (rank(a), rank(b))
}

fn encrypted(connections: usize) -> (Rank, Rank) {
    let (a, b) = Sealed(Tcp::v4(connections)).wires();
    (rank(a), rank(b))
}

fn rank<W: Into<Wire>>(wires: Vec<W>) -> Rank {
    let (sender, receiver) = tcp::link(wires, 64 << 10).unwrap();
    let poller = Poller::new(0).unwrap();
    sender.fds().for_each(|fd| poller.add(fd).unwrap());
    // New sockets report that they can be written to. Nobody has waited for that.
    poller.sleep(Duration::ZERO).unwrap();
    Rank { sender, receiver, poller }
}

/// How long one sleep of at most `at_most` lasts.
fn sleep(poller: &Poller, at_most: Duration) -> Duration {
    let start = Instant::now();
    poller.sleep(at_most).unwrap();
    start.elapsed()
}

#[test]
fn a_sleep_with_nothing_to_wake_it_lasts_as_long_as_allowed() {
    let (a, _b) = ranks(2);
    for at_most in [Duration::ZERO, Duration::from_micros(300), Duration::from_millis(30)] {
        let slept = sleep(&a.poller, at_most);
        assert!(slept >= at_most && slept < at_most + SOON, "{slept:?} instead of {at_most:?}");
    }
}

/// epoll counts in milliseconds; naps do not.
#[test]
fn a_nap_may_be_shorter_than_a_millisecond() {
    let (mut a, b) = ranks(1);
    let (nap, mut best, mut plain) = (Duration::from_micros(200), LONG, LONG);
    for _ in 0..50 {
        best = best.min(sleep(&b.poller, nap));
        let start = Instant::now();
        thread::sleep(nap);
        plain = plain.min(start.elapsed());
    }
    // As exact as this machine's sleeps are just now, and not a millisecond or more.
    assert!(best < plain + Duration::from_micros(700), "{best:?}, where {plain:?} can be had");
    // Waking counts once for naps, too.
    b.poller.waker().wake();
    assert!(sleep(&b.poller, Duration::from_micros(900)) < SOON);
    let nap = Duration::from_millis(20);
    assert!(sleep(&b.poller, nap) >= nap);
    // What comes after a nap ends the sleep after it.
    sleep(&b.poller, Duration::from_micros(200));
    a.sender.send(&[1; 100]).unwrap();
    a.sender.end().unwrap();
    assert!(sleep(&b.poller, LONG) < SOON);
}

#[test]
fn a_waker_ends_the_sleep_from_another_thread() {
    let (a, _b) = ranks(1);
    let waker = a.poller.waker();
    let abort = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            abort.store(true, Ordering::Release);
            waker.wake();
        });
        assert!(sleep(&a.poller, LONG) < SOON);
        assert!(abort.load(Ordering::Acquire));
    });
}

#[test]
fn a_wake_before_the_sleep_counts_and_counts_once() {
    let poller = Poller::new(0).unwrap();
    poller.waker().wake();
    poller.waker().wake();
    assert!(sleep(&poller, LONG) < SOON);
    let nap = Duration::from_millis(20);
    assert!(sleep(&poller, nap) >= nap);
}

#[test]
fn bytes_that_arrive_end_the_sleep_once() {
    for (mut a, mut b) in [ranks(1), ranks(4), encrypted(1), encrypted(4)] {
        a.sender.send(&[1; 100]).unwrap();
        assert!(a.sender.end().unwrap());
        assert!(sleep(&b.poller, LONG) < SOON);
        // The bytes are still there, but they are not news: a rank that does not want them can sleep.
        let nap = Duration::from_millis(20);
        assert!(sleep(&b.poller, nap) >= nap);
        assert_eq!(b.receiver.recv(&mut [0; 100]).unwrap(), 100);
    }
}

#[test]
fn room_after_a_full_link_ends_the_sleep() {
    for (mut a, mut b) in [ranks(1), ranks(3), encrypted(1), encrypted(3)] {
        let block = bytes_at(0, 1 << 20);
        let mut sent = 0;
        // Full for a while, not just at the moment: what is under way has arrived.
        let mut refused = 0;
        while refused < 20 {
            match a.sender.send(&block).unwrap() {
                0 => {
                    refused += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                n => {
                    refused = 0;
                    sent += n;
                }
            }
        }
        a.poller.sleep(Duration::ZERO).unwrap();
        assert_eq!(a.sender.send(&block).unwrap(), 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(10));
                let mut into = vec![0; 1 << 20];
                let mut got = 0;
                while got < sent {
                    got += b.receiver.recv(&mut into).unwrap();
                }
            });
            assert!(sleep(&a.poller, LONG) < SOON);
            // With several connections, or encrypted, some of what was taken may still wait for one of them.
            until("passing on the rest", || a.sender.flush().unwrap());
        });
        assert!(a.sender.send(&block).unwrap() > 0);
    }
}

#[test]
fn a_peer_that_goes_ends_the_sleep_once() {
    let (a, mut b) = ranks(2);
    drop(a);
    assert!(sleep(&b.poller, LONG) < SOON);
    // Both connections' ends may be reported separately; after those, a closed link keeps nobody awake.
    let nap = Duration::from_millis(20);
    let awake = (0..10).take_while(|_| sleep(&b.poller, nap) < nap).count();
    assert!(awake < 10, "a closed connection wakes the sleeper again and again");
    assert!(b.receiver.recv(&mut [0; 8]).is_err());
}

#[test]
fn removed_sockets_wake_nobody() {
    let (mut a, b) = ranks(2);
    b.receiver.fds().for_each(|fd| b.poller.remove(fd).unwrap());
    b.receiver.fds().for_each(|fd| b.poller.remove(fd).unwrap());
    a.sender.send(&[1; 100]).unwrap();
    a.sender.end().unwrap();
    let nap = Duration::from_millis(20);
    assert!(sleep(&b.poller, nap) >= nap);
    b.receiver.fds().for_each(|fd| b.poller.add(fd).unwrap());
    b.receiver.fds().for_each(|fd| b.poller.add(fd).unwrap());
    assert!(sleep(&b.poller, LONG) < SOON, "what arrived before the socket was added is news to the poller");
}

#[test]
fn signals_do_not_make_sleep_fail_or_last() {
    let poller = Poller::new(0).unwrap();
    let before = SIGNALS.load(Ordering::Relaxed);
    bombarded(|| {
        let start = Instant::now();
        // Sleeps may end early when interrupted; none may fail, and the deadline is the caller's to keep.
        while let Some(left) = Duration::from_millis(100).checked_sub(start.elapsed()) {
            poller.sleep(left).unwrap();
        }
        assert!(start.elapsed() < SOON);
    });
    assert!(SIGNALS.load(Ordering::Relaxed) > before, "no signal was handled");
}

#[test]
fn ping_pong_asleep_loses_no_wakeup() {
    for (mut a, mut b) in [ranks(1), ranks(2), encrypted(1), encrypted(2)] {
        let take = |rank: &mut Rank| {
            let mut byte = [0];
            while rank.receiver.recv(&mut byte).unwrap() == 0 {
                let slept = sleep(&rank.poller, LONG);
                assert!(slept < SOON, "slept {slept:?} over a byte");
            }
            byte[0]
        };
        let put = |rank: &mut Rank, byte: u8| {
            assert_eq!(rank.sender.send(&[byte]).unwrap(), 1);
            assert!(rank.sender.end().unwrap());
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let byte = take(&mut b);
                    put(&mut b, byte.wrapping_add(1));
                }
            });
            for round in 0..2000u32 {
                put(&mut a, round as u8);
                assert_eq!(take(&mut a), (round as u8).wrapping_add(1));
            }
        });
    }
}

/// What a look finds: the links that have news, in order.
fn news(poller: &Poller) -> Vec<usize> {
    poller.look().unwrap();
    poller.take_news().collect()
}

#[test]
fn a_look_finds_the_links_that_have_news() {
    const LINKS: usize = 130;
    let poller = Poller::new(LINKS).unwrap();
    let (mut ours, mut theirs): (Vec<_>, Vec<_>) = (0..LINKS)
        .map(|number| {
            let (a, b) = Tcp::v4(1).streams();
            let (sender, receiver) = tcp::link(a, 64 << 10).unwrap();
            receiver.fds().for_each(|fd| poller.add_link(number, fd).unwrap());
            ((sender, receiver), tcp::link(b, 64 << 10).unwrap())
        })
        .unzip();
    // Every link has news at first: bytes may have come before it was added.
    let looks = std::iter::repeat_with(|| news(&poller)).take_while(|found| !found.is_empty());
    let mut first: Vec<usize> = looks.flatten().collect();
    first.sort_unstable();
    first.dedup();
    assert_eq!(first, (0..LINKS).collect::<Vec<_>>());
    for number in [3, 64, 129] {
        theirs[number].0.send(&[1; 100]).unwrap();
        assert!(theirs[number].0.end().unwrap());
    }
    let mut found = Vec::new();
    until("three links have news", || {
        found.extend(news(&poller));
        found.len() >= 3
    });
    assert_eq!(found, [3, 64, 129]);
    // Unread, they are no news any more, unless somebody keeps them.
    poller.keep(64);
    assert_eq!(news(&poller), [64]);
    assert_eq!(news(&poller), [0; 0]);
    // More bytes are.
    theirs[3].0.send(&[1; 100]).unwrap();
    assert!(theirs[3].0.end().unwrap());
    until("more has come", || news(&poller) == [3]);
    let receiver = &mut ours[3].1;
    assert!(receiver.absorb().unwrap() && !receiver.absorb().unwrap());
    assert_eq!(receiver.peek().unwrap().len(), 200);
}

/// A link that is full says so, and has room again once something was taken.
#[test]
fn a_full_link_says_so() {
    for (mut a, mut b) in [ranks(1), ranks(3), encrypted(1)] {
        let block = bytes_at(0, 1 << 20);
        let mut sent = 0;
        until("the link is full", || {
            sent += a.sender.send(&block[sent..]).unwrap();
            let took = b.receiver.absorb().unwrap();
            assert!(!took || !b.receiver.is_behind() || b.receiver.peek().unwrap().len() >= 64 << 10);
            b.receiver.is_behind()
        });
        assert!(!b.receiver.absorb().unwrap(), "a full link takes in nothing");
        b.receiver.release(1 << 10);
        assert!(!b.receiver.is_behind());
        until("more is taken in", || b.receiver.absorb().unwrap());
    }
}

/// A sleep would not report what a look has seen: so it does not last.
#[test]
fn a_look_that_saw_something_ends_the_next_sleep() {
    let (mut a, b) = ranks(1);
    a.sender.send(&[1; 100]).unwrap();
    assert!(a.sender.end().unwrap());
    assert!(sleep(&b.poller, LONG) < SOON);
    a.sender.send(&[1; 100]).unwrap();
    assert!(a.sender.end().unwrap());
    // It comes within that, if not at once.
    thread::sleep(Duration::from_millis(50));
    b.poller.look().unwrap();
    assert!(sleep(&b.poller, LONG) < SOON);
    let nap = Duration::from_millis(20);
    assert!(sleep(&b.poller, nap) >= nap);
    // So does a wake that only a look has seen.
    b.poller.waker().wake();
    b.poller.look().unwrap();
    b.poller.look().unwrap();
    assert!(sleep(&b.poller, LONG) < SOON);
}
