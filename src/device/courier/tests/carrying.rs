//! What couriers carry, in what order, and what it costs them to have nothing to do.

use std::os::unix::thread::JoinHandleExt;

use super::*;

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
                    let mut chunks: Vec<&mut [u8]> = data.chunks_mut(into.bytes).collect();
                    if chunks.is_empty() {
                        chunks.push(&mut []);
                    }
                    for chunk in chunks {
                        assert!(into.take(number, &operation(sequence), chunk, watch), "{:?}", watch.verdict());
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

/// A passage goes slot by slot: what has been filled arrives, and can be emptied, before the rest of it is there, also if
/// it is so short that the connection would rather gather more. So the device can fill one slot while the one before is
/// on the wire and the one before that is being emptied.
#[test]
fn a_slot_travels_before_the_next_is_filled() {
    const SLOTS: usize = 20;
    for bytes in [64, 4096] {
        world(
            2,
            |_| (),
            |rank| {
                let (me, watch, digest) = (rank.comm.rank(), &*rank.court.watch, operation(1).digest());
                let slots = Slots::new(4, bytes);
                let end = if me == 0 { End::to(1, 0) } else { End::from(0, 0) };
                rank.courier.open(end, slots.ring());
                rank.courier.carry(&[(end, Passage { operation: operation(1), bytes: bytes * SLOTS })]);
                for number in 0..SLOTS as u32 {
                    let mut data = vec![number as u8 + 1; bytes];
                    if me == 0 {
                        assert!(slots.put(number, digest, &data, watch));
                    } else {
                        assert!(slots.take(number, &operation(1), &mut data, watch));
                        assert!(data.iter().all(|byte| *byte == number as u8 + 1));
                        assert_eq!(slots.filled.load(Ordering::Acquire), number + 1, "what is not filled has not come");
                    }
                    // The next slot is filled only after this one has been emptied.
                    rank.comm.barrier().unwrap();
                }
            },
        );
    }
}

/// A link whose receiver has not come, and one whose slots nobody empties, hold up no other.
#[test]
fn links_do_not_wait_for_each_other() {
    const SLOT: usize = 64 << 10;
    world(
        3,
        |_| (),
        |rank| {
            let (me, watch, digest) = (rank.comm.rank(), &*rank.court.watch, operation(1).digest());
            let passage = |bytes| Passage { operation: operation(1), bytes };
            // Rank 0 sends more than the network takes to rank 1 on channel 0, which it does not empty yet, and to rank 2
            // on channel 0, which does not expect anything yet; and a little to both on channel 1.
            const MUCH: usize = 400;
            let outward = |peer, channel, slots: u32| {
                let ring = Slots::new(2, SLOT);
                rank.courier.open(End::to(peer, channel), ring.ring());
                rank.courier.carry(&[(End::to(peer, channel), passage(slots as usize * SLOT))]);
                move || (0..slots).all(|number| ring.put(number, digest, &[7; SLOT], watch))
            };
            let inward = |channel, slots: u32| {
                let ring = Slots::new(2, SLOT);
                rank.courier.open(End::from(0, channel), ring.ring());
                rank.courier.carry(&[(End::from(0, channel), passage(slots as usize * SLOT))]);
                let mut data = vec![0; SLOT];
                move || (0..slots).all(|number| ring.take(number, &operation(1), &mut data, watch) && data == [7; SLOT])
            };
            if me == 0 {
                let blocked = [outward(1, 0, MUCH as u32), outward(2, 0, MUCH as u32)];
                std::thread::scope(|s| {
                    let blocked = blocked.map(|fill| s.spawn(fill));
                    rank.comm.barrier().unwrap();
                    assert!([outward(1, 1, 5), outward(2, 1, 5)].into_iter().all(|fill| fill()));
                    rank.comm.barrier().unwrap();
                    assert!(!blocked.iter().any(|b| b.is_finished()), "the network took {} MiB", (MUCH * SLOT) >> 20);
                    rank.comm.barrier().unwrap();
                    assert!(blocked.into_iter().all(|b| b.join().unwrap()));
                });
                assert!(rank.courier.finish(LONG));
            } else {
                let early = (me == 1).then(|| inward(0, MUCH as u32));
                rank.comm.barrier().unwrap();
                assert!(inward(1, 5)());
                rank.comm.barrier().unwrap();
                rank.comm.barrier().unwrap();
                assert!(early.unwrap_or_else(|| inward(0, MUCH as u32))());
            }
            rank.comm.barrier().unwrap();
        },
    );
}

/// Time that the courier's thread has spent on a core.
fn spent(courier: &Courier) -> Duration {
    let thread = courier.thread.as_ref().expect("running").as_pthread_t();
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: the thread has not been joined, and both places are valid for writes.
    let failed =
        unsafe { libc::pthread_getcpuclockid(thread, &mut clock) != 0 || libc::clock_gettime(clock, &mut time) != 0 };
    assert!(!failed, "{}", std::io::Error::last_os_error());
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// With nothing to carry a courier sleeps, and does not wake for what arrives before it is expected; while it waits for
/// the network alone, too; and while it waits for a device, nearly.
#[test]
fn waiting_costs_next_to_nothing() {
    const SLOT: usize = 4096;
    const WAIT: Duration = Duration::from_millis(400);
    world(
        2,
        |_| (),
        |rank| {
            let (me, watch) = (rank.comm.rank(), &*rank.court.watch);
            let [out, into] = [(); 2].map(|()| Slots::new(4, SLOT));
            let (to, from) = (End::to(1 - me, 0), End::from(1 - me, 0));
            rank.courier.open(to, out.ring());
            rank.courier.open(from, into.ring());
            let mut number = 0;
            let mut exchange = |wait: &dyn Fn()| {
                let sequence = u64::from(number) + 1;
                let passage = Passage { operation: operation(sequence), bytes: SLOT };
                let digest = operation(sequence).digest();
                if me == 0 {
                    rank.courier.carry(&[(to, passage)]);
                    wait();
                    assert!(out.put(number, digest, &[number as u8; SLOT], watch));
                    rank.courier.carry(&[(from, passage)]);
                    assert!(into.take(number, &operation(sequence), &mut [0; SLOT], watch));
                } else {
                    rank.courier.carry(&[(from, passage)]);
                    let mut data = [0; SLOT];
                    assert!(into.take(number, &operation(sequence), &mut data, watch) && data == [number as u8; SLOT]);
                    rank.courier.carry(&[(to, passage)]);
                    assert!(out.put(number, digest, &data, watch));
                }
                number += 1;
            };
            exchange(&|| ());
            assert!(rank.courier.finish(LONG));
            let before = spent(&rank.courier);
            std::thread::sleep(WAIT);
            let idle = spent(&rank.courier) - before;
            assert!(idle < WAIT / 100, "{idle:?} of {WAIT:?} with nothing to do");
            rank.comm.barrier().unwrap();
            let before = spent(&rank.courier);
            // Rank 0's courier waits for its device, rank 1's for the network.
            exchange(&|| std::thread::sleep(WAIT));
            let waiting = spent(&rank.courier) - before;
            let most = if me == 0 { WAIT / 8 } else { WAIT / 40 };
            assert!(waiting < most, "{waiting:?} of {WAIT:?} waiting on rank {me}");
            assert!(rank.courier.finish(LONG));
            rank.comm.barrier().unwrap();
        },
    );
}

/// The counters go round; with a number of slots that does not divide 2^32, too.
#[test]
fn counters_wrap() {
    let slots = Slots::new(3, 64);
    let mut ring = slots.ring();
    ring.begin_at(u32::MAX - 4);
    for word in [&slots.filled, &slots.freed] {
        word.store(u32::MAX - 4, Ordering::Relaxed);
    }
    for lap in 0..10u8 {
        assert!(!ring.is_filled() && ring.is_free());
        ring.room(64).fill(lap);
        ring.fill(&operation(1));
        slots.freed.fetch_add(1, Ordering::Relaxed);
    }
    assert_eq!(slots.filled.load(Ordering::Relaxed), 5);
    slots.freed.fetch_sub(3, Ordering::Relaxed);
    assert!(!ring.is_free(), "three slots are not emptied");
}
