//! Couriers between ranks that claim to be on different hosts: real connections, jury and verdicts, and a device that is
//! a thread with host memory.

mod carrying;
mod failures;
mod overlap;

use std::cell::UnsafeCell;
use std::sync::atomic::AtomicU32;

use maypole_collectives::schedule::Collective;
use maypole_cuda::kernels::Header;
use maypole_cuda::peer::HEADER;

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

    /// Empty slot `number` into `data`, checking its header. `false`: there is a verdict.
    fn take(&self, number: u32, operation: &Fingerprint, data: &mut [u8], watch: &crate::watch::Watch) -> bool {
        if !Slots::wait(&self.filled, number.wrapping_add(1), watch) {
            return false;
        }
        // SAFETY: the slot is the device's.
        unsafe {
            assert_eq!(self.slot(number).cast::<Header>().read(), ring::header(operation), "slot {number}");
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
    trouble: Arc<AtomicU32>,
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
                let court = comm.inner.court().unwrap();
                let trouble = Arc::new(AtomicU32::new(0));
                // SAFETY: the word lies where the handle says.
                let flag = unsafe { Flag::new(&*trouble, trouble.clone()) };
                let courier = Courier::start(routes, court.clone(), flag).unwrap();
                body(Rank { comm, courier, court, trouble });
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
