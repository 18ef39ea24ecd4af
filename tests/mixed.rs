//! Worlds in which some ranks share memory and others are reached by TCP: every algorithm that can, at sizes around
//! slices and credits, gives what a plain loop gives; hierarchical ones on uneven hosts too. Ranks are threads that claim
//! to be on different hosts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use maypole::config::TransportChoice;
use maypole::{Algorithm, Call, Collective, Communicator, Config, DataType, ReduceOp, UniqueId};

/// Run `body` for each rank of a world whose rank r claims to be on host `hosts[r]`.
fn world(hosts: &[&str], algorithm: Option<Algorithm>, body: impl Fn(&Communicator) + Sync) {
    world_with(Config::default(), hosts, algorithm, body);
}

fn world_with(mut config: Config, hosts: &[&str], algorithm: Option<Algorithm>, body: impl Fn(&Communicator) + Sync) {
    config.timeout = std::time::Duration::from_secs(30);
    config.late = std::time::Duration::ZERO;
    if let Some(algorithm) = algorithm {
        config.set("MAYPOLE_ALGORITHM", algorithm.name()).unwrap();
    }
    let id = UniqueId::create(&config).unwrap();
    std::thread::scope(|s| {
        for (rank, host) in hosts.iter().enumerate() {
            let mut config = config.clone();
            config.host = Some(host.to_string());
            let body = &body;
            s.spawn(move || body(&Communicator::from_id(&id, rank, hosts.len(), config).unwrap()));
        }
    });
}

fn value(rank: usize, i: usize) -> f64 {
    ((rank * 31 + i * 7) % 1009) as f64
}

/// Every collective once; all ranks share the rules by which inputs are made.
fn check(comm: &Communicator, algorithm: Option<Algorithm>, count: usize) {
    let (me, size) = (comm.rank(), comm.size());
    let what = |c: Collective| {
        let name = algorithm.map_or("tuner", Algorithm::name);
        format!("{} with {name}, {count} elements, rank {me} of {size}", c.name())
    };
    let has = |c: Collective| algorithm.is_none_or(|a| a.supports(c));
    let input: Vec<f64> = (0..count * size).map(|i| value(me, i)).collect();
    let sum = |i: usize| (0..size).map(|r| value(r, i)).sum::<f64>();
    let equal = |c: Collective, got: &[f64], want: &dyn Fn(usize) -> f64| {
        let wrong = got.iter().enumerate().find(|(i, x)| **x != want(*i));
        assert_eq!(wrong, None, "{}: first wrong element", what(c));
    };
    if has(Collective::AllReduce) {
        let mut output = vec![-1.0; count];
        comm.all_reduce(&input[..count], &mut output, ReduceOp::Sum).unwrap();
        equal(Collective::AllReduce, &output, &sum);
        let mut buffer = input[..count].to_vec();
        comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
        equal(Collective::AllReduce, &buffer, &sum);
    }
    if has(Collective::ReduceScatter) {
        let mut output = vec![-1.0; count];
        comm.reduce_scatter(&input, &mut output, ReduceOp::Sum).unwrap();
        equal(Collective::ReduceScatter, &output, &|i| sum(me * count + i));
        let mut buffer = input.clone();
        comm.reduce_scatter_in_place(&mut buffer, ReduceOp::Sum).unwrap();
        equal(Collective::ReduceScatter, &buffer[me * count..][..count], &|i| sum(me * count + i));
    }
    if has(Collective::AllGather) {
        let mut output = vec![-1.0; count * size];
        comm.all_gather(&input[..count], &mut output).unwrap();
        equal(Collective::AllGather, &output, &|i| value(i / count, i % count));
        let mut buffer = vec![-1.0; count * size];
        buffer[me * count..][..count].copy_from_slice(&input[..count]);
        comm.all_gather_in_place(&mut buffer).unwrap();
        equal(Collective::AllGather, &buffer, &|i| value(i / count, i % count));
    }
    if has(Collective::AllToAll) {
        let mut output = vec![-1.0; count * size];
        comm.all_to_all(&input, &mut output).unwrap();
        equal(Collective::AllToAll, &output, &|i| value(i / count, me * count + i % count));
    }
    // Every root, but where that would take long.
    let step = if count > 100_000 { size - 1 } else { 1 };
    for root in (0..size).step_by(step) {
        if has(Collective::Broadcast) {
            let mut buffer = input[..count].to_vec();
            comm.broadcast(&mut buffer, root).unwrap();
            equal(Collective::Broadcast, &buffer, &|i| value(root, i));
        }
        if has(Collective::Reduce) {
            let mut output = vec![-1.0; if me == root { count } else { 0 }];
            comm.reduce(&input[..count], &mut output, ReduceOp::Sum, root).unwrap();
            equal(Collective::Reduce, &output, &sum);
            let mut buffer = input[..count].to_vec();
            comm.reduce_in_place(&mut buffer, ReduceOp::Sum, root).unwrap();
            if me == root {
                equal(Collective::Reduce, &buffer, &sum);
            }
        }
        if has(Collective::Gather) {
            let mut output = vec![-1.0; if me == root { count * size } else { 0 }];
            comm.gather(&input[..count], &mut output, root).unwrap();
            equal(Collective::Gather, &output, &|i| value(i / count, i % count));
        }
        if has(Collective::Scatter) {
            let mut output = vec![-1.0; count];
            comm.scatter(if me == root { &input } else { &[] }, &mut output, root).unwrap();
            equal(Collective::Scatter, &output, &|i| value(root, me * count + i));
        }
    }
    comm.barrier().unwrap();
}

/// Two near and one far, pairs, ranks of a host that are not neighbours, and nobody near.
const LAYOUTS: [&[&str]; 5] =
    [&["a", "a", "b"], &["a", "b", "a"], &["a", "b", "a", "b", "c"], &["a", "a", "a", "b", "b", "b"], &["a", "b", "c"]];

#[test]
fn flat_algorithms_agree_with_a_plain_loop_across_hosts() {
    let algorithms = Algorithm::ALL.into_iter().filter(|a| !a.one_sided() && !a.minds_hosts()).map(Some);
    for algorithm in algorithms {
        for hosts in LAYOUTS {
            world(hosts, algorithm, |comm| {
                for count in [1, 3, 700, 4099, 20_000, 70_001] {
                    check(comm, algorithm, count);
                }
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

const HIERARCHIES: [Option<Algorithm>; 3] = [Some(Algorithm::Hierarchical), Some(Algorithm::Leaders), None];

#[test]
fn hierarchies_agree_with_a_plain_loop_on_uneven_hosts() {
    for hosts in UNEVEN.into_iter().chain(LAYOUTS) {
        for algorithm in HIERARCHIES {
            world(hosts, algorithm, |comm| {
                for count in [0, 1, 700, 20_000, 120_001] {
                    check(comm, algorithm, count);
                }
            });
        }
    }
}

/// Where all links are TCP, hosts still count.
#[test]
fn hierarchies_over_tcp_alone() {
    let mut config = Config::default();
    config.transport = TransportChoice::Tcp;
    for algorithm in HIERARCHIES {
        world_with(config.clone(), UNEVEN[2], algorithm, |comm| {
            for count in [3, 20_000] {
                check(comm, algorithm, count);
            }
        });
    }
}

/// Sums that depend on the order of adding are the same on all ranks of a call.
#[test]
fn all_ranks_get_the_same_bits() {
    for hosts in UNEVEN {
        for algorithm in HIERARCHIES {
            for count in [5, 1000, 60_000] {
                let results = Mutex::new(Vec::new());
                world(hosts, algorithm, |comm| {
                    let rank = comm.rank();
                    let wild = |i: usize| [1e16, 1.0, -1e16, 1e-3, 3.3e15][(i + 3 * rank) % 5] * (1 + rank) as f64;
                    let mut buffer: Vec<f64> = (0..count).map(wild).collect();
                    comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
                    results.lock().unwrap().push(buffer.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
                });
                let results = results.into_inner().unwrap();
                assert_eq!(results.len(), hosts.len());
                assert!(results.iter().all(|bits| *bits == results[0]), "{hosts:?} {algorithm:?} {count} elements");
            }
        }
    }
}

#[test]
fn nobody_leaves_a_barrier_before_all_have_come() {
    for hosts in UNEVEN {
        for algorithm in HIERARCHIES {
            let came = AtomicUsize::new(0);
            world(hosts, algorithm, |comm| {
                for round in 1..=200 {
                    if (comm.rank() * 7 + round) % 29 == 0 {
                        std::thread::sleep(std::time::Duration::from_micros(300));
                    }
                    came.fetch_add(1, Ordering::SeqCst);
                    comm.barrier().unwrap();
                    let there = came.load(Ordering::SeqCst);
                    assert!(there >= round * hosts.len(), "{there} in round {round} of {hosts:?}");
                }
            });
        }
    }
}

/// The tuner takes leaders for small messages and all ranks of a host for large ones, but neither where hosts have one
/// rank each, nor on one host.
#[test]
fn the_tuner_minds_hosts() {
    let plan = |comm: &Communicator, collective, count| {
        let (dtype, op) = (DataType::F32, ReduceOp::Sum);
        comm.describe(&Call { collective, dtype, count, op, root: 0 }, None).unwrap()
    };
    let hierarchical = [
        Collective::AllReduce,
        Collective::Broadcast,
        Collective::Reduce,
        Collective::AllGather,
        Collective::ReduceScatter,
    ];
    world(&["a", "a", "b", "b"], None, |comm| {
        for collective in hierarchical {
            assert!(plan(comm, collective, 100).starts_with("leaders over"), "{}", plan(comm, collective, 100));
            assert!(plan(comm, collective, 1 << 20).starts_with("hierarchical over"), "{}", collective.name());
        }
        assert!(plan(comm, Collective::Barrier, 0).starts_with("leaders"));
        assert!(plan(comm, Collective::AllToAll, 1 << 20).starts_with("hierarchical"));
        // A child whose ranks are alone on their hosts, and one on a single host.
        let across = comm.split(Some(comm.rank() as u32 % 2), 0).unwrap().unwrap();
        assert!(plan(&across, Collective::AllReduce, 1 << 20).starts_with("r"), "ring or recursive doubling");
        let inside = comm.split(Some(comm.rank() as u32 / 2), 0).unwrap().unwrap();
        assert!(plan(&inside, Collective::AllReduce, 1 << 20).starts_with("two_shot"));
        comm.barrier().unwrap();
    });
}

/// All ways to put six ranks on three hosts, two on each.
fn pairs() -> Vec<Vec<&'static str>> {
    let names = ["a", "b", "c"];
    let mut all = vec![Vec::<&str>::new()];
    for _ in 0..6 {
        let longer = all.iter().flat_map(|hosts| {
            let used = names.iter().filter(|name| hosts.contains(name)).count();
            let room = move |name: &&&str| hosts.iter().filter(|host| **host == **name).count() < 2;
            // Hosts are numbered as they come up, or each way would come six times.
            names[..(used + 1).min(3)].iter().filter(room).map(|name| [&hosts[..], &[*name]].concat())
        });
        all = longer.collect();
    }
    all
}

/// A link that is a socket takes nothing in until it is connected, and one of its two ranks connects. Whatever an
/// operation is the first to use, wherever its ranks are, no circle of ranks may wait for it.
#[test]
fn an_operation_on_links_that_are_yet_to_be_made_deadlocks_nowhere() {
    let pairs = pairs();
    assert_eq!(pairs.len(), 15);
    for hosts in &pairs {
        for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
            let mut config = Config::default();
            config.transport = transport;
            let algorithms = [Algorithm::Hierarchical, Algorithm::Direct];
            let supported = algorithms.into_iter().flat_map(|a| Collective::ALL.map(|c| (a, c)));
            for (algorithm, collective) in supported.filter(|(a, c)| a.supports(*c)) {
                world_with(config.clone(), hosts, Some(algorithm), |comm| {
                    let (rank, size, root, count) = (comm.rank(), comm.size(), 4, 20_000);
                    let call = Call { collective, dtype: DataType::F32, count, op: ReduceOp::Sum, root };
                    let input = vec![0u8; collective.input_blocks(rank, size, root) * count * 4];
                    let mut output = vec![1u8; collective.output_blocks(rank, size, root) * count * 4];
                    let outcome = comm.call(call, &input, &mut output);
                    outcome.unwrap_or_else(|e| panic!("{} by {algorithm} on {hosts:?}: {e}", collective.name()));
                    assert!(output.iter().all(|byte| *byte == 0));
                });
            }
        }
    }
}
