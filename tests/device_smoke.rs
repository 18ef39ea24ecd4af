//! Collectives on device buffers do what they say, in the smallest cases: ranks as threads, on an emulated device.

use std::sync::Arc;

use maypole::cuda::{Context, DeviceBuffer, Stream};
use maypole::{Communicator, Config, ReduceOp};

/// Run `each` on every rank of a world of `size` threads, all on device 0.
fn world(size: usize, config: Config, each: impl Fn(&Communicator, &Arc<Context>, &Stream) + Sync) {
    maypole_cuda_emulator::testing::load();
    let ranks = Communicator::threads_with(size, config).unwrap();
    std::thread::scope(|s| {
        for comm in ranks {
            s.spawn(|| {
                let comm = comm;
                let context = Context::primary(0).unwrap();
                let stream = Stream::new(&context).unwrap();
                each(&comm, &context, &stream);
                comm.on(&stream).synchronize().unwrap();
            });
        }
    });
}

/// A value that tells rank, element and call.
fn value(rank: usize, i: usize) -> f32 {
    (rank * 7 + i % 101 + 1) as f32
}

fn input(rank: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| value(rank, i)).collect()
}

/// Lengths that are empty, ragged, of one piece, of several rounds.
const COUNTS: [usize; 6] = [0, 1, 5, 1000, 70_001, 300_000];

#[test]
fn all_reduce_sums() {
    for size in 1..=5 {
        world(size, Config::default(), |comm, context, stream| {
            for count in COUNTS {
                let sum: Vec<f32> = (0..count).map(|i| (0..size).map(|r| value(r, i)).sum()).collect();
                let from = DeviceBuffer::from_slice(context, &input(comm.rank(), count)).unwrap();
                let mut to = DeviceBuffer::new(context, count).unwrap();
                comm.on(stream).all_reduce(&from, &mut to, ReduceOp::Sum).unwrap();
                assert!(to.to_vec(stream).unwrap() == sum, "{size} ranks, {count} elements");
                let mut both = DeviceBuffer::from_slice(context, &input(comm.rank(), count)).unwrap();
                comm.on(stream).all_reduce_in_place(&mut both, ReduceOp::Avg).unwrap();
                let mean: Vec<f32> = sum.iter().map(|x| x / size as f32).collect();
                assert!(both.to_vec(stream).unwrap() == mean, "{size} ranks, {count} elements, in place");
            }
        });
    }
}
