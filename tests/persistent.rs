//! Persistent operations: right each time they are started, in the order of the calls, refused when started twice, and
//! safe to drop or forget at any moment. That starting allocates nothing is shown by `tests/allocations.rs`.

mod ranks;

use std::time::Duration;

use maypole::config::TransportChoice;
use maypole::{Communicator, Error, Persistent, ReduceOp, Stream, Verdict};
use ranks::{common_verdict, config, paths, threads};

const SUM: ReduceOp = ReduceOp::Sum;

/// Fill an operation's input, start it, and give its output.
fn once(operation: &mut Persistent<i64>, input: &[i64]) -> Vec<i64> {
    operation.input_mut()[..input.len()].copy_from_slice(input);
    operation.start().unwrap();
    operation.wait().unwrap().to_vec()
}

#[test]
fn every_collective_has_a_persistent_form() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(2, &config(transport), |comm| {
            let (plan, root) = (comm.persistent(), comm.rank() == 0);
            let (one, two) = (|| vec![0i64; 1], || vec![0i64; 2]);
            let at_root = |n: usize| vec![0i64; if root { n } else { 0 }];
            let share = if root { 2 } else { 1 };
            let mut all_reduce = plan.all_reduce(two(), two(), SUM).unwrap();
            let mut all_reduce_in_place = plan.all_reduce_in_place(two(), ReduceOp::Max).unwrap();
            let mut reduce = plan.reduce(two(), at_root(2), SUM, 0).unwrap();
            let mut reduce_in_place = plan.reduce_in_place(two(), SUM, 0).unwrap();
            let mut broadcast = plan.broadcast(two(), 1).unwrap();
            let mut broadcast_from = plan.broadcast_from(at_root(2), two(), 0).unwrap();
            let mut all_gather = plan.all_gather(one(), two()).unwrap();
            let mut all_gather_in_place = plan.all_gather_in_place(two()).unwrap();
            let mut reduce_scatter = plan.reduce_scatter(two(), one(), SUM).unwrap();
            let mut reduce_scatter_in_place = plan.reduce_scatter_in_place(two(), SUM).unwrap();
            let mut all_to_all = plan.all_to_all(two(), two()).unwrap();
            let mut all_to_all_in_place = plan.all_to_all_in_place(two()).unwrap();
            let mut gather = plan.gather(one(), at_root(2), 0).unwrap();
            let mut gather_in_place = plan.gather_in_place(vec![0i64; share], 0).unwrap();
            let mut scatter = plan.scatter(at_root(2), one(), 0).unwrap();
            let mut scatter_in_place = plan.scatter_in_place(vec![0i64; share], 0).unwrap();
            let mut scan = plan.scan(two(), two(), SUM).unwrap();
            let mut scan_in_place = plan.scan_in_place(two(), SUM).unwrap();
            let mut exclusive_scan = plan.exclusive_scan(two(), two(), SUM).unwrap();
            let mut exclusive_scan_in_place = plan.exclusive_scan_in_place(two(), SUM).unwrap();
            // Two elements of rank 0, one of rank 1.
            let (counts, own) = ([2, 1], 2 - comm.rank());
            let (three, block) = (|| vec![0i64; 3], || vec![0i64; own]);
            let mut all_gather_v = plan.all_gather_v(block(), three(), &counts).unwrap();
            let mut all_gather_v_in_place = plan.all_gather_v_in_place(three(), &counts).unwrap();
            let mut reduce_scatter_v = plan.reduce_scatter_v(three(), &counts, block(), SUM).unwrap();
            let mut reduce_scatter_v_in_place = plan.reduce_scatter_v_in_place(three(), &counts, SUM).unwrap();
            let from_each = [own, own];
            let mut all_to_all_v = plan.all_to_all_v(three(), &counts, vec![0i64; 2 * own], &from_each).unwrap();
            let mut all_to_all_v_in_place = plan.all_to_all_v_in_place(two(), &[1, 1]).unwrap();
            let mut gather_v = plan.gather_v(block(), at_root(3), &counts, 0).unwrap();
            let mut gather_v_in_place = plan.gather_v_in_place(vec![0; if root { 3 } else { 1 }], &counts, 0).unwrap();
            let mut scatter_v = plan.scatter_v(at_root(3), &counts, block(), 0).unwrap();
            let mut scatter_v_in_place =
                plan.scatter_v_in_place(vec![0; if root { 3 } else { 1 }], &counts, 0).unwrap();
            let mut barrier = plan.barrier().unwrap();
            for step in 0..20 {
                // Rank r's elements are 10r and 10r + 1, and more in later steps.
                let me = comm.rank() as i64;
                let base = 100 * step;
                let pair = [base + 10 * me, base + 10 * me + 1];
                let sums = [2 * base + 10, 2 * base + 12];
                let (firsts, mine) = ([base, base + 10], base + me);
                assert_eq!(once(&mut all_reduce, &pair), sums);
                assert_eq!(once(&mut all_reduce_in_place, &pair), [base + 10, base + 11]);
                assert_eq!(once(&mut reduce, &pair), if root { &sums[..] } else { &[] });
                assert_eq!(once(&mut reduce_in_place, &pair), if root { sums } else { pair });
                assert_eq!(once(&mut broadcast, &pair), [base + 10, base + 11]);
                assert_eq!(once(&mut broadcast_from, if root { &pair } else { &[] }), [base, base + 1]);
                assert_eq!(once(&mut all_gather, &pair[..1]), firsts);
                all_gather_in_place.input_mut()[comm.rank()] = pair[0];
                assert_eq!(once(&mut all_gather_in_place, &[]), firsts);
                assert_eq!(once(&mut reduce_scatter, &pair), [sums[comm.rank()]]);
                assert_eq!(once(&mut reduce_scatter_in_place, &pair)[comm.rank()], sums[comm.rank()]);
                assert_eq!(once(&mut all_to_all, &pair), [mine, mine + 10]);
                assert_eq!(once(&mut all_to_all_in_place, &pair), [mine, mine + 10]);
                assert_eq!(once(&mut gather, &pair[..1]), if root { &firsts[..] } else { &[] });
                assert_eq!(once(&mut gather_in_place, &pair[..1]), if root { &firsts[..] } else { &pair[..1] });
                assert_eq!(once(&mut scatter, if root { &pair } else { &[] }), [mine]);
                assert_eq!(once(&mut scatter_in_place, if root { &pair[..] } else { &[] })[0], mine);
                assert_eq!(once(&mut scan, &pair), if root { pair } else { sums });
                assert_eq!(once(&mut scan_in_place, &pair), if root { pair } else { sums });
                assert_eq!(once(&mut exclusive_scan, &pair), if root { [0, 0] } else { [base, base + 1] });
                assert_eq!(once(&mut exclusive_scan_in_place, &pair), [base, base + 1]);
                let triple = [base + 10 * me, base + 10 * me + 1, base + 10 * me + 2];
                let (all, block) = ([base, base + 1, base + 10], if root { 0..2 } else { 2..3 });
                let triple_sums = [2 * base + 10, 2 * base + 12, 2 * base + 14];
                assert_eq!(once(&mut all_gather_v, &pair[..own]), all);
                all_gather_v_in_place.input_mut()[block.clone()].copy_from_slice(&pair[..own]);
                assert_eq!(once(&mut all_gather_v_in_place, &[]), all);
                assert_eq!(once(&mut reduce_scatter_v, &triple), triple_sums[block.clone()]);
                assert_eq!(once(&mut reduce_scatter_v_in_place, &triple)[block.clone()], triple_sums[block]);
                let crossed = [base, base + 1, base + 10, base + 11];
                assert_eq!(
                    once(&mut all_to_all_v, &triple),
                    if root { crossed.to_vec() } else { vec![base + 2, base + 12] }
                );
                assert_eq!(once(&mut all_to_all_v_in_place, &pair), [mine, mine + 10]);
                assert_eq!(once(&mut gather_v, &pair[..own]), if root { &all[..] } else { &[] });
                assert_eq!(once(&mut gather_v_in_place, &pair[..own]), if root { &all[..] } else { &pair[..1] });
                let dealt = if root { vec![base, base + 1] } else { vec![base + 2] };
                assert_eq!(once(&mut scatter_v, if root { &triple } else { &[] }), dealt);
                assert_eq!(once(&mut scatter_v_in_place, if root { &triple[..] } else { &[] })[..own], dealt);
                assert_eq!(barrier.run().unwrap().len(), 0);
            }
        });
    }
}

#[test]
fn many_outstanding_between_other_calls() {
    for path in paths() {
        threads(3, &path.config, |comm| {
            let make = |_| comm.persistent().all_reduce(vec![0i64; path.count], vec![0; path.count], SUM).unwrap();
            let mut operations: Vec<Persistent<i64>> = (0..6).map(make).collect();
            let stream = Stream::new().unwrap();
            for step in 0..4i64 {
                for (number, operation) in operations.iter_mut().enumerate() {
                    operation.input_mut().fill(step * 10 + number as i64 + comm.rank() as i64);
                    if number % 2 == 0 { operation.start() } else { operation.start_on(&stream) }.unwrap();
                }
                // A blocking call comes after all of them.
                let mut last = [comm.rank() as i64];
                comm.all_reduce_in_place(&mut last, SUM).unwrap();
                assert_eq!(last, [3]);
                for (number, operation) in operations.iter_mut().enumerate().rev() {
                    let want = 3 * (step * 10 + number as i64) + 3;
                    assert!(operation.wait().unwrap().iter().all(|x| *x == want), "{}, step {step}", path.name);
                    assert!(operation.output().iter().all(|x| *x == want), "it stays there");
                }
                let run = operations[0].run().unwrap();
                assert!(run.iter().all(|x| *x == 3 * step * 10 + 3));
            }
        });
    }
}

#[test]
fn started_twice_is_an_error_and_the_run_goes_on() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        let mut sum = comm.persistent().all_reduce_in_place(vec![1i32; 50_000], SUM).unwrap();
        assert!(sum.test() && sum.wait().unwrap()[0] == 1, "waiting for what was not started is nothing");
        for round in 0..20 {
            sum.input_mut().fill(1);
            sum.start().unwrap();
            if round % 2 == 1 {
                // Whether it has ended makes no difference: it was not waited for.
                while !sum.test() {
                    std::thread::yield_now();
                }
            }
            for again in [sum.start().map(|_| ()), sum.run().map(|_| ())] {
                match again {
                    Err(Error::Argument { rank, what }) if rank == comm.rank() => {
                        assert!(what.contains("persistent all_reduce was started twice"), "{what}");
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert!(sum.wait().unwrap().iter().all(|x| *x == 2));
        }
        comm.barrier().unwrap();
    });
}

#[test]
fn wrong_arguments_are_refused_without_a_trace() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        let plan = comm.persistent();
        if comm.rank() == 0 {
            let refused = [
                plan.all_reduce(vec![0f32; 3], vec![0f32; 4], SUM).err(),
                plan.all_reduce_in_place(vec![0f32; 3], ReduceOp::Xor).err(),
                plan.broadcast(vec![0f32; 3], 2).err(),
                plan.all_gather(vec![0f32; 3], vec![0f32; 7]).err(),
                plan.gather(vec![0f32; 3], vec![0f32; 7], 0).err(),
            ];
            for error in refused {
                assert!(matches!(error, Some(Error::Argument { rank: 0, .. })), "{error:?}");
            }
        }
        comm.barrier().unwrap();
        assert_eq!(plan.all_reduce_in_place(vec![3u8; 1], SUM).unwrap().run().unwrap(), [6]);
    });
}

#[test]
fn ranks_whose_operations_differ_are_told() {
    let errors = threads(2, &config(TransportChoice::Auto), |comm| {
        let mut sum = comm.persistent().all_reduce_in_place(vec![1u32; 100_000 + comm.rank()], SUM).unwrap();
        sum.start().unwrap();
        let error = sum.wait().unwrap_err();
        // It can be started again, and says the same.
        sum.start().unwrap();
        assert_eq!(ranks::verdict(&sum.wait().unwrap_err()), ranks::verdict(&error));
        error
    });
    assert!(matches!(common_verdict(&errors), Verdict::Mismatch { .. }));
}

#[test]
fn the_communicator_may_go_first() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(3, &config(transport), |comm| {
            let (rank, mut sums): (usize, Vec<_>) =
                (comm.rank(), (0..3).map(|_| comm.persistent().all_reduce_in_place(vec![1i32; 9000], SUM)).collect());
            sums[0].as_mut().unwrap().start().unwrap();
            drop(comm);
            for sum in &mut sums {
                let sum = sum.as_mut().unwrap();
                let _ = sum.wait().unwrap();
                sum.input_mut().fill(2);
                assert!(sum.run().unwrap().iter().all(|x| *x == 6));
            }
            // Each rank drops them in another order.
            sums.rotate_left(rank);
        });
    }
}

#[test]
fn dropped_while_it_runs_it_waits_and_forgotten_it_leaks() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        for round in 0..10 {
            let mut sum = comm.persistent().all_reduce_in_place(vec![1u64; 200_000], SUM).unwrap();
            if round % 2 == comm.rank() {
                std::thread::sleep(Duration::from_millis(1));
            }
            sum.start().unwrap();
            if round == 5 {
                std::mem::forget(sum);
            }
        }
        comm.barrier().unwrap();
        let mut last = comm.persistent().all_reduce_in_place(vec![1u64; 200_000], SUM).unwrap();
        last.start().unwrap();
        drop((comm, last));
    });
}

#[test]
fn it_moves_between_threads() {
    threads(2, &config(TransportChoice::Auto), |comm: Communicator| {
        let mut sum = comm.persistent().all_reduce(vec![5i32; 10], Box::<[i32]>::from([0; 10]), SUM).unwrap();
        sum.start().unwrap();
        let mut sum = std::thread::spawn(move || {
            assert_eq!(sum.wait().unwrap()[9], 10);
            assert_eq!(sum.input(), [5; 10]);
            sum
        })
        .join()
        .unwrap();
        sum.output_mut().fill(0);
        assert_eq!(sum.run().unwrap(), [10; 10]);
    });
}
