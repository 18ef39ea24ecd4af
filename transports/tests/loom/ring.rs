//! The ring's cursors: nothing is read before it is written or overwritten before it is read, and order is kept.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use maypole_transports::shm::Shared;
use maypole_transports::shm::ring::{Consumer, Cursors, Producer};

use crate::{Bytes, check, poll};

/// Elements of 8 bytes per message. Over a ring of 128 bytes they leave padding (the first two), cross the edge (the
/// second) and begin where the padding of the one before has run ahead of what the receiver has freed (the last).
const MESSAGES: [usize; 3] = [5, 13, 3];
const CAPACITY: usize = 128;

fn value(message: usize, element: usize) -> u64 {
    (message * 100 + element + 1) as u64
}

/// Everything that two ranks do with a ring, by polling.
fn transfer(preemptions: usize, messages: &'static [usize], most: usize) {
    check(preemptions, move || {
        let cursors = Shared::from_arc(Arc::new(Cursors::default()));
        let bytes = Bytes::new(CAPACITY / 8);
        let mut producer = Producer::new(cursors.clone(), CAPACITY);
        let mut consumer = Consumer::new(cursors, CAPACITY);
        let receiver = thread::spawn({
            let bytes = bytes.clone();
            move || {
                for (message, &length) in messages.iter().enumerate() {
                    let mut got = 0;
                    while got < length {
                        let (offset, there) = poll(|| Some(consumer.there()).filter(|(_, len)| *len >= 8));
                        let n = (there / 8).min(length - got).min(most);
                        for i in 0..n {
                            assert_eq!(bytes.read(offset / 8 + i), value(message, got + i));
                        }
                        consumer.release(n * 8);
                        got += n;
                    }
                    consumer.end();
                }
            }
        });
        for (message, &length) in messages.iter().enumerate() {
            let mut sent = 0;
            while sent < length {
                let (offset, room) = poll(|| Some(producer.room()).filter(|(_, len)| *len >= 8));
                let n = (room / 8).min(length - sent).min(most);
                for i in 0..n {
                    bytes.write(offset / 8 + i, value(message, sent + i));
                }
                producer.commit(n * 8);
                sent += n;
            }
            producer.end();
        }
        receiver.join().unwrap();
    });
}

/// Messages with padding, over the edge of the ring, each side moving as much as it can at once.
#[test]
fn messages_arrive_whole_and_in_order() {
    transfer(2, &MESSAGES, usize::MAX);
}

/// The same in small portions: positions are published within messages, and either side meets half of what the other
/// does.
#[test]
fn portions_arrive_in_order() {
    transfer(2, &[5, 11], 4);
}

/// One message more than twice as long as the ring: the sender goes on only in room that the receiver has freed.
#[test]
fn a_message_longer_than_the_ring() {
    transfer(2, &[40], 8);
}

/// The orderings of the two positions, and how many elements beyond its room the sender takes.
#[derive(Clone, Copy)]
struct Rules {
    tail_store: Ordering,
    tail_load: Ordering,
    head_store: Ordering,
    head_load: Ordering,
    excess: u64,
}

const RULES: Rules = Rules {
    tail_store: Ordering::Release,
    tail_load: Ordering::Acquire,
    head_store: Ordering::Release,
    head_load: Ordering::Acquire,
    excess: 0,
};

/// A copy of the protocol over a ring of two elements, three elements long.
fn copy_of_the_ring(rules: Rules) {
    check(3, move || {
        let cursors: Arc<[AtomicU64; 2]> = Arc::default();
        let bytes = Bytes::new(2);
        let receiver = thread::spawn({
            let (cursors, bytes) = (cursors.clone(), bytes.clone());
            move || {
                let [tail, head] = &*cursors;
                for position in 0..3 {
                    poll(|| (tail.load(rules.tail_load) > position).then_some(()));
                    assert_eq!(bytes.read(position as usize % 2), position + 1, "an element out of order");
                    head.store(position + 1, rules.head_store);
                }
            }
        });
        let [tail, head] = &*cursors;
        for position in 0..3 {
            poll(|| (position < head.load(rules.head_load) + 2 + rules.excess).then_some(()));
            bytes.write(position as usize % 2, position + 1);
            tail.store(position + 1, rules.tail_store);
        }
        receiver.join().unwrap();
    });
}

/// The copy as the ring is.
#[test]
fn the_copy_is_faithful() {
    copy_of_the_ring(RULES);
}

/// Negative control: `tail` stored without release; bytes may be read before they are there.
#[test]
#[should_panic(expected = "Causality violation")]
fn caught_publishing_without_release() {
    copy_of_the_ring(Rules { tail_store: Ordering::Relaxed, ..RULES });
}

/// Negative control: `tail` loaded without acquire.
#[test]
#[should_panic(expected = "Causality violation")]
fn caught_reading_without_acquire() {
    copy_of_the_ring(Rules { tail_load: Ordering::Relaxed, ..RULES });
}

/// Negative control: `head` stored without release; bytes may be overwritten while they are still read.
#[test]
#[should_panic(expected = "Causality violation")]
fn caught_freeing_without_release() {
    copy_of_the_ring(Rules { head_store: Ordering::Relaxed, ..RULES });
}

/// Negative control: `head` loaded without acquire.
#[test]
#[should_panic(expected = "Causality violation")]
fn caught_overwriting_without_acquire() {
    copy_of_the_ring(Rules { head_load: Ordering::Relaxed, ..RULES });
}

/// Negative control: a sender that takes one element more than is free. Either the accesses race or an element comes
/// out of order.
#[test]
#[should_panic]
fn caught_writing_beyond_the_room() {
    copy_of_the_ring(Rules { excess: 1, ..RULES });
}
