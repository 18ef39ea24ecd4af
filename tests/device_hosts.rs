//! Device buffers between hosts: worlds in which some ranks share memory and others are reached by TCP, with all data on
//! (emulated) devices. Every collective by every algorithm that can, at sizes around slots and slices, gives what the
//! same call gives on host memory; hierarchical ones on uneven hosts too. Ranks are threads that claim to be on different
//! hosts.

use std::time::Duration;

use maypole::cuda::{Context, DeviceBuffer, Stream};
use maypole::{Algorithm, Call, Collective, Communicator, Config, DataType, ReduceOp, UniqueId};

/// Run `body` for each rank of a world whose rank r claims to be on host `hosts[r]`.
fn world_with(mut config: Config, hosts: &[&str], body: impl Fn(&Communicator, &Stream) + Sync) {
    maypole_cuda_emulator::testing::load();
    config.timeout = Duration::from_secs(30);
    let id = UniqueId::create(&config).unwrap();
    std::thread::scope(|s| {
        for (rank, host) in hosts.iter().enumerate() {
            let mut config = config.clone();
            config.host = Some(host.to_string());
            let body = &body;
            s.spawn(move || {
                let comm = Communicator::from_id(&id, rank, hosts.len(), config).unwrap();
                let stream = Stream::new(&Context::primary(0).unwrap()).unwrap();
                body(&comm, &stream);
            });
        }
    });
}

fn world(hosts: &[&str], algorithm: Option<Algorithm>, body: impl Fn(&Communicator, &Stream) + Sync) {
    world_with(config(algorithm), hosts, body);
}

/// Links with small slots, so that messages take several, and rings of slots go round.
fn config(algorithm: Option<Algorithm>) -> Config {
    let mut config = Config::default();
    config.set("MAYPOLE_DEVICE_FIFO", "64K").unwrap();
    if let Some(algorithm) = algorithm {
        config.set("MAYPOLE_ALGORITHM", algorithm.name()).unwrap();
    }
    config
}

/// Bytes of `blocks` blocks of `count` small whole numbers, as f32: their sums are exact in any order.
fn numbers(rank: usize, blocks: usize, count: usize) -> Vec<u8> {
    (0..blocks * count).flat_map(|i| (((rank * 31 + i * 7) % 1009) as f32).to_ne_bytes()).collect()
}

/// Every collective once on device buffers, against the same call on host memory.
fn check(comm: &Communicator, stream: &Stream, algorithm: Option<Algorithm>, counts: &[usize]) {
    // One pair of buffers for all: giving device memory back may wait for the streams of all ranks.
    let most = 4 * comm.size() * counts.iter().max().unwrap();
    let mut buffers = [(); 2].map(|()| DeviceBuffer::<u8>::new(stream.context(), most).unwrap());
    for count in counts {
        check_count(comm, stream, algorithm, *count, &mut buffers);
    }
    comm.barrier().unwrap();
}

fn check_count(
    comm: &Communicator,
    stream: &Stream,
    algorithm: Option<Algorithm>,
    count: usize,
    [source, result]: &mut [DeviceBuffer<u8>; 2],
) {
    let (me, size) = (comm.rank(), comm.size());
    for collective in Collective::ALL.into_iter().filter(|c| algorithm.is_none_or(|a| a.supports(*c))) {
        let roots = if collective.is_rooted() { vec![0, size - 1] } else { vec![0] };
        for root in roots {
            let call = Call { collective, dtype: DataType::F32, count, op: ReduceOp::Sum, root };
            let name = algorithm.map_or("tuner", Algorithm::name);
            let what = format!("{} with {name}, {count} elements, root {root}, rank {me} of {size}", collective.name());
            let input = numbers(me, collective.input_blocks(me, size, root), count);
            let bytes = collective.output_blocks(me, size, root) * count * 4;
            // What a rank's output is where nothing is to be written stays as it was, on both sides.
            let mut expected = vec![0xab; bytes];
            comm.call(call, &input, &mut expected).unwrap_or_else(|e| panic!("{what}, on host memory: {e}"));
            let on = comm.on(stream);
            source.copy_from_at(0, &input, stream).unwrap();
            result.copy_from_at(0, &vec![0xab; bytes], stream).unwrap();
            let (from, to) = (source.slice(..input.len()), result.slice_mut(..bytes));
            on.call(call, from, to).unwrap_or_else(|e| panic!("{what}: {e}"));
            on.synchronize().unwrap_or_else(|e| panic!("{what}: {e}"));
            let mut got = vec![0; bytes];
            result.copy_to_at(0, &mut got, stream).unwrap();
            same(&got, &expected, &what);
            let mut kept = vec![0; input.len()];
            source.copy_to_at(0, &mut kept, stream).unwrap();
            same(&kept, &input, &format!("{what}: the input"));
        }
    }
}

/// Both are the same bytes.
fn same(got: &[u8], expected: &[u8], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let wrong = got.iter().zip(expected).position(|(a, b)| a != b);
    assert!(wrong.is_none(), "{what}: byte {wrong:?} of {} is wrong", got.len());
}

/// Two near and one far, ranks of a host that are not neighbours, and nobody near.
const LAYOUTS: [&[&str]; 3] = [&["a", "a", "b"], &["a", "b", "a", "b", "c"], &["a", "b", "c"]];

#[test]
fn flat_algorithms_give_what_they_give_on_host_memory() {
    for algorithm in Algorithm::ALL.into_iter().filter(|a| !a.one_sided() && !a.minds_hosts()) {
        for hosts in LAYOUTS {
            world(hosts, Some(algorithm), |comm, stream| {
                check(comm, stream, Some(algorithm), &[0, 1, 4099, 30_000]);
            });
        }
    }
}

/// Evenly on two hosts, three and one, four and two and one, dealt round, and in no order.
const UNEVEN: [&[&str]; 5] = [
    &["a", "a", "b", "b"],
    &["a", "a", "a", "b"],
    &["a", "a", "a", "a", "b", "b", "c"],
    &["a", "b", "a", "b", "a", "b"],
    &["b", "a", "a", "b", "c", "a", "a"],
];

/// Peer copies inside hosts and the network between them, in one schedule.
#[test]
fn hierarchies_give_what_they_give_on_host_memory() {
    for hosts in UNEVEN {
        for algorithm in [Some(Algorithm::Hierarchical), Some(Algorithm::Leaders), None] {
            world(hosts, algorithm, |comm, stream| {
                check(comm, stream, algorithm, &[1, 700, 40_001]);
            });
        }
    }
}
