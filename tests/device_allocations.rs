//! Queueing an operation on a stream allocates no host memory once it has been queued before: a counting allocator says
//! so, for the collectives that move small messages.
//!
//! One test in a file of its own, since it counts what the whole process allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Barrier;

use maypole::cuda::{Context, DeviceBuffer, Stream};
use maypole::{Communicator, ReduceOp};

thread_local! {
    /// Whether this thread's allocations count, and how many there were.
    static COUNTED: (Cell<bool>, Cell<u64>) = const { (Cell::new(false), Cell::new(0)) };
}

struct Counting;

fn count() {
    COUNTED.with(|(counts, count)| count.set(count.get() + counts.get() as u64));
}

// SAFETY: everything is passed on to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn queueing_allocates_nothing() {
    maypole_cuda_emulator::testing::load();
    const RANKS: usize = 3;
    let together = &Barrier::new(RANKS);
    std::thread::scope(|s| {
        for comm in Communicator::threads(RANKS).unwrap() {
            s.spawn(move || {
                let context = Context::primary(0).unwrap();
                let stream = Stream::new(&context).unwrap();
                let from = DeviceBuffer::from_slice(&context, &[1.0f32; 256]).unwrap();
                let mut to = DeviceBuffer::<f32>::new(&context, 256).unwrap();
                let mut all = DeviceBuffer::<f32>::new(&context, 256 * RANKS).unwrap();
                let mut queue = |times| {
                    for _ in 0..times {
                        let on = comm.on(&stream);
                        on.all_reduce(&from, &mut to, ReduceOp::Sum).unwrap();
                        on.all_reduce_in_place(&mut to, ReduceOp::Avg).unwrap();
                        on.reduce_scatter(&all, &mut to, ReduceOp::PreMulSum(0.5)).unwrap();
                        on.broadcast(&mut to, 1).unwrap();
                        on.all_gather(&from, &mut all).unwrap();
                        on.all_gather_v(&from, &mut all, &[256; RANKS]).unwrap();
                        on.barrier().unwrap();
                    }
                };
                // More than are remembered, so that all that grows has grown.
                queue(100);
                comm.on(&stream).synchronize().unwrap();
                together.wait();
                COUNTED.with(|(counts, _)| counts.set(true));
                queue(20);
                let count = COUNTED.with(|(counts, count)| {
                    counts.set(false);
                    count.get()
                });
                comm.on(&stream).synchronize().unwrap();
                assert_eq!(count, 0, "allocations on rank {}", comm.rank());
            });
        }
    });
}
