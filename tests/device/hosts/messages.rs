//! Messages between two ranks of different hosts, and of one, by every kind of call.

use maypole::config::TransportChoice;

use super::{LAYOUTS, by, spread};
use crate::arena::Arena;
use crate::runner::checked;
use crate::world::Rank;

/// Elements from none to many laps around links of four slots of 4 KiB.
const COUNTS: [usize; 7] = [0, 1, 7, 1023, 1025, 4096, 20_001];

/// Room for the longest message of a kind.
const ROOM: usize = 96 << 10;

/// Message `number` from rank `from` to rank `to`: elements that no other message has.
fn content(from: usize, to: usize, number: usize, count: usize) -> Vec<u32> {
    let seed = (((from * 31 + to) * 31 + number) as u32).wrapping_mul(0x9e37_79b9);
    (0..count as u32).map(|i| seed.wrapping_add(i.wrapping_mul(0x85eb_ca6b))).collect()
}

/// What arrived at byte `at` is message `number` from `from`.
fn arrived(rank: &Rank, arena: &Arena, at: usize, (from, number, count): (usize, usize, usize)) {
    let me = rank.comm.rank();
    rank.comm.on(&rank.stream).synchronize().expect("it arrives");
    let want = content(from, me, number, count);
    let got = arena.read(&rank.stream, at, count * 4);
    assert!(got == bytemuck::cast_slice::<u32, u8>(&want), "message {number}: {count} elements from {from} to {me}");
    checked(1);
}

fn put(rank: &Rank, arena: &Arena, at: usize, to: usize, number: usize, count: usize) {
    let out = content(rank.comm.rank(), to, number, count);
    arena.put(&rank.stream, at, bytemuck::cast_slice(&out));
}

/// One after the other: every rank to every other at once; around a ring; from each to the next by plain sends and
/// receives; and several that are on their way at a time, the short ones behind a long one.
fn patterns(rank: &Rank, arena: &Arena, count: usize) {
    let (me, size) = (rank.comm.rank(), rank.comm.size());
    let (left, right) = ((me + size - 1) % size, (me + 1) % size);
    let on = rank.comm.on(&rank.stream);
    let (out, back) = (|to| to * ROOM, |from| (size + from) * ROOM);

    (0..size).for_each(|to| put(rank, arena, out(to), to, 0, count + to));
    on.group(|g| {
        (0..size).for_each(|to| g.send(arena.elements::<u32>(out(to), count + to), to));
        (0..size).rev().for_each(|from| g.recv(arena.elements_mut::<u32>(back(from), count + me), from));
        Ok(())
    })
    .expect("a group");
    (0..size).for_each(|from| arrived(rank, arena, back(from), (from, 0, count + me)));

    put(rank, arena, 0, right, 1, count);
    on.send_recv(arena.elements::<u32>(0, count), right, arena.elements_mut::<u32>(ROOM, count), left)
        .expect("send_recv");
    arrived(rank, arena, ROOM, (left, 1, count));

    put(rank, arena, 4 * ROOM, right, 2, count);
    if me > 0 {
        on.recv(arena.elements_mut::<u32>(5 * ROOM, count), me - 1).expect("recv");
    }
    if me + 1 < size {
        on.send(arena.elements::<u32>(4 * ROOM, count), me + 1).expect("send");
    }
    if me > 0 {
        arrived(rank, arena, 5 * ROOM, (me - 1, 2, count));
    }

    // From the first rank to the last, which are on different hosts wherever there are two.
    let lengths = [count, 0, 3, count / 2];
    for (number, length) in lengths.into_iter().enumerate() {
        if me == 0 {
            put(rank, arena, number * ROOM, size - 1, 3 + number, length);
            on.send(arena.elements::<u32>(number * ROOM, length), size - 1).expect("send");
        } else if me == size - 1 {
            on.recv(arena.elements_mut::<u32>(number * ROOM, length), 0).expect("recv");
        }
    }
    if me == size - 1 {
        let each = lengths.into_iter().enumerate();
        each.for_each(|(number, length)| arrived(rank, arena, number * ROOM, (0, 3 + number, length)));
    }
    on.synchronize().expect("all are gone");
}

pub fn messages() {
    let mut tcp = by("");
    tcp.transport = TransportChoice::Tcp;
    let worlds = LAYOUTS.map(|hosts| (hosts, by("")));
    for (hosts, config) in worlds.into_iter().chain([(&["a", "a", "a"][..], tcp)]) {
        spread(hosts, &config, |rank| {
            let arena = Arena::new(rank, 2 * hosts.len() * ROOM);
            rank.settle();
            COUNTS.into_iter().for_each(|count| patterns(rank, &arena, count));
            rank.settle();
        });
    }
}
