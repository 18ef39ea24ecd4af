//! Queuing an operation allocates nothing.
//!
//! What this thread allocates through Rust is counted; the emulator, a library of its own, has its own allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use maypole_cuda::peer::{Incoming, Outgoing, Shape, Window};
use maypole_cuda::{Commands, Context};

use crate::ranks::{Rank, pair};
use crate::{TURN, emulated};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is the system's allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Two members' streams, fed by one thread: a publication, a fetch, a slot there and one back, a thousand times.
#[test]
fn queuing_allocates_nothing() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let shape = Shape::new(2, 1024, &[4096]);
    let ranks = pair(&context, shape);
    let mut windows = [0, 1].map(|me| Window::new(&ranks[me].words, &ranks[me].staging, me));
    let link = |me: usize, from: usize, to: usize| {
        let (words, staging) = (&ranks[me].words, &ranks[me].staging);
        (staging.slots(from, to, 0), words.filled(from, to, 0), words.freed(from, to, 0))
    };
    let out = |(slots, filled, freed)| Outgoing::new(slots, filled, freed);
    let into = |(slots, filled, freed)| Incoming::new(slots, filled, freed);
    let mut links = [0, 1].map(|me| (out(link(me, me, 1 - me)), into(link(me, 1 - me, me))));
    let mut operation = |me: usize| {
        let (window, (outgoing, incoming)) = (&mut windows[me], &mut links[me]);
        let mut commands = Commands::new(&ranks[me].stream).unwrap();
        window.begin_publish(&mut commands).unwrap();
        window.end_publish(&mut commands).unwrap();
        let number = window.fetched(1 - me);
        window.begin_fetch(&mut commands, 1 - me, number).unwrap();
        window.end_fetch(1 - me, number);
        window.finish(&mut commands, 1).unwrap();
        window.end_round(&mut commands, 1).unwrap();
        outgoing.begin(&mut commands).unwrap();
        outgoing.end(&mut commands).unwrap();
        incoming.begin(&mut commands).unwrap();
        incoming.end(&mut commands).unwrap();
        commands.finish().unwrap();
    };
    (0..2).for_each(&mut operation);
    let before = ALLOCATIONS.get();
    for _ in 0..1000 {
        (0..2).for_each(&mut operation);
    }
    let allocated = ALLOCATIONS.get() - before;
    ranks.iter().for_each(Rank::drain);
    assert_eq!(allocated, 0, "allocations in 2000 operations");
    assert_eq!(windows[0].published(), 1001);
    assert!(ranks.iter().all(|rank| rank.words.published(rank.me).load() == 1001));
}
