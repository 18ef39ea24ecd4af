//! Calls on memory by address: the same results as the typed calls, blocking, asynchronous, in groups and persistent;
//! and every misuse that can be noticed is, without taking the process with it.

mod ranks;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use maypole::communicator::raw::{CallbackFailed, RawRequest};
use maypole::config::TransportChoice;
use maypole::{Blocks, Call, Collective, Communicator, DataType, Error, ReduceOp, Stream, UserOp, Verdict};
use ranks::{PATIENCE, common_verdict, config, paths, threads, verdict};

fn call(collective: Collective, count: usize, root: usize) -> Call {
    Call { collective, dtype: DataType::I64, count, op: ReduceOp::Sum, root }
}

/// The addresses of an input and an output.
fn at(input: &[i64], output: &mut [i64]) -> (*const u8, *mut u8) {
    (input.as_ptr().cast(), output.as_mut_ptr().cast())
}

/// Both addresses of one buffer.
fn in_place(buffer: &mut [i64]) -> (*const u8, *mut u8) {
    let at = buffer.as_mut_ptr().cast::<u8>();
    (at.cast_const(), at)
}

/// The text of an argument error.
fn argument<T>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Argument { what, .. }) => what,
        Err(other) => panic!("not an argument error: {other}"),
        Ok(_) => panic!("an argument error was expected"),
    }
}

const EVERY: [Collective; 11] = [
    Collective::AllReduce,
    Collective::Reduce,
    Collective::Broadcast,
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::AllToAll,
    Collective::Gather,
    Collective::Scatter,
    Collective::Scan,
    Collective::ExclusiveScan,
    Collective::Barrier,
];

/// Run every collective through `run`, and the typed dynamic call beside it: the same.
fn same_as_typed(comm: &Communicator, count: usize, run: impl Fn(Call, *const u8, *mut u8) -> Result<(), Error>) {
    let (rank, size) = (comm.rank(), comm.size());
    for (number, collective) in EVERY.into_iter().enumerate() {
        let root = number % size;
        let call = call(collective, count, root);
        let inputs = collective.input_blocks(rank, size, root) * count;
        let outputs = collective.output_blocks(rank, size, root) * count;
        let input: Vec<i64> = (0..inputs).map(|i| (1000 * number + 10 * i + rank) as i64).collect();
        let mut expected = vec![-1i64; outputs];
        comm.call(call, bytemuck::cast_slice(&input), bytemuck::cast_slice_mut(&mut expected)).unwrap();
        let mut output = vec![-1i64; outputs];
        let (from, to) = at(&input, &mut output);
        run(call, from, to).unwrap();
        assert_eq!(output, expected, "{}", collective.name());
        // In place: the smaller inside the larger.
        let block = collective.in_place_block(rank).unwrap_or(0) * count;
        let mut buffer = vec![-1i64; inputs.max(outputs)];
        let (input_at, output_at) = match inputs > outputs {
            true => (0, if outputs > 0 { block } else { 0 }),
            false => (if inputs > 0 && inputs < outputs { block } else { 0 }, 0),
        };
        buffer[input_at..input_at + inputs].copy_from_slice(&input);
        let start = buffer.as_mut_ptr();
        run(call, start.wrapping_add(input_at).cast(), start.wrapping_add(output_at).cast()).unwrap();
        assert_eq!(buffer[output_at..output_at + outputs], expected, "{} in place", collective.name());
    }
}

#[test]
fn every_collective_gives_what_the_typed_call_gives() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        for size in [1, 2, 3] {
            threads(size, &config(transport), |comm| {
                // SAFETY: the buffers are `same_as_typed`'s, which waits.
                same_as_typed(&comm, 5, |call, from, to| unsafe { comm.run_at(call, from, to) });
                // SAFETY: as above.
                same_as_typed(&comm, 5, |call, from, to| unsafe { comm.start_at(call, from, to, None)?.wait() });
                let stream = Stream::new().unwrap();
                // SAFETY: as above.
                same_as_typed(&comm, 3000, |call, from, to| unsafe {
                    comm.start_at(call, from, to, Some(&stream))?.wait()
                });
                same_as_typed(&comm, 7, |call, from, to| {
                    let mut group = comm.raw_group();
                    // SAFETY: as above.
                    unsafe { group.call_at(call, from, to) };
                    group.run()
                });
                // SAFETY: as above.
                same_as_typed(&comm, 7, |call, from, to| unsafe { comm.persistent_at(call, from, to)?.run() });
            });
        }
    }
}

#[test]
fn blocks_with_counts_of_their_own() {
    threads(3, &config(TransportChoice::Auto), |comm| {
        let (rank, counts) = (comm.rank(), [2usize, 0, 3]);
        let input = vec![rank as i64; counts[rank]];
        let mut output = [-1i64; 5];
        let own = [counts[rank]];
        let gather = call(Collective::AllGather, 0, 0);
        let (from, to) = at(&input, &mut output);
        let sides = ((from, Blocks::packed(&own)), (to, Blocks::packed(&counts)));
        // SAFETY: the buffers have the blocks, here and below, and are waited for.
        unsafe { comm.run_v_at(gather, sides.0, sides.1) }.unwrap();
        assert_eq!(output, [0, 0, 2, 2, 2]);
        output.fill(-1);
        let (_, to) = at(&input, &mut output);
        // SAFETY: as above.
        let request = unsafe { comm.start_v_at(gather, sides.0, (to, sides.1.1), None) }.unwrap();
        request.wait().unwrap();
        assert_eq!(output, [0, 0, 2, 2, 2]);
        // In place, this rank's input where it belongs.
        let mut buffer = [-1i64; 5];
        let start: usize = counts[..rank].iter().sum();
        buffer[start..start + counts[rank]].fill(rank as i64);
        let (from, to) = in_place(&mut buffer);
        let input = (from.wrapping_add(8 * start), Blocks::packed(&own));
        // SAFETY: as above.
        let operation = unsafe { comm.persistent_v_at(gather, input, (to, Blocks::packed(&counts))) }.unwrap();
        operation.run().unwrap();
        assert_eq!(buffer, [0, 0, 2, 2, 2]);
        // All to all in place replaces every block.
        let mut buffer = [10 * rank as i64, 10 * rank as i64 + 1, 10 * rank as i64 + 2];
        let (from, to) = in_place(&mut buffer);
        let each = [1, 1, 1];
        let mut group = comm.raw_group();
        let blocks = Blocks::packed(&each);
        // SAFETY: as above.
        unsafe { group.call_v_at(call(Collective::AllToAll, 0, 0), (from, blocks), (to, blocks)) };
        group.run().unwrap();
        assert_eq!(buffer, [rank as i64, 10 + rank as i64, 20 + rank as i64]);
    });
}

#[test]
fn messages_by_address() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(2, &config(transport), |comm| {
            let peer = 1 - comm.rank();
            let (sent, mut got) = ([comm.rank() as i64; 4], [-1i64; 4]);
            let (from, to) = at(&sent, &mut got);
            // SAFETY: the buffers stay until both are waited for, here and below.
            let pair = unsafe {
                [
                    comm.start_recv_at(DataType::I64, 4, to, peer, 9, None).unwrap(),
                    comm.start_send_at(DataType::I64, 4, from, peer, 9, None).unwrap(),
                ]
            };
            let first = RawRequest::wait_any(&pair).unwrap();
            assert!(pair[first].test());
            pair.iter().for_each(|request| request.wait().unwrap());
            assert_eq!(got, [peer as i64; 4]);
            // SAFETY: as above.
            unsafe {
                if comm.rank() == 0 {
                    comm.send_at(DataType::I64, 2, from, 1, 3).unwrap();
                    // An empty message needs no address.
                    comm.send_at(DataType::I64, 0, std::ptr::null(), 1, 4).unwrap();
                } else {
                    comm.recv_at(DataType::I64, 2, to, 0, 3).unwrap();
                    comm.recv_at(DataType::I64, 0, std::ptr::null_mut(), 0, 4).unwrap();
                }
            }
        });
    }
}

#[test]
fn a_request_is_waited_for_with_a_limit_and_calls_back_once() {
    let looked = [AtomicBool::new(false), AtomicBool::new(false)];
    threads(2, &config(TransportChoice::Auto), |comm| {
        let mut value = [7i64];
        let (from, to) = in_place(&mut value);
        let peer = 1 - comm.rank();
        for (message, looked) in [(false, &looked[0]), (true, &looked[1])] {
            while comm.rank() == 1 && !looked.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            // SAFETY: the buffer stays until the request is waited for.
            let request = unsafe {
                match (message, comm.rank()) {
                    (false, _) => comm.start_at(call(Collective::AllReduce, 1, 0), from, to, None),
                    (true, 0) => comm.start_recv_at(DataType::I64, 1, to, peer, 0, None),
                    (true, _) => comm.start_send_at(DataType::I64, 1, from, peer, 0, None),
                }
            }
            .unwrap();
            let (say, hear) = mpsc::channel();
            request.when_done(move |result| say.send(result).unwrap());
            if comm.rank() == 0 {
                assert!(request.wait_for(Duration::from_millis(20)).is_none(), "the other rank has not come");
                assert!(hear.try_recv().is_err());
                looked.store(true, Ordering::Release);
            }
            hear.recv_timeout(PATIENCE).expect("it calls back though nobody waits").unwrap();
            assert!(request.test());
            assert_eq!(request.wait_for(Duration::ZERO).map(|result| result.is_ok()), Some(true));
            let (say, hear) = mpsc::channel();
            request.when_done(move |result| say.send(result.is_ok()).unwrap());
            assert_eq!(hear.try_recv(), Ok(true), "at once, if it is done");
            drop(request);
        }
        comm.barrier().unwrap();
    });
}

#[test]
fn who_wants_to_be_told_of_a_message_is_told_at_the_deadline() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        let mut config = config(transport);
        (config.timeout, config.late) = (Duration::from_millis(300), Duration::ZERO);
        let over = Barrier::new(2);
        threads(2, &config, |comm| {
            if comm.rank() == 0 {
                let mut value = [0i64; 2];
                let (one, other) = value.split_at_mut(1);
                // SAFETY: the buffers stay until the requests are dropped, which waits for them.
                let request = |to, tag| unsafe { comm.start_recv_at(DataType::I64, 1, to, 1, tag, None) }.unwrap();
                let requests = [request(in_place(one).1, 1), request(in_place(other).1, 2)];
                let (say, hear) = mpsc::channel();
                for request in &requests {
                    let say = say.clone();
                    request.when_done(move |result| say.send(result).unwrap());
                }
                for _ in &requests {
                    let told = hear.recv_timeout(PATIENCE).expect("a message that does not come is told").unwrap_err();
                    assert!(matches!(verdict(&told), Verdict::Stalled { .. }), "{told}");
                }
            }
            over.wait();
        });
    }
}

#[test]
fn what_calls_back_may_be_the_last_to_hold_the_communicator() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        let comm = Arc::new(comm);
        let mut value = Box::new([1i64]);
        let (from, to) = in_place(&mut *value);
        let (peer, rank) = (1 - comm.rank(), comm.rank());
        // SAFETY: the buffer stays until the callback has come.
        let request = unsafe {
            match rank {
                0 => comm.start_recv_at(DataType::I64, 1, to, peer, 0, None),
                _ => comm.start_send_at(DataType::I64, 1, from, peer, 0, None),
            }
        }
        .unwrap();
        let (say, hear) = mpsc::channel();
        let last = comm.clone();
        request.when_done(move |result| {
            drop(last);
            say.send(result.is_ok()).unwrap();
        });
        request.wait().unwrap();
        drop((request, comm));
        assert_eq!(hear.recv_timeout(PATIENCE), Ok(true));
    });
}

#[test]
fn started_groups_keep_the_order_of_the_calls() {
    for path in paths() {
        threads(2, &path.config, |comm| {
            let (rank, peer) = (comm.rank() as i64, 1 - comm.rank());
            for round in 0..10i64 {
                let sent: Vec<i64> = vec![100 * round + rank; 3];
                let (mut got, mut later) = (vec![-1i64; 3], [-1i64]);
                let mut sums: Vec<Vec<i64>> = (0..4).map(|i| vec![round + i; 2]).collect();
                let mut large = vec![rank; path.count];
                let mut group = comm.raw_group();
                // SAFETY: all buffers stay until the request is waited for.
                unsafe {
                    group.send_at(DataType::I64, 3, sent.as_ptr().cast(), peer, 0);
                    group.recv_at(DataType::I64, 3, got.as_mut_ptr().cast(), peer, 0);
                    for sum in &mut sums {
                        let (from, to) = in_place(sum);
                        group.call_at(call(Collective::AllReduce, 2, 0), from, to);
                    }
                    let (from, to) = in_place(&mut large);
                    group.call_at(call(Collective::AllReduce, path.count, 0), from, to);
                }
                let request = group.start(None).unwrap();
                // Behind the group: its collectives, and its message with the same tag.
                let mut last = [rank];
                comm.all_reduce_in_place(&mut last, ReduceOp::Max).unwrap();
                assert_eq!(last, [1], "{}", path.name);
                comm.send_recv(&[round], peer, &mut later, peer).unwrap();
                let (say, hear) = mpsc::channel();
                request.when_done(move |result| say.send(result).unwrap());
                hear.recv_timeout(PATIENCE).unwrap().unwrap();
                request.wait().unwrap();
                assert_eq!((&got[..], later), (&[100 * round + peer as i64; 3][..], [round]), "{}", path.name);
                for (i, sum) in sums.iter().enumerate() {
                    assert_eq!(*sum, [2 * (round + i as i64); 2]);
                }
                assert!(large.iter().all(|x| *x == 1));
            }
        });
    }
}

#[test]
fn a_group_on_a_stream_and_one_that_is_refused() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        let stream = Stream::new().unwrap();
        let (rank, peer) = (comm.rank() as i64, 1 - comm.rank());
        let (mut sum, mut got) = ([rank; 2], [-1i64]);
        let fill = |group: &mut maypole::communicator::raw::RawGroup<'_>, sum: *mut u8, got: *mut u8, from: &i64| {
            // SAFETY: the buffers stay until the group is done.
            unsafe {
                group.call_at(call(Collective::AllReduce, 2, 0), sum.cast_const(), sum);
                group.send_at(DataType::I64, 1, std::ptr::from_ref(from).cast(), peer, 0);
                group.recv_at(DataType::I64, 1, got, peer, 0);
            }
        };
        let (to, got_at) = (sum.as_mut_ptr().cast(), got.as_mut_ptr().cast());
        let mut group = comm.raw_group();
        fill(&mut group, to, got_at, &rank);
        assert_eq!((group.len(), group.is_empty()), (3, false));
        group.start(Some(&stream)).unwrap().wait().unwrap();
        assert_eq!((sum, got), ([1, 1], [peer as i64]));
        // Both ranks make the same mistake, in a group that is started and in one that is run: both go on.
        for start in [true, false] {
            let mut group = comm.raw_group();
            fill(&mut group, to, got_at, &rank);
            // SAFETY: nothing is run.
            unsafe { group.call_at(call(Collective::AllReduce, 1, 0), std::ptr::null(), to) };
            let told = match start {
                true => argument(group.start(None)),
                false => argument(group.run()),
            };
            assert!(told.contains("call 4 of the group (all_reduce)") && told.contains("input is NULL"), "{told}");
        }
        comm.barrier().unwrap();
        assert_eq!(sum, [1, 1], "nothing of the refused groups was run");
    });
}

#[test]
fn a_persistent_operation_refuses_to_be_started_twice() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        let mut value = [1i64; 3];
        let (from, to) = in_place(&mut value);
        // SAFETY: the buffer stays until the operation is dropped.
        let operation = unsafe { comm.persistent_at(call(Collective::AllReduce, 3, 0), from, to) }.unwrap();
        for _ in 0..3 {
            operation.start().unwrap();
            assert!(argument(operation.start()).contains("started twice"));
            operation.wait().unwrap();
            assert!(operation.test());
            operation.wait().unwrap();
        }
        let stream = Stream::new().unwrap();
        operation.start_on(&stream).unwrap();
        drop(operation);
        assert_eq!(value, [16; 3]);
        // SAFETY: refused.
        let refused = unsafe { comm.persistent_at(call(Collective::AllReduce, 3, 0), std::ptr::null(), to) };
        assert!(argument(refused).contains("input is NULL"));
    });
}

#[test]
fn wrong_addresses_are_named_and_nothing_starts() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        let mut buffer = [1i64; 8];
        let (from, to) = in_place(&mut buffer);
        let null = std::ptr::null();
        let reduce = |count| call(Collective::AllReduce, count, 0);
        // SAFETY: every one of these is refused before its addresses are used; both ranks make the same mistakes.
        let told = unsafe {
            [
                argument(comm.run_at(reduce(2), null, to)),
                argument(comm.run_at(reduce(2), from, std::ptr::null_mut())),
                argument(comm.run_at(reduce(4), from, to.wrapping_add(8))),
                argument(comm.run_at(call(Collective::AllGather, 2, 0), from.wrapping_add(8), to)),
                argument(comm.run_at(reduce(usize::MAX / 2), from, to)),
                argument(comm.run_at(call(Collective::Broadcast, 1, 5), from, to)),
                argument(comm.start_at(reduce(2), null, to, None)),
                argument(comm.run_v_at(
                    call(Collective::AllToAll, 0, 0),
                    (from, Blocks::packed(&[1, 2])),
                    (to, Blocks::packed(&[2, 1])),
                )),
                argument(comm.start_v_at(
                    call(Collective::AllToAll, 0, 0),
                    (null, Blocks::packed(&[1, 1])),
                    (to, Blocks::packed(&[1, 1])),
                    None,
                )),
                argument(comm.send_at(DataType::I64, 1, null, 0, 0)),
                argument(comm.start_recv_at(DataType::I64, 1, to, 7, 0, None)),
                argument(comm.start_send_at(DataType::I64, usize::MAX, from, 0, 0, None)),
            ]
        };
        let expected = [
            "the input is NULL",
            "the output is NULL",
            "overlap",
            "overlap",
            "more bytes than there are",
            "the root is 5",
            "the input is NULL",
            "must be the same",
            "the input is NULL",
            "the data is NULL",
            "the peer is 7",
            "more bytes than there are",
        ];
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.contains(expected), "{told:?} does not say {expected:?}");
        }
        comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
        assert_eq!(buffer, [2; 8], "the communicator is as good as before");
    });
}

#[test]
fn a_rank_whose_addresses_are_refused_keeps_nobody_waiting() {
    let ends = threads(2, &config(TransportChoice::Auto), |comm| {
        let mut buffer = [1i64; 2];
        let (from, to) = in_place(&mut buffer);
        let from = if comm.rank() == 0 { std::ptr::null() } else { from };
        // SAFETY: the buffer is there until this returns; the null address is refused.
        let error = unsafe { comm.run_at(call(Collective::AllReduce, 2, 0), from, to) }.unwrap_err();
        (error, comm)
    });
    // Kept until both have their error: one that leaves is told of as gone.
    let errors: Vec<Error> = ends.into_iter().map(|(error, _)| error).collect();
    assert!(matches!(errors[0], Error::Argument { .. }));
    assert!(matches!(verdict(&errors[1]), Verdict::Refused { rank: 0, .. }), "{}", errors[1]);
}

/// Adds elements, counts its calls in the context, and fails where an element is negative.
///
/// # Safety
/// As a `UserFnWith`, whose context is an `AtomicU32`.
unsafe fn picky(context: *const (), dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
    let (dst, a, b) = (dst.cast::<i64>(), a.cast::<i64>(), b.cast::<i64>());
    // SAFETY: the caller's promise.
    unsafe { &*context.cast::<AtomicU32>() }.fetch_add(1, Ordering::Relaxed);
    for i in 0..count {
        // SAFETY: the caller's promise.
        let (x, y) = unsafe { (a.add(i).read_unaligned(), b.add(i).read_unaligned()) };
        if x < 0 || y < 0 {
            std::panic::resume_unwind(Box::new(CallbackFailed(format!("{x} or {y} is negative"))));
        }
        // SAFETY: as above.
        unsafe { dst.add(i).write_unaligned(x + y) };
    }
}

#[test]
fn a_users_operation_has_a_context_and_may_fail() {
    for how in 0..5 {
        for path in paths() {
            let calls = AtomicU32::new(0);
            let calls = &calls;
            let errors = threads(2, &path.config, |comm| {
                // SAFETY: `picky` does what it should, and the counter outlives the world.
                let op = unsafe { UserOp::with_context(5, DataType::I64, picky, std::ptr::from_ref(calls).cast()) };
                let call = Call { op: ReduceOp::User(op), ..call(Collective::AllReduce, path.count, 0) };
                let run = |buffer: &mut [i64]| {
                    let (from, to) = in_place(buffer);
                    // SAFETY: the buffer is there until this returns.
                    unsafe {
                        match how {
                            0 => comm.run_at(call, from, to),
                            1 => comm.start_at(call, from, to, None)?.wait(),
                            2 => comm.persistent_at(call, from, to)?.run(),
                            _ => {
                                let mut group = comm.raw_group();
                                group.call_at(call, from, to);
                                // Would wait for ever, if nobody were told.
                                group.recv_at(DataType::I64, 0, to, 1 - comm.rank(), 77);
                                if how == 3 { group.run() } else { group.start(None)?.wait() }
                            }
                        }
                    }
                };
                if how < 3 {
                    let mut good = vec![comm.rank() as i64; path.count];
                    run(&mut good).unwrap();
                    assert!(good.iter().all(|x| *x == 1));
                }
                // Somewhere in the vector, on both ranks, so that both see it.
                let mut bad = vec![1; path.count];
                bad[path.count / 2] = -3;
                run(&mut bad).unwrap_err()
            });
            let Verdict::Aborted { why, .. } = common_verdict(&errors) else { panic!("{errors:?}") };
            assert!(why.contains("-3 or -3 is negative"), "{}: {why}", path.name);
            assert!(calls.load(Ordering::Relaxed) > 0);
        }
    }
}
