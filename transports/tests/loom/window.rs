//! The window: one rank publishes into two places in turn, two others read.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use maypole_transports::shm::Shared;
use maypole_transports::shm::window::{Count, Publisher, Subscriber};
use maypole_transports::wait::Bell;

use crate::{Bytes, check, poll, poll_at_most, sleep};

/// Elements of one place.
const PLACE: usize = 2;

fn write(bytes: &Bytes, place: usize, number: u64) {
    for i in 0..PLACE {
        bytes.write(place * PLACE + i, number * 10 + i as u64);
    }
}

fn read(bytes: &Bytes, place: usize, number: u64) {
    for i in 0..PLACE {
        assert_eq!(bytes.read(place * PLACE + i), number * 10 + i as u64, "publication {number}");
    }
}

/// A publisher and its subscribers, all in one state.
fn window<const READERS: usize>() -> (Publisher, [Subscriber; READERS]) {
    let count = || Shared::from_arc(Arc::new(Count::default()));
    let published = count();
    let done: [_; READERS] = std::array::from_fn(|_| count());
    let publisher = Publisher::new(published.clone(), done.to_vec());
    (publisher, done.map(|done| Subscriber::new(published.clone(), done)))
}

/// Publications by polling, at most `looks` times each; `READERS` ranks read all of them. Every rank returns whether it
/// came to the end.
fn publish_and_read<const READERS: usize>(preemptions: usize, publications: u64, looks: usize) {
    let completed = Arc::new(AtomicUsize::new(0));
    let count = completed.clone();
    check(preemptions, move || {
        let (mut publisher, subscribers) = window::<READERS>();
        let bytes = Bytes::new(2 * PLACE);
        let readers = subscribers.map(|mut subscriber| {
            let bytes = bytes.clone();
            thread::spawn(move || {
                (0..publications).all(|number| {
                    let Some(place) = poll_at_most(looks, || subscriber.place(number)) else { return false };
                    read(&bytes, place, number);
                    subscriber.done(number);
                    true
                })
            })
        });
        let written = (0..publications).all(|number| {
            let Some(place) = poll_at_most(looks, || publisher.place()) else { return false };
            write(&bytes, place, number);
            publisher.publish();
            true
        });
        let read = readers.map(|r| r.join().unwrap());
        count.fetch_add((written && read.iter().all(|r| *r)).into(), std::sync::atomic::Ordering::Relaxed);
    });
    assert!(completed.load(std::sync::atomic::Ordering::Relaxed) > 0, "no run came to its end");
}

/// Four publications over two places: no place is overwritten while it is read, and what is read is complete.
#[test]
fn one_reader() {
    publish_and_read::<1>(3, 4, usize::MAX);
}

/// With two readers the publisher waits for the slower one.
#[test]
fn two_readers() {
    publish_and_read::<2>(1, 4, 2);
}

/// A reader that finishes with two publications in one store gives both places back.
#[test]
fn done_with_all_before() {
    check(3, || {
        let (mut publisher, [mut subscriber]) = window();
        let bytes = Bytes::new(2 * PLACE);
        let reader = thread::spawn({
            let bytes = bytes.clone();
            move || {
                for number in [1, 3] {
                    let place = poll(|| subscriber.place(number));
                    read(&bytes, 1 - place, number - 1);
                    read(&bytes, place, number);
                    subscriber.done(number);
                }
            }
        });
        for number in 0..4 {
            let place = poll(|| publisher.place());
            write(&bytes, place, number);
            publisher.publish();
        }
        reader.join().unwrap();
    });
}

/// A publication may say where something lies outside its place; it is written again once nothing is unread.
#[test]
fn what_is_read_elsewhere_is_left_alone_until_nothing_is_unread() {
    check(3, || {
        let (mut publisher, subscribers) = window::<2>();
        let elsewhere = Bytes::new(1);
        let readers = subscribers.map(|mut subscriber| {
            let elsewhere = elsewhere.clone();
            thread::spawn(move || {
                if let Some(()) = poll_at_most(2, || subscriber.place(0).map(drop)) {
                    assert_eq!(elsewhere.read(0), 5);
                    subscriber.done(0);
                }
            })
        });
        elsewhere.write(0, 5);
        publisher.publish();
        if poll_at_most(3, || publisher.unread().is_none().then_some(())).is_some() {
            elsewhere.write(0, 6);
        }
        let _ = readers.map(|reader| reader.join().unwrap());
    });
}

/// Publisher and reader asleep whenever they cannot go on. `settle` is what a rank does before it waits and before it
/// leaves: it rings the other for all that it has published or finished since.
fn asleep(publications: u64, settle: fn(&Bell)) {
    check(3, move || {
        let (mut publisher, [mut subscriber]) = window();
        let bells: [Shared<Bell>; 2] = std::array::from_fn(|_| Shared::from_arc(Arc::new(Bell::default())));
        let bytes = Bytes::new(2 * PLACE);
        let reader = thread::spawn({
            let (bytes, [mine, theirs]) = (bytes.clone(), bells.clone());
            move || {
                for number in 0..publications {
                    let place = subscriber.place(number).unwrap_or_else(|| {
                        settle(&theirs);
                        sleep(&mine, || subscriber.place(number))
                    });
                    read(&bytes, place, number);
                    subscriber.done(number);
                }
                settle(&theirs);
            }
        });
        let [theirs, mine] = bells;
        for number in 0..publications {
            let place = publisher.place().unwrap_or_else(|| {
                settle(&theirs);
                sleep(&mine, || publisher.place())
            });
            write(&bytes, place, number);
            publisher.publish();
        }
        settle(&theirs);
        reader.join().unwrap();
    });
}

/// Ringing only before one waits or leaves is enough: nobody stays asleep, though a publication itself rings nobody.
#[test]
fn settling_wakes_the_sleepers() {
    asleep(3, Bell::ring);
}

/// Negative control: ranks that do not settle.
#[test]
#[should_panic(expected = "deadlock")]
fn caught_not_settling() {
    asleep(3, |_| ());
}

/// The orderings of the two counts, and how many publications the publisher may be ahead of the reader.
#[derive(Clone, Copy)]
struct Rules {
    published_store: Ordering,
    published_load: Ordering,
    done_store: Ordering,
    done_load: Ordering,
    ahead: u64,
}

const RULES: Rules = Rules {
    published_store: Ordering::Release,
    published_load: Ordering::Acquire,
    done_store: Ordering::Release,
    done_load: Ordering::Acquire,
    ahead: 2,
};

fn copy_of_the_window(rules: Rules) {
    check(3, move || {
        let counts: Arc<[AtomicU64; 2]> = Arc::default();
        let bytes = Bytes::new(2 * PLACE);
        let reader = thread::spawn({
            let (counts, bytes) = (counts.clone(), bytes.clone());
            move || {
                let [published, done] = &*counts;
                for number in 0..3 {
                    poll(|| (published.load(rules.published_load) > number).then_some(()));
                    read(&bytes, number as usize % 2, number);
                    done.store(number + 1, rules.done_store);
                }
            }
        });
        let [published, done] = &*counts;
        for number in 0..3 {
            poll(|| (number < done.load(rules.done_load) + rules.ahead).then_some(()));
            write(&bytes, number as usize % 2, number);
            published.store(number + 1, rules.published_store);
        }
        reader.join().unwrap();
    });
}

/// The copy as the window is.
#[test]
fn the_copy_is_faithful() {
    copy_of_the_window(RULES);
}

/// Negative control: `published` stored without release; a reader may see a publication in part.
#[test]
#[should_panic(expected = "Causality violation")]
fn caught_publishing_without_release() {
    copy_of_the_window(Rules { published_store: Ordering::Relaxed, ..RULES });
}

/// Negative control: `published` loaded without acquire.
#[test]
#[should_panic(expected = "Causality violation")]
fn caught_reading_without_acquire() {
    copy_of_the_window(Rules { published_load: Ordering::Relaxed, ..RULES });
}

/// Negative control: `done` stored without release; a place may be overwritten while it is read.
#[test]
#[should_panic(expected = "Causality violation")]
fn caught_finishing_without_release() {
    copy_of_the_window(Rules { done_store: Ordering::Relaxed, ..RULES });
}

/// Negative control: `done` loaded without acquire.
#[test]
#[should_panic(expected = "Causality violation")]
fn caught_overwriting_without_acquire() {
    copy_of_the_window(Rules { done_load: Ordering::Relaxed, ..RULES });
}

/// Negative control: a publisher three publications ahead with two places. Either the accesses race or a reader finds a
/// later publication.
#[test]
#[should_panic]
fn caught_publishing_too_far_ahead() {
    copy_of_the_window(Rules { ahead: 3, ..RULES });
}
