//! What a communicator with devices holds, it gives back: made and dropped many times, nothing grows.

use maypole::ReduceOp;
use maypole::cuda::{Context, DeviceBuffer, Stream};

use crate::arena::Arena;
use crate::runner::{On, Test, checked};
use crate::world::{Driver, Rank, config, driver, emulator, world};

pub const TESTS: &[Test] = &[
    Test { name: "lifetime: 50 worlds leave nothing behind", on: On::Either, run: worlds },
    Test { name: "lifetime: 50 children leave nothing behind", on: On::Either, run: children },
    Test { name: "lifetime: a rank leaves while others still read", on: On::Either, run: leaves_early },
];

/// What this process holds on devices.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    /// Allocations, imports, registrations, pinned memory, streams and events, where that can be counted.
    things: Vec<u64>,
    descriptors: usize,
    mappings: usize,
}

impl Held {
    fn now() -> Held {
        let things = match driver() {
            Driver::Emulator => {
                let now = emulator().counters();
                no_harm();
                vec![now.allocations, now.bytes, now.pinned, now.registered, now.imported, now.streams, now.events]
            }
            Driver::Device => Vec::new(),
        };
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
        Held {
            things,
            descriptors: std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").count(),
            mappings: maps.lines().filter(|line| line.contains("rw-s")).count(),
        }
    }

    /// Fail if more is held than `before`. A driver that is not ours keeps a few things as it likes.
    fn compare(&self, before: &Held) {
        match driver() {
            Driver::Emulator => {
                let grown = self.things.iter().zip(&before.things).any(|(now, before)| now > before);
                let grown = grown || self.descriptors > before.descriptors || self.mappings > before.mappings;
                assert!(!grown, "held after 50 more: {self:?}, before: {before:?}");
            }
            Driver::Device => {
                let grown = |now: usize, before: usize| now > before + 10;
                let grown = grown(self.descriptors, before.descriptors) || grown(self.mappings, before.mappings);
                assert!(!grown, "held after 50 more: {self:?}, before: {before:?}");
            }
        }
    }

    /// The less of each: what one look finds may be about to be given back.
    fn least(mut self, other: Held) -> Held {
        self.things.iter_mut().zip(&other.things).for_each(|(mine, other)| *mine = (*mine).min(*other));
        self.descriptors = self.descriptors.min(other.descriptors);
        self.mappings = self.mappings.min(other.mappings);
        self
    }

    /// What is held when threads that are ending have ended.
    fn settled() -> Held {
        let mut last = Held::now();
        for _ in 0..200 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let now = Held::now();
            if now == last {
                return now;
            }
            last = now;
        }
        last
    }
}

/// Nothing was written behind an allocation's end, or freed while another process had it open.
pub fn no_harm() {
    if driver() == Driver::Emulator {
        let now = emulator().counters();
        assert_eq!((now.overruns, now.freed_while_open), (0, 0), "{now:?}");
    }
}

/// Bytes of device memory that are free, of the whole device: others may use it too.
fn free() -> u64 {
    Context::primary(0).unwrap().memory().unwrap().0
}

/// Do `once` a few times, then 50 times, and compare what is held.
fn nothing_grows(mut once: impl FnMut()) {
    // What is made once per process is not a leak; nor is the primary context, which goes with its last user.
    let _context = Context::primary(0).unwrap();
    (0..3).for_each(|_| once());
    let (before, free_before) = (Held::settled(), free());
    (0..50).for_each(|_| once());
    let (after, free_after) = (Held::settled(), free());
    after.compare(&before);
    assert!(free_after + (64 << 20) > free_before, "{} bytes of device memory less", free_before - free_after);
    checked(50);
}

fn use_it(rank: &Rank, arena: &Arena) {
    arena.fill(&rank.stream, 0, 5000, 1);
    rank.comm.on(&rank.stream).all_reduce_in_place(arena.output(0, 5000), ReduceOp::Sum).unwrap();
    assert_eq!(arena.read(&rank.stream, 0, 5000), [rank.comm.size() as u8; 5000]);
}

fn worlds() {
    nothing_grows(|| {
        world(2, &config(&[("MAYPOLE_DEVICE_WINDOW", "1M")]), |rank| {
            let arena = Arena::new(rank, 8 << 10);
            use_it(rank, &arena);
            // One that is freed after its communicator.
            let kept = rank.comm.alloc_device::<u64>(1000).unwrap();
            rank.settle();
            kept
        });
    });
}

fn children() {
    let config = config(&[("MAYPOLE_DEVICE_WINDOW", "64K")]);
    world(3, &config, |rank| {
        let once = || {
            let child = rank.comm.duplicate().unwrap();
            let stream = Stream::new(&rank.context).unwrap();
            let child = Rank { comm: child, stream, context: rank.context.clone() };
            child.comm.attach(&child.context).unwrap();
            let arena = Arena::new(&child, 8 << 10);
            use_it(&child, &arena);
            child.settle();
        };
        (0..3).for_each(|_| once());
        let settled = || {
            let look = |_| {
                // What a child leaves, and the buffers made here, are given back when nobody is busy and somebody next
                // allocates. So there may be a few at one look; what leaks is there at all of them.
                rank.settle();
                DeviceBuffer::<u8>::new(&rank.context, 1).unwrap();
                rank.settle();
                // Looking takes a descriptor, so only one does.
                let held = (rank.comm.rank() == 0).then(Held::settled);
                rank.settle();
                held
            };
            (0..6).filter_map(look).reduce(Held::least)
        };
        let before = settled();
        (0..50).for_each(|_| once());
        let after = settled();
        before.zip(after).inspect(|(before, after)| after.compare(before));
        checked(50);
    });
}

/// The root has published and goes, with its buffers, its stream and its communicator; the readers come later.
fn leaves_early() {
    // Too short to be lent: the root would wait for its readers.
    const N: usize = 30_000;
    let left = std::sync::Barrier::new(3);
    let late = std::time::Duration::from_millis(100);
    crate::ranks::threads(3, &config(&[]), |comm| {
        let rank = Rank::new(comm);
        rank.comm.attach(&rank.context).unwrap();
        let arena = Arena::new(&rank, N);
        rank.settle();
        if rank.comm.rank() == 0 {
            // What the others read is in staging memory, which must stay.
            arena.fill(&rank.stream, 0, N, 11);
            rank.comm.on(&rank.stream).broadcast(arena.output(0, N), 0).unwrap();
            rank.comm.on(&rank.stream).synchronize().unwrap();
            left.wait();
            return;
        }
        left.wait();
        std::thread::sleep(late * rank.comm.rank() as u32);
        rank.comm.on(&rank.stream).broadcast(arena.output(0, N), 0).unwrap();
        rank.comm.on(&rank.stream).synchronize().unwrap();
        assert_eq!(arena.read(&rank.stream, 0, N), [11; N], "rank {}", rank.comm.rank());
        checked(1);
    });
}
