//! Cuts: at exactly the byte they were asked for, seen from both sides.

use maypole_transports::LinkError;
use maypole_transports::fault::{Cut, Fault};

use crate::factories::{End, Factory, Sealed, Shm, Tcp};
use crate::traffic::{bytes_at, until};

fn factories() -> Vec<Box<dyn Factory>> {
    vec![
        Box::new(Tcp::v4(1)),
        Box::new(Tcp::v4(3)),
        Box::new(Sealed(Tcp::v4(1))),
        Box::new(Sealed(Tcp::v4(3))),
        Box::new(Shm),
    ]
}

/// Everything that comes until the link is gone.
fn recv_until_gone(end: &mut End) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut into = [0; 1000];
    until("the peer being gone", || match end.receiver.recv(&mut into) {
        Ok(n) => {
            bytes.extend_from_slice(&into[..n]);
            false
        }
        Err(LinkError::Gone { .. }) => true,
        Err(other) => panic!("{other}"),
    });
    bytes
}

#[test]
fn a_severed_sender_passes_exactly_so_many_bytes() {
    for factory in factories() {
        for at in [0, 1, 999, 5000] {
            let (a, mut b) = factory.pair(64 << 10);
            let mut sender = Fault::cut(Cut::Sever(at as u64)).sender(a.sender);
            let bytes = bytes_at(0, 8000);
            let mut sent = 0;
            until("the cut", || match sender.send(&bytes[sent..]) {
                Ok(n) => {
                    sent += n;
                    false
                }
                Err(error) => error.to_string().contains(&format!("after {at} bytes")),
            });
            assert_eq!(sent, at);
            assert!(sender.end().is_err());
            assert!(recv_until_gone(&mut b) == bytes[..at], "cut at {at}");
        }
    }
}

#[test]
fn a_truncated_sender_notices_after_the_message() {
    for factory in factories() {
        let (a, mut b) = factory.pair(64 << 10);
        let mut sender = Fault::cut(Cut::Truncate(1500)).sender(a.sender);
        let bytes = bytes_at(0, 4000);
        let mut sent = 0;
        until("the message", || {
            sent += sender.send(&bytes[sent..]).unwrap();
            sent == bytes.len()
        });
        assert!(sender.end().unwrap(), "a truncation goes unnoticed");
        assert!(matches!(sender.send(&bytes), Err(LinkError::Gone { .. })));
        assert!(recv_until_gone(&mut b) == bytes[..1500]);
    }
}

#[test]
fn a_severed_receiver_ends_on_both_sides() {
    for factory in factories() {
        let (mut a, b) = factory.pair(64 << 10);
        let receiver = Fault::cut(Cut::Sever(700)).receiver(b.receiver);
        let mut b = End { receiver, ..b };
        let bytes = bytes_at(0, 2000);
        assert_eq!(a.sender.send(&bytes).unwrap(), bytes.len());
        a.sender.end().unwrap();
        assert!(recv_until_gone(&mut b) == bytes[..700]);
        until("the sender being told", || {
            matches!(a.sender.send(&bytes).and_then(|_| a.sender.end()), Err(LinkError::Gone { .. }))
        });
    }
}

#[test]
fn the_same_seed_dribbles_alike() {
    let run = |seed| -> Vec<usize> {
        let (a, _b) = Shm.pair(64 << 10);
        let mut sender = Fault::dribble(100).seed(seed).sender(a.sender);
        (0..50).map(|_| sender.send(&[0; 200]).unwrap()).collect()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    assert!(run(3).iter().all(|n| (1..=100).contains(n)));
}
