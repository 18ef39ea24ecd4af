//! Queueing an operation on a stream allocates no host memory once it has been queued before: a counting allocator says
//! so, for the collectives that move small messages.
//!
//! One test in a file of its own, since it counts what the whole process allocates.

mod counting;

use std::sync::Barrier;

use maypole::cuda::{Context, DeviceBuffer, Stream};
use maypole::{Communicator, ReduceOp};

#[test]
fn queueing_allocates_nothing() {
    maypole_cuda_emulator::testing::load();
    const RANKS: usize = 3;
    let together = &Barrier::new(RANKS);
    std::thread::scope(|s| {
        let mut ranks = Vec::new();
        for comm in Communicator::threads(RANKS).unwrap() {
            ranks.push(s.spawn(move || {
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
                counting::start();
                queue(20);
                if together.wait().is_leader() {
                    counting::stop();
                }
                together.wait();
                comm.on(&stream).synchronize().unwrap();
                counting::this_thread()
            }));
        }
        let queued: Vec<u64> = ranks.into_iter().map(|rank| rank.join().expect("a rank panicked")).collect();
        let counted = counting::counted();
        let by_ranks: Vec<_> = counted.iter().filter(|(thread, _)| queued.contains(thread)).collect();
        assert!(by_ranks.is_empty(), "threads {queued:?} queue, and allocated: {by_ranks:?}");
    });
    counting::check();
}
