//! The order of arithmetic, on floats for which it shows: with `Order::Canonical` every reduction is the left fold in
//! rank order, bit for bit, whatever the algorithm, the transport, the hosts and the slices; without it all ranks of a
//! call still get the same bits.

mod ranks;

use maypole::config::TransportChoice;
use maypole::{Algorithm, Collective, Communicator, Config, Error, Order, ReduceOp, UniqueId, Verdict};
use ranks::{common_verdict, config, threads};

const COUNT: usize = 5003;

/// Values of very different magnitudes and either sign: adding them in another order gives other bits.
fn value(rank: usize, i: usize) -> f32 {
    let bits = (rank as u32).wrapping_mul(2_654_435_761) ^ (i as u32).wrapping_mul(0x9e37_79b9);
    let bits = (bits ^ (bits >> 15)).wrapping_mul(0x2c1b_3c6d);
    let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
    sign * (1.0 + (bits >> 8 & 0xffff) as f32 / 65536.0) * 2f32.powi((bits >> 24 & 31) as i32 - 16)
}

/// Elements `first..first + COUNT` of the fold over ranks `0..ranks`.
fn fold(ranks: usize, first: usize) -> Vec<u32> {
    let sum = |i: usize| (1..ranks).fold(value(0, i), |sum, rank| sum + value(rank, i));
    (first..first + COUNT).map(|i| sum(i).to_bits()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Every reduction that `algorithm` has, or all.
fn check(comm: &Communicator, algorithm: Option<Algorithm>, what: &str) {
    let (me, size) = (comm.rank(), comm.size());
    let serves = |c: Collective| algorithm.is_none_or(|a| a.supports(c) && a.is_canonical(c));
    let input: Vec<f32> = (0..COUNT * size).map(|i| value(me, i)).collect();
    let (own, sum) = (&input[..COUNT], ReduceOp::Sum);
    let mut output = vec![0f32; COUNT];
    if serves(Collective::AllReduce) {
        for count in [7, COUNT] {
            comm.all_reduce(&own[..count], &mut output[..count], sum).unwrap();
            assert_eq!(bits(&output[..count]), fold(size, 0)[..count], "all_reduce, {what}");
        }
        let mut buffer = own.to_vec();
        comm.all_reduce_in_place(&mut buffer, sum).unwrap();
        assert_eq!(bits(&buffer), fold(size, 0), "all_reduce in place, {what}");
    }
    if serves(Collective::ReduceScatter) {
        comm.reduce_scatter(&input, &mut output, sum).unwrap();
        assert_eq!(bits(&output), fold(size, me * COUNT), "reduce_scatter, {what}");
        comm.reduce_scatter_v(&input, &vec![COUNT; size], &mut output, sum).unwrap();
        assert_eq!(bits(&output), fold(size, me * COUNT), "reduce_scatter_v, {what}");
    }
    if serves(Collective::Reduce) {
        for root in 0..size {
            let output = if me == root { &mut output[..] } else { &mut [] };
            comm.reduce(own, output, sum, root).unwrap();
            if me == root {
                assert_eq!(bits(output), fold(size, 0), "reduce to {root}, {what}");
            }
        }
    }
    if serves(Collective::Scan) {
        comm.scan(own, &mut output, sum).unwrap();
        assert_eq!(bits(&output), fold(me + 1, 0), "scan, {what}");
        comm.exclusive_scan(own, &mut output, sum).unwrap();
        assert!(me == 0 || bits(&output) == fold(me, 0), "exclusive_scan, {what}");
    }
}

/// Canonical settings, all ways: algorithms, slices, and what each rank says is its host (nobody: threads).
fn canonical(transport: TransportChoice, algorithm: Option<Algorithm>, slice: usize) -> Config {
    let mut config = config(transport);
    config.order = Order::Canonical;
    config.slice = slice;
    config.algorithm = algorithm.map_or(String::new(), |a| a.name().to_string());
    config
}

#[test]
fn canonical_order_is_the_fold_whatever_the_algorithm_the_transport_and_the_slices() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        for algorithm in [None, Some(Algorithm::Direct), Some(Algorithm::OneShot), Some(Algorithm::Chain)] {
            if algorithm.is_some_and(Algorithm::one_sided) && transport == TransportChoice::Tcp {
                continue;
            }
            for slice in [0, 256] {
                let config = canonical(transport, algorithm, slice);
                let what = format!("{transport:?}, {algorithm:?}, slices of {slice}");
                for size in [2, 3, 5] {
                    // An algorithm that does not fold so is refused where it is asked for; `check` asks for none.
                    threads(size, &config, |comm| {
                        let only = |c: Collective| algorithm.is_none_or(|a| a.supports(c));
                        if Collective::ALL.into_iter().any(|c| c.reduces() && only(c)) {
                            check(&comm, algorithm, &format!("{what}, {size} ranks"));
                        }
                    });
                }
            }
        }
    }
}

#[test]
fn canonical_order_is_the_fold_wherever_the_ranks_are() {
    for hosts in [&["a", "a", "b", "b"][..], &["a", "b", "a"], &["a", "b", "b", "b", "a", "c"]] {
        let id = UniqueId::create(&Config::default()).unwrap();
        std::thread::scope(|scope| {
            for (rank, host) in hosts.iter().enumerate() {
                let mut config = canonical(TransportChoice::Auto, None, 0);
                config.host = Some(host.to_string());
                scope.spawn(move || {
                    let comm = Communicator::from_id(&id, rank, hosts.len(), config).unwrap();
                    check(&comm, None, &format!("hosts {hosts:?}"));
                });
            }
        });
    }
}

#[test]
fn free_order_gives_all_ranks_the_same_bits_with_every_algorithm() {
    let mut differs_from_the_fold = false;
    for algorithm in Algorithm::for_collective(Collective::AllReduce) {
        let mut config = config(TransportChoice::Auto);
        config.algorithm = algorithm.name().to_string();
        for count in [3, COUNT, 100_000] {
            let results = threads(5, &config, |comm| {
                let mut buffer: Vec<f32> = (0..count).map(|i| value(comm.rank(), i)).collect();
                comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
                bits(&buffer)
            });
            assert!(results.iter().all(|other| *other == results[0]), "{algorithm}, {count} elements");
            differs_from_the_fold |= count == COUNT && results[0] != fold(5, 0);
        }
    }
    // Or these values would show nothing.
    assert!(differs_from_the_fold, "no algorithm adds in another order than the fold");
}

#[test]
fn ranks_that_ask_for_different_orders_are_told_and_algorithms_that_have_another_are_refused() {
    let errors = threads(3, &config(TransportChoice::Tcp), |comm| {
        if comm.rank() == 1 {
            comm.set_order(Order::Canonical);
        }
        let mut buffer = vec![1f32; 100_000];
        comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap_err()
    });
    let verdict = common_verdict(&errors);
    assert!(matches!(verdict, Verdict::Mismatch { .. }), "{verdict:?}");

    threads(3, &canonical(TransportChoice::Auto, Some(Algorithm::Ring), 0), |comm| {
        let mut buffer = vec![1f32; 100_000];
        let error = comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap_err();
        assert!(matches!(&error, Error::Argument { what, .. } if what.contains("ring") && what.contains("canonical")));
        comm.set_order(Order::Free);
        comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
        assert_eq!(buffer[99_999], 3.0);
    });
}
