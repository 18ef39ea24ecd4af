//! The ring with its bells: a sender that sleeps for room and a receiver that sleeps for bytes are both woken, though
//! bells are rung only now and then.

use std::sync::Arc;

use loom::thread;
use maypole_transports::shm::Shared;
use maypole_transports::shm::ring::{Consumer, Cursors, Inlet, Outlet, Producer};
use maypole_transports::wait::Bell;

use crate::{Bytes, check, sleep};

/// A link between two ranks, each with the bell on which it sleeps.
struct Link {
    outlet: Outlet,
    inlet: Inlet,
    sender_bell: Shared<Bell>,
    receiver_bell: Shared<Bell>,
}

fn link(capacity: usize) -> Link {
    let cursors = Shared::from_arc(Arc::new(Cursors::default()));
    let [sender_bell, receiver_bell] = [0, 1].map(|_| Shared::from_arc(Arc::new(Bell::default())));
    Link {
        outlet: Outlet::new(Producer::new(cursors.clone(), capacity), receiver_bell.clone()),
        inlet: Inlet::new(Consumer::new(cursors, capacity), sender_bell.clone()),
        sender_bell,
        receiver_bell,
    }
}

/// Room for an element at least, asleep until then.
fn room(outlet: &mut Outlet, bell: &Bell, element: usize) -> (usize, usize) {
    sleep(bell, || Some(outlet.room()).filter(|(_, len)| *len >= element))
}

/// Bytes of an element at least, asleep until then.
fn there(inlet: &mut Inlet, bell: &Bell, element: usize) -> (usize, usize) {
    sleep(bell, || Some(inlet.there()).filter(|(_, len)| *len >= element))
}

/// Messages of so many elements of 8 bytes through a ring of `capacity` bytes, both sides asleep whenever they cannot
/// go on.
fn transfer(preemptions: usize, capacity: usize, messages: &'static [usize]) {
    check(preemptions, move || {
        let Link { mut outlet, mut inlet, sender_bell, receiver_bell } = link(capacity);
        let bytes = Bytes::new(capacity / 8);
        let receiver = thread::spawn({
            let bytes = bytes.clone();
            move || {
                let mut expected = 1;
                for &length in messages {
                    let mut left = length;
                    while left > 0 {
                        let (offset, there) = there(&mut inlet, &receiver_bell, 8);
                        let n = (there / 8).min(left);
                        for i in 0..n {
                            assert_eq!(bytes.read(offset / 8 + i), expected);
                            expected += 1;
                        }
                        inlet.release(n * 8);
                        left -= n;
                    }
                    inlet.end();
                }
            }
        });
        let mut value = 1;
        for &length in messages {
            let mut left = length;
            while left > 0 {
                let (offset, room) = room(&mut outlet, &sender_bell, 8);
                let n = (room / 8).min(left);
                for i in 0..n {
                    bytes.write(offset / 8 + i, value);
                    value += 1;
                }
                outlet.commit(n * 8);
                left -= n;
            }
            outlet.end();
        }
        receiver.join().unwrap();
    });
}

/// One message in one piece: the receiver is woken by the end of the message.
#[test]
fn a_message_wakes_the_receiver() {
    transfer(4, 64, &[3]);
}

/// Two messages through a ring that holds one: the sender is woken by the room that the end of the first gives back,
/// padding included.
#[test]
fn room_wakes_the_sender() {
    transfer(3, 64, &[3, 8]);
}

/// A message longer than the ring: both sides are woken in the middle of a message, by bells that each rings before it
/// cannot go on.
#[test]
fn a_message_longer_than_the_ring() {
    transfer(3, 64, &[16]);
}

/// Padding, the edge of the ring and sleeping together.
#[test]
fn messages_over_the_edge() {
    transfer(2, 128, &[5, 13, 3]);
}

/// Bytes of a message that just pass the number after which a bell is rung in the middle of a message, and are no
/// multiple of 64.
const PAST: usize = (16 << 10) + 4;
const LARGE: usize = 32 << 10;

/// The sender has filled the ring and sends elements of 64 bytes, as many as the first message took with its padding,
/// asleep when there is no room for one. `receive` takes the first message, of [`PAST`] bytes, and nothing more.
fn with_a_full_ring(receive: fn(Consumer, &Shared<Bell>)) {
    check(3, move || {
        let cursors = Shared::from_arc(Arc::new(Cursors::default()));
        let bells = [0, 1].map(|_| Shared::from_arc(Arc::new(Bell::default())));
        let [sender_bell, receiver_bell] = bells;
        let mut outlet = Outlet::new(Producer::new(cursors.clone(), LARGE), receiver_bell);
        outlet.commit(PAST);
        outlet.end();
        let (_, rest) = outlet.room();
        outlet.commit(rest);
        outlet.end();
        let receiver = thread::spawn({
            let sender_bell = sender_bell.clone();
            move || receive(Consumer::new(cursors, LARGE), &sender_bell)
        });
        let mut left = PAST.next_multiple_of(64);
        while left > 0 {
            let (_, room) = room(&mut outlet, &sender_bell, 64);
            let n = (room / 64 * 64).min(left);
            outlet.commit(n);
            left -= n;
        }
        receiver.join().unwrap();
    });
}

/// The last bytes of a message are released with a ring, its padding after that ring. A sender that needs more than the
/// few bytes before the padding (the header of its next message, say) sleeps for the padding alone, so the padding must
/// ring too.
#[test]
fn padding_alone_wakes_the_sender() {
    with_a_full_ring(|consumer, sender_bell| {
        let mut inlet = Inlet::new(consumer, sender_bell.clone());
        assert!(inlet.there().1 >= PAST);
        inlet.release(PAST);
        inlet.end();
    });
}

/// Negative control: a receiver that rings for the bytes and not for the padding.
#[test]
#[should_panic(expected = "deadlock")]
fn caught_ending_in_silence() {
    with_a_full_ring(|mut consumer, sender_bell| {
        assert!(consumer.there().1 >= PAST);
        consumer.release(PAST);
        sender_bell.ring();
        consumer.end();
    });
}

/// Negative control: a sender that never rings.
#[test]
#[should_panic(expected = "deadlock")]
fn caught_sending_in_silence() {
    check(3, || {
        let cursors = Shared::from_arc(Arc::new(Cursors::default()));
        let bell = Shared::from_arc(Arc::new(Bell::default()));
        let mut producer = Producer::new(cursors.clone(), 64);
        let mut inlet = Inlet::new(Consumer::new(cursors, 64), Shared::from_arc(Arc::new(Bell::default())));
        let receiver = thread::spawn(move || there(&mut inlet, &bell, 8));
        producer.commit(8);
        producer.end();
        receiver.join().unwrap();
    });
}
