//! Where a waiting thread sleeps until the links that it waits for have news.
//!
//! Links in shared memory ring a [`Bell`], sockets report to a [`Poller`], where both are waited for with the help of a
//! [`Listener`]. Each engine has a bell and a poller of its
//! own (collectives the first bell of the rank, messages the second), so neither wakes for the other's news. One thread
//! sleeps here at a time: whoever waits for that engine.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use maypole_transports::shm::{Group, Shared};
use maypole_transports::tcp::Poller;
use maypole_transports::wait::Bell;

use super::listener::Listener;

/// The longest sleep where both shared memory and sockets are waited for, and the system has no thread for a listener.
const MIXED_NAP: Duration = Duration::from_millis(1);

/// See the [module](self). Clones are the same place.
#[derive(Clone)]
pub(crate) struct Rest {
    bell: Option<Shared<Bell>>,
    poller: Option<Arc<Poller>>,
    /// Where there is both a bell and a poller: started by the first sleep. `None` inside: it could not be.
    listener: Arc<OnceLock<Option<Listener>>>,
}

impl Rest {
    /// For the links of `group` on `channel`, and the sockets of `poller`.
    pub fn new(group: Option<&Group>, channel: usize, poller: Option<Arc<Poller>>) -> Rest {
        let bell = group.map(|group| group.bell(channel));
        // A rank without links has its own threads to wait for.
        let own = || Shared::from_arc(Arc::new(Bell::default()));
        let bell = if poller.is_none() { bell.or_else(|| Some(own())) } else { bell };
        Rest { bell, poller, listener: Arc::default() }
    }

    /// The caller is about to sleep: it polls once more everything that it waits for, and then calls [`Rest::sleep`].
    pub fn arm(&self) {
        if let Some(bell) = &self.bell {
            bell.arm();
        }
    }

    /// The caller sleeps no more.
    pub fn disarm(&self) {
        if let Some(bell) = &self.bell {
            bell.disarm();
        }
    }

    /// Sleep until there is news since [`Rest::arm`], [`Rest::wake`] is called, or `at_most` has passed. It may return
    /// without a reason.
    pub fn sleep(&self, at_most: Duration) {
        match (&self.bell, &self.poller) {
            (Some(bell), None) => bell.sleep(at_most),
            (None, Some(poller)) => {
                // Whatever ends it, the caller polls again.
                let _ = poller.sleep(at_most);
            }
            (Some(bell), Some(poller)) => {
                let listener = self.listener.get_or_init(|| Listener::start(bell.clone(), poller.waker()).ok());
                let nap = match listener {
                    Some(listener) => {
                        listener.cover();
                        at_most
                    }
                    None => at_most.min(MIXED_NAP),
                };
                // As above.
                let _ = poller.sleep(nap);
            }
            (None, None) => std::thread::sleep(at_most),
        }
    }

    /// End the sleep under way, or the one that is about to begin; from any thread.
    pub fn wake(&self) {
        if let Some(bell) = &self.bell {
            bell.ring();
        }
        if let Some(poller) = &self.poller {
            poller.waker().wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maypole_transports::shm::{Segment, Shape};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    /// Longer than any sleep here should last.
    const LONG: Duration = Duration::from_secs(20);
    const LATER: Duration = Duration::from_millis(30);

    /// The rest of a rank with one peer in shared memory and one behind a socket, the peer's way to ring, and the socket.
    fn mixed() -> (Rest, Shared<Bell>, UnixStream, UnixStream) {
        let shape = Shape { members: 2, channels: 1, second_bell_from: 1, ring: 4096, window: 4096 };
        let group = Group::new(Segment::anonymous(shape).unwrap(), 0);
        let (mine, theirs) = UnixStream::pair().unwrap();
        let poller = Poller::new(0).unwrap();
        poller.add(&mine).unwrap();
        let rest = Rest::new(Some(&group), 0, Some(Arc::new(poller)));
        (rest, group.bell(0), mine, theirs)
    }

    /// Sleep as engines do until `found`, and count the sleeps.
    fn wait(rest: &Rest, found: impl Fn() -> bool) -> usize {
        let begun = Instant::now();
        for sleeps in 0.. {
            rest.arm();
            let there = found();
            if there {
                rest.disarm();
                return sleeps;
            }
            rest.sleep(LONG);
            rest.disarm();
            assert!(begun.elapsed() < LONG, "slept through it");
        }
        unreachable!()
    }

    /// Neither kind of news is slept through, however often and in whatever order they come, and there is no sleeping in
    /// naps in between.
    #[test]
    fn bells_and_sockets_end_the_same_sleep() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let (rest, bell, _mine, mut theirs) = mixed();
        let news = Arc::new(AtomicUsize::new(0));
        let teller = std::thread::spawn({
            let news = news.clone();
            move || {
                for number in 1..=400 {
                    news.store(number, Ordering::Release);
                    match number % 3 {
                        0 => std::io::Write::write_all(&mut theirs, &[0]).unwrap(),
                        _ => bell.ring(),
                    }
                    while number % 7 != 0 && news.load(Ordering::Acquire) == number {
                        std::hint::spin_loop();
                    }
                    if number % 100 == 0 {
                        std::thread::sleep(LATER);
                    }
                }
                news.store(usize::MAX, Ordering::Release);
                bell.ring();
            }
        });
        let mut sleeps = 0;
        loop {
            sleeps += wait(&rest, || news.load(Ordering::Acquire) != 0);
            // Taken: the teller goes on at once, but for every seventh, after which it does not wait.
            if news.swap(0, Ordering::AcqRel) == usize::MAX {
                break;
            }
        }
        teller.join().unwrap();
        assert!(sleeps < 2000, "{sleeps} sleeps: it naps");
    }

    /// A rank that is woken through its bell has slept in one go.
    #[test]
    fn a_sleep_lasts_until_the_bell_rings() {
        let (rest, bell, _mine, _theirs) = mixed();
        // The socket's room for bytes is news too, once.
        rest.sleep(Duration::ZERO);
        let begun = Instant::now();
        let rung = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                std::thread::sleep(LATER);
                rung.store(true, std::sync::atomic::Ordering::Release);
                bell.ring();
            });
            let sleeps = wait(&rest, || rung.load(std::sync::atomic::Ordering::Acquire));
            assert!(sleeps <= 3, "{sleeps} sleeps");
        });
        assert!(begun.elapsed() >= LATER);
    }

    #[test]
    fn dropping_ends_the_listener_wherever_it_is() {
        for armed in [false, true] {
            let (rest, _bell, _mine, _theirs) = mixed();
            if armed {
                rest.arm();
            }
            rest.sleep(Duration::from_millis(5));
            drop(rest);
        }
    }
}
