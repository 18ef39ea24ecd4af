//! What the members of a test send each other, and how they see that it is right.

use maypole_cuda::peer::{HEADER, Incoming, Outgoing, Shape, Slots, Window};
use maypole_cuda::{Commands, DeviceMemory};

use crate::ranks::Rank;

/// Bytes that say what they are: `stream` of the sender `from`, message `number`.
pub fn pattern(from: usize, number: usize, bytes: usize) -> Vec<u8> {
    let seed = (from as u64 * 1_000_003 + number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..bytes as u64).map(|i| ((seed ^ i).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 56) as u8).collect()
}

/// A wait that a test leaves out on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    Nothing,
    /// For what has been published or sent.
    Arrival,
    /// For room: until a place or slot has been read.
    Room,
}

/// What a test has its members do.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Publications or messages of each.
    pub count: usize,
    /// Only members below this publish or send; the others only read. Where all do, nobody gets ahead of the slowest,
    /// and waits for room are never what holds a stream back.
    pub active: usize,
    /// The wait that is left out.
    pub lost: Lost,
}

impl Traffic {
    /// Everybody publishes or sends `count` times, and nothing is left out.
    pub fn of_all(count: usize) -> Traffic {
        Traffic { count, active: usize::MAX, lost: Lost::Nothing }
    }
}

/// Bytes of a publication.
const BYTES: usize = 1000;

/// Members publish, and fetch everything that is published, all queued at once.
///
/// # Panics
/// Where a byte is not what was published.
pub fn publish_and_fetch(rank: &mut Rank, traffic: Traffic) {
    let (Traffic { count: rounds, lost, .. }, bytes, active) = (traffic, BYTES, traffic.active.min(rank.members));
    let mut window = Window::new(&rank.words, &rank.staging, rank.me);
    let inputs = DeviceMemory::new(&rank.context, rounds * bytes).unwrap();
    let outputs = DeviceMemory::new(&rank.context, rank.members * rounds * bytes).unwrap();
    for round in 0..rounds {
        inputs.copy_from_host(round * bytes, &pattern(rank.me, round, bytes)).unwrap();
    }
    for round in 0..rounds {
        let mut commands = Commands::new(&rank.stream).unwrap();
        if rank.me < active {
            let place = match lost {
                Lost::Room => rank.staging.place(rank.me, round),
                _ => window.begin_publish(&mut commands).unwrap(),
            };
            assert!(place.bytes >= bytes);
            let source = inputs.address() + (round * bytes) as u64;
            // SAFETY: the place is this member's until `end_publish`; the inputs stay until the stream is drained.
            unsafe { commands.copy(place.data(), source, bytes) }.unwrap();
            window.end_publish(&mut commands).unwrap();
        }
        for from in (0..active).map(|i| (rank.me + i) % active) {
            let number = if from == rank.me { window.published() - 1 } else { window.fetched(from) };
            let place = match lost {
                Lost::Arrival => rank.staging.place(from, round),
                _ => window.begin_fetch(&mut commands, from, number).unwrap(),
            };
            let to = outputs.address() + ((from * rounds + round) * bytes) as u64;
            // SAFETY: the place can be read until `end_fetch`; the outputs stay until the stream is drained.
            unsafe { commands.copy(to, place.data(), bytes) }.unwrap();
            window.end_fetch(from, number);
        }
        window.finish(&mut commands, 1).unwrap();
        window.end_round(&mut commands, 1).unwrap();
        commands.finish().unwrap();
    }
    rank.drain();
    let mut wrong = None;
    let mut got = vec![0; bytes];
    for from in 0..active {
        for round in 0..rounds {
            outputs.copy_to_host((from * rounds + round) * bytes, &mut got).unwrap();
            if got != pattern(from, round, bytes) {
                wrong = Some(format!("rank {}: publication {round} of {from}", rank.me));
            }
        }
    }
    rank.give_back((inputs, outputs));
    assert_eq!(wrong, None);
}

/// Lengths of the messages of a link, from empty to twice the longest slice's half.
fn length(shape: Shape, number: usize) -> usize {
    [0, 1, shape.slot(0) - 1, shape.slot(0), shape.slot(0) + 1, shape.message(0)][number % 6]
}

/// Members send messages to the next one, on every channel, and receive what the one before sends.
///
/// # Panics
/// Where a byte is not what was sent.
pub fn pass_round(rank: &mut Rank, traffic: Traffic) {
    let Traffic { count: messages, active, lost } = traffic;
    let (shape, n) = (rank.staging.shape(), rank.members);
    let (to, from) = ((rank.me + 1) % n, (rank.me + n - 1) % n);
    let most = shape.message(0);
    let at = |channel: usize, number: usize| (channel * messages + number) * most;
    let inputs = DeviceMemory::new(&rank.context, shape.channels * messages * most).unwrap();
    let outputs = DeviceMemory::new(&rank.context, shape.channels * messages * most).unwrap();
    outputs.fill(0, outputs.bytes(), 0xee).unwrap();
    for channel in 0..shape.channels {
        let out = |other| (rank.words.filled(rank.me, other, channel), rank.words.freed(rank.me, other, channel));
        let ((filled, freed), slots) = (out(to), rank.staging.slots(rank.me, to, channel));
        let mut outgoing = Outgoing::new(slots, filled, freed);
        let (filled, freed) = (rank.words.filled(from, rank.me, channel), rank.words.freed(from, rank.me, channel));
        let mut incoming = Incoming::new(rank.staging.slots(from, rank.me, channel), filled, freed);
        let (mut sent, mut received) = (0, 0);
        let next = |slots: Slots, count: &mut u64| {
            *count += 1;
            slots.first + (*count - 1) % u64::from(slots.count) * slots.stride as u64 + HEADER as u64
        };
        for number in 0..messages {
            let bytes = length(shape, number);
            inputs.copy_from_host(at(channel, number), &pattern(rank.me + channel * 100, number, bytes)).unwrap();
            let mut commands = Commands::new(&rank.stream).unwrap();
            let parts = (0..slots.of_message(bytes)).map(|slot| slot * shape.slot(0));
            for begin in parts.clone().filter(|_| rank.me < active) {
                let part = (bytes - begin).min(shape.slot(0));
                let data = next(slots, &mut sent);
                if lost != Lost::Room {
                    assert_eq!(outgoing.begin(&mut commands).unwrap().data(), data);
                }
                let source = inputs.address() + (at(channel, number) + begin) as u64;
                // SAFETY: the slot is the sender's until `end`; the inputs stay until the stream is drained.
                unsafe { commands.copy(data, source, part) }.unwrap();
                outgoing.end(&mut commands).unwrap();
            }
            for begin in parts.filter(|_| from < active) {
                let part = (bytes - begin).min(shape.slot(0));
                let data = next(*incoming.slots(), &mut received);
                if lost != Lost::Arrival {
                    assert_eq!(incoming.begin(&mut commands).unwrap().data(), data);
                }
                let target = outputs.address() + (at(channel, number) + begin) as u64;
                // SAFETY: the slot is the receiver's until `end`; the outputs stay until the stream is drained.
                unsafe { commands.copy(target, data, part) }.unwrap();
                incoming.end(&mut commands).unwrap();
            }
            commands.finish().unwrap();
        }
    }
    rank.drain();
    let mut wrong = None;
    for channel in 0..shape.channels {
        for number in (0..messages).filter(|_| from < active) {
            let bytes = length(shape, number);
            let mut got = vec![0; (outputs.bytes() - at(channel, number)).min(bytes + 1)];
            outputs.copy_to_host(at(channel, number), &mut got).unwrap();
            let beyond = bytes < most && got[bytes] != 0xee;
            if got[..bytes] != pattern(from + channel * 100, number, bytes) || beyond {
                wrong = Some(format!("rank {}: message {number} on channel {channel}", rank.me));
            }
        }
    }
    rank.give_back((inputs, outputs));
    assert_eq!(wrong, None);
}
