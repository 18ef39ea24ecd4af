//! Every algorithm on devices, wherever staging memory lies, on one device and on several; and canonical order, whose
//! bits are the host's.

use maypole::config::TransportChoice;
use maypole::perf::operation::{NamedOp, Operation};
use maypole::{Algorithm, Call, Collective, DataType, Order};

use crate::arena::Arena;
use crate::case::{Case, calls};
use crate::hosts::spread;
use crate::runner::{On, Test, checked};
use crate::world::{Rank, SMALL, config, emulator, world};

pub const TESTS: &[Test] = &[
    Test { name: "algorithms: every one, wherever it applies", on: On::Either, run: every_algorithm },
    Test { name: "algorithms: staging in host memory", on: On::Either, run: staged_on_the_host },
    Test { name: "algorithms: devices see host memory elsewhere", on: On::Emulator, run: second_address },
    Test { name: "algorithms: several devices", on: On::Emulator, run: several_devices },
    Test { name: "algorithms: devices that do not reach each other", on: On::Emulator, run: unreachable_devices },
    Test { name: "algorithms: canonical order gives the host's bits", on: On::Either, run: canonical },
    Test { name: "algorithms: any bits, any operation, by two ranks", on: On::Either, run: any_bits },
];

/// Sums and moves of f32.
fn plain() -> impl Iterator<Item = (Collective, Option<NamedOp>)> {
    calls(DataType::F32).filter(|(_, op)| op.is_none_or(|op| op == NamedOp::Sum))
}

/// Some of everything that `algorithm` has.
fn some(rank: &Rank, arena: &Arena, has: impl Fn(Collective) -> bool) {
    let size = rank.comm.size();
    for (collective, op) in plain().filter(|(collective, _)| has(*collective)) {
        let roots = if collective.is_rooted() { size } else { 1 };
        for root in 0..roots {
            for count in [0, 1, 19, 2500] {
                let case = Case { root, ..Case::new(collective, DataType::F32, op, count) };
                case.check(rank, arena);
                case.in_place().check(rank, arena);
            }
        }
        // What is combined only at the end: averages, and inputs that are scaled first.
        for op in [NamedOp::Avg, NamedOp::PreMulSum] {
            if op_applies(collective, op) {
                let case = Case::new(collective, DataType::Bf16, Some(op), 333);
                case.check(rank, arena);
                case.in_place().check(rank, arena);
            }
        }
    }
    if has(Collective::Barrier) {
        rank.comm.on(&rank.stream).barrier().unwrap();
    }
    rank.settle();
}

fn op_applies(collective: Collective, op: NamedOp) -> bool {
    collective.reduces() && Operation::Collective(collective).takes(op, DataType::Bf16)
}

fn every_algorithm() {
    for size in [2, 3, 5, 8] {
        for algorithm in Algorithm::ALL {
            let mut config = config(&SMALL);
            config.set("MAYPOLE_ALGORITHM", algorithm.name()).unwrap();
            world(size, &config, |rank| {
                let arena = Arena::new(rank, 256 << 10);
                rank.settle();
                some(rank, &arena, |collective| algorithm.supports(collective));
            });
        }
    }
}

fn staged_on_the_host() {
    for algorithm in ["", "ring,chain,pairwise,binomial"] {
        let mut config = config(&SMALL);
        config.set("MAYPOLE_DEVICE_STAGING", "host").unwrap();
        config.set("MAYPOLE_ALGORITHM", algorithm).unwrap();
        world(3, &config, |rank| {
            let arena = Arena::new(rank, 256 << 10);
            rank.settle();
            some(rank, &arena, |_| true);
        });
    }
}

/// Words, staging in host memory and links to other hosts are named to devices by the addresses that those know: with the
/// switch no stream takes another for a word, and no kernel for data.
fn second_address() {
    emulator().set("SECOND_ADDRESS", "1");
    for staging in ["auto", "host"] {
        let mut config = config(&SMALL);
        config.set("MAYPOLE_DEVICE_STAGING", staging).unwrap();
        world(3, &config, |rank| {
            let arena = Arena::new(rank, 256 << 10);
            rank.settle();
            some(rank, &arena, |_| true);
        });
    }
    spread(&["a", "a", "b"], &config(&SMALL), |rank| {
        let arena = Arena::new(rank, 256 << 10);
        rank.settle();
        some(rank, &arena, |collective| collective == Collective::AllReduce);
    });
}

fn several_devices() {
    emulator().set("DEVICES", "3");
    for algorithm in ["", "ring,chain,pairwise,binomial"] {
        let mut config = config(&SMALL);
        config.set("MAYPOLE_ALGORITHM", algorithm).unwrap();
        for size in [3, 4] {
            world(size, &config, |rank| {
                assert_eq!(rank.context.ordinal(), rank.comm.rank() % 3);
                let arena = Arena::new(rank, 256 << 10);
                rank.settle();
                some(rank, &arena, |_| true);
            });
        }
    }
}

fn unreachable_devices() {
    emulator().set("DEVICES", "2");
    emulator().set("PEER_ACCESS", "off");
    world(3, &config(&SMALL), |rank| {
        let arena = Arena::new(rank, 256 << 10);
        rank.settle();
        some(rank, &arena, |_| true);
    });
    // Asked for by name it is an error, on every rank, and the communicator goes on with host buffers.
    let mut config = config(&SMALL);
    config.set("MAYPOLE_DEVICE_STAGING", "device").unwrap();
    crate::ranks::threads(3, &config, |comm| {
        let rank = Rank::new(comm);
        let error = rank.comm.attach(&rank.context).unwrap_err().to_string();
        assert!(error.contains("reach") || error.contains("peer"), "{error}");
        assert!(error.contains("MAYPOLE_DEVICE_STAGING"), "it does not say what to do: {error}");
        let mut sum = [1u32];
        rank.comm.all_reduce_in_place(&mut sum, maypole::ReduceOp::Sum).unwrap();
        assert_eq!(sum, [3]);
        checked(1);
    });
}

/// `bytes` random bytes, other ones on each rank.
fn random(rank: usize, bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (rank as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95);
    let word = |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_ne_bytes()
    };
    let mut words: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(word).collect();
    words.truncate(bytes);
    words
}

/// The same call on host and device memory, bits compared. Values are random bits: of every magnitude, and NaNs.
fn same_bits(rank: &Rank, arena: &Arena, collective: Collective, dtype: DataType, op: NamedOp, count: usize) {
    let (me, size) = (rank.comm.rank(), rank.comm.size());
    let call = Call { collective, dtype, count, op: op.reduce_op(me, dtype), root: size - 1 };
    let inputs = collective.input_blocks(me, size, call.root) * count * dtype.size();
    let outputs = collective.output_blocks(me, size, call.root) * count * dtype.size();
    let input = random(me, inputs, count as u64);
    let (mut host, mut device) = (vec![0u8; outputs], vec![0u8; outputs]);
    rank.comm.call(call, &input, &mut host).unwrap();
    arena.run(rank, &input, &mut device, |on, input, output| on.call(call, input, output)).unwrap();
    let wrong = host.chunks(dtype.size()).zip(device.chunks(dtype.size())).position(|(host, device)| host != device);
    if let Some(i) = wrong {
        let at = i * dtype.size()..(i + 1) * dtype.size();
        panic!(
            "{} of {dtype} by {}, rank {me} of {size}: element {i} of {count} is {:02x?} on the device, {:02x?} on the host",
            collective.name(),
            op.name(),
            &device[at.clone()],
            &host[at]
        );
    }
    checked(1);
}

fn canonical() {
    for algorithm in ["", "all_reduce=direct,scan=chain,exclusive_scan=chain"] {
        for size in [2, 3, 5, 8] {
            let mut config = config(&SMALL);
            config.transport = TransportChoice::Auto;
            config.order = Order::Canonical;
            config.set("MAYPOLE_ALGORITHM", algorithm).unwrap();
            world(size, &config, |rank| {
                let arena = Arena::new(rank, 256 << 10);
                for dtype in DataType::ALL {
                    for (collective, op) in calls(dtype) {
                        let Some(op) = op else { continue };
                        for count in [33, 900] {
                            same_bits(rank, &arena, collective, dtype, op, count);
                        }
                    }
                }
                rank.settle();
            });
        }
    }
}

/// With two ranks there is one order only.
fn any_bits() {
    world(2, &config(&[]), |rank| {
        let arena = Arena::new(rank, 1 << 20);
        for dtype in DataType::ALL {
            for (collective, op) in calls(dtype) {
                let Some(op) = op else { continue };
                for count in [1, 5000] {
                    same_bits(rank, &arena, collective, dtype, op, count);
                }
            }
        }
        rank.settle();
    });
}
