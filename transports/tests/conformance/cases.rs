//! What every link must do. Each case gets a factory and knows nothing else of the transport.

use std::thread;

use maypole_transports::{LinkError, Receiver, Sender};

use crate::factories::{End, Factory};
use crate::sleeping::bombarded;
use crate::traffic::*;

const CREDIT: usize = 64 << 10;

/// Sizes of a run of messages: many short ones, some long, some empty, about `total` bytes together.
fn sizes(total: usize, most: usize, dice: &mut Dice) -> Vec<usize> {
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < total {
        sizes.push(dice.length(most));
    }
    sizes
}

/// One thread alternates between writing and reading at random, so that every fill level occurs.
pub fn order(factory: &dyn Factory) {
    for seed in 0..4 {
        let (mut a, mut b) = factory.pair(CREDIT);
        let mut dice = Dice::new(seed);
        let sizes = sizes(300_000, 3 * CREDIT, &mut dice);
        let (mut writer, mut reader) = (Writer::new(Portions::Any), Reader::new(Portions::Any));
        let (mut writing, mut reading) = (0, 0);
        writer.begin(sizes[0]);
        reader.begin(sizes[0]);
        until("all messages", || {
            for _ in 0..dice.below(20) {
                if writing < sizes.len() && writer.step(&mut *a.sender, &mut dice).unwrap() {
                    writing += 1;
                    sizes.get(writing).into_iter().for_each(|next| writer.begin(*next));
                }
            }
            for _ in 0..dice.below(20) {
                // A message that has not begun is not to be read; one that has may be read before its end.
                if reading < sizes.len() && reading <= writing && reader.step(&mut *b.receiver, &mut dice).unwrap() {
                    reading += 1;
                    sizes.get(reading).into_iter().for_each(|next| reader.begin(*next));
                }
            }
            reading == sizes.len() && writing == sizes.len()
        });
        assert_eq!(reader.position, sizes.iter().sum::<usize>() as u64);
    }
}

/// Two threads at full speed.
pub fn order_between_threads(factory: &dyn Factory) {
    let (mut a, mut b) = factory.pair(CREDIT);
    let sizes = sizes(1_000_000, 2 * CREDIT, &mut Dice::new(7));
    thread::scope(|scope| {
        scope.spawn(|| write_messages(&mut *a.sender, &sizes, Portions::Any, 8));
        read_messages(&mut *b.receiver, &sizes, Portions::Any, 9);
    });
}

fn write_messages(link: &mut dyn Sender, sizes: &[usize], portions: Portions, seed: u64) {
    let (mut writer, mut dice) = (Writer::new(portions), Dice::new(seed));
    for size in sizes {
        writer.begin(*size);
        until("writing a message", || writer.step(link, &mut dice).unwrap());
    }
}

fn read_messages(link: &mut dyn Receiver, sizes: &[usize], portions: Portions, seed: u64) {
    let (mut reader, mut dice) = (Reader::new(portions), Dice::new(seed));
    for size in sizes {
        reader.begin(*size);
        until("reading a message", || reader.step(link, &mut dice).unwrap());
    }
}

/// The sender gets rid of its credit while the receiving rank only absorbs.
pub fn credit(factory: &dyn Factory) {
    for credit in [4 << 10, CREDIT, 1 << 20] {
        let (mut a, mut b) = factory.pair(credit);
        assert!(a.sender.credit() >= credit, "credit of {}, {credit} were asked for", a.sender.credit());
        let credit = a.sender.credit();
        let bytes = bytes_at(0, credit);
        send_all(&mut *a.sender, &bytes, || assert!(b.receiver.absorb().is_ok()));
        assert!(recv_all(&mut *b.receiver, credit) == bytes, "credit of {credit}");
    }
}

/// Beyond its credit the sender stops, having lost nothing, and goes on when the receiver takes something.
pub fn stops_beyond_credit(factory: &dyn Factory) {
    /// No link holds this much: beyond it, something buffers without a limit.
    const LIMIT: usize = 96 << 20;
    let (mut a, mut b) = factory.pair(CREDIT);
    let block = bytes_at(0, 1 << 20);
    let mut sent = 0;
    let mut idle = 0;
    while idle < 1000 {
        let n = a.sender.send(&block[sent % block.len()..]).unwrap();
        sent += n;
        let absorbed = b.receiver.absorb().unwrap();
        idle = if n > 0 || absorbed { 0 } else { idle + 1 };
        assert!(sent < LIMIT, "{sent} bytes taken though nobody receives");
    }
    assert!(sent >= a.sender.credit(), "stopped at {sent}, before the credit of {}", a.sender.credit());
    // The message has as many bytes as were taken, and 1000 more.
    let mut more = 0;
    let mut got = 0;
    let mut into = vec![0; 100_000];
    let mut ended = false;
    until("taking all that was sent", || {
        if more < 1000 {
            more += a.sender.send(&block[..1000 - more]).unwrap();
        } else if !ended {
            ended = a.sender.end().unwrap();
        }
        let most = into.len().min(sent + 1000 - got);
        let n = b.receiver.recv(&mut into[..most]).unwrap();
        for (i, byte) in into[..n].iter().enumerate().take_while(|(i, _)| got + i < sent) {
            assert_eq!(*byte, block[(got + i) % block.len()], "byte {} of {sent}", got + i);
        }
        got += n;
        got == sent + 1000 && ended
    });
}

/// Empty messages cost nothing and disturb nothing.
pub fn empty_messages(factory: &dyn Factory) {
    let (mut a, mut b) = factory.pair(CREDIT);
    for round in 0..100 {
        for len in [0, 1, 0, 0, 130] {
            let bytes = bytes_at(round, len);
            send_all(&mut *a.sender, &bytes, || {});
            assert_eq!(b.receiver.recv(&mut []).unwrap(), 0);
            assert_eq!(recv_all(&mut *b.receiver, len), bytes);
        }
    }
    // Nothing is left over.
    assert_eq!(b.receiver.peek().unwrap(), []);
}

/// A message many times the link's capacity passes, as fast as the receiver takes it.
pub fn larger_than_capacity(factory: &dyn Factory) {
    let (mut a, mut b) = factory.pair(4 << 10);
    let bytes = bytes_at(0, (1 << 20) + 13);
    thread::scope(|scope| {
        scope.spawn(|| send_all(&mut *a.sender, &bytes, || {}));
        assert!(recv_all(&mut *b.receiver, bytes.len()) == bytes);
    });
}

/// A writer and a reader who insist on whole elements of 64 bytes come through, wherever the link's memory wraps.
pub fn elements_stay_whole(factory: &dyn Factory) {
    let (mut a, mut b) = factory.pair(4 << 10);
    let sizes = sizes(400_000, 20_000, &mut Dice::new(3));
    thread::scope(|scope| {
        scope.spawn(|| write_messages(&mut *a.sender, &sizes, Portions::Elements, 4));
        read_messages(&mut *b.receiver, &sizes, Portions::Elements, 5);
    });
}

/// Whether `outcome` is `Gone`; any other error is a failure.
fn is_gone<T>(outcome: Result<T, LinkError>) -> bool {
    match outcome {
        Ok(_) => false,
        Err(LinkError::Gone { .. }) => true,
        Err(other) => panic!("expected `Gone`, got: {other}"),
    }
}

/// All that was sent before the sender went arrives, then the receiver is told, and told again.
pub fn sender_dropped(factory: &dyn Factory) {
    for len in [0, 8, 20_000] {
        let (mut a, mut b) = factory.pair(CREDIT);
        let bytes = bytes_at(0, len);
        send_all(&mut *a.sender, &bytes, || assert!(b.receiver.absorb().is_ok()));
        drop(a.sender);
        // Asking for more than was sent must not cost what was sent.
        let mut into = vec![0; len + 5];
        let mut got = 0;
        until("the data", || {
            got += if got < len { b.receiver.recv(&mut into[got..]).unwrap() } else { 0 };
            got == len
        });
        assert!(into[..len] == bytes);
        until("being told", || is_gone(b.receiver.recv(&mut [0; 8])));
        assert!(is_gone(b.receiver.recv(&mut [0; 100_000])));
        assert!(is_gone(b.receiver.peek().map(drop)));
    }
}

/// The sender goes within a message, with all its ends: the receiver gets a beginning of it and is told.
pub fn sender_dropped_within_a_message(factory: &dyn Factory) {
    let (mut a, mut b) = factory.pair(CREDIT);
    let bytes = bytes_at(0, 10_000);
    let sent = a.sender.send(&bytes).unwrap();
    drop(a);
    let mut got = 0;
    // Room for more than the message, so that there is always something to ask for.
    let mut into = vec![0; bytes.len() + 1];
    until("being told", || match b.receiver.recv(&mut into[got..]) {
        Ok(n) => {
            got += n;
            assert!(got <= sent, "{got} bytes came, {sent} were sent");
            false
        }
        outcome => is_gone(outcome),
    });
    assert!(into[..got] == bytes[..got]);
}

/// A sender whose receiver went is told, whatever it does.
pub fn receiver_dropped(factory: &dyn Factory) {
    let send: fn(&mut End) -> Result<(), LinkError> = |a| a.sender.send(&[1; 5000]).map(drop);
    let write: fn(&mut End) -> Result<(), LinkError> = |a| {
        let room = a.sender.reserve()?.len();
        a.sender.commit(room.min(5000));
        Ok(())
    };
    for attempt in [send, write] {
        let (mut a, b) = factory.pair(CREDIT);
        let End { sender: back, receiver, _group } = b;
        drop(receiver);
        until("being told", || is_gone(attempt(&mut a).and_then(|()| a.sender.end())));
        drop(back);
    }
}

/// Two ranks that send to each other more than the links hold, each receiving meanwhile, as the ring's steps do.
pub fn both_directions_at_once(factory: &dyn Factory) {
    let (mut a, mut b) = factory.pair(CREDIT);
    let exchange = |end: &mut End| {
        let bytes = bytes_at(0, 700_001);
        let mut into = vec![0; bytes.len()];
        let (mut sent, mut got, mut ended) = (0, 0, false);
        until("exchanging", || {
            if sent < bytes.len() {
                sent += end.sender.send(&bytes[sent..]).unwrap();
            } else if !ended {
                ended = end.sender.end().unwrap();
            }
            got += end.receiver.recv(&mut into[got..]).unwrap();
            ended && got == bytes.len()
        });
        assert!(into == bytes);
    };
    thread::scope(|scope| {
        scope.spawn(|| exchange(&mut a));
        exchange(&mut b);
    });
}

/// Signals arriving all the time change nothing.
pub fn interrupted_by_signals(factory: &dyn Factory) {
    let (mut a, mut b) = factory.pair(CREDIT);
    let sizes = sizes(500_000, 2 * CREDIT, &mut Dice::new(11));
    thread::scope(|scope| {
        scope.spawn(|| bombarded(|| write_messages(&mut *a.sender, &sizes, Portions::Any, 12)));
        bombarded(|| read_messages(&mut *b.receiver, &sizes, Portions::Any, 13));
    });
}
