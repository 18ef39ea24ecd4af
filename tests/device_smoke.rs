//! Collectives on device buffers do what they say, in the smallest cases: ranks as threads, on an emulated device.

use std::sync::Arc;

use maypole::cuda::{Context, DeviceBuffer, Stream};
use maypole::{Algorithm, Blocks, Call, Collective, Communicator, Config, DataType, ReduceOp};

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

/// Call `call` on the device and on the host with the same input, apart and in place, and compare.
fn compare(comm: &Communicator, context: &Arc<Context>, stream: &Stream, call: Call) {
    let (rank, size) = (comm.rank(), comm.size());
    let blocks =
        [call.collective.input_blocks(rank, size, call.root), call.collective.output_blocks(rank, size, call.root)];
    let bytes = blocks.map(|blocks| blocks * call.count * call.dtype.size());
    let made = |bytes: usize| -> Vec<u8> { (0..bytes).map(|i| (i * 31 + rank * 17) as u8 % 97).collect() };
    let what = || format!("{} of {} on rank {rank} of {size}", call.collective.name(), call.count);

    let (input, mut expected) = (made(bytes[0]), vec![0; bytes[1]]);
    comm.call(call, &input, &mut expected).unwrap();
    let from = DeviceBuffer::from_slice(context, &input).unwrap();
    let mut to = DeviceBuffer::<u8>::new(context, bytes[1]).unwrap();
    comm.on(stream).call(call, (&from).into(), (&mut to).into()).unwrap();
    assert!(to.to_vec(stream).unwrap() == expected, "{}", what());

    let input = made(bytes[0].max(bytes[1]));
    let mut expected = input.clone();
    comm.call_in_place(call, &mut expected).unwrap();
    let mut both = DeviceBuffer::from_slice(context, &input).unwrap();
    comm.on(stream).call_in_place(call, (&mut both).into()).unwrap();
    let got = both.to_vec(stream).unwrap();
    // Blocks that are none of this rank's are undefined after a reduce-scatter.
    let own = match call.collective {
        Collective::ReduceScatter => rank * call.count * call.dtype.size()..(rank + 1) * call.count * call.dtype.size(),
        _ => 0..got.len(),
    };
    assert!(got[own.clone()] == expected[own], "{}, in place", what());
}

#[test]
fn every_algorithm_gives_what_it_gives_on_the_host() {
    for algorithm in Algorithm::ALL {
        for size in [2, 3, 5] {
            let mut config = Config::default();
            // Small, so that there are several rounds, slots and laps.
            (config.algorithm, config.device_window, config.device_fifo) =
                (algorithm.name().into(), 16 << 10, 16 << 10);
            world(size, config, |comm, context, stream| {
                for collective in Collective::ALL.into_iter().filter(|c| algorithm.supports(*c)) {
                    for (count, op) in [(0, ReduceOp::Sum), (3, ReduceOp::Avg), (9000, ReduceOp::Sum)] {
                        let op = if collective.is_scan() { ReduceOp::PreMulSum(3.0) } else { op };
                        let root = if collective.is_rooted() { size - 1 } else { 0 };
                        compare(comm, context, stream, Call { collective, dtype: DataType::I32, count, op, root });
                    }
                }
            });
        }
    }
}

#[test]
fn the_tuners_choice_gives_what_the_host_gives() {
    for size in [1, 2, 4] {
        world(size, Config::default(), |comm, context, stream| {
            for collective in Collective::ALL {
                for count in [1, 20_000] {
                    let op = ReduceOp::Max;
                    compare(comm, context, stream, Call { collective, dtype: DataType::I64, count, op, root: 0 });
                }
            }
        });
    }
}

#[test]
fn blocks_may_have_counts_of_their_own() {
    world(3, Config::default(), |comm, context, stream| {
        let (rank, size) = (comm.rank(), comm.size());
        let counts = [5000, 0, 70_000];
        let all: Vec<i32> = (0..75_000).map(|i| i * 3 % 1009).collect();
        let mine = &all[counts[..rank].iter().sum::<usize>()..][..counts[rank]];
        let from = DeviceBuffer::from_slice(context, mine).unwrap();
        let mut to = DeviceBuffer::new(context, all.len()).unwrap();
        comm.on(stream).all_gather_v(&from, &mut to, &counts).unwrap();
        assert!(to.to_vec(stream).unwrap() == all);

        let mut sum = DeviceBuffer::new(context, counts[rank]).unwrap();
        comm.on(stream).reduce_scatter_v(&to, &counts, &mut sum, ReduceOp::Sum).unwrap();
        assert!(sum.to_vec(stream).unwrap().iter().zip(mine).all(|(got, one)| *got == one * size as i32));

        let mut back = DeviceBuffer::new(context, counts[rank]).unwrap();
        let none: &[usize] = &[];
        let (everything, blocks) = if rank == 1 { (to.slice(..), &counts[..]) } else { (to.slice(0..0), none) };
        comm.on(stream).scatter_v(everything, Blocks::from(blocks), &mut back, 1).unwrap();
        assert!(back.to_vec(stream).unwrap() == mine);

        // Rank r sends s + 1 elements to rank s, all of them r.
        let sent: Vec<usize> = (1..=size).collect();
        let received = vec![rank + 1; size];
        let from = DeviceBuffer::from_slice(context, &vec![rank as i32; sent.iter().sum()]).unwrap();
        let mut to = DeviceBuffer::new(context, received.iter().sum()).unwrap();
        comm.on(stream).all_to_all_v(&from, &sent, &mut to, &received).unwrap();
        let expected: Vec<i32> = (0..size as i32).flat_map(|r| vec![r; rank + 1]).collect();
        assert_eq!(to.to_vec(stream).unwrap(), expected);
    });
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_queued() {
    world(2, Config::default(), |comm, context, stream| {
        comm.attach(context).unwrap();
        let from = DeviceBuffer::<f32>::new(context, 10).unwrap();
        let mut to = DeviceBuffer::<f32>::new(context, 9).unwrap();
        let error = comm.on(stream).all_reduce(&from, &mut to, ReduceOp::Sum).unwrap_err().to_string();
        assert!(error.contains("output has 36 bytes"), "{error}");
        let host = [0.0f32; 10];
        // SAFETY: it is refused, so nothing reads it.
        let host = unsafe { maypole::cuda::DeviceSlice::from_raw(host.as_ptr() as u64, 10) };
        let mut to = DeviceBuffer::<f32>::new(context, 10).unwrap();
        let error = comm.on(stream).all_reduce(host, &mut to, ReduceOp::Sum).unwrap_err().to_string();
        assert!(error.contains("input") && error.contains("is not device memory"), "{error}");
        // The communicator is as good as before.
        comm.on(stream).all_reduce(&from, &mut to, ReduceOp::Sum).unwrap();
        assert_eq!(to.to_vec(stream).unwrap(), [0.0; 10]);
    });
}

#[test]
fn registered_buffers_are_read_where_they_lie() {
    for size in [2, 4] {
        world(size, Config::default(), |comm, context, stream| {
            comm.attach(context).unwrap();
            let rank = comm.rank();
            let count = 40_000;
            for _ in 0..3 {
                let mut from = comm.alloc_device::<i32>(count).unwrap();
                let mut to = comm.alloc_device::<i32>(count * size).unwrap();
                assert!(from.is_shared() && to.is_shared());
                from.copy_from(&(0..count as i32).map(|i| i + rank as i32).collect::<Vec<_>>(), stream).unwrap();
                // Mixed with ordinary memory, as one likes.
                let mut ordinary = DeviceBuffer::<i32>::new(context, count).unwrap();
                if rank == 0 {
                    comm.on(stream).all_reduce(&from, &mut ordinary, ReduceOp::Sum).unwrap();
                } else {
                    comm.on(stream).all_reduce(&from, to.slice_mut(..count), ReduceOp::Sum).unwrap();
                    assert_eq!(to.to_vec(stream).unwrap()[1], (0..size as i32).map(|r| 1 + r).sum::<i32>());
                }
                comm.on(stream).all_gather(&from, &mut to).unwrap();
                // What the others read of it they have read when the call has ended.
                from.copy_from(&vec![-1; count], stream).unwrap();
                let all: Vec<i32> = (0..size as i32).flat_map(|r| (0..count as i32).map(move |i| i + r)).collect();
                assert!(to.to_vec(stream).unwrap() == all);
                comm.on(stream).all_reduce_in_place(&mut to, ReduceOp::Max).unwrap();
                assert!(to.to_vec(stream).unwrap() == all);
                let whole = &mut to;
                comm.on(stream).reduce_in_place(whole, ReduceOp::Sum, size - 1).unwrap();
            }
        });
    }
}

#[test]
fn a_call_finds_out_where_its_buffers_lie() {
    world(2, Config::default(), |comm, context, stream| {
        let call =
            Call { collective: Collective::AllReduce, dtype: DataType::F32, count: 4, op: ReduceOp::Sum, root: 0 };
        let mut device = DeviceBuffer::from_slice(context, &[1.0f32; 4]).unwrap();
        let at = device.address() as usize;
        let mut host = [1.0f32; 4];
        // SAFETY: the buffers are as long as the call says, and nobody touches them before the stream has passed.
        unsafe {
            let (input, output) = (std::ptr::without_provenance(at), std::ptr::without_provenance_mut(at));
            comm.call_at(call, input, output, stream).unwrap();
            let at = host.as_mut_ptr().cast::<u8>();
            comm.call_at(call, at, at, stream).unwrap();
            let mixed = comm.call_at(call, at, output, stream).unwrap_err().to_string();
            assert!(mixed.contains("the other is not"), "{mixed}");
        }
        assert_eq!(host, [2.0; 4]);
        device.copy_from(&device.to_vec(stream).unwrap(), stream).unwrap();
        assert_eq!(device.to_vec(stream).unwrap(), [2.0; 4]);
    });
}

#[test]
fn streams_and_communicators_of_any_number_serve() {
    world(4, Config::default(), |comm, context, stream| {
        let other = Stream::new(context).unwrap();
        let halves = comm.split(Some((comm.rank() % 2) as u32), 0).unwrap().expect("every rank has a half");
        let double = comm.duplicate().unwrap();
        let one = DeviceBuffer::from_slice(context, &[1i32; 100]).unwrap();
        let mut sums = [(); 4].map(|_| DeviceBuffer::<i32>::new(context, 100).unwrap());
        let [all, half, last, own] = &mut sums;
        for turn in 0..20 {
            // On another stream than before, in the order of the calls all the same.
            let (first, second) = if turn % 2 == 0 { (stream, &other) } else { (&other, stream) };
            comm.on(first).all_reduce(&one, &mut *all, ReduceOp::Sum).unwrap();
            comm.on(second).all_reduce(&*all, &mut *last, ReduceOp::Sum).unwrap();
            halves.on(first).all_reduce(&one, &mut *half, ReduceOp::Sum).unwrap();
            double.on(second).all_reduce(&one, &mut *own, ReduceOp::Max).unwrap();
        }
        for (comm, stream) in [(comm, stream), (comm, &other), (&halves, &other), (&double, stream)] {
            comm.on(stream).synchronize().unwrap();
        }
        let got = sums.map(|sum| sum.to_vec(stream).unwrap()[99]);
        assert_eq!(got, [4, 2, 16, 1]);
        // In host memory, between two calls on a stream.
        let mut host = [comm.rank() as i32];
        comm.all_reduce_in_place(&mut host, ReduceOp::Max).unwrap();
        assert_eq!(host, [3]);
        comm.on(stream).barrier().unwrap();
    });
}
