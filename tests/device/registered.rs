//! Lent device buffers, registered ones and those of threads: read where they lie, no byte moved that need not be, the
//! same results whoever uses which, and lenders that wait.

use std::time::Duration;

use maypole::cuda::{DeviceBuffer, DeviceSliceMut, Stream};
use maypole::{Call, Collective, DataType, ReduceOp};

use crate::arena::Arena;
use crate::runner::{On, Test, checked};
use crate::streams::Gate;
use crate::world::{Rank, a_context_for_each, config, emulator, world};

pub const TESTS: &[Test] = &[
    Test { name: "registered: read where they lie", on: On::Emulator, run: in_place },
    Test { name: "registered: threads read any buffer where it lies", on: On::Either, run: in_one_space },
    Test { name: "registered: threads move as few bytes of any memory", on: On::Emulator, run: bytes_moved },
    Test { name: "registered: results are those of ordinary memory", on: On::Either, run: results },
    Test { name: "registered: buffers come and go", on: On::Either, run: come_and_go },
    Test { name: "registered: an allocation that fails takes nothing", on: On::Either, run: fails },
];

/// Bytes enough to be lent, and less than a place, so that everything is published before the readers come.
const N: usize = 512 << 10;

/// Overwrite `buffer` by stream `aside`, on which nothing is ordered with the calls.
fn overwrite(alone: &maypole::Communicator, buffer: &DeviceBuffer<u8>, aside: &Stream, arena: &Arena) {
    arena.fill(aside, 0, N, 9);
    // SAFETY: it outlives what is queued; that others read it meanwhile is the point.
    let target = unsafe { DeviceSliceMut::<u8>::from_raw(buffer.address(), N) };
    alone.on(aside).broadcast_from(arena.input(0, N), target, 0).unwrap();
    aside.synchronize().unwrap();
}

/// Ranks with a context each lend what is registered, and copy what is not.
fn in_place() {
    a_context_for_each();
    read_late(|registered| registered);
}

/// To ranks of one context an address means the same.
fn in_one_space() {
    read_late(|_| true);
}

/// The root publishes, and its buffer is overwritten before the reader comes. From a lent buffer the reader gets
/// what was written later, so it read there; from another what was published, which is the staged copy. Which are
/// lent says `lends`, of registered buffers and others.
fn read_late(lends: impl Fn(bool) -> bool + Sync) {
    world(2, &config(&[("MAYPOLE_ALGORITHM", "one_shot")]), |rank| {
        let me = rank.comm.rank();
        let alone = rank.comm.split(Some(me as u32), 0).unwrap().expect("every rank has a color");
        alone.attach(&rank.context).unwrap();
        let aside = Stream::new(&rank.context).unwrap();
        let arena = Arena::new(rank, 2 * N);
        for registered in [true, false] {
            let lends = lends(registered);
            let mut source = match registered {
                true => rank.comm.alloc_device::<u8>(N).unwrap(),
                false => DeviceBuffer::new(&rank.context, N).unwrap(),
            };
            assert_eq!(source.is_shared(), registered);
            source.copy_from(&vec![5; N], &rank.stream).unwrap();
            rank.settle();
            let gate = (me == 1).then(|| Gate::on(&rank.stream));
            let on = rank.comm.on(&rank.stream);
            match me {
                0 => on.broadcast_from(&source, arena.output(N, N), 0).unwrap(),
                _ => on.broadcast_from(arena.input(0, 0), arena.output(N, N), 0).unwrap(),
            }
            if me == 0 {
                // Until the root's stream has come as far as it can without the reader.
                std::thread::sleep(Duration::from_millis(50));
                overwrite(&alone, &source, &aside, &arena);
                assert_eq!(rank.stream.is_idle().unwrap(), !lends, "a lender waits for its readers, others do not");
            }
            rank.comm.barrier().unwrap();
            gate.inspect(Gate::open);
            let got = arena.read(&rank.stream, N, N);
            if me == 1 {
                assert_eq!(got[N - 1], if lends { 9 } else { 5 }, "registered: {registered}");
                assert!(got.iter().all(|byte| *byte == got[0]));
            }
            checked(1);
            rank.settle();
        }
    });
}

/// Bytes that two ranks' kernels read and write, for each byte of the larger buffer: what registered memory needs, and as
/// little of any other. With a copy for each publication all-reduce would take 8, reduce-scatter 5 and the others 6.
fn bytes_moved() {
    const S: usize = 4 << 20;
    let collectives = [
        (Collective::AllReduce, 1, 5),
        (Collective::AllGather, 2, 4),
        (Collective::AllToAll, 2, 4),
        (Collective::Broadcast, 1, 4),
        (Collective::ReduceScatter, 2, 3),
    ];
    let moved = || emulator().counters().read + emulator().counters().written;
    world(2, &config(&[]), |rank| {
        let (me, stream) = (rank.comm.rank(), &rank.stream);
        for registered in [true, false] {
            let make = || match registered {
                true => rank.comm.alloc_device::<u8>(S).unwrap(),
                false => DeviceBuffer::new(&rank.context, S).unwrap(),
            };
            let (input, mut output) = (make(), make());
            for (collective, blocks, want) in collectives {
                let call = Call { collective, dtype: DataType::F32, count: S / 4 / blocks, op: ReduceOp::Sum, root: 0 };
                let block = S / blocks;
                let inputs = collective.input_blocks(me, 2, 0) * block;
                let outputs = collective.output_blocks(me, 2, 0) * block;
                rank.settle();
                let before = moved();
                rank.comm.barrier().unwrap();
                let on = rank.comm.on(stream);
                on.call(call, input.slice(..inputs), output.slice_mut(..outputs)).unwrap();
                rank.settle();
                let per_byte = (moved() - before) as f64 / S as f64;
                if me == 0 {
                    println!("{}, registered {registered}: {per_byte} bytes for each", collective.name());
                    assert_eq!(per_byte, f64::from(want), "{}, registered {registered}", collective.name());
                    checked(1);
                }
                // Nobody queues more before all have looked.
                rank.comm.barrier().unwrap();
            }
        }
    });
}

/// Every collective from and into registered memory on some ranks and ordinary memory on others.
fn results() {
    for algorithm in ["", "one_shot", "two_shot"] {
        for size in [2, 4] {
            world(size, &config(&[("MAYPOLE_ALGORITHM", algorithm)]), |rank| {
                let longest = 20_001 * size;
                let arena = Arena::new(rank, 16 * longest);
                for which in [usize::MAX, 0x5555, 0x6] {
                    // Which buffers are registered differs between the ranks.
                    let which = which.rotate_right(rank.comm.rank() as u32);
                    let mut buffers = Buffers::new(rank, longest, which);
                    rank.settle();
                    for n in [5, 8191, 20_001] {
                        compare(rank, &arena, &mut buffers, n);
                    }
                    rank.settle();
                }
            });
        }
    }
}

struct Buffers {
    input: DeviceBuffer<f32>,
    output: DeviceBuffer<f32>,
}

impl Buffers {
    fn new(rank: &Rank, len: usize, which: usize) -> Buffers {
        let make = |bit: usize| {
            // Every rank allocates, since that is collective; some then use other memory.
            let shared = rank.comm.alloc_device::<f32>(len).unwrap();
            let own = DeviceBuffer::new(&rank.context, len).unwrap();
            if which & bit != 0 { shared } else { own }
        };
        Buffers { input: make(1), output: make(2) }
    }
}

/// Element `i` of what rank `rank` gives: sums of such depend on their order.
fn element(rank: usize, call: usize, i: usize) -> f32 {
    let bits = (rank * 7919 + call * 104_729 + i).wrapping_mul(0x9e37_79b9) as u32;
    (bits as f32 / u32::MAX as f32 - 0.5) * if bits & 64 == 0 { 1.0 } else { 1e6 }
}

fn bits(elements: &[f32]) -> Vec<u32> {
    elements.iter().map(|x| x.to_bits()).collect()
}

/// Every collective on blocks of `n`, next to the same call on ordinary device memory.
fn compare(rank: &Rank, arena: &Arena, buffers: &mut Buffers, n: usize) {
    let (me, size) = (rank.comm.rank(), rank.comm.size());
    let (root, stream) = (size - 1, &rank.stream);
    for (number, collective) in Collective::ALL.into_iter().filter(|c| *c != Collective::Barrier).enumerate() {
        let call = Call { collective, dtype: DataType::F32, count: n, op: ReduceOp::Sum, root };
        let inputs = collective.input_blocks(me, size, root) * n;
        let outputs = collective.output_blocks(me, size, root) * n;
        let given: Vec<f32> = (0..inputs).map(|i| element(me, number, i)).collect();
        let mut plain = vec![0f32; outputs];
        arena.run(rank, &given, &mut plain, |on, input, output| on.call(call, input.bytes(), output.bytes())).unwrap();
        let mut whole = vec![f32::NAN; buffers.input.len()];
        whole[..inputs].copy_from_slice(&given);
        buffers.input.copy_from(&whole, stream).unwrap();
        let on = rank.comm.on(stream);
        on.call(call, buffers.input.slice(..inputs).bytes(), buffers.output.slice_mut(..outputs).bytes()).unwrap();
        // Overwritten once the call has ended: whoever still read it would read this.
        let nothing = vec![f32::NAN; buffers.input.len()];
        buffers.input.copy_from(&nothing, stream).unwrap();
        let got = buffers.output.to_vec(stream).unwrap();
        on.synchronize().unwrap();
        assert_eq!(bits(&got[..outputs]), bits(&plain), "{} of {n} on rank {me} of {size}", collective.name());
        // In place.
        let len = inputs.max(outputs);
        let mut reference: Vec<f32> = (0..len).map(|i| element(me, 100 + number, i)).collect();
        whole[..len].copy_from_slice(&reference);
        buffers.input.copy_from(&whole, stream).unwrap();
        arena.run_in_place(rank, &mut reference, |on, buffer| on.call_in_place(call, buffer.bytes())).unwrap();
        on.call_in_place(call, buffers.input.slice_mut(..len).bytes()).unwrap();
        let got = buffers.input.to_vec(stream).unwrap();
        on.synchronize().unwrap();
        let part = match collective {
            // What lies beside the result is undefined.
            Collective::ReduceScatter => me * n..(me + 1) * n,
            Collective::Reduce if me != root => 0..0,
            Collective::ExclusiveScan if me == 0 => 0..0,
            _ => 0..len,
        };
        assert_eq!(
            bits(&got[part.clone()]),
            bits(&reference[part]),
            "{} in place of {n}, rank {me}",
            collective.name()
        );
        checked(2);
    }
}

/// Allocations are given back, whoever drops his first, and their numbers used again.
fn come_and_go() {
    world(3, &config(&[]), |rank| {
        let me = rank.comm.rank();
        let arena = Arena::new(rank, 64 << 10);
        for turn in 0..300 {
            let mut buffer = rank.comm.alloc_device::<u8>(40_000).unwrap();
            if turn % 50 == 0 {
                buffer.copy_from(&vec![turn as u8; 40_000], &rank.stream).unwrap();
                let on = rank.comm.on(&rank.stream);
                match me {
                    2 => on.broadcast_from(&buffer, arena.output(0, 40_000), 2).unwrap(),
                    _ => on.broadcast_from(arena.input(0, 0), arena.output(0, 40_000), 2).unwrap(),
                }
                assert_eq!(arena.read(&rank.stream, 0, 40_000), vec![turn as u8; 40_000]);
                checked(1);
            }
        }
        rank.settle();
    });
}

/// More failures than there are numbers for allocations: the next buffer is read where it lies all the same.
fn fails() {
    world(2, &config(&[]), |rank| {
        for turn in 0..300 {
            let len = if turn % 2 == rank.comm.rank() { usize::MAX / 2 } else { 1000 };
            let error = rank.comm.alloc_device::<u8>(len).unwrap_err().to_string();
            assert!(error.contains("memory"), "turn {turn}: {error}");
        }
        assert!(rank.comm.alloc_device::<u8>(1000).unwrap().is_shared());
        checked(300);
    });
}
