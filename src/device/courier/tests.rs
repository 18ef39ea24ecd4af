//! Couriers between ranks that claim to be on different hosts: real connections, jury and verdicts, and a device that is
//! a thread with host memory.

use std::cell::UnsafeCell;
use std::sync::atomic::AtomicU32;

use maypole_collectives::schedule::Collective;

use super::ring::HEADER;
use super::*;
use crate::{Communicator, Config, UniqueId};

/// Longer than anything here should take.
const LONG: Duration = Duration::from_secs(20);

/// Memory of a ring with its words, and the device's end of it.
struct Slots {
    memory: Box<[UnsafeCell<Line64>]>,
    stride: usize,
    bytes: usize,
    slots: u32,
    filled: AtomicU32,
    freed: AtomicU32,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line64([u8; 64]);

// SAFETY: the words order accesses to the memory.
unsafe impl Sync for Slots {}
// SAFETY: as above.
unsafe impl Send for Slots {}

impl Slots {
    fn new(slots: u32, bytes: usize) -> Arc<Slots> {
        let stride = HEADER + bytes.next_multiple_of(64);
        let lines = slots as usize * stride / 64;
        let memory = (0..lines).map(|_| UnsafeCell::new(Line64([0xee; 64]))).collect();
        Arc::new(Slots { memory, stride, bytes, slots, filled: AtomicU32::new(0), freed: AtomicU32::new(0) })
    }

    fn ring(self: &Arc<Slots>) -> Ring {
        let first = self.memory.as_ptr() as *mut u8;
        // SAFETY: the memory has that shape and is kept.
        unsafe { Ring::new((first, self.stride), (self.slots, self.bytes), (&self.filled, &self.freed), self.clone()) }
    }

    fn slot(&self, number: u32) -> *mut u8 {
        (self.memory.as_ptr() as *mut u8).wrapping_add((number % self.slots) as usize * self.stride)
    }

    /// As a stream does: wait until `word` is at least `value`, or there is a verdict.
    fn wait(word: &AtomicU32, value: u32, watch: &crate::watch::Watch) -> bool {
        let begun = Instant::now();
        while (word.load(Ordering::Acquire).wrapping_sub(value) as i32) < 0 {
            if watch.raised() {
                return false;
            }
            assert!(begun.elapsed() < LONG, "waited too long for {value}");
            std::thread::yield_now();
        }
        true
    }

    /// Fill slot `number`. `false`: there is a verdict.
    fn put(&self, number: u32, digest: u32, data: &[u8], watch: &crate::watch::Watch) -> bool {
        if !Slots::wait(&self.freed, number.wrapping_add(1).wrapping_sub(self.slots), watch) {
            return false;
        }
        // SAFETY: the slot is the device's, and has room.
        unsafe {
            self.slot(number).cast::<u32>().write(digest);
            self.slot(number).add(HEADER).copy_from_nonoverlapping(data.as_ptr(), data.len());
        }
        self.filled.store(number.wrapping_add(1), Ordering::Release);
        true
    }

    /// Empty slot `number` into `data`, checking its digest. `false`: there is a verdict.
    fn take(&self, number: u32, digest: u32, data: &mut [u8], watch: &crate::watch::Watch) -> bool {
        if !Slots::wait(&self.filled, number.wrapping_add(1), watch) {
            return false;
        }
        // SAFETY: the slot is the device's.
        unsafe {
            assert_eq!(self.slot(number).cast::<[u32; 16]>().read()[..5], [digest, 0, 0, 0, 0], "slot {number}");
            self.slot(number).add(HEADER).copy_to_nonoverlapping(data.as_mut_ptr(), data.len());
        }
        self.freed.store(number.wrapping_add(1), Ordering::Release);
        true
    }
}

/// One rank: its communicator, its courier, and what it does with them.
struct Rank {
    comm: Communicator,
    courier: Courier,
    court: Court,
}

/// Run `body` as each of `size` ranks, each on a host of its own.
fn world(size: usize, change: impl Fn(&mut Config), body: impl Fn(Rank) + Sync) {
    let mut config = Config { timeout: LONG, ..Config::default() };
    change(&mut config);
    let id = UniqueId::create(&config).unwrap();
    std::thread::scope(|s| {
        for rank in 0..size {
            let mut config = config.clone();
            config.host = Some(format!("host{rank}"));
            let body = &body;
            s.spawn(move || {
                let comm = Communicator::from_id(&id, rank, size, config).unwrap();
                let routes = comm.inner.device_routes().unwrap().expect("all others are far");
                let court = comm.inner.court();
                let courier = Courier::start(routes, court.clone()).unwrap();
                body(Rank { comm, courier, court });
            });
        }
    });
}

fn operation(sequence: u64) -> Fingerprint {
    Fingerprint::collective(sequence, Collective::AllToAll, DataType::U8, None, 0, 1 + sequence as usize)
}

/// Byte `i` of what `from` sends to `to` in operation `sequence`.
fn byte(from: usize, to: usize, sequence: u64, i: usize) -> u8 {
    (from * 89 + to * 31 + sequence as usize * 7 + i * (i >> 8 | 1)) as u8
}

/// Lengths of the passages of operation `sequence`: from nothing to several rings full.
fn lengths(sequence: u64) -> Vec<usize> {
    let mut state = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    (0..1 + random() % 3)
        .map(|_| match random() % 4 {
            0 => 0,
            1 => random() % 64,
            2 => random() % 5_000,
            _ => random() % 60_000,
        })
        .collect()
}

/// Every rank exchanges passages of random lengths with every other on two channels, all at the same time. Rings are
/// small and of different shape at the two ends; the devices of a rank go from peer to peer in different orders.
#[test]
fn all_pairs_and_channels_at_once() {
    for (size, connections, operations) in [(2, 1, 60), (4, 1, 25), (3, 3, 25)] {
        world(size, |config| config.connections = connections, |rank| exchange(&rank, size, operations));
    }
}

fn exchange(rank: &Rank, size: usize, operations: u64) {
    let (me, watch) = (rank.comm.rank(), &*rank.court.watch);
    let ends = || (0..size).filter(|peer| *peer != me).flat_map(|peer| [(peer, 0), (peer, 1)]);
    std::thread::scope(|s| {
        for (peer, channel) in ends() {
            let (out, into) = (Slots::new(3, 1024 + 64 * me), Slots::new(2 + me as u32, 4096 - 64 * me));
            rank.courier.open(End::to(peer, channel), out.ring());
            rank.courier.open(End::from(peer, channel), into.ring());
            s.spawn(move || {
                let mut number = 0u32;
                for (sequence, length) in (1..=operations).flat_map(|n| lengths(n).into_iter().map(move |l| (n, l))) {
                    let data: Vec<u8> = (0..length).map(|i| byte(me, peer, sequence, i)).collect();
                    let digest = operation(sequence).digest();
                    let mut chunks = data.chunks(out.bytes);
                    let first = chunks.next().unwrap_or(&[]);
                    for chunk in std::iter::once(first).chain(chunks) {
                        assert!(out.put(number, digest, chunk, watch), "{:?}", watch.verdict());
                        number += 1;
                    }
                }
            });
            s.spawn(move || {
                let mut number = 0u32;
                for (sequence, length) in (1..=operations).flat_map(|n| lengths(n).into_iter().map(move |l| (n, l))) {
                    let mut data = vec![0; length];
                    let digest = operation(sequence).digest();
                    let mut chunks: Vec<&mut [u8]> = data.chunks_mut(into.bytes).collect();
                    if chunks.is_empty() {
                        chunks.push(&mut []);
                    }
                    for chunk in chunks {
                        assert!(into.take(number, digest, chunk, watch), "{:?}", watch.verdict());
                        number += 1;
                    }
                    let wrong = (0..length).find(|i| data[*i] != byte(peer, me, sequence, *i));
                    assert_eq!(wrong, None, "first wrong byte from rank {peer} in operation {sequence}");
                }
            });
        }
        for sequence in 1..=operations {
            let passage = |bytes| Passage { operation: operation(sequence), bytes };
            let passages: Vec<(End, Passage)> = ends()
                .flat_map(|(peer, channel)| [End::to(peer, channel), End::from(peer, channel)])
                .flat_map(|end| lengths(sequence).into_iter().map(move |bytes| (end, passage(bytes))))
                .collect();
            rank.courier.carry(&passages);
        }
    });
    assert!(rank.courier.finish(LONG));
    rank.comm.barrier().unwrap();
}
