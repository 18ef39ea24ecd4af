//! Asynchronous calls: in order, many at once, waited for or not, on streams of several communicators, and their
//! errors.

mod ranks;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::{Communicator, Error, Pending, ReduceOp, Stream, Verdict};
use ranks::{PATIENCE, common_verdict, config, paths, threads, verdict};

const SUM: ReduceOp = ReduceOp::Sum;

/// What `call` must give on every rank: the sum over ranks of `value(rank, call)`.
fn value(rank: usize, call: usize) -> i64 {
    (1000 * call + rank) as i64
}

fn total(size: usize, call: usize) -> i64 {
    (0..size).map(|rank| value(rank, call)).sum()
}

#[test]
fn many_requests_run_in_order_and_are_waited_for_in_any() {
    for path in paths() {
        threads(3, &path.config, |comm| {
            let calls = 40;
            // Every third is large.
            let length = |call: usize| if call.is_multiple_of(3) { path.count } else { 5 };
            let inputs: Vec<Vec<i64>> = (0..calls).map(|call| vec![value(comm.rank(), call); length(call)]).collect();
            let mut outputs: Vec<Vec<i64>> = inputs.iter().map(|input| vec![0; input.len()]).collect();
            maypole::scope(|s| {
                let start = comm.start(s);
                let mut requests: Vec<_> = inputs
                    .iter()
                    .zip(&mut outputs)
                    .enumerate()
                    .map(|(call, (input, output))| (call, start.all_reduce(input, output, SUM).unwrap()))
                    .collect();
                // A blocking call comes after all of them.
                let mut last = [value(comm.rank(), calls)];
                comm.all_reduce_in_place(&mut last, SUM).unwrap();
                assert_eq!(last, [total(3, calls)]);
                requests.reverse();
                for (call, request) in requests {
                    let output = request.wait().unwrap();
                    assert!(output.iter().all(|x| *x == total(3, call)), "{}, call {call}", path.name);
                    output[0] = -1;
                }
            });
            assert!(outputs.iter().all(|output| output[0] == -1), "a request gives its output back");
        });
    }
}

#[test]
fn every_collective_has_an_asynchronous_form() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(2, &config(transport), |comm| {
            let (me, other) = (comm.rank() as i32, 1 - comm.rank());
            let pair = [10 * me, 10 * me + 1];
            let mut buffers = [[pair[0], pair[1]]; 11];
            let [summed, in_place, reduced, spread, all, mine, exchanged, gathered, dealt, got, sent] = &mut buffers;
            let (one, root) = (&pair[..1], comm.rank() == 0);
            *sent = [me + 5; 2];
            maypole::scope(|s| {
                let start = comm.start(s);
                let requests = [
                    start.all_reduce(&pair, summed, SUM),
                    start.all_reduce_in_place(in_place, ReduceOp::Max),
                    start.reduce(&pair, if root { &mut reduced[..] } else { &mut [] }, SUM, 0),
                    start.broadcast(spread, 1),
                    start.all_gather(one, all),
                    start.reduce_scatter(&pair, &mut mine[..1], SUM),
                    start.all_to_all(&pair, exchanged),
                    start.gather(one, if root { &mut gathered[..] } else { &mut [] }, 0),
                    start.scatter(if root { &pair[..] } else { &[] }, &mut dealt[..1], 0),
                    if root { start.send(sent, other) } else { start.recv(got, other) },
                ];
                // Dropped without a wait; the scope waits.
                requests.into_iter().for_each(|request| drop(request.unwrap()));
                start.barrier().unwrap().wait().unwrap();
            });
            assert_eq!(*summed, [10, 12]);
            assert_eq!(*in_place, [10, 11]);
            assert_eq!(*reduced, if root { [10, 12] } else { pair });
            assert_eq!(*spread, [10, 11]);
            assert_eq!(*all, [0, 10]);
            assert_eq!(mine[0], [10, 12][comm.rank()]);
            assert_eq!(*exchanged, [me, 10 + me]);
            assert_eq!(*gathered, if root { [0, 10] } else { pair });
            assert_eq!(dealt[0], me);
            assert_eq!(*got, if root { pair } else { [5, 5] });
        });
    }
}

#[test]
fn every_collective_has_an_asynchronous_form_in_place() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(2, &config(transport), |comm| {
            let (me, root) = (comm.rank() as i32, comm.rank() == 0);
            let pair = [10 * me, 10 * me + 1];
            let mut buffers = [pair; 6];
            let [reduced, all, mine, exchanged, gathered, dealt] = &mut buffers;
            maypole::scope(|s| {
                let start = comm.start(s);
                let requests = [
                    start.reduce_in_place(reduced, SUM, 0),
                    start.all_gather_in_place(all),
                    start.reduce_scatter_in_place(mine, SUM),
                    start.all_to_all_in_place(exchanged),
                    start.gather_in_place(if root { &mut gathered[..] } else { &mut gathered[..1] }, 0),
                    start.scatter_in_place(if root { &mut dealt[..] } else { &mut dealt[..1] }, 0),
                ];
                for request in requests {
                    request.unwrap().wait().unwrap();
                }
            });
            assert_eq!(*reduced, if root { [10, 12] } else { pair });
            assert_eq!(*all, [0, 11]);
            assert_eq!(mine[comm.rank()], [10, 12][comm.rank()]);
            assert_eq!(*exchanged, [me, 10 + me]);
            assert_eq!(*gathered, if root { [0, 10] } else { pair });
            assert_eq!(dealt[0], me);
        });
    }
}

#[test]
fn the_deadline_can_be_changed() {
    let errors = threads(2, &config(TransportChoice::Auto), |comm| {
        comm.barrier().unwrap();
        comm.set_timeout(Duration::from_millis(300));
        if comm.rank() == 1 {
            std::thread::sleep(Duration::from_secs(1));
        }
        comm.barrier().unwrap_err()
    });
    let Verdict::Stalled { reporter: 0, after, .. } = common_verdict(&errors) else { panic!("{errors:?}") };
    assert_eq!(after, Duration::from_millis(300));
}

#[test]
fn a_request_is_not_done_before_the_others_come() {
    for path in paths() {
        let started = AtomicU32::new(0);
        threads(2, &path.config, |comm| {
            let (input, mut output) = (vec![1.0f32; path.count], vec![0.0f32; path.count]);
            maypole::scope(|s| {
                if comm.rank() == 1 {
                    while started.load(Ordering::Acquire) == 0 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                let request = comm.start(s).all_reduce(&input, &mut output, SUM).unwrap();
                if comm.rank() == 0 {
                    std::thread::sleep(Duration::from_millis(20));
                    assert!(!request.test(), "{}: done without rank 1", path.name);
                    started.store(1, Ordering::Release);
                }
                let until = Instant::now() + PATIENCE;
                while !request.test() {
                    assert!(Instant::now() < until, "{}: never done", path.name);
                    std::thread::sleep(Duration::from_micros(100));
                }
                assert!(request.wait().unwrap().iter().all(|x| *x == 2.0));
            });
        });
    }
}

#[test]
fn a_panic_in_a_scope_waits_for_what_was_started() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        let (input, mut output) = ([1u32; 3], [0u32; 3]);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            maypole::scope(|s| {
                let request = comm.start(s).all_reduce(&input, &mut output, SUM).unwrap();
                // Even a request that is forgotten is waited for.
                std::mem::forget(request);
                std::panic::resume_unwind(Box::new("a test's panic"));
            })
        }));
        panicked.expect_err("it panicked");
        assert_eq!(output, [2; 3], "the operation was done when the buffers became free");
        comm.barrier().unwrap();
    });
}

#[test]
fn two_communicators_work_at_once_on_streams() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(2, &config(transport), |first| {
            let second = first.split(Some(0), 0).unwrap().unwrap();
            let streams = [Stream::new().unwrap(), Stream::new().unwrap()];
            let inputs: Vec<Vec<i64>> = (0..60).map(|call| vec![value(first.rank(), call); 1 + 300 * call]).collect();
            let mut outputs: Vec<Vec<i64>> = inputs.iter().map(|input| vec![0; input.len()]).collect();
            maypole::scope(|s| {
                // The ranks queue the two communicators' work in opposite order: only streams of their own keep them
                // from waiting for each other for ever.
                let calls = inputs.iter().zip(&mut outputs).enumerate().collect::<Vec<_>>();
                let (even, odd): (Vec<_>, Vec<_>) = calls.into_iter().partition(|(call, _)| call % 2 == 0);
                let mut work = [(&first, &streams[0], even), (&second, &streams[1], odd)];
                if first.rank() == 1 {
                    work.reverse();
                }
                for (comm, stream, calls) in work {
                    for (_, (input, output)) in calls {
                        drop_later(comm.start_on(stream, s).all_reduce(input, output, SUM).unwrap());
                    }
                }
            });
            for (call, output) in outputs.iter().enumerate() {
                assert!(output.iter().all(|x| *x == total(2, call)), "call {call}");
            }
        });
    }
}

/// Leave a request to its scope.
fn drop_later<T>(request: maypole::Request<'_, T>) {
    std::mem::forget(request);
}

#[test]
fn one_stream_may_carry_two_communicators() {
    threads(3, &config(TransportChoice::Auto), |first| {
        let second = first.split(Some(0), -(first.rank() as i64)).unwrap().unwrap();
        let stream = Stream::new().unwrap();
        let inputs: Vec<[i64; 4]> = (0..50).map(|call| [value(first.rank(), call); 4]).collect();
        let mut outputs = vec![[0i64; 4]; 50];
        maypole::scope(|s| {
            for (call, (input, output)) in inputs.iter().zip(&mut outputs).enumerate() {
                let comm = [&first, &second][call % 2];
                drop_later(comm.start_on(&stream, s).all_reduce(input, output, SUM).unwrap());
            }
            // On its own thread, in the order of the calls on each communicator.
            second.barrier().unwrap();
            first.barrier().unwrap();
        });
        for (call, output) in outputs.iter().enumerate() {
            assert_eq!(*output, [total(3, call); 4]);
        }
    });
}

#[test]
fn threads_may_share_a_communicator() {
    // Barriers are alike, so their order does not matter.
    threads(2, &config(TransportChoice::Auto), |comm| {
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..200).for_each(|_| comm.barrier().unwrap()));
            }
        });
    });
}

#[test]
fn a_communicator_dropped_with_work_under_way_finishes_it() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        let (input, mut output) = (vec![1u64; 50_000], vec![0u64; 50_000]);
        maypole::scope(|s| {
            let request = comm.start(s).all_reduce(&input, &mut output, SUM).unwrap();
            drop(comm);
            assert!(request.wait().unwrap().iter().all(|x| *x == 2));
        });
    });
}

#[test]
fn errors_arrive_where_the_request_is_waited_for() {
    for path in paths() {
        let errors = threads(3, &path.config, |comm| {
            let inputs = vec![vec![1.0f32; path.count]; 4];
            let mut outputs = inputs.clone();
            maypole::scope(|s| {
                if comm.rank() == 2 {
                    std::thread::sleep(Duration::from_millis(10));
                    comm.abort("not today");
                }
                let start = comm.start(s);
                let requests: Vec<_> = inputs
                    .iter()
                    .zip(&mut outputs)
                    .map(|(input, output)| start.all_reduce(input, output, SUM).expect("queued all the same"))
                    .collect();
                let errors: Vec<Error> = requests.into_iter().map(|r| r.wait().unwrap_err()).collect();
                assert_eq!(errors.len(), 4);
                let verdict = verdict(&errors[0]);
                assert!(errors.iter().all(|e| ranks::verdict(e) == verdict), "{}: {errors:?}", path.name);
                errors.into_iter().next().expect("four")
            })
        });
        assert!(matches!(common_verdict(&errors), Verdict::Aborted { rank: 2, .. }));
    }
}

#[test]
fn a_world_of_one_needs_nobody() {
    let comm = Communicator::threads(1).unwrap().remove(0);
    let (input, mut output) = ([3.0f64; 2], [0.0f64; 2]);
    maypole::scope(|s| {
        assert_eq!(comm.start(s).all_reduce(&input, &mut output, ReduceOp::Avg).unwrap().wait().unwrap(), [3.0; 2])
    });
}

#[test]
fn receive_send_and_wait_on_both_sides() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(2, &config(transport), |comm| {
            let (me, other) = (comm.rank() as i64, 1 - comm.rank());
            for count in [0, 1, 1000, 400_000] {
                let (sent, mut got) = (vec![me; count], vec![-1; count]);
                maypole::scope(|s| {
                    let receive = comm.start(s).recv(&mut got, other).unwrap();
                    let send = comm.start(s).send(&sent, other).unwrap();
                    // In whichever order.
                    if me == 0 {
                        send.wait().unwrap();
                        receive.wait().unwrap();
                    } else {
                        receive.wait().unwrap();
                        send.wait().unwrap();
                    }
                });
                assert!(got.iter().all(|x| *x == other as i64));
            }
        });
    }
}

#[test]
fn posted_messages_and_collectives_do_not_wait_for_each_other() {
    for path in paths() {
        threads(3, &path.config, |comm| {
            let (me, size) = (comm.rank(), comm.size());
            let (right, left) = ((me + 1) % size, (me + size - 1) % size);
            for round in 0..5 {
                let (sent, mut got) = (vec![(me + round) as i32; 60_000], vec![-1; 60_000]);
                let mut sum = vec![1i64; path.count];
                maypole::scope(|s| {
                    let receive = comm.start(s).recv(&mut got, left).unwrap();
                    // Ranks call the collective before or after they send.
                    let mut send = None;
                    if me == 0 {
                        send = Some(comm.start(s).send(&sent, right).unwrap());
                    }
                    comm.all_reduce_in_place(&mut sum, SUM).unwrap();
                    let send = send.unwrap_or_else(|| comm.start(s).send(&sent, right).unwrap());
                    receive.wait().unwrap();
                    send.wait().unwrap();
                });
                assert!(got.iter().all(|x| *x == (left + round) as i32), "{}", path.name);
                assert!(sum.iter().all(|x| *x == 3), "{}", path.name);
            }
        });
    }
}

#[test]
fn a_posted_message_goes_on_its_way_while_its_owner_does_something_else() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        let arrived = Barrier::new(2);
        threads(2, &config(transport), |comm| {
            let mut large = vec![comm.rank() as u64; 2 << 20];
            for _ in 0..3 {
                if comm.rank() == 0 {
                    maypole::scope(|s| {
                        let request = comm.start(s).send(&large, 1).unwrap();
                        // No call of Maypole's until the other side has it all.
                        arrived.wait();
                        request.wait().unwrap();
                    });
                } else {
                    comm.recv(&mut large, 0).unwrap();
                    assert!(large.iter().all(|x| *x == 0));
                    large.fill(1);
                    arrived.wait();
                }
            }
            // And the other way round: what is received lands while nobody looks.
            if comm.rank() == 1 {
                maypole::scope(|s| {
                    let request = comm.start(s).recv(&mut large, 0).unwrap();
                    arrived.wait();
                    assert!(request.wait().unwrap().iter().all(|x| *x == 9));
                });
            } else {
                comm.send(&vec![9u64; 2 << 20], 1).unwrap();
                arrived.wait();
            }
        });
    }
}

#[test]
fn hundreds_of_messages_outstanding() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(3, &config(transport), |comm| {
            let (me, size, each) = (comm.rank(), comm.size(), 150);
            let count = |from: usize, to: usize, nth: usize| (from * 7 + to * 5 + nth * 13) % 3000;
            let others: Vec<usize> = (0..size).filter(|r| *r != me).collect();
            let pairs: Vec<(usize, usize)> = others.iter().flat_map(|r| (0..each).map(move |n| (*r, n))).collect();
            let sent: Vec<Vec<u32>> =
                pairs.iter().map(|(to, n)| vec![(me * 1000 + n) as u32; count(me, *to, *n)]).collect();
            let mut got: Vec<Vec<u32>> = pairs.iter().map(|(from, n)| vec![0; count(*from, me, *n)]).collect();
            maypole::scope(|s| {
                let mut requests = Vec::new();
                // Every third pair of messages has a tag of its own, and those are sent last.
                let tag = |n: usize| if n.is_multiple_of(3) { n as u32 } else { 0 };
                for ((from, n), buffer) in pairs.iter().zip(&mut got) {
                    requests.push((*from, *n, comm.start(s).tag(tag(*n)).recv(buffer, *from).unwrap()));
                }
                let mut sends = Vec::new();
                for tagged in [false, true] {
                    for ((to, n), buffer) in pairs.iter().zip(&sent).filter(|((_, n), _)| (tag(*n) != 0) == tagged) {
                        sends.push(comm.start(s).tag(tag(*n)).send(buffer, *to).unwrap());
                    }
                }
                maypole::wait_all(&sends).unwrap();
                // Whichever comes first.
                while let Some(next) = maypole::wait_any(requests.iter().map(|(_, _, request)| request)) {
                    let (from, n, request) = requests.swap_remove(next);
                    assert!(request.test());
                    let buffer = request.wait().unwrap();
                    assert!(buffer.iter().all(|x| *x == (from * 1000 + n) as u32), "message {n} from {from}");
                }
            });
            comm.barrier().unwrap();
        });
    }
}

#[test]
fn requests_of_different_kinds_and_types_are_waited_for_together() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        let first_done = Barrier::new(2);
        threads(2, &config(transport), |comm| {
            let other = 1 - comm.rank();
            let (mut sum, mut message, mut late) = ([1.5f64; 3], [0u8; 9], vec![0i32; 100_000]);
            let sent = vec![4i32; 100_000];
            maypole::scope(|s| {
                let start = comm.start(s);
                let late = start.tag(1).recv(&mut late, other).unwrap();
                let sum = start.all_reduce_in_place(&mut sum, SUM).unwrap();
                let message = start.recv(&mut message, other).unwrap();
                comm.send(&[3u8; 9], other).unwrap();
                // The first is not sent yet, so it is one of the others, and then the remaining one.
                let all: [&dyn Pending; 3] = [&late, &sum, &message];
                let one = maypole::wait_any(all).unwrap();
                assert!(one != 0);
                assert_eq!(maypole::wait_any([all[0], all[3 - one]]), Some(1));
                assert!(!late.is_done());
                first_done.wait();
                let large = start.tag(1).send(&sent, other).unwrap();
                // Asleep in wait_any while somebody else moves the message.
                assert_eq!(maypole::wait_any([&late]), Some(0));
                maypole::wait_all([&late as &dyn Pending, &sum, &message, &large]).unwrap();
                assert_eq!(sum.wait().unwrap(), [3.0; 3]);
                assert_eq!(message.wait().unwrap(), [3; 9]);
                assert!(late.wait().unwrap().iter().all(|x| *x == 4));
            });
            assert_eq!(maypole::wait_any::<maypole::Request<'_, u8>>([]), None);
            maypole::wait_all::<maypole::Request<'_, u8>>([]).unwrap();
        });
    }
}

#[test]
fn wait_any_sleeps_until_something_is_done() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        let sent = AtomicBool::new(false);
        threads(2, &config(transport), |comm| {
            let (mut message, mut sum) = ([0u8; 4], [1i32; 2]);
            if comm.rank() == 0 {
                std::thread::sleep(Duration::from_millis(200));
                sent.store(true, Ordering::Release);
                comm.send(&[6u8; 4], 1).unwrap();
                std::thread::sleep(Duration::from_millis(200));
                comm.all_reduce_in_place(&mut sum, SUM).unwrap();
                return;
            }
            maypole::scope(|s| {
                let sum = comm.start(s).all_reduce_in_place(&mut sum, SUM).unwrap();
                let message = comm.start(s).recv(&mut message, 0).unwrap();
                let both: [&dyn Pending; 2] = [&sum, &message];
                assert_eq!(maypole::wait_any(both), Some(1));
                assert!(sent.load(Ordering::Acquire), "there was nothing to come back for");
                assert_eq!(maypole::wait_any([&sum]), Some(0));
            });
            assert_eq!((message, sum), ([6; 4], [2; 2]));
        });
    }
}

#[test]
fn a_message_request_dropped_or_forgotten_is_waited_for() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(2, &config(transport), |comm| {
            let other = 1 - comm.rank();
            let (sent, mut dropped, mut forgotten) = (vec![7u32; 200_000], vec![0u32; 200_000], vec![0u32; 200_000]);
            maypole::scope(|s| {
                let one = comm.start(s).recv(&mut dropped, other).unwrap();
                std::mem::forget(comm.start(s).recv(&mut forgotten, other).unwrap());
                std::mem::forget(comm.start(s).send(&sent, other).unwrap());
                std::mem::forget(comm.start(s).send(&sent, other).unwrap());
                drop(one);
            });
            assert!(dropped.iter().chain(&forgotten).all(|x| *x == 7));
        });
    }
}

#[test]
fn a_message_on_a_stream_waits_for_what_is_before_it() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(2, &config(transport), |comm| {
            let stream = Stream::new().unwrap();
            let other = 1 - comm.rank();
            let (mut first, mut got) = ([1u64; 1], [0u64; 4]);
            maypole::scope(|s| {
                let start = comm.start_on(&stream, s);
                let _sum = start.all_reduce_in_place(&mut first, SUM).unwrap();
                let message = match comm.rank() {
                    0 => start.tag(5).send(&[8u64; 4], other).unwrap(),
                    _ => start.tag(5).recv(&mut got, other).unwrap(),
                };
                message.wait().unwrap();
            });
            assert_eq!(got, [[0; 4], [8; 4]][comm.rank()]);
        });
    }
}

#[test]
fn a_wrong_peer_is_refused_at_the_call() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        let mut got = [0u8; 3];
        maypole::scope(|s| {
            assert!(matches!(comm.start(s).send(&[1u8], 2), Err(Error::Argument { .. })));
            assert!(matches!(comm.start(s).recv(&mut got, 9), Err(Error::Argument { .. })));
        });
        comm.barrier().unwrap();
    });
}
