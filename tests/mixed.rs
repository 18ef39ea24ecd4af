//! Worlds in which some ranks share memory and others are reached by TCP: every algorithm that can, at sizes around
//! slices and credits, gives what a plain loop gives. Ranks are threads that claim to be on different hosts.

use maypole::{Algorithm, Collective, Communicator, Config, ReduceOp, UniqueId};

/// Run `body` for each rank of a world whose rank r claims to be on host `hosts[r]`.
fn world(hosts: &[&str], algorithm: Option<Algorithm>, body: impl Fn(&Communicator) + Sync) {
    let mut config = Config::default();
    config.timeout = std::time::Duration::from_secs(30);
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
    }
    if has(Collective::AllGather) {
        let mut output = vec![-1.0; count * size];
        comm.all_gather(&input[..count], &mut output).unwrap();
        equal(Collective::AllGather, &output, &|i| value(i / count, i % count));
    }
    if has(Collective::AllToAll) {
        let mut output = vec![-1.0; count * size];
        comm.all_to_all(&input, &mut output).unwrap();
        equal(Collective::AllToAll, &output, &|i| value(i / count, me * count + i % count));
    }
    for root in 0..size {
        if has(Collective::Broadcast) {
            let mut buffer = input[..count].to_vec();
            comm.broadcast(&mut buffer, root).unwrap();
            equal(Collective::Broadcast, &buffer, &|i| value(root, i));
        }
        if has(Collective::Reduce) {
            let mut output = vec![-1.0; if me == root { count } else { 0 }];
            comm.reduce(&input[..count], &mut output, ReduceOp::Sum, root).unwrap();
            equal(Collective::Reduce, &output, &sum);
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
fn every_algorithm_agrees_with_a_plain_loop_across_hosts() {
    let algorithms = Algorithm::ALL.into_iter().filter(|a| !a.one_sided()).map(Some);
    for algorithm in algorithms.chain([None]) {
        for hosts in LAYOUTS {
            world(hosts, algorithm, |comm| {
                for count in [1, 3, 700, 4099, 20_000, 70_001] {
                    check(comm, algorithm, count);
                }
            });
        }
    }
}
